//! The decoder: produces verified groups of the new image from the old image and the delta, in any order.
//!
//! Knows one group at a time. Memory: the group (4 MiB), its packed bytes (12), residue and literals (4 together), one
//! prefix (8), and one object's tables (about 20); nothing grows with the images.

use super::container::{self, Header, Index, digest, get_stream, unpack};
use super::object::{Map, Projector, pieces};
use super::ops::{self, Op};
use super::view::View;
use super::wire::Reader;
use super::{DeltaError, MAX_OPS, ReadAt, Result, Sink, malformed, read_vec};
use crate::hex;

/// A delta opened against its old image.
pub struct Decoder<'a> {
    old: &'a dyn ReadAt,
    delta: &'a dyn ReadAt,
    header: Header,
    index: Index,
    /// The object used last; groups of one object usually follow each other.
    object: Option<(u64, Map, Projector)>,
}

/// What is left of a group's streams.
struct Streams {
    group: u64,
    diff: Vec<u8>,
    diff_at: usize,
    extra: Vec<u8>,
    extra_at: usize,
    packed: Vec<u8>,
    frames_at: usize,
}

fn next<'s>(stream: &'s [u8], at: &mut usize, len: usize, what: &'static str) -> Result<&'s [u8]> {
    let Some(bytes) = at.checked_add(len).and_then(|end| stream.get(*at..end)) else {
        return malformed(what, format!("{len} bytes are needed, but only {} are left", stream.len() - *at));
    };
    *at += len;
    Ok(bytes)
}

impl Streams {
    fn add_residue(&mut self, out: &mut [u8]) -> Result<()> {
        let residue = next(&self.diff, &mut self.diff_at, out.len(), "group residue")?;
        for (byte, add) in out.iter_mut().zip(residue) {
            *byte = byte.wrapping_add(*add);
        }
        Ok(())
    }

    fn literal(&mut self, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(next(&self.extra, &mut self.extra_at, out.len(), "group literals")?);
        Ok(())
    }
}

