//! A disk as bytes, with an explicit flush; the seam at which tests cut the power.

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Alignment that every disk accepts past the cache, bytes.
pub const ALIGNMENT: usize = 4096;

/// Bytes that survive only from [`Disk::sync`] on. Until then each 512-byte sector may be kept or lost, in any order.
pub trait Disk {
    /// Length in bytes.
    fn bytes(&self) -> u64;
    /// Reads exactly `into.len()` bytes, from the medium itself where place and length are multiples of [`ALIGNMENT`].
    ///
    /// # Errors
    /// The device's, or if the range ends beyond the disk.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()>;
    /// Writes all bytes.
    ///
    /// # Errors
    /// The device's.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()>;
    /// Returns when everything written is durable.
    ///
    /// # Errors
    /// The device's; what was written before is then in doubt.
    fn sync(&mut self) -> Result<()>;
}

/// A disk of the machine, or a file that stands for one.
pub struct BlockDevice {
    file: File,
    direct: Option<File>,
    name: String,
    bytes: u64,
}

impl BlockDevice {
    /// Opens a disk, for writing too if `write`.
    ///
    /// # Errors
    /// If it is not there or write-protected.
    pub fn open(path: &Path, write: bool) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(write)
            .open(path)
            .with_context(|| format!("open disk {name}"))?;
        let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("read the size of {name}"))?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path).ok();
        Ok(Self { file, direct, name, bytes })
    }
}

impl Disk for BlockDevice {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let what = || format!("read {} at byte {at}", self.name);
        let aligned = at.is_multiple_of(ALIGNMENT as u64) && into.len().is_multiple_of(ALIGNMENT);
        let Some(direct) = self.direct.as_ref().filter(|_| aligned) else {
            return self.file.read_exact_at(into, at).with_context(what);
        };
        let mut buffer = vec![0u8; into.len() + ALIGNMENT];
        let from = buffer.as_ptr().align_offset(ALIGNMENT);
        let part = &mut buffer[from..from + into.len()];
        direct.read_exact_at(part, at).with_context(what)?;
        into.copy_from_slice(part);
        Ok(())
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, at).with_context(|| {
            format!(
                "write {} bytes at byte {at} of {}: is it write-protected or failing?",
                bytes.len(),
                self.name
            )
        })
    }

    fn sync(&mut self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("flush {}", self.name))
    }
}
