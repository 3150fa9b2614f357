//! A vendor's desk: a copy of the recipes that is changed, baked into releases and published to a repository.

use crate::programs::{BOARD, Programs, run, source_folder};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sequence number of the first release made here; above that of any build from an unchanged tree, which is its time
/// stamp.
const FIRST_SEQUENCE: u32 = 2_000_000_000;
const PROFILE: &str = "recipes/profiles/edge-minimal.yaml";

/// A folder with recipes, builds and a repository.
#[derive(Debug)]
pub struct Workshop {
    folder: PathBuf,
    programs: Programs,
    board: &'static str,
    version: String,
    published: Option<String>,
    made: u32,
}

/// What `farhold publish` says about a release.
#[derive(Clone, Debug, Default)]
pub struct Published {
    /// Bytes that a device without a base fetches.
    pub full_bytes: u64,
    /// Bytes that a device with the release before fetches.
    pub delta_bytes: u64,
}

impl Workshop {
    /// Copies the recipes into `folder`.
    ///
    /// # Errors
    /// If `make` did not name the programs, or copying fails.
    pub fn new(folder: &Path) -> Result<Self> {
        for name in ["recipes", "x86_64", "arm64"] {
            run(Command::new("cp").arg("-r").arg(source_folder().join(name)).arg(folder))?;
        }
        let programs = Programs::from_environment()?;
        let version = "1.0.0".to_owned();
        Ok(Self { folder: folder.to_owned(), programs, board: BOARD, version, published: None, made: 0 })
    }

    /// Bakes for this board.
    #[must_use]
    pub fn for_board(self, board: &'static str) -> Self {
        Self { board, ..self }
    }

    /// The programs that it uses.
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Where releases are published.
    pub fn repository(&self) -> PathBuf {
        self.folder.join("repository")
    }

    /// Replaces text in the profile.
    ///
    /// # Errors
    /// If the text is not there exactly once.
    pub fn change(&self, from: &str, to: &str) -> Result<()> {
        let path = self.folder.join(PROFILE);
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.matches(from).count() == 1, "`{from}` does not stand once in {}", path.display());
        std::fs::write(&path, text.replacen(from, to, 1)).context("write the profile")
    }

    /// Adds a pack of Debian packages to the recipes, and a layer of it to the profile.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn add_packages(&self, pack: &str, packages: &[&str]) -> Result<()> {
        let folder = self.folder.join("recipes/packs").join(pack).join("1.0.0");
        std::fs::create_dir_all(&folder)?;
        let text = format!(
            "name: {pack}\nversion: \"1.0.0\"\ndisplayName: {pack}\ndescription: Packages that a site asked for.\nlayer: addon\narch: [x86_64, arm64]\npackages: [{}]\n",
            packages.join(", ")
        );
        std::fs::write(folder.join("pack.yaml"), text)?;
        self.change(
            "\nhealth:\n",
            &format!("  - {{ layer: addon, pack: {pack}, version: 1.0.0 }}\n\nhealth:\n"),
        )
    }

    /// Locks and bakes the profile as it stands now under a new version; gives the folder of the build.
    ///
    /// # Errors
    /// If `farhold` fails.
    pub fn bake(&mut self, version: &str) -> Result<PathBuf> {
        let line = |version: &str| format!("\n  version: {version}\n  product:");
        self.change(&line(&self.version), &line(version))?;
        version.clone_into(&mut self.version);
        self.made += 1;
        let (profile, out) = (self.folder.join(PROFILE), self.folder.join(version));
        let lock = self.folder.join(format!("{version}.lock"));
        let target = self.programs.target_on(self.board);
        let mut command = self.programs.farhold();
        command.arg("lock").arg(&profile).args(target).arg("--out").arg(&lock);
        run(command.args(self.programs.artefacts()))?;
        let mut command = self.programs.farhold();
        command.arg("build").arg(&profile).args(target).arg("--lock").arg(&lock).arg("--out").arg(&out);
        command.arg("--keys").arg(&self.programs.keys);
        command.arg("--sequence").arg((FIRST_SEQUENCE + self.made).to_string());
        run(command.args(self.programs.artefacts()))?;
        Ok(out)
    }

    /// Publishes a build's release with deltas from what is published already.
    ///
    /// # Errors
    /// If `farhold publish` fails, or says something else than it should.
    pub fn publish(&mut self, build: &Path) -> Result<Published> {
        let mut command = self.programs.farhold();
        command.arg("publish").arg(build.join("release")).arg("--repo").arg(self.repository());
        let said = run(command.arg("--key").arg(&self.programs.keys).arg("--json"))?;
        let report: serde_json::Value = serde_json::from_str(&said).context("read the report")?;
        let full_bytes = report["full_bytes"].as_u64().context("the report has no full_bytes")?;
        let payloads = report["payloads"].as_array().context("the report has no payloads")?;
        let before = self.published.replace(report["version"].as_str().unwrap_or_default().to_owned());
        let from_before = payloads.iter().filter(|payload| payload["from"].as_str() == before.as_deref());
        let delta_bytes = from_before.filter_map(|payload| payload["bytes"].as_u64()).sum();
        Ok(Published { full_bytes, delta_bytes })
    }
}
