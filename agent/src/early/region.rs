//! The state partition on its disk: grows the partition table, keeps the mark at the partition's end, through [`Disk`].
//!
//! Every write is ordered so that a power cut leaves a whole table, and never a mark that permits a make on data.

use crate::early::decide::{self, Verdict};
use crate::io::disk::Disk;
use anyhow::{Context, Result, ensure};
use formats::gpt::{self, Growth, Guid, Header, Partition, SECTOR, Table, Want};
use formats::layout::{LABEL_STATE, STATE_MARK_BYTES, STATE_TAIL_BYTES, StateMark};

const SECTOR_BYTES: u64 = SECTOR as u64;
const MARK: u64 = STATE_MARK_BYTES as u64;

/// The state partition as a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Partition number, from 1.
    pub number: u32,
    /// First byte.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// The partition's own GUID.
    pub guid: Guid,
}

impl Region {
    fn of(partition: &Partition) -> Result<Self> {
        let start = partition.first.checked_mul(SECTOR_BYTES);
        let end = partition.last.checked_add(1).and_then(|end| end.checked_mul(SECTOR_BYTES));
        let (start, end) = start.zip(end).context("the state partition's sectors are out of range")?;
        let bytes = end.checked_sub(start).filter(|bytes| *bytes >= 2 * MARK);
        let bytes = bytes.context("the state partition has no room")?;
        Ok(Self { number: partition.number, start, bytes, guid: partition.guid })
    }

    fn end_mark(&self) -> u64 {
        self.start + self.bytes - MARK
    }

    /// The first and the last 4096 bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn edges(&self, disk: &dyn Disk) -> Result<[Vec<u8>; 2]> {
        let read = |at| {
            let mut block = vec![0u8; STATE_MARK_BYTES];
            disk.read(at, &mut block).map(|()| block)
        };
        Ok([read(self.start)?, read(self.end_mark())?])
    }

    /// What to do with the partition.
    ///
    /// # Errors
    /// The disk's.
    pub fn verdict(&self, disk: &dyn Disk) -> Result<Verdict> {
        let [start, end] = self.edges(disk)?;
        Ok(decide::judge(&start, &end))
    }

    /// Where an installer leaves its seed.
    pub fn seed(&self) -> u64 {
        self.start + self.bytes - STATE_TAIL_BYTES
    }

    /// Writes the mark at the end, durably.
    ///
    /// # Errors
    /// The disk's.
    pub fn mark(&self, disk: &mut dyn Disk, mark: StateMark) -> Result<()> {
        disk.write(self.end_mark(), &mark.encode())?;
        disk.sync()
    }
}

/// Finds the state partition and grows it to the end of the disk. Returns it before and after; equal if nothing grew.
///
/// # Errors
/// The disk's, or if its table is damaged or has no state partition.
pub fn grow(disk: &mut dyn Disk) -> Result<[Region; 2]> {
    let table = read_table(disk)?;
    let partitions = table.partitions();
    let state =
        partitions.iter().find(|p| p.label == LABEL_STATE).context("the disk has no state partition")?;
    let before = Region::of(state)?;
    let disk_sectors = disk.len() / SECTOR_BYTES;
    let tail_at = Growth::tail_at(&table, disk_sectors) * SECTOR_BYTES;
    let mut tail =
        vec![0u8; usize::try_from(disk_sectors * SECTOR_BYTES - tail_at).context("the disk is too small")?];
    disk.read(tail_at, &mut tail)?;
    let growth = gpt::plan(&Want { table: &table, partition: state.number, disk_sectors, tail: &tail })?;
    let after = Region::of(&Partition { last: growth.last, ..state.clone() })?;
    if after != before {
        // What stands at the new end is from another life of the disk; a stale mark there could permit a make.
        let [_, end] = before.edges(disk)?;
        let carried = StateMark::parse(&end).map_or([0u8; STATE_MARK_BYTES], StateMark::encode);
        disk.write(after.end_mark(), &carried)?;
        disk.sync()?;
    }
    for stage in &growth.stages {
        for (sector, bytes) in stage {
            disk.write(sector * SECTOR_BYTES, bytes)?;
        }
        disk.sync()?;
    }
    Ok([before, after])
}

fn read_table(disk: &dyn Disk) -> Result<Table> {
    let mut sector = [0u8; SECTOR];
    disk.read(SECTOR_BYTES, &mut sector)?;
    let header = Header::parse(&sector, 1)?;
    let mut entries = vec![0u8; header.entries_bytes()];
    let at = header.entries_at.checked_mul(SECTOR_BYTES).context("partition entries lie beyond the disk")?;
    ensure!(at.saturating_add(entries.len() as u64) <= disk.len(), "partition entries lie beyond the disk");
    disk.read(at, &mut entries)?;
    Ok(Table::new(header, &entries)?)
}

#[cfg(test)]
mod tests;
