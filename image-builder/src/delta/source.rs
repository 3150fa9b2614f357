//! Images on disk, for reading at any offset, and their digests.

use anyhow::{Context, Result, ensure};
use formats::delta::container::Digest;
use formats::delta::{MAX_IMAGE, ReadAt, Sink};
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A file or block device opened for reading.
#[derive(Debug)]
pub struct Image {
    file: File,
    size: u64,
    /// Further bytes behind the image: a file and the offset that it is taken to lie at.
    texts: Option<(File, u64)>,
    /// Where the image itself ends.
    end: u64,
}

impl Image {
    /// Opens `path`.
    ///
    /// # Errors
    /// If it cannot be opened, or is longer than deltas can be.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let folder = file.metadata().is_ok_and(|found| found.is_dir());
        ensure!(!folder, "read {}: it is a folder; give an image or a file", path.display());
        // A block device has no length of its own; its end is found by seeking.
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))
            .with_context(|| format!("measure {}", path.display()))?;
        ensure!(
            size <= MAX_IMAGE,
            "read {}: it has {size} bytes, but deltas end at {MAX_IMAGE}",
            path.display()
        );
        Ok(Self { file, size, texts: None, end: size })
    }

    /// The image with `len` bytes of `texts` taken to lie at `start`, behind it; zeros between.
    ///
    /// # Errors
    /// If the image cannot be opened twice.
    pub fn with_texts(&self, texts: File, start: u64, len: u64) -> Result<Self> {
        let file = self.file.try_clone().context("open the new image twice")?;
        let size = if len == 0 { self.size } else { start + len };
        Ok(Self { file, size, texts: (len > 0).then_some((texts, start)), end: self.end })
    }

    /// The bytes from `offset`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn bytes(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        self.read_at(offset, &mut bytes).with_context(|| format!("read {len} bytes at {offset}"))?;
        Ok(bytes)
    }

    /// SHA-256 of `len` bytes from `offset`, read in parts.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn digest(&self, offset: u64, len: u64) -> Result<Digest> {
        let mut hasher = Sha256::new();
        let mut at = offset;
        while at < offset + len {
            let part = (offset + len - at).min(1 << 20);
            hasher.update(self.bytes(at, part)?);
            at += part;
        }
        Ok(hasher.finalize().into())
    }
}

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some((texts, start)) = &self.texts else { return self.file.read_exact_at(buf, offset) };
        if offset >= *start {
            return texts.read_exact_at(buf, offset - start);
        }
        let inside = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (image, gap) = buf.split_at_mut(inside);
        let zeros = usize::try_from(start - self.end.max(offset)).unwrap_or(usize::MAX).min(gap.len());
        let (gap, text) = gap.split_at_mut(zeros);
        gap.fill(0);
        self.file.read_exact_at(image, offset)?;
        texts.read_exact_at(text, 0)
    }
}

/// A file that verified groups are written to.
pub struct Output(pub File);

impl ReadAt for Output {
    fn size(&self) -> u64 {
        self.0.metadata().map_or(0, |found| found.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

impl Sink for Output {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
}
