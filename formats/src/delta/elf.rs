//! Pointers in 64-bit little-endian ELF programs and libraries for x86-64 and AArch64 (System V ABI, gabi 4.1; LSB 5 for
//! `.eh_frame`); [`module`] has what relocatable files have instead.
//!
//! Finds pointers lazily, one 4 KiB block of a section at a time, so that a program of any size needs the same memory.
//! Does not know the new file. Code is swept from 64 bytes before the block: x86 code falls into step within a few
//! instructions, and a pointer that is missed or imagined costs bytes only.

use super::btf::Btf;
use super::gotab::Pclntab;
use super::refs::{Ref, RefKind};
use super::view::View;
use super::wire::{le16, le32, le64};
use super::{Result, a64, malformed, module, x86};

/// Pointers are found this many bytes at a time, counted from the start of a section.
pub const BLOCK: u64 = 4096;
/// Code is swept from this many bytes before a block.
const WARM_UP: u64 = 64;
/// Most program headers and section headers that are read.
const MAX_SEGMENTS: usize = 64;
const MAX_SECTIONS: usize = 4096;
/// Longest table of section names, in bytes.
const MAX_NAMES: u64 = 1 << 20;
/// Longest `.eh_frame`, in bytes, that is indexed.
const MAX_EH_FRAME: u64 = 64 << 20;
/// Blocks whose pointers are remembered.
const REMEMBERED: usize = 32;

/// Facts that the encoder found out and the decoder is told; 0 is "not known".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Params {
    /// Address that Go's function data is relative to (`go:func.*`).
    pub gofunc: u64,
    /// Address that Go's type offsets are relative to (`runtime.types`).
    pub types: u64,
    /// Address behind Go's types.
    pub etypes: u64,
}

/// A loaded part of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Offset in the file.
    pub offset: u64,
    /// Address.
    pub va: u64,
    /// Bytes in the file.
    pub len: u64,
}

/// A header of a section, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Name, lossy.
    pub name: String,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// Address.
    pub va: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// `sh_link`.
    pub link: u32,
    /// `sh_info`.
    pub info: u32,
}

/// What pointers a section has.
#[derive(Debug)]
pub(super) enum Content {
    CodeX86,
    CodeA64,
    Rela,
    Symbols,
    EhFrameHdr,
    /// Per block, the first entry at or after its start.
    EhFrame(Vec<u32>),
    Pclntab(Pclntab),
    /// 32-bit offsets from the address.
    Offsets(u64),
    Words,
    Relocations(module::Relocations),
    ModuleSymbols(module::Symbols),
    Btf(Btf),
    Versions,
    SectionHeaders,
    FileHeader,
}

/// Bytes of the file with pointers of one kind.
#[derive(Debug)]
pub(super) struct Section {
    pub content: Content,
    pub offset: u64,
    pub size: u64,
    pub va: u64,
}

/// An ELF file's headers and the index of what may hold pointers.
#[derive(Debug)]
pub struct Elf {
    segments: Vec<Segment>,
    headers: Vec<Header>,
    sections: Vec<Section>,
    range: (u64, u64),
    relocatable: bool,
    remembered: Vec<((usize, u64), Vec<Ref>)>,
    next: usize,
}

/// Address of file offset `offset` in `segments`.
#[must_use]
pub fn address(segments: &[Segment], offset: u64) -> Option<u64> {
    let within =
        segments.iter().find(|segment| segment.offset <= offset && offset - segment.offset < segment.len)?;
    Some(within.va.wrapping_add(offset - within.offset))
}

/// Loaded parts, and the range of addresses.
type Layout = (Vec<Segment>, (u64, u64));

