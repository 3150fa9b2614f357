//! An object: one file whose pointers are projected. Its map says where its bytes lie in both images and which old bytes
//! each new byte comes from; from that follows where every old address went.
//!
//! Knows one object; the groups that it spans each take their part of it.

use super::elf::{Elf, Params, Segment, address};
use super::erofs;
use super::map::{AddressMap, Range};
use super::refs::Ref;
use super::view::{Extent, View};
use super::wire::{Reader, put_signed, put_varint};
use super::{MAX_COPIES, MAX_IMAGE, MAX_OBJECTS, ReadAt, Result, malformed};
use std::sync::Arc;

/// Most extents, segments and extra ranges of one object.
const MAX_EXTENTS: u64 = 64;
const MAX_RANGES: u64 = 1 << 16;
/// Pointers are looked for in this many bytes at a time: a table of pointers has one per 8 bytes, and 40 bytes are kept of each.
const REFS_STEP: usize = 256 << 10;

/// `len` bytes at `new` of the new file come from `old` of the old file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Offset in the new file.
    pub new: u64,
    /// Offset in the old file.
    pub old: u64,
    /// Bytes.
    pub len: u64,
}

/// What models the old file's pointers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ELF program or library.
    Elf(Params),
    /// EROFS metadata; the file is the whole image.
    Erofs,
    /// Kernel module or other relocatable ELF file; its values are in the table of this object, if in any.
    Module(Option<u64>),
    /// A table of values that modules share: only ranges.
    Values,
}

/// The map of one object, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// The model.
    pub kind: Kind,
    /// The old file in the old image.
    pub old: Vec<Extent>,
    /// Where the new file's first bytes lie in the new image.
    pub new: Extent,
    /// Loaded parts of the new file; empty: addresses are offsets.
    pub segments: Vec<Segment>,
    /// Ranges that no copy tells: memory without bytes in the file, other files of an image.
    pub ranges: Vec<Range>,
    /// Copies in the order of new offsets, without overlaps.
    pub copies: Vec<Copy>,
}

fn put_ranges(out: &mut Vec<u8>, ranges: &[Range]) {
    let (mut end, mut delta) = (0u64, 0u64);
    put_varint(out, ranges.len() as u64);
    for range in ranges {
        put_signed(out, range.start.wrapping_sub(end).cast_signed());
        put_varint(out, range.end - range.start);
        put_signed(out, range.delta.wrapping_sub(delta).cast_signed());
        (end, delta) = (range.end, range.delta);
    }
}

fn get_ranges(reader: &mut Reader) -> Result<Vec<Range>> {
    let (mut end, mut delta) = (0u64, 0u64);
    let count = reader.varint("number of ranges", MAX_RANGES)?;
    let mut ranges = Vec::new();
    for _ in 0..count {
        let start = end.wrapping_add_signed(reader.signed("range start")?);
        let len = reader.varint("range length", u64::MAX)?;
        delta = delta.wrapping_add_signed(reader.signed("range delta")?);
        let Some(behind) = start.checked_add(len) else { return malformed("object", "a range wraps around") };
        end = behind;
        ranges.push(Range { start, end, delta });
    }
    Ok(ranges)
}

