//! Makes an EROFS image of a tree: the tree as a tar stream into `mkfs.erofs`, uncompressed, with a fixed identity.
//!
//! Uncompressed, because deltas between releases are then several times smaller (design, section 4). Knows nothing of
//! slots or verity.

use crate::tools::{Tool, ToolsRoot};
use crate::tree::{Ids, Tree, archive};
use anyhow::{Context, Result};
use std::path::Path;

/// What makes two images of one tree the same.
#[derive(Clone, Debug)]
pub struct Identity {
    /// File system UUID, as text.
    pub uuid: String,
    /// Time of every file, seconds since 1970.
    pub epoch: u64,
}

/// Writes the image of `tree` to `target`, whose folder must be on a file system with room for it.
///
/// # Errors
/// If the tree cannot be written or mkfs.erofs fails; `target` may then hold a part, so it must be a scratch path.
pub fn make(tree: &Tree, ids: &Ids, identity: &Identity, tools: &ToolsRoot, target: &Path) -> Result<()> {
    let mut mkfs = tools.command(Tool::MkfsErofs);
    mkfs.arg("--quiet").arg("--tar=f").arg("-T").arg(identity.epoch.to_string());
    mkfs.arg("--all-time").arg("-U").arg(&identity.uuid);
    // 4096 on every host: the default follows the page size of the machine that builds.
    mkfs.arg("-b4096").arg(target);
    // mkfs.erofs keeps a scratch file in TMPDIR while it reads a stream.
    mkfs.env("TMPDIR", target.parent().unwrap_or(Path::new("/")));
    mkfs.run_with(|pipe| archive::write(tree, ids, identity.epoch, pipe))
        .with_context(|| format!("make EROFS image {}", target.display()))?;
    Ok(())
}

/// Checks an image and that every file in it can be read.
///
/// # Errors
/// What fsck.erofs says.
pub fn check(image: &Path, tools: &ToolsRoot) -> Result<()> {
    let checked = tools.command(Tool::FsckErofs).arg("--extract").arg(image).run();
    checked.with_context(|| format!("check EROFS image {}", image.display()))?;
    Ok(())
}
