//! `farhold check`: everything that is wrong with a profile, one line each.

use crate::finding::{Finding, Severity};
use crate::profile::{self, Options};
use anyhow::{Result, bail};
use formats::arch::Arch;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// How a profile is read; shared by every command that takes one.
#[derive(clap::Args)]
pub struct ProfileArgs {
    /// Profile file.
    pub profile: PathBuf,
    /// Board instead of the profile's.
    #[arg(long)]
    pub board: Option<String>,
    /// Value of a variable; may be given more than once.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Folder that holds `packs` [default: found from the profile's place].
    #[arg(long, value_name = "DIR")]
    pub recipes: Option<PathBuf>,
}

impl ProfileArgs {
    /// Options to resolve with.
    ///
    /// # Errors
    /// If a `--set` has no `=`.
    pub fn options(&self, arch: Option<Arch>) -> Result<Options> {
        let mut set = BTreeMap::new();
        for pair in &self.set {
            let Some((name, value)) = pair.split_once('=') else { bail!("--set {pair}: must be NAME=VALUE") };
            set.insert(name.to_owned(), value.to_owned());
        }
        Ok(Options { recipes: self.recipes.clone(), arch, board: self.board.clone(), set })
    }

    /// Resolves the profile; warnings go to standard error.
    ///
    /// # Errors
    /// All findings, one a line.
    pub fn resolve(&self, arch: Option<Arch>) -> Result<crate::resolved::Resolved> {
        match profile::resolve(&self.profile, &self.options(arch)?) {
            Ok(resolution) => {
                for warning in &resolution.warnings {
                    eprintln!("{warning}");
                }
                Ok(resolution.resolved)
            }
            Err(findings) => {
                let lines: Vec<String> = findings.iter().map(Finding::to_string).collect();
                bail!("{} cannot be built:\n{}", self.profile.display(), lines.join("\n"))
            }
        }
    }
}

/// Checks every layer of a profile and says what is wrong, one line each.
#[derive(clap::Args)]
pub struct CheckCmd {
    #[command(flatten)]
    profile: ProfileArgs,
    /// Only this processor [default: all of the profile].
    #[arg(long)]
    arch: Option<Arch>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl CheckCmd {
    /// Runs the command; 1 if there are errors.
    ///
    /// # Errors
    /// If the options cannot be read.
    pub fn run(&self) -> Result<ExitCode> {
        let arches = match self.arch {
            Some(arch) => vec![arch],
            None => crate::yaml::load::<crate::profile::model::Profile>(&self.profile.profile)
                .map(|profile| profile.arch)
                .unwrap_or_default(),
        };
        let mut findings = Vec::new();
        // A profile that cannot be read at all is found by the first attempt.
        let attempts =
            if arches.is_empty() { vec![None] } else { arches.iter().copied().map(Some).collect() };
        for arch in attempts {
            match profile::resolve(&self.profile.profile, &self.profile.options(arch)?) {
                Ok(resolution) => findings.extend(resolution.warnings),
                Err(found) => findings.extend(found),
            }
        }
        findings.sort();
        findings.dedup();
        let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
        if self.json {
            println!("{:#}", serde_json::json!({ "findings": findings, "errors": errors }));
        } else {
            for finding in &findings {
                println!("{finding}");
            }
            match (errors, findings.len() - errors) {
                (0, 0) => println!("{}: no findings", self.profile.profile.display()),
                (errors, warnings) => println!(
                    "{}: {}, {}",
                    self.profile.profile.display(),
                    counted(errors, "error"),
                    counted(warnings, "warning")
                ),
            }
        }
        Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn counted(n: usize, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{n} {what}{plural}")
}
