//! The decoder: produces verified groups of the new image from the old image and the delta. They come in any order, unless their
//! literals refer back to groups before them.
//!
//! Knows one group at a time. Memory at most, in MiB: the group 4, its packed bytes 6, operations 1, residue 6 and
//! its model 4, literals 4, one prefix, history or bundle of maps 8, tables of open objects 20, pointers of an image's metadata 8, shared values 2;
//! where a text is deflated, a group of it and 2 more, but then the group itself is only its output. Not all of it is needed at once:
//! `tests/delta_memory.rs` counts. Nothing grows with the images.

use super::container::{self, Header, Index, short_digest};
use super::deflate::{Deflate, Restart, WINDOW};
use super::history::{self, Reach};
use super::map::AddressMap;
use super::object::{Kind, Map, Projector, pieces};
use super::ops::{Decode, Op};
use super::residue::ResidueDecoder;
use super::stream::{get_stream, get_stream_after, unpack_into};
use super::view::View;
use super::wire::Reader;
use super::{
    DeltaError, MAX_COPIES, MAX_DEFLATED, MAX_DEFLATED_TEXT, MAX_GROUP_PACKED, MAX_OPS, ReadAt, Result, Sink,
    TEXT_PIECE, malformed, read_vec,
};
use crate::hex;
use std::sync::Arc;

/// A delta opened against its old image.
pub struct Decoder<'a> {
    old: &'a dyn ReadAt,
    delta: &'a dyn ReadAt,
    header: Header,
    index: Index,
    /// The program used last; groups of one program usually follow each other.
    program: Option<Object>,
    /// The metadata of the image, which lies between files.
    metadata: Option<Object>,
    /// The bundle read last: its number and bytes.
    bundle: Option<(u64, Vec<u8>)>,
    /// The table of values used last: the number of its object, and the values.
    values: Option<(u64, Arc<AddressMap>)>,
    /// The group of a text used last: its number and bytes.
    text: Option<(u64, Vec<u8>)>,
}

/// Output that is deflated once the rest of its group is there.
struct Deflated {
    file: u64,
    restart: Restart,
    skip: u64,
    place: std::ops::Range<usize>,
}

/// An object that is open.
struct Object {
    number: u64,
    map: Map,
    projector: Projector,
}

/// What is left of a group's streams.
struct Streams {
    group: u64,
    residue: ResidueDecoder,
    extra: Vec<u8>,
    extra_at: usize,
    packed: Vec<u8>,
    frames_at: usize,
    /// Objects that were opened for the group.
    opened: usize,
    /// What is still to be deflated.
    deflated: Vec<Deflated>,
}

/// Texts refer back to nothing of the new image.
const NOTHING: &[u8] = &[];
/// Longest bundle, in bytes, that is kept for the next object.
const KEPT_BUNDLE: usize = 512 << 10;
/// Most objects that one group may open: as many files of one block as fit a group, twice. A hostile delta must not
/// make the decoder read headers without end.
const MAX_OPENED: usize = 2048;

fn next<'s>(stream: &'s [u8], at: &mut usize, len: usize, what: &'static str) -> Result<&'s [u8]> {
    let Some(bytes) = at.checked_add(len).and_then(|end| stream.get(*at..end)) else {
        return malformed(what, format!("{len} bytes are needed, but only {} are left", stream.len() - *at));
    };
    *at += len;
    Ok(bytes)
}

impl Streams {
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
        let (program, metadata, bundle, values, text) = (None, None, None, None, None);
        Ok(Self { old, delta, header, index, program, metadata, bundle, values, text })
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

    /// Produces group `number` (from 0) into `out`, checked against its digest. `written` is the new image as far as
    /// it is there; all groups before this one must be if the header has [`Header::history`], else it is not read.
    ///
    /// # Errors
    /// When the delta or an image is damaged or cannot be read; `out` is of no use then.
    pub fn group(&mut self, number: u64, written: &dyn ReadAt, out: &mut Vec<u8>) -> Result<()> {
        let count = self.header.groups();
        if number >= count {
            return malformed("group", format!("number {number} of {count} is asked for"));
        }
        let mut budget = MAX_DEFLATED_TEXT;
        for part in self.produce(number, written, out)? {
            let place = part.place.clone();
            self.deflate(&part, &mut out[place], &mut budget)?;
        }
        self.verify(number, out)
    }

    fn verify(&self, number: u64, out: &[u8]) -> Result<()> {
        let expected = usize::try_from(number).ok().and_then(|at| self.index.groups.get(at));
        let expected = expected.map_or([0; 16], |group| group.digest);
        let found = short_digest(out);
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (hex::encode(&found), hex::encode(&expected));
        Err(DeltaError::GroupDigest { group: number, found, expected })
    }

