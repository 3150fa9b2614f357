//! Which kernel modules the initrd needs, in load order: the board's list and all they depend on.
//!
//! Dependencies are read from each module's own `.modinfo` section (kernel `include/linux/module.h`), so nothing but
//! the modules themselves decides. Knows nothing of packages or archives.

use super::initrd::Module;
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Modules of one kernel, by normalised name.
pub struct Kernel<'a> {
    /// Paths of modules by normalised name.
    files: BTreeMap<String, String>,
    /// Normalised names of what is built in.
    builtin: BTreeSet<String>,
    /// Reads a module, not compressed.
    read: &'a dyn Fn(&str) -> Result<Vec<u8>>,
}

/// What a module says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Info {
    /// Must be there before.
    depends: Vec<String>,
    /// Should be loaded before, if it exists.
    soft: Vec<String>,
}

impl<'a> Kernel<'a> {
    /// A kernel whose modules stand at `paths`; `builtin` is its `modules.builtin`.
    pub fn new<'p>(
        paths: impl IntoIterator<Item = &'p str>,
        builtin: &str,
        read: &'a dyn Fn(&str) -> Result<Vec<u8>>,
    ) -> Self {
        let module = |path: &str| path.rsplit('/').next().and_then(stem).map(normal);
        Self {
            files: paths.into_iter().filter_map(|p| Some((module(p)?, p.to_owned()))).collect(),
            builtin: builtin.lines().filter_map(module).collect(),
            read,
        }
    }

    /// Reads `wanted` and everything needed before them, in load order. What is built in is left out.
    ///
    /// # Errors
    /// If a module is neither there nor built in, cannot be read, or modules need each other in a circle.
    pub fn load_order(&self, wanted: &[String]) -> Result<Vec<Module>> {
        let mut order = Order { kernel: self, done: BTreeSet::new(), open: Vec::new(), modules: Vec::new() };
        for name in wanted {
            order.visit(&normal(name)).with_context(|| format!("kernel module {name} for the initrd"))?;
        }
        Ok(order.modules)
    }
}

struct Order<'k, 'a> {
    kernel: &'k Kernel<'a>,
    done: BTreeSet<String>,
    open: Vec<String>,
    modules: Vec<Module>,
}

impl Order<'_, '_> {
    fn visit(&mut self, name: &str) -> Result<()> {
        if self.done.contains(name) || self.kernel.builtin.contains(name) {
            return Ok(());
        }
        if self.open.iter().any(|open| open == name) {
            bail!("modules need each other: {} -> {name}", self.open.join(" -> "));
        }
        let path = self.kernel.files.get(name).ok_or_else(|| unknown(name, &self.kernel.files))?;
        let bytes = (self.kernel.read)(path)?;
        let info = modinfo(&bytes).with_context(|| format!("read what {path} depends on"))?;
        self.open.push(name.to_owned());
        for soft in info.soft.iter().filter(|soft| self.kernel.files.contains_key(*soft)) {
            // A soft dependency may lead back here; then there is nothing to load before.
            if !self.open.contains(soft) {
                self.visit(soft)?;
            }
        }
        for needed in &info.depends {
            self.visit(needed).with_context(|| format!("needed by {name}"))?;
        }
        self.open.pop();
        let file = path.rsplit('/').next().and_then(stem).unwrap_or(name).to_owned();
        self.modules.push(Module { name: file, bytes });
        self.done.insert(name.to_owned());
        Ok(())
    }
}

fn unknown(name: &str, files: &BTreeMap<String, String>) -> anyhow::Error {
    let near =
        files.keys().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let hint = near.map_or_else(String::new, |near| format!("; the nearest name is {near}"));
    anyhow!("the kernel package has no module {name}, and it is not built in{hint}")
}

/// Modules are named with `-` in some places and `_` in others; they are the same to the kernel.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn stem(file: &str) -> Option<&str> {
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then_some(stem)
}

/// Reads `depends=` and `softdep=pre:` of a module.
fn modinfo(elf: &[u8]) -> Result<Info> {
    let section = modinfo_section(elf).ok_or_else(|| anyhow!("no kernel module: no .modinfo section"))?;
    let mut info = Info::default();
    for line in section.split(|b| *b == 0).filter_map(|line| std::str::from_utf8(line).ok()) {
        match line.split_once('=') {
            Some(("depends", names)) => {
                info.depends.extend(names.split(',').filter(|n| !n.is_empty()).map(normal));
            }
            Some(("softdep", rule)) => {
                let words = rule.split_ascii_whitespace().skip_while(|w| *w != "pre:").skip(1);
                info.soft.extend(words.take_while(|w| !w.ends_with(':')).map(normal));
            }
            Some(_) | None => {}
        }
    }
    Ok(info)
}

