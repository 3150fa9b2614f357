//! Pointers in Go's function table `.gopclntab`, layout of Go 1.20 and later (`runtime/symtab.go`, `internal/abi/symtab.go`).
//!
//! Knows the table only; older layouts (other magic) are left to the plain diff.

use super::Result;
use super::elf::Header;
use super::refs::{Ref, RefKind};
use super::view::View;
use super::wire::{le32, le64};
use std::ops::Range;

const MAGIC: u32 = 0xffff_fff1;
/// Most functions that are modelled; the table's index takes 4 bytes each.
const MAX_FUNCTIONS: u64 = 1 << 20;
/// Bytes of a function's record before its tables, and the longest record that is modelled.
const RECORD: u64 = 44;
const MAX_RECORD: u64 = RECORD + 4 * 32;

/// The table's header, and where the functions' records lie.
#[derive(Debug)]
pub struct Pclntab {
    text: u64,
    gofunc: u64,
    va: u64,
    names: u64,
    units: u64,
    files: u64,
    steps: u64,
    functions: u64,
    records: Vec<u32>,
}

impl Pclntab {
    /// Reads the header and index of the table in the section `header`; `None` if the layout is not modelled.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn open(view: &View, header: &Header, text: u64, gofunc: u64) -> Result<Option<Self>> {
        let head = view.slice(header.offset, header.offset + header.size.min(72))?;
        let word = |at| le64(&head, at).filter(|word| *word <= header.size);
        let (Some(MAGIC), Some(count), Some(start)) = (le32(&head, 0), le64(&head, 8), le64(&head, 24))
        else {
            return Ok(None);
        };
        let offsets = (word(32), word(40), word(48), word(56), word(64));
        let (Some(names), Some(units), Some(files), Some(steps), Some(functions)) = offsets else {
            return Ok(None);
        };
        if count > MAX_FUNCTIONS || functions + count * 8 > header.size {
            return Ok(None);
        }
        let mut records = Vec::with_capacity(count as usize);
        let (mut at, end) = (functions, functions + count * 8);
        while at < end {
            let to = end.min(at + (64 << 10));
            let part = view.slice(header.offset + at, header.offset + to)?;
            records.extend(part.as_chunks::<8>().0.iter().filter_map(|pair| le32(pair, 4)));
            at = to;
        }
        let text = if start == 0 { text } else { start };
        Ok(Some(Self { text, gofunc, va: header.va, names, units, files, steps, functions, records }))
    }

    /// Appends the pointers in `block` of the section that starts at file offset `section.0` and has `section.1` bytes.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn refs(
        &self,
        view: &View,
        section: (u64, u64),
        block: Range<u64>,
        out: &mut Vec<Ref>,
    ) -> Result<()> {
        let first = block.start.saturating_sub(MAX_RECORD);
        let last = (block.end + MAX_RECORD).min(section.1);
        let bytes = view.slice(section.0 + first, section.0 + last)?;
        let mut keep = |at: u64, base: u64, shift: u8| {
            let value = at.checked_sub(first).and_then(|place| le32(&bytes, place as usize));
            if let Some(value) = value.filter(|value| *value != u32::MAX && block.contains(&at)) {
                let target = base.wrapping_add(u64::from(value) << shift);
                out.push(Ref { at: section.0 + at, kind: RefKind::Off32, shift, base, target });
            }
        };
        let mut at = self.units.max(block.start.next_multiple_of(4));
        while at < self.files.min(block.end) {
            keep(at, self.va + self.files, 0);
            at += 4;
        }
        let table_end = self.functions + self.records.len() as u64 * 8 + 4;
        at = self.functions.max(self.functions + (block.start.saturating_sub(self.functions) & !7));
        while at < table_end.min(block.end) {
            keep(at, self.text, 0);
            if at + 4 < table_end {
                keep(at + 4, self.va + self.functions, 0);
            }
            at += 8;
        }
        let begins = |index: usize| self.functions + u64::from(self.records[index]);
        let mut index = self.records.partition_point(|record| self.functions + u64::from(*record) < first);
        while index < self.records.len() && begins(index) < block.end {
            let record = begins(index);
            if record >= first {
                self.record(&bytes, first, record, &mut keep);
            }
            index += 1;
        }
        Ok(())
    }

    /// The pointers of one function's record; `bytes` start at `first` of the section.
    fn record(&self, bytes: &[u8], first: u64, record: u64, keep: &mut dyn FnMut(u64, u64, u8)) {
        let place = (record - first) as usize;
        keep(record, self.text, 0);
        keep(record + 4, self.va + self.names, 0);
        for field in [16, 20, 24] {
            self.step(bytes, first, record + field, keep);
        }
        keep(record + 32, self.va + self.units, 2);
        let (Some(tables), Some(data)) = (le32(bytes, place + 28), bytes.get(place + 43)) else { return };
        if tables > 16 || *data > 16 {
            return;
        }
        let mut at = record + RECORD;
        for _ in 0..tables {
            self.step(bytes, first, at, keep);
            at += 4;
        }
        for _ in 0..*data {
            if self.gofunc != 0 {
                keep(at, self.gofunc, 0);
            }
            at += 4;
        }
    }

    /// An offset into the table of program counters; 0 is "none".
    fn step(&self, bytes: &[u8], first: u64, at: u64, keep: &mut dyn FnMut(u64, u64, u8)) {
        if le32(bytes, (at - first) as usize).is_some_and(|value| value != 0) {
            keep(at, self.va + self.steps, 0);
        }
    }
}