    /// Produces group `number`, of the image or of a text, without its digest and without what is to be deflated.
    fn produce(&mut self, number: u64, image: &dyn ReadAt, out: &mut Vec<u8>) -> Result<Vec<Deflated>> {
        let Some(part) = usize::try_from(number).ok().and_then(|at| self.index.groups.get(at)).copied()
        else {
            return malformed(
                "group",
                format!("number {number} of {} is asked for", self.index.groups.len()),
            );
        };
        let start = number * self.header.group_len();
        let end =
            if number < self.header.groups() { self.header.new_len } else { self.index.space(&self.header) };
        let size = self.header.group_len().min(end - start);
        let packed = read_vec(self.delta, "group", part.offset, part.packed)?;
        let mut reader = Reader::new("group", &packed);
        let ops = get_stream(&mut reader, "group operations", MAX_OPS)?;
        let residue = reader.varint("length of residue", MAX_GROUP_PACKED)?;
        let residue = ResidueDecoder::new(reader.bytes(residue)?.to_vec());
        let history = if self.header.history {
            // Texts are made while the image is, so nothing of it is before them.
            let written = if number < self.header.groups() { start } else { 0 };
            let reach = Reach { start, old_len: self.header.old_len, written };
            history::read(&history::get_windows(&mut reader, &reach)?, self.old, image)?
        } else {
            Vec::new()
        };
        let extra = get_stream_after(&history, &mut reader, "group literals", size)?;
        drop(history);
        // Residue and literals were copied; only the frames are still needed.
        let packed = packed[packed.len() - reader.left()..].to_vec();
        let (extra_at, frames_at, opened, deflated) = (0, 0, 0, Vec::new());
        let mut streams =
            Streams { group: start, residue, extra, extra_at, packed, frames_at, opened, deflated };
        out.clear();
        out.resize(usize::try_from(size).unwrap_or(0), 0);
        let mut at = 0usize;
        let mut ops = Decode::new(&ops, start, size, self.header.old_len);
        while let Some(op) = ops.next_op()? {
            let end = at + usize::try_from(op.len()).unwrap_or(0);
            self.carry_out(op, at as u64, &mut out[at..end], &mut streams)?;
            at = end;
        }
        streams.residue.end()?;
        let left = streams.extra.len() - streams.extra_at + streams.packed.len() - streams.frames_at;
        if left > 0 {
            return malformed("group", format!("{left} bytes of its streams are left over"));
        }
        Ok(streams.deflated)
    }

    /// Fills `out` with a part of a file that is compressed, from its text, of which there may be as much as `budget` says.
    fn deflate(&mut self, part: &Deflated, out: &mut [u8], budget: &mut u64) -> Result<()> {
        let number = usize::try_from(part.file).unwrap_or(usize::MAX);
        let Some(text) = self.index.texts.get(number).copied() else {
            return malformed(
                "group operations",
                format!("text {number} of {} is asked for", self.index.texts.len()),
            );
        };
        if !part.restart.fits(text.len) {
            return malformed("group operations", "deflating begins where it cannot");
        }
        let before: u64 = self.index.texts[..number].iter().map(|text| text.len).sum();
        let start = self.header.texts_start() + before;
        let (mut at, from) = (part.restart.text, part.restart.text.saturating_sub(WINDOW as u64));
        let mut history = Vec::new();
        while from + (history.len() as u64) < at {
            let done = from + history.len() as u64;
            history.extend_from_slice(self.text(start + done, at - done)?);
        }
        let mut deflate = Deflate::new(text.style, part.restart, &history);
        let (mut skip, mut filled, mut ended) = (part.skip, 0usize, false);
        while filled < out.len() {
            if ended {
                return malformed("group operations", "a text ends before what is deflated from it");
            }
            if at < text.len {
                let piece = self.text(start + at, TEXT_PIECE.min(text.len - at))?;
                let len = piece.len() as u64;
                let Some(left) = budget.checked_sub(len) else {
                    return malformed(
                        "group operations",
                        format!("they deflate more than {MAX_DEFLATED_TEXT} bytes of text"),
                    );
                };
                (at, *budget) = (at + len, left);
                deflate.push(piece, &mut |_, _| {});
            } else {
                deflate.finish();
                ended = true;
            }
            let bytes = deflate.take();
            let dropped = usize::try_from(skip).unwrap_or(usize::MAX).min(bytes.len());
            skip -= dropped as u64;
            let len = (bytes.len() - dropped).min(out.len() - filled);
            out[filled..filled + len].copy_from_slice(&bytes[dropped..dropped + len]);
            filled += len;
        }
        Ok(())
    }

