//! Publishing: puts a verified release into a repository, and makes payloads for it that signing did not wait for: deltas
//! from the slot images and UKIs of earlier releases, a full payload packed harder. They are offered in catalogues; none
//! is that takes as many bytes as the release's own way. The announcement is written last, when all that it leads to is
//! there.

mod payloads;

use super::folder;
use super::keys::{KeyFolder, PrivateKey, ROOTS};
use super::number;
use super::prune::{Pruned, prune};
use super::repository::{Held, Repository};
use super::verify::{Viewpoint, verify};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use formats::catalogue::{Catalogue, ways};
use formats::frame::MAX_FRAME_BYTES;
use formats::hex::Digest;
use formats::manifest::{Entry, Manifest, Payload, PayloadKind, Target, TargetKind};
use formats::object::BlockSize;
use formats::repository as names;
use formats::roles::{Chain, Root};
use formats::trust::Rank;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What is to be published, where, and how much work may be done for it.
pub struct Publish<'a> {
    /// Release folder.
    pub release: &'a Path,
    /// Where it goes.
    pub repository: &'a Repository,
    /// Release folders to make deltas from, besides those of the repository.
    pub from: &'a [PathBuf],
    /// How many of the repository's earlier releases get deltas, newest first.
    pub bases: usize,
    /// Signs catalogues; without it there are none.
    pub key: Option<&'a PrivateKey>,
    /// Take all but this many releases of each target out afterwards; none: keep all.
    pub keep: Option<usize>,
    /// zstd level of a further full payload.
    pub level: Option<i32>,
    /// Whether an adaptive payload is offered, for devices that run what no delta starts from.
    pub adaptive: bool,
    /// Keys that may announce the release under another number than the one that it was built with.
    pub keys: Option<&'a KeyFolder>,
    /// That number; none: its own if it is free, else the next one.
    pub sequence: Option<u32>,
    /// Block size of what is made.
    pub block: BlockSize,
    /// Only say what would be done.
    pub plan: bool,
    /// Where progress is shown.
    pub progress: &'a Progress,
}

/// What was published, or would be.
#[derive(Debug, Serialize)]
pub struct Published {
    /// Product.
    pub product: String,
    /// Board.
    pub board: String,
    /// Version.
    pub version: String,
    /// Root version and sequence, as `1.42`.
    pub rank: String,
    /// Manifest.
    pub manifest: Digest,
    /// Name of the announcement in the repository.
    pub announcement: String,
    /// Whether this is only a plan.
    pub plan: bool,
    /// Objects that were not there before.
    pub new_objects: usize,
    /// Bytes that a device without any of the bases fetches for slot image and UKI.
    pub full_bytes: u64,
    /// Payloads made, by base.
    pub payloads: Vec<PayloadFacts>,
    /// What an operator should know.
    pub notes: Vec<String>,
}

/// A payload that was made for one target.
#[derive(Clone, Debug, Serialize)]
pub struct PayloadFacts {
    /// `slot image` or `UKI`.
    pub target: String,
    /// `delta`, `full` or `adaptive`.
    pub kind: &'static str,
    /// Version of the base; none for a full payload.
    pub from: Option<String>,
    /// Bytes that a device fetches, hash file included; none in a plan.
    pub bytes: Option<u64>,
    /// Bytes without it.
    pub own_bytes: u64,
    /// `published`, `kept` (was there), `not smaller`, or `planned`.
    pub outcome: &'static str,
}

