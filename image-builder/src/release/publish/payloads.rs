//! The payloads of a publication: a smaller full one, an adaptive one, deltas from earlier releases.

use super::super::adaptive;
use super::super::make::full_payload;
use super::super::repository::{Held, STAGING};
use super::super::unpack::{self, Stored};
use super::{PayloadFacts, Work, delta_target, is_delta, own, same_kind, slot_target};
use crate::delta::{Made, make, source::Image};
use anyhow::{Context, Result};
use formats::catalogue::{Catalogue, CatalogueError};
use formats::hex::Digest;
use formats::manifest::{Entry, ObjectRef, Payload, PayloadKind, Source, Target, TargetKind};
use formats::object;
use formats::repository as names;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

/// What is told of a payload, given its bytes and what came of it.
fn facts(
    target: &Target,
    kind: &'static str,
    from: Option<&str>,
    own_bytes: u64,
) -> impl Fn(Option<u64>, &'static str) -> PayloadFacts + use<> {
    let (target, from) = (unpack::name(&target.kind), from.map(str::to_owned));
    move |bytes, outcome| PayloadFacts {
        target: target.clone(),
        kind,
        from: from.clone(),
        bytes,
        own_bytes,
        outcome,
    }
}

impl Work<'_> {
    /// A full payload of the slot image at the level that was asked for.
    pub(super) fn smaller_full(&mut self) -> Result<Option<Payload>> {
        let Some(level) = self.input.level else { return Ok(None) };
        let Some((position, target)) = slot_target(&self.held.manifest) else { return Ok(None) };
        let own_bytes = own(&self.held.manifest, position);
        let facts = facts(target, "full", None, own_bytes);
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
    pub(super) fn adaptive(&mut self, kept: Option<Payload>) -> Result<Option<Payload>> {
        let Some((position, target)) = slot_target(&self.held.manifest) else { return Ok(None) };
        let own_bytes = own(&self.held.manifest, position);
        let facts = facts(target, "adaptive", None, own_bytes);
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
    pub(super) fn deltas(&mut self, base: &Held, roothash: Digest) -> Result<Vec<Payload>> {
        let kept = self.kept(Some(&roothash))?;
        let mut found = Vec::new();
        for position in 0..self.held.manifest.targets.len() as u16 {
            let Some(target) = delta_target(&self.held.manifest, position) else { continue };
            let Some(old) = same_kind(&base.manifest, target) else { continue };
            if old.object == target.object {
                continue;
            }
            let own_bytes = own(&self.held.manifest, position);
            let facts = facts(target, "delta", Some(base.manifest.version.as_str()), own_bytes);
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
    pub(super) fn kept(&self, base: Option<&Digest>) -> Result<Vec<Payload>> {
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
        let Made { bytes, history, .. } =
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
        let kind = PayloadKind::Delta { base: vec![source], history };
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
}