fn segments(view: &View, head: &[u8]) -> Result<Option<Layout>> {
    let (Some(at), Some(count)) = (le64(head, 32), le16(head, 56)) else { return Ok(None) };
    if usize::from(count) > MAX_SEGMENTS {
        return Ok(None);
    }
    let table = view.slice(at, at.saturating_add(u64::from(count) * 56))?;
    let (mut found, mut range) = (Vec::new(), (u64::MAX, 0));
    for entry in table.chunks_exact(56).filter(|entry| le32(entry, 0) == Some(1)) {
        let word = |at| le64(entry, at).unwrap_or(0);
        let (offset, va, len, memory) = (word(8), word(16), word(32), word(40));
        if offset.checked_add(len).is_none() || va.checked_add(memory.max(len)).is_none() {
            return Ok(None);
        }
        range = (range.0.min(va), range.1.max(va + memory));
        found.push(Segment { offset, va, len });
    }
    Ok(if found.is_empty() { None } else { Some((found, range)) })
}

fn headers(view: &View, head: &[u8]) -> Result<Vec<Header>> {
    let (Some(at), Some(count), Some(names)) = (le64(head, 40), le16(head, 60), le16(head, 62)) else {
        return Ok(Vec::new());
    };
    if usize::from(count) > MAX_SECTIONS || at == 0 {
        return Ok(Vec::new());
    }
    let table = view.slice(at, at.saturating_add(u64::from(count) * 64))?;
    let field = |index: usize, at| le64(&table, index * 64 + at).unwrap_or(0);
    let from = field(usize::from(names), 24);
    let names = view.slice(from, from.saturating_add(field(usize::from(names), 32).min(MAX_NAMES)))?;
    let mut found = Vec::new();
    for (index, entry) in table.chunks_exact(64).enumerate() {
        let name = names.get(le32(entry, 0).unwrap_or(0) as usize..).unwrap_or_default();
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(&name[..name.len().min(64)]).into_owned();
        let (va, offset, size) = (field(index, 16), field(index, 24), field(index, 32));
        let kind = le32(entry, 4).unwrap_or(0);
        let whole = offset.checked_add(size).is_some() && va.checked_add(size).is_some();
        if !whole {
            // Sections are known by number, so the place of a damaged one is kept.
            found.push(Header::default());
        } else {
            let word = |at| le32(entry, at).unwrap_or(0);
            let (link, info) = (word(40), word(44));
            found.push(Header { name, kind, flags: field(index, 8), va, offset, size, link, info });
        }
    }
    Ok(found)
}

/// Sections in the order of the file, without those that overlap one before.
fn apart(mut sections: Vec<Section>) -> Vec<Section> {
    sections.sort_by_key(|section| section.offset);
    let mut end = 0;
    sections.retain(|section| {
        let apart = section.offset >= end;
        end = end.max(section.offset + section.size);
        apart
    });
    sections
}

const SHT_PROGBITS: u32 = 1;
const SHT_RELA: u32 = 4;
const SHT_NOBITS: u32 = 8;
const SHT_DYNSYM: u32 = 11;
const SHF_ALLOC: u64 = 2;
const SHF_EXECINSTR: u64 = 4;