/// The `.modinfo` section of a 64-bit little-endian ELF file (System V ABI, "Object Files").
fn modinfo_section(elf: &[u8]) -> Option<&[u8]> {
    const HEADER: usize = 64;
    let u16_at = |at: usize| elf.get(at..)?.first_chunk().map(|b| usize::from(u16::from_le_bytes(*b)));
    let u32_at = |at: usize| elf.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b) as usize);
    let u64_at = |at: usize| {
        let value = elf.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))?;
        usize::try_from(value).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = u64_at(0x28)?;
    let (entry_size, count, names_index) = (u16_at(0x3a)?, u16_at(0x3c)?, u16_at(0x3e)?);
    if entry_size != HEADER {
        return None;
    }
    let section = |n: usize| {
        let header = table.checked_add(n.checked_mul(HEADER)?)?;
        let (offset, size) = (u64_at(header.checked_add(0x18)?)?, u64_at(header.checked_add(0x20)?)?);
        Some((u32_at(header)?, elf.get(offset..offset.checked_add(size)?)))
    };
    let names = section(names_index)?.1?;
    (0..count).find_map(|n| {
        let (name, data) = section(n)?;
        names.get(name..)?.starts_with(b".modinfo\0").then_some(data?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with nothing but a `.modinfo` section.
    fn module(info: &str) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let info_at = elf.len();
        elf.extend_from_slice(info.replace('\n', "\0").as_bytes());
        let names_at = elf.len();
        elf.extend_from_slice(names);
        let table = elf.len();
        for (name, offset, size) in [(0u32, 0, 0), (1, info_at, info.len()), (0, names_at, names.len())] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(size as u64).to_le_bytes());
            elf.extend_from_slice(&header);
        }
        elf[0x28..0x30].copy_from_slice(&(table as u64).to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        elf
    }

    fn order(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>> {
        let read = |path: &str| {
            let found = modules.iter().find(|(p, _)| *p == path).context("read")?;
            Ok(module(found.1))
        };
        let kernel = Kernel::new(modules.iter().map(|m| m.0), "kernel/fs/ext4/ext4.ko\n", &read);
        let wanted: Vec<_> = wanted.iter().map(|w| (*w).to_owned()).collect();
        Ok(kernel.load_order(&wanted)?.into_iter().map(|m| m.name).collect())
    }

    const TREE: [(&str, &str); 5] = [
        ("kernel/md/dm-verity.ko", "license=GPL\ndepends=dm-mod,dm-bufio\n"),
        ("kernel/md/dm-bufio.ko", "depends=dm-mod\n"),
        ("kernel/md/dm-mod.ko", "depends=\n"),
        ("kernel/fs/erofs.ko", "softdep=pre: crc32c missing post: dm-mod\ndepends=\n"),
        ("kernel/lib/crc32c.ko", "softdep=pre: erofs\ndepends=\n"),
    ];

    #[test]
    fn what_is_needed_comes_before_and_only_once() {
        let found = order(&TREE, &["dm_verity", "dm-mod", "ext4"]).unwrap();
        assert_eq!(found, ["dm-mod", "dm-bufio", "dm-verity"]);
    }

    #[test]
    fn soft_dependencies_come_before_if_they_exist() {
        assert_eq!(order(&TREE, &["erofs"]).unwrap(), ["crc32c", "erofs"]);
    }

    #[test]
    fn a_module_that_is_not_there_is_named_with_the_nearest() {
        let error = format!("{:#}", order(&TREE, &["dm-veritty"]).unwrap_err());
        assert_eq!(
            error,
            "kernel module dm-veritty for the initrd: the kernel package has no module dm_veritty, and it is not \
             built in; the nearest name is dm_verity"
        );
    }

    #[test]
    fn a_circle_is_an_error() {
        let circle = [("a.ko", "depends=b\n"), ("b.ko", "depends=a\n")];
        let error = format!("{:#}", order(&circle, &["a"]).unwrap_err());
        assert!(error.ends_with("modules need each other: a -> b -> a"), "{error}");
    }

    #[test]
    fn damaged_modules_are_errors_and_no_panics() {
        let whole = module("depends=x\n");
        assert_eq!(modinfo(&whole).unwrap().depends, ["x"]);
        // The last 24 bytes are fields of the last section header that nobody reads.
        for length in 0..whole.len() - 24 {
            assert!(modinfo(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0xff;
            // Either an error or some text: what counts is that nothing panics.
            drop(modinfo(&damaged));
        }
    }
}
