//! `farhold lock`: pins everything that a profile needs by version and digest.

use super::build::pairs;
use super::check::ProfileArgs;
use crate::lock::Lock;
use crate::mirror::{MirrorOptions, Mirrors};
use crate::pin::Pinner;
use crate::profile::model::Profile;
use crate::progress::Progress;
use crate::store::Store;
use anyhow::{Result, anyhow};
use formats::arch::Arch;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Pins packages, tools and artefacts by version and digest, and accounts by id, and writes the lock.
///
/// What the lock says of other processors stays, and so do ids.
#[derive(clap::Args)]
pub struct LockCmd {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Processor to lock for; may be given more than once [default: this machine's, if the profile has it].
    #[arg(long)]
    arch: Vec<Arch>,
    /// Lock file [default: the profile's path with the suffix `.lock`].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A file for an artefact that is published nowhere; may be given more than once.
    #[arg(long = "artefact", value_name = "NAME=PATH")]
    artefacts: Vec<String>,
    /// A folder of packages and artefacts that is looked into before any network; may be given more than once.
    #[arg(long = "store", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The mirrors hold a state of the past, whose indices may have expired.
    #[arg(long)]
    snapshot: bool,
    #[command(flatten)]
    mirrors: MirrorOptions,
    /// Print what was locked as JSON.
    #[arg(long)]
    json: bool,
}

impl LockCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// Findings of the profile; packages or artefacts that cannot be resolved or had; a lock that cannot be written.
    pub fn run(&self) -> Result<ExitCode> {
        let path = self.out.clone().unwrap_or_else(|| default_path(&self.profile.profile));
        let before = if path.exists() { Some(Lock::read(&path)?) } else { None };
        let resolved = self.arches()?.into_iter().map(|arch| self.profile.resolve(Some(arch)));
        let resolved = resolved.collect::<Result<Vec<_>>>()?;
        let (store, progress) = (Store::from_environment()?, Progress::stderr());
        let mirrors = Mirrors::find(&self.mirrors, Path::new("/"))?;
        let artefacts = pairs(&self.artefacts)?;
        let pinner = Pinner {
            store: &store,
            mirrors: &mirrors,
            snapshot: self.snapshot,
            folders: &self.folders,
            artefacts: &artefacts,
            progress: &progress,
        };
        let lock = pinner.lock(&resolved, before.as_ref())?;
        let is_same = before.as_ref() == Some(&lock);
        if !is_same {
            lock.write(&path)?;
        }
        self.tell(&lock, &path, is_same);
        Ok(ExitCode::SUCCESS)
    }

    fn arches(&self) -> Result<Vec<Arch>> {
        if !self.arch.is_empty() {
            return Ok(self.arch.clone());
        }
        let profile: Profile =
            crate::yaml::load(&self.profile.profile).map_err(|finding| anyhow!("{finding}"))?;
        let own = Arch::host().filter(|host| profile.arch.contains(host));
        Ok(own.map_or(profile.arch, |host| vec![host]))
    }

    fn tell(&self, lock: &Lock, path: &Path, is_same: bool) {
        if self.json {
            let arch = |(arch, locked): (&Arch, &crate::lock::LockedArch)| {
                serde_json::json!({
                    "arch": arch,
                    "board": locked.board,
                    "packages": locked.packages.len(),
                    "artefacts": locked.artefacts.len(),
                })
            };
            let arches: Vec<_> = lock.arch.iter().map(arch).collect();
            println!("{}", serde_json::json!({ "path": path, "changed": !is_same, "arch": arches }));
            return;
        }
        for (arch, locked) in &lock.arch {
            println!(
                "{arch} for {}: {} packages, {} artefacts, {} users",
                locked.board,
                locked.packages.len(),
                locked.artefacts.len(),
                locked.uids.len()
            );
        }
        println!("{}: {}", path.display(), if is_same { "unchanged" } else { "written" });
    }
}

/// Where a profile's lock is unless another place is named.
pub fn default_path(profile: &Path) -> PathBuf {
    profile.with_extension("lock")
}
