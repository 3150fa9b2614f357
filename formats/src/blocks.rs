//! Adaptive payloads: a slot image in packed units behind an index of its pages, so that a device fetches only what it
//! does not have already, whatever it runs. Layout: `docs/formats.md`, "Adaptive payload".
//!
//! ```text
//! 32 bytes     magic, binary logarithm of the unit, length of the image
//! units        4 bytes each: how long it is packed
//! marks        8 bytes a page: the beginning of the page's SHA-256
//! data         the units: one zstd frame each, or as they are if packing does not help
//! ```
//! A device marks the pages of the slot that it runs, and fetches the units that have a page whose mark it does not know.
//! Two pages with one mark would give a wrong image, which its roothash shows; then another payload is taken. Knows
//! neither carriers nor compression.

use crate::verity::BLOCK;
use sha2::{Digest as _, Sha256};
use std::ops::Range;

/// First bytes of an adaptive payload.
const MAGIC: &[u8; 20] = b"farhold-adaptive-v1\n";
/// Bytes before the table of units.
const HEADER: usize = 32;
/// Bytes of a mark.
pub const MARK_BYTES: usize = 8;
const UNIT_ENTRY: usize = 4;
/// Unit sizes, binary logarithm: from a page to 1 MiB.
pub const UNIT_LOG2: std::ops::RangeInclusive<u8> = 12..=20;
/// Most pages of an image: 16 GiB, whose index takes 32 MiB.
pub const MAX_PAGES: u64 = 1 << 22;
const PAGE: u64 = BLOCK as u64;

/// The beginning of the hash of a page.
pub fn mark(page: &[u8]) -> u64 {
    let hash: [u8; 32] = Sha256::digest(page).into();
    hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// Why an index is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// Another kind of file, or another version.
    #[error("adaptive payload does not begin with its magic and version")]
    Magic,
    /// A field that breaks a rule.
    #[error("adaptive payload has {field} {is}, but must have {must}")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// What stands there.
        is: u64,
        /// What must.
        must: String,
    },
}

fn field<T>(field: &'static str, is: u64, must: impl Into<String>) -> Result<T, BlocksError> {
    Err(BlocksError::Field { field, is, must: must.into() })
}

/// How an image is cut: units of several pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    image_bytes: u64,
    unit_log2: u8,
}

impl Cut {
    /// A cut of `image_bytes` into units of 2^`unit_log2` bytes.
    ///
    /// # Errors
    /// [`BlocksError::Field`] for an image that is not whole pages or too large, or a unit out of [`UNIT_LOG2`].
    pub fn new(image_bytes: u64, unit_log2: u8) -> Result<Self, BlocksError> {
        if !UNIT_LOG2.contains(&unit_log2) {
            let must = format!("{} to {}", UNIT_LOG2.start(), UNIT_LOG2.end());
            return field("logarithm of the unit", unit_log2.into(), must);
        }
        if image_bytes == 0 || !image_bytes.is_multiple_of(PAGE) || image_bytes / PAGE > MAX_PAGES {
            return field("image length", image_bytes, format!("1 to {MAX_PAGES} whole pages of {PAGE}"));
        }
        Ok(Self { image_bytes, unit_log2 })
    }
    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.image_bytes / PAGE
    }
    /// Number of units.
    pub fn units(&self) -> u64 {
        self.image_bytes.div_ceil(1 << self.unit_log2)
    }
    /// The bytes of the image that a unit holds.
    pub fn unit(&self, index: u64) -> Range<u64> {
        let start = index << self.unit_log2;
        start..(start + (1 << self.unit_log2)).min(self.image_bytes)
    }
    /// The pages that a unit holds.
    pub fn pages_of(&self, index: u64) -> Range<u64> {
        let bytes = self.unit(index);
        bytes.start / PAGE..bytes.end / PAGE
    }
    /// Bytes of header, table and marks.
    pub fn index_bytes(&self) -> u64 {
        HEADER as u64 + self.units() * UNIT_ENTRY as u64 + self.pages() * MARK_BYTES as u64
    }
    /// The index of units that have these packed lengths, over an image whose pages have these marks. The units follow it.
    pub fn write(&self, packed: &[u32], marks: &[u64]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend([self.unit_log2, 0, 0, 0]);
        bytes.extend(self.image_bytes.to_le_bytes());
        bytes.extend(packed.iter().flat_map(|length| length.to_le_bytes()));
        bytes.extend(marks.iter().flat_map(|mark| mark.to_le_bytes()));
        bytes
    }
}

/// A unit in a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Where it stands in the payload.
    pub packed: Range<u64>,
    /// The bytes of the image that it gives; as long as `packed` if it is not packed.
    pub image: Range<u64>,
}

/// The index of a payload.
#[derive(Clone, Debug)]
pub struct Index {
    cut: Cut,
    /// Where each unit begins in the payload, and where the last ends.
    starts: Vec<u64>,
    marks: Vec<u64>,
}

