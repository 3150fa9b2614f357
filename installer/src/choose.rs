//! Which disk is meant. Pure: disks and wishes in, one disk or one clear refusal out.

use crate::inspect::Contents;
use formats::stick::{Prefer, Rules};
use serde::Deserialize;

/// A disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Device, as `/dev/nvme0n1`.
    pub device: String,
    /// Length in bytes.
    pub bytes: u64,
    /// Bytes of a logical sector.
    pub sector: u32,
    /// `nvme`, `ata`, `mmc`, `virtio`, `scsi` or `usb`.
    pub bus: String,
    /// Model as the disk says it, or empty.
    pub model: String,
    /// Serial number, or empty.
    pub serial: String,
    /// Whether the medium can be taken out.
    pub removable: bool,
    /// Whether the kernel refuses to write to it.
    pub read_only: bool,
    /// Whether this system was started from it.
    pub started: bool,
    /// What stands on it.
    pub contents: Contents,
}

/// What may happen to what stands on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Existing {
    /// Only a disk with nothing of value is taken.
    #[default]
    Refuse,
    /// Whatever stands there is lost.
    Erase,
    /// An installed device gets a new system and keeps its data; a disk with nothing of value is installed.
    Keep,
}

/// The disk to install on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen {
    /// The disk.
    pub disk: Candidate,
    /// Whether its state partition stays.
    pub keep: bool,
}

/// Why no disk was chosen. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No disk fits the rules.
    #[error(
        "no disk to install on: {0}\nNext: connect or enable the disk, or name it in site.yaml under `disk`."
    )]
    None(String),
    /// All that fit are too small.
    #[error(
        "{disk} is too small: {} GiB are needed\nNext: use a larger disk, or a stick of a smaller profile.",
        gib(*needs)
    )]
    TooSmall {
        /// The largest that fits otherwise.
        disk: String,
        /// Bytes that are needed.
        needs: u64,
    },
    /// Data would be lost.
    #[error(
        "{0}\nNothing was changed.\nNext: if it may be lost, write `disk: {{existing: erase}}` into site.yaml; to \
         renew a Farhold system and keep its data, `disk: {{existing: keep}}`."
    )]
    Data(String),
    /// More than one disk could be meant.
    #[error(
        "{0} disks could be meant, and only one may be: {1}\nNext: name one in site.yaml, as `disk: {{serial: \
         …}}`, or with `bus`, `model`, `max_gib`, or `prefer: smallest`."
    )]
    Several(usize, String),
}

fn gib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 30))
}

impl Candidate {
    /// One line for people.
    pub fn text(&self) -> String {
        let named = [&self.model, &self.serial].into_iter().filter(|s| !s.is_empty());
        let named: String = named.map(|text| format!(", {text}")).collect();
        format!("{} ({}, {} GiB{named}): {}", self.device, self.bus, gib(self.bytes), self.contents.text())
    }

    /// Why the disk is not what the rules ask for; `None` if it is.
    fn misfit(&self, rules: &Rules) -> Option<String> {
        let asked = |bus: &str| rules.bus.iter().any(|asked| asked == bus);
        if self.started || self.contents == Contents::Stick {
            return Some("is the stick".into());
        }
        if rules.bus.is_empty() && self.bus == "usb" || !rules.bus.is_empty() && !asked(&self.bus) {
            return Some(format!("is on bus {}", self.bus));
        }
        if self.removable && !asked("usb") {
            return Some("is removable".into());
        }
        if self.read_only {
            return Some("is write-protected".into());
        }
        if u64::from(self.sector) != formats::gpt::SECTOR as u64 {
            return Some(format!("has sectors of {} bytes, images are made for 512", self.sector));
        }
        let (least, most) = (rules.min_gib.unwrap_or(0) << 30, rules.max_gib.map_or(u64::MAX, |n| n << 30));
        if !(least..=most).contains(&self.bytes) {
            return Some(format!("has {} GiB", gib(self.bytes)));
        }
        let part = |of: &str, part: &str| of.to_lowercase().contains(&part.to_lowercase());
        if rules.model.as_ref().is_some_and(|model| !part(&self.model, model)) {
            return Some(format!("is a {}", self.model));
        }
        if rules.serial.as_ref().is_some_and(|serial| *serial != self.serial) {
            return Some(format!("has serial number {}", self.serial));
        }
        None
    }
}

