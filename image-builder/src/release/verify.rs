//! Checks a release folder as a device would: frame, keys, manifest, every block of every object, and that what comes
//! out of the payload is the slot image that the UKI opens. Streams; writes nothing.

use super::folder::{self, ANNOUNCE};
use super::keys::{ROOTS, read_chain};
use crate::image::pe::Pe;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use formats::bootargs::BootArgs;
use formats::frame::{MAX_FRAME_BYTES, Verified};
use formats::hex::{self, Digest};
use formats::manifest::{Manifest, ObjectRef, Payload, PayloadKind, Target, TargetKind};
use formats::object::{Builder, Verifier};
use formats::roles::Root;
use formats::trust::{self, Accepted, Rank, TimeWatermark, Verdict};
use formats::verity;
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Largest UKI whose command line is looked at, bytes: it is held in memory.
const MAX_UKI: u64 = 256 << 20;
const CHUNK: usize = 1 << 20;

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

/// Checks the release in `folder`.
///
/// # Errors
/// The first thing that a device would refuse, with the reason.
pub fn verify(path: &Path, view: &Viewpoint, progress: &Progress) -> Result<Report> {
    let frame = folder::read_limited(&path.join(ANNOUNCE), MAX_FRAME_BYTES as u64)?;
    let root = newest_root(path, view)?;
    let verified = trust::authenticate(&frame, &root).context("refuse the announcement")?;
    let said = verified.announcement();
    let at = folder::object(path, &said.manifest);
    let bytes = folder::read_limited(&at, said.manifest_bytes.into())?;
    let manifest =
        trust::open_manifest(&verified, &bytes).with_context(|| format!("refuse {}", at.display()))?;
    judge(&verified, &root, view).context("refuse the announcement")?;

    let mut checking = Checking { folder: path, progress, manifest: &manifest, checked: Vec::new() };
    for (index, target) in manifest.targets.iter().enumerate() {
        if let Some(target) = target.known() {
            checking.target(index, target)?;
        }
    }
    checking.uki_opens_slot()?;
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
    fn target(&mut self, index: usize, target: &Target) -> Result<()> {
        let what = match &target.kind {
            TargetKind::Slot { .. } => "slot image".to_owned(),
            TargetKind::Uki => "UKI".to_owned(),
            TargetKind::BootFile { path } => format!("boot file {path}"),
            TargetKind::Content { name } => format!("content {name}"),
        };
        let id = target.object.id;
        if folder::object(self.folder, &id).exists() {
            let mut sink = Sink::new(self.manifest, target);
            self.carried(&what, &target.object, &mut |part| sink.push(part))?;
            sink.finish(&what)?;
            return self.note(what, &target.object, "carried");
        }
        let payloads = self.manifest.payloads.iter().filter_map(|payload| payload.known());
        let full = payloads.filter(|payload| usize::from(payload.target) == index).find_map(|payload| {
            let PayloadKind::Full { window_log } = payload.kind else { return None };
            folder::object(self.folder, &payload.object.id).exists().then_some((payload, window_log))
        });
        let (payload, window_log) = full.ok_or_else(|| {
            anyhow!("{what}: neither object {id} nor a full payload that makes it is in the folder")
        })?;
        self.carried(&format!("{what}, full payload"), &payload.object, &mut |_| Ok(()))?;
        self.note(format!("{what}, full payload"), &payload.object, "carried")?;
        self.unpacked(&what, target, payload, window_log)?;
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

    /// Makes the target from a full payload and compares what comes out.
    fn unpacked(&self, what: &str, target: &Target, payload: &Payload, window_log: u8) -> Result<()> {
        // A device checks what it unpacks block by block, so the target's lists are part of the release.
        if target.object.geometry.blocks() > 1 {
            self.verifier(what, &target.object, &[])?;
        }
        let path = folder::object(self.folder, &payload.object.id);
        let decode = || -> io::Result<zstd::Decoder<'static, io::BufReader<File>>> {
            let mut decoder = zstd::Decoder::new(File::open(&path)?)?;
            decoder.window_log_max(window_log.into())?;
            Ok(decoder.single_frame())
        };
        let mut decoder = decode().with_context(|| format!("open {}", path.display()))?;
        let length = target.object.geometry.length();
        let bar = self.progress.bytes(&format!("unpack {what}"), length);
        let mut sink = Sink::new(self.manifest, target);
        let (mut chunk, mut left) = (vec![0; CHUNK], length);
        loop {
            let count = decoder.read(&mut chunk).with_context(|| format!("unpack {}", path.display()))?;
            if count == 0 {
                break;
            }
            left = left.checked_sub(count as u64).ok_or_else(|| {
                anyhow!("{what}: payload {} unpacks to more than {length} bytes", path.display())
            })?;
            sink.push(&chunk[..count])?;
            bar.add(count as u64);
        }
        sink.finish(what).with_context(|| format!("refuse payload {}", path.display()))
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

/// Takes the bytes of a target in order and recomputes what names it.
struct Sink<'t> {
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
    fn new(manifest: &Manifest, target: &'t Target) -> Self {
        let tree = manifest.slot().filter(|(slot, ..)| *slot == target).map(|(_, roothash, parameters)| {
            let builder = verity::Builder::new(parameters);
            (roothash, Tree { builder, parameters, rest: Vec::new(), blocks: 0 })
        });
        Self { target, object: Builder::new(target.object.geometry.block()), tree }
    }

    fn push(&mut self, part: &[u8]) -> Result<()> {
        self.object.push(part);
        if let Some((_, tree)) = &mut self.tree {
            tree.push(part);
        }
        Ok(())
    }

    fn finish(self, what: &str) -> Result<()> {
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
