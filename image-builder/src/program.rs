//! What a program asks of the system that runs it, from its ELF headers (elf(5), LSB 5 "Symbol Versioning"): the
//! processor, a loader, and how new a C library. Other files are no programs to it.

use anyhow::{Result, bail};
use formats::arch::Arch;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;
const END: u64 = 0;
const STRINGS: u64 = 5;
const NEEDED_VERSIONS: u64 = 0x6fff_fffe;
/// Most entries of any table that are looked at: real programs have dozens.
const MOST: usize = 4096;
/// Longest name of a version that is looked at, bytes.
const NAME: usize = 64;

/// A version of the GNU C library, as `2.41`.
pub type Glibc = (u32, u32);

/// A 64-bit little-endian ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its processor; none for one that images are not made for.
    pub arch: Option<Arch>,
    /// Whether it needs a dynamic loader.
    pub dynamic: bool,
    /// The newest version of the GNU C library that it asks for by name.
    pub glibc: Option<Glibc>,
}

impl Program {
    /// Reads a file's headers; `None` if it is no such ELF file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn open(path: &Path) -> std::io::Result<Option<Self>> {
        use std::os::unix::fs::FileExt;
        let mut file = File::open(path)?;
        let end = file.seek(SeekFrom::End(0))?;
        Ok(Self::parse(&|offset, length| {
            let part = usize::try_from(end.checked_sub(offset)?).unwrap_or(usize::MAX).min(length);
            let mut bytes = vec![0; part];
            file.read_exact_at(&mut bytes, offset).ok()?;
            Some(bytes)
        }))
    }

    /// As [`Program::open`], from bytes.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        Self::parse(&|offset, length| {
            let rest = bytes.get(usize::try_from(offset).ok()?..)?;
            Some(rest.get(..length).unwrap_or(rest).to_vec())
        })
    }

    fn parse(read: &Reader<'_>) -> Option<Self> {
        let head = Fields(read(0, 64)?);
        if !head.0.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let arch = match head.u16(18)? {
            62 => Some(Arch::X86_64),
            183 => Some(Arch::Arm64),
            _ => None,
        };
        let segments = segments(read, &head).unwrap_or_default();
        let dynamic = segments.iter().any(|segment| segment.kind == INTERPRETER);
        let versions = versions(read, &segments).unwrap_or_default();
        let glibc = versions.iter().filter_map(|name| glibc(name.strip_prefix("GLIBC_")?)).max();
        Some(Self { arch, dynamic, glibc })
    }

    /// Checks that it runs on `arch` with the C library `has`.
    ///
    /// # Errors
    /// What it is for instead, and what to do.
    pub fn check(&self, arch: Arch, has: Option<Glibc>) -> Result<()> {
        if self.arch != Some(arch) {
            let own = self.arch.map_or("another processor".to_owned(), |arch| arch.to_string());
            bail!("it is a program for {own}, must be one for {arch}");
        }
        if let (Some(wants), Some(has)) = (self.glibc, has)
            && wants > has
        {
            bail!(
                "it needs the C library {}.{}, but the image has {}.{}: link it on a machine with an older one, as \
                 Debian 13 or earlier",
                wants.0,
                wants.1,
                has.0,
                has.1
            );
        }
        Ok(())
    }
}

/// `2.41` of `2.41-12+deb13u1`, `2.2` of `2.2.5`.
pub fn glibc(version: &str) -> Option<Glibc> {
    let (major, rest) = version.split_once('.')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..end].parse().ok()?))
}

/// Gives up to that many bytes at an offset.
type Reader<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

struct Fields(Vec<u8>);

impl Fields {
    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(*self.0.get(at..)?.first_chunk()?))
    }
}

struct Segment {
    kind: u32,
    offset: u64,
    address: u64,
    bytes: u64,
}

fn segments(read: &Reader<'_>, head: &Fields) -> Option<Vec<Segment>> {
    let (table, size, count) = (head.u64(32)?, u64::from(head.u16(54)?), u64::from(head.u16(56)?));
    let mut segments = Vec::new();
    for n in 0..count {
        let header = Fields(read(table.checked_add(n * size)?, 56)?);
        segments.push(Segment {
            kind: header.u32(0)?,
            offset: header.u64(8)?,
            address: header.u64(16)?,
            bytes: header.u64(32)?,
        });
    }
    Some(segments)
}

