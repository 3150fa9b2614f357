//! Numbers of types and offsets of names in `.BTF` sections of kernel modules (kernel `Documentation/bpf/btf.rst`).
//!
//! A module's types count on from those of its kernel, so a type that is new there renumbers every module. Which number
//! became which is a table that all modules of a delta share. Knows records, not what types mean.

use super::Result;
use super::elf::{BLOCK, Header};
use super::refs::{Ref, RefKind};
use super::view::View;
use super::wire::{le16, le32};

/// Spaces of shared values; addresses of programs are never there (not canonical).
pub const TYPES: u64 = 5 << 60;
/// Offsets of names.
pub const NAMES: u64 = 6 << 60;
/// Checksums of symbols.
pub const CHECKSUMS: u64 = 7 << 60;

const MAGIC: u16 = 0xeb9f;
/// Longest section, in bytes, that is indexed.
const MAX_SECTION: u64 = 64 << 20;
/// Bytes of a record before its members.
const RECORD: u64 = 12;

/// What a word of a record is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    Name,
    Type,
    Plain,
}

/// Where the records are.
#[derive(Debug)]
pub struct Btf {
    end: u64,
    /// Per block, the start of the record that the block's first byte lies in, or of the first one in the block.
    starts: Vec<u32>,
}

/// The third word of a record of `kind`, and the words of each member with their number.
fn layout(kind: u32, count: u32) -> Option<(Word, &'static [Word], u32)> {
    use Word::{Name, Plain, Type};
    Some(match kind {
        1 => (Plain, &[Plain], 1),
        2 | 8..=12 | 18 => (Type, &[], 0),
        3 => (Plain, &[Type, Type, Plain], 1),
        4 | 5 => (Plain, &[Name, Type, Plain], count),
        6 => (Plain, &[Name, Plain], count),
        7 | 16 => (Plain, &[], 0),
        13 => (Type, &[Name, Type], count),
        14 | 17 => (Type, &[Plain], 1),
        15 => (Plain, &[Type, Plain, Plain], count),
        19 => (Plain, &[Name, Plain, Plain], count),
        _ => return None,
    })
}

/// A record's layout from its second word.
fn record(info: u32) -> Option<(Word, &'static [Word], u32)> {
    layout(info >> 24 & 31, info & 0xffff)
}