/// Publishes a release.
///
/// # Errors
/// If a device would refuse the release, the repository announces a newer one or another one with the same number, the
/// key is not the catalogue key, or a file cannot be read or written. What the repository announced stays announced.
pub fn publish(input: &Publish<'_>) -> Result<Published> {
    folder::expect_release(input.release)?;
    let repository = input.repository;
    let mut lock = None;
    if !input.plan && repository.path().exists() {
        lock = Some(repository.lock()?);
    }
    let chain = merged_chain(repository, input.release)?;
    let root = chain.verify().context("verify the root documents of release and repository")?;
    if let Some(key) = input.key.map(PrivateKey::public).transpose()?.filter(|key| *key != root.catalogue) {
        bail!(
            "key {key} is not the catalogue key of root version {}, {}: it may not sign catalogues",
            root.version,
            root.catalogue
        );
    }
    let view = Viewpoint { root: Some(root.clone()), ..Viewpoint::default() };
    verify(input.release, &view, input.progress)
        .with_context(|| format!("release {} is not good", input.release.display()))?;
    // A new repository appears only for a good release.
    if !input.plan && lock.is_none() {
        lock = Some(repository.lock()?);
    }
    let mut held = Held::in_release(input.release)?;
    let name = names::announcement_of(&held.said);
    let renumbered = number::settle(input, &mut held, root)?;

    let earlier = earlier(input, &held)?;
    let mut work = Work::new(input, &held, root);
    work.notes.extend(renumbered.as_ref().map(|(note, _)| note.clone()));
    if !input.plan {
        work.take_objects()?;
        if repository.chain()?.as_ref() != Some(&chain) {
            repository.put(ROOTS, &chain.encode())?;
        }
    }
    work.catalogues(&earlier)?;
    if !input.plan {
        let frame = match renumbered {
            Some((_, frame)) => frame,
            None => folder::read_limited(&input.release.join(names::ANNOUNCE), MAX_FRAME_BYTES as u64)?,
        };
        repository.put(&names::release(&held.said.manifest), &frame)?;
        repository.put(&name, &frame)?;
        if let Some(keep) = input.keep {
            let Pruned { releases, files, bytes } = prune(repository, keep, root)?;
            work.notes.push(format!("{releases} old releases taken out: {files} files, {bytes} bytes"));
        }
    }
    let published = work.published(name);
    drop(lock);
    Ok(published)
}

/// The repository's chain with what the release's adds.
fn merged_chain(repository: &Repository, release: &Path) -> Result<Chain> {
    let (_, mut chain) = super::keys::read_chain(&release.join(ROOTS))?;
    if let Some(old) = repository.chain()? {
        let last = old.newest().version;
        let newer = chain.documents().iter().filter(|document| document.root.version > last);
        chain = Chain::new(old.documents().iter().chain(newer).cloned().collect())?;
    }
    Ok(chain)
}

pub(super) fn text(rank: Rank) -> String {
    format!("{}.{}", rank.root_version, rank.sequence)
}

/// The releases that deltas are made from: those named, then the newest of the repository; one per slot image.
fn earlier(input: &Publish<'_>, held: &Held) -> Result<Vec<Held>> {
    let mut found = Vec::new();
    for folder in input.from {
        let base = Held::in_release(folder)?;
        if base.said.target != held.said.target {
            let manifest = &base.manifest;
            bail!(
                "{} is a release for {} {} ({}), but this one is for {} {} ({}): no device could use that delta",
                folder.display(),
                manifest.product,
                manifest.board,
                manifest.arch,
                held.manifest.product,
                held.manifest.board,
                held.manifest.arch
            );
        }
        found.push(base);
    }
    let older = input.repository.releases(&held.said.target)?.into_iter();
    found.extend(older.filter(|base| base.said.manifest != held.said.manifest).take(input.bases));
    let mut seen: Vec<Digest> = Vec::new();
    found.retain(|base| {
        let Some((_, roothash, _)) = base.manifest.slot() else { return false };
        let new = !seen.contains(&roothash);
        seen.push(roothash);
        new
    });
    Ok(found)
}

/// A publication while it goes on.
struct Work<'a> {
    input: &'a Publish<'a>,
    held: &'a Held,
    root: &'a Root,
    /// Unpacked images; gone when this is dropped.
    staging: Option<tempfile::TempDir>,
    new_objects: usize,
    payloads: Vec<PayloadFacts>,
    notes: Vec<String>,
}

impl<'a> Work<'a> {
    fn new(input: &'a Publish<'a>, held: &'a Held, root: &'a Root) -> Self {
        Self { input, held, root, staging: None, new_objects: 0, payloads: Vec::new(), notes: Vec::new() }
    }

    fn published(self, announcement: String) -> Published {
        let manifest = &self.held.manifest;
        let targets = 0..manifest.targets.len() as u16;
        let own = |position| ways(manifest, None, position, &|_| false).first().map(|way| way.fetch_bytes);
        Published {
            product: manifest.product.clone(),
            board: manifest.board.clone(),
            version: manifest.version.clone(),
            rank: text(Rank::of(&self.held.said)),
            manifest: self.held.said.manifest,
            announcement,
            plan: self.input.plan,
            new_objects: self.new_objects,
            full_bytes: targets
                .filter(|position| delta_target(manifest, *position).is_some())
                .filter_map(own)
                .sum(),
            payloads: self.payloads,
            notes: self.notes,
        }
    }

