//! The release on the stick: every signature and every block is checked before anything is written anywhere, and again
//! as it is read for writing. Streams; holds the UKI and a hash tree in memory.

use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::hex::Digest;
use formats::manifest::{Entry, Manifest, ObjectRef, PayloadKind, Target, TargetKind};
use formats::object::Verifier;
use formats::repository as names;
use formats::roles::{Chain, MAX_CHAIN_BYTES};
use formats::stick::Plan;
use formats::trust::{self, Refusal, TimeWatermark, Verdict};
use formats::verity::{self, BLOCK, Parameters, Tree};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Largest file of the ESP that is held in memory, bytes.
const MAX_FILE: u64 = 256 << 20;
/// Bytes of the image that are passed on at once, whole blocks.
const CHUNK: usize = 1 << 20;

/// A release whose signatures and manifest are good.
pub struct Release {
    folder: PathBuf,
    /// What it consists of.
    pub manifest: Manifest,
    /// Root of the slot image's hash tree.
    pub roothash: Digest,
    /// Salt and block count.
    pub parameters: Parameters,
    /// UUID in the superblock.
    pub uuid: [u8; 16],
}

/// Told how many bytes were done; an error stops.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

impl Release {
    /// Opens the release in a folder, which must be signed by keys that `roots` leads to, and be for what `plan` says.
    ///
    /// # Errors
    /// The first thing that is not as it must be.
    pub fn open(folder: &Path, roots: &[u8], plan: &Plan) -> Result<Self> {
        let trusted = Chain::parse(roots).context("read the installer's own root documents")?;
        let trusted = trusted.verify().context("check the installer's own root documents")?;
        let chain = Chain::parse(&read(&folder.join(names::ROOTS), MAX_CHAIN_BYTES as u64)?)
            .context("the stick's root documents are damaged; make the stick again")?;
        let root = chain.follow(trusted).context(FOREIGN)?;
        let frame = read(&folder.join(names::ANNOUNCE), formats::frame::MAX_FRAME_BYTES as u64)?;
        let verified = trust::authenticate(&frame, &root).map_err(|refusal| {
            let why = if matches!(refusal, Refusal::Frame(_)) {
                "the stick's announcement is damaged; make the stick again"
            } else if matches!(refusal, Refusal::RootReplaced { .. }) {
                EXPIRED
            } else {
                FOREIGN
            };
            anyhow!(refusal).context(why)
        })?;
        trust::check_target(&verified, &plan.product, &plan.board, plan.arch).context(
            "the release on this stick is for another product, board or processor than its installer; make the stick \
             again from one build",
        )?;
        match trust::assess(&verified, None, TimeWatermark::of_root(&root), None)? {
            Verdict::Newer | Verdict::Known => {}
            Verdict::PossiblyFrozen { since_s } => {
                bail!("{EXPIRED}: it was valid until {since_s} seconds since 1970")
            }
        }
        let said = verified.announcement();
        let bytes = read(&folder.join(names::object(&said.manifest)), said.manifest_bytes.into())?;
        let manifest = trust::open_manifest(&verified, &bytes)
            .context("the stick's manifest is damaged; make the stick again")?;
        let (target, roothash, parameters) =
            manifest.slot().ok_or_else(|| anyhow!("the release has no slot image"))?;
        let TargetKind::Slot { uuid, .. } = target.kind else { bail!("the release has no slot image") };
        Ok(Self { folder: folder.to_owned(), roothash, parameters, uuid, manifest })
    }

    fn slot(&self) -> Result<&Target> {
        self.manifest.slot().map(|(target, ..)| target).context("the release has no slot image")
    }

    /// Length of the slot image, bytes.
    pub fn image_bytes(&self) -> u64 {
        self.parameters.data_blocks * BLOCK as u64
    }

    /// Reads the whole image without writing it, and gives its hash tree.
    ///
    /// # Errors
    /// If a block is damaged, or what is unpacked is not the signed image.
    pub fn verify_image(&self, progress: Progress<'_>) -> Result<Tree> {
        let mut builder = verity::Builder::new(self.parameters);
        self.image(&mut |part| {
            builder.push(part);
            progress(part.len() as u64)
        })?;
        let tree = builder.finish();
        ensure!(
            tree.roothash == self.roothash,
            "the image on the stick has roothash {}, but {} was signed; make the stick again",
            tree.roothash.short(),
            self.roothash.short()
        );
        Ok(tree)
    }

