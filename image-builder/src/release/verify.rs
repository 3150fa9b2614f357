//! Checks a release folder as a device would: frame, keys, manifest, every block of every object, and that what comes
//! out of the payload is the slot image that the UKI opens. Streams; writes nothing.

use super::folder::{self, ANNOUNCE};
use super::keys::{ROOTS, read_chain};
use super::unpack::{self, Sink, Stored};
use crate::image::pe::Pe;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use formats::bootargs::BootArgs;
use formats::catalogue::{Catalogue, MAX_CATALOGUE_BYTES};
use formats::frame::{MAX_FRAME_BYTES, Verified};
use formats::hex::{self, Digest};
use formats::manifest::{Entry, Manifest, ObjectRef, PayloadKind, Target, TargetKind};
use formats::object::Verifier;
use formats::repository as names;
use formats::roles::Root;
use formats::trust::{self, Accepted, Rank, TimeWatermark, Verdict};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// Largest UKI whose command line is looked at, bytes: it is held in memory.
const MAX_UKI: u64 = 256 << 20;

/// What a device would know; fields that are absent are not checked.
#[derive(Clone, Debug, Default)]
pub struct Viewpoint {
    /// The root document that is trusted.
    pub root: Option<Root>,
    /// Product, board and processor.
    pub device: Option<(String, String, Arch)>,
    /// Channel.
    pub channel: Option<u8>,
    /// The newest release that was accepted.
    pub accepted: Option<Rank>,
}

/// What was found good.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Product.
    pub product: String,
    /// Board.
    pub board: String,
    /// Processor.
    pub arch: Arch,
    /// Version.
    pub version: String,
    /// Root document under which it is signed.
    pub root_version: u16,
    /// Whether that document was reached from one that was given as trusted.
    pub root_trusted: bool,
    /// Sequence number.
    pub sequence: u32,
    /// Channel.
    pub channel: u8,
    /// Time of signing, seconds since 1970.
    pub signed_s: u32,
    /// Public keys that signed, hexadecimal.
    pub signed_by: Vec<String>,
    /// Bytes of the frame.
    pub frame_bytes: usize,
    /// Object id of the manifest.
    pub manifest: Digest,
    /// Bytes of the manifest.
    pub manifest_bytes: u32,
    /// Root of the slot image's hash tree.
    pub roothash: Option<Digest>,
    /// What was checked, block by block.
    pub objects: Vec<Checked>,
}

/// An object that is good.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// What it is.
    pub what: String,
    /// Its id.
    pub id: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// How it was checked: `carried` or `made from payload`.
    pub how: &'static str,
}

/// Checks the release in a release folder.
///
/// # Errors
/// The first thing that a device would refuse, with the reason.
pub fn verify(path: &Path, view: &Viewpoint, progress: &Progress) -> Result<Report> {
    verify_announced(path, ANNOUNCE, view, progress)
}

/// Checks what is announced under `name` in a folder, with its catalogues.
///
/// # Errors
/// The first thing that a device would refuse, with the reason.
pub fn verify_announced(path: &Path, name: &str, view: &Viewpoint, progress: &Progress) -> Result<Report> {
    let frame = folder::read_limited(&path.join(name), MAX_FRAME_BYTES as u64)?;
    let root = newest_root(path, view)?;
    let verified = trust::authenticate(&frame, &root).context("refuse the announcement")?;
    let said = verified.announcement();
    let at = folder::object(path, &said.manifest);
    let bytes = folder::read_limited(&at, said.manifest_bytes.into())?;
    let manifest =
        trust::open_manifest(&verified, &bytes).with_context(|| format!("refuse {}", at.display()))?;
    judge(&verified, &root, view).context("refuse the announcement")?;

    let mut checking = Checking { folder: path, progress, manifest: &manifest, checked: Vec::new() };
    for target in manifest.targets.iter().filter_map(Entry::known) {
        checking.target(target)?;
    }
    checking.uki_opens_slot()?;
    checking.catalogues(&root, &said.manifest)?;
    let signers = formats::frame::Frame::parse(&frame)?.signers();
    let role = if said.rescue { &root.root } else { &root.release };
    Ok(Report {
        product: manifest.product.clone(),
        board: manifest.board.clone(),
        arch: manifest.arch,
        version: manifest.version.clone(),
        root_version: root.version,
        root_trusted: view.root.is_some(),
        sequence: said.sequence,
        channel: said.channel,
        signed_s: said.signed_s,
        signed_by: signers.iter().map(|n| hex::encode(&role.keys()[usize::from(*n)].to_bytes())).collect(),
        frame_bytes: frame.len(),
        manifest: said.manifest,
        manifest_bytes: said.manifest_bytes,
        roothash: manifest.slot().map(|(_, roothash, _)| roothash),
        objects: checking.checked,
    })
}

