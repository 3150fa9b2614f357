//! What differs by processor and board, as data: the folders `x86_64/` and `arm64/` beside `recipes/`.

use crate::finding::{Finding, suggest};
use crate::pack::model::{PackArtefact, Resources};
use crate::resolved::{Boot, Disk};
use crate::yaml;
use formats::arch::Arch;
use serde::Deserialize;
use std::path::Path;

/// `kernel.yaml`: kernel and modules of every board of a processor.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelFile {
    package: String,
    initrd_modules: Vec<String>,
    keep_modules: Vec<String>,
}

/// `boot.yaml`: boot loader and kernel command line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BootFile {
    kernel_args: Vec<String>,
    watchdog_s: Option<u32>,
    menu_s: u32,
}

/// `boards/<name>.yaml`: what a board adds or changes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct BoardFile {
    description: String,
    resources: Resources,
    #[serde(default)]
    packages: Vec<String>,
    #[serde(default)]
    kernel_package: Option<String>,
    #[serde(default)]
    initrd_modules: Vec<String>,
    #[serde(default)]
    keep_modules: Option<Vec<String>>,
    #[serde(default)]
    kernel_args: Vec<String>,
    #[serde(default)]
    watchdog_s: Option<u32>,
    #[serde(default)]
    device_tree: Option<String>,
    #[serde(default)]
    artefacts: Vec<PackArtefact>,
    #[serde(default)]
    disk: Disk,
}

/// A board with what its processor brings.
#[derive(Clone, Debug)]
pub struct Board {
    /// What it is, for people.
    pub description: String,
    /// What it gives.
    pub resources: Resources,
    /// Debian packages it needs, besides the kernel.
    pub packages: Vec<String>,
    /// Files fetched by digest that it needs, as a kernel that Debian does not have.
    pub artefacts: Vec<PackArtefact>,
    /// Kernel, modules and command line.
    pub boot: Boot,
    /// Partition sizes.
    pub disk: Disk,
}

impl Board {
    /// Reads a board below `root/<arch>/`.
    ///
    /// # Errors
    /// Unknown board with the nearest one; files that cannot be read.
    pub fn load(root: &Path, arch: Arch, name: &str) -> Result<Self, Finding> {
        let folder = root.join(arch.name());
        let path = folder.join("boards").join(format!("{name}.yaml"));
        if !path.is_file() {
            let boards = Self::list(root, arch);
            let next = suggest(name, boards.iter().map(String::as_str));
            return Err(Finding::error(
                format!("board.{arch}"),
                format!("there is no board `{name}` for {arch}"),
                next,
            ));
        }
        let board: BoardFile = yaml::load(&path)?;
        let kernel: KernelFile = yaml::load(&folder.join("kernel.yaml"))?;
        let boot: BootFile = yaml::load(&folder.join("boot.yaml"))?;
        let partitions: Disk = yaml::load(&folder.join("partitions.yaml"))?;
        Ok(Self {
            description: board.description,
            resources: board.resources,
            packages: board.packages,
            artefacts: board.artefacts,
            boot: Boot {
                kernel_package: board.kernel_package.unwrap_or(kernel.package),
                initrd_modules: [kernel.initrd_modules, board.initrd_modules].concat(),
                kernel_args: [boot.kernel_args, board.kernel_args].concat(),
                watchdog_s: board.watchdog_s.or(boot.watchdog_s),
                keep_modules: board.keep_modules.unwrap_or(kernel.keep_modules),
                menu_s: boot.menu_s,
                device_tree: board.device_tree,
            },
            disk: overlay(&board.disk, &partitions),
        })
    }

    /// Names of the boards of a processor.
    pub fn list(root: &Path, arch: Arch) -> Vec<String> {
        let folder = std::fs::read_dir(root.join(arch.name()).join("boards"));
        let names =
            folder.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned())).collect();
        names.sort();
        names
    }
}

/// Sizes of `first`, where it has none those of `second`.
pub fn overlay(first: &Disk, second: &Disk) -> Disk {
    Disk {
        esp_mib: first.esp_mib.or(second.esp_mib),
        slot_mib: first.slot_mib.or(second.slot_mib),
        state_mib: first.state_mib.or(second.state_mib),
    }
}