impl Map {
    /// The map's bytes, not packed. Copies are stored by column: gaps, lengths, changes of displacement.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self.kind {
            Kind::Elf(params) => {
                out.push(1);
                for value in [params.gofunc, params.types, params.etypes] {
                    put_varint(&mut out, value);
                }
            }
            Kind::Erofs => out.push(2),
            Kind::Module(values) => {
                out.push(3);
                put_varint(&mut out, values.map_or(0, |number| number + 1));
            }
            Kind::Values => out.push(4),
        }
        put_varint(&mut out, self.old.len() as u64);
        for extent in self.old.iter().chain([&self.new]) {
            put_varint(&mut out, extent.offset);
            put_varint(&mut out, extent.len);
        }
        put_varint(&mut out, self.segments.len() as u64);
        for segment in &self.segments {
            for value in [segment.offset, segment.va, segment.len] {
                put_varint(&mut out, value);
            }
        }
        put_ranges(&mut out, &self.ranges);
        put_varint(&mut out, self.copies.len() as u64);
        let mut end = 0;
        for copy in &self.copies {
            put_varint(&mut out, copy.new - end);
            end = copy.new + copy.len;
        }
        for copy in &self.copies {
            put_varint(&mut out, copy.len);
        }
        let mut displacement = 0u64;
        for copy in &self.copies {
            put_signed(&mut out, copy.old.wrapping_sub(copy.new).wrapping_sub(displacement).cast_signed());
            displacement = copy.old.wrapping_sub(copy.new);
        }
        out
    }

    /// Parses a map between images of `old_len` and `new_len` bytes.
    ///
    /// # Errors
    /// When it is damaged, above a limit, or names bytes outside the images.
    pub fn decode(bytes: &[u8], old_len: u64, new_len: u64) -> Result<Self> {
        let mut reader = Reader::new("object", bytes);
        let [kind] = reader.array()?;
        let kind = match kind {
            1 => {
                let mut word = || reader.varint("parameter", u64::MAX);
                Kind::Elf(Params { gofunc: word()?, types: word()?, etypes: word()? })
            }
            2 => Kind::Erofs,
            3 => Kind::Module(reader.varint("table of values", MAX_OBJECTS)?.checked_sub(1)),
            4 => Kind::Values,
            _ => return malformed("object", format!("kind {kind} is unknown to this version")),
        };
        let count = reader.varint("number of extents", MAX_EXTENTS)?;
        let mut extent = |image: u64| -> Result<Extent> {
            let offset = reader.varint("extent offset", image)?;
            Ok(Extent { offset, len: reader.varint("extent length", image - offset)? })
        };
        let old = (0..count).map(|_| extent(old_len)).collect::<Result<Vec<_>>>()?;
        let new = extent(new_len)?;
        let count = reader.varint("number of segments", MAX_EXTENTS)?;
        let mut word = || reader.varint("segment", u64::MAX);
        let segments = (0..count)
            .map(|_| Ok(Segment { offset: word()?, va: word()?, len: word()? }))
            .collect::<Result<Vec<_>>>()?;
        let ranges = get_ranges(&mut reader)?;
        let copies = get_copies(&mut reader, old.iter().map(|extent| extent.len).sum(), new.len)?;
        reader.end()?;
        Ok(Self { kind, old, new, segments, ranges, copies })
    }
}

fn get_copies(reader: &mut Reader, old_len: u64, new_len: u64) -> Result<Vec<Copy>> {
    let count = reader.varint("number of copies", MAX_COPIES)?;
    if count * 3 > reader.left() as u64 {
        return malformed("object", format!("{count} copies cannot fit {} bytes", reader.left()));
    }
    let mut copies = Vec::with_capacity(count as usize);
    for _ in 0..count {
        copies.push(Copy { new: reader.varint("gap", MAX_IMAGE)?, old: 0, len: 0 });
    }
    let mut end = 0u64;
    for copy in &mut copies {
        copy.len = reader.varint("copy length", MAX_IMAGE)?;
        copy.new += end;
        end = copy.new + copy.len;
        if end > new_len {
            return malformed("object", format!("a copy ends at {end} of a new file of {new_len} bytes"));
        }
    }
    let mut displacement = 0u64;
    for copy in &mut copies {
        displacement = displacement.wrapping_add_signed(reader.signed("displacement")?);
        copy.old = copy.new.wrapping_add(displacement);
        match copy.old.checked_add(copy.len) {
            Some(end) if end <= old_len => {}
            Some(_) | None => {
                return malformed(
                    "object",
                    format!("a copy from {} is past an old file of {old_len} bytes", copy.old),
                );
            }
        }
    }
    Ok(copies)
}

/// Pointers of an old file.
pub enum Model {
    /// ELF.
    Elf(Box<Elf>),
    /// EROFS.
    Erofs(erofs::Tree),
}

