//! Growing the last partition to the end of a disk, as a list of sectors to write in stages.
//!
//! Linux reads the backup table only when told to on the command line, so the primary table must be whole at every
//! instant. Its entries and its checksum are in different sectors; therefore the new entries are first put where
//! nothing is, a header (one sector, written whole or not at all) is pointed at them, and only then the usual place
//! is rewritten and pointed at again. Between stages the disk must be flushed.

use super::{GptError, Header, SECTOR, Table};

/// Sectors of 1 MiB; partitions begin and end on such a boundary.
const ALIGN: u64 = (1 << 20) / SECTOR as u64;
/// Where every tool expects the primary entries.
const USUAL: u64 = 2;

/// What a growth is about.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// The primary table as it is.
    pub table: &'a Table,
    /// Number of the partition to grow.
    pub partition: u32,
    /// Sectors of the disk.
    pub disk_sectors: u64,
    /// What stands at the disk's end: the sectors from [`Growth::tail_at`] on. Equal bytes are not written again.
    pub tail: &'a [u8],
}

/// The writes of a growth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    /// Sectors to write, in stages; the disk is flushed after each stage. Empty if nothing is to be done.
    pub stages: Vec<Vec<(u64, Vec<u8>)>>,
    /// The partition's last sector after the growth.
    pub last: u64,
}

impl Growth {
    /// Where the backup entries of a disk begin; the backup header is its last sector.
    pub fn tail_at(table: &Table, disk_sectors: u64) -> u64 {
        disk_sectors.saturating_sub(1 + table.header.entries_sectors())
    }
}

/// Plans the growth. The partition never shrinks; a partition that is not the last one keeps its size.
///
/// # Errors
/// [`GptError::Unsupported`] if the table is not the primary one, names sectors beyond the disk, or leaves no room for
/// the second place of the entries.
pub fn plan(want: &Want<'_>) -> Result<Growth, GptError> {
    let Want { table, partition, disk_sectors, tail } = *want;
    let old = table.header;
    let entries = old.entries_sectors();
    let partitions = table.partitions();
    let grown =
        partitions.iter().find(|p| p.number == partition).ok_or(GptError::Unsupported("partition number"))?;
    let begin = partitions.iter().map(|p| p.first).min().unwrap_or(0);
    let end = partitions.iter().map(|p| p.last).max().unwrap_or(0);
    let spare = USUAL + entries;
    let tail_at = Growth::tail_at(table, disk_sectors);
    if old.at != 1 || ![USUAL, spare].contains(&old.entries_at) {
        return Err(GptError::Unsupported("place of the primary table"));
    }
    if begin < spare + entries {
        return Err(GptError::Unsupported("first partition: it leaves no room behind the table"));
    }
    if grown.first > grown.last || end >= tail_at {
        return Err(GptError::Unsupported("end of a partition: it lies beyond the disk"));
    }
    let room = tail_at / ALIGN * ALIGN;
    let last = if grown.last == end && room > grown.last + 1 { room - 1 } else { grown.last };
    let new = table.with_last(partition, last);
    let header = Header {
        at: 1,
        alternate: disk_sectors - 1,
        first_usable: spare,
        last_usable: tail_at - 1,
        entries_at: USUAL,
        ..new.header
    };
    let backup = Header { at: disk_sectors - 1, alternate: 1, entries_at: tail_at, ..header };
    let body = padded(&new.entries);
    let mut stages = Vec::new();
    if tail != [body.as_slice(), &backup.encode()].concat() {
        stages.push(vec![(tail_at, body.clone()), (backup.at, backup.encode())]);
    }
    if old != header {
        if old.entries_at == USUAL && new.entries != table.entries {
            let staged = Header { entries_at: spare, first_usable: spare + entries, ..header };
            stages.push(vec![(spare, body.clone())]);
            stages.push(vec![(1, staged.encode())]);
        }
        if old.entries_at != USUAL || new.entries != table.entries {
            stages.push(vec![(USUAL, body)]);
        }
        stages.push(vec![(1, header.encode())]);
    }
    Ok(Growth { stages, last })
}

fn padded(entries: &[u8]) -> Vec<u8> {
    let mut body = entries.to_vec();
    body.resize(body.len().next_multiple_of(SECTOR), 0);
    body
}