    /// Bytes of the texts from `position` on, at most `len`; fewer where a group ends.
    fn text(&mut self, position: u64, len: u64) -> Result<&[u8]> {
        let number = position / self.header.group_len();
        if self.text.as_ref().is_none_or(|(known, _)| *known != number) {
            let mut bytes = self.text.take().map(|(_, bytes)| bytes).unwrap_or_default();
            if !self.produce(number, &NOTHING, &mut bytes)?.is_empty() {
                return malformed("group operations", "a text is deflated from a text");
            }
            self.verify(number, &bytes)?;
            self.text = Some((number, bytes));
        }
        let bytes = self.text.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let from = usize::try_from(position % self.header.group_len()).unwrap_or(usize::MAX);
        let to = from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)).min(bytes.len());
        match bytes.get(from..to).filter(|found| !found.is_empty()) {
            Some(found) => Ok(found),
            None => malformed("group operations", format!("byte {position} of the texts is asked for")),
        }
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
                streams.residue.add(out, &[]);
                Ok(())
            }
            Op::Extra { .. } => streams.literal(out),
            Op::Zero { .. } => Ok(()),
            Op::Prefix { old, window, packed, .. } => {
                let prefix = read_vec(self.old, "old image", old, window)?;
                let packed = usize::try_from(packed).unwrap_or(usize::MAX);
                let frame = next(&streams.packed, &mut streams.frames_at, packed, "prefix frame")?;
                unpack_into(frame, out, &prefix, "prefix frame")
            }
            Op::Object { object, .. } => self.project(object, streams.group + at, out, streams),
            Op::Deflate { file, restart, skip, .. } => {
                if streams.deflated.len() == MAX_DEFLATED {
                    return malformed("group operations", format!("more than {MAX_DEFLATED} deflate"));
                }
                let from = usize::try_from(at).unwrap_or(usize::MAX);
                streams.deflated.push(Deflated { file, restart, skip, place: from..from + out.len() });
                Ok(())
            }
        }
    }

    fn open_object(&mut self, number: u64, streams: &mut Streams) -> Result<Object> {
        for slot in [&mut self.program, &mut self.metadata] {
            if let Some(object) = slot.take_if(|object| object.number == number) {
                return Ok(object);
            }
        }
        streams.opened += 1;
        if streams.opened > MAX_OPENED {
            return malformed(
                "group operations",
                format!("they open more than {MAX_OPENED} objects in turn"),
            );
        }
        let map = self.map(number)?;
        // Tables of all open objects stay below the limit of one.
        let other = if map.kind == Kind::Erofs { &mut self.program } else { &mut self.metadata };
        let copies = other.as_ref().map_or(0, |object| object.map.copies.len()) + map.copies.len();
        if copies as u64 > MAX_COPIES {
            *other = None;
        }
        let own = if map.kind == Kind::Erofs { &mut self.metadata } else { &mut self.program };
        *own = None;
        let values = match map.kind {
            Kind::Module(Some(values)) => Some(self.values(values)?),
            Kind::Module(None) | Kind::Elf(_) | Kind::Erofs | Kind::Values => None,
        };
        let projector = Projector::open(&map, self.old, &View::new(self.old, &map.old)?, values)?;
        Ok(Object { number, map, projector })
    }

    /// The map of object `number`.
    fn map(&mut self, number: u64) -> Result<Map> {
        let Some(bundle) = self.index.bundle_of(number) else {
            let count = self.index.objects();
            return malformed("group operations", format!("object {number} of {count} is asked for"));
        };
        let lens = (self.header.old_len, self.index.space(&self.header));
        if let Some((_, bytes)) = self.bundle.as_ref().filter(|(first, _)| *first == bundle.first) {
            return container::map_in(bytes, bundle, number, lens);
        }
        self.bundle = None;
        let bytes = container::read_bundle(self.delta, bundle)?;
        let map = container::map_in(&bytes, bundle, number, lens)?;
        if bytes.len() <= KEPT_BUNDLE {
            self.bundle = Some((bundle.first, bytes));
        }
        Ok(map)
    }

    /// The table of values of object `number`.
    fn values(&mut self, number: u64) -> Result<Arc<AddressMap>> {
        if let Some((known, values)) = &self.values
            && *known == number
        {
            return Ok(Arc::clone(values));
        }
        self.values = None;
        let map = self.map(number)?;
        if map.kind != Kind::Values {
            return malformed("object", format!("object {number} is used as a table of values, but is none"));
        }
        let values = Arc::new(AddressMap::new(map.ranges));
        self.values = Some((number, Arc::clone(&values)));
        Ok(values)
    }

    /// Fills `out`, which is at byte `position` of the new image, from object `number`.
    fn project(&mut self, number: u64, position: u64, out: &mut [u8], streams: &mut Streams) -> Result<()> {
        let mut object = self.open_object(number, streams)?;
        let Object { map, projector, .. } = &mut object;
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
            streams.residue.add(&mut out[from..to], projector.classes());
            at = to;
        }
        streams.literal(&mut out[at..])?;
        let slot = if object.map.kind == Kind::Erofs { &mut self.metadata } else { &mut self.program };
        *slot = Some(object);
        Ok(())
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
            self.group(number, sink, &mut out)?;
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

#[cfg(test)]
mod tests;
