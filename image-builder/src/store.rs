//! The cache: files named by their SHA-256, and folders derived from them, named by what they were derived from.
//!
//! Everything appears under its final name by a rename of finished, synced bytes, so a killed build leaves no half
//! file and two builds may share a cache. Knows nothing of what the files mean.

pub mod trim;

use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::{NamedTempFile, TempDir};

/// Scratch files older than this are left-overs of killed builds: no step of a build takes that long.
const SCRATCH_AGE: Duration = Duration::from_secs(24 * 3600);

/// A cache folder.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens or makes the cache at `root` and removes left-overs of builds that were killed long ago.
    ///
    /// # Errors
    /// If the folder cannot be made or written.
    pub fn open(root: &Path) -> Result<Self> {
        for folder in ["objects", "derived", "partial", "scratch"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).with_context(|| format!("make cache folder {}", path.display()))?;
        }
        // An absolute root: scratch paths are handed to programs that change their folder.
        let root = root.canonicalize().with_context(|| format!("open cache {}", root.display()))?;
        let store = Self { root };
        store.sweep()?;
        Ok(store)
    }

    /// Opens the cache that the environment names: `FARHOLD_CACHE`, `XDG_CACHE_HOME/farhold` or `~/.cache/farhold`.
    ///
    /// # Errors
    /// If none of them is set, or as [`Store::open`].
    pub fn from_environment() -> Result<Self> {
        let set = |name: &str| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let root = set("FARHOLD_CACHE")
            .map(PathBuf::from)
            .or_else(|| set("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("farhold")))
            .or_else(|| set("HOME").map(|dir| Path::new(&dir).join(".cache/farhold")))
            .ok_or_else(|| anyhow!("no cache folder: set FARHOLD_CACHE to a folder with some GB of room"))?;
        Self::open(&root)
    }

    /// The cache folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the object `digest` stands, whether it is there or not.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("objects").join(&name[..2]).join(name)
    }

    /// Where the object `digest` stands, if it is there.
    pub fn get(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.object_path(digest)).filter(|path| path.is_file())
    }

    /// Where a download of `digest` keeps what it has so far.
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("partial").join(digest.to_string())
    }

    /// A new object; it appears when [`ObjectWriter::finish`] has checked it.
    ///
    /// # Errors
    /// If the scratch file cannot be made.
    pub fn writer(&self) -> Result<ObjectWriter<'_>> {
        let file = NamedTempFile::new_in(self.root.join("scratch"))
            .with_context(|| format!("make a file in cache {}", self.root.display()))?;
        Ok(ObjectWriter { store: self, file, hasher: Sha256::new(), size: 0 })
    }

    /// Stores bytes and returns their name.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<Digest> {
        let mut writer = self.writer()?;
        writer.write_all(bytes).with_context(|| self.full())?;
        writer.finish(None)
    }

    /// Copies a file into the store and returns its name and length.
    ///
    /// # Errors
    /// If it cannot be read or stored.
    pub fn put_file(&self, path: &Path) -> Result<(Digest, u64)> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut writer = self.writer()?;
        let size = io::copy(&mut file, &mut writer).with_context(|| format!("copy {}", path.display()))?;
        Ok((writer.finish(None)?, size))
    }

    /// Adopts a finished download: checks the whole file against `digest`, syncs and renames it. A file that does
    /// not match is removed, and the digest found is the error.
    ///
    /// # Errors
    /// Outer: reading or renaming failed. Inner: the digest that was found instead.
    pub fn adopt(&self, mut file: File, path: &Path, digest: &Digest) -> Result<Result<PathBuf, Digest>> {
        file.rewind().with_context(|| format!("read {}", path.display()))?;
        let found = hash_reader(&mut file).with_context(|| format!("read {}", path.display()))?.0;
        if found != *digest {
            fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            return Ok(Err(found));
        }
        file.sync_all().with_context(|| self.full())?;
        let target = self.object_path(digest);
        place(path, &target).with_context(|| self.full())?;
        Ok(Ok(target))
    }

    /// The derived folder `kind`/`key`, made by `make` in a scratch folder if it is not there yet.
    ///
    /// # Errors
    /// As `make`, or if the folder cannot be synced and renamed.
    pub fn derive(
        &self,
        kind: &str,
        key: &Digest,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let parent = self.root.join("derived").join(kind);
        let target = parent.join(key.to_string());
        if target.is_dir() {
            self.used(&target);
            return Ok(target);
        }
        fs::create_dir_all(&parent).with_context(|| self.full())?;
        let scratch = self.scratch()?;
        make(scratch.path()).map_err(|error| self.explain(error))?;
        sync_tree(scratch.path()).with_context(|| self.full())?;
        match fs::rename(scratch.path(), &target) {
            Ok(()) => {
                let _moved: PathBuf = scratch.keep();
                File::open(&parent).and_then(|dir| dir.sync_all()).with_context(|| self.full())?;
            }
            // Another build was faster: its folder has the same contents.
            Err(_) if target.is_dir() => {}
            Err(error) => return Err(error).with_context(|| format!("rename to {}", target.display())),
        }
        Ok(target)
    }

    /// The derived folder `kind`/`key`, if it is there.
    pub fn derived(&self, kind: &str, key: &Digest) -> Option<PathBuf> {
        Some(self.root.join("derived").join(kind).join(key.to_string())).filter(|path| path.is_dir())
    }

    /// Writes a small file that may be replaced later, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = NamedTempFile::new_in(self.root.join("scratch")).with_context(|| self.full())?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).with_context(|| self.full())?;
        file.persist(path).map(drop).with_context(|| self.full())
    }

    /// A scratch folder on the cache's file system, removed when dropped.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scratch(&self) -> Result<TempDir> {
        TempDir::new_in(self.root.join("scratch")).with_context(|| self.full())
    }

    /// What a write error in the cache is about, and what helps.
    pub fn full(&self) -> String {
        format!(
            "write to cache {} (make room there, or set FARHOLD_CACHE to another folder)",
            self.root.display()
        )
    }

    /// Adds what helps to an error that comes from a full disk.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let full = io::ErrorKind::StorageFull;
        let is_full = error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == full));
        let said = error.chain().any(|e| e.to_string() == self.full());
        if is_full && !said { error.context(self.full()) } else { error }
    }

    fn sweep(&self) -> Result<()> {
        let scratch = self.root.join("scratch");
        for entry in fs::read_dir(&scratch).with_context(|| format!("read {}", scratch.display()))? {
            let entry = entry.with_context(|| format!("read {}", scratch.display()))?;
            // An entry that is gone by now was another build's.
            let Ok(meta) = entry.metadata() else { continue };
            let old =
                meta.modified().ok().and_then(|t| t.elapsed().ok()).is_some_and(|age| age > SCRATCH_AGE);
            if !old {
                continue;
            }
            let path = entry.path();
            let removed = if meta.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove left-over {}", path.display()));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// A file on its way into the store.
pub struct ObjectWriter<'a> {
    store: &'a Store,
    file: NamedTempFile,
    hasher: Sha256,
    size: u64,
}

impl ObjectWriter<'_> {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Syncs the bytes and gives them their name; with `expected`, only if they are what was expected.
    ///
    /// # Errors
    /// If they cannot be written, or the digest differs.
    pub fn finish(mut self, expected: Option<&Digest>) -> Result<Digest> {
        let digest = Digest(self.hasher.finalize().into());
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            bail!("SHA-256 is {digest}, must be {expected}");
        }
        let target = self.store.object_path(&digest);
        if !target.is_file() {
            self.file
                .flush()
                .and_then(|()| self.file.as_file().sync_all())
                .with_context(|| self.store.full())?;
            let path = self.file.into_temp_path();
            place(&path, &target).with_context(|| self.store.full())?;
        }
        Ok(digest)
    }
}