/// The newest root document of the release's chain: reached from the trusted one, or verified by itself.
fn newest_root(path: &Path, view: &Viewpoint) -> Result<Root> {
    let file = path.join(ROOTS);
    let (_, chain) = read_chain(&file)?;
    match &view.root {
        Some(trusted) => chain.follow(trusted),
        None => chain.verify().cloned(),
    }
    .with_context(|| format!("refuse the root documents {}", file.display()))
}

fn judge(verified: &Verified, root: &Root, view: &Viewpoint) -> Result<()> {
    if let Some((product, board, arch)) = &view.device {
        trust::check_target(verified, product, board, *arch)?;
    }
    if let Some(channel) = view.channel {
        trust::check_channel(verified, channel)?;
    }
    let accepted = view.accepted.map(|rank| Accepted { rank, manifest: None });
    let verdict = trust::assess(verified, accepted, TimeWatermark::of_root(root), None)?;
    match verdict {
        Verdict::Newer | Verdict::Known => Ok(()),
        Verdict::PossiblyFrozen { since_s } => {
            bail!(
                "the announcement went stale at {since_s} seconds since 1970, before its root document was signed"
            )
        }
    }
}

struct Checking<'a> {
    folder: &'a Path,
    progress: &'a Progress,
    manifest: &'a Manifest,
    checked: Vec<Checked>,
}

