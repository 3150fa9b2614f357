//! The ESP while the agent writes it: mounted for one operation, every change flushed to the medium before the next.
//!
//! FAT orders nothing: a rename may leave both names or neither, a removal a name whose clusters are partly free. So an
//! entry is written in place with a blank first sector, which makes it no program that systemd-boot would list, and
//! that one sector comes last; it goes the other way round. Names are changed for counters only. Knows nothing of what
//! entries mean. See docs/decisions/0020 for what was measured.

use crate::io::disk::{BlockDevice, Disk};
use anyhow::{Context, Result, ensure};
use formats::entry::FOLDER;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where it is mounted.
const MOUNT: &str = "/run/farhold/esp-rw";
/// The sector that makes a file a program, or none.
pub const HEAD: usize = 512;
/// A new file is so long from the start, so that its first sector has a place.
const FIRST: usize = 4096;
/// Where firmware looks for it (UEFI 2.10, section 3.5.1.1).
const BOOT_LOADERS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/BOOTAA64.EFI"];
/// Most names read from a folder; a damaged FAT can show files without end.
const NAMES_MAX: usize = 256;

/// The ESP. Each change is durable when its call returns, unless it says otherwise.
pub trait Esp {
    /// Names in the folder of entries, those with a blank first sector left out.
    ///
    /// # Errors
    /// The file system's, as for all calls.
    fn names(&mut self) -> Result<Vec<String>>;
    /// Opens an entry to read it.
    fn open(&mut self, name: &str) -> Result<Box<dyn Disk>>;
    /// The boot loader that firmware starts without a variable.
    fn boot_loader(&mut self) -> Result<Box<dyn Disk>>;
    /// Bytes that are free, or that [`Esp::begin`] frees: what a repair of the file system left behind.
    fn free(&mut self) -> Result<u64>;
    /// Removes all names of one release; they may be names of one file.
    fn remove(&mut self, names: &[String]) -> Result<()>;
    /// Renames an entry.
    fn rename(&mut self, from: &str, to: &str) -> Result<()>;
    /// Begins an entry, with a blank first sector. What an interrupted attempt left is removed.
    fn begin(&mut self, name: &str) -> Result<()>;
    /// Adds bytes to it; durable only from [`Esp::seal`] on. The first sector is held back.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// Makes all but the first sector durable, and the caches forget it.
    fn seal(&mut self) -> Result<()>;
    /// Reads what was sealed, the first sector as it will be.
    fn sealed(&mut self, at: u64, into: &mut [u8]) -> Result<()>;
    /// Writes the first sector: from now on it is an entry.
    fn commit(&mut self) -> Result<()>;
}

/// An ESP in a folder: the mounted one, or a folder of a test.
pub struct Folder {
    root: PathBuf,
    new: Option<New>,
    /// Held while it is mounted: all threads mount in one place.
    mounted: Option<MutexGuard<'static, ()>>,
    written: Arc<AtomicU64>,
}

static MOUNTED: Mutex<()> = Mutex::new(());

/// An entry that is being written.
struct New {
    file: File,
    path: PathBuf,
    head: Vec<u8>,
    bytes: u64,
}

impl Folder {
    /// Mounts the ESP for writing; dropping it unmounts.
    ///
    /// # Errors
    /// The kernel's; an ESP that can only be read is an error too.
    pub fn mount(device: &str) -> Result<Self> {
        let guard = MOUNTED.lock().unwrap_or_else(PoisonError::into_inner);
        fs::create_dir_all(MOUNT).with_context(|| format!("make {MOUNT}"))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        // What is written is read back, so an old fault elsewhere on the ESP need not stop an update.
        mount(Some(device), MOUNT, Some("vfat"), flags, Some("errors=continue,umask=0077"))
            .with_context(|| format!("mount the ESP {device}"))?;
        let mut folder = Self::at(Path::new(MOUNT));
        folder.mounted = Some(guard);
        Ok(folder)
    }