impl<'a> Decoder<'a> {
    /// Reads and checks header and index; compares the old image's length, not its digest.
    ///
    /// # Errors
    /// When the delta is damaged or was made for another old image.
    pub fn open(old: &'a dyn ReadAt, delta: &'a dyn ReadAt) -> Result<Self> {
        let (header, index) = container::open(delta)?;
        container::check_old_len(&header, old)?;
        Ok(Self { old, delta, header, index, object: None })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The index.
    #[must_use]
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Produces group `number` (from 0) into `out`, checked against its digest.
    ///
    /// # Errors
    /// When the delta or the old image is damaged or cannot be read; `out` is of no use then.
    pub fn group(&mut self, number: u64, out: &mut Vec<u8>) -> Result<()> {
        let Some(part) = usize::try_from(number).ok().and_then(|at| self.index.groups.get(at)).copied()
        else {
            return malformed(
                "group",
                format!("number {number} of {} is asked for", self.index.groups.len()),
            );
        };
        let start = number * self.header.group_len();
        let size = self.header.group_len().min(self.header.new_len - start);
        let packed = container::read_group(self.delta, &part)?;
        let mut reader = Reader::new("group", &packed);
        let ops = get_stream(&mut reader, "group operations", MAX_OPS)?;
        let ops = ops::decode(&ops, start, size, self.header.old_len)?;
        let diff = get_stream(&mut reader, "group residue", size)?;
        let extra = get_stream(&mut reader, "group literals", size)?;
        let frames_at = packed.len() - reader.left();
        let mut streams = Streams { group: start, diff, diff_at: 0, extra, extra_at: 0, packed, frames_at };
        out.clear();
        out.resize(usize::try_from(size).unwrap_or(0), 0);
        let mut at = 0usize;
        for op in ops {
            let end = at + usize::try_from(op.len()).unwrap_or(0);
            self.carry_out(op, at as u64, &mut out[at..end], &mut streams)?;
            at = end;
        }
        let left = streams.diff.len() - streams.diff_at + streams.extra.len() - streams.extra_at;
        let left = left + streams.packed.len() - streams.frames_at;
        if left > 0 {
            return malformed("group", format!("{left} bytes of its streams are left over"));
        }
        let found = digest(out);
        if found == part.digest {
            return Ok(());
        }
        let (found, expected) = (hex::encode(&found), hex::encode(&part.digest));
        Err(DeltaError::GroupDigest { group: number, found, expected })
    }

    fn read_old(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let len = out.len() as u64;
        self.old.read_at(offset, out).map_err(|source| DeltaError::Io {
            verb: "read",
            what: "old image",
            offset,
            len,
            source,
        })
    }

    fn carry_out(&mut self, op: Op, at: u64, out: &mut [u8], streams: &mut Streams) -> Result<()> {
        match op {
            Op::Copy { old, .. } => self.read_old(old, out),
            Op::Diff { old, .. } => {
                self.read_old(old, out)?;
                streams.add_residue(out)
            }
            Op::Extra { .. } => streams.literal(out),
            Op::Zero { .. } => Ok(()),
            Op::Prefix { old, window, packed, len } => {
                let prefix = read_vec(self.old, "old image", old, window)?;
                let packed = usize::try_from(packed).unwrap_or(usize::MAX);
                let frame = next(&streams.packed, &mut streams.frames_at, packed, "prefix frame")?;
                out.copy_from_slice(&unpack(frame, len, &prefix, "prefix frame")?);
                Ok(())
            }
            Op::Object { object, .. } => self.project(object, streams.group + at, out, streams),
        }
    }

    fn open_object(&mut self, number: u64) -> Result<()> {
        if self.object.as_ref().is_some_and(|(open, _, _)| *open == number) {
            return Ok(());
        }
        self.object = None;
        let Some(part) = usize::try_from(number).ok().and_then(|at| self.index.objects.get(at)) else {
            return malformed("group operations", format!("object {number} of {}", self.index.objects.len()));
        };
        let map = container::read_map(self.delta, part, &self.header)?;
        let projector = Projector::open(&map, self.old, &View::new(self.old, &map.old)?)?;
        self.object = Some((number, map, projector));
        Ok(())
    }

    /// Fills `out`, which is at byte `position` of the new image, from object `number`.
    fn project(&mut self, number: u64, position: u64, out: &mut [u8], streams: &mut Streams) -> Result<()> {
        self.open_object(number)?;
        let Some((_, map, projector)) = &mut self.object else {
            return malformed("object", "it is not open");
        };
        let inside =
            position >= map.new.offset && position - map.new.offset + out.len() as u64 <= map.new.len;
        if !inside {
            return malformed("group operations", format!("byte {position} is outside object {number}"));
        }
        let start = position - map.new.offset;
        let mut at = 0usize;
        for piece in pieces(&map.copies, start, out.len() as u64) {
            let from = usize::try_from(piece.new - start).unwrap_or(0);
            let to = from + usize::try_from(piece.len).unwrap_or(0);
            streams.literal(&mut out[at..from])?;
            projector.predict(map, self.old, piece, &mut out[from..to])?;
            streams.add_residue(&mut out[from..to])?;
            at = to;
        }
        streams.literal(&mut out[at..])
    }

    /// Produces every group for which `wanted` is true, in order, and gives each to `sink` once it is verified.
    ///
    /// # Errors
    /// At the first group that fails; those before it are complete.
    pub fn run(&mut self, wanted: &mut dyn FnMut(u64) -> bool, sink: &mut dyn Sink) -> Result<()> {
        let mut out = Vec::new();
        for number in 0..self.header.groups() {
            if !wanted(number) {
                continue;
            }
            self.group(number, &mut out)?;
            let (offset, len) = (number * self.header.group_len(), out.len() as u64);
            sink.write_at(offset, &out).map_err(|source| DeltaError::Io {
                verb: "write",
                what: "new image",
                offset,
                len,
                source,
            })?;
        }
        Ok(())
    }
}
