//! `farhold build`: a profile and its lock become a disk image and a signed release.

use super::check::ProfileArgs;
use super::lock::default_path;
use crate::execute::{self, Build, Options};
use crate::image::secureboot;
use crate::lock::{Lock, LockedArch, LockedTools};
use crate::pin;
use crate::plan::{self, Facts, Plan, ReleaseFacts};
use crate::progress::Progress;
use crate::release::keys::KeyFolder;
use crate::resolved::{FileContent, ImageFile, Resolved};
use crate::store::{Store, hash_reader};
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use formats::hex::Digest;
use formats::roles::TRUST_ANCHOR;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// 2026-01-01, the time of every file where SOURCE_DATE_EPOCH does not say another.
const EPOCH: u64 = 1_767_225_600;

/// What decides a build; shared by `build`, `plan` and `explain`.
#[derive(clap::Args)]
pub struct BuildArgs {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Processor [default: the profile's, if it has only one].
    #[arg(long)]
    arch: Option<Arch>,
    /// Lock file [default: the profile's path with the suffix `.lock`].
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// Folder of the keys that sign the release; without it there is no release.
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
    /// Sequence number of the release, higher than those before it [default: SOURCE_DATE_EPOCH].
    #[arg(long, value_name = "N")]
    sequence: Option<u32>,
    /// Key that signs boot files for Secure Boot, PEM.
    #[arg(long, value_name = "FILE")]
    secure_boot_key: Option<PathBuf>,
    /// Certificate of that key, PEM.
    #[arg(long, value_name = "FILE")]
    secure_boot_cert: Option<PathBuf>,
}

/// Bakes a profile: disk image, signed release, SBOM and report.
#[derive(clap::Args)]
pub struct BuildCmd {
    #[command(flatten)]
    args: BuildArgs,
    /// Output folder; replaced only if farhold made it, and only by a complete build.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A file for an artefact that is published nowhere; may be given more than once.
    #[arg(long = "artefact", value_name = "NAME=PATH")]
    artefacts: Vec<String>,
    /// A folder of packages and artefacts that is looked into before any network; may be given more than once.
    #[arg(long = "store", value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Download nothing.
    #[arg(long)]
    offline: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Everything that a plan is made of, read and checked.
pub struct Prepared {
    /// The profile.
    pub resolved: Resolved,
    /// What is pinned for it.
    pub locked: LockedArch,
    /// What is pinned for tools.
    pub tools: LockedTools,
    /// Keys for Secure Boot.
    pub secure_boot: Option<secureboot::Keys>,
    /// Keys for the release, and its sequence number.
    pub release: Option<(KeyFolder, u32)>,
    /// Time of every file, seconds since 1970.
    pub epoch: u64,
    /// What is done.
    pub plan: Plan,
}

impl BuildArgs {
    /// Reads profile, lock and keys and makes the plan.
    ///
    /// # Errors
    /// Findings of the profile; an absent or stale lock; keys that cannot be read.
    pub fn prepare(&self) -> Result<Prepared> {
        let mut resolved = self.profile.resolve(self.arch)?;
        let (locked, tools) = self.locked(&resolved)?;
        let epoch = epoch(std::env::var("SOURCE_DATE_EPOCH").ok())?;
        let secure_boot =
            secureboot::Keys::given(self.secure_boot_key.clone(), self.secure_boot_cert.clone())?;
        let sequence = self.sequence.unwrap_or(u32::try_from(epoch).unwrap_or(u32::MAX));
        let release = match &self.keys {
            Some(path) => Some((KeyFolder::open(path)?, sequence)),
            None => None,
        };
        resolved.files.extend(release.as_ref().map(|(keys, _)| trust_anchor(keys)));
        let certificate = secure_boot.as_ref().map(|keys| digest_of(&keys.certificate)).transpose()?;
        let facts = Facts {
            resolved: &resolved,
            locked: &locked,
            tools: &tools.packages,
            copied: &copied(&resolved)?,
            builder: digest_of(Path::new("/proc/self/exe"))?,
            epoch,
            secure_boot: certificate,
            release: release.as_ref().map(|(keys, sequence)| ReleaseFacts {
                roots: Digest(Sha256::digest(keys.roots()).into()),
                sequence: *sequence,
            }),
        };
        let plan = plan::plan(&facts);
        Ok(Prepared { resolved, locked, tools, secure_boot, release, epoch, plan })
    }

