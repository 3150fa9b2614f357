//! Makes locks: resolves packages and tools, brings them into the cache, learns digests of artefacts, and gives every
//! account an id, keeping those of an earlier lock.

use crate::apt::{Apt, Resolution, Sources};
use crate::fetch::{self, Want};
use crate::lock::{LOCK_FORMAT, Lock, LockedArch, LockedArtefact, LockedTools};
use crate::mirror::Mirrors;
use crate::program::Program;
use crate::progress::Progress;
use crate::resolved::{Artefact, Resolved};
use crate::rootfs::{self, Inputs};
use crate::store::{Store, hash_reader};
use crate::tools::{Purpose, ToolsRoot};
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Suites that tools come from.
const TOOL_SUITES: [&str; 3] = ["trixie", "trixie-updates", "trixie-security"];

/// Where everything is looked for.
pub struct Pinner<'a> {
    /// The cache.
    pub store: &'a Store,
    /// Mirrors.
    pub mirrors: &'a Mirrors,
    /// The mirrors hold a state of the past.
    pub snapshot: bool,
    /// Folders that are looked into before any network.
    pub folders: &'a [PathBuf],
    /// Artefacts that the operator gives, by name.
    pub artefacts: &'a BTreeMap<String, PathBuf>,
    /// Where progress is shown.
    pub progress: &'a Progress,
}

