//! Pointers in relocatable ELF files, as kernel modules are (System V ABI, gabi 4.1). Their addresses are file offsets.
//!
//! Knows which sections hold pointers in which form. Does not know the new file.

use super::Result;
use super::btf::{Btf, CHECKSUMS};
use super::elf::{BLOCK, Content, Finder, Header, Section};
use super::refs::{Ref, RefKind, SYMBOL};
use super::view::View;
use super::wire::{le16, le32, le64};
use std::sync::Arc;

const SHT_SYMTAB: u32 = 2;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHF_EXECINSTR: u64 = 4;
/// Local symbols that are searched for those of sections.
const MAX_LOCALS: u64 = 1 << 16;
/// Bytes of one entry of `__versions`.
const VERSION: u64 = 64;
/// x86-64 relocations whose addend counts from 4 bytes behind the place.
const BEHIND: [u32; 2] = [2, 4];

/// Sections by number: offset in the file, or 0 if they have no bytes there.
type Offsets = Arc<Vec<u64>>;

/// What a relocation section refers to.
#[derive(Debug)]
pub struct Relocations {
    /// Offset of the section that is relocated.
    place: u64,
    /// Offset of the symbols.
    symbols: u64,
    /// Numbers of symbols that stand for a section, sorted, and the section's offset.
    sections: Arc<Vec<(u32, u64)>>,
}

/// What a symbol table refers to.
#[derive(Debug)]
pub struct Symbols {
    /// Offset of the names.
    names: u64,
    offsets: Offsets,
}

/// Sections of a relocatable file with their pointers. `table` is the offset of the section headers.
///
/// # Errors
/// When the old image cannot be read.
pub(super) fn index(view: &View, headers: &[Header], machine: u16, table: u64) -> Result<Vec<Section>> {
    let offset = |header: &Header| if header.kind == SHT_NOBITS { 0 } else { header.offset };
    let offsets: Offsets = Arc::new(headers.iter().map(offset).collect());
    let of = |number: u32| offsets.get(number as usize).copied().unwrap_or(0);
    let symbols = headers.iter().find(|header| header.kind == SHT_SYMTAB);
    let sections = Arc::new(match symbols {
        Some(header) => section_symbols(view, header, &offsets)?,
        None => Vec::new(),
    });
    let mut found =
        vec![Section { content: Content::FileHeader, offset: 0, size: 64.min(view.size()), va: 0 }];
    for header in headers {
        let inside = header.offset + header.size <= view.size() && header.size > 0;
        if header.kind == SHT_NOBITS || !inside {
            continue;
        }
        let content = match header.name.as_str() {
            _ if header.kind == SHT_RELA => Content::Relocations(Relocations {
                place: of(header.info),
                symbols: of(header.link),
                sections: Arc::clone(&sections),
            }),
            _ if header.kind == SHT_SYMTAB => {
                Content::ModuleSymbols(Symbols { names: of(header.link), offsets: Arc::clone(&offsets) })
            }
            _ if header.flags & SHF_EXECINSTR != 0 && machine == 62 => Content::CodeX86,
            _ if header.flags & SHF_EXECINSTR != 0 => Content::CodeA64,
            ".BTF" => match Btf::open(view, header)? {
                Some(btf) => Content::Btf(btf),
                None => continue,
            },
            "__versions" => Content::Versions,
            _ => continue,
        };
        found.push(Section { content, offset: header.offset, size: header.size, va: header.offset });
    }
    let size = headers.len() as u64 * 64;
    if table.checked_add(size).is_some_and(|end| end <= view.size()) {
        found.push(Section { content: Content::SectionHeaders, offset: table, size, va: table });
    }
    Ok(found)
}

/// Symbols of sections are local, and locals come first.
fn section_symbols(view: &View, header: &Header, offsets: &Offsets) -> Result<Vec<(u32, u64)>> {
    let locals = u64::from(header.info).min(MAX_LOCALS).min(header.size / SYMBOL);
    let mut found = Vec::new();
    let mut first = 0;
    while first < locals {
        let count = (locals - first).min(1024);
        let bytes = view.slice(header.offset + first * SYMBOL, header.offset + (first + count) * SYMBOL)?;
        for (symbol, number) in bytes.chunks_exact(SYMBOL as usize).zip(first..) {
            let section = le16(symbol, 6).and_then(|section| offsets.get(usize::from(section)));
            if let Some(offset) = section.filter(|offset| symbol[4] & 15 == 3 && **offset != 0) {
                found.push((number as u32, *offset));
            }
        }
        first += count;
    }
    Ok(found)
}