    fn locked(&self, resolved: &Resolved) -> Result<(LockedArch, LockedTools)> {
        let path = self.lock.clone().unwrap_or_else(|| default_path(&self.profile.profile));
        let mut lock = Lock::read(&path)?;
        let again = || format!("run `farhold lock {}` again", self.profile.profile.display());
        if lock.profile != resolved.device.profile {
            let other = &lock.profile;
            bail!("lock {} is for profile {other}, not {}", path.display(), resolved.device.profile);
        }
        let arch = resolved.arch();
        let locked = lock.arch.remove(&arch);
        let locked =
            locked.ok_or_else(|| anyhow!("lock {} has nothing for {arch}: {}", path.display(), again()))?;
        pin::check_fresh(resolved, &locked).with_context(|| format!("lock {}", path.display()))?;
        let host =
            Arch::host().ok_or_else(|| anyhow!("images are built on x86_64 and arm64 machines only"))?;
        let tools = lock.tools.remove(&host).ok_or_else(|| {
            anyhow!("lock {} has no tools for a {host} machine: {}", path.display(), again())
        })?;
        Ok((locked, tools))
    }
}

impl BuildCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`BuildArgs::prepare`] and [`execute::run`].
    pub fn run(&self) -> Result<ExitCode> {
        let prepared = self.args.prepare()?;
        let options = Options {
            out: self.out.clone(),
            folders: self.folders.clone(),
            artefacts: pairs(&self.artefacts)?,
            offline: self.offline,
            secure_boot: prepared.secure_boot.clone(),
            epoch: prepared.epoch,
        };
        let (store, progress) = (Store::from_environment()?, Progress::stderr());
        let build = Build {
            resolved: &prepared.resolved,
            locked: &prepared.locked,
            tools: &prepared.tools,
            release: prepared.release.as_ref(),
            store: &store,
            options: &options,
            progress: &progress,
        };
        let report = execute::run(&build, &prepared.plan)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&report).context("write the report")?);
        } else {
            print!("{}", report.text(&self.out));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `NAME=PATH` pairs of `--artefact`.
///
/// # Errors
/// If one has no name or no path.
pub fn pairs(given: &[String]) -> Result<BTreeMap<String, PathBuf>> {
    let pair = |text: &String| match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), PathBuf::from(path)))
        }
        Some(_) | None => bail!("--artefact {text}: must be NAME=PATH"),
    };
    given.iter().map(pair).collect()
}

fn epoch(given: Option<String>) -> Result<u64> {
    // FAT, EROFS and the release hold seconds in 32 bits somewhere.
    match given.filter(|text| !text.is_empty()) {
        None => Ok(EPOCH),
        Some(text) => match text.parse::<u32>() {
            Ok(seconds) => Ok(seconds.into()),
            Err(error) => bail!("SOURCE_DATE_EPOCH={text}: must be seconds since 1970 ({error})"),
        },
    }
}

/// What the device judges releases by: the root documents of the keys that sign this one.
fn trust_anchor(keys: &KeyFolder) -> ImageFile {
    ImageFile {
        path: TRUST_ANCHOR.into(),
        mode: 0o644,
        owner: ("root".into(), "root".into()),
        content: FileContent::Copy { from: keys.roots_file() },
        origin: "--keys".into(),
    }
}

/// Digests of files that the profile copies.
fn copied(resolved: &Resolved) -> Result<BTreeMap<PathBuf, Digest>> {
    let mut digests = BTreeMap::new();
    for file in &resolved.files {
        if let FileContent::Copy { from } = &file.content {
            digests.insert(from.clone(), digest_of(from).with_context(|| file.origin.clone())?);
        }
    }
    Ok(digests)
}

fn digest_of(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    Ok(hash_reader(&mut file).with_context(|| format!("read {}", path.display()))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_is_seconds_or_an_error() {
        assert_eq!(epoch(None).unwrap(), EPOCH);
        assert_eq!(epoch(Some(String::new())).unwrap(), EPOCH);
        assert_eq!(epoch(Some("7".into())).unwrap(), 7);
        let error = epoch(Some("yesterday".into())).unwrap_err().to_string();
        assert!(error.starts_with("SOURCE_DATE_EPOCH=yesterday: must be seconds since 1970"), "{error}");
    }

    #[test]
    fn artefacts_are_named() {
        assert_eq!(pairs(&["a=/b=c".into()]).unwrap()["a"], Path::new("/b=c"));
        let error = pairs(&["agent".into()]).unwrap_err().to_string();
        assert_eq!(error, "--artefact agent: must be NAME=PATH");
    }
}