impl Pinner<'_> {
    /// A lock of profiles resolved for one or more architectures; `before` is the lock that it replaces.
    ///
    /// # Errors
    /// If something cannot be resolved or had, or an id changed.
    pub fn lock(&self, resolved: &[Resolved], before: Option<&Lock>) -> Result<Lock> {
        let profile =
            resolved.first().ok_or_else(|| anyhow!("no architecture to lock"))?.device.profile.clone();
        let host = host()?;
        let mut tools = before.map(|lock| lock.tools.clone()).unwrap_or_default();
        let mut arch = before.map(|lock| lock.arch.clone()).unwrap_or_default();
        tools.insert(host, self.tools(Purpose::Build)?);
        let root = self.open_tools(Purpose::Build, &tools[&host])?;
        for resolved in resolved {
            let earlier = arch.get(&resolved.arch());
            let locked = self
                .arch(resolved, earlier, &root)
                .with_context(|| format!("lock {profile} for {}", resolved.arch()))?;
            arch.insert(resolved.arch(), locked);
        }
        Ok(Lock { format: LOCK_FORMAT, profile, arch, tools })
    }

    /// The newest packages of a tools root for this machine.
    ///
    /// # Errors
    /// If they cannot be resolved.
    pub fn tools(&self, purpose: Purpose) -> Result<LockedTools> {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let suites = own(&TOOL_SUITES);
        let suites: Vec<String> =
            suites.into_iter().filter(|suite| self.mirrors.of_suite(suite).is_some()).collect();
        let components = own(&["main"]);
        let sources = |arch| Sources {
            mirrors: self.mirrors,
            suites: &suites,
            components: &components,
            arch,
            snapshot: self.snapshot,
        };
        let host = host()?;
        let apt = Apt::update(self.store, sources(host), self.progress)?;
        let mut resolutions = vec![apt.resolve(&own(purpose.packages()), &BTreeMap::new())?];
        if !purpose.alone().is_empty() {
            resolutions.push(apt.alone(purpose.alone())?);
        }
        drop(apt);
        if !purpose.per_target().is_empty() {
            for arch in Arch::ALL {
                let apt = Apt::update(self.store, sources(arch), self.progress)?;
                resolutions.push(apt.alone(purpose.per_target())?);
            }
        }
        Ok(joined(resolutions))
    }

    /// Fetches the packages of a tools root and unpacks it.
    ///
    /// # Errors
    /// If one cannot be had or unpacked.
    pub fn open_tools(&self, purpose: Purpose, tools: &LockedTools) -> Result<ToolsRoot> {
        fetch::fetch(self.store, &Want::tools(tools)?, self.folders, self.progress)?;
        ToolsRoot::open(self.store, purpose, &tools.packages, self.progress)
    }

    fn arch(
        &self,
        resolved: &Resolved,
        before: Option<&LockedArch>,
        tools: &ToolsRoot,
    ) -> Result<LockedArch> {
        let requested: Vec<String> = requested(resolved);
        let sources = Sources {
            mirrors: self.mirrors,
            suites: &resolved.debian.suites,
            components: &resolved.debian.components,
            arch: resolved.arch(),
            snapshot: self.snapshot,
        };
        let apt = Apt::update(self.store, sources, self.progress)?;
        let Resolution { packages, mirrors } =
            apt.resolve(&requested, &resolved.debian.absent).map_err(|error| blame(error, resolved))?;
        drop(apt);
        let pin =
            |artefact: &Artefact| Ok((artefact.name.clone(), self.artefact(artefact, resolved.arch())?));
        let artefacts = resolved.artefacts.iter().map(pin).collect::<Result<_>>()?;
        let (uids, gids) = before.map(|lock| (lock.uids.clone(), lock.gids.clone())).unwrap_or_default();
        let board = resolved.device.board.clone();
        let mut locked = LockedArch { board, requested, mirrors, packages, artefacts, uids, gids };
        fetch::fetch(self.store, &Want::locked(&locked)?, self.folders, self.progress)?;
        let inputs = Inputs { resolved, locked: &locked, store: self.store, tools, progress: self.progress };
        let ids = rootfs::allocate(&inputs)?;
        (locked.uids, locked.gids) = (ids.uids, ids.gids);
        Ok(locked)
    }

    fn artefact(&self, artefact: &Artefact, arch: Arch) -> Result<LockedArtefact> {
        let what = format!("artefact {} (from {})", artefact.name, artefact.origin);
        let given = self.given(&artefact.name, arch).with_context(|| what.clone())?;
        let (found, size) = match (given, &artefact.url, &artefact.sha256, artefact.size) {
            (Some(path), ..) => self
                .store
                .put_file(path)
                .with_context(|| format!("{what}: take it from {}", path.display()))?,
            (None, Some(_), Some(sha256), Some(size)) => {
                let sha256 = sha256.clone();
                return Ok(LockedArtefact { url: artefact.url.clone(), sha256, size });
            }
            (None, Some(url), ..) => match self.in_folder(artefact, arch)? {
                Some(found) => found,
                None => fetch::learn(self.store, &what, url, self.progress)?,
            },
            (None, None, ..) => match self.in_folder(artefact, arch)? {
                Some(found) => found,
                None => {
                    bail!("{what} is published nowhere: give it with --artefact {}=PATH", artefact.name)
                }
            },
        };
        let wrong_digest = artefact.sha256.as_ref().filter(|sha256| **sha256 != found.to_string());
        if let Some(wanted) = wrong_digest {
            bail!(
                "{what}: found SHA-256 {found}, but the pack says {wanted}; one of the two is not what it should be"
            );
        }
        if let Some(wanted) = artefact.size.filter(|wanted| *wanted != size) {
            bail!("{what}: found {size} bytes, but the pack says {wanted}");
        }
        Ok(LockedArtefact { url: artefact.url.clone(), sha256: found.to_string(), size })
    }

    /// The file that the operator gave; a program for another architecture would only be noticed on the device.
    fn given(&self, name: &str, arch: Arch) -> Result<Option<&Path>> {
        let Some(path) = self.artefacts.get(name) else { return Ok(None) };
        let what = || path.display().to_string();
        if let Some(program) = Program::open(path).with_context(what)? {
            let own = name.starts_with("farhold-");
            let hint = if own { format!(": `make programs-{arch}` builds it") } else { String::new() };
            program.check(arch, None).map_err(|error| anyhow!("{error}{hint}")).with_context(what)?;
        }
        Ok(Some(path))
    }

    /// The first file of the folders that can be it; programs for another processor cannot.
    fn in_folder(&self, artefact: &Artefact, arch: Arch) -> Result<Option<(formats::hex::Digest, u64)>> {
        let names = [Some(artefact.name.as_str()), artefact.url.as_deref().map(crate::tree::name)];
        for folder in self.folders {
            for path in names.iter().flatten().map(|name| folder.join(name)).filter(|path| path.is_file()) {
                let matches = match &artefact.sha256 {
                    Some(sha256) => digest_of(&path)? == *sha256,
                    None => true,
                };
                let program = Program::open(&path).with_context(|| format!("read {}", path.display()))?;
                if matches && program.is_none_or(|program| program.arch == Some(arch)) {
                    return Ok(Some(self.store.put_file(&path)?));
                }
            }
        }
        Ok(None)
    }
}

