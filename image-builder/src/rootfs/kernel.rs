//! The kernel of a root file system: its image for the UKI, its modules for image and initrd, and their index.
//!
//! `depmod` runs on a scratch folder of the decompressed modules; its files are cached by what they were made from.

use super::pattern::matches;
use crate::resolved::Boot;
use crate::store::Store;
use crate::tools::{Tool, ToolsRoot};
use crate::tree::{Data, Entry, Node, Tree, name};
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

/// Changes when what is cached changes.
const LAYOUT: &str = "depmod 1";
/// Most bytes of an index that is read: the full kernel's `modules.dep` has under 1 MB.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// What depmod reads besides modules.
const SOURCES: [&str; 3] = ["modules.order", "modules.builtin", "modules.builtin.modinfo"];

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Release, as `uname -r` says.
    pub release: String,
    /// The kernel image, as the UKI takes it.
    pub vmlinuz: Data,
    /// The device tree that the boot image hands to it.
    pub device_tree: Option<Data>,
    /// Every module of the package, also those that the image does not keep, by name with `_` for `-`.
    modules: BTreeMap<String, Module>,
    /// Names of what is built in, with `_` for `-`.
    builtin: BTreeSet<String>,
}

/// A kernel module.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path below `/usr/lib/modules/<release>`, as `kernel/fs/erofs/erofs.ko`.
    pub path: String,
    /// The module, decompressed.
    pub data: Data,
    /// Names of the modules that must be loaded before it, in that order.
    needs: Vec<String>,
}

impl Module {
    /// Name as `lsmod` shows it.
    pub fn name(&self) -> String {
        module_name(&self.path)
    }
}

impl Kernel {
    /// Modules with everything that they depend on, each after what it depends on. Names that are built in give none, nor
    /// do those with a `?` behind them that the kernel has not.
    ///
    /// # Errors
    /// If the kernel has no such module; names the one, and what to do.
    pub fn closure(&self, names: &[String]) -> Result<Vec<&Module>> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for wanted in names {
            let optional = wanted.ends_with('?');
            let wanted = wanted.trim_end_matches('?').replace('-', "_");
            if self.builtin.contains(&wanted) {
                continue;
            }
            let Some(module) = self.modules.get(&wanted) else {
                if optional {
                    continue;
                }
                bail!(
                    "kernel {} has no module `{wanted}`, nor is it built in: take a kernel that has it, or, if this one \
                     does without, write `{wanted}?` under initrd_modules in kernel.yaml or the board's file",
                    self.release
                );
            };
            for name in module.needs.iter().chain(std::iter::once(&wanted)) {
                if seen.insert(name.clone()) {
                    let module = self.modules.get(name);
                    order.push(
                        module.ok_or_else(|| anyhow!("modules.dep names `{name}`, which is not there"))?,
                    );
                }
            }
        }
        Ok(order)
    }
}

/// Finds the kernel, drops modules that the image does not keep, indexes the others, and removes `/boot`.
///
/// # Errors
/// If there is not exactly one kernel, or a module of the initrd is missing.
pub fn install(tree: &mut Tree, boot: &Boot, store: &Store, tools: &ToolsRoot) -> Result<Kernel> {
    let (release, vmlinuz, origin) = find(tree, boot)?;
    let device_tree = device_tree(tree, boot, &release)?;
    let folder = format!("/usr/lib/modules/{release}");
    let all = files(tree, &folder)?;
    let index = depmod(&release, &all, store, tools)?;
    let text = |file: &str| {
        let bytes = fs::read(index.join(file)).with_context(|| format!("read {file} of depmod"))?;
        String::from_utf8(bytes).with_context(|| format!("read {file} of depmod"))
    };
    let builtin = match all.iter().find(|(path, _)| path == "modules.builtin") {
        Some((_, data)) => {
            String::from_utf8_lossy(&data.bytes(MAX_INDEX_BYTES)?).lines().map(module_name).collect()
        }
        None => BTreeSet::new(),
    };
    let kernel =
        Kernel { modules: modules(&all, &text("modules.dep")?), release, vmlinuz, device_tree, builtin };
    kernel.closure(&boot.initrd_modules).context("find modules of the initrd")?;
    let kept = kept(&kernel, boot)?;
    let index = if kept.len() == kernel.modules.len() {
        index
    } else {
        tree.retain(|path, _| {
            let below = path.strip_prefix(&folder).map(|below| below.trim_start_matches('/'));
            below.is_none_or(|below| !below.ends_with(".ko") || kept.contains(below))
        });
        drop_empty_folders(tree, &format!("{folder}/kernel"));
        let left: Vec<_> = all.into_iter().filter(|(p, _)| !p.ends_with(".ko") || kept.contains(p)).collect();
        depmod(&kernel.release, &left, store, tools)?
    };
    add_index(tree, &folder, &index, &origin)?;
    tree.remove("/boot");
    Ok(kernel)
}

