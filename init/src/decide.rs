//! What to do when the root cannot be opened, mounted or started. Pure: facts in, decision out.
//!
//! Design section 4: the other complete slot first, then the recovery entry, and with nothing left a halt with a
//! message. Whatever the firmware does with the request, the number of restarts is bounded by [`Fallback`].

use formats::efi::Fallback;
use formats::entry::EntryName;
use formats::hex::Digest;

/// Most restarts into one entry before the agent came up once: a slot that opens but never runs is left for good.
const RESTARTS_MAX: usize = 3;
/// Entries whose id begins so are recovery systems.
const RECOVERY: &str = "recovery";

/// What is known when a boot failed.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// systemd-boot counts this boot; another restart ends at an older entry by itself.
    pub trial: bool,
    /// The boot disk was found, so a restart cannot find more.
    pub disk_found: bool,
    /// Requests can be stored for the next boot.
    pub can_ask: bool,
    /// Requests made since the agent last ran.
    pub record: Fallback,
    /// Entry of the other complete slot.
    pub other: Option<String>,
    /// Recovery entry.
    pub recovery: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Ask for this entry once, and restart.
    Ask(String),
    /// Restart; `remember` if nothing else bounds how often.
    Again {
        /// Whether the restart must be added to the record first.
        remember: bool,
    },
    /// Stay, with a message.
    Halt,
}

/// Decides what follows a failed boot.
pub fn next(situation: &Situation) -> Next {
    let Situation { record, other, recovery, .. } = situation;
    let asked = |id: &Option<String>, limit| id.clone().filter(|id| record.times(id) < limit);
    if situation.can_ask {
        // A recovery system is better than a second try of what has just failed, a second try better than nothing.
        if let Some(id) = asked(other, 1).or(asked(recovery, 1)).or(asked(other, RESTARTS_MAX)) {
            return Next::Ask(id);
        }
    }
    if situation.trial {
        return Next::Again { remember: false };
    }
    if !situation.disk_found && situation.can_ask && record.times("") < RESTARTS_MAX {
        return Next::Again { remember: true };
    }
    Next::Halt
}

/// Picks, from the file names on the ESP, the entry of a complete slot whose image is not `failed`, and the recovery
/// entry. Entries whose tries are spent are left out; one that is not counted is preferred.
pub fn entries(names: &[String], complete: &[Digest], failed: Digest) -> (Option<String>, Option<String>) {
    let usable = |entry: &EntryName| {
        let opens = complete.iter().any(|digest| *digest != failed && digest.short() == entry.roothash8);
        opens && entry.tries.is_none_or(|tries| tries.left > 0)
    };
    let mut others: Vec<EntryName> =
        names.iter().filter_map(|name| EntryName::parse(name)).filter(usable).collect();
    others.sort_by_key(|entry| (entry.tries.is_some(), entry.file_name()));
    let recovery = names.iter().filter(|name| name.starts_with(RECOVERY) && name.ends_with(".efi")).max();
    (others.first().map(EntryName::id), recovery.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "1.0_aaaaaaaa.efi";
    const RECOVER: &str = "recovery_1.efi";

    /// Every combination of the facts, with every record of up to six requests that the init itself can write.
    fn situations() -> Vec<Situation> {
        let mut all = Vec::new();
        for bits in 0..32u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            for others in 0..=3 {
                for recoveries in 0..=1 {
                    for again in 0..=3 {
                        let asked =
                            [vec![OTHER; others], vec![RECOVER; recoveries], vec![""; again]].concat();
                        all.push(Situation {
                            trial: bit(0),
                            disk_found: bit(1),
                            can_ask: bit(2),
                            record: Fallback {
                                why: String::new(),
                                asked: asked.into_iter().map(str::to_owned).collect(),
                            },
                            other: bit(3).then(|| OTHER.to_owned()),
                            recovery: bit(4).then(|| RECOVER.to_owned()),
                        });
                    }
                }
            }
        }
        all
    }

    #[test]
    fn nothing_is_asked_for_that_cannot_be_stored_or_is_not_there() {
        for situation in situations() {
            if let Next::Ask(id) = next(&situation) {
                assert!(situation.can_ask);
                assert!([&situation.other, &situation.recovery].contains(&&Some(id)));
            }
        }
    }

    #[test]
    fn a_first_failure_goes_to_the_other_slot_and_a_second_to_recovery() {
        for situation in situations().into_iter().filter(|s| s.can_ask && s.other.is_some()) {
            let asked = (situation.record.times(OTHER), situation.record.times(RECOVER));
            match (asked, &situation.recovery) {
                ((0, _), _) => assert_eq!(next(&situation), Next::Ask(OTHER.into())),
                ((_, 0), Some(_)) => assert_eq!(next(&situation), Next::Ask(RECOVER.into())),
                ((1 | 2, _), _) => assert_eq!(next(&situation), Next::Ask(OTHER.into())),
                ((_, _), _) => assert!(!matches!(next(&situation), Next::Ask(_))),
            }
        }
    }

    #[test]
    fn with_nothing_complete_left_an_uncounted_boot_halts() {
        for situation in situations().into_iter().filter(|s| s.disk_found && !s.trial) {
            let nothing = situation.other.is_none() && situation.recovery.is_none();
            if nothing || !situation.can_ask {
                assert_eq!(next(&situation), Next::Halt);
            }
        }
    }

    #[test]
    fn restarts_end_whatever_the_firmware_starts() {
        for mut situation in situations().into_iter().filter(|s| !s.trial) {
            let mut restarts = 0;
            loop {
                match next(&situation) {
                    Next::Ask(id) => situation.record.asked.push(id),
                    Next::Again { remember } => {
                        assert!(remember, "an uncounted restart is always remembered");
                        situation.record.asked.push(String::new());
                    }
                    Next::Halt => break,
                }
                restarts += 1;
                assert!(restarts <= 7, "{situation:?}");
            }
        }
    }

    #[test]
    fn a_trial_without_a_way_to_ask_is_left_to_the_boot_counter() {
        let situation = Situation { trial: true, other: Some(OTHER.into()), ..Situation::default() };
        assert_eq!(next(&situation), Next::Again { remember: false });
    }

    #[test]
    fn the_entry_of_the_other_slot_is_found_by_roothash() {
        let (failed, other) = (Digest([0xbb; 32]), Digest([0xaa; 32]));
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let all = names(&[
            "2.0_bbbbbbbb.efi",
            "1.0_aaaaaaaa+2-1.efi",
            "1.0_aaaaaaaa.efi",
            "recovery_1.efi",
            "x.efi",
        ]);
        assert_eq!(entries(&all, &[failed, other], failed), (Some(OTHER.into()), Some(RECOVER.into())));
        assert_eq!(entries(&all, &[failed], failed), (None, Some(RECOVER.into())));
        assert_eq!(entries(&names(&["1.0_aaaaaaaa+0-3.efi"]), &[other], failed), (None, None));
        assert_eq!(entries(&names(&["1.0_aaaaaaaa+1-2.efi"]), &[other], failed), (Some(OTHER.into()), None));
    }
}
