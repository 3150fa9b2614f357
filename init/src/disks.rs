//! Finds the boot disk by the partition tables of all disks. The choice is pure; only [`scan`] reads.
//!
//! Does not trust labels across disks: the boot disk is the one that systemd-boot was started from. Reproducible images
//! share GUIDs until they are installed, so two disks with the same one are an error, not a guess.

use anyhow::{Context, Result};
use formats::arch::Arch;
use formats::boot::Partitions;
use formats::gpt::{Guid, Header, Partition, SECTOR, Table};
use formats::layout::{self, LABEL_ESP, LABEL_STATE, Slot};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A disk with a partition table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Kernel name, as `vda`.
    pub name: String,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

/// The disk that this boot is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootDisk {
    /// Device, as `/dev/vda`.
    pub device: String,
    /// Its Farhold partitions.
    pub partitions: Partitions,
}

/// What a scan led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Choice {
    /// The boot disk.
    Found(BootDisk),
    /// Not there (yet); why.
    Wait(String),
    /// No disk can be told for sure; what an operator should know.
    Refuse(String),
}

/// Chooses among `disks`. `boot_partition` is the partition that systemd-boot was started from, if it is known.
pub fn choose(disks: &[Disk], boot_partition: Option<Guid>, arch: Arch) -> Choice {
    let Some(guid) = boot_partition else {
        let found: Vec<BootDisk> = disks.iter().filter_map(|disk| farhold(disk, arch)).collect();
        return match found.as_slice() {
            [] => Choice::Wait("no disk has Farhold's partitions".into()),
            [disk] => Choice::Found(disk.clone()),
            several => Choice::Refuse(format!(
                "{} have Farhold's partitions, and without LoaderDevicePartUUID it is unclear which one was started; \
                 remove all but one",
                several.iter().map(|d| d.device.as_str()).collect::<Vec<_>>().join(" and ")
            )),
        };
    };
    let Some(disk) = disks.iter().find(|disk| disk.partitions.iter().any(|p| p.guid == guid)) else {
        return Choice::Wait(format!("no disk has partition {guid}, from which systemd-boot was started"));
    };
    for other in disks.iter().filter(|other| other.name != disk.name) {
        if let Some(shared) =
            other.partitions.iter().find(|p| disk.partitions.iter().any(|q| q.guid == p.guid))
        {
            return Choice::Refuse(format!(
                "/dev/{} and /dev/{} both have partition {}: one is a copy of the other; remove one, or give it its \
                 own GUIDs",
                disk.name, other.name, shared.guid
            ));
        }
    }
    match farhold(disk, arch) {
        Some(found) => Choice::Found(found),
        None => {
            Choice::Wait(format!("/dev/{}, the boot disk, lacks some of Farhold's partitions", disk.name))
        }
    }
}

/// The Farhold partitions of a disk, if each needed one is there exactly once with its type.
fn farhold(disk: &Disk, arch: Arch) -> Option<BootDisk> {
    let device = format!("/dev/{}", disk.name);
    let separator = if disk.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    let one = |label: &str, kind: &str| {
        let kind = Guid::parse(kind);
        let mut found = disk.partitions.iter().filter(|p| p.label == label && Some(p.kind) == kind);
        let only = found.next().filter(|_| found.next().is_none());
        only.map(|p| format!("{device}{separator}{}", p.number))
    };
    let root = |slot: Slot| one(slot.root_label(), layout::type_root(arch));
    let verity = |slot: Slot| one(slot.verity_label(), layout::type_verity(arch));
    let partitions = Partitions {
        esp: one(LABEL_ESP, layout::TYPE_ESP)?,
        root: [root(Slot::A)?, root(Slot::B)?],
        verity: [verity(Slot::A)?, verity(Slot::B)?],
        state: one(LABEL_STATE, layout::TYPE_STATE),
    };
    Some(BootDisk { device, partitions })
}

