//! Counts what an update writes: flash wears out.

use crate::io::disk::Disk;
use anyhow::Result;
use formats::status::UpdateCost;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes written since the agent started, by place. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Partitions of the other slot.
    pub slot: Arc<AtomicU64>,
    /// Files on the ESP.
    pub esp: Arc<AtomicU64>,
    /// Staged objects on the state partition.
    pub staged: Arc<AtomicU64>,
}

impl Written {
    /// With the most memory that was resident meanwhile, as the status has it.
    pub fn cost(&self, peak_rss_bytes: u64) -> UpdateCost {
        let [slot_bytes, esp_bytes, staged_bytes] =
            [&self.slot, &self.esp, &self.staged].map(|count| count.load(Ordering::Relaxed));
        UpdateCost { slot_bytes, esp_bytes, staged_bytes, peak_rss_bytes }
    }
}

/// A disk whose writes are counted.
pub struct Counted<D> {
    disk: D,
    count: Arc<AtomicU64>,
}

impl<D> Counted<D> {
    /// Counts from now on.
    pub fn new(disk: D, count: &Arc<AtomicU64>) -> Self {
        Self { disk, count: count.clone() }
    }
}

impl<D: Disk> Disk for Counted<D> {
    fn len(&self) -> u64 {
        self.disk.len()
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read(at, into)
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read_back(at, into)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.disk.write(at, bytes)
    }
    fn sync(&mut self) -> Result<()> {
        self.disk.sync()
    }
}
