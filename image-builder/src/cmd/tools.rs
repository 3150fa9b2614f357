//! `farhold tools`: the programs that make and boot images, from pinned packages.

use crate::fetch::{self, Want};
use crate::lock::{Lock, LockedTools};
use crate::mirror::{MirrorOptions, Mirrors};
use crate::pin::Pinner;
use crate::progress::Progress;
use crate::store::Store;
use crate::tools::{Purpose, Tool, ToolsRoot};
use anyhow::{Context, Result, anyhow};
use formats::arch::Arch;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Prepares the programs that make images, QEMU and firmware for the lab, or a Rust compiler for the device's programs,
/// and prints their folder.
///
/// Nothing is installed on this machine: packages are unpacked in the cache.
#[derive(clap::Args)]
pub struct ToolsCmd {
    /// Which of them.
    #[arg(value_enum, default_value_t = PurposeArg::Build)]
    purpose: PurposeArg,
    /// The lock whose tools for making images are wanted; without it, the newest.
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Look for newer packages than those used last.
    #[arg(long)]
    update: bool,
    /// A folder of packages that is looked into before any network.
    #[arg(long = "store", value_name = "DIR")]
    folders: Vec<PathBuf>,
    #[command(flatten)]
    mirrors: MirrorOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl ToolsCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the packages cannot be resolved, had or unpacked.
    pub fn run(&self) -> Result<ExitCode> {
        let store = Store::from_environment()?;
        let progress = Progress::stderr();
        let root = match &self.lock {
            Some(path) => {
                let tools = locked(path)?;
                fetch::fetch(&store, &Want::tools(&tools)?, &self.folders, &progress)?;
                ToolsRoot::open(&store, Purpose::Build, &tools.packages, &progress)?
            }
            None => {
                let purpose = Purpose::from(self.purpose);
                let newest = Newest { store: &store, mirrors: &self.mirrors, folders: &self.folders };
                newest.open(purpose, self.update, &progress)?
            }
        };
        if self.json {
            println!("{}", self.json(&root)?);
        } else {
            println!("{}", root.path().display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Which tools.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PurposeArg {
    /// What makes images.
    Build,
    /// QEMU and firmware.
    Lab,
    /// `rustc` with the standard library of every processor.
    Rust,
}

impl From<PurposeArg> for Purpose {
    fn from(purpose: PurposeArg) -> Self {
        match purpose {
            PurposeArg::Build => Self::Build,
            PurposeArg::Lab => Self::Lab,
            PurposeArg::Rust => Self::Rust,
        }
    }
}

impl ToolsCmd {
    /// The folder; for the lab also how to start QEMU, and firmware files. The lab reads this.
    fn json(&self, root: &ToolsRoot) -> Result<Value> {
        match self.purpose {
            PurposeArg::Build => return Ok(json!({ "path": root.path() })),
            PurposeArg::Rust => {
                return Ok(json!({ "path": root.path(), "rustc": root.path().join("rustc") }));
            }
            PurposeArg::Lab => {}
        }
        let x86 = |name: &str| root.file(&format!("usr/share/OVMF/{name}"));
        let arm = |name: &str| root.file(&format!("usr/share/AAVMF/{name}"));
        Ok(json!({
            "path": root.path(),
            "qemu_x86_64": root.qemu(Tool::QemuX86),
            "qemu_aarch64": root.qemu(Tool::QemuArm),
            "environment": { "QEMU_MODULE_DIR": root.libraries().join("qemu") },
            "firmware": {
                Arch::X86_64.name(): {
                    "code": x86("OVMF_CODE_4M.fd")?,
                    "secure_code": x86("OVMF_CODE_4M.secboot.fd")?,
                    "vars": x86("OVMF_VARS_4M.fd")?,
                },
                Arch::Arm64.name(): {
                    "code": arm("AAVMF_CODE.no-secboot.fd")?,
                    "secure_code": arm("AAVMF_CODE.secboot.fd")?,
                    "vars": arm("AAVMF_VARS.fd")?,
                },
            },
        }))
    }
}

fn locked(path: &Path) -> Result<LockedTools> {
    let host = Arch::host().ok_or_else(|| anyhow!("no tools for a {} machine", std::env::consts::ARCH))?;
    let lock = Lock::read(path)?;
    let tools = lock.tools.get(&host).cloned();
    tools.ok_or_else(|| {
        anyhow!(
            "{} has no tools for a machine of architecture {host}: run `farhold lock` on one",
            path.display()
        )
    })
}

/// Tools that no lock pins: the newest when they were first asked for, the same ones from then on.
pub struct Newest<'a> {
    /// The cache.
    pub store: &'a Store,
    /// Where packages are looked for.
    pub mirrors: &'a MirrorOptions,
    /// Folders that are looked into before any network.
    pub folders: &'a [PathBuf],
}

impl Newest<'_> {
    /// Opens the tools used last, or with `update` or if there are none, the newest.
    ///
    /// # Errors
    /// If the packages cannot be resolved, had or unpacked.
    pub fn open(&self, purpose: Purpose, update: bool, progress: &Progress) -> Result<ToolsRoot> {
        let note = self.store.root().join(format!("tools-{}.json", purpose.name()));
        let last =
            std::fs::read(&note).ok().and_then(|bytes| serde_json::from_slice::<LockedTools>(&bytes).ok());
        let tools = match last.filter(|_| !update) {
            Some(tools) => tools,
            None => self.resolve(purpose, progress)?,
        };
        fetch::fetch(self.store, &Want::tools(&tools)?, self.folders, progress)?;
        let root = ToolsRoot::open(self.store, purpose, &tools.packages, progress)?;
        self.store.note(&note, &serde_json::to_vec(&tools)?)?;
        Ok(root)
    }

    fn resolve(&self, purpose: Purpose, progress: &Progress) -> Result<LockedTools> {
        let mirrors = Mirrors::find(self.mirrors, Path::new("/"))?;
        let artefacts = BTreeMap::new();
        let pinner = Pinner {
            store: self.store,
            mirrors: &mirrors,
            snapshot: false,
            folders: self.folders,
            artefacts: &artefacts,
            progress,
        };
        pinner.tools(purpose).with_context(|| format!("resolve the {} tools", purpose.name()))
    }
}