    /// An ESP whose root is this folder.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), new: None, mounted: None, written: Arc::default() }
    }

    /// Counts what is written to files.
    pub fn counted(mut self, written: &Arc<AtomicU64>) -> Self {
        self.written = written.clone();
        self
    }

    fn count(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(FOLDER).join(name)
    }

    /// FAT needs both: the first writes everything back, the second also empties the cache of the disk.
    fn flush(&self) -> Result<()> {
        let folder = self.root.join(FOLDER);
        let what = || format!("flush {}", folder.display());
        let file = File::open(&folder).with_context(what)?;
        nix::unistd::syncfs(&file).with_context(what)?;
        file.sync_all().with_context(what)
    }

    /// Names, each with whether its first sector is blank.
    fn list(&self) -> Result<Vec<(String, bool)>> {
        let folder = self.root.join(FOLDER);
        let what = || format!("list {}", folder.display());
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).with_context(what)?.take(NAMES_MAX) {
            let entry = entry.with_context(what)?;
            let mut head = [1; HEAD];
            // A file that is shorter, or cannot be read, is none that was begun here.
            let read = File::open(entry.path()).and_then(|file| file.read_exact_at(&mut head, 0));
            let blank = read.is_ok() && head.iter().all(|byte| *byte == 0);
            names.push((entry.file_name().to_string_lossy().into_owned(), blank));
        }
        names.sort();
        Ok(names)
    }

    /// What a repair of the file system left: clusters that belonged to no file, `FSCK0000.REC` and on.
    fn recovered(&self) -> Result<Vec<(PathBuf, u64)>> {
        let what = || format!("list {}", self.root.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).with_context(what)?.take(NAMES_MAX) {
            let entry = entry.with_context(what)?;
            let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
            let number = name.strip_prefix("FSCK").and_then(|rest| rest.strip_suffix(".REC"));
            if number.is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit())) {
                found.push((entry.path(), entry.metadata().with_context(what)?.len()));
            }
        }
        Ok(found)
    }

    fn begun(&mut self) -> Result<&mut New> {
        self.new.as_mut().context("no entry was begun on the ESP")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.mounted.is_some()
            && let Err(error) = umount2(MOUNT, MntFlags::empty())
        {
            tracing::warn!(%error, "the ESP stays mounted");
        }
    }
}

impl Esp for Folder {
    fn names(&mut self) -> Result<Vec<String>> {
        Ok(self.list()?.into_iter().filter(|(_, blank)| !blank).map(|(name, _)| name).collect())
    }

    fn open(&mut self, name: &str) -> Result<Box<dyn Disk>> {
        Ok(Box::new(BlockDevice::open_for_reading(&self.path(name))?))
    }

    fn boot_loader(&mut self) -> Result<Box<dyn Disk>> {
        let paths = BOOT_LOADERS.map(|name| self.root.join(name));
        let found = paths.iter().find(|path| path.exists()).context("the ESP has no boot loader")?;
        Ok(Box::new(BlockDevice::open_for_reading(found)?))
    }

    fn free(&mut self) -> Result<u64> {
        let room = nix::sys::statvfs::statvfs(&self.root).context("ask for the room of the ESP")?;
        let recovered: u64 = self.recovered()?.iter().map(|(_, bytes)| bytes).sum();
        Ok(room.blocks_available() * room.fragment_size() + recovered)
    }

    fn remove(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            let path = self.path(name);
            let what = || format!("blank {}", path.display());
            let file = OpenOptions::new().write(true).open(&path).with_context(what)?;
            file.write_all_at(&[0; HEAD], 0).with_context(what)?;
            self.count(HEAD);
            file.sync_all().with_context(what)?;
        }
        for name in names {
            let path = self.path(name);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        self.flush()
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        ensure!(!to.exists(), "{} is there already", to.display());
        fs::rename(&from, &to).with_context(|| format!("rename {} to {}", from.display(), to.display()))?;
        self.flush()
    }

