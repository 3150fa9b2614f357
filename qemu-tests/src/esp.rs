//! Files on FAT partitions of a disk image, the ESP above all, read and changed from outside the machine, which must be
//! off. FAT by `fatfs`.

use crate::disk::{DiskImage, Extent};
use anyhow::{Context, Result, bail};
use formats::layout::LABEL_ESP;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read, Seek, SeekFrom, Write};

/// Largest file that is read, bytes: several UKIs.
const FILE_MAX: u64 = 256 << 20;

impl DiskImage {
    /// Names in a folder of the ESP, without `.` and `..`.
    ///
    /// # Errors
    /// If the ESP or the folder cannot be read.
    pub fn esp_list(&self, folder: &str) -> Result<Vec<String>> {
        self.fat_list(LABEL_ESP, folder)
    }

    /// Names in a folder of the FAT partition with this label, without `.` and `..`.
    ///
    /// # Errors
    /// If the partition or the folder cannot be read.
    pub fn fat_list(&self, label: &str, folder: &str) -> Result<Vec<String>> {
        let fat = self.fat(label, false)?;
        let list = fat.root_dir().open_dir(folder).with_context(|| format!("open {folder} on {label}"))?;
        let names = list.iter().map(|entry| Ok(entry.with_context(|| format!("list {folder}"))?.file_name()));
        let names: Result<Vec<String>> = names.collect();
        Ok(names?.into_iter().filter(|name| name != "." && name != "..").collect())
    }

    /// Contents of a file of the ESP.
    ///
    /// # Errors
    /// If it cannot be read or is larger than any UKI.
    pub fn esp_read(&self, path: &str) -> Result<Vec<u8>> {
        self.fat_read(LABEL_ESP, path)
    }

    /// Contents of a file of the FAT partition with this label.
    ///
    /// # Errors
    /// If it cannot be read or is larger than any UKI.
    pub fn fat_read(&self, label: &str, path: &str) -> Result<Vec<u8>> {
        let what = || format!("read {path} on {label}");
        let fat = self.fat(label, false)?;
        let root = fat.root_dir();
        let mut bytes = Vec::new();
        root.open_file(path)
            .with_context(what)?
            .take(FILE_MAX + 1)
            .read_to_end(&mut bytes)
            .with_context(what)?;
        if bytes.len() as u64 > FILE_MAX {
            bail!("{path} on {label} is larger than {} MiB", FILE_MAX >> 20);
        }
        Ok(bytes)
    }

    /// Writes a file of the ESP, in place of an older one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn esp_write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let what = || format!("write {path} on the ESP");
        let fat = self.fat(LABEL_ESP, true)?;
        {
            let root = fat.root_dir();
            let mut file = root.create_file(path).with_context(what)?;
            file.truncate().with_context(what)?;
            file.write_all(bytes).with_context(what)?;
            file.flush().with_context(what)?;
        }
        fat.unmount().with_context(what)
    }

    /// Removes a file of the ESP.
    ///
    /// # Errors
    /// If it is not there or cannot be removed.
    pub fn esp_remove(&self, path: &str) -> Result<()> {
        let what = || format!("remove {path} on the ESP");
        let fat = self.fat(LABEL_ESP, true)?;
        fat.root_dir().remove(path).with_context(what)?;
        fat.unmount().with_context(what)
    }

    fn fat(&self, label: &str, write: bool) -> Result<fatfs::FileSystem<Window>> {
        let extent = self.partition(label)?;
        let what = || format!("open {label} of {}", self.path().display());
        let file = OpenOptions::new().read(true).write(write).open(self.path()).with_context(what)?;
        fatfs::FileSystem::new(Window { file, extent, at: 0 }, fatfs::FsOptions::new()).with_context(what)
    }
}

/// A partition as if it were a file.
struct Window {
    file: File,
    extent: Extent,
    at: u64,
}

impl Window {
    /// How much of `wanted` bytes lies inside; the file is positioned there.
    fn reach(&mut self, wanted: usize) -> std::io::Result<usize> {
        self.file.seek(SeekFrom::Start(self.extent.start + self.at))?;
        let left = self.extent.bytes.saturating_sub(self.at);
        Ok(usize::try_from(left).unwrap_or(usize::MAX).min(wanted))
    }
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let inside = self.reach(buffer.len())?;
        let n = self.file.read(&mut buffer[..inside])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Window {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let inside = self.reach(bytes.len())?;
        let n = self.file.write(&bytes[..inside])?;
        self.at += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.extent.bytes.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "seek outside the partition"))?;
        Ok(self.at)
    }
}
