//! Writes an image to a device and proves that it is there: reads, writes and hashes in pieces, past the page cache, then
//! reads everything back from the medium.
//!
//! The first piece, with which the firmware would find a system, is zeroed first and written last: a device that was
//! left halfway has nothing that starts. Which device, and whether it may be lost, is decided elsewhere.

pub mod inuse;
pub mod map;

use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::hex::Digest;
use map::{ALIGNMENT, Map, PIECE, Piece};
use nix::fcntl::OFlag;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Pieces between reader and writer at most.
const AHEAD: usize = 4;
/// Readers of the medium while it is checked.
const CHECKERS: usize = 2;

/// What is written, and where.
pub struct Job<'a> {
    /// Image, plain or `.zst`.
    pub image: &'a Path,
    /// Device, or a file that stands for one.
    pub device: &'a Path,
    /// What of the image means something; `None` for every byte.
    pub map: Option<&'a Map>,
    /// Set, the work ends as soon as it can.
    pub cancel: &'a AtomicBool,
}

/// Told of bytes written and of bytes read back.
pub trait Watch: Sync {
    /// So many bytes more were written.
    fn written(&self, bytes: u64);
    /// So many bytes more were read back and are right.
    fn checked(&self, bytes: u64);
}

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// Length of the image.
    pub bytes: u64,
    /// Bytes that were written and read back.
    pub written: u64,
}

/// A buffer whose contents begin at an aligned address.
struct Buffer {
    memory: Vec<u8>,
    from: usize,
    bytes: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; PIECE as usize + ALIGNMENT as usize];
        let from = memory.as_ptr().align_offset(ALIGNMENT as usize);
        Self { memory, from, bytes: 0 }
    }
    fn part(&mut self, bytes: usize) -> &mut [u8] {
        self.bytes = bytes;
        &mut self.memory[self.from..self.from + bytes]
    }
    fn contents(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.bytes]
    }
}

/// A device that is written to: past the page cache where it can be.
struct Target {
    direct: File,
    plain: File,
    aligned: bool,
    name: String,
}

impl Target {
    fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let block = std::os::unix::fs::FileTypeExt::is_block_device(
            &std::fs::metadata(path).with_context(|| format!("look at {name}"))?.file_type(),
        );
        // The kernel refuses a block device that is mounted or part of something when it is opened so.
        let exclusive = if block { OFlag::O_EXCL.bits() } else { 0 };
        let open = |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let plain = open(exclusive)
            .with_context(|| format!("open {name} for writing: is it mounted, in use or write-protected?"))?;
        let direct = open(OFlag::O_DIRECT.bits());
        let aligned = direct.is_ok();
        let direct = match direct {
            Ok(direct) => direct,
            Err(_) => plain.try_clone().with_context(|| format!("open {name}"))?,
        };
        Ok(Self { direct, plain, aligned, name })
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let whole = bytes.len().is_multiple_of(ALIGNMENT as usize) && self.aligned;
        let file = if whole { &self.direct } else { &self.plain };
        file.write_all_at(bytes, at)
            .with_context(|| format!("write {} bytes at byte {at} of {}", bytes.len(), self.name))
    }

    fn read(&self, into: &mut [u8], at: u64) -> Result<()> {
        let whole = into.len().is_multiple_of(ALIGNMENT as usize) && self.aligned;
        let file = if whole { &self.direct } else { &self.plain };
        file.read_exact_at(into, at).with_context(|| format!("read {} at byte {at}", self.name))
    }

    fn sync(&self) -> Result<()> {
        self.plain.sync_all().with_context(|| format!("flush {}", self.name))
    }
}

/// Length of a device or file, bytes.
///
/// # Errors
/// If it cannot be opened.
pub fn length(path: &Path) -> Result<u64> {
    let what = || format!("read the size of {}", path.display());
    let mut file = File::open(path).with_context(what)?;
    file.seek(SeekFrom::End(0)).with_context(what)
}

