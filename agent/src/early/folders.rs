//! Folders that the image's `/var` has and the state partition's does not yet: packages expect those they ship.
//!
//! Only folders: files below `/var` belong to the device, not to the image.

use anyhow::{Context, Result};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Most folders that are taken over; an image has about a hundred.
const FOLDERS_MAX: usize = 4096;

/// One folder of the image.
#[derive(Debug, PartialEq, Eq)]
pub struct Folder {
    path: PathBuf,
    mode: u32,
    owner: (u32, u32),
}

/// Lists the folders below `root`, parents first, as paths relative to it. Links are not followed.
///
/// # Errors
/// The file system's.
pub fn list(root: &Path) -> Result<Vec<Folder>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(folder) = open.pop() {
        let here = root.join(&folder);
        for entry in fs::read_dir(&here).with_context(|| format!("list {}", here.display()))? {
            let entry = entry.with_context(|| format!("list {}", here.display()))?;
            let meta = entry.metadata().with_context(|| format!("look at {}", entry.path().display()))?;
            if meta.is_dir() && found.len() < FOLDERS_MAX {
                let path = folder.join(entry.file_name());
                open.push(path.clone());
                found.push(Folder { path, mode: meta.mode() & 0o7777, owner: (meta.uid(), meta.gid()) });
            }
        }
    }
    Ok(found)
}

/// Makes those that are missing below `root`. Existing ones keep their mode and owner.
///
/// # Errors
/// The file system's, for the first that cannot be made.
pub fn make(root: &Path, folders: &[Folder]) -> Result<()> {
    for folder in folders {
        let path = root.join(&folder.path);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        let make = || {
            DirBuilder::new().mode(0o700).create(&path)?;
            std::os::unix::fs::chown(&path, Some(folder.owner.0), Some(folder.owner.1))?;
            fs::set_permissions(&path, Permissions::from_mode(folder.mode))
        };
        make().with_context(|| format!("make folder {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_folders_are_made_and_existing_ones_kept() {
        let (image, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(image.path().join("lib/private")).unwrap();
        fs::create_dir(image.path().join("tmp")).unwrap();
        fs::set_permissions(image.path().join("lib/private"), Permissions::from_mode(0o700)).unwrap();
        fs::set_permissions(image.path().join("tmp"), Permissions::from_mode(0o1777)).unwrap();
        fs::write(image.path().join("lib/file"), "").unwrap();
        std::os::unix::fs::symlink("/run", image.path().join("run")).unwrap();
        fs::create_dir(state.path().join("lib")).unwrap();
        fs::set_permissions(state.path().join("lib"), Permissions::from_mode(0o711)).unwrap();

        make(state.path(), &list(image.path()).unwrap()).unwrap();
        let mode = |path: &str| fs::metadata(state.path().join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("lib"), mode("lib/private"), mode("tmp")), (0o711, 0o700, 0o1777));
        assert!(!state.path().join("run").exists() && !state.path().join("lib/file").exists());
    }
}
