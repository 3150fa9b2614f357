//! Makes a release folder: each target and payload as an object, the manifest that names them, the signed frame that
//! names the manifest. Streams: memory does not grow with the image beyond its hash lists. The same input gives the
//! same bytes: Ed25519 is deterministic, and level and threads of the compressor are fixed.

use super::folder::{self, ANNOUNCE, OBJECTS};
use super::keys::{KeyFolder, ROOTS, parent};
use crate::progress::{Bar, Progress};
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::frame::{Announcement, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::manifest::{
    Entry, MANIFEST_BLOCK, Manifest, Needs, ObjectRef, Payload, PayloadKind, Target, TargetKind,
};
use formats::object::{BlockSize, Builder, Object};
use formats::trust::AGENT_FORMAT;
use formats::verity::Parameters;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// zstd level of a full payload unless asked otherwise: seconds, not minutes, for an image
/// (`docs/decisions/0012-full-payload.md`; `publish` may add a smaller one).
pub const DEFAULT_LEVEL: i32 = 3;
/// Window of a full payload, binary logarithm: with two workers the compressor stays below 64 MiB.
const WINDOW_LOG: u8 = 21;
/// Any number from 1 gives the same bytes; 0 would not.
const WORKERS: u32 = 2;
/// Block size of targets and payloads: one range request each.
const BLOCK: BlockSize = BlockSize::KIB_64;
const CHUNK: usize = 1 << 20;

/// A slot image with its verity tree.
#[derive(Clone, Copy, Debug)]
pub struct SlotInput<'a> {
    /// The EROFS image.
    pub image: &'a Path,
    /// Root of its hash tree.
    pub roothash: Digest,
    /// Salt and block count.
    pub verity: Parameters,
    /// UUID in the superblock.
    pub verity_uuid: [u8; 16],
}

/// A file of the ESP besides the UKI.
#[derive(Clone, Debug)]
pub struct BootFileInput {
    /// Path on the ESP, as `EFI/BOOT/BOOTX64.EFI`.
    pub esp_path: String,
    /// The file.
    pub file: PathBuf,
}

/// What the frame says beside the manifest.
#[derive(Clone, Copy, Debug)]
pub struct Announce {
    /// Channel; 0 is `stable`.
    pub channel: u8,
    /// Whom it is for.
    pub scope: Scope,
    /// Sequence number: higher than that of every earlier release under the same root version.
    pub sequence: u32,
    /// Time of signing, seconds since 1970.
    pub signed_s: u32,
    /// Hours until it counts as possibly frozen; 0 for never.
    pub validity_h: u16,
}

/// Everything that a release is made of.
#[derive(Clone, Copy)]
pub struct ReleaseInput<'a> {
    /// Product.
    pub product: &'a str,
    /// Board.
    pub board: &'a str,
    /// Processor.
    pub arch: Arch,
    /// Version.
    pub version: &'a str,
    /// Profile name, for people.
    pub profile: &'a str,
    /// SOURCE_DATE_EPOCH.
    pub built_s: u32,
    /// The slot image.
    pub slot: SlotInput<'a>,
    /// The UKI as it will stand on the ESP.
    pub uki: &'a Path,
    /// Other files of the ESP.
    pub boot_files: &'a [BootFileInput],
    /// Room that a device must have.
    pub needs: Needs,
    /// What the frame says.
    pub announce: Announce,
    /// Who signs.
    pub keys: &'a KeyFolder,
    /// zstd level, [`DEFAULT_LEVEL`] if in doubt.
    pub level: i32,
}

/// What was made, for `build.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReleaseFacts {
    /// Bytes of the signed frame.
    pub frame_bytes: usize,
    /// Object id of the manifest.
    pub manifest: Digest,
    /// Bytes of the manifest.
    pub manifest_bytes: usize,
    /// Version of the root document under which it is signed.
    pub root_version: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Signatures that it has.
    pub signatures: usize,
    /// Signatures that it needs; those that lack are added with `farhold sign`.
    pub threshold: u8,
    /// Targets and payloads.
    pub objects: Vec<ObjectFacts>,
}