/// Chooses the disk. `needs` is the least size, bytes.
///
/// # Errors
/// [`Refusal`], unless exactly one disk is meant.
pub fn choose(disks: &[Candidate], rules: &Rules, existing: Existing, needs: u64) -> Result<Chosen, Refusal> {
    let fits: Vec<&Candidate> = disks.iter().filter(|disk| disk.misfit(rules).is_none()).collect();
    if fits.is_empty() {
        let why = |disk: &Candidate| Some(format!("{} {}", disk.device, disk.misfit(rules)?));
        let seen: Vec<String> = disks.iter().filter_map(why).collect();
        return Err(Refusal::None(if seen.is_empty() { "none was found".into() } else { seen.join("; ") }));
    }
    let large: Vec<&Candidate> = fits.iter().copied().filter(|disk| disk.bytes >= needs).collect();
    if large.is_empty() {
        let largest = fits.iter().max_by_key(|disk| disk.bytes).map_or(String::new(), |disk| disk.text());
        return Err(Refusal::TooSmall { disk: largest, needs });
    }
    let ours = |disk: &&Candidate| matches!(disk.contents, Contents::Farhold(_));
    let free = || large.iter().copied().filter(|disk| disk.contents.free()).collect::<Vec<_>>();
    let (meant, keep) = match existing {
        Existing::Refuse => (free(), false),
        Existing::Erase => (large.clone(), false),
        Existing::Keep => {
            let ours: Vec<&Candidate> = large.iter().copied().filter(ours).collect();
            if ours.is_empty() { (free(), false) } else { (ours, true) }
        }
    };
    let one = single(&meant, rules.prefer)?;
    let data = || Refusal::Data(format!("data would be lost: {}", list(&large)));
    one.map(|disk| Chosen { disk: disk.clone(), keep }).ok_or_else(data)
}

/// The one that is meant; `None` if there is none.
fn single<'a>(meant: &[&'a Candidate], prefer: Option<Prefer>) -> Result<Option<&'a Candidate>, Refusal> {
    let sizes = meant.iter().map(|disk| disk.bytes);
    let size = match prefer {
        Some(Prefer::Smallest) => sizes.min(),
        Some(Prefer::Largest) => sizes.max(),
        None => None,
    };
    let left: Vec<&Candidate> =
        meant.iter().copied().filter(|disk| size.is_none_or(|size| disk.bytes == size)).collect();
    match left.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => Err(Refusal::Several(several.len(), list(several))),
    }
}