/// The board's device tree. Those of other boards, 55 MB of them on arm64, leave the image.
fn device_tree(tree: &mut Tree, boot: &Boot, release: &str) -> Result<Option<Data>> {
    let wanted = match &boot.device_tree {
        None => None,
        Some(pattern) => {
            let is_it = |path: &str| matches(pattern, path);
            let mut found = tree.iter().filter_map(|(path, entry)| match &entry.node {
                Node::File(data) if is_it(path) => Some((path.to_owned(), data.clone())),
                Node::File(_) | Node::Dir | Node::Symlink(_) => None,
            });
            match (found.next(), found.next()) {
                (Some((_, data)), None) => Some(data),
                (None, _) => {
                    bail!("kernel {release} brings no device tree {pattern} (device_tree of the board)")
                }
                (Some(a), Some(b)) => bail!("two device trees match {pattern}: {} and {}", a.0, b.0),
            }
        }
    };
    tree.remove(&format!("/usr/lib/linux-image-{release}"));
    Ok(wanted)
}

/// `/boot/vmlinuz-RELEASE`, or `/boot/Image` as NVIDIA's package has it, whose release only its modules tell.
fn find(tree: &Tree, boot: &Boot) -> Result<(String, Data, Arc<str>)> {
    let releases: BTreeSet<&str> = tree
        .below("/usr/lib/modules")
        .filter_map(|(path, _)| path.strip_prefix("/usr/lib/modules/")?.split('/').next())
        .collect();
    let only = if releases.len() == 1 { releases.first().copied() } else { None };
    let mut kernels = tree.below("/boot").filter_map(|(path, entry)| {
        let release = path.strip_prefix("/boot/vmlinuz-").or(only.filter(|_| path == "/boot/Image"))?;
        match &entry.node {
            Node::File(data) => Some((release.to_owned(), data.clone(), entry.origin.clone())),
            Node::Dir | Node::Symlink(_) => None,
        }
    });
    match (kernels.next(), kernels.next()) {
        (Some(kernel), None) => Ok(kernel),
        (None, _) => {
            bail!("package `{}` brings no kernel (/boot/vmlinuz-* or /boot/Image)", boot.kernel_package)
        }
        (Some(a), Some(b)) => {
            bail!("two kernels, {} (from {}) and {} (from {}); leave one out", a.0, a.2, b.0, b.2)
        }
    }
}

/// Files of the modules folder by path below it: modules and what depmod reads.
fn files(tree: &Tree, folder: &str) -> Result<Vec<(String, Data)>> {
    let prefix = format!("{folder}/");
    let mut found = Vec::new();
    for (path, entry) in tree.below(folder) {
        let below = path.strip_prefix(&prefix).unwrap_or(path);
        match &entry.node {
            Node::File(data) if below.ends_with(".ko") || SOURCES.contains(&below) => {
                found.push((below.to_owned(), data.clone()));
            }
            Node::File(_) if below.contains(".ko.") => {
                bail!(
                    "{path} (from {}) is packed in a way that is not known; modules must be .ko or .ko.xz",
                    entry.origin
                )
            }
            Node::File(_) | Node::Dir | Node::Symlink(_) => {}
        }
    }
    Ok(found)
}

/// Runs depmod over these files and returns the folder of what it wrote.
fn depmod(
    release: &str,
    files: &[(String, Data)],
    store: &Store,
    tools: &ToolsRoot,
) -> Result<std::path::PathBuf> {
    let mut key = Sha256::new();
    key.update(format!("{LAYOUT} {release} {}\n", tools.path().display()));
    for (path, data) in files {
        match data {
            // The folder's name is the digest of the package, so place and length say which bytes these are.
            Data::Range { path: source, offset, len } => {
                key.update(format!("{path} {} {offset} {len}\n", source.display()));
            }
            Data::Bytes(bytes) => {
                key.update(format!("{path} "));
                key.update(Sha256::digest(bytes));
            }
        }
    }
    store.derive("depmod", &Digest(key.finalize().into()), |target| {
        let scratch = store.scratch()?;
        let below = scratch.path().join("lib/modules").join(release);
        for (path, data) in files {
            copy_out(data, &below.join(path)).with_context(|| format!("copy {path} for depmod"))?;
        }
        tools
            .command(Tool::Depmod)
            .arg("-b")
            .arg(scratch.path())
            .arg(release)
            .run()
            .context("index kernel modules")?;
        for entry in fs::read_dir(&below).with_context(|| format!("read {}", below.display()))? {
            let entry = entry.with_context(|| format!("read {}", below.display()))?;
            let made = entry.file_name().to_string_lossy().into_owned();
            if made.starts_with("modules.") && !SOURCES.contains(&made.as_str()) {
                fs::copy(entry.path(), target.join(&made)).with_context(|| store.full())?;
            }
        }
        Ok(())
    })
}