/// Writes and checks.
///
/// # Errors
/// What failed; nothing starts from the device then, unless nothing was written yet, which the message says.
pub fn flash(job: &Job<'_>, watch: &dyn Watch) -> Result<Done> {
    look(job).context("nothing was written")?;
    let has = length(job.device)?;
    if let Some(map) = job.map {
        fits(map.bytes, has)?;
    } else if !packed(job.image) {
        fits(length(job.image)?, has)?;
    }
    let target = Target::open(job.device)?;
    put(job, &target, has, watch)
        .with_context(|| format!("{} holds nothing that starts now; flash it again", target.name))
}

/// Whether the image is one, and not what it would overwrite.
///
/// # Errors
/// If not.
pub fn look(job: &Job<'_>) -> Result<()> {
    let what = || format!("look at {}", job.image.display());
    let meta = std::fs::metadata(job.image).with_context(what)?;
    ensure!(!meta.is_dir(), "{} is a folder, not an image", job.image.display());
    let device = std::fs::metadata(job.device).with_context(|| {
        format!("look at {} (`farhold devices` lists what is there)", job.device.display())
    })?;
    let place = |meta: &std::fs::Metadata| (meta.dev(), meta.ino());
    ensure!(place(&meta) != place(&device), "{} is the image itself", job.device.display());
    let mut start = vec![0; ALIGNMENT as usize];
    let got = source(job.image)?.get(0, &mut start).with_context(|| reading(job.image))?;
    ensure!(got > 0, "the image {} is empty", job.image.display());
    Ok(())
}

fn put(job: &Job<'_>, target: &Target, has: u64, watch: &dyn Watch) -> Result<Done> {
    let mut first = Buffer::new();
    target.write(first.part((1 << 20).min(has / ALIGNMENT * ALIGNMENT) as usize), 0)?;
    target.sync()?;
    let (pieces, bytes) = copy(job, target, (has, &mut first), watch)?;
    target.sync()?;
    check(job, target, &pieces[1..], watch)?;
    cancelled(job)?;
    // Now everything that the first piece leads to is there.
    target.write(first.contents(), 0)?;
    watch.written(first.contents().len() as u64);
    target.sync()?;
    check(job, target, &pieces[..1], watch)?;
    Ok(Done { bytes, written: pieces.iter().map(|piece| piece.bytes).sum() })
}

fn fits(image: u64, device: u64) -> Result<()> {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    ensure!(
        image <= device,
        "the image has {} MiB, the device only {} MiB: nothing was written",
        mib(image),
        mib(device)
    );
    Ok(())
}

fn packed(image: &Path) -> bool {
    image.extension().is_some_and(|extension| extension == "zst")
}

fn cancelled(job: &Job<'_>) -> Result<()> {
    ensure!(!job.cancel.load(Ordering::Relaxed), "cancelled");
    Ok(())
}

/// A piece on its way.
struct Loaded {
    piece: Piece,
    buffer: Buffer,
}

/// Copies all pieces but the first, which it leaves in `first`; gives them with their digests, and the image's length.
fn copy(
    job: &Job<'_>,
    target: &Target,
    (has, first): (u64, &mut Buffer),
    watch: &dyn Watch,
) -> Result<(Vec<Piece>, u64)> {
    let (send, receive) = sync_channel::<Loaded>(AHEAD);
    let (back, spare) = sync_channel::<Buffer>(AHEAD + 2);
    for _ in 0..AHEAD + 2 {
        back.send(Buffer::new()).context("make buffers")?;
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || read(job, has, &send, &spare));
        let mut pieces: Vec<Piece> = Vec::new();
        for loaded in &receive {
            cancelled(job)?;
            if pieces.is_empty() {
                first.part(loaded.buffer.bytes).copy_from_slice(loaded.buffer.contents());
            } else {
                target.write(loaded.buffer.contents(), loaded.piece.start)?;
                watch.written(loaded.piece.bytes);
            }
            pieces.push(loaded.piece);
            // The reader may have ended already.
            drop(back.send(loaded.buffer));
        }
        let bytes = reader.join().unwrap_or_else(|_| Err(anyhow!("the reader died")))?;
        ensure!(pieces.first().is_some_and(|piece| piece.start == 0), "the image is empty");
        Ok((pieces, bytes))
    })
}

