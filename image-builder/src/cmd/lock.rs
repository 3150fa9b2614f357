//! `farhold lock`: pins everything that a profile needs by version and digest.

use super::build::pairs;
use super::check::ProfileArgs;
use crate::lock::{Lock, LockedArch};
use crate::mirror::{MirrorOptions, Mirrors};
use crate::pin::Pinner;
use crate::profile::model::Profile;
use crate::progress::Progress;
use crate::resolved::Resolved;
use crate::store::Store;
use anyhow::{Result, anyhow, bail};
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
        same_profile(&path, before.as_ref(), &resolved)?;
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
        self.tell(&lock, before.as_ref(), &path);
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

    fn tell(&self, lock: &Lock, before: Option<&Lock>, path: &Path) {
        let is_same = before == Some(lock);
        let changes =
            |arch: &Arch, now: &LockedArch| changes(before.and_then(|lock| lock.arch.get(arch)), now);
        if self.json {
            let arch = |(arch, locked): (&Arch, &LockedArch)| {
                serde_json::json!({
                    "arch": arch,
                    "board": locked.board,
                    "packages": locked.packages.len(),
                    "artefacts": locked.artefacts.len(),
                    "changes": changes(arch, locked),
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
            changes(arch, locked).iter().for_each(|change| println!("  {change}"));
        }
        println!("{}: {}", path.display(), if is_same { "unchanged" } else { "written" });
    }
}

/// An error if a lock is another profile's: its ids would be taken over for devices that never had them.
fn same_profile(path: &Path, before: Option<&Lock>, resolved: &[Resolved]) -> Result<()> {
    if let (Some(before), Some(now)) = (before, resolved.first())
        && before.profile != now.device.profile
    {
        let (path, other, now) = (path.display(), &before.profile, &now.device.profile);
        bail!("lock {path} is for profile {other}, not {now}: give another file with --out, or remove it");
    }
    Ok(())
}

/// Where a profile's lock is unless another place is named.
pub fn default_path(profile: &Path) -> PathBuf {
    profile.with_extension("lock")
}

/// What is other than in the lock before; nothing if there was none.
fn changes(before: Option<&LockedArch>, now: &LockedArch) -> Vec<String> {
    let Some(before) = before else { return Vec::new() };
    let mut changes = Vec::new();
    for package in &now.packages {
        match before.packages.iter().find(|other| other.name == package.name) {
            None => changes.push(format!("+ {} {}", package.name, package.version)),
            Some(other) if other.version != package.version => {
                changes.push(format!("{} {} -> {}", package.name, other.version, package.version));
            }
            Some(other) if other.sha256 != package.sha256 => {
                changes.push(format!(
                    "{} {}: other bytes under the same version",
                    package.name, package.version
                ));
            }
            Some(_) => {}
        }
    }
    for package in before.packages.iter().filter(|gone| !now.packages.iter().any(|p| p.name == gone.name)) {
        changes.push(format!("- {} {}", package.name, package.version));
    }
    for (name, artefact) in &now.artefacts {
        if before.artefacts.get(name).is_some_and(|other| other.sha256 != artefact.sha256) {
            changes.push(format!("artefact {name}: other bytes"));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::{LockedArch, LockedPackage};
    use std::collections::BTreeMap;

    fn locked(packages: &[(&str, &str, &str)]) -> LockedArch {
        let package = |(name, version, sha256): &(&str, &str, &str)| LockedPackage {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            architecture: "all".into(),
            source: None,
            mirror: "archive".into(),
            path: String::new(),
            size: 1,
            sha256: (*sha256).to_owned(),
        };
        LockedArch {
            board: "vm".into(),
            requested: Vec::new(),
            mirrors: BTreeMap::new(),
            packages: packages.iter().map(package).collect(),
            artefacts: BTreeMap::new(),
            uids: BTreeMap::new(),
            gids: BTreeMap::new(),
        }
    }

    #[test]
    fn changes_say_what_came_went_and_moved() {
        let before = locked(&[("a", "1", "x"), ("b", "1", "x"), ("c", "1", "x"), ("e", "1", "x")]);
        let now = locked(&[("a", "1", "x"), ("b", "2", "y"), ("d", "1", "x"), ("e", "1", "y")]);
        assert_eq!(
            changes(Some(&before), &now),
            ["b 1 -> 2", "+ d 1", "e 1: other bytes under the same version", "- c 1"]
        );
        assert_eq!(changes(None, &now), [""; 0]);
    }
}
