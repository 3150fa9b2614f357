//! Does what a plan says: takes each step's output from the cache, or makes it there, then fills the output folder.
//!
//! Each output stands in the cache under the key of its step and appears there whole, so a killed build goes on where
//! it was. What decides a step is `plan`'s business; how each is done is in [`steps`].

pub mod output;
pub mod record;
pub mod report;
mod steps;

pub use steps::RELEASE;

use crate::fetch::{self, Want};
use crate::image::disk::Layout;
use crate::image::secureboot::Keys;
use crate::lock::{LockedArch, LockedTools};
use crate::plan::{Plan, Step, StepName};
use crate::progress::Progress;
use crate::release::keys::KeyFolder;
use crate::resolved::Resolved;
use crate::rootfs::{self, Rootfs};
use crate::store::Store;
use crate::store::trim::KEPT_BYTES;
use crate::tools::{Purpose, ToolsRoot};
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use output::{DISK, DISK_MAP, Folder};
use report::{FileReport, Report, StepReport};
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

/// Everything that a build works with.
#[derive(Clone, Copy)]
pub struct Build<'a> {
    /// The profile.
    pub resolved: &'a Resolved,
    /// What is pinned for it.
    pub locked: &'a LockedArch,
    /// What is pinned for tools.
    pub tools: &'a LockedTools,
    /// Keys for the release and its sequence number; without them there is none.
    pub release: Option<&'a (KeyFolder, u32)>,
    /// The cache.
    pub store: &'a Store,
    /// What the caller asked for.
    pub options: &'a Options,
    /// Where progress is shown.
    pub progress: &'a Progress,
}

/// What the caller of a build asks for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Output folder.
    pub out: PathBuf,
    /// Folders with packages and artefacts.
    pub folders: Vec<PathBuf>,
    /// Files that stand for artefacts, by artefact name.
    pub artefacts: BTreeMap<String, PathBuf>,
    /// Nothing is downloaded.
    pub offline: bool,
    /// Keys that sign boot files.
    pub secure_boot: Option<Keys>,
    /// Time of every file, seconds since 1970.
    pub epoch: u64,
}

/// Does a build and returns what it did.
///
/// # Errors
/// The first step that fails, with its name. The output folder is then as it was before.
pub fn run(build: &Build<'_>, plan: &Plan) -> Result<Report> {
    let started = Instant::now();
    if let Some(mut report) = output::unchanged(&build.options.out, plan)? {
        report.repeated(started.elapsed());
        return Ok(report);
    }
    let folder = Folder::prepare(&build.options.out)?;
    let mut worker = Worker { build, plan, lazy: Lazy::default(), done: Vec::new() };
    worker.cached(StepName::Root, steps::root)?;
    worker.cached(StepName::Verity, steps::verity)?;
    worker.cached(StepName::Initrd, steps::initrd)?;
    worker.cached(StepName::Uki, steps::uki)?;
    let mut report = Report::begin(build, plan);
    report.roothash = Some(steps::roothash(&worker)?);
    let layout = steps::layout(&worker)?;
    report.warnings.clone_from(&layout.warnings);
    let kept = worker.disk(&folder, &layout)?;
    // A disk image is long and mostly zeros; its digest is taken while the release is made.
    std::thread::scope(|scope| {
        let hashing = kept.is_none().then(|| scope.spawn(|| folder.complete(DISK)));
        worker.release(&folder, &mut report)?;
        let disk =
            hashing.map(|thread| thread.join().unwrap_or_else(|_| bail!("hash {DISK}: the thread died")));
        report.files.insert(0, disk.transpose()?.or(kept).ok_or_else(|| anyhow!("no {DISK} was made"))?);
        report.files.insert(1, folder.describe(DISK_MAP)?);
        anyhow::Ok(())
    })?;
    let steps = StepName::ALL.map(StepName::name);
    if let Err(error) = build.store.trim(&steps, KEPT_BYTES, SystemTime::now()) {
        report.warnings.push(format!("outputs of old builds stay in the cache: {error:#}"));
    }
    report.steps = worker.done;
    report.finish(started.elapsed());
    folder.publish(&report)?;
    Ok(report)
}

/// What only stale steps need, made when the first of them asks.
#[derive(Default)]
struct Lazy {
    fetched: OnceCell<()>,
    tools: OnceCell<ToolsRoot>,
    rootfs: OnceCell<Rootfs>,
}

/// One run over the steps.
struct Worker<'a> {
    build: &'a Build<'a>,
    plan: &'a Plan,
    lazy: Lazy,
    done: Vec<StepReport>,
}