    /// Passes the image on in order, in whole blocks; every block that is read from the stick is checked.
    ///
    /// # Errors
    /// If a block is damaged, the length is another, or `take` fails.
    pub fn image(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let target = self.slot()?;
        let carried = self.folder.join(names::object(&target.object.id));
        if carried.exists() {
            let source = Blocks::open(&self.folder, &target.object, "slot image")?;
            return chunks(source, self.image_bytes(), take);
        }
        let payloads = self.manifest.payloads.iter().filter_map(Entry::known);
        let full = payloads.filter(|payload| self.manifest.target(payload.target) == Some(target)).find_map(
            |payload| match payload.kind {
                PayloadKind::Full { window_log } => Some((payload, window_log)),
                PayloadKind::Delta { .. } | PayloadKind::Adaptive { .. } => None,
            },
        );
        let (payload, window_log) =
            full.context("the stick holds no whole slot image; make the stick again")?;
        let source = Blocks::open(&self.folder, &payload.object, "slot image")?;
        let mut decoder = zstd::Decoder::new(source).context("unpack the slot image")?.single_frame();
        decoder.window_log_max(window_log.into()).context("unpack the slot image")?;
        chunks(decoder, self.image_bytes(), take)
    }

    /// The UKI and the boot files, checked: paths on the ESP for boot files, `None` for the UKI.
    ///
    /// # Errors
    /// If one is missing or damaged.
    pub fn boot_files(&self) -> Result<Vec<(Option<String>, Vec<u8>)>> {
        let mut found = Vec::new();
        for target in self.manifest.targets.iter().filter_map(Entry::known) {
            let path = match &target.kind {
                TargetKind::Slot { .. } | TargetKind::Content { .. } => continue,
                TargetKind::Uki => None,
                TargetKind::BootFile { path } => Some(path.clone()),
            };
            let what = path.as_deref().unwrap_or("UKI");
            ensure!(target.object.geometry.length() <= MAX_FILE, "{what} has more than {MAX_FILE} bytes");
            let mut bytes = Vec::new();
            let mut source = Blocks::open(&self.folder, &target.object, what)?;
            source.read_to_end(&mut bytes).with_context(|| format!("read {what}"))?;
            found.push((path, bytes));
        }
        Ok(found)
    }
}

const FOREIGN: &str = "the release on this stick is signed by keys that this installer does not trust";
const EXPIRED: &str =
    "the release on this stick has expired or its keys were replaced; make a stick of a newer release";

/// Passes `length` bytes on in pieces of [`CHUNK`].
fn chunks(mut source: impl Read, length: u64, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let (mut left, mut buffer) = (length, vec![0; CHUNK]);
    while left > 0 {
        let part = &mut buffer[..left.min(CHUNK as u64) as usize];
        source.read_exact(part).context("read the slot image from the stick")?;
        take(part)?;
        left -= part.len() as u64;
    }
    let more = source.read(&mut buffer[..1]).context("read the end of the slot image")?;
    ensure!(more == 0, "the slot image on the stick is longer than the signed one");
    Ok(())
}

/// An object's bytes in order, each block checked before it is passed on.
struct Blocks {
    file: File,
    verifier: Option<Verifier>,
    object: ObjectRef,
    what: String,
    next: u64,
    block: Vec<u8>,
    at: usize,
}

impl Blocks {
    fn open(folder: &Path, object: &ObjectRef, what: &str) -> Result<Self> {
        let path = folder.join(names::object(&object.id));
        let file = File::open(&path).with_context(|| format!("open {} on the stick", path.display()))?;
        let verifier = if object.geometry.blocks() > 1 {
            let path = folder.join(names::lists(&object.id));
            let lists = read(&path, object.geometry.list_bytes())?;
            let verifier = Verifier::from_lists(object.id, object.geometry, &lists);
            Some(verifier.with_context(|| format!("{what}: {DAMAGED}"))?)
        } else {
            None
        };
        let what = what.to_owned();
        Ok(Self { file, verifier, object: *object, what, next: 0, block: Vec::new(), at: 0 })
    }

    fn fill(&mut self) -> Result<()> {
        let Some(length) = self.object.geometry.block_length(self.next) else { return Ok(()) };
        self.block.resize(length, 0);
        self.file
            .read_exact(&mut self.block)
            .with_context(|| format!("read {} from the stick", self.what))?;
        let checked = match &self.verifier {
            Some(verifier) => verifier.block(self.next, &self.block),
            // The list of a single block follows from the block.
            None => Verifier::from_lists(
                self.object.id,
                self.object.geometry,
                &formats::object::leaf(&self.block),
            )
            .map(drop),
        };
        checked.with_context(|| format!("{}: {DAMAGED}", self.what))?;
        (self.next, self.at) = (self.next + 1, 0);
        Ok(())
    }
}

const DAMAGED: &str = "the stick is damaged here; make it again, or take another stick";

impl Read for Blocks {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() {
            self.block.clear();
            self.at = 0;
            self.fill().map_err(|error| std::io::Error::other(format!("{error:#}")))?;
        }
        let count = into.len().min(self.block.len() - self.at);
        into[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {} on the stick", path.display()))?;
    file.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= limit,
        "{} has more than {limit} bytes; make the stick again",
        path.display()
    );
    Ok(bytes)
}
