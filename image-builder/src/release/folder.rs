//! A release folder: `announce` (the frame), `roots` (the chain), `objects/<id>` and `objects/<id>.lists` (hash lists of
//! objects with more than one block). Names, and reading within limits; nothing is verified here.

use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::hex::Digest;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The announcement frame.
pub const ANNOUNCE: &str = "announce";
/// Folder of objects.
pub const OBJECTS: &str = "objects";

/// Path of an object's bytes.
pub fn object(folder: &Path, id: &Digest) -> PathBuf {
    folder.join(OBJECTS).join(id.to_string())
}

/// Path of an object's hash lists.
pub fn lists(folder: &Path, id: &Digest) -> PathBuf {
    folder.join(OBJECTS).join(format!("{id}.lists"))
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// If it cannot be read or is longer.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("read {}", path.display()))?;
    if bytes.len() as u64 > limit {
        bail!("{} has more than {limit} bytes, the most that such a file may have", path.display());
    }
    Ok(bytes)
}

/// Makes sure that a release lies in `folder`.
///
/// # Errors
/// If none does.
pub fn expect_release(folder: &Path) -> Result<()> {
    let found = folder.join(ANNOUNCE).is_file();
    let folder = folder.display();
    ensure!(found, "{folder} holds no release: give the folder `release` that `farhold build` wrote");
    Ok(())
}

/// Opens a file for reading.
///
/// # Errors
/// If it is absent or no regular file.
pub fn open(path: &Path) -> Result<File> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let kind = file.metadata().with_context(|| format!("read {}", path.display()))?;
    if kind.is_file() { Ok(file) } else { Err(anyhow!("{} is no regular file", path.display())) }
}
