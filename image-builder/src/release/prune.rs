//! Takes old releases out of a repository: their announcements in the list of releases, their catalogues, and the objects
//! that nothing else needs. Deleting needs proof: if one release or catalogue cannot be read, nothing is deleted.

use super::repository::{Held, Repository, TRIED};
use anyhow::{Context, Result};
use formats::catalogue::Catalogue;
use formats::frame::{Announcement, Frame, MAX_FRAME_BYTES};
use formats::hex::Digest;
use formats::manifest::Entry;
use formats::repository as names;
use formats::roles::Root;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What was taken out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Releases.
    pub releases: usize,
    /// Files of objects and lists.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Keeps the newest `keep` releases of each target, and whatever is announced; `root` is the document in force.
///
/// # Errors
/// If something cannot be read, before anything is deleted, or if a file cannot be deleted.
pub fn prune(repository: &Repository, keep: usize, root: &Root) -> Result<Pruned> {
    let announced: BTreeSet<Digest> =
        frames(&repository.file(names::ANNOUNCEMENTS))?.iter().map(|said| said.manifest).collect();
    let targets: BTreeSet<[u8; 8]> =
        frames(&repository.file(names::RELEASES))?.iter().map(|said| said.target).collect();
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for target in &targets {
        for (age, held) in repository.releases(target)?.into_iter().enumerate() {
            let keeps = age < keep.max(1) || announced.contains(&held.said.manifest);
            if keeps { kept.push(held) } else { dropped.push(held) }
        }
    }
    let mut needed = BTreeSet::new();
    for held in &kept {
        needs(repository, held, root, &mut needed)?;
    }
    let mut pruned = Pruned { releases: dropped.len(), ..Pruned::default() };
    let unneeded: Vec<(PathBuf, u64)> = objects(repository)?
        .into_iter()
        .filter(|(id, _)| !needed.contains(id))
        .flat_map(|(_, files)| files)
        .collect();
    for held in &dropped {
        let catalogues = repository.file(names::CATALOGUES).join(held.said.manifest.to_string());
        if catalogues.exists() {
            fs::remove_dir_all(&catalogues).with_context(|| format!("remove {}", catalogues.display()))?;
        }
        let path = repository.file(&names::release(&held.said.manifest));
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    let tried = repository.file(TRIED);
    if tried.exists() {
        fs::remove_dir_all(&tried).with_context(|| format!("remove {}", tried.display()))?;
    }
    for (path, bytes) in unneeded {
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        (pruned.files, pruned.bytes) = (pruned.files + 1, pruned.bytes + bytes);
    }
    Ok(pruned)
}

/// All announcements in a folder.
fn frames(folder: &Path) -> Result<Vec<Announcement>> {
    let mut found = Vec::new();
    for path in files(folder)? {
        let bytes = super::folder::read_limited(&path, MAX_FRAME_BYTES as u64)?;
        let frame = Frame::parse(&bytes).with_context(|| format!("read announcement {}", path.display()))?;
        found.push(frame.unverified().clone());
    }
    Ok(found)
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
            found.push(entry.with_context(|| format!("read {}", folder.display()))?.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Adds the objects that a release leads to: manifest, targets, payloads, and those of its catalogues.
fn needs(repository: &Repository, held: &Held, root: &Root, needed: &mut BTreeSet<Digest>) -> Result<()> {
    let (id, manifest) = (held.said.manifest, &held.manifest);
    needed.insert(id);
    needed.extend(manifest.targets.iter().filter_map(Entry::known).map(|target| target.object.id));
    needed.extend(manifest.payloads.iter().filter_map(Entry::known).map(|payload| payload.object.id));
    for path in files(&repository.file(names::CATALOGUES).join(id.to_string()))? {
        let bytes = super::folder::read_limited(&path, formats::catalogue::MAX_CATALOGUE_BYTES as u64)?;
        // A catalogue of a replaced root leads nowhere: no device takes it.
        if held.said.root_version == root.version {
            let catalogue = Catalogue::open(&bytes, root, &id, manifest)
                .with_context(|| format!("read {}: publish that release again", path.display()))?;
            needed
                .extend(catalogue.payloads.iter().filter_map(Entry::known).map(|payload| payload.object.id));
        }
    }
    Ok(())
}

/// The files of each object that the repository holds, with their lengths.
fn objects(repository: &Repository) -> Result<BTreeMap<Digest, Vec<(PathBuf, u64)>>> {
    let mut found: BTreeMap<Digest, Vec<(PathBuf, u64)>> = BTreeMap::new();
    for path in files(&repository.file(names::OBJECTS))? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // What is not named by a digest is none of ours.
        if let Some(id) = Digest::parse(name.strip_suffix(".lists").unwrap_or(&name)) {
            let bytes = path.metadata().with_context(|| format!("read {}", path.display()))?.len();
            found.entry(id).or_default().push((path, bytes));
        }
    }
    Ok(found)
}