fn copy_out(data: &Data, path: &Path) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    std::io::copy(&mut data.open()?, &mut file)?;
    Ok(())
}

fn modules(files: &[(String, Data)], dependencies: &str) -> BTreeMap<String, Module> {
    let needs: BTreeMap<&str, Vec<String>> = dependencies
        .lines()
        .filter_map(|line| line.split_once(':'))
        // modules.dep names the direct needs first; they are loaded from the end.
        .map(|(path, needs)| (path, needs.split_whitespace().rev().map(module_name).collect()))
        .collect();
    let module = |(path, data): &(String, Data)| {
        let needs = needs.get(path.as_str()).cloned().unwrap_or_default();
        (module_name(path), Module { path: path.clone(), data: data.clone(), needs })
    };
    files.iter().filter(|(path, _)| path.ends_with(".ko")).map(module).collect()
}

/// Paths of modules that the image keeps: those that match, with what they depend on.
fn kept(kernel: &Kernel, boot: &Boot) -> Result<BTreeSet<String>> {
    let mut wanted: Vec<String> = boot.initrd_modules.clone();
    for (name, module) in &kernel.modules {
        let below = module.path.trim_start_matches("kernel/");
        if boot.keep_modules.is_empty() || boot.keep_modules.iter().any(|pattern| matches(pattern, below)) {
            wanted.push(name.clone());
        }
    }
    Ok(kernel.closure(&wanted)?.into_iter().map(|module| module.path.clone()).collect())
}

fn drop_empty_folders(tree: &mut Tree, folder: &str) {
    loop {
        let full: BTreeSet<String> =
            tree.below(folder).map(|(path, _)| crate::tree::parent(path).to_owned()).collect();
        let prefix = format!("{folder}/");
        let before = tree.len();
        tree.retain(|path, entry| {
            !(path.starts_with(&prefix) && matches!(entry.node, Node::Dir) && !full.contains(path))
        });
        if tree.len() == before {
            return;
        }
    }
}

fn add_index(tree: &mut Tree, folder: &str, index: &Path, origin: &Arc<str>) -> Result<()> {
    for entry in fs::read_dir(index).with_context(|| format!("read {}", index.display()))? {
        let entry = entry.with_context(|| format!("read {}", index.display()))?;
        let len = entry.metadata().with_context(|| format!("read {}", index.display()))?.len();
        let data = Data::Range { path: entry.path().into(), offset: 0, len };
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        tree.replace(&path, Entry::new(Node::File(data), 0o644, origin))?;
    }
    Ok(())
}