impl Elf {
    /// Reads the headers of `view`; `None` if it is no ELF file that this module models.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn open(view: &View, params: &Params) -> Result<Option<Self>> {
        let head = view.slice(0, 64)?;
        let modelled = head.get(..6) == Some(b"\x7fELF\x02\x01");
        let machine = le16(&head, 18).filter(|machine| modelled && matches!(machine, 62 | 183));
        let (Some(machine), Some(kind @ 1..=3)) = (machine, le16(&head, 16)) else { return Ok(None) };
        let relocatable = kind == 1;
        let layout = if relocatable { Some((Vec::new(), (0, view.size()))) } else { segments(view, &head)? };
        let Some((segments, range)) = layout else { return Ok(None) };
        let headers = headers(view, &head)?;
        let (sections, remembered) = (Vec::new(), Vec::new());
        let mut elf = Self { segments, headers, sections, range, relocatable, remembered, next: 0 };
        let sections = if relocatable {
            module::index(view, &elf.headers, machine, le64(&head, 40).unwrap_or(u64::MAX))?
        } else {
            elf.index(view, machine, params)?
        };
        elf.sections = apart(sections);
        Ok(Some(elf))
    }

    /// True if it is a relocatable file: addresses are offsets in the file.
    #[must_use]
    pub fn relocatable(&self) -> bool {
        self.relocatable
    }

    /// Loaded parts.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Headers of sections.
    #[must_use]
    pub fn headers(&self) -> &[Header] {
        &self.headers
    }

    /// Offset in the file of `va`.
    #[must_use]
    pub fn offset(&self, va: u64) -> Option<u64> {
        let within =
            self.segments.iter().find(|segment| segment.va <= va && va - segment.va < segment.len)?;
        Some(within.offset + (va - within.va))
    }

    fn index(&self, view: &View, machine: u16, params: &Params) -> Result<Vec<Section>> {
        let text = self.headers.iter().find(|header| header.name == ".text").map_or(0, |header| header.va);
        let rodata =
            self.headers.iter().find(|header| header.name == ".rodata").map_or(0, |header| header.va);
        let mut sections: Vec<Section> = Vec::new();
        for header in &self.headers {
            let inside = header.offset + header.size <= view.size() && header.size > 0;
            if header.kind == SHT_NOBITS || header.flags & SHF_ALLOC == 0 || !inside {
                continue;
            }
            let content = match header.name.as_str() {
                _ if header.flags & SHF_EXECINSTR != 0 && machine == 62 => Content::CodeX86,
                _ if header.flags & SHF_EXECINSTR != 0 => Content::CodeA64,
                ".eh_frame_hdr" => Content::EhFrameHdr,
                ".eh_frame" => Content::EhFrame(index_eh_frame(view, header)?),
                name if name.ends_with(".gopclntab") => {
                    match Pclntab::open(view, header, text, params.gofunc)? {
                        Some(table) => Content::Pclntab(table),
                        None => continue,
                    }
                }
                name if name.contains("typelink") => {
                    Content::Offsets(if params.types == 0 { rodata } else { params.types })
                }
                _ if header.kind == SHT_RELA => Content::Rela,
                _ if header.kind == SHT_DYNSYM => Content::Symbols,
                _ if matches!(header.kind, SHT_PROGBITS | 14..=16) => Content::Words,
                _ => continue,
            };
            sections.push(Section { content, offset: header.offset, size: header.size, va: header.va });
        }
        Ok(sections)
    }

    /// Appends the pointers whose first byte lies in `start..end` of the old file, in order.
    ///
    /// # Errors
    /// When the old image cannot be read.
    pub fn refs(&mut self, view: &View, start: u64, end: u64, out: &mut Vec<Ref>) -> Result<()> {
        let first = self.sections.partition_point(|section| section.offset + section.size <= start);
        for index in first..self.sections.len() {
            let (offset, size) = (self.sections[index].offset, self.sections[index].size);
            if offset >= end {
                break;
            }
            let from = start.saturating_sub(offset) / BLOCK;
            let to = (end.min(offset + size) - offset).div_ceil(BLOCK);
            for block in from..to {
                let refs = self.block(view, index, block)?;
                out.extend(refs.iter().filter(|found| found.at >= start && found.at < end));
            }
        }
        Ok(())
    }

    fn block(&mut self, view: &View, section: usize, block: u64) -> Result<&[Ref]> {
        let key = (section, block);
        if let Some(index) = self.remembered.iter().position(|(known, _)| *known == key) {
            return Ok(&self.remembered[index].1);
        }
        let refs = self.find(view, section, block)?;
        if self.remembered.len() < REMEMBERED {
            self.remembered.push((key, refs));
            self.next = self.remembered.len() - 1;
        } else {
            self.next = (self.next + 1) % REMEMBERED;
            self.remembered[self.next] = (key, refs);
        }
        Ok(&self.remembered[self.next].1)
    }

    fn find(&self, view: &View, section: usize, block: u64) -> Result<Vec<Ref>> {
        let Some(section) = self.sections.get(section) else {
            return malformed("object", "a section is missing");
        };
        let from = block * BLOCK;
        let to = (from + BLOCK).min(section.size);
        let mut finder = Finder { section, range: self.range, from, to, found: Vec::new() };
        match &section.content {
            Content::CodeX86 => finder.code_x86(view)?,
            Content::CodeA64 => finder.code_a64(view)?,
            Content::Rela => finder.records(view, 24, &[(0, 0), (16, 0x100)])?,
            Content::Symbols => finder.records(view, 24, &[(8, 1)])?,
            Content::Words => finder.records(view, 8, &[(0, 0x1000)])?,
            Content::Offsets(base) => finder.offsets(view, *base, 0)?,
            Content::EhFrameHdr => finder.offsets(view, section.va, 12)?,
            Content::Relocations(facts) => finder.relocations(view, facts)?,
            Content::ModuleSymbols(facts) => finder.module_symbols(view, facts)?,
            Content::Btf(btf) => btf.refs(view, section.offset, (from, to), &mut finder.found)?,
            Content::Versions => finder.versions(view)?,
            Content::SectionHeaders => finder.section_headers(view)?,
            Content::FileHeader => finder.file_header(view)?,
            Content::EhFrame(starts) => finder.eh_frame(view, starts)?,
            Content::Pclntab(table) => {
                table.refs(view, (section.offset, section.size), from..to, &mut finder.found)?
            }
        }
        let mut found = finder.found;
        found.sort_by_key(|reference| reference.at);
        let mut end = 0;
        found.retain(|reference| {
            let apart = reference.at >= end;
            if apart {
                end = reference.at + reference.width() as u64;
            }
            apart
        });
        Ok(found)
    }
}

