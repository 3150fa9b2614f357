//! The output folder: filled beside its place and renamed into it when complete, so that nothing half-written is ever
//! there. Knows nothing of what the files mean.

use super::report::{FileReport, Report, hash_file};
use crate::plan::{Plan, StepName};
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The report in the folder; that it is there and readable shows that a folder is ours.
pub const REPORT: &str = "build.json";
/// The disk image in the folder.
pub const DISK: &str = "disk.img";
/// What of it means anything, for `farhold flash`.
pub const DISK_MAP: &str = "disk.img.map.json";

/// A folder in the making.
pub struct Folder {
    place: PathBuf,
    path: PathBuf,
    before: Option<Report>,
    /// Held as long as this lives: two builds into one place would spoil each other.
    _lock: Flock<File>,
}

/// The report of a folder that already is what the plan would make, every file as it was left.
///
/// # Errors
/// If the folder is not ours.
pub fn unchanged(place: &Path, plan: &Plan) -> Result<Option<Report>> {
    let report = before(place)?.filter(|report| report.key == plan.key());
    Ok(report.filter(|report| report.files.iter().all(|file| file.is_untouched(place))))
}

/// The report of the folder that is at `place`, if there is one.
fn before(place: &Path) -> Result<Option<Report>> {
    let path = place.join(REPORT);
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(report) => Ok(Some(report)),
            Err(error) => bail!(
                "--out {}: its {REPORT} is not one of this version of farhold ({error}); remove the folder, or \
                 choose another",
                place.display()
            ),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => no_report(place),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn no_report(place: &Path) -> Result<Option<Report>> {
    match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("--out {}", place.display())),
        Ok(mut entries) => match entries.next() {
            None => Ok(None),
            Some(_) => bail!(
                "--out {}: the folder holds files that farhold did not write; remove them, or choose another folder",
                place.display()
            ),
        },
    }
}

/// Whether the folder at `place` has a disk image that the step with this key made, as it was left.
///
/// # Errors
/// If the folder is not ours.
pub fn has_disk(place: &Path, key: Digest) -> Result<bool> {
    Ok(before(place)?.is_some_and(|report| disk_of(&report, place, key).is_some()))
}

fn disk_of(report: &Report, place: &Path, key: Digest) -> Option<FileReport> {
    let same = report.steps.iter().any(|step| step.step == StepName::Disk && step.key == key);
    let known = report.files.iter().find(|file| file.path == DISK && file.is_untouched(place));
    known.filter(|_| same).cloned()
}

impl Folder {
    /// Makes an empty folder beside `place`. What a killed build left there is removed.
    ///
    /// # Errors
    /// If `place` is not ours to replace, another build is at it, or its parent cannot be written.
    pub fn prepare(place: &Path) -> Result<Self> {
        let before = before(place)?;
        let name = place
            .file_name()
            .ok_or_else(|| anyhow!("--out {}: must end in the name of a folder", place.display()))?;
        let parent = match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let path = parent.join(format!(".{}.partial", name.to_string_lossy()));
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(|| format!("make {}", path.display()));
            }
            Ok(()) | Err(_) => {}
        }
        let folder = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let lock = Flock::lock(folder, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| anyhow!("another build writes to {} ({error})", place.display()))?;
        empty(&path).with_context(|| format!("empty {}", path.display()))?;
        Ok(Self { place: place.to_owned(), path, before, _lock: lock })
    }

    /// A new file in the folder.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(&self, name: &str) -> Result<File> {
        let path = self.path.join(name);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        file.with_context(|| format!("make {}", path.display()))
    }

    /// Copies a file into the folder.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let target = self.path.join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        }
        let mut source = File::open(from).with_context(|| format!("open {}", from.display()))?;
        let mut file = self.create(name)?;
        io::copy(&mut source, &mut file).with_context(|| self.full(name))?;
        Ok(())
    }

    /// Writes a small file into the folder.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        fs::write(self.path.join(name), bytes).with_context(|| self.full(name))
    }

    /// The folder's path while it is in the making.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hashes a file of the folder.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn describe(&self, name: &str) -> Result<FileReport> {
        let (sha256, bytes) = hash_file(&self.path.join(name))?;
        FileReport::new(&self.path, name, sha256, bytes)
    }

    /// Syncs and hashes a file of the folder.
    ///
    /// # Errors
    /// If it cannot be written or read.
    pub fn complete(&self, name: &str) -> Result<FileReport> {
        let synced = File::open(self.path.join(name)).and_then(|file| file.sync_all());
        synced.with_context(|| self.full(name))?;
        self.describe(name)
    }

    /// Takes `disk.img` over from the folder that is replaced, if it was made by the same step and is as it was left.
    ///
    /// # Errors
    /// If it cannot be linked.
    pub fn keep_disk(&self, key: Digest) -> Result<Option<FileReport>> {
        let known = self.before.as_ref().and_then(|before| disk_of(before, &self.place, key));
        let known = known.filter(|_| self.place.join(DISK_MAP).exists());
        if known.is_some() {
            for name in [DISK, DISK_MAP] {
                fs::hard_link(self.place.join(name), self.path.join(name))
                    .with_context(|| self.full(name))?;
            }
        }
        Ok(known)
    }

    /// Writes the report and puts the folder in its place; what was there before is removed afterwards.
    ///
    /// # Errors
    /// If it cannot be written or renamed.
    pub fn publish(self, report: &Report) -> Result<()> {
        let json = serde_json::to_vec_pretty(report).context("write the report")?;
        self.write(REPORT, &json)?;
        File::open(&self.path).and_then(|folder| folder.sync_all()).with_context(|| self.full(REPORT))?;
        let place = &self.place;
        let renamed = || format!("put the finished build in place at {}", place.display());
        if !place.exists() {
            return fs::rename(&self.path, place).with_context(renamed);
        }
        // Both names exist: they change places at once, and the old folder is what remains beside.
        renameat2(AT_FDCWD, &self.path, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE)
            .with_context(renamed)?;
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }

    fn full(&self, name: &str) -> String {
        format!("write {name} for {} (make room there, or choose another --out)", self.place.display())
    }
}

impl Drop for Folder {
    /// A build that failed leaves nothing; one that was killed leaves what the next one removes.
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "cannot remove an unfinished build");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
