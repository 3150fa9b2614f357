//! A repository folder: releases of any number of products under the names of `formats::repository`, as any web server,
//! stick or block server carries them. Every file appears complete or not at all; nothing is signed or judged here.

use super::folder::{self, read_limited};
use super::keys::{ROOTS, parent, read_chain};
use anyhow::{Context, Result, bail};
use formats::catalogue::MAX_CATALOGUE_BYTES;
use formats::frame::{Announcement, Frame, MAX_FRAME_BYTES};
use formats::hex::Digest;
use formats::manifest::{MANIFEST_BLOCK, Manifest};
use formats::object;
use formats::repository as names;
use formats::roles::Chain;
use formats::trust::Rank;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// How names of unfinished files begin.
const PARTIAL: &str = ".partial-";
/// How names of folders of unpacked images begin.
pub const STAGING: &str = ".publish-";

/// Deltas that were tried and not worth it, by program: for those who publish.
pub const TRIED: &str = ".tried";

/// A folder that holds releases.
#[derive(Clone, Debug)]
pub struct Repository {
    path: PathBuf,
}

/// A release that a folder holds.
#[derive(Clone, Debug)]
pub struct Held {
    /// Folder with its objects.
    pub folder: PathBuf,
    /// What announced it; not verified here.
    pub said: Announcement,
    /// Its manifest, which has the announced id.
    pub manifest: Manifest,
}

impl Repository {
    /// The repository at `path`, which may not exist yet.
    ///
    /// # Errors
    /// If something else is there.
    pub fn at(path: &Path) -> Result<Self> {
        if path.join(names::ANNOUNCE).exists() {
            bail!(
                "{0} is a release, not a repository: name a folder that `farhold publish` made, or a new one",
                path.display()
            );
        }
        if path.exists() && !path.is_dir() {
            bail!("{} is no folder: name a repository or a new folder", path.display());
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Makes the folder, keeps others from publishing to it until the answer is dropped, and removes what an interrupted
    /// publication left behind.
    ///
    /// # Errors
    /// If another publication is going on, or the folder cannot be made or cleaned.
    pub fn lock(&self) -> Result<File> {
        let place = self.path.display();
        fs::create_dir_all(&self.path).with_context(|| format!("make folder {place}"))?;
        let folder = File::open(&self.path).with_context(|| format!("open {place}"))?;
        match folder.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another publication to {place} is going on: try again when it has ended")
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("lock {place}")),
        }
        let folders = ["", names::OBJECTS, names::ANNOUNCEMENTS, names::RELEASES];
        for folder in folders.map(|name| self.file(name)).into_iter().filter(|folder| folder.exists()) {
            clean(&folder).with_context(|| format!("clean {}", folder.display()))?;
        }
        Ok(folder)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a name lies.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The chain of root documents, if there is one.
    ///
    /// # Errors
    /// If it cannot be read or is none.
    pub fn chain(&self) -> Result<Option<Chain>> {
        let path = self.file(ROOTS);
        if path.exists() { Ok(Some(read_chain(&path)?.1)) } else { Ok(None) }
    }

    /// What is announced under a name, if anything is.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn announced(&self, name: &str) -> Result<Option<Announcement>> {
        let path = self.file(name);
        if path.exists() { read_frame(&path).map(Some) } else { Ok(None) }
    }