/// Finds the pointers of one block of one section.
pub(super) struct Finder<'a> {
    pub section: &'a Section,
    range: (u64, u64),
    pub from: u64,
    pub to: u64,
    pub found: Vec<Ref>,
}

impl Finder<'_> {
    /// Bytes of the block, `before` and `after` it, inside the section; with the offset of the first in the section.
    fn bytes(&self, view: &View, before: u64, after: u64) -> Result<(u64, Vec<u8>)> {
        let first = self.from.saturating_sub(before);
        let last = (self.to + after).min(self.section.size);
        Ok((first, view.slice(self.section.offset + first, self.section.offset + last)?))
    }

    fn in_range(&self, target: u64) -> bool {
        self.range.0 <= target && target < self.range.1
    }

    /// Keeps a pointer at `at` of the section if that lies in the block.
    fn keep(&mut self, at: u64, kind: RefKind, base: u64, target: u64) {
        if (self.from..self.to).contains(&at) && self.in_range(target) {
            self.found.push(Ref { at: self.section.offset + at, kind, shift: 0, base, target });
        }
    }

    fn code_x86(&mut self, view: &View) -> Result<()> {
        let (first, bytes) = self.bytes(view, WARM_UP, x86::MAX_LEN as u64)?;
        let mut at = 0usize;
        while at < bytes.len() {
            let Some(insn) = x86::decode(&bytes[at..]) else {
                at += 1;
                continue;
            };
            if let Some(rel) = insn.rel
                && let Some(value) = le32(&bytes, at + usize::from(rel))
            {
                let after = u64::from(insn.len - rel);
                let place = first + at as u64 + u64::from(rel);
                let va = self.section.va.wrapping_add(place);
                let target =
                    va.wrapping_add(after).wrapping_add(i64::from(value.cast_signed()).cast_unsigned());
                self.keep(place, RefKind::Rel32, after, target);
            }
            at += usize::from(insn.len);
        }
        Ok(())
    }

    fn code_a64(&mut self, view: &View) -> Result<()> {
        let (first, bytes) = self.bytes(view, WARM_UP, 0)?;
        let mut sweep = a64::Sweep::default();
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let at = first + index as u64 * 4;
            let va = self.section.va.wrapping_add(at);
            let found = sweep.step(u32::from_le_bytes(*word), self.section.offset + at, va, self.range);
            self.found.extend(found.filter(|_| at >= self.from));
        }
        Ok(())
    }

    /// Absolute 64-bit addresses at `fields` (offset, least value) of records of `size` bytes.
    fn records(&mut self, view: &View, size: u64, fields: &[(u64, u64)]) -> Result<()> {
        let (first, bytes) = self.bytes(view, size, size)?;
        // Words lie at aligned file offsets; records are counted from the start of the section.
        let phase = if size == 8 { (8 - self.section.offset % 8) % 8 } else { 0 };
        let mut record = first + (size + phase - first % size) % size;
        while record + size <= first + bytes.len() as u64 {
            for (field, least) in fields {
                let Some(value) = le64(&bytes, (record - first + field) as usize) else { continue };
                if value >= self.range.0.saturating_add(*least).min(1 << 40).max((*least).min(0x1000)) {
                    self.keep(record + field, RefKind::Abs64, 0, value);
                }
            }
            record += size;
        }
        Ok(())
    }

    /// Signed 32-bit offsets from `base`, from byte `start` of the section on.
    fn offsets(&mut self, view: &View, base: u64, start: u64) -> Result<()> {
        let (first, bytes) = self.bytes(view, 4, 4)?;
        for (index, word) in bytes.as_chunks::<4>().0.iter().enumerate() {
            let at = first + index as u64 * 4;
            let target = base.wrapping_add(i64::from(i32::from_le_bytes(*word)).cast_unsigned());
            if at >= start {
                self.keep(at, RefKind::Off32, base, target);
            }
        }
        Ok(())
    }

    fn eh_frame(&mut self, view: &View, starts: &[u32]) -> Result<()> {
        let Some(start) = starts.get((self.from / BLOCK) as usize).filter(|start| **start != u32::MAX) else {
            return Ok(());
        };
        // An entry that starts in the block before may have its pointer in this one.
        let (first, bytes) = self.bytes(view, 0, 12)?;
        let mut at = u64::from(*start);
        while at < self.to {
            let place = (at - first) as usize;
            let (Some(len), Some(id)) = (le32(&bytes, place), le32(&bytes, place + 4)) else { break };
            if let Some(value) = le32(&bytes, place + 8).filter(|_| id != 0 && len >= 8) {
                let va = self.section.va.wrapping_add(at + 8);
                let target = va.wrapping_add(i64::from(value.cast_signed()).cast_unsigned());
                self.keep(at + 8, RefKind::Rel32, 0, target);
            }
            if len == 0 || len == u32::MAX {
                break;
            }
            at += 4 + u64::from(len);
        }
        Ok(())
    }
}

/// Per block of `.eh_frame`, the offset of the first entry that starts in it, or `u32::MAX`.
fn index_eh_frame(view: &View, header: &Header) -> Result<Vec<u32>> {
    if header.size > MAX_EH_FRAME {
        return Ok(Vec::new());
    }
    let mut starts = vec![u32::MAX; header.size.div_ceil(BLOCK) as usize];
    let (mut at, mut have, mut bytes) = (0u64, 0u64, Vec::new());
    while at + 4 <= header.size {
        if at < have || at + 4 > have + bytes.len() as u64 {
            have = at;
            bytes = view.slice(header.offset + at, header.offset + header.size.min(at + (64 << 10)))?;
        }
        let Some(len) = le32(&bytes, (at - have) as usize) else { break };
        let start = &mut starts[(at / BLOCK) as usize];
        *start = (*start).min(at as u32);
        if len == 0 || len == u32::MAX {
            break;
        }
        at += 4 + u64::from(len);
    }
    Ok(starts)
}
