//! Makes a target out of a staged object: as it is, decompressed, as a delta to what runs, or out of the units that the
//! running slot lacks. Streams; what comes out is bounded by the target's length, and proved by whoever takes it.

use crate::io::disk::Disk;
use crate::update::adaptive;
use crate::update::carrier::Failure;
use crate::update::plan::{Method, Way};
use crate::update::staging::{Staging, Unreadable};
use crate::update::step::{Fault, words};
use anyhow::Result;
use formats::delta::apply::Decoder;
use formats::delta::{DeltaError, ReadAt};
use std::cell::RefCell;
use std::io::{BufReader, Read};

const CHUNK: usize = 1 << 20;

/// Where a target's bytes go, in order, in pieces of [`CHUNK`] but the last.
pub trait Target {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`Failure`], if they cannot be kept.
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure>;
    /// Reads bytes that were taken, which deltas refer back to.
    ///
    /// # Errors
    /// The disk's, or if this target cannot be read.
    fn taken(&self, at: u64, into: &mut [u8]) -> std::io::Result<()>;
}

/// Takes the next bytes of a target.
pub type Out<'o> = dyn FnMut(&[u8]) -> Result<(), Failure> + 'o;

/// Decodes a complete staged object; `base` is what a delta begins from.
///
/// # Errors
/// [`Failure`]: [`Fault::Incomplete`] if blocks must be fetched again, [`Fault::Damaged`] if the payload does not give
/// exactly `length` bytes.
pub fn decode<D: Disk>(
    way: &Way,
    base: Option<Box<dyn Disk>>,
    staging: Staging<D>,
    length: u64,
    target: &mut dyn Target,
) -> Result<(), Failure> {
    match (&way.method, base) {
        (Method::Plain | Method::Zstd { .. }, _) => {
            stream(way, staging, length, &mut |bytes| target.take(bytes))
        }
        (Method::Delta { base_bytes }, Some(disk)) => {
            let old = Base { disk, bytes: *base_bytes };
            delta(way, &old, staging, length, target)
        }
        (Method::Adaptive { index_bytes, .. }, Some(disk)) => {
            let mut staging = staging;
            let index = adaptive::index(&mut staging, *index_bytes, length)?;
            adaptive::decode(&index, disk.as_ref(), &mut staging, &mut |bytes| target.take(bytes))
        }
        (Method::Adaptive { .. } | Method::Delta { .. }, None) => {
            Err(Failure::new(Fault::Damaged, "this payload needs a base, which is not here"))
        }
    }
}

fn unusable(unreadable: Unreadable, way: &Way) -> Failure {
    match unreadable {
        Unreadable::Missing(index) => {
            let why = format!("block {index} of object {} is damaged in the staging area", way.object.id);
            Failure::new(Fault::Incomplete, why)
        }
        Unreadable::Disk(error) => Failure::local(&error),
    }
}

/// What a delta begins from.
struct Base {
    disk: Box<dyn Disk>,
    bytes: u64,
}

impl ReadAt for Base {
    fn size(&self) -> u64 {
        self.bytes
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        self.disk.read(offset, buf).map_err(std::io::Error::other)
    }
}

/// The first bytes of a target.
struct Written<'t> {
    target: &'t dyn Target,
    bytes: u64,
}

impl ReadAt for Written<'_> {
    fn size(&self) -> u64 {
        self.bytes
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::io::Result<()> {
        self.target.taken(offset, buf)
    }
}

/// A staged object at any offset. The last block is kept: the decoder reads in small pieces.
struct Payload<D> {
    staging: RefCell<Staging<D>>,
    last: RefCell<(u64, Vec<u8>)>,
    failed: RefCell<Option<Unreadable>>,
}

