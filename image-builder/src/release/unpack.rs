//! The bytes of a target, from its object or from a full payload in a release folder, checked against what names them:
//! object id and, of a slot image, roothash. Streams; knows nothing of signatures.

use super::folder;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use formats::manifest::{Entry, Manifest, ObjectRef, Payload, PayloadKind, Target, TargetKind};
use formats::object::Builder;
use formats::verity;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

const CHUNK: usize = 1 << 20;

/// What a target is called in messages.
pub fn name(kind: &TargetKind) -> String {
    match kind {
        TargetKind::Slot { .. } => "slot image".to_owned(),
        TargetKind::Uki => "UKI".to_owned(),
        TargetKind::BootFile { path } => format!("boot file {path}"),
        TargetKind::Content { name } => format!("content {name}"),
    }
}

/// A target whose bytes a folder holds in some way.
#[derive(Clone, Copy)]
pub struct Stored<'a> {
    /// Folder with `objects`.
    pub folder: &'a Path,
    /// Manifest that has the target.
    pub manifest: &'a Manifest,
    /// The target.
    pub target: &'a Target,
}

impl<'a> Stored<'a> {
    /// The full payloads that the manifest offers for the target.
    pub fn offered(&self) -> impl Iterator<Item = &'a Payload> {
        let (manifest, target) = (self.manifest, self.target);
        let payloads = manifest.payloads.iter().filter_map(Entry::known);
        payloads
            .filter(|payload| matches!(payload.kind, PayloadKind::Full { .. }))
            .filter(move |payload| manifest.target(payload.target) == Some(target))
    }

    /// One of them whose object is in the folder.
    pub fn full(&self) -> Option<&'a Payload> {
        self.offered().find(|payload| folder::object(self.folder, &payload.object.id).exists())
    }

    /// Gives the target's bytes to `take` in order; they are good only when this returns.
    ///
    /// # Errors
    /// If the folder does not hold them, they cannot be read, or are others.
    pub fn read(&self, progress: &Progress, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let path = folder::object(self.folder, &self.target.object.id);
        if path.exists() {
            let source = folder::open(&path)?;
            return self.copy(&path, source, progress, take);
        }
        let full = self.full().ok_or_else(|| {
            let (id, what) = (self.target.object.id, name(&self.target.kind));
            anyhow!(
                "{what}: neither object {id} nor a full payload that makes it is in {}",
                self.folder.display()
            )
        })?;
        self.unpack(full, progress, take)
    }

    /// Gives what a full payload unpacks to.
    ///
    /// # Errors
    /// As [`Stored::read`].
    pub fn unpack(
        &self,
        payload: &Payload,
        progress: &Progress,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let PayloadKind::Full { window_log } = payload.kind else {
            bail!("payload {} is no full payload", payload.object.id)
        };
        let path = folder::object(self.folder, &payload.object.id);
        let decode = || -> io::Result<zstd::Decoder<'static, io::BufReader<File>>> {
            let mut decoder = zstd::Decoder::new(File::open(&path)?)?;
            decoder.window_log_max(window_log.into())?;
            Ok(decoder.single_frame())
        };
        let decoder = decode().with_context(|| format!("open {}", path.display()))?;
        self.copy(&path, decoder, progress, take)
            .with_context(|| format!("refuse payload {}", path.display()))
    }

    fn copy(
        &self,
        path: &Path,
        mut source: impl Read,
        progress: &Progress,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let what = name(&self.target.kind);
        let length = self.target.object.geometry.length();
        let bar = progress.bytes(&format!("unpack {what}"), length);
        let mut sink = Sink::new(self.manifest, self.target);
        let (mut chunk, mut left) = (vec![0; CHUNK], length);
        loop {
            let count = source.read(&mut chunk).with_context(|| format!("unpack {}", path.display()))?;
            if count == 0 {
                break;
            }
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| anyhow!("{what}: {} unpacks to more than {length} bytes", path.display()))?;
            sink.push(&chunk[..count]);
            take(&chunk[..count])?;
            bar.add(count as u64);
        }
        sink.finish(&what)
    }
}

/// Takes the bytes of a target in order and recomputes what names it.
pub struct Sink<'t> {
    target: &'t Target,
    object: Builder,
    tree: Option<(Digest, Tree)>,
}

/// A hash tree while blocks arrive in pieces.
struct Tree {
    builder: verity::Builder,
    parameters: verity::Parameters,
    rest: Vec<u8>,
    blocks: u64,
}

impl<'t> Sink<'t> {
    /// Takes the bytes of `target`.
    pub fn new(manifest: &Manifest, target: &'t Target) -> Self {
        let tree = manifest.slot().filter(|(slot, ..)| *slot == target).map(|(_, roothash, parameters)| {
            let builder = verity::Builder::new(parameters);
            (roothash, Tree { builder, parameters, rest: Vec::new(), blocks: 0 })
        });
        Self { target, object: Builder::new(target.object.geometry.block()), tree }
    }

    /// Takes the next bytes.
    pub fn push(&mut self, part: &[u8]) {
        self.object.push(part);
        if let Some((_, tree)) = &mut self.tree {
            tree.push(part);
        }
    }

    /// Compares object id and roothash.
    ///
    /// # Errors
    /// If either is another one.
    pub fn finish(self, what: &str) -> Result<()> {
        let made = self.object.finish()?;
        if ObjectRef::from(&made) != self.target.object {
            bail!("{what}: object {} came out, must be {}", made.id, self.target.object.id);
        }
        match self.tree {
            None => Ok(()),
            Some((roothash, tree)) if tree.blocks == tree.parameters.data_blocks => {
                let is = tree.builder.finish().roothash;
                if is == roothash {
                    Ok(())
                } else {
                    Err(anyhow!("{what}: roothash is {is}, must be {roothash}"))
                }
            }
            Some((_, tree)) => Err(anyhow!("{what}: {} whole blocks came out", tree.blocks)),
        }
    }
}

impl Tree {
    fn push(&mut self, part: &[u8]) {
        self.rest.extend_from_slice(part);
        let whole = self.rest.len() / verity::BLOCK;
        // More than announced shows in the object id; the tree must not be overfilled.
        let take = (whole as u64).min(self.parameters.data_blocks - self.blocks);
        self.builder.push(&self.rest[..take as usize * verity::BLOCK]);
        self.blocks += take;
        self.rest.drain(..whole * verity::BLOCK);
    }
}