    fn begin(&mut self, name: &str) -> Result<()> {
        for (blank, _) in self.list()?.into_iter().filter(|(_, blank)| *blank) {
            let path = self.path(&blank);
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        for (path, _) in self.recovered()? {
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        let path = self.path(name);
        let what = || format!("make {}", path.display());
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(&path).with_context(what)?;
        file.write_all_at(&[0; FIRST], 0).with_context(what)?;
        self.count(FIRST);
        file.sync_all().with_context(what)?;
        self.flush()?;
        self.new = Some(New { file, path, head: Vec::new(), bytes: 0 });
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let new = self.begun()?;
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD - new.head.len()));
        new.head.extend_from_slice(head);
        let at = new.bytes + head.len() as u64;
        new.file.write_all_at(rest, at).with_context(|| format!("write {}", new.path.display()))?;
        new.bytes += bytes.len() as u64;
        self.count(bytes.len());
        Ok(())
    }

    fn seal(&mut self) -> Result<()> {
        let new = self.begun()?;
        let what = format!("flush {}", new.path.display());
        ensure!(new.bytes >= FIRST as u64, "a UKI of {} bytes is none", new.bytes);
        new.file.sync_all().context(what.clone())?;
        let all = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        self.flush()?;
        nix::fcntl::posix_fadvise(&self.begun()?.file, 0, 0, all).context(what)
    }

    fn sealed(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let new = self.begun()?;
        new.file.read_exact_at(into, at).with_context(|| format!("read {}", new.path.display()))?;
        let from = usize::try_from(at).unwrap_or(HEAD).min(HEAD);
        let held = &new.head[from..(from + into.len()).min(HEAD)];
        into[..held.len()].copy_from_slice(held);
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        let new = self.new.take().context("no entry was begun on the ESP")?;
        let what = || format!("write the first sector of {}", new.path.display());
        new.file.write_all_at(&new.head, 0).with_context(what)?;
        new.file.sync_all().with_context(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_becomes_an_entry_only_with_its_first_sector() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        let mut esp = Folder::at(root.path());
        let uki: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8 + 1).collect();
        esp.begin("1.1_0123abcd+3.efi").unwrap();
        esp.append(&uki[..700]).unwrap();
        assert!(esp.names().unwrap().is_empty(), "an interrupted attempt is no entry");
        esp.begin("1.0_0123abcd+3.efi").unwrap();
        uki.chunks(300).for_each(|part| esp.append(part).unwrap());
        esp.seal().unwrap();
        assert!(esp.names().unwrap().is_empty());
        for at in [0, 100, 500, 512, 6000] {
            let mut found = vec![0; 3000];
            esp.sealed(at, &mut found).unwrap();
            assert_eq!(found, uki[at as usize..at as usize + 3000], "{at}");
        }
        esp.commit().unwrap();
        assert_eq!(esp.names().unwrap(), ["1.0_0123abcd+3.efi"]);
        assert_eq!(fs::read_dir(root.path().join(FOLDER)).unwrap().count(), 1, "the attempt is gone");
        esp.rename("1.0_0123abcd+3.efi", "1.0_0123abcd.efi").unwrap();
        let mut found = vec![0; uki.len()];
        esp.open("1.0_0123abcd.efi").unwrap().read(0, &mut found).unwrap();
        assert_eq!(found, uki);
        assert!(esp.begin("1.0_0123abcd.efi").is_err(), "an entry is never written over");
        esp.remove(&["1.0_0123abcd.efi".to_owned()]).unwrap();
        assert!(esp.names().unwrap().is_empty() && esp.append(b"x").is_err());
    }

    #[test]
    fn what_a_repair_left_on_the_esp_is_room() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(FOLDER)).unwrap();
        let mut esp = Folder::at(root.path());
        fs::write(root.path().join("FSCK0000.REC"), vec![7; 5 << 20]).unwrap();
        fs::write(root.path().join("FSCK.REC"), b"not of a repair").unwrap();
        let recovered: u64 = esp.recovered().unwrap().iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(recovered, 5 << 20);
        assert!(esp.free().unwrap() >= 5 << 20);
        esp.begin("1.0_0123abcd+3.efi").unwrap();
        assert!(!root.path().join("FSCK0000.REC").exists() && root.path().join("FSCK.REC").exists());
    }
}