fn list(disks: &[&Candidate]) -> String {
    disks.iter().map(|disk| disk.text()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(device: &str, bus: &str, gib: u64) -> Candidate {
        Candidate {
            model: "DISK".into(),
            serial: format!("S{gib}"),
            ..crate::samples::disk(device, bus, gib, Contents::Empty)
        }
    }

    fn stick(gib: u64) -> Candidate {
        Candidate {
            started: true,
            removable: true,
            contents: Contents::Stick,
            ..disk("/dev/sda", "usb", gib)
        }
    }

    fn refused(disks: &[Candidate], rules: &Rules) -> String {
        choose(disks, rules, Existing::Refuse, 4 << 30).unwrap_err().to_string()
    }

    #[test]
    fn two_targets_are_refused_unless_one_is_named_or_preferred() {
        let disks = [disk("/dev/nvme0n1", "nvme", 100), disk("/dev/sdb", "ata", 200), stick(30)];
        let said = refused(&disks, &Rules::default());
        assert!(
            said.starts_with("2 disks could be meant") && said.contains("/dev/nvme0n1 (nvme, 100.0 GiB"),
            "{said}"
        );
        assert!(said.contains("Next: name one in site.yaml"), "{said}");
        for (rules, meant) in [
            (Rules { serial: Some("S200".into()), ..Rules::default() }, "/dev/sdb"),
            (Rules { bus: vec!["nvme".into()], ..Rules::default() }, "/dev/nvme0n1"),
            (Rules { prefer: Some(Prefer::Largest), ..Rules::default() }, "/dev/sdb"),
            (Rules { prefer: Some(Prefer::Smallest), ..Rules::default() }, "/dev/nvme0n1"),
        ] {
            assert_eq!(choose(&disks, &rules, Existing::Refuse, 4 << 30).unwrap().disk.device, meant);
        }
        let twins = [disk("/dev/sdb", "ata", 9), disk("/dev/sdc", "ata", 9)];
        let rules = Rules { prefer: Some(Prefer::Largest), ..Rules::default() };
        assert!(refused(&twins, &rules).starts_with("2 disks could be meant"));
    }

    #[test]
    fn the_stick_is_never_chosen_though_it_is_the_largest_disk() {
        let rules = Rules {
            bus: vec!["usb".into(), "nvme".into()],
            prefer: Some(Prefer::Largest),
            ..Rules::default()
        };
        let disks = [stick(2000), disk("/dev/nvme0n1", "nvme", 100)];
        for existing in [Existing::Refuse, Existing::Erase, Existing::Keep] {
            assert_eq!(choose(&disks, &rules, existing, 4 << 30).unwrap().disk.device, "/dev/nvme0n1");
        }
        let said = refused(&[stick(2000)], &rules);
        assert!(said.starts_with("no disk to install on: /dev/sda is the stick"), "{said}");
        let another = Candidate { started: false, ..stick(2000) };
        assert!(refused(&[another], &rules).contains("is the stick"));
    }

    #[test]
    fn a_foreign_system_is_refused_until_told() {
        let windows = Contents::Foreign("another system: 3 partitions (Windows data)".into());
        let disks = [Candidate { contents: windows, ..disk("/dev/sdb", "ata", 100) }];
        let said = refused(&disks, &Rules::default());
        assert!(
            said.starts_with("data would be lost: /dev/sdb") && said.contains("(Windows data)"),
            "{said}"
        );
        assert!(said.contains("Nothing was changed.") && said.contains("existing: erase"), "{said}");
        assert!(choose(&disks, &Rules::default(), Existing::Keep, 0).is_err());
        assert!(!choose(&disks, &Rules::default(), Existing::Erase, 0).unwrap().keep);
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_not_taken_for_an_empty_one() {
        let bad = Contents::Unreadable("I/O error".into());
        let disks = [Candidate { contents: bad, ..disk("/dev/sdb", "ata", 100) }];
        assert!(refused(&disks, &Rules::default()).starts_with("data would be lost"));
    }

    #[test]
    fn a_too_small_disk_is_refused_with_what_is_needed() {
        let said = refused(&[disk("/dev/sdb", "ata", 3)], &Rules::default());
        assert!(said.starts_with("/dev/sdb (ata, 3.0 GiB") && said.contains("4.0 GiB are needed"), "{said}");
    }

    #[test]
    fn write_protected_and_large_sectored_disks_say_so() {
        let locked = Candidate { read_only: true, ..disk("/dev/sdb", "ata", 100) };
        assert!(refused(&[locked], &Rules::default()).contains("/dev/sdb is write-protected"));
        let large = Candidate { sector: 4096, ..disk("/dev/sdb", "ata", 100) };
        assert!(refused(&[large], &Rules::default()).contains("sectors of 4096 bytes"));
    }
}
