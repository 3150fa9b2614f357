//! A repository with one object, and programs that serve and fetch it: what tests and benchmarks of links carry.

use crate::programs::run;
use anyhow::{Context, Result, ensure};
use formats::object::{BlockSize, Object};
use serde::Deserialize;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A repository with an object that does not compress.
pub struct Parcel {
    folder: tempfile::TempDir,
    /// The object.
    pub object: Object,
    bytes: Vec<u8>,
}

/// What `farhold-agent fetch --json` says.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Fetched {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes over the link.
    pub paid: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Times that it was interrupted.
    pub failures: u32,
}

/// A program that `make test` names in the environment.
///
/// # Errors
/// If it is not named.
pub fn program(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.with_context(|| {
        format!("{variable} is not set: run this by `make test`, or set it to the program's path")
    })
}

impl Parcel {
    /// An object of so many bytes.
    ///
    /// # Errors
    /// If there is no room.
    pub fn new(length: usize, block: BlockSize) -> Result<Self> {
        let bytes: Vec<u8> =
            (0..length as u64).map(|n| (super::pipe::chance(9, n / 8) >> (n % 8 * 8)) as u8).collect();
        let object = formats::object::of(&bytes, block)?;
        let folder = tempfile::Builder::new().prefix("farhold-parcel-").tempdir().context("make a folder")?;
        let at = folder.path();
        std::fs::create_dir(at.join("objects"))?;
        std::fs::write(at.join(formats::repository::object(&object.id)), &bytes)?;
        std::fs::write(at.join(formats::repository::lists(&object.id)), &object.lists)?;
        std::fs::write(at.join(formats::repository::ANNOUNCE), [0x11; 198])?;
        Ok(Self { folder, object, bytes })
    }

    /// The repository.
    pub fn repository(&self) -> &Path {
        self.folder.path()
    }

    /// Fetches the object into a file of this name with `command`, which is `farhold-agent`, and compares it.
    ///
    /// # Errors
    /// If it fails, or what came is not the object.
    pub fn fetch(&self, mut command: Command, source: &str, name: &str) -> Result<Fetched> {
        let out = self.folder.path().join(name);
        let geometry = self.object.geometry;
        command
            .args(["fetch", "--json", "--source", source])
            .arg(self.object.id.to_string())
            .arg("--out")
            .arg(&out);
        command.args(["--bytes", &geometry.length().to_string()]);
        command.args(["--block-log2", &geometry.block().log2().to_string()]).stderr(Stdio::inherit());
        let said = run(&mut command)?;
        ensure!(std::fs::read(&out)? == self.bytes, "what came is not what was sent");
        serde_json::from_str(&said).with_context(|| format!("read what farhold-agent fetch says: {said}"))
    }
}

/// `farhold serve`; ends when it is dropped.
pub struct Serving(Child);

impl Serving {
    /// Starts `command`, which is `farhold`, with these arguments after `serve REPOSITORY`, and waits until it serves.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(mut command: Command, repository: &Path, arguments: &[&str]) -> Result<Self> {
        command.arg("serve").arg(repository).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start farhold serve")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.as_mut() {
            BufReader::new(out).read_line(&mut line).context("hear from farhold serve")?;
        }
        let serving = Self(child);
        ensure!(line.starts_with("serving"), "farhold serve says `{}`", line.trim());
        Ok(serving)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
