//! Assembles a root file system from unpacked packages and packs, without running anything of them. In order:
//!
//! ```text
//! packages ─▶ scripts (what replaces maintainer scripts) ─▶ artefacts, files ─▶ certificates ─▶ kernel
//!          ─▶ accounts ─▶ units ─▶ libraries checked ─▶ /var and mount points
//! ```
//!
//! The same for every processor, as any user. Knows nothing of image formats or partitions.

pub mod accounts;
mod certificates;
mod files;
pub mod kernel;
mod layout;
mod libraries;
mod packages;
mod pattern;
mod scripts;
mod steps;
mod units;

use crate::lock::LockedArch;
use crate::progress::Progress;
use crate::resolved::Resolved;
use crate::store::Store;
use crate::tools::ToolsRoot;
use crate::tree::{Ids, Tree};
use crate::unpack;
use accounts::Accounts;
use anyhow::Result;
use kernel::Kernel;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An assembled root file system.
#[derive(Debug)]
pub struct Rootfs {
    /// Every path of the image.
    pub tree: Tree,
    /// Ids of the owners in `tree`.
    pub ids: Ids,
    /// The kernel and its modules; not in `tree` below `/boot`.
    pub kernel: Kernel,
    /// What is in it, for the SBOM; in order of name.
    pub packages: Vec<PackageFacts>,
}

/// A package as the SBOM names it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PackageFacts {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// Debian architecture.
    pub architecture: String,
    /// Source package, with its version in parentheses if that differs.
    pub source: Option<String>,
    /// Maintainer as the package names it.
    pub maintainer: String,
    /// One line that says what it is.
    pub summary: String,
    /// SHA-256 of the .deb, hexadecimal.
    pub sha256: String,
    /// Licence names that its copyright file declares, as written there.
    pub licences: BTreeSet<String>,
}

/// What is needed to assemble.
pub struct Inputs<'a> {
    /// The profile.
    pub resolved: &'a Resolved,
    /// What is pinned for it.
    pub locked: &'a LockedArch,
    /// The cache; packages and artefacts of `locked` must be in it.
    pub store: &'a Store,
    /// Tools for building.
    pub tools: &'a ToolsRoot,
    /// Where progress is shown.
    pub progress: &'a Progress,
}

/// Assembles the root file system of a locked profile.
///
/// # Errors
/// Packages or artefacts missing from the cache; maintainer scripts that nothing covers, all at once; two owners of
/// one path; steps, users or units that name what is not there; ids that the lock does not have.
pub fn assemble(inputs: &Inputs<'_>) -> Result<Rootfs> {
    let mut draft = Draft::new(inputs)?;
    let ids = draft.accounts.ids(&inputs.locked.uids, &inputs.locked.gids)?;
    draft.accounts.write(&mut draft.tree, &ids)?;
    units::apply(&mut draft.tree, &draft.enabled, &inputs.resolved.units)?;
    libraries::check(&draft.tree)?;
    layout::finish(&mut draft.tree)?;
    Ok(Rootfs { tree: draft.tree, ids, kernel: draft.kernel, packages: draft.facts })
}

/// Ids for every account of a profile: those of `uids` and `gids` kept, new names numbered.
///
/// # Errors
/// As [`assemble`], except that no name lacks an id.
pub fn allocate(inputs: &Inputs<'_>) -> Result<Ids> {
    Draft::new(inputs)?.accounts.allocate(&inputs.locked.uids, &inputs.locked.gids)
}

/// A root file system before accounts have ids.
struct Draft {
    tree: Tree,
    accounts: Accounts,
    enabled: Vec<units::Enabled>,
    kernel: Kernel,
    facts: Vec<PackageFacts>,
}

impl Draft {
    fn new(inputs: &Inputs<'_>) -> Result<Self> {
        let Inputs { resolved, locked, store, tools, progress } = inputs;
        let locked_packages = [locked.packages.clone(), packages::given(resolved, locked, store)?].concat();
        let unpacked = unpack::packages(store, &locked_packages, progress)?;
        let packages = packages::Package::all(&locked_packages, unpacked);
        let plan = scripts::plan(&packages, &resolved.debian)?;
        let busy = progress.busy("assemble root file system");
        let mut tree = Tree::new(&Arc::from("farhold"));
        packages::apply(&mut tree, &packages, &resolved.debian)?;
        scripts::alternatives(&mut tree, &plan)?;
        let late = steps::apply(&mut tree, &plan.steps)?;
        files::artefacts(&mut tree, resolved, locked, store)?;
        files::files(&mut tree, resolved)?;
        for folder in &late.bundles {
            certificates::bundle(&mut tree, folder, store, tools)?;
        }
        let kernel = kernel::install(&mut tree, &resolved.boot, store, tools)?;
        let accounts = Accounts::collect(&tree, &late.sysusers, &resolved.users)?;
        drop(busy);
        let facts = packages.iter().map(packages::Package::facts).collect();
        Ok(Self { tree, accounts, enabled: plan.enable, kernel, facts })
    }
}
