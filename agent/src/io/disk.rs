//! A disk as bytes, with an explicit flush; the seam at which tests cut the power.

use anyhow::{Context, Result};
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::ops::DerefMut;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that survive only from [`Disk::sync`] on. Until then each 512-byte sector may be kept, lost or, with its
/// neighbours, come in any order.
pub trait Disk {
    /// Length in bytes.
    fn len(&self) -> u64;
    /// Reads exactly `into.len()` bytes.
    ///
    /// # Errors
    /// The device's, or if the range ends beyond the disk.
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()>;
    /// Reads what the medium itself returns, past the caches of this machine; `at` and length are multiples of 4096.
    /// What was not flushed may be missing.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.read(at, into)
    }
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

/// A disk that is borrowed or boxed.
impl<P: DerefMut<Target: Disk>> Disk for P {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        (**self).read(at, into)
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        (**self).read_back(at, into)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        (**self).write(at, bytes)
    }
    fn sync(&mut self) -> Result<()> {
        (**self).sync()
    }
}

/// Alignment that every disk accepts for reads past the cache.
const ALIGNMENT: usize = 4096;

/// A disk or partition of the machine, or a file that stands for one.
pub struct BlockDevice {
    file: File,
    /// Opened past the page cache; `None` where the file system does not offer it.
    direct: Option<File>,
    name: String,
    bytes: u64,
}

impl BlockDevice {
    /// Opens a whole disk for reading and writing.
    ///
    /// # Errors
    /// If it is not there or write-protected.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("open disk {name}"))?;
        let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("read the size of {name}"))?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path).ok();
        Ok(Self { file, direct, name, bytes })
    }

    /// Opens a disk for reading only.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open_for_reading(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let mut file = File::open(path).with_context(|| format!("open disk {name}"))?;
        let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("read the size of {name}"))?;
        Ok(Self { file, direct: None, name, bytes })
    }

    fn read_direct(&self, direct: &File, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        let mut buffer = vec![0u8; into.len() + ALIGNMENT];
        let from = buffer.as_ptr().align_offset(ALIGNMENT);
        let aligned = &mut buffer[from..from + into.len()];
        direct.read_exact_at(aligned, at)?;
        into.copy_from_slice(aligned);
        Ok(())
    }
}

impl Disk for BlockDevice {
    fn len(&self) -> u64 {
        self.bytes
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let bytes = into.len();
        self.file
            .read_exact_at(into, at)
            .with_context(|| format!("read {bytes} bytes at {at} of {}", self.name))
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        if let Some(direct) = &self.direct
            && self.read_direct(direct, at, into).is_ok()
        {
            return Ok(());
        }
        // Without direct reads the cache is at least told to forget what it holds.
        let (from, count) = (i64::try_from(at)?, i64::try_from(into.len())?);
        posix_fadvise(&self.file, from, count, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .with_context(|| format!("drop the cache of {}", self.name))?;
        self.read(at, into)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let count = bytes.len();
        self.file
            .write_all_at(bytes, at)
            .with_context(|| format!("write {count} bytes at {at} of {}", self.name))
    }
    fn sync(&mut self) -> Result<()> {
        self.file.sync_all().with_context(|| format!("flush {}", self.name))
    }
}

#[cfg(test)]
pub mod fault {
    //! A disk in memory whose power can be cut at any write or flush.

    use super::{Disk, Result};
    use anyhow::ensure;

    /// What becomes of sectors that were written but not flushed when the power goes.
    #[derive(Clone, Copy, Debug)]
    pub enum Unsynced {
        /// All are lost.
        Lost,
        /// All are kept.
        Kept,
        /// Every other sector is kept, from the first or the second on.
        Torn(usize),
    }

    /// The disk double: counts mutations, and fails all from `cut_at` on.
    #[derive(Clone)]
    pub struct FaultDisk {
        live: Vec<u8>,
        durable: Vec<u8>,
        pending: Vec<usize>,
        /// Writes and flushes so far.
        pub mutations: usize,
        /// The mutation at which the power goes.
        pub cut_at: Option<usize>,
    }

    impl FaultDisk {
        /// A disk with these bytes, all durable.
        pub fn new(bytes: Vec<u8>) -> Self {
            Self { live: bytes.clone(), durable: bytes, pending: Vec::new(), mutations: 0, cut_at: None }
        }

        /// The disk as the next boot finds it.
        pub fn after_cut(self, unsynced: Unsynced) -> Self {
            let mut bytes = self.durable;
            for (n, sector) in self.pending.iter().enumerate() {
                let keep = match unsynced {
                    Unsynced::Lost => false,
                    Unsynced::Kept => true,
                    Unsynced::Torn(first) => n % 2 == first,
                };
                if keep {
                    let range = sector * 512..(sector + 1) * 512;
                    bytes[range.clone()].copy_from_slice(&self.live[range]);
                }
            }
            Self::new(bytes)
        }

        /// Everything as the running system sees it.
        pub fn bytes(&self) -> &[u8] {
            &self.live
        }

        fn mutate(&mut self) -> Result<()> {
            ensure!(self.cut_at != Some(self.mutations), "power cut");
            self.mutations += 1;
            Ok(())
        }
    }

    impl Disk for FaultDisk {
        fn len(&self) -> u64 {
            self.live.len() as u64
        }
        fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
            into.copy_from_slice(&self.live[at as usize..at as usize + into.len()]);
            Ok(())
        }
        fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
            into.copy_from_slice(&self.durable[at as usize..at as usize + into.len()]);
            Ok(())
        }
        fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
            let at = at as usize;
            let cut = self.mutate();
            // The write at which the power goes has reached the disk in part: it is live, but not durable.
            self.live[at..at + bytes.len()].copy_from_slice(bytes);
            self.pending.extend(at / 512..(at + bytes.len()).div_ceil(512));
            cut
        }
        fn sync(&mut self) -> Result<()> {
            self.mutate()?;
            self.durable.clone_from(&self.live);
            self.pending.clear();
            Ok(())
        }
    }
}