/// An object of a release.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectFacts {
    /// What it is, as `slot image`.
    pub what: String,
    /// Its id.
    pub id: Digest,
    /// Its length.
    pub bytes: u64,
    /// Whether the release folder carries it.
    pub carried: bool,
}

/// Makes the folder `out`, which appears complete or not at all.
///
/// # Errors
/// If `out` exists, an input cannot be read or breaks a rule of the format, or the disk is full.
pub fn make(input: &ReleaseInput, out: &Path, progress: &Progress) -> Result<ReleaseFacts> {
    if out.exists() {
        bail!("{} exists: name a new folder, or remove it first", out.display());
    }
    let signers = input.keys.release_signers()?;
    let parent = parent(out);
    fs::create_dir_all(&parent).with_context(|| format!("make folder {}", parent.display()))?;
    let staged = tempfile::Builder::new()
        .prefix(".farhold-release-")
        .tempdir_in(&parent)
        .with_context(|| format!("make folder in {}", parent.display()))?;
    let mut making = Making { folder: staged.path(), progress, objects: Vec::new() };
    fs::create_dir(staged.path().join(OBJECTS)).context("make folder of objects")?;

    let manifest = making.manifest(input)?;
    let bytes = manifest.encode().context("write the manifest")?;
    let object = formats::object::of(&bytes, MANIFEST_BLOCK)?;
    making.write(&folder::object(staged.path(), &object.id), &bytes)?;
    making.write_lists(&object)?;

    let mut frame = Frame::unsigned(announcement(input, &bytes, object.id)?).context("write the frame")?;
    let message = frame.unverified().signed_bytes()?;
    for signer in &signers {
        frame.sign(signer.number, signer.key.sign(&message))?;
    }
    let threshold = input.keys.root().release.threshold();
    if signers.len() >= usize::from(threshold) {
        frame.verify(&input.keys.root().release).context("check the new signatures")?;
    }
    let frame = frame.encode()?;
    making.write(&staged.path().join(ANNOUNCE), &frame)?;
    making.write(&staged.path().join(ROOTS), input.keys.roots())?;

    let facts = ReleaseFacts {
        frame_bytes: frame.len(),
        manifest: object.id,
        manifest_bytes: bytes.len(),
        root_version: input.keys.root().version,
        sequence: input.announce.sequence,
        signatures: signers.len(),
        threshold,
        objects: making.objects,
    };
    fs::set_permissions(staged.path(), fs::Permissions::from_mode(0o755))
        .context("open up release folder")?;
    fs::rename(staged.path(), out).with_context(|| format!("put release in place at {}", out.display()))?;
    Ok(facts)
}

fn announcement(input: &ReleaseInput, manifest: &[u8], id: Digest) -> Result<Announcement> {
    Ok(Announcement {
        target: target_tag(input.product, input.board, input.arch),
        channel: input.announce.channel,
        scope: input.announce.scope,
        root_version: input.keys.root().version,
        sequence: input.announce.sequence,
        min_agent_format: AGENT_FORMAT,
        signed_s: input.announce.signed_s,
        validity_h: input.announce.validity_h,
        rescue: false,
        ignored_flags: 0,
        manifest_bytes: u32::try_from(manifest.len()).context("manifest is too long for a frame")?,
        manifest: id,
        extensions: Vec::new(),
    })
}

/// A release folder while it is filled.
struct Making<'a> {
    folder: &'a Path,
    progress: &'a Progress,
    objects: Vec<ObjectFacts>,
}