impl Model {
    /// Opens the model of the file `view` of `image`.
    ///
    /// # Errors
    /// When the file is not of that kind or cannot be read.
    pub fn open(kind: &Kind, image: &dyn ReadAt, view: &View) -> Result<Self> {
        let elf = |params, relocatable| match Elf::open(view, params)? {
            Some(elf) if elf.relocatable() == relocatable => Ok(Self::Elf(Box::new(elf))),
            Some(_) | None => malformed("object", "the old file is no ELF file of the kind that is modelled"),
        };
        match kind {
            Kind::Elf(params) => elf(params, false),
            Kind::Module(_) => elf(&Params::default(), true),
            Kind::Values => malformed("object", "a table of values is used as a file"),
            Kind::Erofs => match erofs::pointers(image)? {
                Some(tree) => Ok(Self::Erofs(tree)),
                None => malformed("object", "the old image is no EROFS image"),
            },
        }
    }

    /// Appends the pointers whose first byte lies in `start..end` of the old file, in order.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn refs(
        &mut self,
        image: &dyn ReadAt,
        view: &View,
        range: (u64, u64),
        out: &mut Vec<Ref>,
    ) -> Result<()> {
        match self {
            Self::Elf(elf) => elf.refs(view, range.0, range.1, out),
            Self::Erofs(tree) => tree.refs(image, range.0, range.1, out),
        }
    }

    fn segments(&self) -> &[Segment] {
        match self {
            Self::Elf(elf) => elf.segments(),
            Self::Erofs(_) => &[],
        }
    }
}

/// An object ready to predict new bytes from old ones.
pub struct Projector {
    model: Model,
    addresses: AddressMap,
    refs: Vec<Ref>,
    classes: Vec<u8>,
}

/// Address of file offset `offset`; without segments, the offset itself.
fn address_of(segments: &[Segment], offset: u64) -> Option<u64> {
    if segments.is_empty() { Some(offset) } else { address(segments, offset) }
}

/// Bytes from `offset` on that lie in the same segment, or in none.
fn run(segments: &[Segment], offset: u64) -> u64 {
    let inside =
        segments.iter().find(|segment| segment.offset <= offset && offset - segment.offset < segment.len);
    match inside {
        Some(segment) => segment.len - (offset - segment.offset),
        None => {
            let next = segments.iter().map(|segment| segment.offset).filter(|start| *start > offset).min();
            next.map_or(u64::MAX, |next| next - offset)
        }
    }
}

/// Where addresses went, according to `copies` and `ranges`.
#[must_use]
pub fn addresses(old: &[Segment], map: &Map) -> AddressMap {
    let mut ranges = map.ranges.clone();
    for copy in &map.copies {
        let mut done = 0;
        while done < copy.len {
            let (from, to) = (copy.old + done, copy.new + done);
            let step = run(old, from).min(run(&map.segments, to)).min(copy.len - done);
            if let (Some(start), Some(now)) = (address_of(old, from), address_of(&map.segments, to)) {
                ranges.push(Range { start, end: start.saturating_add(step), delta: now.wrapping_sub(start) });
            }
            done += step;
        }
    }
    AddressMap::new(ranges)
}

impl Projector {
    /// Opens the model of the old file and derives the address map; `shared` are the values of the table that `map` names.
    ///
    /// # Errors
    /// When the old file is not of the map's kind or cannot be read.
    pub fn open(map: &Map, image: &dyn ReadAt, view: &View, shared: Option<Arc<AddressMap>>) -> Result<Self> {
        let model = Model::open(&map.kind, image, view)?;
        let addresses = addresses(model.segments(), map).with_shared(shared);
        Ok(Self { model, addresses, refs: Vec::new(), classes: Vec::new() })
    }

