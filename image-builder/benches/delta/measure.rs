//! What a command takes, by the kernel's account of it, and a notebook of what methods took: peers are slow, and their figures
//! for the same files and the same command do not change.

use crate::pairs::Pair;
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Making may take this long, in seconds of processor time, unless `FARHOLD_BENCH_LIMIT_S` says otherwise. Processor time,
/// because other programs may share the machine; nothing here runs for more than this on a machine of its own.
const LIMIT_S: u32 = 900;

/// What one command took.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cost {
    /// Processor time, user and system, in seconds.
    pub cpu_s: f64,
    /// By the clock.
    pub wall_s: f64,
    /// Peak resident memory.
    pub mib: u64,
}

/// What one method took.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Figures {
    /// What a device fetches.
    pub bytes: u64,
    pub make: Cost,
    pub apply: Cost,
}

/// What became of a method.
#[derive(Clone, Serialize, Deserialize)]
pub enum Outcome {
    /// It made a delta, and the delta gave the new file back; how, in words, if that needs saying.
    Done(Figures, String),
    /// It was not tried, or did not end; why.
    Left(String),
}

/// The limit for making, in seconds.
pub fn limit_s() -> u32 {
    std::env::var("FARHOLD_BENCH_LIMIT_S").ok().and_then(|limit| limit.parse().ok()).unwrap_or(LIMIT_S)
}

/// Runs a command; `None` if it did not end in time.
///
/// # Errors
/// If it cannot be started, or fails.
pub fn measured(work: &Path, words: &[&str]) -> Result<Option<Cost>> {
    let report = work.join("time");
    let limit = limit_s().to_string();
    let mut command = Command::new("/usr/bin/time");
    command.args(["-q", "-f", "%e %U %S %M", "-o"]).arg(&report);
    command.args(["sh", "-c", "ulimit -t \"$0\" && exec \"$@\"", &limit]).args(words);
    let output = command.stdin(Stdio::null()).output().context("start /usr/bin/time (package time)")?;
    let text = fs::read_to_string(&report)?;
    let mut fields = text.split_whitespace();
    let mut number = || -> Result<f64> { Ok(fields.next().context("/usr/bin/time says nothing")?.parse()?) };
    let (wall_s, user, system, kib) = (number()?, number()?, number()?, number()?);
    let cost = Cost { cpu_s: user + system, wall_s, mib: kib as u64 / 1024 };
    if output.status.code().is_none_or(|code| code > 128) && cost.cpu_s + 2.0 > f64::from(limit_s()) {
        return Ok(None);
    }
    let tail = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {}\n{tail}", output.status);
    Ok(Some(cost))
}

/// For command lines.
///
/// # Errors
/// If the path is no text.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// Compares byte for byte.
///
/// # Errors
/// If `cmp` cannot be started.
pub fn same(left: &Path, right: &Path) -> Result<bool> {
    Ok(Command::new("cmp").arg("-s").args([left, right]).status().context("start cmp")?.success())
}

/// Makes `peer.delta`, applies it to `peer.out`, compares; `None` if making did not end in time.
///
/// # Errors
/// If a command fails, or gives other bytes than the new file's.
pub fn proved(pair: &Pair, work: &Path, (make, apply): (&[&str], &[&str])) -> Result<Option<Figures>> {
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let Some(made) = measured(work, make)? else { return Ok(None) };
    let Some(applied) = measured(work, apply)? else { bail!("{apply:?} did not end") };
    ensure!(same(&out, &pair.new)?, "{}: {} gave other bytes back", pair.name, make[0]);
    let bytes = fs::metadata(&delta)?.len();
    fs::remove_file(&out)?;
    Ok(Some(Figures { bytes, make: made, apply: applied }))
}

/// What methods took, by the content of the pair and the name of the method; a file each, so that several benches may run at once.
pub struct Notebook {
    folder: PathBuf,
    fresh: bool,
}

impl Notebook {
    /// Opens the one in `work`; with `FARHOLD_BENCH_FRESH=1` nothing in it counts.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(work: &Path) -> Result<Self> {
        let folder = work.join("notebook");
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, fresh: std::env::var_os("FARHOLD_BENCH_FRESH").is_some() })
    }

    /// What `method` took on the files with `digest`, measured now if it never was.
    ///
    /// # Errors
    /// What measuring fails with, or if the notebook cannot be written.
    pub fn once(
        &self,
        method: &str,
        digest: &str,
        measure: impl FnOnce() -> Result<Outcome>,
    ) -> Result<Outcome> {
        // Dashes stay: the levels 1 and 9 are not the level 19.
        let kept = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
        let name: String = method.chars().filter(kept).collect();
        let path = self.folder.join(format!("{digest}-{name}-{}.json", limit_s()));
        if path.exists() && !self.fresh {
            return serde_json::from_slice(&fs::read(&path)?)
                .with_context(|| format!("read {}", path.display()));
        }
        let outcome = measure()?;
        fs::write(&path, serde_json::to_vec_pretty(&outcome)?)?;
        Ok(outcome)
    }
}

/// A short digest of files.
///
/// # Errors
/// If one cannot be read.
pub fn digest(files: &[&Path]) -> Result<String> {
    let mut hash = Sha256::new();
    for path in files {
        let mut file = fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
        let mut part = vec![0; 1 << 20];
        loop {
            let len = file.read(&mut part).with_context(|| format!("read {}", path.display()))?;
            if len == 0 {
                break;
            }
            hash.update(&part[..len]);
        }
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}