impl<'a> Worker<'a> {
    fn step(&self, name: StepName) -> Result<&'a Step> {
        self.plan.step(name).ok_or_else(|| anyhow!("the plan has no step {name}"))
    }

    /// The folder in the cache that a step's output is in.
    fn output(&self, name: StepName) -> Result<PathBuf> {
        let key = &self.step(name)?.key;
        let found = self.build.store.derived(name.name(), key);
        found.ok_or_else(|| anyhow!("the output of step {name} vanished from the cache; build again"))
    }

    /// A step whose output is kept in the cache.
    fn cached(
        &mut self,
        name: StepName,
        make: fn(&Worker<'a>, &std::path::Path) -> Result<()>,
    ) -> Result<()> {
        let (key, store) = (self.step(name)?.key, self.build.store);
        let started = Instant::now();
        let was_cached = store.derived(name.name(), &key).is_some();
        store
            .derive(name.name(), &key, |folder| make(self, folder))
            .with_context(|| format!("step {name} ({})", name.makes()))?;
        record::add(store, self.build.resolved, self.plan, name)?;
        self.done.push(StepReport::new(name, key, was_cached, started.elapsed()));
        Ok(())
    }

    /// The disk image, which goes straight to the output folder.
    /// What is returned is known already; a new one is still to be hashed.
    fn disk(&mut self, folder: &Folder, layout: &Layout) -> Result<Option<FileReport>> {
        let (name, started) = (StepName::Disk, Instant::now());
        let key = self.step(name)?.key;
        let kept = folder.keep_disk(key)?;
        if kept.is_none() {
            steps::disk(self, folder, layout).with_context(|| format!("step {name} ({})", name.makes()))?;
            record::add(self.build.store, self.build.resolved, self.plan, name)?;
        }
        self.done.push(StepReport::new(name, key, kept.is_some(), started.elapsed()));
        Ok(kept)
    }

    /// SBOM, and the signed release if there are keys.
    fn release(&mut self, folder: &Folder, report: &mut Report) -> Result<()> {
        report.files.push(steps::sbom(self, folder)?);
        if self.build.release.is_some() {
            self.cached(StepName::Release, steps::release)?;
            steps::place_release(self, folder, report)?;
        } else {
            report.warnings.push("no --keys: there is a disk image, but no release for devices".into());
        }
        Ok(())
    }

    /// Sees to it that packages, artefacts and tools are in the store.
    fn fetch(&self) -> Result<()> {
        if self.lazy.fetched.get().is_some() {
            return Ok(());
        }
        let Build { locked, tools, store, options, progress, .. } = self.build;
        for (name, path) in &options.artefacts {
            adopt_artefact(store, locked, name, path)?;
        }
        let mut wants = Want::locked(locked)?;
        wants.extend(Want::tools(tools)?);
        if options.offline {
            refuse_missing(store, &wants)?;
        }
        fetch::fetch(store, &wants, &options.folders, progress)?;
        self.lazy.fetched.get_or_init(|| ());
        Ok(())
    }

    fn tools(&self) -> Result<&ToolsRoot> {
        if let Some(tools) = self.lazy.tools.get() {
            return Ok(tools);
        }
        self.fetch()?;
        let Build { tools, store, progress, .. } = self.build;
        let opened = ToolsRoot::open(store, Purpose::Build, &tools.packages, progress)?;
        Ok(self.lazy.tools.get_or_init(|| opened))
    }

    fn rootfs(&self) -> Result<&Rootfs> {
        if let Some(rootfs) = self.lazy.rootfs.get() {
            return Ok(rootfs);
        }
        let tools = self.tools()?;
        let Build { resolved, locked, store, progress, .. } = *self.build;
        let mut rootfs = rootfs::assemble(&rootfs::Inputs { resolved, locked, store, tools, progress })?;
        steps::identify(&mut rootfs, &resolved.device)?;
        Ok(self.lazy.rootfs.get_or_init(|| rootfs))
    }
}

/// Takes a file into the store as the artefact `name`.
fn adopt_artefact(store: &Store, locked: &LockedArch, name: &str, path: &std::path::Path) -> Result<()> {
    let pinned = locked.artefacts.get(name).ok_or_else(|| {
        anyhow!("--artefact {name}: the lock has no such artefact; lock again, or leave it out")
    })?;
    let wanted = Digest::parse(&pinned.sha256);
    if wanted.is_some_and(|digest| store.get(&digest).is_some()) {
        return Ok(());
    }
    let (found, _) = store.put_file(path).with_context(|| format!("--artefact {name}"))?;
    if Some(found) != wanted {
        bail!(
            "--artefact {name}: {} has SHA-256 {found}, but the lock wants {}; run `farhold lock` again to take the \
             new one",
            path.display(),
            pinned.sha256
        );
    }
    Ok(())
}

fn refuse_missing(store: &Store, wants: &[Want]) -> Result<()> {
    let missing: Vec<&Want> = wants.iter().filter(|want| store.get(&want.digest).is_none()).collect();
    if let Some(first) = missing.first() {
        bail!(
            "--offline: {} of {} files are not in the cache {}, the first is {}; build once without --offline, or \
             give a folder that has them with --store",
            missing.len(),
            wants.len(),
            store.root().display(),
            first.what
        );
    }
    Ok(())
}