/// Names of all versions that the program needs of its libraries.
fn versions(read: &Reader<'_>, segments: &[Segment]) -> Option<Vec<String>> {
    let dynamic = segments.iter().find(|segment| segment.kind == DYNAMIC)?;
    let (mut strings, mut needed) = (None, None);
    for n in 0..MOST as u64 {
        let entry = Fields(read(dynamic.offset.checked_add(n * 16)?, 16)?);
        match entry.u64(0)? {
            END => break,
            STRINGS => strings = Some(offset_of(segments, entry.u64(8)?)?),
            NEEDED_VERSIONS => needed = Some(offset_of(segments, entry.u64(8)?)?),
            _ => {}
        }
    }
    let (strings, mut library) = (strings?, needed?);
    let mut names = Vec::new();
    while names.len() < MOST {
        // Elf64_Verneed: version, count, file, offset of the first Elf64_Vernaux, offset of the next library.
        let header = Fields(read(library, 16)?);
        let mut version = library.checked_add(header.u32(8)?.into())?;
        for _ in 0..header.u16(2)? {
            // Elf64_Vernaux: hash, flags, index, name, offset of the next.
            let entry = Fields(read(version, 16)?);
            let bytes = read(strings.checked_add(entry.u32(8)?.into())?, NAME)?;
            let end = bytes.iter().position(|byte| *byte == 0)?;
            names.push(String::from_utf8_lossy(&bytes[..end]).into_owned());
            version = version.checked_add(entry.u32(12)?.into())?;
        }
        match header.u32(12)? {
            0 => break,
            next => library = library.checked_add(next.into())?,
        }
    }
    Some(names)
}

/// Where an address is in the file.
fn offset_of(segments: &[Segment], address: u64) -> Option<u64> {
    let within = |segment: &&Segment| {
        segment.kind == LOAD
            && address.checked_sub(segment.address).is_some_and(|below| below < segment.bytes)
    };
    let segment = segments.iter().find(within)?;
    segment.offset.checked_add(address - segment.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ELF header of a program with one program header of `kind`.
    fn program(machine: u8, kind: u32) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = machine;
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf[64..68].copy_from_slice(&kind.to_le_bytes());
        elf
    }

    /// A program that asks its libraries for these versions, one entry after the other.
    fn linked(names: &[&str]) -> Vec<u8> {
        let mut elf = program(183, LOAD);
        elf[56] = 2;
        elf.resize(1024, 0);
        let mut put = |at: usize, value: u64, length: usize| {
            elf[at..at + length].copy_from_slice(&value.to_le_bytes()[..length]);
        };
        // Everything is loaded at 0x1000.
        put(64 + 16, 0x1000, 8);
        put(64 + 32, 1024, 8);
        put(120, DYNAMIC.into(), 4);
        put(120 + 8, 200, 8);
        for (n, (tag, value)) in [(STRINGS, 0x1000 + 600), (NEEDED_VERSIONS, 0x1000 + 300)].iter().enumerate()
        {
            put(200 + n * 16, *tag, 8);
            put(208 + n * 16, *value, 8);
        }
        put(302, names.len() as u64, 2);
        put(308, 16, 4);
        let mut text = 1;
        for (n, name) in names.iter().enumerate() {
            put(316 + n * 16 + 8, text as u64, 4);
            put(316 + n * 16 + 12, 16, 4);
            text += name.len() + 1;
        }
        let mut text = 601;
        for name in names {
            elf[text..text + name.len()].copy_from_slice(name.as_bytes());
            text += name.len() + 1;
        }
        elf
    }

    #[test]
    fn the_processor_and_the_loader_are_read() {
        for (machine, arch) in [(62, Some(Arch::X86_64)), (183, Some(Arch::Arm64)), (8, None)] {
            assert_eq!(
                Program::of(&program(machine, INTERPRETER)),
                Some(Program { arch, dynamic: true, glibc: None })
            );
            assert!(!Program::of(&program(machine, LOAD)).unwrap().dynamic);
        }
        assert_eq!(Program::of(b"#!/bin/sh"), None);
        assert_eq!(Program::of(b"\x7fELF\x02\x01"), None);
    }

    #[test]
    fn the_newest_c_library_that_is_asked_for_counts() {
        let names = ["GLIBC_2.17", "GLIBC_2.34", "GCC_4.2.0", "GLIBC_2.2.5", "GLIBC_PRIVATE"];
        let found = Program::of(&linked(&names)).unwrap();
        assert_eq!(found.glibc, Some((2, 34)));
        found.check(Arch::Arm64, glibc("2.41-12+deb13u1")).unwrap();
        found.check(Arch::Arm64, None).unwrap();
        let error = found.check(Arch::Arm64, Some((2, 31))).unwrap_err().to_string();
        assert!(error.starts_with("it needs the C library 2.34, but the image has 2.31"), "{error}");
        let error = found.check(Arch::X86_64, None).unwrap_err().to_string();
        assert!(error.starts_with("it is a program for arm64, must be one for x86_64"), "{error}");
    }

    #[test]
    fn broken_tables_end() {
        let whole = linked(&["GLIBC_2.17", "GLIBC_2.34"]);
        for length in 0..whole.len() {
            Program::of(&whole[..length]);
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] = 0xff;
            Program::of(&broken);
        }
    }

    #[test]
    fn this_test_is_a_program_of_this_machine() {
        let own = Program::open(&std::env::current_exe().unwrap()).unwrap().unwrap();
        assert_eq!(own.arch, Arch::host());
        assert!(own.dynamic && own.glibc > Some((2, 16)), "{own:?}");
    }
}
