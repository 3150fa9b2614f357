//! The ESP while the agent writes it: mounted for one operation, every change flushed to the medium before the next.
//!
//! A rename on FAT is two entries of a folder, which a power cut may leave both, or neither; so the steps that use it
//! are chosen such that either is survived (`install`, `step`). Knows nothing of what entries mean.

use anyhow::{Context, Result, ensure};
use formats::entry::FOLDER;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where it is mounted.
const MOUNT: &str = "/run/farhold/esp-rw";
/// Folder for files that are not entries yet.
const OUTSIDE: &str = "EFI/farhold";
/// The UKI before it becomes an entry.
const STAGED: &str = "EFI/farhold/new.efi";
/// Most names read from a folder; a damaged FAT can show files without end.
const NAMES_MAX: usize = 256;

/// A file of the ESP.
#[derive(Clone, Copy, Debug)]
pub enum Name<'n> {
    /// An entry, by its file name.
    Entry(&'n str),
    /// The UKI that is not an entry yet.
    Staged,
}

/// The ESP. Each change is durable when its call returns.
pub trait Esp {
    /// Names in the folder of entries.
    ///
    /// # Errors
    /// The file system's, as for all calls.
    fn names(&mut self) -> Result<Vec<String>>;
    /// Bytes of a file.
    fn length(&mut self, name: Name<'_>) -> Result<u64>;
    /// Reads exactly `into.len()` bytes.
    fn read(&mut self, name: Name<'_>, at: u64, into: &mut [u8]) -> Result<()>;
    /// Bytes that are free.
    fn free(&mut self) -> Result<u64>;
    /// Removes an entry.
    fn remove(&mut self, name: &str) -> Result<()>;
    /// Renames an entry.
    fn rename(&mut self, from: &str, to: &str) -> Result<()>;
    /// Makes the staged file anew, empty.
    fn stage(&mut self) -> Result<()>;
    /// Adds to it; durable only from [`Esp::seal`] on.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Makes the staged file durable, and the caches forget it.
    fn seal(&mut self) -> Result<()>;
    /// Makes the staged file an entry.
    fn place(&mut self, name: &str) -> Result<()>;
}

/// An ESP in a folder: the mounted one, or a folder of a test.
pub struct Folder {
    root: PathBuf,
    staged: Option<File>,
    written: u64,
    mounted: bool,
}

impl Folder {
    /// Mounts the ESP for writing; dropping it unmounts.
    ///
    /// # Errors
    /// The kernel's; an ESP that can only be read is an error too.
    pub fn mount(device: &str) -> Result<Self> {
        fs::create_dir_all(MOUNT).with_context(|| format!("make {MOUNT}"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        // What is written is read back, so an old fault elsewhere on the ESP need not stop an update.
        mount(Some(device), MOUNT, Some("vfat"), flags, Some("errors=continue,umask=0077"))
            .with_context(|| format!("mount the ESP {device}"))?;
        let mut folder = Self::at(Path::new(MOUNT));
        folder.mounted = true;
        Ok(folder)
    }

    /// An ESP whose root is this folder.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), staged: None, written: 0, mounted: false }
    }

    fn path(&self, name: Name<'_>) -> PathBuf {
        match name {
            Name::Entry(name) => self.root.join(FOLDER).join(name),
            Name::Staged => self.root.join(STAGED),
        }
    }

    /// FAT needs both: the first writes everything back, the second also empties the cache of the disk.
    fn flush(&self, folder: &str) -> Result<()> {
        let folder = self.root.join(folder);
        let what = || format!("flush {}", folder.display());
        let file = File::open(&folder).with_context(what)?;
        nix::unistd::syncfs(&file).with_context(what)?;
        file.sync_all().with_context(what)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = umount2(MOUNT, MntFlags::empty())
        {
            tracing::warn!(%error, "the ESP stays mounted");
        }
    }
}

impl Esp for Folder {
    fn names(&mut self) -> Result<Vec<String>> {
        let folder = self.root.join(FOLDER);
        let what = || format!("list {}", folder.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(what)?.take(NAMES_MAX) {
            names.push(entry.with_context(what)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn length(&mut self, name: Name<'_>) -> Result<u64> {
        let path = self.path(name);
        Ok(fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len())
    }

    fn read(&mut self, name: Name<'_>, at: u64, into: &mut [u8]) -> Result<()> {
        let path = self.path(name);
        let what = || format!("read {}", path.display());
        File::open(&path).with_context(what)?.read_exact_at(into, at).with_context(what)
    }

    fn free(&mut self) -> Result<u64> {
        let room = nix::sys::statvfs::statvfs(&self.root).context("ask for the room of the ESP")?;
        Ok(room.blocks_available() * room.fragment_size())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let path = self.path(Name::Entry(name));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        self.flush(FOLDER)
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path(Name::Entry(from)), self.path(Name::Entry(to)));
        ensure!(!to.exists(), "{} is there already", to.display());
        fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
        self.flush(FOLDER)
    }

    fn stage(&mut self) -> Result<()> {
        let folder = self.root.join(OUTSIDE);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let path = self.path(Name::Staged);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        self.staged = Some(file.with_context(|| format!("make {}", path.display()))?);
        self.written = 0;
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let file = self.staged.as_ref().context("no file was staged on the ESP")?;
        file.write_all_at(bytes, self.written).context("write a UKI to the ESP")?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        let file = self.staged.take().context("no file was staged on the ESP")?;
        file.sync_all().context("flush a UKI to the ESP")?;
        self.flush(OUTSIDE)?;
        let all = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, all).context("drop the cache of a UKI")
    }

    fn place(&mut self, name: &str) -> Result<()> {
        let (from, to) = (self.path(Name::Staged), self.path(Name::Entry(name)));
        ensure!(!to.exists(), "{} is there already", to.display());
        fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
        self.flush(FOLDER)?;
        self.flush(OUTSIDE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_file_becomes_an_entry_only_when_placed() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        let mut esp = Folder::at(root.path());
        for text in ["an interrupted attempt", "second"] {
            esp.stage().unwrap();
            esp.append(text.as_bytes()).unwrap();
        }
        assert!(esp.names().unwrap().is_empty());
        esp.seal().unwrap();
        assert_eq!(esp.length(Name::Staged).unwrap(), 6);
        esp.place("1.0_0123abcd+3.efi").unwrap();
        esp.rename("1.0_0123abcd+3.efi", "1.0_0123abcd.efi").unwrap();
        assert_eq!(esp.names().unwrap(), ["1.0_0123abcd.efi"]);
        let mut bytes = [0; 6];
        esp.read(Name::Entry("1.0_0123abcd.efi"), 0, &mut bytes).unwrap();
        assert_eq!(&bytes, b"second");
        esp.stage().unwrap();
        esp.seal().unwrap();
        assert!(esp.place("1.0_0123abcd.efi").is_err(), "an entry is never written over");
        esp.remove("1.0_0123abcd.efi").unwrap();
        assert!(esp.append(b"x").is_err());
    }
}