impl Making<'_> {
    fn manifest(&mut self, input: &ReleaseInput) -> Result<Manifest> {
        let (slot, full) = self.slot(input)?;
        let uki = self.carried("UKI", input.uki, TargetKind::Uki)?;
        let mut payloads = vec![full];
        payloads.extend(self.packed_uki(input, &uki)?);
        let mut targets = vec![slot, uki];
        for boot in input.boot_files {
            let kind = TargetKind::BootFile { path: boot.esp_path.clone() };
            targets.push(self.carried(&format!("boot file {}", boot.esp_path), &boot.file, kind)?);
        }
        Ok(Manifest {
            product: input.product.to_owned(),
            board: input.board.to_owned(),
            arch: input.arch,
            version: input.version.to_owned(),
            min_agent_format: AGENT_FORMAT,
            built_s: input.built_s,
            needs: input.needs,
            targets: targets.into_iter().map(Entry::Known).collect(),
            payloads: payloads.into_iter().map(Entry::Known).collect(),
            profile: Some(input.profile.to_owned()),
            ignored: Default::default(),
        })
    }

    /// The slot image: its lists, and one compressed payload instead of its bytes.
    fn slot(&mut self, input: &ReleaseInput) -> Result<(Target, Payload)> {
        let slot = &input.slot;
        let partial = self.folder.join("payload.partial");
        let sink = ObjectFile::create(&partial)?;
        let mut source = Source::open(slot.image, "compress slot image", self.progress)?;
        let mut encoder = compressor(sink, input.level, source.length).context("set up compression")?;
        let mut target = Builder::new(BLOCK);
        let mut chunk = vec![0; CHUNK];
        while let Some(part) = source.next(&mut chunk)? {
            target.push(part);
            encoder.write_all(part).with_context(|| format!("write {}", partial.display()))?;
        }
        let (image, packed) = (target.finish()?, encoder.finish().context("end compression")?.finish()?);
        if image.geometry.length() != slot.verity.data_blocks * formats::verity::BLOCK as u64 {
            let (is, blocks) = (image.geometry.length(), slot.verity.data_blocks);
            bail!(
                "slot image {} has {is} bytes, but its hash tree is for {blocks} blocks",
                slot.image.display()
            );
        }
        fs::rename(&partial, folder::object(self.folder, &packed.id)).context("name the payload")?;
        self.write_lists(&image)?;
        self.write_lists(&packed)?;
        self.note("slot image", &image, false);
        self.note("slot image, full payload", &packed, true);
        let kind =
            TargetKind::Slot { roothash: slot.roothash, salt: slot.verity.salt, uuid: slot.verity_uuid };
        let target = Target { object: ObjectRef::from(&image), kind, ignored: Default::default() };
        let kind = PayloadKind::Full { window_log: WINDOW_LOG };
        let payload =
            Payload { target: 0, object: ObjectRef::from(&packed), kind, ignored: Default::default() };
        Ok((target, payload))
    }

    /// A target that is carried as it is.
    fn carried(&mut self, what: &str, path: &Path, kind: TargetKind) -> Result<Target> {
        let partial = self.folder.join("object.partial");
        let mut sink = ObjectFile::create(&partial)?;
        let mut source = Source::open(path, &format!("copy {what}"), self.progress)?;
        let mut chunk = vec![0; CHUNK];
        while let Some(part) = source.next(&mut chunk)? {
            sink.write_all(part).with_context(|| format!("write {}", partial.display()))?;
        }
        let object = sink.finish()?;
        fs::rename(&partial, folder::object(self.folder, &object.id)).context("name an object")?;
        self.write_lists(&object)?;
        self.note(what, &object, true);
        Ok(Target { object: ObjectRef::from(&object), kind, ignored: Default::default() })
    }

    /// The UKI compressed, if that makes it smaller: its initrd is not.
    fn packed_uki(&mut self, input: &ReleaseInput, uki: &Target) -> Result<Option<Payload>> {
        let partial = self.folder.join("payload.partial");
        let (packed, window_log) = full_payload(input.uki, input.level, &partial, self.progress)?;
        let object = ObjectRef::from(&packed);
        if object.fetch_bytes() >= uki.object.fetch_bytes() {
            fs::remove_file(&partial).context("remove a payload that is not smaller")?;
            return Ok(None);
        }
        fs::rename(&partial, folder::object(self.folder, &packed.id)).context("name the payload")?;
        self.write_lists(&packed)?;
        self.note("UKI, full payload", &packed, true);
        let kind = PayloadKind::Full { window_log };
        Ok(Some(Payload { target: 1, object, kind, ignored: Default::default() }))
    }

    fn note(&mut self, what: &str, object: &Object, carried: bool) {
        let bytes = object.geometry.length();
        self.objects.push(ObjectFacts { what: what.to_owned(), id: object.id, bytes, carried });
    }

    /// Lists of more than one hash: that of a single block follows from the block.
    fn write_lists(&self, object: &Object) -> Result<()> {
        if object.geometry.blocks() <= 1 {
            return Ok(());
        }
        self.write(&folder::lists(self.folder, &object.id), &object.lists)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().with_context(|| format!("write {}", path.display()))
    }
}

