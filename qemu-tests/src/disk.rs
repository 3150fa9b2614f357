//! Disk images seen and damaged from outside: partitions, flipped bytes, copied slots, grown files.
//!
//! The image may be attached to a running machine: reading shows what the guest has written so far, because QEMU
//! writes through the host's page cache. Writing to it then is a fault, which is the point. GPT by the `gpt` crate.

use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::layout;
use gpt::disk::LogicalBlockSize::Lb512;
use nix::unistd::{Whence, lseek};
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CHUNK: usize = 1 << 20;

/// A raw disk image.
#[derive(Clone, Debug)]
pub struct DiskImage {
    path: PathBuf,
}

/// A partition's place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub bytes: u64,
}

impl DiskImage {
    /// Names an image; nothing is opened yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The image's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the partition with this label lies.
    ///
    /// # Errors
    /// If the image has no readable GPT, no such label, or two of them.
    pub fn partition(&self, label: &str) -> Result<Extent> {
        let found: Vec<Extent> =
            self.partitions()?.into_iter().filter(|(name, ..)| name == label).map(|(_, _, e)| e).collect();
        match found.as_slice() {
            [extent] => Ok(*extent),
            [] => bail!("{}: no partition `{label}`", self.path.display()),
            [..] => bail!("{}: {} partitions `{label}`, must be one", self.path.display(), found.len()),
        }
    }

    /// The processor that the image is for, by the type of its root partitions.
    ///
    /// # Errors
    /// If it is not a Farhold image.
    pub fn arch(&self) -> Result<Arch> {
        let partitions = self.partitions()?;
        let has =
            |arch| partitions.iter().any(|(_, kind, _)| kind.eq_ignore_ascii_case(layout::type_root(arch)));
        Arch::ALL.into_iter().find(|arch| has(*arch)).with_context(|| {
            format!(
                "{}: no root partition of a Farhold image; give the folder that `farhold build --out` wrote, or \
                 its disk.img",
                self.path.display()
            )
        })
    }

    /// Label, type and place of each partition.
    fn partitions(&self) -> Result<Vec<(String, String, Extent)>> {
        let what = || format!("read the partition table of {}", self.path.display());
        let disk = gpt::GptConfig::new().writable(false).open(&self.path).with_context(what)?;
        disk.partitions()
            .values()
            .map(|partition| {
                let extent = Extent {
                    start: partition.bytes_start(Lb512).with_context(what)?,
                    bytes: partition.bytes_len(Lb512).with_context(what)?,
                };
                Ok((partition.name.clone(), partition.part_type_guid.guid.to_string(), extent))
            })
            .collect()
    }

    /// Reads bytes at a place in a partition.
    ///
    /// # Errors
    /// If the place is not inside the partition or the file is shorter.
    pub fn read(&self, label: &str, at: u64, bytes: usize) -> Result<Vec<u8>> {
        let start = self.inside(label, at, bytes as u64)?;
        let mut out = vec![0; bytes];
        self.open(false)?.read_exact_at(&mut out, start).with_context(|| self.doing("read", label, at))?;
        Ok(out)
    }

    /// Writes bytes at a place in a partition and syncs.
    ///
    /// # Errors
    /// If the place is not inside the partition or writing fails.
    pub fn write(&self, label: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let start = self.inside(label, at, bytes.len() as u64)?;
        let file = self.open(true)?;
        file.write_all_at(bytes, start).with_context(|| self.doing("write", label, at))?;
        file.sync_data().with_context(|| self.doing("sync", label, at))
    }

    /// Flips every bit of one byte; returns what stood there.
    ///
    /// # Errors
    /// As [`DiskImage::read`] and [`DiskImage::write`].
    pub fn flip_byte(&self, label: &str, at: u64) -> Result<u8> {
        let old = self.read(label, at, 1)?[0];
        self.write(label, at, &[!old])?;
        Ok(old)
    }

    /// Copies a whole partition onto another of the same size.
    ///
    /// # Errors
    /// If sizes differ or reading or writing fails.
    pub fn copy_partition(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.partition(from)?, self.partition(to)?);
        if source.bytes != target.bytes {
            bail!("copy {from} to {to}: {} bytes do not fit {} bytes", source.bytes, target.bytes);
        }
        let file = self.open(true)?;
        let mut buffer = vec![0; CHUNK];
        let mut done = 0;
        while done < source.bytes {
            let part = &mut buffer[..CHUNK.min(usize::try_from(source.bytes - done)?)];
            file.read_exact_at(part, source.start + done).with_context(|| self.doing("read", from, done))?;
            file.write_all_at(part, target.start + done).with_context(|| self.doing("write", to, done))?;
            done += part.len() as u64;
        }
        file.sync_data().with_context(|| self.doing("sync", to, 0))
    }

    /// Copies a partition of another image into one of this; what is left of a larger one keeps its bytes.
    ///
    /// # Errors
    /// If it does not fit, or reading or writing fails.
    pub fn copy_from(&self, other: &Self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (other.partition(from)?, self.partition(to)?);
        if source.bytes > target.bytes {
            bail!("copy {from} to {to}: {} bytes do not fit {} bytes", source.bytes, target.bytes);
        }
        let mut reader = other.open(false)?;
        let mut writer = self.open(true)?;
        reader.seek(SeekFrom::Start(source.start))?;
        writer.seek(SeekFrom::Start(target.start))?;
        let copied = std::io::copy(&mut reader.take(source.bytes), &mut writer)
            .with_context(|| self.doing("write", to, 0))?;
        if copied != source.bytes {
            bail!("copy {from} to {to}: {copied} of {} bytes copied", source.bytes);
        }
        writer.sync_data().with_context(|| self.doing("sync", to, 0))
    }

    /// SHA-256 of a partition as it stands now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self, label: &str) -> Result<[u8; 32]> {
        let extent = self.partition(label)?;
        let mut file = self.open(false)?;
        file.seek(SeekFrom::Start(extent.start))?;
        let mut rest = file.take(extent.bytes);
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            match rest.read(&mut buffer).with_context(|| self.doing("read", label, 0))? {
                0 => return Ok(hasher.finalize().into()),
                n => hasher.update(&buffer[..n]),
            }
        }
    }

    /// Makes the disk larger, as if the image had been written to a larger one.
    ///
    /// # Errors
    /// If it is already larger.
    pub fn grow(&self, bytes: u64) -> Result<()> {
        let file = self.open(true)?;
        let now = file.metadata()?.len();
        if now > bytes {
            bail!("grow {} to {bytes} bytes: it already has {now}", self.path.display());
        }
        file.set_len(bytes).with_context(|| format!("grow {} to {bytes} bytes", self.path.display()))
    }

    fn inside(&self, label: &str, at: u64, bytes: u64) -> Result<u64> {
        let extent = self.partition(label)?;
        if at.checked_add(bytes).is_none_or(|end| end > extent.bytes) {
            bail!("{label} has {} bytes, but {bytes} were asked for at {at}", extent.bytes);
        }
        Ok(extent.start + at)
    }

    fn open(&self, write: bool) -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(write)
            .open(&self.path)
            .with_context(|| format!("open disk image {}", self.path.display()))
    }

    fn doing(&self, verb: &str, label: &str, at: u64) -> String {
        format!("{verb} {label} of {} at byte {at}", self.path.display())
    }
}

