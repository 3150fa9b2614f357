//! Adds sections to a PE32+ image: what is needed to put a kernel behind an EFI stub, and no more.
//!
//! Follows Microsoft's "PE Format"; the result is byte for byte what systemd's `ukify` 257 writes for the same
//! sections. Knows nothing of kernels, signatures or what the sections mean.

use std::ops::Range;

/// `IMAGE_SCN_CNT_CODE | IMAGE_SCN_MEM_READ`.
pub const CODE: u32 = 0x4000_0020;
/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
pub const DATA: u32 = 0x4000_0040;
/// `IMAGE_DLLCHARACTERISTICS_NX_COMPAT`.
const NX_COMPAT: u16 = 0x0100;
/// `IMAGE_FILE_LOCAL_SYMS_STRIPPED`.
const LOCAL_SYMS_STRIPPED: u16 = 0x0008;
/// Sections that the Windows loader takes at most; firmware has no higher limit.
const MAX_SECTIONS: usize = 96;
const SECTION_HEADER: usize = 40;
const SYMBOL: usize = 18;

// Offsets in the COFF header, which stands after the signature.
const COFF_SECTIONS: usize = 2;
const COFF_SYMBOL_TABLE: usize = 8;
const COFF_SYMBOL_COUNT: usize = 12;
const COFF_OPTIONAL_SIZE: usize = 16;
const COFF_CHARACTERISTICS: usize = 18;
const COFF_HEADER: usize = 20;
// Offsets in the optional header (PE32+).
const OPT_INITIALIZED_DATA: usize = 8;
const OPT_SECTION_ALIGNMENT: usize = 32;
const OPT_FILE_ALIGNMENT: usize = 36;
const OPT_IMAGE_SIZE: usize = 56;
const OPT_HEADERS_SIZE: usize = 60;
const OPT_CHECKSUM: usize = 64;
const OPT_DLL_CHARACTERISTICS: usize = 70;
const OPT_DIRECTORY_COUNT: usize = 108;
const OPT_SECURITY_DIRECTORY: usize = 112 + 4 * 8;
// Offsets in a section header.
const SEC_VIRTUAL_SIZE: usize = 8;
const SEC_VIRTUAL_ADDRESS: usize = 12;
const SEC_RAW_SIZE: usize = 16;
const SEC_RAW_POINTER: usize = 20;
const SEC_CHARACTERISTICS: usize = 36;

/// Why a PE image cannot be read or extended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeError {
    /// Not a PE32+ image at all.
    #[error("not a 64-bit PE image: {0}")]
    NotPe(&'static str),
    /// Headers point outside the file.
    #[error("damaged PE image: {0} lies outside the file")]
    Outside(&'static str),
    /// Carries a signature that adding sections would break.
    #[error("the PE image is signed already; give the unsigned one")]
    Signed,
    /// The headers leave no room for one more section.
    #[error("no header space for section {0}")]
    NoHeaderSpace(String),
    /// A section that exists is too small for new contents.
    #[error("section {name} has room for {room} bytes, needs {needed}")]
    NoSectionSpace {
        /// Section name.
        name: String,
        /// Bytes in the file.
        room: usize,
        /// Bytes wanted.
        needed: usize,
    },
    /// Beyond 4 GiB.
    #[error("the PE image would exceed 4 GiB")]
    TooLarge,
}

/// A PE32+ image in memory.
#[derive(Clone, Debug)]
pub struct Pe {
    bytes: Vec<u8>,
    coff: usize,
    optional: usize,
    table: usize,
}

/// One section as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name without padding.
    pub name: String,
    /// Where its bytes stand in the file: virtual size, cut off at the raw size.
    pub data: Range<usize>,
    header: usize,
    raw: Range<usize>,
    virtual_address: usize,
    virtual_size: usize,
}