impl Btf {
    /// Reads the header and finds the records; `None` if the section is of another version.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn open(view: &View, header: &Header) -> Result<Option<Self>> {
        let head = view.slice(header.offset, header.offset + header.size.min(24))?;
        let fields = (le16(&head, 0), le32(&head, 4), le32(&head, 8), le32(&head, 12));
        let (Some(MAGIC), Some(len), Some(from), Some(size)) = fields else { return Ok(None) };
        let first = u64::from(len) + u64::from(from);
        let end = first + u64::from(size);
        if header.size > MAX_SECTION || end > header.size {
            return Ok(None);
        }
        let mut starts = vec![u32::MAX; header.size.div_ceil(BLOCK) as usize];
        let (mut at, mut have, mut bytes) = (first, 0u64, Vec::new());
        while at + RECORD <= end {
            if at < have || at + RECORD > have + bytes.len() as u64 {
                have = at;
                bytes = view.slice(header.offset + at, header.offset + end.min(at + (64 << 10)))?;
            }
            let Some((_, words, count)) = le32(&bytes, (at - have) as usize + 4).and_then(record) else {
                break;
            };
            let next = at + RECORD + u64::from(count) * words.len() as u64 * 4;
            for start in starts
                .iter_mut()
                .take((next.min(end) - 1) as usize / BLOCK as usize + 1)
                .skip((at / BLOCK) as usize)
            {
                *start = (*start).min(at as u32);
            }
            at = next;
        }
        Ok(Some(Self { end: at.min(end), starts }))
    }

    /// Appends the numbers and names in bytes `from..to` (one block) of the section at file offset `section`.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn refs(&self, view: &View, section: u64, (from, to): (u64, u64), out: &mut Vec<Ref>) -> Result<()> {
        let start = self.starts.get((from / BLOCK) as usize).copied().unwrap_or(u32::MAX);
        let (mut at, to) = (u64::from(start), to.min(self.end));
        let bytes = view.slice(section + from, section + self.end.min(to + RECORD))?;
        while at < to {
            let info = match at.checked_sub(from) {
                Some(place) => le32(&bytes, place as usize + 4),
                None => le32(&view.slice(section + at, section + at + RECORD)?, 4),
            };
            let Some((third, words, count)) = info.and_then(record) else { break };
            let mut keep = |at: u64, word: Word| {
                let space = match word {
                    Word::Name => NAMES,
                    Word::Type => TYPES,
                    Word::Plain => return,
                };
                let value = at.checked_sub(from).and_then(|place| le32(&bytes, place as usize));
                if let Some(value) = value.filter(|value| *value != 0 && at < to) {
                    let target = space + u64::from(value);
                    out.push(Ref { at: section + at, kind: RefKind::Value32, shift: 0, base: space, target });
                }
            };
            keep(at, Word::Name);
            keep(at + 8, third);
            let (members, width) = (at + RECORD, words.len() as u64 * 4);
            let end = members + u64::from(count) * width;
            let mut member = members;
            if let Some(skip) = from.saturating_sub(members).checked_div(width) {
                member += skip * width;
            }
            while member < end.min(to) {
                words.iter().zip(0..).for_each(|(word, index)| keep(member + index * 4, *word));
                member += width;
            }
            at = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::view::Extent;

    /// A section: pointer to type 5; struct of 1000 members of type 7; function.
    fn sample() -> Vec<u8> {
        let mut words: Vec<u32> = vec![0x0001_eb9f, 24, 0, 0, 0, 0];
        words.extend([0, 2 << 24, 5]);
        words.extend([11, 4 << 24 | 1000, 8000]);
        (0..1000).for_each(|number| words.extend([100 + number, 7, 32 * number]));
        words.extend([99, 12 << 24, 1]);
        words[3] = (words.len() as u32 - 6) * 4;
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn refs(bytes: &[u8]) -> Vec<(u64, u64)> {
        let extents = [Extent { offset: 0, len: bytes.len() as u64 }];
        let view = View::new(&bytes, &extents).unwrap();
        let header = Header { size: bytes.len() as u64, ..Header::default() };
        let btf = Btf::open(&view, &header).unwrap().unwrap();
        let mut out = Vec::new();
        for from in (0..bytes.len() as u64).step_by(BLOCK as usize) {
            btf.refs(&view, 0, (from, from + BLOCK), &mut out).unwrap();
        }
        out.iter().map(|found| (found.at, found.target)).collect()
    }

    #[test]
    fn every_number_is_found_once_across_blocks() {
        let bytes = sample();
        let found = refs(&bytes);
        assert_eq!(found.len(), 1 + 1 + 2000 + 2);
        assert_eq!(found[..2], [(32, TYPES + 5), (36, NAMES + 11)]);
        assert_eq!(found[2..4], [(48, NAMES + 100), (52, TYPES + 7)]);
        assert_eq!(found.last(), Some(&(48 + 12000 + 8, TYPES + 1)));
    }

    #[test]
    fn damage_is_passed_over() {
        let good = sample();
        for at in 0..60 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let extents = [Extent { offset: 0, len: bytes.len() as u64 }];
                let view = View::new(&bytes, &extents).unwrap();
                let header = Header { size: bytes.len() as u64, ..Header::default() };
                if let Some(btf) = Btf::open(&view, &header).unwrap() {
                    for from in (0..bytes.len() as u64).step_by(BLOCK as usize) {
                        let mut out = Vec::new();
                        btf.refs(&view, 0, (from, from + BLOCK), &mut out).unwrap();
                        assert!(out.iter().all(|found| found.at >= from && found.at < from + BLOCK));
                    }
                }
            }
        }
    }
}
