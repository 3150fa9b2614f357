//! Outputs of old builds leave the cache: it keeps the latest, up to a number of bytes.

use super::Store;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes of outputs that stay: some twenty builds of a small image.
pub const KEPT_BYTES: u64 = 4 << 30;
/// What was used within this time stays whatever it takes: another build may be reading it.
const IN_USE: Duration = Duration::from_secs(3600);

struct Output {
    used: SystemTime,
    path: PathBuf,
    bytes: u64,
}

impl Store {
    /// Notes that a derived folder is of use now. A cache that cannot be written keeps its old times.
    pub fn used(&self, path: &Path) {
        drop(File::open(path).and_then(|folder| folder.set_modified(SystemTime::now())));
    }

    /// Removes derived folders of `kinds`, those first that were not used for longest, until they take at most `most`
    /// bytes. Gives the bytes that were removed.
    ///
    /// # Errors
    /// If the cache cannot be read or a folder cannot be removed.
    pub fn trim(&self, kinds: &[&str], most: u64, now: SystemTime) -> Result<u64> {
        let mut outputs = Vec::new();
        for kind in kinds {
            let parent = self.root().join("derived").join(kind);
            let names = |path: &Path| fs::read_dir(path).with_context(|| format!("read {}", path.display()));
            if !parent.is_dir() {
                continue;
            }
            for entry in names(&parent)? {
                let path = entry.with_context(|| format!("read {}", parent.display()))?.path();
                // What is gone by now was removed by another build.
                let Ok(used) = fs::metadata(&path).and_then(|meta| meta.modified()) else { continue };
                outputs.push(Output { used, bytes: size(&path), path });
            }
        }
        outputs.sort_by_key(|output| output.used);
        let mut all: u64 = outputs.iter().map(|output| output.bytes).sum();
        let before = all;
        for Output { used, path, bytes } in outputs {
            let idle = now.duration_since(used).unwrap_or_default();
            if all <= most || idle < IN_USE {
                break;
            }
            self.discard(&path)?;
            all -= bytes;
        }
        Ok(before - all)
    }

    /// Takes a derived folder away under its name at once, and then its files.
    fn discard(&self, path: &Path) -> Result<()> {
        let grave = self.scratch()?;
        match fs::rename(path, grave.path().join("old")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {} from the cache", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Bytes of the files in a folder and below.
fn size(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::hex::Digest;
    use sha2::{Digest as _, Sha256};

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let now = SystemTime::now();
        let made: Vec<PathBuf> = [5u64, 1, 3, 0]
            .iter()
            .zip(["a", "b", "c", "d"])
            .map(|(hours, name)| {
                let write = |folder: &Path| Ok(fs::write(folder.join("data"), [0; 1000])?);
                let path = store.derive("root", &Digest(Sha256::digest(name).into()), write).unwrap();
                let used = now - Duration::from_secs(hours * 3600 + 60);
                File::open(&path).unwrap().set_modified(used).unwrap();
                path
            })
            .collect();
        let here = || made.iter().map(|path| path.exists()).collect::<Vec<_>>();

        assert_eq!(store.trim(&["root", "uki"], 4000, now).unwrap(), 0);
        assert_eq!(store.trim(&["uki"], 0, now).unwrap(), 0);
        assert_eq!(store.trim(&["root"], 3500, now).unwrap(), 1000);
        assert_eq!(here(), [false, true, true, true]);
        store.used(&made[2]);
        assert_eq!(store.trim(&["root"], 0, now).unwrap(), 1000, "only `b` is not in use");
        assert_eq!(here(), [false, false, true, true]);
    }
}
