//! `farhold delta`: makes, applies and shows deltas between two images or files.

use crate::delta::source::{Image, Output};
use crate::delta::{Made, make};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use formats::delta::apply::Decoder;
use formats::delta::container::{self, Digest, Header, Index};
use formats::delta::object::Kind;
use formats::delta::{ReadAt, Sink};
use formats::hex;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Makes, applies and shows deltas between two images or files.
#[derive(clap::Args)]
pub struct DeltaCmd {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make the delta from OLD to NEW.
    Make {
        /// Image or file that the device has.
        old: PathBuf,
        /// Image or file that it should have.
        new: PathBuf,
        /// Where the delta goes.
        #[arg(long, value_name = "DELTA")]
        out: PathBuf,
        /// Threads; default: one per processor.
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Make NEW from OLD and the delta; every group is checked before it is written.
    Apply {
        /// Image or file that the delta was made from.
        old: PathBuf,
        /// The delta.
        delta: PathBuf,
        /// Where the result goes.
        #[arg(long, value_name = "NEW")]
        out: PathBuf,
    },
    /// Show what a delta consists of.
    Stat {
        /// The delta.
        delta: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

impl DeltaCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If a file cannot be read or written, or does not fit the others.
    pub fn run(&self) -> Result<ExitCode> {
        match &self.action {
            Action::Make { old, new, out, jobs } => {
                let threads =
                    jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
                make_file(old, new, out, threads)?;
            }
            Action::Apply { old, delta, out } => apply(old, delta, out)?,
            Action::Stat { delta, json } => stat(delta, *json)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes a file beside `path` and renames it once `fill` is done.
fn write_new(path: &Path, fill: impl FnOnce(&mut std::fs::File) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // As other files are: for everybody whom the umask allows.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .permissions(mode)
        .tempfile_in(folder)
        .with_context(|| format!("create a file in {}", folder.display()))?;
    fill(file.as_file_mut())?;
    file.as_file().sync_all().with_context(|| format!("write {}", path.display()))?;
    file.persist(path).with_context(|| format!("rename to {}", path.display()))?;
    Ok(())
}

fn make_file(old: &Path, new: &Path, out: &Path, threads: usize) -> Result<()> {
    let (old, new) = (Image::open(old)?, Image::open(new)?);
    let Made { bytes, methods, .. } = make(&old, &new, threads, &Progress::stderr())?;
    write_new(out, |file| file.write_all(&bytes).with_context(|| format!("write {}", out.display())))?;
    println!("{}: {} bytes for {} bytes of output", out.display(), bytes.len(), new.size());
    for (method, (files, len)) in methods {
        println!("  {method}: {files} changed files, {len} bytes");
    }
    Ok(())
}

/// Output that is written and hashed; groups come in order.
struct Hashed {
    output: Output,
    hash: Sha256,
    bar: crate::progress::Bar,
}

impl ReadAt for Hashed {
    fn size(&self) -> u64 {
        self.output.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.output.read_at(offset, buf)
    }
}

impl Sink for Hashed {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.bar.add(bytes.len() as u64);
        self.output.write_at(offset, bytes)
    }
}

fn apply(old: &Path, delta: &Path, out: &Path) -> Result<()> {
    let (source, patch) = (Image::open(old)?, Image::open(delta)?);
    let mut decoder = Decoder::open(&source, &patch)?;
    let header = decoder.header().clone();
    let progress = Progress::stderr();
    let busy = progress.busy("check the old image");
    if source.digest(0, source.size())? != header.old_digest {
        bail!(
            "apply {}: SHA-256 of {} is not the one that the delta was made for ({}); use the delta for this image, or the full payload",
            delta.display(),
            old.display(),
            hex::encode(&header.old_digest)
        );
    }
    drop(busy);
    write_new(out, |file| {
        let output = Output(file.try_clone().with_context(|| format!("open {}", out.display()))?);
        let bar = progress.bytes("apply", header.new_len);
        let mut sink = Hashed { output, hash: Sha256::new(), bar };
        decoder.run(&mut |_| true, &mut sink).with_context(|| format!("apply {}", delta.display()))?;
        let found: Digest = sink.hash.finalize().into();
        if found != header.new_digest {
            bail!(
                "apply {}: the result's SHA-256 is not the one that the delta states; nothing was kept",
                delta.display()
            );
        }
        Ok(())
    })
}

/// What the objects of one kind consist of.
#[derive(Default, serde::Serialize)]
struct ObjectFacts {
    objects: u64,
    new_bytes: u64,
    copies: u64,
    ranges: u64,
}

fn objects(delta: &Image, header: &Header, index: &Index) -> Result<BTreeMap<&'static str, ObjectFacts>> {
    let mut facts: BTreeMap<&'static str, ObjectFacts> = BTreeMap::new();
    for bundle in &index.bundles {
        let bytes = container::read_bundle(delta, bundle)?;
        for number in bundle.first..bundle.first + bundle.objects {
            let map = container::map_in(&bytes, bundle, number, (header.old_len, index.space(header)))?;
            let kind = match map.kind {
                Kind::Elf(_) => "elf",
                Kind::Erofs => "erofs",
                Kind::Module(_) => "module",
                Kind::Values => "values",
            };
            let entry = facts.entry(kind).or_default();
            entry.objects += 1;
            entry.new_bytes += map.new.len;
            entry.copies += map.copies.len() as u64;
            entry.ranges += map.ranges.len() as u64;
        }
    }
    Ok(facts)
}

fn stat(path: &Path, json: bool) -> Result<()> {
    let delta = Image::open(path)?;
    let (header, index) = container::open(&delta).with_context(|| format!("read {}", path.display()))?;
    let objects = objects(&delta, &header, &index).with_context(|| format!("read {}", path.display()))?;
    let maps: u64 = index.bundles.iter().map(|bundle| bundle.packed).sum();
    let sizes: Vec<u64> = index.groups.iter().map(|group| group.packed).collect();
    let (groups, largest) = (sizes.iter().sum::<u64>(), sizes.iter().max().copied().unwrap_or(0));
    let (old, new) = (hex::encode(&header.old_digest), hex::encode(&header.new_digest));
    if json {
        let value = serde_json::json!({
            "bytes": header.total, "old_bytes": header.old_len, "new_bytes": header.new_len,
            "old_sha256": old, "new_sha256": new, "group_bytes": header.group_len(), "groups": sizes,
            "texts": index.texts.iter().map(|text| text.len).collect::<Vec<_>>(), "objects": objects, "index_bytes": header.index_packed, "map_bytes": maps, "data_bytes": groups,
        });
        println!("{value}");
        return Ok(());
    }
    let (total, packed) = (header.total, header.index_packed);
    println!("{}: {total} bytes: header 144, index {packed}, maps {maps}, groups {groups}", path.display());
    println!("  old: {} bytes, SHA-256 {old}", header.old_len);
    println!("  new: {} bytes, SHA-256 {new}", header.new_len);
    println!("  {} groups of {} bytes, largest {largest} bytes", index.groups.len(), header.group_len());
    for text in &index.texts {
        println!("  text of a compressed file: {} bytes", text.len);
    }
    for (kind, ObjectFacts { objects, new_bytes, copies, ranges }) in objects {
        println!("  {kind}: {objects} objects, {new_bytes} bytes, {copies} copies, {ranges} ranges");
    }
    Ok(())
}
