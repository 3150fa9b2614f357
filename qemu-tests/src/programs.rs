//! The programs under test and the build that they made first, as `make` names them in the environment. Knows nothing
//! of virtual machines.

use crate::disk::DiskImage;
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Board that the lab boots.
pub const BOARD: &str = "vm";
/// Variable with the folder that `farhold build --out` wrote; keys and lock stand beside it.
pub const IMAGE_VARIABLE: &str = "FARHOLD_TEST_IMAGE_DIR";

/// Variable with the folder of a pair's image.
const PAIR_VARIABLE: &str = "FARHOLD_TEST_PAIR_DIR";

/// The folder with the build under test.
///
/// # Errors
/// If none is named, or it has no image.
pub fn build_folder() -> Result<PathBuf> {
    let folder = std::env::var_os(IMAGE_VARIABLE).with_context(|| {
        format!("no image to test: `make test` builds one, or set {IMAGE_VARIABLE} to a `farhold build --out` folder")
    })?;
    let folder = PathBuf::from(folder);
    if !folder.join("disk.img").is_file() {
        bail!("{IMAGE_VARIABLE} is {}, but it has no disk.img", folder.display());
    }
    Ok(folder)
}

/// The folder with the image of a pair, made from the profile `two-node-k3s`.
///
/// # Errors
/// If none is named, or it has no image.
pub fn pair_image() -> Result<PathBuf> {
    let folder = std::env::var_os(PAIR_VARIABLE).with_context(|| {
        format!("no image of a pair: `make pair-image` bakes one; {PAIR_VARIABLE} names its folder")
    })?;
    let folder = PathBuf::from(folder);
    if !folder.join("disk.img").is_file() {
        bail!("{PAIR_VARIABLE} is {}, but it has no disk.img", folder.display());
    }
    Ok(folder)
}

/// The folder of the sources, where `recipes/` is.
pub fn source_folder() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

/// `farhold`, and what it puts into images.
#[derive(Clone, Debug)]
pub struct Programs {
    farhold: PathBuf,
    agent: PathBuf,
    init: PathBuf,
    /// Processor of the build under test.
    pub arch: Arch,
    /// Development keys.
    pub keys: PathBuf,
    /// Lock of the build under test.
    pub lock: PathBuf,
}

impl Programs {
    /// The programs that `FARHOLD`, `FARHOLD_AGENT` and `FARHOLD_INIT` name.
    ///
    /// # Errors
    /// If one is not named, or there is no build under test.
    pub fn from_environment() -> Result<Self> {
        let needed = |variable| {
            std::env::var_os(variable)
                .map(PathBuf::from)
                .with_context(|| format!("{variable} is not set: run this by `make test` or `make demo`"))
        };
        let first = build_folder()?;
        let beside = first.parent().context("the build under test has no folder beside it")?;
        Ok(Self {
            farhold: needed("FARHOLD")?,
            agent: needed("FARHOLD_AGENT")?,
            init: needed("FARHOLD_INIT")?,
            arch: DiskImage::new(first.join("disk.img")).arch()?,
            keys: beside.join("keys"),
            lock: first.with_extension("lock"),
        })
    }

    /// `farhold`, with arguments to come.
    pub fn farhold(&self) -> Command {
        Command::new(&self.farhold)
    }

    /// Options of `farhold lock` and `farhold build` for the processor and the board under test.
    pub fn target(&self) -> [&'static str; 4] {
        self.target_on(BOARD)
    }

    /// The same for another board.
    pub fn target_on<'a>(&self, board: &'a str) -> [&'a str; 4] {
        ["--arch", self.arch.name(), "--board", board]
    }

    /// Arguments that hand agent and init to `farhold lock` and `farhold build`.
    pub fn artefacts(&self) -> [OsString; 4] {
        let artefact = |name: &str, path: &Path| {
            let mut text = OsString::from(format!("{name}="));
            text.push(path);
            text
        };
        let option = || OsString::from("--artefact");
        [option(), artefact("farhold-agent", &self.agent), option(), artefact("farhold-init", &self.init)]
    }
}

/// Runs a command that must succeed, and gives what it printed.
///
/// # Errors
/// If it cannot be started or fails; the message has its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{command:?} prints no text"))
}