fn module_name(path: &str) -> String {
    name(path).trim_end_matches(".ko").replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Kernel {
        let file = |path: &str| (path.to_owned(), Data::Bytes(path.as_bytes().into()));
        let files =
            ["kernel/d/dm-verity.ko", "kernel/d/dm-mod.ko", "kernel/d/dm-bufio.ko", "kernel/f/erofs.ko"];
        let files: Vec<_> = files.into_iter().map(file).collect();
        let dependencies = "kernel/d/dm-verity.ko: kernel/d/dm-bufio.ko kernel/d/dm-mod.ko\n\
                            kernel/d/dm-bufio.ko: kernel/d/dm-mod.ko\nkernel/d/dm-mod.ko:\nkernel/f/erofs.ko:\n";
        Kernel {
            release: "6.12".into(),
            vmlinuz: Data::Bytes(b"vmlinuz"[..].into()),
            device_tree: None,
            modules: modules(&files, dependencies),
            builtin: BTreeSet::from(["ext4".to_owned()]),
        }
    }

    fn boot(keep: &[&str]) -> Boot {
        Boot {
            kernel_package: "linux-image-x".into(),
            initrd_modules: vec!["erofs".into()],
            kernel_args: Vec::new(),
            watchdog_s: None,
            keep_modules: keep.iter().map(|pattern| (*pattern).to_owned()).collect(),
            menu_s: 0,
            device_tree: None,
        }
    }

    fn names(kernel: &Kernel, wanted: &[&str]) -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        kernel.closure(&wanted).unwrap().into_iter().map(Module::name).collect()
    }

    #[test]
    fn a_closure_is_in_order_of_loading() {
        let kernel = kernel();
        assert_eq!(
            names(&kernel, &["erofs", "dm-verity", "ext4", "dm_mod"]),
            ["erofs", "dm_mod", "dm_bufio", "dm_verity"]
        );
        let error = kernel.closure(&["nvme".to_owned()]).unwrap_err().to_string();
        assert!(
            error.starts_with("kernel 6.12 has no module `nvme`, nor is it built in: take a kernel"),
            "{error}"
        );
    }

    #[test]
    fn what_newer_kernels_have_built_in_or_dropped_stops_no_build_and_what_is_missing_does() {
        let shipped = |arch: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../{arch}/kernel.yaml"));
            let text = fs::read_to_string(path).unwrap();
            let at = text.split_once("initrd_modules:\n").unwrap().1;
            let lines = at.lines().take_while(|line| !line.is_empty());
            lines.map(|line| line.trim_start_matches("  - ").split(' ').next().unwrap().to_owned()).collect()
        };
        for arch in ["x86_64", "arm64"] {
            let names: Vec<String> = shipped(arch);
            assert!(names.iter().any(|name| name == "crc32c_generic?"), "{arch}: {names:?}");
            // A kernel with everything built in but what newer ones do not have any more.
            let needed: BTreeSet<String> =
                names.iter().filter(|name| !name.ends_with('?')).cloned().collect();
            let mut own = Kernel { modules: BTreeMap::new(), builtin: needed, ..kernel() };
            assert!(own.closure(&names).unwrap().is_empty());
            own.builtin.insert("crc32c_generic".to_owned());
            assert!(own.closure(&names).unwrap().is_empty());
            assert!(own.builtin.remove("nvme"));
            let error = own.closure(&names).unwrap_err().to_string();
            assert!(error.contains("no module `nvme`") && error.contains("`nvme?`"), "{error}");
        }
        // One that has it gets it, first.
        assert_eq!(names(&kernel(), &["erofs?", "dm_mod?", "nvme?"]), ["erofs", "dm_mod"]);
    }

    #[test]
    fn kept_modules_bring_what_they_need() {
        assert_eq!(kept(&kernel(), &boot(&[])).unwrap().len(), 4);
        let some = kept(&kernel(), &boot(&["d/dm-bufio*"])).unwrap();
        assert_eq!(
            some.into_iter().collect::<Vec<_>>(),
            ["kernel/d/dm-bufio.ko", "kernel/d/dm-mod.ko", "kernel/f/erofs.ko"]
        );
    }

    fn tree(paths: &[&str]) -> Tree {
        let origin: Arc<str> = "kernel".into();
        let mut tree = Tree::new(&origin);
        paths.iter().for_each(|path| tree.add(path, Entry::text(*path, &origin)).unwrap());
        tree
    }

    #[test]
    fn a_kernel_is_found_under_both_names() {
        let boot = boot(&[]);
        let found = |paths: &[&str]| find(&tree(paths), &boot).map(|found| found.0);
        assert_eq!(found(&["/boot/vmlinuz-6.12", "/usr/lib/modules/6.12/a.ko"]).unwrap(), "6.12");
        assert_eq!(found(&["/boot/Image", "/usr/lib/modules/5.15-tegra/a.ko"]).unwrap(), "5.15-tegra");
        let none = found(&["/boot/Image", "/usr/lib/modules/1/a.ko", "/usr/lib/modules/2/a.ko"]);
        assert!(none.unwrap_err().to_string().starts_with("package `linux-image-x` brings no kernel"));
    }

    #[test]
    fn the_boards_device_tree_is_taken_and_the_others_go() {
        let paths = [
            "/usr/lib/linux-image-6.12/nvidia/a.dtb",
            "/usr/lib/linux-image-6.12/nvidia/b.dtb",
            "/usr/bin/x",
        ];
        let mut tree = tree(&paths);
        let wanted = |pattern: &str| Boot { device_tree: Some(pattern.into()), ..boot(&[]) };
        let error = device_tree(&mut tree, &wanted("/usr/lib/linux-image-*/c.dtb"), "6.12").unwrap_err();
        assert!(error.to_string().starts_with("kernel 6.12 brings no device tree"), "{error}");
        let error = device_tree(&mut tree, &wanted("*.dtb"), "6.12").unwrap_err().to_string();
        assert!(error.starts_with("two device trees match *.dtb"), "{error}");
        let found = device_tree(&mut tree, &wanted("/usr/lib/linux-image-*/b.dtb"), "6.12").unwrap().unwrap();
        assert_eq!(found.bytes(99).unwrap(), paths[1].as_bytes());
        assert!(tree.file(paths[2]).is_some() && tree.below("/usr/lib/linux-image-6.12").count() == 0);
        assert!(device_tree(&mut tree, &boot(&[]), "6.12").unwrap().is_none());
    }
}