    /// Copies manifest, targets, payloads and lists.
    fn take_objects(&mut self) -> Result<()> {
        let manifest = &self.held.manifest;
        let targets = manifest.targets.iter().filter_map(Entry::known).map(|target| target.object.id);
        let payloads = manifest.payloads.iter().filter_map(Entry::known).map(|payload| payload.object.id);
        let ids: Vec<Digest> = targets.chain(payloads).chain([self.held.said.manifest]).collect();
        let bar = self.input.progress.items("copy objects", ids.len() as u64);
        for id in ids {
            self.new_objects += usize::from(self.input.repository.take(&self.held.folder, &id)?);
            bar.add(1);
        }
        Ok(())
    }

    fn catalogues(&mut self, earlier: &[Held]) -> Result<()> {
        if self.input.key.is_none() {
            if !earlier.is_empty() || self.input.level.is_some() {
                self.notes.push(format!(
                    "no deltas: {} earlier releases could be bases, but catalogues need their key (--key)",
                    earlier.len()
                ));
            }
            return Ok(());
        }
        let kept = self.kept(None)?;
        let (adaptive, full): (Vec<Payload>, Vec<Payload>) =
            kept.into_iter().partition(|payload| payload.kind.is_adaptive());
        let full = self.smaller_full()?.or(full.into_iter().next());
        let adaptive = self.adaptive(adaptive.into_iter().next())?;
        let for_all: Vec<Payload> = full.into_iter().chain(adaptive).collect();
        for base in earlier {
            let Some((_, roothash, _)) = base.manifest.slot() else { continue };
            let mut payloads = self.deltas(base, roothash)?;
            payloads.extend(for_all.clone());
            self.put_catalogue(Some(&roothash), payloads)?;
        }
        self.put_catalogue(None, for_all)
    }

    fn put_catalogue(&self, base: Option<&Digest>, payloads: Vec<Payload>) -> Result<()> {
        let Some(key) = self.input.key.filter(|_| !self.input.plan && !payloads.is_empty()) else {
            return Ok(());
        };
        let manifest = self.held.said.manifest;
        let catalogue = Catalogue {
            root_version: self.root.version,
            manifest,
            payloads: payloads.into_iter().map(Entry::Known).collect(),
            ignored: Default::default(),
        };
        let bytes = catalogue.encode(&key.sign(&catalogue.signed_bytes()));
        Catalogue::open(&bytes, self.root, &manifest, &self.held.manifest)
            .context("check the new catalogue")?;
        self.input.repository.put(&names::catalogue(&manifest, base), &bytes)
    }
}

fn is_delta(payload: &Payload) -> bool {
    match payload.kind {
        PayloadKind::Delta { .. } => true,
        PayloadKind::Full { .. } | PayloadKind::Adaptive { .. } => false,
    }
}

/// Bytes of the release's own way to a target.
fn own(manifest: &Manifest, position: u16) -> u64 {
    ways(manifest, None, position, &|_| false).first().map_or(0, |way| way.fetch_bytes)
}

/// A target that deltas are made for: the slot image and the UKI; the rest is small or does not change.
fn delta_target(manifest: &Manifest, position: u16) -> Option<&Target> {
    manifest.target(position).filter(|target| match target.kind {
        TargetKind::Slot { .. } | TargetKind::Uki => true,
        TargetKind::BootFile { .. } | TargetKind::Content { .. } => false,
    })
}

fn slot_target(manifest: &Manifest) -> Option<(u16, &Target)> {
    (0..manifest.targets.len() as u16).find_map(|position| {
        let target = manifest.target(position)?;
        matches!(target.kind, TargetKind::Slot { .. }).then_some((position, target))
    })
}

/// The base's target of the same kind.
fn same_kind<'m>(base: &'m Manifest, target: &Target) -> Option<&'m Target> {
    let same = |old: &&Target| std::mem::discriminant(&old.kind) == std::mem::discriminant(&target.kind);
    base.targets.iter().filter_map(Entry::known).find(same)
}
