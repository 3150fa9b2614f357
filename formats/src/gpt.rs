//! GUID partition tables as the device reads and grows them: headers, entries, and the order of writes of a growth.
//!
//! Follows UEFI 2.10, section 5.3, for 512-byte sectors and 128-byte entries. Knows nothing of disks: it is given
//! sectors and answers with values or with sectors to write.

mod grow;
mod guid;
mod make;

pub use grow::{Growth, Want, plan};
pub use guid::Guid;
pub use make::{NewPartition, NewTable, TABLE_SECTORS, make};

/// Bytes of a logical sector; images are made for this size only.
pub const SECTOR: usize = 512;
/// Bytes of one entry.
const ENTRY_BYTES: usize = 128;
/// Most entries that are read; what every tool writes.
const ENTRIES_MAX: u32 = 128;
/// Bytes of a header that its checksum covers.
const HEADER_BYTES: usize = 92;

/// Why a table was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptError {
    /// Fewer bytes than a sector, or than the header says the entries have.
    #[error("partition table is cut short")]
    Short,
    /// No `EFI PART` signature.
    #[error("no GUID partition table")]
    Absent,
    /// A checksum does not fit.
    #[error("partition table: checksum of the {0} is wrong")]
    Checksum(&'static str),
    /// A field has a value that Farhold does not read.
    #[error("partition table: {0} is not one that Farhold reads")]
    Unsupported(&'static str),
}

/// A header that passed its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Sector of this header.
    pub at: u64,
    /// Sector of the other header.
    pub alternate: u64,
    /// First sector that a partition may use.
    pub first_usable: u64,
    /// Last sector that a partition may use.
    pub last_usable: u64,
    /// The disk's own GUID.
    pub disk: Guid,
    /// First sector of the entries.
    pub entries_at: u64,
    /// Number of entries.
    pub entry_count: u32,
    /// CRC-32 of the entries.
    entries_crc: u32,
}

/// A used entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Number, from 1.
    pub number: u32,
    /// Partition type.
    pub kind: Guid,
    /// The partition's own GUID.
    pub guid: Guid,
    /// First sector.
    pub first: u64,
    /// Last sector, included.
    pub last: u64,
    /// Label.
    pub label: String,
}

/// A header with the entries that it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The header.
    pub header: Header,
    entries: Vec<u8>,
}

impl Header {
    /// Reads the header that stands in sector `at`.
    ///
    /// # Errors
    /// [`GptError`] for anything that is not a whole, plain header.
    pub fn parse(sector: &[u8], at: u64) -> Result<Self, GptError> {
        let bytes = sector.get(..SECTOR).ok_or(GptError::Short)?;
        if &bytes[..8] != b"EFI PART" {
            return Err(GptError::Absent);
        }
        if u32_at(bytes, 12) as usize != HEADER_BYTES {
            return Err(GptError::Unsupported("header size"));
        }
        let mut covered = [0u8; HEADER_BYTES];
        covered.copy_from_slice(&bytes[..HEADER_BYTES]);
        covered[16..20].fill(0);
        if crc32(&covered) != u32_at(bytes, 16) {
            return Err(GptError::Checksum("header"));
        }
        let header = Self {
            at: u64_at(bytes, 24),
            alternate: u64_at(bytes, 32),
            first_usable: u64_at(bytes, 40),
            last_usable: u64_at(bytes, 48),
            disk: Guid::from_disk(&bytes[56..72]),
            entries_at: u64_at(bytes, 72),
            entry_count: u32_at(bytes, 80),
            entries_crc: u32_at(bytes, 88),
        };
        if header.at != at {
            return Err(GptError::Unsupported("header's own place"));
        }
        if u32_at(bytes, 84) as usize != ENTRY_BYTES {
            return Err(GptError::Unsupported("entry size"));
        }
        if header.entry_count == 0 || header.entry_count > ENTRIES_MAX {
            return Err(GptError::Unsupported("number of entries"));
        }
        Ok(header)
    }

    /// Bytes of the entries.
    pub fn entries_bytes(&self) -> usize {
        self.entry_count as usize * ENTRY_BYTES
    }

    /// Sectors that the entries fill.
    pub fn entries_sectors(&self) -> u64 {
        self.entries_bytes().div_ceil(SECTOR) as u64
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; SECTOR];
        bytes[..8].copy_from_slice(b"EFI PART");
        bytes[8..12].copy_from_slice(&0x0001_0000u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        for (at, value) in [
            (24, self.at),
            (32, self.alternate),
            (40, self.first_usable),
            (48, self.last_usable),
            (72, self.entries_at),
        ] {
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes[56..72].copy_from_slice(&self.disk.to_disk());
        for (at, value) in [(80, self.entry_count), (84, ENTRY_BYTES as u32), (88, self.entries_crc)] {
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32(&bytes[..HEADER_BYTES]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

impl Table {
    /// Joins a header and the bytes that it calls its entries.
    ///
    /// # Errors
    /// [`GptError`] if they are too few or their checksum is wrong.
    pub fn new(header: Header, entries: &[u8]) -> Result<Self, GptError> {
        let entries = entries.get(..header.entries_bytes()).ok_or(GptError::Short)?;
        if crc32(entries) != header.entries_crc {
            return Err(GptError::Checksum("entries"));
        }
        Ok(Self { header, entries: entries.to_vec() })
    }

    /// The used entries in the order of the table.
    pub fn partitions(&self) -> Vec<Partition> {
        let used = |entry: &&[u8]| entry[..16].iter().any(|b| *b != 0);
        let numbered = self.entries.chunks_exact(ENTRY_BYTES).zip(1u32..);
        numbered.filter(|(entry, _)| used(entry)).map(|(entry, number)| partition(entry, number)).collect()
    }

    /// The table with another last sector for one partition; every other byte of the entries stays.
    fn with_last(&self, number: u32, last: u64) -> Self {
        let mut entries = self.entries.clone();
        let at = (number as usize - 1) * ENTRY_BYTES + 40;
        entries[at..at + 8].copy_from_slice(&last.to_le_bytes());
        let header = Header { entries_crc: crc32(&entries), ..self.header };
        Self { header, entries }
    }
}

fn partition(entry: &[u8], number: u32) -> Partition {
    let units: Vec<u16> = entry[56..128]
        .chunks_exact(2)
        .map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    Partition {
        number,
        kind: Guid::from_disk(&entry[..16]),
        guid: Guid::from_disk(&entry[16..32]),
        first: u64_at(entry, 32),
        last: u64_at(entry, 40),
        label: String::from_utf16_lossy(&units),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0u8; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0u8; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

/// CRC-32 (IEEE 802.3), bit by bit: it runs over 16 KiB once per boot, and the init has no room for a table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;
