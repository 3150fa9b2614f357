//! Makes adaptive payloads (`formats::blocks`): the slot image in small units, each packed by itself, behind an index of
//! its pages, for devices whose slot no delta starts from.

use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use formats::blocks::{Cut, Index, mark};
use formats::object::{BlockSize, Builder, Object};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes of a unit, binary logarithm: smaller ones pack worse, of larger ones more is fetched for one new page.
const UNIT_LOG2: u8 = 15;
/// zstd level of units: a few seconds for an image.
const LEVEL: i32 = 9;
/// Largest block, so that little beside a unit is fetched with it.
const BLOCK_MAX_LOG2: u8 = 14;

/// Writes the payload of `image` to `out`; gives its object in blocks of at most `block`, and the length of its index.
///
/// # Errors
/// If a file cannot be read or written, or the image is not whole pages.
pub fn make(image: &Path, out: &Path, block: BlockSize, progress: &Progress) -> Result<(Object, u64)> {
    let reading = || format!("read {}", image.display());
    let writing = || format!("write {}", out.display());
    let mut source = BufReader::new(File::open(image).with_context(reading)?);
    let bytes = source.get_ref().metadata().with_context(reading)?.len();
    let cut = Cut::new(bytes, UNIT_LOG2).with_context(|| format!("cut {}", image.display()))?;
    let file = File::options().read(true).write(true).create(true).truncate(true).open(out);
    let mut sink = BufWriter::new(file.with_context(writing)?);
    sink.seek(SeekFrom::Start(cut.index_bytes())).with_context(writing)?;
    let bar = progress.bytes("pack units", bytes);
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).context("set up compression")?;
    let (mut lengths, mut marks, mut total) = (Vec::new(), Vec::new(), cut.index_bytes());
    for number in 0..cut.units() {
        let range = cut.unit(number);
        let mut unit = vec![0; usize::try_from(range.end - range.start)?];
        source.read_exact(&mut unit).with_context(reading)?;
        marks.extend(unit.chunks(formats::verity::BLOCK).map(mark));
        let packed = compressor.compress(&unit).context("compress a unit")?;
        let stored = if packed.len() < unit.len() { &packed } else { &unit };
        if stored.len() < unit.len() {
            let back = zstd::bulk::decompress(stored, unit.len()).context("check a unit")?;
            ensure!(back == unit, "unit {number} does not come back");
        }
        sink.write_all(stored).with_context(writing)?;
        lengths.push(u32::try_from(stored.len())?);
        total += stored.len() as u64;
        bar.add(unit.len() as u64);
    }
    let index = cut.write(&lengths, &marks);
    Index::parse(&index, total, bytes).context("check the index")?;
    sink.seek(SeekFrom::Start(0)).with_context(writing)?;
    sink.write_all(&index).with_context(writing)?;
    sink.flush().with_context(writing)?;
    let block = BlockSize::from_log2(block.log2().min(BLOCK_MAX_LOG2)).unwrap_or(block);
    Ok((object(sink.into_inner().with_context(writing)?, block)?, cut.index_bytes()))
}

fn object(mut file: File, block: BlockSize) -> Result<Object> {
    file.rewind().context("read the payload again")?;
    let mut builder = Builder::new(block);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk).context("read the payload again")?;
        if n == 0 {
            return Ok(builder.finish()?);
        }
        builder.push(&chunk[..n]);
    }
}
