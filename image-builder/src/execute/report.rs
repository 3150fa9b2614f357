//! The report of a build, `build.json`: what was made from what, digests, sizes, seconds and memory.

use super::Build;
use crate::plan::{Plan, StepName};
use crate::store::hash_reader;
use anyhow::{Context, Result};
use formats::hex::Digest;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Format of [`Report`].
pub const REPORT_FORMAT: u32 = 1;

/// What a build made and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_FORMAT`].
    pub format: u32,
    /// Profile name.
    pub profile: String,
    /// Product.
    pub product: String,
    /// Release version.
    pub version: String,
    /// Processor.
    pub arch: String,
    /// Board.
    pub board: String,
    /// Whether the image can be a node of a pair.
    #[serde(default)]
    pub pair: bool,
    /// SHA-256 over the keys of all steps.
    pub key: Digest,
    /// Roothash of the slot image.
    pub roothash: Option<Digest>,
    /// Steps in order.
    pub steps: Vec<StepReport>,
    /// Files below the output folder.
    pub files: Vec<FileReport>,
    /// What an operator should look at.
    pub warnings: Vec<String>,
    /// Seconds of the whole build.
    pub seconds: f64,
    /// Largest resident memory of farhold itself, bytes.
    pub peak_memory_bytes: u64,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Which one.
    pub step: StepName,
    /// SHA-256 over its inputs.
    pub key: Digest,
    /// Whether its output was there already.
    pub cached: bool,
    /// Seconds that it took.
    pub seconds: f64,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// Path below the output folder.
    pub path: String,
    /// SHA-256.
    pub sha256: Digest,
    /// Length in bytes.
    pub bytes: u64,
    /// Time of the last change when it was written, nanoseconds since 1970: shows later whether it was touched.
    pub mtime_ns: i128,
}

impl StepReport {
    /// A step that ended.
    pub fn new(step: StepName, key: Digest, cached: bool, took: Duration) -> Self {
        Self { step, key, cached, seconds: rounded(took) }
    }
}

impl FileReport {
    /// A file that is complete.
    ///
    /// # Errors
    /// If it cannot be looked at.
    pub fn new(folder: &Path, name: &str, sha256: Digest, bytes: u64) -> Result<Self> {
        let path = folder.join(name);
        let meta = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        Ok(Self { path: name.to_owned(), sha256, bytes, mtime_ns: mtime(&meta) })
    }

    /// Whether the file below `folder` has the length and time of change that it was left with.
    pub fn is_untouched(&self, folder: &Path) -> bool {
        fs::metadata(folder.join(&self.path))
            .is_ok_and(|meta| meta.len() == self.bytes && mtime(&meta) == self.mtime_ns)
    }
}

fn mtime(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

impl Report {
    /// A report without files, steps and times.
    pub fn begin(build: &Build<'_>, plan: &Plan) -> Self {
        let device = &build.resolved.device;
        Self {
            format: REPORT_FORMAT,
            profile: device.profile.clone(),
            product: device.product.clone(),
            version: device.version.clone(),
            arch: device.arch.to_string(),
            board: device.board.clone(),
            pair: device.ha.is_some(),
            key: plan.key(),
            roothash: None,
            steps: Vec::new(),
            files: Vec::new(),
            warnings: Vec::new(),
            seconds: 0.0,
            peak_memory_bytes: 0,
        }
    }

    /// The one that a build left in its output folder.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(super::output::REPORT);
        let text = fs::read(&path).with_context(|| {
            format!("read {}: give the folder that `farhold build --out` wrote", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// Completes it.
    pub fn finish(&mut self, took: Duration) {
        self.seconds = rounded(took);
        self.peak_memory_bytes = peak_memory();
    }

    /// Makes the report of an earlier build that of one that found nothing to do.
    pub fn repeated(&mut self, took: Duration) {
        for step in &mut self.steps {
            step.cached = true;
            step.seconds = 0.0;
        }
        self.finish(took);
    }

    /// The report for people: a line per step, then what was made.
    pub fn text(&self, out: &Path) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            // Writing to a string cannot fail.
            if writeln!(text, "{line}").is_err() {}
        };
        for step in &self.steps {
            let how = if step.cached { "cached".to_owned() } else { format!("{:.1} s", step.seconds) };
            line(format!("{:8} {:30} {how:>8}", step.step.name(), step.step.makes()));
        }
        for warning in &self.warnings {
            line(format!("warning: {warning}"));
        }
        for file in &self.files {
            line(format!("{:>9} KiB  {}", file.bytes.div_ceil(1024), out.join(&file.path).display()));
        }
        if let Some(roothash) = self.roothash {
            line(format!(
                "{} {} {} for {}, roothash {roothash}",
                self.profile, self.version, self.arch, self.board
            ));
        }
        line(format!("{:.1} s, peak memory {} MiB", self.seconds, self.peak_memory_bytes >> 20));
        text
    }
}

/// SHA-256 and length of a file.
///
/// # Errors
/// If it cannot be read.
pub fn hash_file(path: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    hash_reader(&mut file).with_context(|| format!("read {}", path.display()))
}

fn rounded(took: Duration) -> f64 {
    (took.as_secs_f64() * 1000.0).round() / 1000.0
}

/// Largest resident memory of this process (`VmHWM` of proc(5)), 0 where the kernel does not tell.
fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