impl<D: Disk> ReadAt for Payload<D> {
    fn size(&self) -> u64 {
        self.staging.borrow().geometry().length()
    }
    fn read_at(&self, mut offset: u64, mut buf: &mut [u8]) -> std::io::Result<()> {
        let block = u64::from(self.staging.borrow().geometry().block().bytes());
        let mut last = self.last.borrow_mut();
        while !buf.is_empty() {
            let index = offset / block;
            if last.1.is_empty() || last.0 != index {
                match self.staging.borrow_mut().read(index) {
                    Ok(bytes) => *last = (index, bytes),
                    Err(unreadable) => {
                        *self.failed.borrow_mut() = Some(unreadable);
                        return Err(std::io::Error::other("staged block"));
                    }
                }
            }
            let from = (offset % block) as usize;
            let part = last.1.get(from..).filter(|part| !part.is_empty());
            let part = part.ok_or(std::io::ErrorKind::UnexpectedEof)?;
            let n = part.len().min(buf.len());
            buf[..n].copy_from_slice(&part[..n]);
            buf = &mut buf[n..];
            offset += n as u64;
        }
        Ok(())
    }
}

fn delta<D: Disk>(
    way: &Way,
    old: &Base,
    staging: Staging<D>,
    length: u64,
    target: &mut dyn Target,
) -> Result<(), Failure> {
    let payload =
        Payload { staging: RefCell::new(staging), last: RefCell::default(), failed: RefCell::default() };
    let refused = |error: DeltaError| match payload.failed.take() {
        Some(unreadable) => unusable(unreadable, way),
        None => Failure::new(Fault::Damaged, format!("decode the delta: {}", words(&error))),
    };
    let mut decoder = Decoder::open(old, &payload).map_err(&refused)?;
    if decoder.header().new_len != length {
        let why = format!("the delta gives {} bytes, the target has {length}", decoder.header().new_len);
        return Err(Failure::new(Fault::Damaged, why));
    }
    let (mut group, mut bytes) = (Vec::new(), 0);
    for number in 0..decoder.header().groups() {
        let written = Written { target: &*target, bytes };
        decoder.group(number, &written, &mut group).map_err(&refused)?;
        for part in group.chunks(CHUNK) {
            target.take(part)?;
        }
        bytes += group.len() as u64;
    }
    Ok(())
}

fn stream<D: Disk>(
    way: &Way,
    mut staging: Staging<D>,
    length: u64,
    out: &mut Out<'_>,
) -> Result<(), Failure> {
    let mut unreadable = None;
    let staging = &mut staging;
    let mut reader = Blocks { staging, next: 0, block: Vec::new(), at: 0, failed: &mut unreadable };
    let done = match way.method {
        Method::Plain | Method::Delta { .. } | Method::Adaptive { .. } => copy(&mut reader, length, out),
        Method::Zstd { window_log } => {
            let decoder =
                zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(64 << 10, &mut reader));
            let prepared = decoder.and_then(|mut decoder| {
                decoder.window_log_max(window_log.into())?;
                Ok(decoder.single_frame())
            });
            match prepared {
                Ok(mut decoder) => copy(&mut decoder, length, out),
                Err(error) => Err(Failure::new(Fault::Local, format!("set up decompression: {error}"))),
            }
        }
    };
    match unreadable {
        Some(unreadable) => Err(unusable(unreadable, way)),
        None => done,
    }
}

fn copy(reader: &mut impl Read, length: u64, out: &mut Out<'_>) -> Result<(), Failure> {
    let damaged = |why: String| Failure::new(Fault::Damaged, why);
    let mut chunk = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let mut filled = 0;
        while filled < CHUNK {
            let n = reader
                .read(&mut chunk[filled..])
                .map_err(|error| damaged(format!("decode the payload: {error}")))?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        done += filled as u64;
        if done > length {
            return Err(damaged(format!("the payload gives more than the {length} bytes of the target")));
        }
        if filled > 0 {
            out(&chunk[..filled])?;
        }
        if filled < CHUNK {
            break;
        }
    }
    if done == length {
        Ok(())
    } else {
        Err(damaged(format!("the payload gives {done} bytes, the target has {length}")))
    }
}

/// The staged blocks as a stream; each is verified when it is read.
struct Blocks<'s, D> {
    staging: &'s mut Staging<D>,
    next: u64,
    block: Vec<u8>,
    at: usize,
    failed: &'s mut Option<Unreadable>,
}

