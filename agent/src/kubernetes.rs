//! `farhold-agent k3s …`: arguments and what is printed.
//!
//! It does not know how anything is done; that is `agent::k3s`.

use crate::io::notify;
use agent::ha::act::Config;
use agent::k3s::{self, Leaving};
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit status of a drain that a budget held.
const HELD: u8 = 2;

/// Arguments of `k3s`.
#[derive(Args)]
pub struct K3s {
    /// What this node was told at enrolment
    #[arg(long, global = true, default_value = crate::pair::CONFIG)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run `k3s server` against the local datastore port
    Run,
    /// Close this node and let its pods leave, before a planned reboot; exit status 2 if a disruption budget held some
    Drain {
        /// Seconds that budgets are waited for, instead of the configuration's
        #[arg(long)]
        deadline_s: Option<u64>,
        /// What happens to pods that a budget holds longer, instead of the configuration's
        #[arg(long)]
        after: Option<After>,
    },
    /// Let this node take pods again; after a reboot that happens by itself
    Undrain,
}

#[derive(Clone, Copy, ValueEnum)]
enum After {
    /// The node stays, and takes pods again
    Wait,
    /// They are deleted although the budget does not allow it
    Force,
}

impl K3s {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode> {
        let config = Config::read(&self.config)?;
        match self.command {
            Command::Run => {
                notify::send("READY=1")?;
                k3s::run(config, |said| {
                    if let Err(error) = notify::send(&format!("STATUS={said}")) {
                        tracing::debug!(error = format!("{error:#}"), "systemd");
                    }
                })?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Drain { deadline_s, after } => {
                let mut drain = config.k3s()?.drain;
                drain.deadline_s = deadline_s.unwrap_or(drain.deadline_s);
                drain.after = match after {
                    Some(After::Wait) => k3s::drain::Policy::Wait,
                    Some(After::Force) => k3s::drain::Policy::Force,
                    None => drain.after,
                };
                told(&within(k3s::leave(&config, drain, |said| eprintln!("{said}")))?)
            }
            Command::Undrain => within(k3s::stay(&config)).map(|()| ExitCode::SUCCESS),
        }
    }
}

fn within<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a loop")?;
    runtime.block_on(work)
}

fn told(leaving: &Leaving) -> Result<ExitCode> {
    let lines = |pods: &BTreeMap<String, String>| -> String {
        pods.iter().map(|(id, why)| format!("  {id}: {why}\n")).collect()
    };
    let (text, code) = match leaving {
        Leaving::Left(forced) if forced.is_empty() => ("no pod is left here\n".to_owned(), ExitCode::SUCCESS),
        Leaving::Left(forced) => (
            format!("no pod is waited for any longer; deleted against a budget:\n{}", lines(forced)),
            ExitCode::SUCCESS,
        ),
        Leaving::Held(held) => {
            let text = format!(
                "the deadline passed and these pods are still here; the node takes pods again:\n{}",
                lines(held)
            );
            (text, ExitCode::from(HELD))
        }
    };
    crate::pair::print(&text)?;
    Ok(code)
}