impl Checking<'_> {
    fn target(&mut self, target: &Target) -> Result<()> {
        let what = unpack::name(&target.kind);
        let id = target.object.id;
        let stored = Stored { folder: self.folder, manifest: self.manifest, target };
        let carried = folder::object(self.folder, &id).exists();
        if carried {
            let mut sink = Sink::new(self.manifest, target);
            self.carried(&what, &target.object, &mut |part| {
                sink.push(part);
                Ok(())
            })?;
            sink.finish(&what)?;
            self.note(what.clone(), &target.object, "carried")?;
        } else if !matches!(target.kind, TargetKind::Slot { .. }) {
            bail!("{what}: object {id} is not in the folder");
        } else if stored.full().is_none() {
            bail!("{what}: neither object {id} nor a full payload that makes it is in the folder");
        }
        for full in stored.offered() {
            let name = format!("{what}, full payload");
            self.carried(&name, &full.object, &mut |_| Ok(()))?;
            self.note(name, &full.object, "carried")?;
            stored.unpack(full, self.progress, &mut |_| Ok(()))?;
        }
        if carried {
            return Ok(());
        }
        // A device checks what it unpacks block by block, so the target's lists are part of the release.
        if target.object.geometry.blocks() > 1 {
            self.verifier(&what, &target.object, &[])?;
        }
        self.note(what, &target.object, "made from payload")
    }

    fn note(&mut self, what: String, object: &ObjectRef, how: &'static str) -> Result<()> {
        self.checked.push(Checked { what, id: object.id, bytes: object.geometry.length(), how });
        Ok(())
    }

    /// Checks each block of an object that lies in the folder and hands it on.
    fn carried(
        &self,
        what: &str,
        object: &ObjectRef,
        take: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let geometry = object.geometry;
        let path = folder::object(self.folder, &object.id);
        let mut file = folder::open(&path)?;
        let is = file.metadata().with_context(|| format!("read {}", path.display()))?.len();
        if is != geometry.length() {
            bail!("{what}: {} has {is} bytes, must have {}", path.display(), geometry.length());
        }
        let bar = self.progress.bytes(&format!("check {what}"), is);
        let mut block = vec![0; geometry.block().bytes().min(is.try_into().unwrap_or(u32::MAX)) as usize];
        let mut verifier: Option<Verifier> = None;
        for index in 0..geometry.blocks() {
            let part = &mut block[..geometry.block_length(index).unwrap_or(0)];
            file.read_exact(part).with_context(|| format!("read {}", path.display()))?;
            let verifier = match &verifier {
                Some(verifier) => verifier,
                None => verifier.insert(self.verifier(what, object, part)?),
            };
            verifier.block(index, part).with_context(|| format!("{what}: refuse {}", path.display()))?;
            take(part)?;
            bar.add(part.len() as u64);
        }
        Ok(())
    }

    /// The verified lists of an object; those of a single block follow from the block.
    fn verifier(&self, what: &str, object: &ObjectRef, first: &[u8]) -> Result<Verifier> {
        let path = folder::lists(self.folder, &object.id);
        let (lists, from) = if object.geometry.blocks() <= 1 {
            (formats::object::leaf(first).to_vec(), folder::object(self.folder, &object.id))
        } else {
            (folder::read_limited(&path, object.geometry.list_bytes())?, path)
        };
        Verifier::from_lists(object.id, object.geometry, &lists)
            .with_context(|| format!("{what}: refuse {}", from.display()))
    }

    /// The catalogues of the release, and every block of what they offer.
    fn catalogues(&mut self, root: &Root, manifest: &Digest) -> Result<()> {
        let folder = self.folder.join(names::CATALOGUES).join(manifest.to_string());
        if !folder.exists() {
            return Ok(());
        }
        let mut paths = Vec::new();
        for entry in folder.read_dir().with_context(|| format!("read {}", folder.display()))? {
            paths.push(entry.with_context(|| format!("read {}", folder.display()))?.path());
        }
        paths.sort();
        for path in paths {
            let bytes = folder::read_limited(&path, MAX_CATALOGUE_BYTES as u64)?;
            let catalogue = Catalogue::open(&bytes, root, manifest, self.manifest)
                .with_context(|| format!("refuse {}", path.display()))?;
            let base =
                path.file_name().map(|name| name.to_string_lossy().chars().take(8).collect::<String>());
            for payload in catalogue.payloads.iter().filter_map(Entry::known) {
                let Some(target) = self.manifest.target(payload.target) else { continue };
                let way = match &payload.kind {
                    PayloadKind::Full { .. } => "full payload".to_owned(),
                    PayloadKind::Adaptive { .. } => "adaptive payload".to_owned(),
                    PayloadKind::Delta { .. } => {
                        format!("delta from {}", base.as_deref().unwrap_or_default())
                    }
                };
                let what = format!("{}, {way}", unpack::name(&target.kind));
                self.carried(&what, &payload.object, &mut |_| Ok(()))?;
                self.note(what, &payload.object, "carried")?;
            }
        }
        Ok(())
    }

    /// Whether the command line of the UKI names the slot image, with its salt, block count and version.
    fn uki_opens_slot(&self) -> Result<()> {
        let Some((_, roothash, parameters)) = self.manifest.slot() else { return Ok(()) };
        let targets = self.manifest.targets.iter().filter_map(|target| target.known());
        for target in targets.filter(|target| target.kind == TargetKind::Uki) {
            let path = folder::object(self.folder, &target.object.id);
            let at = || format!("UKI {}", path.display());
            let pe = Pe::parse(folder::read_limited(&path, MAX_UKI)?).with_context(at)?;
            let line = pe.section_data(".cmdline").ok_or_else(|| anyhow!("{} has no command line", at()))?;
            let line = std::str::from_utf8(line).with_context(at)?;
            let args = BootArgs::parse(line.trim_end_matches(['\0', '\n'])).with_context(at)?;
            if (args.roothash, args.verity) != (roothash, parameters) {
                bail!(
                    "{} opens roothash {}, but the release's slot image has {roothash}",
                    at(),
                    args.roothash
                );
            }
            if args.version != self.manifest.version {
                bail!("{} says version {}, but the manifest {}", at(), args.version, self.manifest.version);
            }
        }
        Ok(())
    }
}