    /// A catalogue as it lies there, if it does.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn catalogue(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.file(name);
        if path.exists() { read_limited(&path, MAX_CATALOGUE_BYTES as u64).map(Some) } else { Ok(None) }
    }

    /// All releases for a target, newest first.
    ///
    /// # Errors
    /// If one cannot be read.
    pub fn releases(&self, target: &[u8; 8]) -> Result<Vec<Held>> {
        let folder = self.file(names::RELEASES);
        if !folder.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            // Left behind by an interrupted write.
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
                continue;
            }
            let said = read_frame(&path)?;
            if said.target == *target {
                found.push(Held::open(&self.path, said)?);
            }
        }
        found.sort_by_key(|held| std::cmp::Reverse(Rank::of(&held.said)));
        Ok(found)
    }

    /// Bytes that a delta took which was tried by this program and was not worth it.
    ///
    /// # Errors
    /// If the note cannot be read.
    pub fn tried(&self, old: &Digest, new: &Digest) -> Result<Option<u64>> {
        let path = self.file(&tried_name(old, new)?);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().parse().ok())
    }

    /// Remembers it, so that the next publication need not try again.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn remember_tried(&self, old: &Digest, new: &Digest, bytes: u64) -> Result<()> {
        self.put(&tried_name(old, new)?, format!("{bytes}\n").as_bytes())
    }

    /// Takes an object and its lists over from another folder; the caller has verified them there.
    ///
    /// # Errors
    /// If they cannot be read or written.
    pub fn take(&self, from: &Path, id: &Digest) -> Result<bool> {
        let mut new = false;
        for name in [names::object(id), names::lists(id)] {
            let (source, place) = (from.join(&name), self.file(&name));
            if source.exists() && !place.exists() {
                let mut file = folder::open(&source)?;
                self.put_with(&name, |out| io::copy(&mut file, out).map(drop))?;
                new = true;
            }
        }
        Ok(new)
    }

    /// Puts an object with its lists.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put_object(&self, bytes: &[u8], object: &object::Object) -> Result<()> {
        if object.geometry.blocks() > 1 {
            self.put(&names::lists(&object.id), &object.lists)?;
        }
        self.put(&names::object(&object.id), bytes)
    }

    /// Writes a file, synced, by temporary file and rename.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn put(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put_with(name, |out| out.write_all(bytes))
    }

    fn put_with(&self, name: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let path = self.file(name);
        let folder = parent(&path);
        let write = || -> io::Result<()> {
            fs::create_dir_all(&folder)?;
            let mut file = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(&folder)?;
            fill(file.as_file_mut())?;
            file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            File::open(&folder)?.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

impl Held {
    /// The release that `said` announces, with its manifest from `folder`.
    ///
    /// # Errors
    /// If the manifest is not there or is another one.
    pub fn open(folder: &Path, said: Announcement) -> Result<Self> {
        let path = folder.join(names::object(&said.manifest));
        let bytes = read_limited(&path, said.manifest_bytes.into())?;
        if object::of(&bytes, MANIFEST_BLOCK)?.id != said.manifest {
            bail!("{} is not the manifest that its name says: publish that release again", path.display());
        }
        let manifest = Manifest::parse(&bytes).with_context(|| format!("read {}", path.display()))?;
        Ok(Self { folder: folder.to_owned(), said, manifest })
    }

    /// The release in a release folder.
    ///
    /// # Errors
    /// If there is none.
    pub fn in_release(folder: &Path) -> Result<Self> {
        let path = folder.join(names::ANNOUNCE);
        if !path.exists() {
            bail!("{} is no release: name the folder `release` of a build", folder.display());
        }
        Self::open(folder, read_frame(&path)?)
    }
}

/// Another program may make smaller deltas, so its digest is in the name.
fn tried_name(old: &Digest, new: &Digest) -> Result<String> {
    static PROGRAM: OnceLock<Digest> = OnceLock::new();
    let program = match PROGRAM.get() {
        Some(program) => program,
        None => {
            let bytes = fs::read("/proc/self/exe").context("read this program")?;
            PROGRAM.get_or_init(|| Digest(Sha256::digest(&bytes).into()))
        }
    };
    Ok(format!("{TRIED}/{}/{}-{}", program.short(), new.short(), old.short()))
}

/// Removes unfinished files, and folders of unpacked images.
fn clean(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with(PARTIAL) {
            fs::remove_file(path)?;
        } else if name.starts_with(STAGING) {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn read_frame(path: &Path) -> Result<Announcement> {
    let bytes = read_limited(path, MAX_FRAME_BYTES as u64)?;
    let frame = Frame::parse(&bytes).with_context(|| format!("read announcement {}", path.display()))?;
    Ok(frame.unverified().clone())
}