impl<D: Disk> Read for Blocks<'_, D> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() {
            if self.next == self.staging.geometry().blocks() {
                return Ok(0);
            }
            match self.staging.read(self.next) {
                Ok(block) => (self.block, self.at) = (block, 0),
                Err(unreadable) => {
                    *self.failed = Some(unreadable);
                    return Err(std::io::Error::other("staged block"));
                }
            }
            self.next += 1;
        }
        let n = into.len().min(self.block.len() - self.at);
        into[..n].copy_from_slice(&self.block[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::fault::FaultDisk;
    use crate::update::carrier::Worth;
    use crate::update::plan::Object;
    use crate::update::staging;
    use formats::delta::container::{Parts, build, short_digest};
    use formats::delta::history::{Side, Window, put_windows};
    use formats::delta::ops::{Op, encode};
    use formats::delta::stream::{put_residue, put_stream};
    use formats::delta::view::Extent;
    use formats::object::{self, BlockSize};

    const GROUP: usize = 1 << 20;

    struct Slot(FaultDisk, u64);

    impl Target for Slot {
        fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
            self.0.write(self.1, bytes).map_err(|error| Failure::local(&error))?;
            self.1 += bytes.len() as u64;
            Ok(())
        }
        fn taken(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
            self.0.read(at, into).map_err(std::io::Error::other)
        }
    }

    /// A group of literals that refer back to `windows`, whose bytes are `prefix`.
    fn group(bytes: &[u8], start: u64, windows: &[Window], prefix: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let ops = encode(&[Op::Extra { len: bytes.len() as u64 }], start);
        put_stream(&mut out, &ops, &ops);
        put_residue(&mut out, &[]);
        put_windows(&mut out, windows, start);
        let mut compressor = zstd::bulk::Compressor::with_dictionary(3, prefix).unwrap();
        put_stream(&mut out, bytes, &compressor.compress(bytes).unwrap());
        out
    }

    #[test]
    fn a_delta_refers_back_to_what_was_written() {
        let mut state = 1u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let first: Vec<u8> = noise.take(GROUP).collect();
        let second: Vec<u8> = first.iter().rev().take(500).chain(&first[5000..]).copied().collect();
        let before = [Window { side: Side::New, at: Extent { offset: 0, len: GROUP as u64 } }];
        let groups = [
            (group(&first, 0, &[], &[]), short_digest(&first)),
            (group(&second, GROUP as u64, &before, &first), short_digest(&second)),
        ];
        let parts = Parts { texts: &[], bundles: &[], history: true, groups: &groups };
        let length = (first.len() + second.len()) as u64;
        let payload = build(20, (9, length), &[[0; 32]; 2], &parts).unwrap();
        assert!(payload.len() < GROUP + 10_000, "{} bytes", payload.len());
        let made = object::of(&payload, BlockSize::KIB_64).unwrap();
        let object = Object { id: made.id, bytes: payload.len() as u64, block_log2: 16 };
        let geometry = object.geometry().unwrap();
        let region = FaultDisk::new(vec![0; staging::bytes(&geometry) as usize]);
        let mut staging = Staging::open(region, &object).unwrap();
        for (n, piece) in made.lists.chunks(geometry.list_block()).enumerate() {
            assert_eq!(staging.put_lists(n as u64, piece).unwrap(), Worth::New);
        }
        payload.chunks(1 << 16).enumerate().for_each(|(n, block)| {
            staging.put(n as u64, block).unwrap();
        });
        staging.flush().unwrap();
        let way = Way { object, method: Method::Delta { base_bytes: 9 } };
        let mut slot = Slot(FaultDisk::new(vec![0; length as usize]), 0);
        decode(&way, Some(Box::new(FaultDisk::new(vec![0; 9]))), staging, length, &mut slot).unwrap();
        let mut found = vec![0; length as usize];
        slot.taken(0, &mut found).unwrap();
        assert!(found == [first, second].concat());
    }
}