impl Write for ObjectWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// SHA-256 and length of what a reader gives.
///
/// # Errors
/// As the reader.
pub fn hash_reader(reader: &mut impl Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 128 << 10];
    let mut size = 0;
    loop {
        let n = reader.read(&mut buffer)?;
        if n == 0 {
            return Ok((Digest(hasher.finalize().into()), size));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Renames synced bytes to their final name, readable by everybody, and syncs the folder.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let parent = to.parent().ok_or_else(|| io::Error::other("object path without a folder"))?;
    fs::create_dir_all(parent)?;
    fs::set_permissions(from, fs::Permissions::from_mode(0o444))?;
    fs::rename(from, to)?;
    File::open(parent)?.sync_all()
}

fn sync_tree(root: &Path) -> io::Result<()> {
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(root)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (TempDir, Store) {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn stores_under_the_digest_and_refuses_another() {
        let (_dir, store) = store();
        let digest = store.put_bytes(b"abc").unwrap();
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(fs::read(store.get(&digest).unwrap()).unwrap(), b"abc");

        let mut writer = store.writer().unwrap();
        writer.write_all(b"abd").unwrap();
        let error = writer.finish(Some(&digest)).unwrap_err().to_string();
        assert!(error.contains("must be ba7816bf"), "{error}");
        assert_eq!(fs::read_dir(store.root().join("scratch")).unwrap().count(), 0, "scratch is left");
    }

    #[test]
    fn a_failed_or_killed_derivation_leaves_nothing_under_the_final_name() {
        let (_dir, store) = store();
        let key = Digest([1; 32]);
        let failed = store.derive("k", &key, |dir| {
            fs::write(dir.join("half"), b"x")?;
            bail!("killed")
        });
        assert!(failed.is_err());
        assert_eq!(store.derived("k", &key), None);
        let made = store.derive("k", &key, |dir| Ok(fs::write(dir.join("whole"), b"x")?)).unwrap();
        assert!(made.join("whole").is_file());
        let again = store.derive("k", &key, |_| bail!("must not run again")).unwrap();
        assert_eq!(again, made);
    }

    #[test]
    fn a_full_disk_says_what_helps() {
        let (_dir, store) = store();
        let error = store.derive("k", &Digest([3; 32]), |_| {
            Err(io::Error::from(io::ErrorKind::StorageFull)).context("unpack x")
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(
            error.contains("make room there, or set FARHOLD_CACHE") && error.contains("unpack x"),
            "{error}"
        );
        let other = store.derive("k", &Digest([3; 32]), |_| bail!("unpack x"));
        assert_eq!(other.unwrap_err().to_string(), "unpack x");
    }

    #[test]
    fn two_builds_deriving_the_same_folder_both_get_it() {
        let (_dir, store) = store();
        let key = Digest([2; 32]);
        let paths: Vec<PathBuf> = std::thread::scope(|scope| {
            let run = || store.derive("k", &key, |dir| Ok(fs::write(dir.join("f"), b"same")?)).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(paths.iter().all(|p| fs::read(p.join("f")).unwrap() == b"same"));
    }

    #[test]
    fn adopts_only_what_matches() {
        let (_dir, store) = store();
        let wanted = Digest(Sha256::digest(b"abc").into());
        let path = store.partial_path(&wanted);
        fs::write(&path, b"ab").unwrap();
        let found = store.adopt(File::open(&path).unwrap(), &path, &wanted).unwrap();
        assert_eq!(found, Err(Digest(Sha256::digest(b"ab").into())));
        assert!(!path.exists() && store.get(&wanted).is_none());
    }
}
