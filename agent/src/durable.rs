//! Files that are whole or absent whatever happens: temporary name, flush, rename, flush of the folder.

use anyhow::{Context, Result};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Writes a file with permission bits `mode`, durably; an existing one is replaced at once.
///
/// # Errors
/// The file system's; the old file, if any, then still stands.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = path.parent().with_context(|| format!("write {}: it has no folder", path.display()))?;
    put(path, bytes, mode, File::sync_all)?;
    sync_folder(folder)
}

/// Writes a file with permission bits `mode` without a flush: whoever reads it now finds the old one or the new one, whole. For
/// files that are written anew before anybody reads them after a power cut.
///
/// # Errors
/// The file system's; the old file, if any, then still stands.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, mode, |_| Ok(()))
}

fn put(path: &Path, bytes: &[u8], mode: u32, flush: fn(&File) -> std::io::Result<()>) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    let written = write_new(temporary, bytes, mode, flush).and_then(|()| fs::rename(temporary, path));
    if written.is_err() && temporary.exists() {
        fs::remove_file(temporary).with_context(|| format!("remove {}", temporary.display()))?;
    }
    written.with_context(|| format!("write {}", path.display()))
}

fn write_new(
    path: &Path,
    bytes: &[u8],
    mode: u32,
    flush: fn(&File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(bytes)?;
    flush(&file)
}

/// Flushes a folder, so that names made or renamed in it survive.
///
/// # Errors
/// The file system's.
pub fn sync_folder(folder: &Path) -> Result<()> {
    // A file that is named without a folder is in this one.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("flush folder {}", folder.display()))
}

/// Makes a folder and its parents with permission bits `mode`.
///
/// # Errors
/// The file system's.
pub fn make_folder(folder: &Path, mode: u32) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(folder);
    made.with_context(|| format!("make folder {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_name_without_a_folder_is_in_this_one() {
        assert_eq!(Path::new("x").parent(), Some(Path::new("")));
        sync_folder(Path::new("")).unwrap();
    }

    #[test]
    fn replaces_at_once_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("machine-id");
        write(&path, b"old", 0o444).unwrap();
        replace(&path, b"new", 0o444).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_names_the_file() {
        let error = write(Path::new("/proc/self/nowhere/x"), b"", 0o600).unwrap_err();
        assert!(format!("{error:#}").starts_with("write /proc/self/nowhere/x: "), "{error:#}");
    }
}