/// Names of packages that a profile asks for, the board's kernel among them.
pub fn requested(resolved: &Resolved) -> Vec<String> {
    let mut names: Vec<String> = resolved.packages.keys().cloned().collect();
    let kernel = &resolved.boot.kernel_package;
    if !resolved.artefacts.iter().any(|artefact| artefact.name == *kernel) {
        names.push(kernel.clone());
    }
    names.sort();
    names.dedup();
    names
}

/// Whether a lock is for this profile as it is now.
///
/// # Errors
/// What changed since, and that locking again helps.
pub fn check_fresh(resolved: &Resolved, locked: &LockedArch) -> Result<()> {
    let stale = |what: String| -> Result<()> { bail!("the lock is stale: {what}; run `farhold lock` again") };
    if locked.board != resolved.device.board {
        return stale(format!(
            "it is for board {}, the profile is for {}",
            locked.board, resolved.device.board
        ));
    }
    let requested = requested(resolved);
    let added: Vec<&str> =
        requested.iter().filter(|name| !locked.requested.contains(name)).map(String::as_str).collect();
    let gone: Vec<&str> =
        locked.requested.iter().filter(|name| !requested.contains(name)).map(String::as_str).collect();
    if !added.is_empty() || !gone.is_empty() {
        let list = |names: &[&str]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return stale(format!("packages asked for since: {}; no longer: {}", list(&added), list(&gone)));
    }
    for artefact in &resolved.artefacts {
        match locked.artefacts.get(&artefact.name) {
            None => return stale(format!("it has no artefact {} (from {})", artefact.name, artefact.origin)),
            Some(pinned) if artefact.sha256.as_ref().is_some_and(|sha256| *sha256 != pinned.sha256) => {
                return stale(format!("{} changed artefact {}", artefact.origin, artefact.name));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn host() -> Result<Arch> {
    Arch::host().ok_or_else(|| {
        anyhow!("images are built on x86_64 and arm64 machines, not on {}", std::env::consts::ARCH)
    })
}

fn joined(resolutions: Vec<Resolution>) -> LockedTools {
    let mut tools = LockedTools { mirrors: BTreeMap::new(), packages: Vec::new() };
    for resolution in resolutions {
        tools.mirrors.extend(resolution.mirrors);
        tools.packages.extend(resolution.packages);
    }
    tools.packages.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    tools.packages.dedup();
    tools
}

/// Says which packs asked for packages that an error names.
fn blame(error: anyhow::Error, resolved: &Resolved) -> anyhow::Error {
    let text = format!("{error:#}");
    let askers: Vec<String> = resolved
        .packages
        .iter()
        .filter(|(name, _)| text.contains(&format!("`{name}`")))
        .map(|(name, origin)| format!("`{name}` is asked for by {origin}"))
        .collect();
    if askers.is_empty() { error } else { anyhow!("{text}; {}", askers.join(", ")) }
}

fn digest_of(path: &Path) -> Result<String> {
    let hash = || -> std::io::Result<_> { hash_reader(&mut File::open(path)?) };
    Ok(hash().with_context(|| format!("read {}", path.display()))?.0.to_string())
}
