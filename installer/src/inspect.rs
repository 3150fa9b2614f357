//! What stands on a disk. Pure but for reading through [`Disk`]; when in doubt it is something that must not be lost.

use crate::disk::Disk;
use anyhow::Result;
use formats::arch::Arch;
use formats::gpt::{Guid, Header, Partition, SECTOR, Table};
use formats::layout::{self, LABEL_ESP, LABEL_STATE, STATE_MARK_BYTES, Slot, StateMark};
use formats::sparse::is_zero;
use formats::stick;

const SECTOR_BYTES: u64 = SECTOR as u64;
/// Bytes at each end of a disk that no table, file system, volume manager or RAID leaves empty.
const EDGE: usize = 1 << 20;
const MARK: u64 = STATE_MARK_BYTES as u64;

/// What a disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing.
    Empty,
    /// An installation that was cut short; nothing of value.
    Begun,
    /// An installation that never ran, or was cut short at its end; nothing of value.
    Unused(Parts),
    /// An installed device with state.
    Farhold(Parts),
    /// A Farhold stick.
    Stick,
    /// Something else, in words.
    Foreign(String),
    /// It cannot be read; why.
    Unreadable(String),
}

/// A range of a disk, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Length.
    pub bytes: u64,
}

/// Farhold's partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// ESP.
    pub esp: Extent,
    /// Root partitions of slots A and B.
    pub root: [Extent; 2],
    /// Verity partitions of slots A and B.
    pub verity: [Extent; 2],
    /// State partition.
    pub state: Extent,
    /// Its own GUID.
    pub state_guid: Guid,
}

impl Contents {
    /// Whether a disk may be taken without being told so.
    pub fn free(&self) -> bool {
        matches!(self, Self::Empty | Self::Begun | Self::Unused(_))
    }

    /// In words, for people.
    pub fn text(&self) -> String {
        match self {
            Self::Empty => "empty".into(),
            Self::Begun => "an installation that was cut short".into(),
            Self::Unused(_) => "Farhold, installed and never used".into(),
            Self::Farhold(_) => "Farhold, with its data".into(),
            Self::Stick => "a Farhold stick".into(),
            Self::Foreign(what) => what.clone(),
            Self::Unreadable(why) => format!("not readable: {why}"),
        }
    }
}

/// Looks at a disk.
pub fn inspect(disk: &dyn Disk, arch: Arch) -> Contents {
    look(disk, arch).unwrap_or_else(|error| Contents::Unreadable(format!("{error:#}")))
}

fn look(disk: &dyn Disk, arch: Arch) -> Result<Contents> {
    let edge = EDGE.min(usize::try_from(disk.bytes() / 2)? / 4096 * 4096);
    let (mut start, mut end) = (vec![0; edge], vec![0; edge]);
    disk.read(0, &mut start)?;
    disk.read((disk.bytes() - edge as u64) / 4096 * 4096, &mut end)?;
    let mark_at = stick::MARK_SECTOR as usize * SECTOR;
    let begun = start.get(mark_at..mark_at + stick::MARK_BYTES).is_some_and(stick::is_mark);
    if let Some(table) = read_table(disk, &start) {
        return with_table(disk, arch, &table.partitions());
    }
    let table_gone = start.get(..2 * SECTOR).is_some_and(is_zero);
    if begun && table_gone {
        return Ok(Contents::Begun);
    }
    if is_zero(&start) && is_zero(&end) {
        return Ok(Contents::Empty);
    }
    Ok(Contents::Foreign(signature(&start)))
}

/// The primary table, or the backup that firmware would fall back to.
fn read_table(disk: &dyn Disk, start: &[u8]) -> Option<Table> {
    let last = disk.bytes() / SECTOR_BYTES - 1;
    let sector = |at: u64| {
        let mut bytes = vec![0; SECTOR];
        disk.read(at * SECTOR_BYTES, &mut bytes).ok()?;
        Some(bytes)
    };
    let table = |bytes: &[u8], at| {
        let header = Header::parse(bytes, at).ok()?;
        let mut entries = vec![0; header.entries_bytes()];
        disk.read(header.entries_at.checked_mul(SECTOR_BYTES)?, &mut entries).ok()?;
        Table::new(header, &entries).ok()
    };
    table(start.get(SECTOR..2 * SECTOR)?, 1).or_else(|| table(&sector(last)?, last))
}

