//! A new partition table: protective MBR, both headers and both copies of the entries.

use super::{ENTRIES_MAX, ENTRY_BYTES, GptError, Guid, Header, SECTOR, crc32};

/// A partition of a new table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewPartition {
    /// Partition type.
    pub kind: Guid,
    /// The partition's own GUID.
    pub guid: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector, included.
    pub last: u64,
    /// Attribute bits.
    pub attributes: u64,
    /// Label, at most 36 UTF-16 units.
    pub label: String,
}

/// The sectors of a new table. Whoever writes them decides the order: firmware accepts either header that is whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTable {
    /// Sector 0.
    pub mbr: Vec<u8>,
    /// Entries; they stand from sector 2 on and from [`NewTable::backup_entries_at`] on.
    pub entries: Vec<u8>,
    /// Sector 1.
    pub primary: Vec<u8>,
    /// The last sector of the disk.
    pub backup: Vec<u8>,
    /// First sector of the second copy of the entries.
    pub backup_entries_at: u64,
}

/// Sectors at each end of a disk that its table takes: header, entries, and sector 0.
pub const TABLE_SECTORS: u64 = 2 + ENTRY_SECTORS;
const ENTRY_SECTORS: u64 = (ENTRIES_MAX as u64 * ENTRY_BYTES as u64) / SECTOR as u64;

/// Makes the table of a disk with `sectors` sectors.
///
/// # Errors
/// [`GptError::Unsupported`] if a partition overlaps another or the table, or its label is too long.
pub fn make(disk: Guid, sectors: u64, partitions: &[NewPartition]) -> Result<NewTable, GptError> {
    let backup_at = sectors.checked_sub(1).ok_or(GptError::Unsupported("length of the disk"))?;
    let backup_entries_at =
        backup_at.checked_sub(ENTRY_SECTORS).ok_or(GptError::Unsupported("length of the disk"))?;
    let mut entries = vec![0u8; ENTRIES_MAX as usize * ENTRY_BYTES];
    let mut free = TABLE_SECTORS;
    for (entry, partition) in entries.chunks_exact_mut(ENTRY_BYTES).zip(partitions) {
        let units: Vec<u8> = partition.label.encode_utf16().flat_map(u16::to_le_bytes).collect();
        if units.len() > 72 || partitions.len() > ENTRIES_MAX as usize {
            return Err(GptError::Unsupported("label or number of a partition"));
        }
        if partition.first < free || partition.last < partition.first || partition.last >= backup_entries_at {
            return Err(GptError::Unsupported("place of a partition"));
        }
        free = partition.last + 1;
        entry[..16].copy_from_slice(&partition.kind.to_disk());
        entry[16..32].copy_from_slice(&partition.guid.to_disk());
        entry[32..40].copy_from_slice(&partition.first.to_le_bytes());
        entry[40..48].copy_from_slice(&partition.last.to_le_bytes());
        entry[48..56].copy_from_slice(&partition.attributes.to_le_bytes());
        entry[56..56 + units.len()].copy_from_slice(&units);
    }
    let primary = Header {
        at: 1,
        alternate: backup_at,
        first_usable: TABLE_SECTORS,
        last_usable: backup_entries_at - 1,
        disk,
        entries_at: 2,
        entry_count: ENTRIES_MAX,
        entries_crc: crc32(&entries),
    };
    let backup = Header { at: backup_at, alternate: 1, entries_at: backup_entries_at, ..primary };
    Ok(NewTable {
        mbr: protective_mbr(sectors),
        entries,
        primary: primary.encode(),
        backup: backup.encode(),
        backup_entries_at,
    })
}

/// UEFI 2.10, 5.2.3: one partition of type 0xEE over the whole disk.
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0u8; SECTOR];
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&length.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

#[cfg(test)]
mod tests {
    use super::super::Table;
    use super::*;

    fn partition(first: u64, last: u64) -> NewPartition {
        NewPartition {
            kind: Guid::from_disk(&[1; 16]),
            guid: Guid::from_disk(&[first as u8; 16]),
            first,
            last,
            attributes: 1 << 60,
            label: "farhold-root-a".into(),
        }
    }

    #[test]
    fn both_copies_read_back() {
        let disk = Guid::from_disk(&[9; 16]);
        let table = make(disk, 10_000, &[partition(2048, 4095), partition(4096, 9000)]).unwrap();
        for (sector, at) in [(&table.primary, 1), (&table.backup, 9_999)] {
            let header = Header::parse(sector, at).unwrap();
            let found = Table::new(header, &table.entries).unwrap().partitions();
            assert_eq!((found.len(), found[1].first, found[1].last), (2, 4096, 9000));
            assert_eq!(found[0].label, "farhold-root-a");
            assert_eq!(header.disk, disk);
        }
        assert_eq!(table.backup_entries_at, 9_999 - 32);
    }

    #[test]
    fn overlaps_and_places_beyond_the_disk_are_refused() {
        let disk = Guid::from_disk(&[9; 16]);
        for bad in [
            vec![partition(33, 100)],
            vec![partition(2048, 4096), partition(4096, 9000)],
            vec![partition(2048, 9_967)],
            vec![partition(3000, 2999)],
        ] {
            assert_eq!(make(disk, 10_000, &bad), Err(GptError::Unsupported("place of a partition")));
        }
    }
}