/// Copies an image and keeps its holes, so that a disk of gigabytes costs what is written on it.
///
/// # Errors
/// If the target exists, or copying fails; a failed copy is removed.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    let mut source = File::open(from).with_context(what)?;
    let mut target = OpenOptions::new().write(true).create_new(true).open(to).with_context(what)?;
    copy_data(&mut source, &mut target).with_context(what).inspect_err(|_| drop(std::fs::remove_file(to)))
}

fn copy_data(source: &mut File, target: &mut File) -> Result<()> {
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut at = 0i64;
    // ENXIO: no data after this place.
    while let Some(start) = seek(source, at, Whence::SeekData)? {
        let end = seek(source, start, Whence::SeekHole)?.unwrap_or(i64::try_from(length)?);
        source.seek(SeekFrom::Start(u64::try_from(start)?))?;
        target.seek(SeekFrom::Start(u64::try_from(start)?))?;
        let wanted = u64::try_from(end - start)?;
        let copied = std::io::copy(&mut (&*source).take(wanted), target)?;
        if copied != wanted {
            bail!("{copied} of {wanted} bytes copied: the image was changed meanwhile");
        }
        at = end;
    }
    target.flush()?;
    Ok(())
}

fn seek(file: &File, at: i64, whence: Whence) -> Result<Option<i64>> {
    match lseek(file.as_fd(), at, whence) {
        Ok(place) => Ok(Some(place)),
        Err(nix::errno::Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A disk of 8 MiB with two root slots of 1 MiB.
    fn disk(folder: &Path) -> DiskImage {
        let path = folder.join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        let mut disk = gpt::GptConfig::new().writable(true).create(&path).unwrap();
        disk.update_partitions(BTreeMap::new()).unwrap();
        for label in ["farhold-root-a", "farhold-root-b"] {
            let kind = layout::type_root(Arch::X86_64).parse().unwrap();
            let kind =
                gpt::partition_types::Type { guid: kind, os: gpt::partition_types::OperatingSystem::Linux };
            disk.add_partition(label, 1 << 20, kind, 0, None).unwrap();
        }
        disk.write().unwrap();
        DiskImage::new(path)
    }

    #[test]
    fn partitions_are_found_by_label_and_absent_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        assert_eq!(disk.partition("farhold-root-a").unwrap().bytes, 1 << 20);
        assert_eq!(disk.arch().unwrap(), Arch::X86_64);
        let error = disk.partition("farhold-esp").unwrap_err().to_string();
        assert!(error.contains("no partition `farhold-esp`"), "{error}");
    }

    #[test]
    fn a_flip_changes_one_byte_and_a_copied_slot_is_equal() {
        let folder = tempfile::tempdir().unwrap();
        let disk = disk(folder.path());
        let before = disk.digest("farhold-root-a").unwrap();
        assert_eq!(disk.flip_byte("farhold-root-a", 5000).unwrap(), 0);
        assert_eq!(disk.read("farhold-root-a", 4999, 3).unwrap(), [0, 255, 0]);
        assert_eq!(disk.digest("farhold-root-b").unwrap(), before);
        disk.copy_partition("farhold-root-a", "farhold-root-b").unwrap();
        assert_eq!(disk.digest("farhold-root-b").unwrap(), disk.digest("farhold-root-a").unwrap());
        assert!(disk.write("farhold-root-a", (1 << 20) - 1, &[0, 0]).is_err());
    }

    #[test]
    fn a_copy_is_equal_and_keeps_holes() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        let file = File::create(&source).unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(b"middle", 20 << 20).unwrap();
        let target = folder.path().join("target");
        copy_sparse(&source, &target).unwrap();
        assert_eq!(std::fs::read(&source).unwrap(), std::fs::read(&target).unwrap());
        assert!(std::fs::metadata(&target).unwrap().blocks() * 512 < 1 << 20);
        assert!(copy_sparse(&source, &target).is_err(), "an existing file is never written over");
    }
}