    /// Fills `out` with what `copy` predicts: old bytes whose pointers are projected. [`Projector::classes`] tells which they are.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn predict(&mut self, map: &Map, image: &dyn ReadAt, copy: Copy, out: &mut [u8]) -> Result<()> {
        let view = View::new(image, &map.old)?;
        view.read(copy.old, out)?;
        self.classes.clear();
        self.classes.resize(out.len(), 0);
        let end = copy.old + copy.len;
        for from in (copy.old..end).step_by(REFS_STEP) {
            self.refs.clear();
            self.model.refs(image, &view, (from, end.min(from + REFS_STEP as u64)), &mut self.refs)?;
            self.project(map, copy, out);
        }
        Ok(())
    }

    /// Rewrites the pointers of [`Projector::refs`] in what `copy` predicts.
    fn project(&mut self, map: &Map, copy: Copy, out: &mut [u8]) {
        for found in &self.refs {
            let place = (found.at - copy.old) as usize;
            if let Some(bytes) = out.get_mut(place..place + found.width()) {
                found.project(bytes, address_of(&map.segments, copy.new + place as u64), &self.addresses);
                let classes = self.classes[place..place + found.width()].iter_mut();
                classes.enumerate().for_each(|(index, class)| *class = found.class(index));
            }
        }
    }
}

impl Projector {
    /// Class of each byte that was predicted last, for the residue.
    #[must_use]
    pub fn classes(&self) -> &[u8] {
        &self.classes
    }
}

/// The parts of `copies` that lie in `len` bytes from `start` of the new file.
pub fn pieces(copies: &[Copy], start: u64, len: u64) -> impl Iterator<Item = Copy> {
    let end = start + len;
    let first = copies.partition_point(|copy| copy.new + copy.len <= start);
    copies[first..].iter().take_while(move |copy| copy.new < end).map(move |copy| {
        let from = copy.new.max(start);
        let to = (copy.new + copy.len).min(end);
        Copy { new: from, old: copy.old + (from - copy.new), len: to - from }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Map {
        Map {
            kind: Kind::Elf(Params { gofunc: 5, types: 0, etypes: 9 }),
            old: vec![Extent { offset: 4096, len: 8192 }, Extent { offset: 100, len: 50 }],
            new: Extent { offset: 8192, len: 9000 },
            segments: vec![Segment { offset: 0, va: 0x40_0000, len: 8000 }],
            ranges: vec![
                Range { start: 10, end: 20, delta: 7 },
                Range { start: 5, end: 9, delta: 0u64.wrapping_sub(3) },
            ],
            copies: vec![Copy { new: 5, old: 8000, len: 100 }, Copy { new: 200, old: 0, len: 8242 }],
        }
    }

    #[test]
    fn a_map_comes_back() {
        let map = sample();
        assert_eq!(Map::decode(&map.encode(), 20000, 20000).unwrap(), map);
        assert!(Map::decode(&map.encode(), 12287, 20000).is_err(), "an extent outside the old image");
        assert!(Map::decode(&map.encode(), 20000, 17191).is_err(), "an extent outside the new image");
        let past = Map { copies: vec![Copy { new: 0, old: 8200, len: 100 }], ..sample() };
        assert!(Map::decode(&past.encode(), 20000, 20000).is_err(), "a copy past the old file");
    }

    #[test]
    fn addresses_follow_copies_and_segments() {
        let map = Map {
            segments: vec![
                Segment { offset: 0, va: 0x1000, len: 150 },
                Segment { offset: 150, va: 0x5000, len: 100 },
            ],
            copies: vec![Copy { new: 100, old: 50, len: 100 }],
            ranges: Vec::new(),
            ..sample()
        };
        let found = addresses(&[Segment { offset: 0, va: 0x9000, len: 1000 }], &map);
        assert_eq!([found.map(0x9000 + 60), found.map(0x9000 + 110)], [0x1000 + 110, 0x5000 + 10]);
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_another_map(at in 0usize..60, value: u8) {
            let mut bytes = sample().encode();
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(map) = Map::decode(&bytes, 20000, 20000) {
                for copy in &map.copies {
                    prop_assert!(copy.new + copy.len <= map.new.len);
                }
            }
        }
    }
}
