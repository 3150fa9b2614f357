//! Publishing: puts a verified release into a repository, and makes payloads for it that signing did not wait for: deltas
//! from the slot images and UKIs of earlier releases, a full payload packed harder. They are offered in catalogues; none
//! is that takes as many bytes as the release's own way. The announcement is written last, when all that it leads to is
//! there.

use super::adaptive;
use super::folder;
use super::keys::{KeyFolder, PrivateKey, ROOTS};
use super::make::full_payload;
use super::number;
use super::prune::{Pruned, prune};
use super::repository::{Held, Repository, STAGING};
use super::unpack::{self, Stored};
use super::verify::{Viewpoint, verify};
use crate::delta::{Made, make, source::Image};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use formats::catalogue::{Catalogue, CatalogueError, ways};
use formats::frame::MAX_FRAME_BYTES;
use formats::hex::Digest;
use formats::manifest::{Entry, Manifest, ObjectRef, Payload, PayloadKind, Source, Target, TargetKind};
use formats::object::{self, BlockSize};
use formats::repository as names;
use formats::roles::{Chain, Root};
use formats::trust::Rank;
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write;
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

    /// A full payload of the slot image at the level that was asked for.
    fn smaller_full(&mut self) -> Result<Option<Payload>> {
        let Some(level) = self.input.level else { return Ok(None) };
        let Some((position, target)) = slot_target(&self.held.manifest) else { return Ok(None) };
        let own_bytes = own(&self.held.manifest, position);
        let facts = |bytes, outcome| PayloadFacts {
            target: unpack::name(&target.kind),
            kind: "full",
            from: None,
            bytes,
            own_bytes,
            outcome,
        };
        if self.input.plan {
            self.payloads.push(facts(None, "planned"));
            return Ok(None);
        }
        let image = self.image(self.held, target)?;
        let partial = self.staged("full")?;
        let (object, window_log) = full_payload(&image, level, &partial, self.input.progress)?;
        let kind = PayloadKind::Full { window_log };
        let payload =
            Payload { target: position, object: ObjectRef::from(&object), kind, ignored: Default::default() };
        let bytes = payload.object.fetch_bytes();
        if bytes >= own_bytes {
            self.payloads.push(facts(Some(bytes), "not smaller"));
            return Ok(None);
        }
        let packed = fs::read(&partial).with_context(|| format!("read {}", partial.display()))?;
        self.input.repository.put_object(&packed, &object)?;
        self.payloads.push(facts(Some(bytes), "published"));
        Ok(Some(payload))
    }

    /// An adaptive payload of the slot image: the one that is there, else made now.
    fn adaptive(&mut self, kept: Option<Payload>) -> Result<Option<Payload>> {
        let Some((position, target)) = slot_target(&self.held.manifest) else { return Ok(None) };
        let own_bytes = own(&self.held.manifest, position);
        let facts = |bytes, outcome| PayloadFacts {
            target: unpack::name(&target.kind),
            kind: "adaptive",
            from: None,
            bytes,
            own_bytes,
            outcome,
        };
        if let Some(kept) = kept {
            self.payloads.push(facts(Some(kept.kind.fetch_bytes(&kept.object)), "kept"));
            return Ok(Some(kept));
        }
        if !self.input.adaptive {
            return Ok(None);
        }
        if self.input.plan {
            self.payloads.push(facts(None, "planned"));
            return Ok(None);
        }
        let image = self.image(self.held, target)?;
        let partial = self.staged("adaptive")?;
        let (object, index_bytes) = adaptive::make(&image, &partial, self.input.block, self.input.progress)?;
        let kind = PayloadKind::Adaptive { index_bytes };
        let payload =
            Payload { target: position, object: ObjectRef::from(&object), kind, ignored: Default::default() };
        let bytes = payload.kind.fetch_bytes(&payload.object);
        if bytes >= own_bytes {
            self.payloads.push(facts(Some(bytes), "not smaller"));
            return Ok(None);
        }
        let packed = fs::read(&partial).with_context(|| format!("read {}", partial.display()))?;
        self.input.repository.put_object(&packed, &object)?;
        self.payloads.push(facts(Some(bytes), "published"));
        Ok(Some(payload))
    }

    /// The deltas from `base`: those of a catalogue that is there and good, else made now.
    fn deltas(&mut self, base: &Held, roothash: Digest) -> Result<Vec<Payload>> {
        let kept = self.kept(Some(&roothash))?;
        let mut found = Vec::new();
        for position in 0..self.held.manifest.targets.len() as u16 {
            let Some(target) = delta_target(&self.held.manifest, position) else { continue };
            let Some(old) = same_kind(&base.manifest, target) else { continue };
            if old.object == target.object {
                continue;
            }
            let own_bytes = own(&self.held.manifest, position);
            let facts = |bytes, outcome| PayloadFacts {
                target: unpack::name(&target.kind),
                kind: "delta",
                from: Some(base.manifest.version.clone()),
                bytes,
                own_bytes,
                outcome,
            };
            if self.input.plan {
                self.payloads.push(facts(None, "planned"));
                continue;
            }
            if let Some(payload) = kept.iter().find(|payload| payload.target == position && is_delta(payload))
            {
                self.payloads.push(facts(Some(payload.object.fetch_bytes()), "kept"));
                found.push(payload.clone());
                continue;
            }
            let tried = self.input.repository.tried(&old.object.id, &target.object.id)?;
            if let Some(bytes) = tried.filter(|bytes| *bytes >= own_bytes) {
                self.payloads.push(facts(Some(bytes), "not smaller"));
                continue;
            }
            let (payload, packed, object) = self.delta(base, old, position, target)?;
            let bytes = payload.object.fetch_bytes();
            if bytes >= own_bytes {
                self.input.repository.remember_tried(&old.object.id, &target.object.id, bytes)?;
                self.payloads.push(facts(Some(bytes), "not smaller"));
                continue;
            }
            self.input.repository.put_object(&packed, &object)?;
            self.payloads.push(facts(Some(bytes), "published"));
            found.push(payload);
        }
        Ok(found)
    }

    /// Payloads of a catalogue that was published before, if it is still good, and their objects are there.
    fn kept(&self, base: Option<&Digest>) -> Result<Vec<Payload>> {
        let name = names::catalogue(&self.held.said.manifest, base);
        let Some(bytes) = self.input.repository.catalogue(&name)? else { return Ok(Vec::new()) };
        let opened = Catalogue::open(&bytes, self.root, &self.held.said.manifest, &self.held.manifest);
        let there = |id: &Digest| self.input.repository.file(&names::object(id)).exists();
        Ok(opened.map_or_else(
            // Of another root version, or damaged: made anew.
            |_: CatalogueError| Vec::new(),
            |catalogue| {
                let payloads = catalogue.payloads.iter().filter_map(Entry::known);
                payloads.filter(|payload| there(&payload.object.id)).cloned().collect()
            },
        ))
    }

    fn delta(
        &mut self,
        base: &Held,
        old: &Target,
        position: u16,
        target: &Target,
    ) -> Result<(Payload, Vec<u8>, object::Object)> {
        let what = unpack::name(&target.kind);
        let (from, to) = (&base.manifest.version, &self.held.manifest.version);
        let (old_file, new_file) = (self.image(base, old)?, self.image(self.held, target)?);
        let threads = std::thread::available_parallelism().map_or(1, Into::into);
        let Made { bytes, .. } =
            make(&Image::open(&old_file)?, &Image::open(&new_file)?, threads, self.input.progress)
                .with_context(|| format!("make the delta of the {what} from {from} to {to}"))?;
        let object = object::of(&bytes, self.input.block)?;
        let source = match &old.kind {
            TargetKind::Slot { roothash, .. } => {
                Source::Slot { roothash: *roothash, bytes: old.object.geometry.length() }
            }
            TargetKind::Uki | TargetKind::BootFile { .. } | TargetKind::Content { .. } => {
                Source::Object(old.object)
            }
        };
        let kind = PayloadKind::Delta { base: vec![source] };
        let payload =
            Payload { target: position, object: ObjectRef::from(&object), kind, ignored: Default::default() };
        Ok((payload, bytes, object))
    }

    /// A target's bytes as a file: unpacked once, and checked.
    fn image(&mut self, held: &Held, target: &Target) -> Result<PathBuf> {
        let path = self.staged(&target.object.id.to_string())?;
        if path.exists() {
            return Ok(path);
        }
        let partial = path.with_extension("partial");
        let mut file = File::create(&partial).with_context(|| format!("write {}", partial.display()))?;
        let stored = Stored { folder: &held.folder, manifest: &held.manifest, target };
        stored
            .read(self.input.progress, &mut |part| {
                file.write_all(part).with_context(|| format!("write {}", partial.display()))
            })
            .with_context(|| format!("unpack release {}", held.manifest.version))?;
        fs::rename(&partial, &path).with_context(|| format!("name {}", path.display()))?;
        Ok(path)
    }

    fn staged(&mut self, name: &str) -> Result<PathBuf> {
        let staging = match self.staging.take() {
            Some(staging) => staging,
            None => {
                let folder = self.input.repository.path();
                tempfile::Builder::new()
                    .prefix(STAGING)
                    .tempdir_in(folder)
                    .with_context(|| format!("make a folder in {}", folder.display()))?
            }
        };
        Ok(self.staging.insert(staging).path().join(name))
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
