//! The initial file system: Farhold's static init and the kernel modules it loads, as a cpio archive.
//!
//! Not compressed: the ESP has room, downloads are compressed anyway, and a delta of the UKI then takes what changed in
//! the init instead of the whole archive.
//!
//! Format: "newc" of the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. The init reads
//! [`MODULES_LIST`], one absolute path per line, in load order. Knows nothing of where the files come from.

use crate::program::Program;
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use std::collections::{BTreeMap, BTreeSet};

/// Lists the modules in load order.
pub const MODULES_LIST: &str = "/modules.list";
/// Folder of the modules.
const MODULES: &str = "lib/modules";
/// Empty folders that the init mounts on.
const FOLDERS: [&str; 8] = ["dev", "lib", MODULES, "proc", "run", "sys", "sysroot", "tmp"];

/// A kernel module as the initrd carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Name without folder and suffix, as `dm-verity`.
    pub name: String,
    /// The module, not compressed.
    pub bytes: Vec<u8>,
}

/// Packs the init and the modules, which stand in load order.
///
/// # Errors
/// If a file is 4 GiB or longer.
pub fn pack(init: &[u8], modules: &[Module]) -> Result<Vec<u8>> {
    pack_with(init, modules, &[])
}

/// As [`pack`], with more files, whose folders are made.
///
/// # Errors
/// As [`pack`].
pub fn pack_with(init: &[u8], modules: &[Module], files: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Archive { out: Vec::new(), inode: 0 };
    for folder in FOLDERS {
        archive.entry(folder, Kind::Folder, &[])?;
    }
    archive.entry("dev/console", Kind::Console, &[])?;
    archive.entry("init", Kind::Program, init)?;
    let mut list = String::new();
    for module in modules {
        let path = format!("{MODULES}/{}.ko", module.name);
        archive.entry(&path, Kind::File, &module.bytes)?;
        list.push_str(&format!("/{path}\n"));
    }
    archive.entry(MODULES_LIST.trim_start_matches('/'), Kind::File, list.as_bytes())?;
    let folders: BTreeSet<&str> =
        files.iter().filter_map(|(path, _)| Some(path.rsplit_once('/')?.0)).collect();
    for folder in folders {
        archive.entry(folder, Kind::Folder, &[])?;
    }
    for (path, contents) in files {
        archive.entry(path, Kind::File, contents)?;
    }
    archive.entry("TRAILER!!!", Kind::Trailer, &[])?;
    Ok(archive.out)
}

/// The modules of an archive that [`pack`] made, in load order.
///
/// # Errors
/// If it is no such archive.
pub fn modules(archive: &[u8]) -> Result<Vec<Module>> {
    let files = unpack(archive)?;
    let list =
        files.get(MODULES_LIST.trim_start_matches('/')).context("the initrd has no list of modules")?;
    let list = std::str::from_utf8(list).context("the initrd's list of modules is no text")?;
    let module = |path: &str| {
        let bytes =
            files.get(path.trim_start_matches('/')).with_context(|| format!("the initrd has no {path}"))?;
        let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".ko").to_owned();
        Ok(Module { name, bytes: bytes.to_vec() })
    };
    list.lines().map(module).collect()
}

