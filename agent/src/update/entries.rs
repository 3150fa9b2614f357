//! Which boot entries may be touched, and what they become. Pure: names of the ESP in, names out.

use crate::update::state::Release;
use formats::entry::{EntryName, Tries};
use formats::hex::Digest;

/// Tries of a new entry.
pub const TRIES: u32 = 3;

/// What is done to a release's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Nothing; it is only looked for.
    Look,
    /// All tries are given (back).
    Arm,
    /// It is not counted any more.
    Bless,
    /// No tries are left: it sorts last, and is still there should nothing else be.
    Spend,
}

impl Operation {
    /// What the entry becomes; `None` if it stays as it is.
    pub fn apply(self, entry: &EntryName) -> Option<EntryName> {
        let tries = match self {
            Self::Look => return None,
            Self::Arm => Some(Tries { left: TRIES, done: 0 }),
            Self::Bless => None,
            Self::Spend => Some(Tries { left: 0, done: entry.tries.map_or(1, |tries| tries.done.max(1)) }),
        };
        let becomes = EntryName { tries, ..entry.clone() };
        (becomes != *entry).then_some(becomes)
    }
}

/// The entry of a release; where a torn rename left two, the one that systemd-boot would start.
pub fn find(names: &[String], release: &Release) -> Option<EntryName> {
    let entries = of(names, release.roothash);
    formats::loader::first(entries.iter().filter(|entry| entry.version == release.version)).cloned()
}

/// All entries that open this roothash.
pub fn of(names: &[String], roothash: Digest) -> Vec<EntryName> {
    let parsed = names.iter().filter_map(|name| EntryName::parse(name));
    parsed.filter(|entry| entry.roothash8 == roothash.short()).collect()
}

/// The entries that go before the other slot is rewritten: every one of Farhold's but the running release's. Files
/// that Farhold did not name stay.
///
/// # Errors
/// If the running release has no entry that is not counted: then nothing may be touched, as there would be no way back.
pub fn to_retire(names: &[String], running: Digest) -> Result<Vec<String>, String> {
    if !of(names, running).iter().any(|entry| entry.tries.is_none()) {
        return Err(format!(
            "the ESP has no entry without counters for the running roothash {}: nothing may be changed until it has",
            running.short()
        ));
    }
    let ours = names.iter().filter_map(|name| Some((name, EntryName::parse(name)?)));
    Ok(ours.filter(|(_, entry)| entry.roothash8 != running.short()).map(|(name, _)| name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Digest = Digest([0xaa; 32]);

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_others_go_and_only_with_a_way_back() {
        let all = names(&[
            "1.0_aaaaaaaa.efi",
            "0.9_bbbbbbbb.efi",
            "1.1_cccccccc+0-3.efi",
            "recovery_1.efi",
            "memtest.efi",
        ]);
        assert_eq!(
            to_retire(&all, RUNNING).unwrap(),
            ["0.9_bbbbbbbb.efi", "1.1_cccccccc+0-3.efi"].map(str::to_owned)
        );
        let counted = names(&["1.0_aaaaaaaa+2-1.efi", "0.9_bbbbbbbb.efi"]);
        assert!(to_retire(&counted, RUNNING).unwrap_err().contains("no entry without counters"));
        assert!(to_retire(&[], RUNNING).is_err());
    }

    #[test]
    fn operations_are_idempotent() {
        let entry = EntryName::parse("1.0_aaaaaaaa+2-1.efi").unwrap();
        for (operation, name) in [
            (Operation::Arm, "1.0_aaaaaaaa+3.efi"),
            (Operation::Bless, "1.0_aaaaaaaa.efi"),
            (Operation::Spend, "1.0_aaaaaaaa+0-1.efi"),
        ] {
            let becomes = operation.apply(&entry).unwrap();
            assert_eq!(becomes.file_name(), name);
            assert_eq!(operation.apply(&becomes), None);
        }
        assert_eq!(Operation::Look.apply(&entry), None);
    }

    #[test]
    fn of_two_entries_of_a_torn_rename_the_one_that_boots_counts() {
        let release = Release { version: "1.0".into(), roothash: RUNNING, manifest: None };
        let both = names(&["1.0_aaaaaaaa+0-3.efi", "1.0_aaaaaaaa+1-2.efi", "1.0_bbbbbbbb.efi"]);
        assert_eq!(find(&both, &release).unwrap().file_name(), "1.0_aaaaaaaa+1-2.efi");
        assert_eq!(find(&[], &release), None);
    }
}