/// Reads the image in order and sends its pieces; gives the image's length.
fn read(job: &Job<'_>, has: u64, send: &SyncSender<Loaded>, spare: &Receiver<Buffer>) -> Result<u64> {
    let mut source = source(job.image)?;
    let mut pass = |start: u64, bytes: u64, wanted: Option<Digest>| -> Result<u64> {
        let Ok(mut buffer) = spare.recv() else { return Ok(0) };
        let got = source.get(start, buffer.part(bytes as usize)).with_context(|| reading(job.image))?;
        buffer.part(got);
        if got == 0 {
            return Ok(0);
        }
        let sha256 = map::digest(buffer.contents());
        if wanted.is_some_and(|wanted| wanted != sha256 || got as u64 != bytes) {
            bail!(
                "{} at byte {start} is not what its builder declared: it is damaged, or not the image of {}",
                job.image.display(),
                map::beside(job.image).display()
            );
        }
        let piece = Piece { start, bytes: got as u64, sha256 };
        // The writer ended with an error of its own.
        Ok(if send.send(Loaded { piece, buffer }).is_ok() { got as u64 } else { 0 })
    };
    if let Some(map) = job.map {
        for piece in &map.pieces {
            if pass(piece.start, piece.bytes, Some(piece.sha256))? == 0 {
                break;
            }
        }
        return Ok(map.bytes);
    }
    let mut at = 0;
    loop {
        let most = if at == 0 { 1 << 20 } else { PIECE };
        let got = pass(at, most, None)?;
        at += got;
        ensure!(at <= has, "the image is longer than the device");
        if got < most {
            return Ok(at);
        }
    }
}

fn reading(image: &Path) -> String {
    let packed =
        if packed(image) { ": it is cut off, damaged, or not packed by zstd; fetch it again" } else { "" };
    format!("read {}{packed}", image.display())
}

fn source(image: &Path) -> Result<Box<dyn Source>> {
    let what = || format!("read {}", image.display());
    let file = File::open(image).with_context(what)?;
    Ok(if packed(image) {
        Box::new(Unpacked { decoder: zstd::Decoder::new(file).with_context(what)?, at: 0 })
    } else {
        Box::new(file)
    })
}

/// An image, read in ascending order.
trait Source {
    /// Fills `into` with what stands at `at`; fewer bytes only at the end.
    fn get(&mut self, at: u64, into: &mut [u8]) -> std::io::Result<usize>;
}

impl Source for File {
    fn get(&mut self, at: u64, into: &mut [u8]) -> std::io::Result<usize> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read_at(&mut into[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }
}

/// A packed image; what lies between pieces is unpacked and dropped.
struct Unpacked<R: std::io::BufRead> {
    decoder: zstd::Decoder<'static, R>,
    at: u64,
}

impl<R: std::io::BufRead> Source for Unpacked<R> {
    fn get(&mut self, at: u64, into: &mut [u8]) -> std::io::Result<usize> {
        let skipped = std::io::copy(&mut (&mut self.decoder).take(at - self.at), &mut std::io::sink())?;
        self.at += skipped;
        let mut filled = 0;
        while filled < into.len() {
            match self.decoder.read(&mut into[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }
}

/// Reads pieces back from the medium and compares their digests.
fn check(job: &Job<'_>, target: &Target, pieces: &[Piece], watch: &dyn Watch) -> Result<()> {
    if !target.aligned {
        // Without a way past the page cache, at least its pages must go.
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&target.plain, 0, 0, advice).context("drop cached pages")?;
    }
    let share = |n: usize| pieces.iter().skip(n).step_by(CHECKERS);
    std::thread::scope(|scope| {
        let checkers: Vec<_> = (0..CHECKERS)
            .map(|n| {
                scope.spawn(move || -> Result<()> {
                    let mut buffer = Buffer::new();
                    for piece in share(n) {
                        cancelled(job)?;
                        let part = buffer.part(piece.bytes as usize);
                        target.read(part, piece.start)?;
                        ensure!(
                            map::digest(part) == piece.sha256,
                            "{} returns other bytes than were written, at byte {}: the medium is failing or lies about \
                             its size; take another",
                            target.name,
                            piece.start
                        );
                        watch.checked(piece.bytes);
                    }
                    Ok(())
                })
            })
            .collect();
        checkers.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| Err(anyhow!("a checker died"))))
    })
}

#[cfg(test)]
mod tests;