/// The entries of an archive by name.
fn unpack(archive: &[u8]) -> Result<BTreeMap<String, &[u8]>> {
    const HEADER: usize = 110;
    let mut files = BTreeMap::new();
    let mut at = 0usize;
    loop {
        let header = archive.get(at..at + HEADER).context("the initrd is cut short")?;
        if !header.starts_with(b"070701") {
            bail!("the initrd is packed, or not in the format that this builder writes");
        }
        let field = |n: usize| {
            let text = std::str::from_utf8(&header[6 + 8 * n..14 + 8 * n]).unwrap_or_default();
            u32::from_str_radix(text, 16).map(|n| n as usize).context("the initrd has a damaged header")
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name = archive.get(at + HEADER..at + HEADER + name_size).context("the initrd is cut short")?;
        let name = String::from_utf8_lossy(name).trim_end_matches('\0').to_owned();
        let data = (at + HEADER + name_size).next_multiple_of(4);
        if name == "TRAILER!!!" {
            return Ok(files);
        }
        files.insert(name, archive.get(data..data + size).context("the initrd is cut short")?);
        at = (data + size).next_multiple_of(4);
    }
}

/// Checks that an ELF program can be the first one of a machine: for its processor, and with no loader, which the
/// initrd does not have.
///
/// # Errors
/// If it is for another processor or linked dynamically.
pub fn check_program(program: &[u8], arch: Arch) -> Result<()> {
    let Some(program) = Program::of(program) else { bail!("it is no 64-bit program") };
    program.check(arch, None)?;
    if program.dynamic {
        bail!(
            "it is linked dynamically: build it with `-C target-feature=+crt-static` (`make programs` does)"
        );
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Kind {
    Folder,
    Program,
    File,
    /// `/dev/console`, so that the init has standard output before it mounts `/dev`.
    Console,
    Trailer,
}

impl Kind {
    const fn mode(self) -> u32 {
        match self {
            Self::Folder => 0o040_755,
            Self::Program => 0o100_755,
            Self::File => 0o100_644,
            Self::Console => 0o020_600,
            Self::Trailer => 0,
        }
    }
    const fn links(self) -> u32 {
        match self {
            Self::Folder => 2,
            Self::Program | Self::File | Self::Console | Self::Trailer => 1,
        }
    }
    /// Major and minor device number.
    const fn device(self) -> [u32; 2] {
        match self {
            Self::Console => [5, 1],
            Self::Folder | Self::Program | Self::File | Self::Trailer => [0, 0],
        }
    }
}

struct Archive {
    out: Vec<u8>,
    inode: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, kind: Kind, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len()).with_context(|| format!("{name} is 4 GiB or longer"))?;
        self.inode += 1;
        let [major, minor] = kind.device();
        let fields = [
            self.inode,
            kind.mode(),
            0, // owner
            0, // group
            kind.links(),
            0, // time of change: the same in every build
            size,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08X}"));
        }
        self.out.extend_from_slice(header.as_bytes());
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(contents);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str) -> Module {
        Module { name: name.into(), bytes: vec![7; 4097] }
    }

    /// Reads an archive back: name, mode and contents of each entry.
    fn entries(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            let field = |n: usize| {
                let start = at + 6 + 8 * n;
                u32::from_str_radix(std::str::from_utf8(&bytes[start..start + 8]).unwrap(), 16).unwrap()
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn carries_init_modules_and_their_order() {
        let packed = pack(b"program", &[module("dm-mod"), module("dm-verity")]).unwrap();
        let entries = entries(&packed);
        let find = |name: &str| entries.iter().find(|e| e.0 == name).unwrap();
        assert_eq!(find("init").1, 0o100_755);
        assert_eq!(find("init").2, b"program");
        assert_eq!(find("modules.list").2, b"/lib/modules/dm-mod.ko\n/lib/modules/dm-verity.ko\n");
        assert_eq!(find("lib/modules/dm-verity.ko").2, vec![7; 4097]);
        assert_eq!(find("dev/console").1, 0o020_600);
    }

    #[test]
    fn folders_stand_before_what_is_in_them() {
        let entries = entries(&pack(b"x", &[module("erofs")]).unwrap());
        for (n, (name, ..)) in entries.iter().enumerate() {
            if let Some((folder, _)) = name.rsplit_once('/') {
                assert!(entries[..n].iter().any(|e| e.0 == folder), "{name}");
            }
        }
    }

    #[test]
    fn only_static_programs_can_be_the_init() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = check_program(&own, Arch::host().unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("it is linked dynamically"), "{error}");
        let error = check_program(b"#!/bin/sh", Arch::X86_64).unwrap_err().to_string();
        assert_eq!(error, "it is no 64-bit program");
    }

    #[test]
    fn same_input_same_bytes() {
        let modules = [module("a"), module("b")];
        assert_eq!(pack(b"x", &modules).unwrap(), pack(b"x", &modules).unwrap());
    }

    #[test]
    fn modules_come_out_as_they_went_in_and_more_files_stand_beside() {
        let given = [module("dm-mod"), module("erofs")];
        let archive = pack_with(b"init", &given, &[("farhold/roots", b"r")]).unwrap();
        assert_eq!(modules(&archive).unwrap(), given);
        assert_eq!(unpack(&archive).unwrap()["farhold/roots"], b"r");
        for length in [0, 50, archive.len() / 2] {
            assert!(modules(&archive[..length]).is_err());
        }
    }
}