impl Pe {
    /// Reads the headers and checks that every section lies in the file.
    ///
    /// # Errors
    /// [`PeError`] for anything that is not a whole PE32+ image.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, PeError> {
        if bytes.get(..2) != Some(b"MZ") {
            return Err(PeError::NotPe("no MZ signature"));
        }
        let signature = read_u32(&bytes, 0x3c).ok_or(PeError::Outside("PE header"))?;
        if bytes.get(signature..).and_then(|rest| rest.get(..4)) != Some(b"PE\0\0") {
            return Err(PeError::NotPe("no PE signature"));
        }
        let coff = signature + 4;
        let optional = coff + COFF_HEADER;
        if read_u16(&bytes, optional) != Some(0x20b) {
            return Err(PeError::NotPe("no PE32+ optional header"));
        }
        let optional_size =
            read_u16(&bytes, coff + COFF_OPTIONAL_SIZE).ok_or(PeError::Outside("COFF header"))?;
        let pe = Self { table: optional + usize::from(optional_size), bytes, coff, optional };
        if usize::from(optional_size) < OPT_DIRECTORY_COUNT + 4 {
            return Err(PeError::NotPe("optional header too short"));
        }
        if pe.section_count() > MAX_SECTIONS {
            return Err(PeError::NotPe("more than 96 sections"));
        }
        for value in [OPT_SECTION_ALIGNMENT, OPT_FILE_ALIGNMENT] {
            if !pe.u32(pe.optional + value).is_power_of_two() {
                return Err(PeError::NotPe("alignment is no power of two"));
            }
        }
        let table_end = pe.table + pe.section_count() * SECTION_HEADER;
        if table_end > pe.bytes.len() {
            return Err(PeError::Outside("section table"));
        }
        if pe.sections().iter().any(|section| section.raw.end > pe.bytes.len()) {
            return Err(PeError::Outside("section data"));
        }
        Ok(pe)
    }

    /// Sections in the order of the table.
    pub fn sections(&self) -> Vec<Section> {
        (0..self.section_count()).map(|n| self.section(self.table + n * SECTION_HEADER)).collect()
    }

    /// Bytes of the section `name`, if there is one.
    pub fn section_data(&self, name: &str) -> Option<&[u8]> {
        self.sections().into_iter().find(|s| s.name == name).map(|s| &self.bytes[s.data])
    }

    /// Whether the image says that it runs with non-executable data.
    pub fn nx_compat(&self) -> bool {
        read_u16(&self.bytes, self.optional + OPT_DLL_CHARACTERISTICS).unwrap_or(0) & NX_COMPAT != 0
    }

    /// Takes back the promise that the image runs with non-executable data.
    pub fn clear_nx_compat(&mut self) {
        let at = self.optional + OPT_DLL_CHARACTERISTICS;
        let flags = read_u16(&self.bytes, at).unwrap_or(0) & !NX_COMPAT;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_le_bytes());
    }

    /// Makes the image ready for more sections: no symbol table, aligned raw data, headers padded.
    ///
    /// # Errors
    /// [`PeError::Signed`] if there is a signature, [`PeError::TooLarge`].
    pub fn prepare(&mut self) -> Result<(), PeError> {
        let directories = self.u32(self.optional + OPT_DIRECTORY_COUNT);
        if directories > 4 && self.u32(self.optional + OPT_SECURITY_DIRECTORY) != 0 {
            return Err(PeError::Signed);
        }
        self.strip_symbols();
        self.align_raw_data()?;
        let headers = round_up(self.u32(self.optional + OPT_HEADERS_SIZE), self.file_alignment())?;
        self.set_u32(self.optional + OPT_HEADERS_SIZE, headers)
    }

    /// Appends a section.
    ///
    /// # Errors
    /// [`PeError::NoHeaderSpace`] or [`PeError::TooLarge`].
    pub fn add(&mut self, name: &str, data: &[u8], characteristics: u32) -> Result<(), PeError> {
        let header = self.table + self.section_count() * SECTION_HEADER;
        let room = header + SECTION_HEADER <= self.u32(self.optional + OPT_HEADERS_SIZE);
        if !room || self.section_count() >= MAX_SECTIONS || name.len() > 8 {
            return Err(PeError::NoHeaderSpace(name.to_owned()));
        }
        let address = self.next_address()?;
        let pointer = round_up(self.bytes.len(), self.file_alignment())?;
        let raw_size = round_up(data.len(), self.file_alignment())?;
        self.bytes[header..header + SECTION_HEADER].fill(0);
        self.bytes[header..header + name.len()].copy_from_slice(name.as_bytes());
        self.set_u32(header + SEC_VIRTUAL_SIZE, data.len())?;
        self.set_u32(header + SEC_VIRTUAL_ADDRESS, address)?;
        self.set_u32(header + SEC_RAW_SIZE, raw_size)?;
        self.set_u32(header + SEC_RAW_POINTER, pointer)?;
        self.set_u32(header + SEC_CHARACTERISTICS, characteristics as usize)?;
        self.bytes.resize(pointer, 0);
        self.bytes.extend_from_slice(data);
        self.bytes.resize(pointer + raw_size, 0);
        let count = (self.section_count() + 1) as u16;
        self.bytes[self.coff + COFF_SECTIONS..][..2].copy_from_slice(&count.to_le_bytes());
        let initialized = self.u32(self.optional + OPT_INITIALIZED_DATA) + data.len();
        self.set_u32(self.optional + OPT_INITIALIZED_DATA, initialized)
    }

    /// Replaces the contents of a section in place.
    ///
    /// # Errors
    /// [`PeError::NoSectionSpace`] if `data` does not fit, or there is no such section.
    pub fn replace(&mut self, name: &str, data: &[u8]) -> Result<(), PeError> {
        let section = self.sections().into_iter().find(|s| s.name == name);
        let room = section.as_ref().map_or(0, |s| s.raw.len());
        let Some(section) = section.filter(|_| data.len() <= room) else {
            return Err(PeError::NoSectionSpace { name: name.to_owned(), room, needed: data.len() });
        };
        self.bytes[section.raw.clone()].fill(0);
        self.bytes[section.raw.start..][..data.len()].copy_from_slice(data);
        self.set_u32(section.header + SEC_VIRTUAL_SIZE, data.len())
    }

    /// Removes the section `name` and all after it, with the signature if there is one.
    ///
    /// # Errors
    /// [`PeError::NoSectionSpace`] if there is no such section.
    pub fn cut_from(&mut self, name: &str) -> Result<(), PeError> {
        let sections = self.sections();
        let Some(index) = sections.iter().position(|section| section.name == name) else {
            return Err(PeError::NoSectionSpace { name: name.to_owned(), room: 0, needed: 0 });
        };
        self.bytes.truncate(sections[index].raw.start);
        self.bytes[self.table + index * SECTION_HEADER..self.table + sections.len() * SECTION_HEADER].fill(0);
        self.bytes[self.coff + COFF_SECTIONS..][..2].copy_from_slice(&(index as u16).to_le_bytes());
        if self.u32(self.optional + OPT_DIRECTORY_COUNT) > 4 {
            self.bytes[self.optional + OPT_SECURITY_DIRECTORY..][..8].fill(0);
        }
        Ok(())
    }

    /// Completes the headers and gives the file. The checksum stays 0: firmware does not look at it, and a signer
    /// computes it.
    ///
    /// # Errors
    /// [`PeError::TooLarge`].
    pub fn finish(mut self) -> Result<Vec<u8>, PeError> {
        let size = self.next_address()?;
        self.set_u32(self.optional + OPT_IMAGE_SIZE, size)?;
        self.set_u32(self.optional + OPT_CHECKSUM, 0)?;
        Ok(self.bytes)
    }

    /// Symbols help nobody in an image; they are cut only where they end the file.
    fn strip_symbols(&mut self) {
        let table = self.u32(self.coff + COFF_SYMBOL_TABLE);
        if table == 0 {
            return;
        }
        let symbols = SYMBOL * self.u32(self.coff + COFF_SYMBOL_COUNT);
        let strings = read_u32(&self.bytes, table + symbols).unwrap_or(0);
        if table + symbols + strings != self.bytes.len() {
            return;
        }
        self.bytes.truncate(table);
        self.bytes[self.coff + COFF_SYMBOL_TABLE..][..8].fill(0);
        let at = self.coff + COFF_CHARACTERISTICS;
        let flags = read_u16(&self.bytes, at).unwrap_or(0) | LOCAL_SYMS_STRIPPED;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_le_bytes());
    }

    /// Moves raw data so that each section starts and ends at the file alignment.
    fn align_raw_data(&mut self) -> Result<(), PeError> {
        let alignment = self.file_alignment();
        for index in 0..self.section_count() {
            let old = self.sections()[index].clone();
            let pointer = round_up(old.raw.start, alignment)?;
            let size = round_up(old.raw.len(), alignment)?;
            let (before, after) = (pointer - old.raw.start, size - old.raw.len());
            self.bytes.splice(old.raw.end..old.raw.end, std::iter::repeat_n(0, after));
            self.bytes.splice(old.raw.start..old.raw.start, std::iter::repeat_n(0, before));
            self.set_u32(old.header + SEC_RAW_POINTER, pointer)?;
            self.set_u32(old.header + SEC_RAW_SIZE, size)?;
            for later in self.sections().into_iter().skip(index + 1) {
                self.set_u32(later.header + SEC_RAW_POINTER, later.raw.start + before + after)?;
            }
        }
        Ok(())
    }

    /// First aligned address after the last section.
    fn next_address(&self) -> Result<usize, PeError> {
        let end = self.sections().last().map_or(0, |last| last.virtual_address + last.virtual_size);
        round_up(end, self.u32(self.optional + OPT_SECTION_ALIGNMENT))
    }

    fn section(&self, header: usize) -> Section {
        let name = self.bytes[header..header + 8].split(|b| *b == 0).next().unwrap_or_default();
        let start = self.u32(header + SEC_RAW_POINTER);
        let raw = start..start + self.u32(header + SEC_RAW_SIZE);
        let virtual_size = self.u32(header + SEC_VIRTUAL_SIZE);
        Section {
            name: String::from_utf8_lossy(name).into_owned(),
            data: start..start + virtual_size.min(raw.len()),
            header,
            raw,
            virtual_address: self.u32(header + SEC_VIRTUAL_ADDRESS),
            virtual_size,
        }
    }

    fn section_count(&self) -> usize {
        read_u16(&self.bytes, self.coff + COFF_SECTIONS).unwrap_or(0).into()
    }

    fn file_alignment(&self) -> usize {
        self.u32(self.optional + OPT_FILE_ALIGNMENT)
    }

    /// A field whose place `parse` has shown to be in the file.
    fn u32(&self, at: usize) -> usize {
        read_u32(&self.bytes, at).unwrap_or(0)
    }

    fn set_u32(&mut self, at: usize, value: usize) -> Result<(), PeError> {
        let value = u32::try_from(value).map_err(|_too_large| PeError::TooLarge)?;
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        Ok(())
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b) as usize)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn round_up(value: usize, alignment: usize) -> Result<usize, PeError> {
    value.checked_next_multiple_of(alignment).filter(|v| *v <= u32::MAX as usize).ok_or(PeError::TooLarge)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A small image with a `.text` and an `.sbat` section, raw data left unaligned, and a symbol table.
    pub fn sample(sbat: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0u8; 0x400];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x40;
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x44, &0x8664u16.to_le_bytes());
        put(0x46, &2u16.to_le_bytes());
        put(0x44 + COFF_OPTIONAL_SIZE, &240u16.to_le_bytes());
        let optional = 0x58;
        put(optional, &0x20bu16.to_le_bytes());
        put(optional + OPT_SECTION_ALIGNMENT, &0x1000u32.to_le_bytes());
        put(optional + OPT_FILE_ALIGNMENT, &0x200u32.to_le_bytes());
        put(optional + OPT_HEADERS_SIZE, &0x400u32.to_le_bytes());
        put(optional + OPT_DLL_CHARACTERISTICS, &NX_COMPAT.to_le_bytes());
        put(optional + OPT_DIRECTORY_COUNT, &16u32.to_le_bytes());
        let table = optional + 240;
        for (n, name, address, size, pointer) in
            [(0, ".text", 0x1000u32, 100u32, 0x400u32), (1, ".sbat", 0x2000, 512, 0x464)]
        {
            let header = table + n * SECTION_HEADER;
            put(header, name.as_bytes());
            put(header + SEC_VIRTUAL_SIZE, &size.to_le_bytes());
            put(header + SEC_VIRTUAL_ADDRESS, &address.to_le_bytes());
            put(header + SEC_RAW_SIZE, &size.to_le_bytes());
            put(header + SEC_RAW_POINTER, &pointer.to_le_bytes());
        }
        bytes.extend_from_slice(&[0x90; 100]);
        let mut contents = [0u8; 512];
        contents[..sbat.len()].copy_from_slice(sbat);
        bytes.extend_from_slice(&contents);
        let symbols = bytes.len() as u32;
        bytes[0x44 + COFF_SYMBOL_TABLE..][..4].copy_from_slice(&symbols.to_le_bytes());
        bytes[0x44 + COFF_SYMBOL_COUNT..][..4].copy_from_slice(&1u32.to_le_bytes());
        bytes.extend_from_slice(&[1; SYMBOL]);
        bytes.extend_from_slice(&4u32.to_le_bytes());
        bytes
    }

    #[test]
    fn preparing_aligns_and_strips() {
        let mut pe = Pe::parse(sample(b"sbat,1\n")).unwrap();
        pe.prepare().unwrap();
        assert_eq!(pe.bytes.len(), 0x400 + 0x200 + 0x200);
        assert!(pe.section_data(".sbat").unwrap().starts_with(b"sbat,1\n"));
        assert_eq!(pe.section_data(".text").unwrap(), &[0x90; 100]);
    }

    #[test]
    fn added_sections_follow_each_other_in_file_and_memory() {
        let mut pe = Pe::parse(sample(b"")).unwrap();
        pe.prepare().unwrap();
        pe.add(".linux", &[7; 0x1001], CODE).unwrap();
        pe.add(".initrd", b"abc", DATA).unwrap();
        let pe = Pe::parse(pe.finish().unwrap()).unwrap();
        let sections = pe.sections();
        assert_eq!(sections[2].virtual_address, 0x3000);
        assert_eq!(sections[3].virtual_address, 0x5000);
        assert_eq!(pe.u32(pe.optional + OPT_IMAGE_SIZE), 0x6000);
        assert_eq!(pe.section_data(".initrd").unwrap(), b"abc");
    }

    #[test]
    fn header_space_is_finite() {
        let mut pe = Pe::parse(sample(b"")).unwrap();
        pe.prepare().unwrap();
        let added = (0..100).take_while(|n| pe.add(&format!(".s{n}"), b"x", DATA).is_ok()).count();
        // The headers end at 0x400; the table starts at 0x148 and holds two sections already.
        assert_eq!(added, (0x400 - 0x148) / SECTION_HEADER - 2);
    }

    #[test]
    fn every_truncation_is_an_error_and_no_panic() {
        let whole = sample(b"sbat,1\n");
        for length in 0..0x400 + 100 + 512 {
            assert!(Pe::parse(whole[..length].to_vec()).is_err(), "{length}");
        }
    }

    #[test]
    fn any_flipped_header_byte_is_refused_or_harmless() {
        let whole = sample(b"sbat,1\n");
        for at in 0..0x400 {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            if let Ok(mut pe) = Pe::parse(bytes)
                && pe.prepare().is_ok()
                && pe.add(".linux", b"x", CODE).is_ok()
            {
                assert!(pe.finish().is_ok_and(|file| !file.is_empty()), "byte {at:#x}");
            }
        }
    }

    #[test]
    fn signed_images_are_refused() {
        let mut bytes = sample(b"");
        bytes[0x58 + OPT_SECURITY_DIRECTORY] = 1;
        assert_eq!(Pe::parse(bytes).unwrap().prepare(), Err(PeError::Signed));
    }
}
