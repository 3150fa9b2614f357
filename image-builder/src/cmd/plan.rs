//! `farhold plan` and `farhold explain`: what a build would do, and why; nothing is done.

use super::build::{BuildArgs, Prepared};
use crate::execute::{output, record};
use crate::explain::{self, Explained};
use crate::plan::StepName;
use crate::store::Store;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Shows which steps a build would do and which are in the cache. Nothing is done.
#[derive(clap::Args)]
pub struct PlanCmd {
    #[command(flatten)]
    args: BuildArgs,
    /// Output folder of the build, whose disk image may still be right.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON, with every input of every step.
    #[arg(long)]
    json: bool,
}

/// Says why steps are stale: which input changed, from what, to what. Nothing is done.
#[derive(clap::Args)]
pub struct ExplainCmd {
    #[command(flatten)]
    args: BuildArgs,
    /// Output folder of the build, whose disk image may still be right.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl PlanCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`BuildArgs::prepare`].
    pub fn run(&self) -> Result<ExitCode> {
        let prepared = self.args.prepare()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&prepared.plan).context("write the plan")?);
            return Ok(ExitCode::SUCCESS);
        }
        for step in explained(&prepared, self.out.as_deref())? {
            println!("{}", step.summary());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl ExplainCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`BuildArgs::prepare`].
    pub fn run(&self) -> Result<ExitCode> {
        let steps = explained(&self.args.prepare()?, self.out.as_deref())?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&steps).context("write the explanation")?);
            return Ok(ExitCode::SUCCESS);
        }
        for step in steps {
            println!("{}", step.summary());
            for change in step.changes.iter().filter(|_| !step.cached) {
                println!("  {change}");
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn explained(prepared: &Prepared, out: Option<&Path>) -> Result<Vec<Explained>> {
    let store = Store::from_environment()?;
    let before = record::read(&store, &prepared.resolved)?;
    let mut disk_is_there = false;
    if let (Some(out), Some(step)) = (out, prepared.plan.step(StepName::Disk)) {
        disk_is_there = output::has_disk(out, step.key)?;
    }
    let cached = |name| match (name, prepared.plan.step(name)) {
        (StepName::Disk, _) => disk_is_there,
        (_, Some(step)) => store.derived(name.name(), &step.key).is_some(),
        (_, None) => false,
    };
    let mut steps = explain::explain(&prepared.plan, &before, cached);
    steps.retain(|step| step.step != StepName::Release || prepared.release.is_some());
    Ok(steps)
}