fn with_table(disk: &dyn Disk, arch: Arch, partitions: &[Partition]) -> Result<Contents> {
    if partitions.is_empty() {
        return Ok(Contents::Empty);
    }
    if partitions.iter().any(|p| [stick::LABEL_DATA, stick::LABEL_BOOT].contains(&p.label.as_str())) {
        return Ok(Contents::Stick);
    }
    let Some(parts) = parts(partitions, arch) else {
        return Ok(Contents::Foreign(describe(partitions)));
    };
    let mut mark = vec![0; STATE_MARK_BYTES];
    disk.read(parts.state.start, &mut mark)?;
    let made = StateMark::parse(&mark) != Some(StateMark::Empty);
    disk.read(parts.state.start + parts.state.bytes - MARK, &mut mark)?;
    let marked = StateMark::parse(&mark).is_some();
    Ok(if made || marked { Contents::Farhold(parts) } else { Contents::Unused(parts) })
}

/// Farhold's partitions among these, each exactly once.
fn parts(partitions: &[Partition], arch: Arch) -> Option<Parts> {
    let one = |label: &str, kind: &str| {
        let mut found = partitions.iter().filter(|p| p.label == label && Some(p.kind) == Guid::parse(kind));
        let only = found.next().filter(|_| found.next().is_none())?;
        let bytes = (only.last + 1).checked_sub(only.first)?.checked_mul(SECTOR_BYTES)?;
        Some(Extent { start: only.first.checked_mul(SECTOR_BYTES)?, bytes })
    };
    let root = |slot: Slot| one(slot.root_label(), layout::type_root(arch));
    let verity = |slot: Slot| one(slot.verity_label(), layout::type_verity(arch));
    Some(Parts {
        esp: one(LABEL_ESP, layout::TYPE_ESP)?,
        root: [root(Slot::A)?, root(Slot::B)?],
        verity: [verity(Slot::A)?, verity(Slot::B)?],
        state: one(LABEL_STATE, layout::TYPE_STATE)
            .filter(|state| state.bytes > 2 * layout::STATE_TAIL_BYTES)?,
        state_guid: partitions.iter().find(|p| p.label == LABEL_STATE)?.guid,
    })
}

/// Partition types by which people know systems.
const KNOWN: [(&str, &str); 9] = [
    ("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Windows (reserved)"),
    (stick::TYPE_DATA, "Windows data"),
    ("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery"),
    (layout::TYPE_STATE, "Linux data"),
    ("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root"),
    ("b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root"),
    ("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap"),
    ("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM"),
    ("7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS"),
];

fn describe(partitions: &[Partition]) -> String {
    let mut kinds: Vec<&str> = Vec::new();
    for partition in partitions {
        let known = KNOWN.iter().find(|(kind, _)| Guid::parse(kind) == Some(partition.kind));
        if let Some((_, name)) = known.filter(|(_, name)| !kinds.contains(name)) {
            kinds.push(name);
        }
    }
    let what = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let plural = if partitions.len() == 1 { "" } else { "s" };
    format!("another system: {} partition{plural}{what}", partitions.len())
}

/// What a disk without a GUID partition table begins with.
fn signature(start: &[u8]) -> String {
    let at = |from: usize, magic: &[u8]| start.get(from..from + magic.len()) == Some(magic);
    let known: [(usize, &[u8], &str); 9] = [
        (3, b"NTFS    ", "a Windows file system (NTFS)"),
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"XFSB", "a Linux file system (XFS)"),
        (0x438, b"\x53\xef", "a Linux file system (ext)"),
        (0x1_0040, b"_BHRfS_M", "a Linux file system (btrfs)"),
        (SECTOR, b"LABELONE", "a Linux volume (LVM)"),
        (4096, b"\xfc\x4e\x2b\xa9", "a Linux RAID member"),
        (0x8001, b"CD001", "an ISO image"),
        (510, b"\x55\xaa", "another system: an MBR partition table or a boot sector"),
    ];
    let found = known.iter().find(|(from, magic, _)| at(*from, magic));
    found.map_or("data of an unknown kind", |(_, _, name)| name).to_owned()
}

#[cfg(test)]
mod tests;
