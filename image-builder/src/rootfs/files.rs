//! Puts files and artefacts of packs into a tree.
//!
//! A pack's file takes the place of a package's only below `/etc`, which is there to be configured; anywhere else two
//! owners of one path are an error.

use super::steps::octal;
use crate::lock::LockedArch;
use crate::program::{self, Glibc, Program};
use crate::resolved::{FileContent, ImageFile, Install, Resolved};
use crate::store::Store;
use crate::tree::{Data, Entry, Node, Tree};
use crate::unpack::{self, ItemNode};
use anyhow::{Context, Result, anyhow};
use formats::hex::Digest;
use std::sync::Arc;

/// Puts the artefacts into the tree that belong there.
///
/// # Errors
/// If one is not in the lock or the cache, is a broken archive, or its path has an owner.
pub fn artefacts(tree: &mut Tree, resolved: &Resolved, locked: &LockedArch, store: &Store) -> Result<()> {
    for artefact in &resolved.artefacts {
        let what = || format!("install artefact {} (from {})", artefact.name, artefact.origin);
        let pinned = locked.artefacts.get(&artefact.name);
        let pinned =
            pinned.ok_or_else(|| anyhow!("the lock does not have it; lock again")).with_context(what)?;
        let digest =
            Digest::parse(&pinned.sha256).ok_or_else(|| anyhow!("malformed SHA-256")).with_context(what)?;
        let origin: Arc<str> = artefact.origin.as_str().into();
        match &artefact.install {
            // The one is in the initrd, the other is unpacked with the archive's packages.
            Install::Init | Install::Package => {}
            Install::File { path, mode } => {
                let object =
                    store.get(&digest).ok_or_else(|| anyhow!("not in the cache")).with_context(what)?;
                let mode = octal(mode).with_context(what)?;
                if mode & 0o111 != 0
                    && let Some(program) = Program::open(&object).with_context(what)?
                {
                    program.check(resolved.arch(), library(locked)).with_context(what)?;
                }
                let data = Data::Range { path: object.into(), offset: 0, len: pinned.size };
                tree.add(path, Entry::new(Node::File(data), mode, &origin)).with_context(what)?;
            }
            Install::Tar { path } => {
                let name = pinned.url.as_deref().map_or(artefact.name.as_str(), crate::tree::name);
                let unpacked = unpack::archive(store, &digest, name).with_context(what)?;
                for item in unpacked.index.items {
                    let node = match item.node {
                        ItemNode::Dir => Node::Dir,
                        ItemNode::Symlink(target) => Node::Symlink(target),
                        ItemNode::File(offset, len) => {
                            Node::File(Data::Range { path: unpacked.contents.clone(), offset, len })
                        }
                    };
                    // Archives carry the ids of whoever packed them; in the image they belong to root.
                    let entry = Entry::new(node, item.mode & 0o755, &origin);
                    tree.add(&format!("{path}{}", item.path), entry).with_context(what)?;
                }
            }
        }
    }
    Ok(())
}

/// The C library of the image.
fn library(locked: &LockedArch) -> Option<Glibc> {
    program::glibc(&locked.packages.iter().find(|package| package.name == "libc6")?.version)
}

/// Puts rendered files into the tree, in layer order.
///
/// # Errors
/// If a source cannot be read or a path has an owner.
pub fn files(tree: &mut Tree, resolved: &Resolved) -> Result<()> {
    for file in &resolved.files {
        let what = || format!("install {} (from {})", file.path, file.origin);
        let entry = entry(file).with_context(what)?;
        if file.path.starts_with("/etc/") {
            tree.replace(&file.path, entry).with_context(what)?;
        } else {
            tree.add(&file.path, entry).with_context(what)?;
        }
    }
    Ok(())
}

fn entry(file: &ImageFile) -> Result<Entry> {
    let node = match &file.content {
        FileContent::Text { text } => Node::File(Data::Bytes(text.as_bytes().into())),
        FileContent::Copy { from } => {
            let meta = std::fs::metadata(from).with_context(|| format!("read {}", from.display()))?;
            Node::File(Data::Range { path: Arc::from(from.as_path()), offset: 0, len: meta.len() })
        }
        FileContent::Symlink { target } => Node::Symlink(target.clone()),
        FileContent::Directory => Node::Dir,
    };
    Ok(Entry {
        node,
        mode: file.mode & 0o7777,
        user: file.owner.0.as_str().into(),
        group: file.owner.1.as_str().into(),
        origin: file.origin.as_str().into(),
    })
}