impl Finder<'_> {
    /// Each record's number of the first one that may have a field in the block, its bytes and where they start.
    fn whole_records(&self, view: &View, size: u64) -> Result<(u64, Vec<u8>)> {
        let first = self.from / size * size;
        let last = self.to.next_multiple_of(size).min(self.section.size);
        Ok((first, view.slice(self.section.offset + first, self.section.offset + last)?))
    }

    fn push(&mut self, at: u64, kind: RefKind, (shift, base, target): (u8, u64, u64)) {
        if (self.from..self.to).contains(&at) {
            self.found.push(Ref { at: self.section.offset + at, kind, shift, base, target });
        }
    }

    /// `Elf64_Rela`: place, type, symbol, addend.
    pub(super) fn relocations(&mut self, view: &View, facts: &Relocations) -> Result<()> {
        let (first, bytes) = self.whole_records(view, 24)?;
        for (record, number) in bytes.chunks_exact(24).zip(0u64..) {
            let at = first + number * 24;
            let fields = (le64(record, 0), le32(record, 8), le32(record, 12), le64(record, 16));
            let (Some(place), Some(kind), Some(symbol), Some(addend)) = fields else { break };
            if facts.place != 0 {
                self.push(at, RefKind::Off64, (0, facts.place, facts.place.wrapping_add(place)));
            }
            let target = facts.symbols + u64::from(symbol) * SYMBOL;
            self.push(at + 12, RefKind::Symbol32, (0, facts.symbols, target));
            let Ok(known) = facts.sections.binary_search_by_key(&symbol, |section| section.0) else {
                continue;
            };
            let base = facts.sections[known].1;
            let behind = if BEHIND.contains(&kind) { 4u8 } else { 0 };
            let target = base.wrapping_add(addend).wrapping_add(u64::from(behind));
            self.push(at + 16, RefKind::Off64, (behind, base, target));
        }
        Ok(())
    }

    /// `Elf64_Sym`: name and value.
    pub(super) fn module_symbols(&mut self, view: &View, facts: &Symbols) -> Result<()> {
        let (first, bytes) = self.whole_records(view, SYMBOL)?;
        for (record, number) in bytes.chunks_exact(SYMBOL as usize).zip(0u64..) {
            let at = first + number * SYMBOL;
            let (Some(name), Some(section), Some(value)) =
                (le32(record, 0), le16(record, 6), le64(record, 8))
            else {
                break;
            };
            if name != 0 && facts.names != 0 {
                self.push(at, RefKind::Off32, (0, facts.names, facts.names + u64::from(name)));
            }
            let base = facts.offsets.get(usize::from(section)).copied().unwrap_or(0);
            if base != 0 {
                self.push(at + 8, RefKind::Off64, (0, base, base.wrapping_add(value)));
            }
        }
        Ok(())
    }

    /// `struct modversion_info`: checksum of an imported symbol, name.
    pub(super) fn versions(&mut self, view: &View) -> Result<()> {
        let (first, bytes) = self.whole_records(view, VERSION)?;
        for (record, number) in bytes.chunks_exact(VERSION as usize).zip(0u64..) {
            if let (Some(checksum), Some(0)) = (le32(record, 0), le32(record, 4)) {
                let target = CHECKSUMS + u64::from(checksum);
                self.push(first + number * VERSION, RefKind::Value32, (0, CHECKSUMS, target));
            }
        }
        Ok(())
    }

    /// `Elf64_Shdr`: offset.
    pub(super) fn section_headers(&mut self, view: &View) -> Result<()> {
        let (first, bytes) = self.whole_records(view, 64)?;
        for (record, number) in bytes.chunks_exact(64).zip(0u64..) {
            if let Some(offset) = le64(record, 24).filter(|offset| *offset != 0) {
                self.push(first + number * 64 + 24, RefKind::Abs64, (0, 0, offset));
            }
        }
        Ok(())
    }

    /// `Elf64_Ehdr`: offset of the section headers.
    pub(super) fn file_header(&mut self, view: &View) -> Result<()> {
        if let Some(offset) = le64(&view.slice(0, BLOCK.min(64))?, 40) {
            self.push(40, RefKind::Abs64, (0, 0, offset));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::elf::{Elf, Params};
    use crate::delta::view::Extent;

    /// A module: code, its relocations, symbols, checksums; the names of sections last.
    fn sample() -> Vec<u8> {
        let names = b"\0.text\0.rela.text\0.symtab\0.strtab\0__versions\0.shstrtab\0";
        let name = |wanted: &str| {
            names.windows(wanted.len() + 1).position(|part| part == format!("\0{wanted}").as_bytes()).unwrap()
                as u32
                + 1
        };
        let mut bytes = vec![0u8; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (bytes[16], bytes[18]) = (1, 62);
        let mut rela = Vec::new();
        [3u64, 1 << 32 | 2, 20].iter().for_each(|word| rela.extend(word.to_le_bytes()));
        let mut symbols = vec![0u8; 48];
        symbols[24 + 4] = 3;
        symbols[24 + 6] = 1;
        let mut versions = vec![0u8; 64];
        versions[..4].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        let parts: [(&str, u32, &[u8], u32, u32); 6] = [
            (".text", 1, &[0x90; 64], 0, 0),
            (".rela.text", 4, &rela, 3, 1),
            (".symtab", 2, &symbols, 4, 2),
            (".strtab", 3, b"\0name\0", 0, 0),
            ("__versions", 1, &versions, 0, 0),
            (".shstrtab", 3, names, 0, 0),
        ];
        let mut headers = vec![0u8; 64];
        for (title, kind, content, link, info) in parts {
            let offset = bytes.len() as u64;
            bytes.extend(content);
            headers.extend(name(title).to_le_bytes());
            headers.extend(kind.to_le_bytes());
            headers.extend(if title == ".text" { 6u64 } else { 0 }.to_le_bytes());
            headers.extend([0; 8]);
            headers.extend(offset.to_le_bytes());
            headers.extend((content.len() as u64).to_le_bytes());
            headers.extend(link.to_le_bytes());
            headers.extend(info.to_le_bytes());
            headers.extend([0; 16]);
        }
        let table = bytes.len() as u64;
        bytes[40..48].copy_from_slice(&table.to_le_bytes());
        (bytes[60], bytes[62]) = (7, 6);
        bytes.extend(headers);
        bytes
    }

    fn refs(bytes: &[u8]) -> Option<Vec<Ref>> {
        let extents = [Extent { offset: 0, len: bytes.len() as u64 }];
        let view = View::new(&bytes, &extents).unwrap();
        let mut elf = Elf::open(&view, &Params::default()).unwrap()?;
        let mut out = Vec::new();
        elf.refs(&view, 0, bytes.len() as u64, &mut out).unwrap();
        Some(out)
    }

    #[test]
    fn places_symbols_addends_and_checksums_are_found() {
        let found = refs(&sample()).unwrap();
        let (text, rela, symbols) = (64, 128, 152);
        let kinds =
            |at: u64| found.iter().find(|found| found.at == at).map(|found| (found.kind, found.target));
        assert_eq!(kinds(rela), Some((RefKind::Off64, text + 3)), "place");
        assert_eq!(kinds(rela + 12), Some((RefKind::Symbol32, symbols + 24)), "symbol");
        assert_eq!(
            kinds(rela + 16),
            Some((RefKind::Off64, text + 24)),
            "addend, counted from behind the place"
        );
        assert_eq!(kinds(symbols + 24 + 8), Some((RefKind::Off64, text)), "value");
        let versions = symbols + 48 + 6;
        assert_eq!(kinds(versions), Some((RefKind::Value32, CHECKSUMS + 0x1234_5678)), "checksum");
        assert_eq!(kinds(40).map(|found| found.0), Some(RefKind::Abs64), "section headers");
    }

    #[test]
    fn damage_is_passed_over() {
        let good = sample();
        for at in 0..good.len() {
            for value in [0, 1, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                if let Some(found) = refs(&bytes) {
                    assert!(found.iter().all(|found| found.at < bytes.len() as u64), "byte {at}");
                }
            }
        }
    }
}