/// Reads the partition tables of all disks of the machine; a disk without a readable one is left out.
///
/// # Errors
/// If the list of disks cannot be read.
pub fn scan() -> Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("list /sys/block")? {
        let name = entry.context("list /sys/block")?.file_name().to_string_lossy().into_owned();
        let virtual_device =
            ["loop", "ram", "dm-", "zram", "sr", "fd"].iter().any(|kind| name.starts_with(kind));
        if virtual_device {
            continue;
        }
        if let Ok(table) = read_table(&Path::new("/dev").join(&name)) {
            disks.push(Disk { name, partitions: table.partitions() });
        }
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn read_table(device: &Path) -> Result<Table> {
    let file = File::open(device)?;
    let mut sector = [0u8; SECTOR];
    file.read_exact_at(&mut sector, SECTOR as u64)?;
    let header = Header::parse(&sector, 1)?;
    let mut entries = vec![0u8; header.entries_bytes()];
    let at = header.entries_at.checked_mul(SECTOR as u64).context("entries lie beyond any disk")?;
    file.read_exact_at(&mut entries, at)?;
    Ok(Table::new(header, &entries)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guid(n: u8) -> Guid {
        Guid::from_disk(&[n; 16])
    }

    fn disk(name: &str, first_guid: u8) -> Disk {
        let arch = Arch::X86_64;
        let kinds = [
            (LABEL_ESP, layout::TYPE_ESP),
            (Slot::A.root_label(), layout::type_root(arch)),
            (Slot::A.verity_label(), layout::type_verity(arch)),
            (Slot::B.root_label(), layout::type_root(arch)),
            (Slot::B.verity_label(), layout::type_verity(arch)),
            (LABEL_STATE, layout::TYPE_STATE),
        ];
        let partitions = kinds.iter().zip(1u8..).map(|((label, kind), n)| Partition {
            number: u32::from(n),
            kind: Guid::parse(kind).unwrap(),
            guid: guid(first_guid + n - 1),
            first: 0,
            last: 0,
            label: (*label).into(),
        });
        Disk { name: name.into(), partitions: partitions.collect() }
    }

    #[test]
    fn the_disk_of_the_boot_partition_is_taken_and_named_as_the_kernel_does() {
        let disks = [disk("nvme0n1", 10), disk("vda", 30)];
        let Choice::Found(found) = choose(&disks, Some(guid(10)), Arch::X86_64) else { panic!("not found") };
        assert_eq!(found.device, "/dev/nvme0n1");
        assert_eq!(found.partitions.root, ["/dev/nvme0n1p2", "/dev/nvme0n1p4"]);
        let Choice::Found(found) = choose(&disks, Some(guid(30)), Arch::X86_64) else { panic!("not found") };
        assert_eq!(found.partitions.state.as_deref(), Some("/dev/vda6"));
    }

    #[test]
    fn without_the_variable_only_a_single_disk_is_accepted() {
        assert!(matches!(choose(&[disk("vda", 10)], None, Arch::X86_64), Choice::Found(_)));
        assert!(matches!(choose(&[disk("vda", 10), disk("vdb", 30)], None, Arch::X86_64), Choice::Refuse(_)));
        assert!(matches!(choose(&[], None, Arch::X86_64), Choice::Wait(_)));
        assert!(matches!(choose(&[disk("vda", 10)], None, Arch::Arm64), Choice::Wait(_)));
    }

    #[test]
    fn copies_are_refused_even_if_only_one_partition_is_shared() {
        let Choice::Refuse(why) = choose(&[disk("vda", 10), disk("vdb", 15)], Some(guid(10)), Arch::X86_64)
        else {
            panic!("not refused")
        };
        assert!(why.contains("/dev/vda and /dev/vdb both have partition"), "{why}");
    }

    #[test]
    fn a_missing_or_doubled_partition_is_waited_for() {
        let mut bad = disk("vda", 10);
        bad.partitions.remove(3);
        assert!(matches!(choose(&[bad], Some(guid(10)), Arch::X86_64), Choice::Wait(_)));
        let mut bad = disk("vda", 10);
        bad.partitions[3].label = Slot::A.root_label().into();
        assert!(matches!(choose(&[bad], Some(guid(10)), Arch::X86_64), Choice::Wait(_)));
        let mut stateless = disk("vda", 10);
        stateless.partitions.truncate(5);
        assert!(matches!(choose(&[stateless], Some(guid(10)), Arch::X86_64), Choice::Found(_)));
    }
}