impl Index {
    /// Reads the index of a payload of `payload_bytes` that gives an image of `image_bytes`: exactly the bytes before the
    /// first unit.
    ///
    /// # Errors
    /// [`BlocksError`].
    pub fn parse(bytes: &[u8], payload_bytes: u64, image_bytes: u64) -> Result<Self, BlocksError> {
        let (header, rest) = bytes.split_at_checked(HEADER).ok_or(BlocksError::Magic)?;
        let (magic, header) = header.split_at(MAGIC.len());
        let (sizes, length) = header.split_at(4);
        if magic != MAGIC || sizes[1..] != [0, 0, 0] {
            return Err(BlocksError::Magic);
        }
        let length = length.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        if length != image_bytes {
            return field("image length", length, image_bytes.to_string());
        }
        let cut = Cut::new(length, sizes[0])?;
        if bytes.len() as u64 != cut.index_bytes() {
            return field("index length", bytes.len() as u64, cut.index_bytes().to_string());
        }
        let (table, marks) = rest.split_at(cut.units() as usize * UNIT_ENTRY);
        let mut starts = vec![cut.index_bytes()];
        let mut end = cut.index_bytes();
        for (index, entry) in table.as_chunks::<UNIT_ENTRY>().0.iter().enumerate() {
            let packed = u64::from(u32::from_le_bytes(*entry));
            let image = cut.unit(index as u64);
            if packed == 0 || packed > image.end - image.start {
                return field("packed unit length", packed, format!("1 to {}", image.end - image.start));
            }
            end += packed;
            starts.push(end);
        }
        if end != payload_bytes {
            return field("payload length", payload_bytes, end.to_string());
        }
        let marks = marks.as_chunks::<MARK_BYTES>().0.iter().map(|mark| u64::from_le_bytes(*mark)).collect();
        Ok(Self { cut, starts, marks })
    }

    /// How the image is cut.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// A unit; `None` beyond the last.
    pub fn unit(&self, index: u64) -> Option<Unit> {
        let at = usize::try_from(index).ok()?;
        let packed = *self.starts.get(at)?..*self.starts.get(at + 1)?;
        Some(Unit { packed, image: self.cut.unit(index) })
    }

    /// Marks of a unit's pages, in order.
    pub fn marks(&self, index: u64) -> &[u64] {
        let pages = self.cut.pages_of(index);
        self.marks.get(pages.start as usize..pages.end as usize).unwrap_or(&[])
    }

    /// The parts of the payload that hold units with a page that `has` does not know: ascending, adjoining ones joined.
    pub fn missing(&self, has: &dyn Fn(u64) -> bool) -> Vec<Range<u64>> {
        let mut parts: Vec<Range<u64>> = Vec::new();
        for index in 0..self.cut.units() {
            if self.marks(index).iter().all(|mark| has(*mark)) {
                continue;
            }
            let Some(unit) = self.unit(index) else { continue };
            match parts.last_mut().filter(|last| last.end == unit.packed.start) {
                Some(last) => last.end = unit.packed.end,
                None => parts.push(unit.packed),
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Vec<u8>, u64, u64) {
        let cut = Cut::new(9 * PAGE, 14).unwrap();
        assert_eq!((cut.units(), cut.pages(), cut.pages_of(2)), (3, 9, 8..9));
        let index = cut.write(&[5000, 16384, 7], &(0..9).collect::<Vec<u64>>());
        assert_eq!(index.len() as u64, cut.index_bytes());
        let payload = index.len() as u64 + 5000 + 16384 + 7;
        (index, payload, 9 * PAGE)
    }

    #[test]
    fn only_units_with_unknown_pages_are_missing() {
        let (bytes, payload, image) = sample();
        let index = Index::parse(&bytes, payload, image).unwrap();
        let start = bytes.len() as u64;
        assert_eq!(index.missing(&|_| true), []);
        let ends =
            |parts: Vec<Range<u64>>| parts.iter().map(|part| (part.start, part.end)).collect::<Vec<_>>();
        assert_eq!(ends(index.missing(&|_| false)), [(start, payload)]);
        assert_eq!(ends(index.missing(&|mark| mark != 3)), [(start, start + 5000)]);
        let two = ends(index.missing(&|mark| mark != 0 && mark != 8));
        assert_eq!(two, [(start, start + 5000), (payload - 7, payload)]);
        assert_eq!(index.unit(3), None);
        assert_eq!(index.marks(2), [8]);
    }

    #[test]
    fn what_does_not_add_up_is_refused_by_name() {
        let (good, payload, image) = sample();
        let refused = |bytes: &[u8], payload, image| match Index::parse(bytes, payload, image) {
            Err(BlocksError::Field { field, .. }) => field,
            Err(BlocksError::Magic) => "magic",
            Ok(_) => "nothing",
        };
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(refused(&good, payload, image), "nothing");
        assert_eq!(refused(&with(0, 1), payload, image), "magic");
        assert_eq!(refused(&with(21, 1), payload, image), "magic");
        assert_eq!(refused(&good[..31], payload, image), "magic");
        assert_eq!(refused(&with(20, 11), payload, image), "logarithm of the unit");
        assert_eq!(refused(&with(20, 15), payload, image), "index length");
        assert_eq!(refused(&good, payload + 1, image), "payload length");
        assert_eq!(refused(&good, payload, image + PAGE), "image length");
        assert_eq!(refused(&good[..good.len() - 1], payload, image), "index length");
        // A unit that is empty, or longer than what it gives.
        assert_eq!(refused(&with(HEADER + 9, 0xff), payload, image), "packed unit length");
        let mut empty = good.clone();
        empty[HEADER..HEADER + 4].fill(0);
        assert_eq!(refused(&empty, payload - 5000, image), "packed unit length");
        assert!(Cut::new((MAX_PAGES + 1) * PAGE, 15).is_err() && Cut::new(0, 15).is_err());
    }
}