/// Compresses a target into `out` and gives the payload's object and window, binary logarithm.
///
/// # Errors
/// If a file cannot be read or written, or the level is none of zstd's.
pub fn full_payload(target: &Path, level: i32, out: &Path, progress: &Progress) -> Result<(Object, u8)> {
    let levels = zstd::compression_level_range();
    if !levels.contains(&level) {
        bail!("zstd level is {level}, but must be {} to {}", levels.start(), levels.end());
    }
    let mut source = Source::open(target, "compress payload", progress)?;
    let sink = ObjectFile::create(out)?;
    let mut encoder = compressor(sink, level, source.length).context("set up compression")?;
    let mut chunk = vec![0; CHUNK];
    while let Some(part) = source.next(&mut chunk)? {
        encoder.write_all(part).with_context(|| format!("write {}", out.display()))?;
    }
    Ok((encoder.finish().context("end compression")?.finish()?, WINDOW_LOG))
}

fn compressor(sink: ObjectFile, level: i32, length: u64) -> io::Result<zstd::Encoder<'static, ObjectFile>> {
    let mut encoder = zstd::Encoder::new(sink, level)?;
    configure(&mut encoder, WORKERS, length)?;
    Ok(encoder)
}

fn configure<W: Write>(encoder: &mut zstd::Encoder<'_, W>, workers: u32, length: u64) -> io::Result<()> {
    encoder.window_log(WINDOW_LOG.into())?;
    encoder.multithread(workers)?;
    encoder.set_pledged_src_size(Some(length))?;
    encoder.include_contentsize(true)
}

/// A file that is read once, in order, to its length at opening.
struct Source {
    file: File,
    path: PathBuf,
    length: u64,
    left: u64,
    bar: Bar,
}

impl Source {
    fn open(path: &Path, what: &str, progress: &Progress) -> Result<Self> {
        let file = folder::open(path)?;
        let length = file.metadata().with_context(|| format!("read {}", path.display()))?.len();
        Ok(Self { file, path: path.to_owned(), length, left: length, bar: progress.bytes(what, length) })
    }
    fn next<'c>(&mut self, chunk: &'c mut [u8]) -> Result<Option<&'c [u8]>> {
        let now = self.left.min(chunk.len() as u64) as usize;
        if now == 0 {
            return Ok(None);
        }
        let part = &mut chunk[..now];
        self.file.read_exact(part).with_context(|| format!("read {}", self.path.display()))?;
        self.left -= now as u64;
        self.bar.add(now as u64);
        Ok(Some(part))
    }
}

/// A file that learns its object id while it is written.
struct ObjectFile {
    file: BufWriter<File>,
    builder: Builder,
    path: PathBuf,
}

impl ObjectFile {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("write {}", path.display()))?;
        let file = BufWriter::with_capacity(CHUNK, file);
        Ok(Self { file, builder: Builder::new(BLOCK), path: path.to_owned() })
    }
    fn finish(self) -> Result<Object> {
        let flush = || -> io::Result<()> { self.file.into_inner()?.sync_all() };
        flush().with_context(|| format!("write {}", self.path.display()))?;
        Ok(self.builder.finish()?)
    }
}

impl Write for ObjectFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.builder.push(&bytes[..written]);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_workers_does_not_change_a_payload() {
        // Twelve jobs of data that is neither noise nor trivial.
        let mut state = 1u32;
        let data: Vec<u8> = (0..48u32 << 20)
            .map(|n| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                if n % 4096 < 2048 { (state >> 28) as u8 } else { (n >> 12) as u8 }
            })
            .collect();
        let packed = |workers| {
            let mut encoder = zstd::Encoder::new(Vec::new(), DEFAULT_LEVEL).unwrap();
            configure(&mut encoder, workers, data.len() as u64).unwrap();
            encoder.write_all(&data).unwrap();
            encoder.finish().unwrap()
        };
        let two = packed(WORKERS);
        assert!(two == packed(1) && two == packed(5), "payloads depend on the machine");
    }
}
