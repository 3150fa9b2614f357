//! `farhold-agent import PATH`: a release from a stick or folder, and a report onto it for the way back.
//!
//! A stick is a stranger: it is mounted for reading, without devices, programs or set-user-id files, by file systems that
//! are named here only; names on it lead nowhere else ([`crate::io::beneath`]); it may be yanked at any time.

use crate::io::beneath;
use crate::update::stick_report;
use anyhow::{Context, Result, bail};
use formats::repository;
use formats::status::Status;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Where sticks are mounted, each in a folder of its device's name.
const MOUNTS: &str = "/run/farhold/sticks";
/// File systems that a stick may have, with options; a journal is not replayed.
const SYSTEMS: [(&str, &str); 3] = [("vfat", ""), ("exfat", ""), ("ext4", "noload")];

/// A stick or a folder.
pub struct Stick {
    folder: PathBuf,
    /// What is mounted there.
    device: Option<PathBuf>,
}

fn flags() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

impl Stick {
    /// Takes a folder, or mounts a block device.
    ///
    /// # Errors
    /// If it is neither, or has no file system that is known here.
    pub fn open(path: &Path) -> Result<Self> {
        let facts = std::fs::metadata(path).with_context(|| {
            format!("look at {}: give a stick's device or the folder of a repository", path.display())
        })?;
        if facts.is_dir() {
            return Ok(Self { folder: path.to_owned(), device: None });
        }
        if !facts.file_type().is_block_device() {
            bail!(
                "{} is neither a folder nor a block device: give a stick's device or the folder of a repository",
                path.display()
            );
        }
        let folder = Path::new(MOUNTS).join(path.file_name().unwrap_or_default());
        crate::io::durable::make_folder(&folder, 0o700)?;
        let mut tried = Vec::new();
        for (system, options) in SYSTEMS {
            let options = (!options.is_empty()).then_some(options);
            match mount(Some(path), &folder, Some(system), flags() | MsFlags::MS_RDONLY, options) {
                Ok(()) => return Ok(Self { folder, device: Some(path.to_owned()) }),
                Err(error) => tried.push(format!("{system}: {error}")),
            }
        }
        bail!(
            "mount {}: {}; a stick must have a FAT, exFAT or ext4 file system",
            path.display(),
            tried.join(", ")
        )
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it holds something that could be a release.
    pub fn offers(&self) -> bool {
        [repository::ANNOUNCE, repository::ANNOUNCEMENTS].iter().any(|name| self.folder.join(name).exists())
    }

    /// Whether it still answers; a device that was pulled out loses its node, while its files may still be
    /// remembered.
    pub fn there(&self) -> bool {
        self.device.as_ref().is_none_or(|device| device.exists())
            && std::fs::read_dir(&self.folder)
                .is_ok_and(|mut names| names.next().is_none_or(|name| name.is_ok()))
    }

    /// Leaves a report on it. What is on it already stays as it is, but for the report of before.
    ///
    /// # Errors
    /// If it is full, read-only or gone; nothing depends on it.
    pub fn report(&self, status: &Status) -> Result<String> {
        let name = stick_report::name(status);
        let writable = |on: bool| {
            let reading = if on { MsFlags::empty() } else { MsFlags::MS_RDONLY };
            let flags = flags() | MsFlags::MS_REMOUNT | reading;
            let context = if on { "make the stick writable" } else { "make the stick read-only again" };
            mount(None::<&str>, &self.folder, None::<&str>, flags, None::<&str>).context(context)
        };
        if self.device.is_some() {
            writable(true)?;
        }
        let written =
            beneath::replace(&self.folder, stick_report::FOLDER, &name, &stick_report::bytes(status));
        if self.device.is_some() {
            writable(false)?;
        }
        written.with_context(|| format!("write the report {name}"))?;
        Ok(format!("{}/{name}", stick_report::FOLDER))
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        if self.device.is_some()
            && let Err(error) = umount2(&self.folder, MntFlags::MNT_DETACH)
        {
            tracing::warn!(%error, folder = %self.folder.display(), "the stick stays mounted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let machine = "0123456789abcdef0123456789abcdef";
        Status { machine_id: machine.into(), ..crate::offline::status("it is a test") }
    }

    #[test]
    fn a_folder_is_taken_as_it_is_and_gets_the_report() {
        let folder = tempfile::tempdir().unwrap();
        let stick = Stick::open(folder.path()).unwrap();
        assert!(!stick.offers() && stick.there());
        std::fs::write(folder.path().join(repository::ANNOUNCE), [0x11; 198]).unwrap();
        assert!(stick.offers());
        for _ in 0..2 {
            let name = stick.report(&status()).unwrap();
            assert_eq!(name, "reports/0123456789abcdef0123456789abcdef.json");
            let bytes = std::fs::read(folder.path().join(&name)).unwrap();
            let report: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert!(report["machine_id"] == status().machine_id && bytes.len() <= 4096, "{report}");
        }
        assert_eq!(std::fs::read_dir(folder.path().join("reports")).unwrap().count(), 1);
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!stick.there());
        // A stick that is gone gets no report, and that is all.
        assert!(stick.report(&status()).is_err() && Stick::open(&path).is_err());
    }

    #[test]
    fn what_is_neither_folder_nor_device_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, b"x").unwrap();
        let why = format!("{:#}", Stick::open(&file).err().unwrap());
        assert!(why.contains("neither a folder nor a block device"), "{why}");
    }
}
