//! `farhold-agent ha …` and `farhold-agent witness …`: arguments, confirmations and what is printed.
//!
//! It does not know how anything is done; that is `agent::ha::act`.

use crate::{away, pair_text};
use agent::ha::act::{self, Ask, Config, Folders, Number, Party};
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// What a node was told at enrolment; its folder belongs to the user that the pair's process runs as.
pub const CONFIG: &str = "/var/lib/farhold-ha/ha.json";

/// Arguments of `ha`.
#[derive(Args)]
pub struct Ha {
    /// What this node was told at enrolment
    #[arg(long, global = true, default_value = CONFIG)]
    config: PathBuf,
    #[command(subcommand)]
    command: HaCommand,
}

#[derive(Subcommand)]
enum HaCommand {
    /// Make this node's key and number, and on the first node the database
    Init {
        /// This node has the data: make a new database here
        #[arg(long)]
        first: bool,
    },
    /// Run as a node of the pair
    Run,
    /// Say how the pair is, and what would happen if the peer died now
    Status {
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Give the database role to the other node
    Switchover,
    /// Let the other node go on alone, so that this one can go down
    Leave,
    /// Let this node's pods leave and the other node go on alone, so that this one can go down; updates do it by themselves
    StepDown {
        /// What runs here has failed: do not put it off because a disruption budget holds pods or the other node is away
        #[arg(long)]
        failed: bool,
    },
    /// Take `leave` back
    Stay,
    /// Make the members what the configuration says: pair, witness, policy
    Apply,
    /// Take new hardware in place of the peer, whose key the configuration has now, and wait until it is in sync
    Replace {
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Write nothing without the peer until an operator says so; `apply` takes it back
    Hold {
        /// One lost node stops all writes
        #[arg(long)]
        it_stops_writes: bool,
    },
    /// Keep the virtual address where the primary is; runs beside `run`, with the right to change addresses
    Address,
    /// Go on alone although no quorum agrees
    ForceSolo {
        /// The other node, and the witness if it is unreachable, are off and stay off
        #[arg(long)]
        they_are_off: bool,
    },
    /// Vouch that this node's state is its newest
    Trust {
        /// No newer state of this node exists anywhere
        #[arg(long)]
        it_is_newest: bool,
    },
}

/// Arguments of `witness`.
#[derive(Args)]
pub struct Witness {
    /// Key and states of the sites
    #[arg(long, global = true, default_value = "/var/lib/farhold/witness")]
    state: PathBuf,
    /// Counters that die with a boot
    #[arg(long, global = true, default_value = "/run/farhold/witness")]
    run: PathBuf,
    /// Counters outside every backup of the state
    #[arg(long)]
    counters: Option<PathBuf>,
    /// Where messages arrive
    #[arg(long, default_value = "[::]:7601")]
    listen: SocketAddr,
    #[command(subcommand)]
    command: Option<WitnessCommand>,
}

#[derive(Subcommand)]
enum WitnessCommand {
    /// Add a site, or change the keys of its nodes; prints the number and key of the witness
    Add {
        /// The site's number
        #[arg(long)]
        site: Number,
        /// A node, as NUMBER:KEY; twice
        #[arg(long = "node")]
        nodes: Vec<String>,
    },
}

impl Ha {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode> {
        let config = Config::read(&self.config)?;
        let ask = match self.command {
            HaCommand::Init { first } => {
                let party = if first { act::first(&config) } else { act::joining(&config) }?;
                return introduce(&party);
            }
            HaCommand::Run => return act::run(config).map(|()| ExitCode::SUCCESS),
            HaCommand::Status { json } => {
                let mut status = act::ask(&config.run, Ask::Status)?;
                status["k3s"] = agent::k3s::report(&config).unwrap_or_default();
                return print(&if json { format!("{status:#}\n") } else { pair_text::status(&status) });
            }
            HaCommand::Switchover => Ask::Switchover,
            HaCommand::Leave => Ask::Leave,
            HaCommand::StepDown { failed } => return step_down(&config, failed),
            HaCommand::Stay => Ask::Stay,
            HaCommand::Apply => Ask::Apply,
            HaCommand::Replace { no_wait } => return replace(&config, no_wait),
            HaCommand::Hold { it_stops_writes } => {
                confirm(it_stops_writes, HOLD, "it stops writes")?;
                Ask::Hold
            }
            HaCommand::Address => return act::follow_address(&config).map(|()| ExitCode::SUCCESS),
            HaCommand::ForceSolo { they_are_off } => {
                confirm(they_are_off, FORCE, "they are off")?;
                Ask::ForceSolo
            }
            HaCommand::Trust { it_is_newest } => {
                confirm(it_is_newest, TRUST, "it is newest")?;
                Ask::Trust
            }
        };
        let status = act::ask(&config.run, ask)?;
        print(&pair_text::status(&status))
    }
}

/// Returns when this node may go down.
fn step_down(config: &Config, failed: bool) -> Result<ExitCode> {
    away::step_down(config, failed, |said| eprintln!("{said}"))?;
    print("this node may go down now\n")
}

/// Takes the configured peer in place of the one before, and shows how far its copy is until it is in sync.
fn replace(config: &Config, no_wait: bool) -> Result<ExitCode> {
    let status = act::ask(&config.run, Ask::Apply)?;
    if no_wait {
        return print(&pair_text::status(&status));
    }
    let terminal = std::io::stderr().is_terminal();
    let wanted = config.others().peer.map(|peer| peer.voter.to_string());
    loop {
        let status = act::ask(&config.run, Ask::Status)?;
        let joined = status["peer"].as_str() == wanted.as_deref();
        if joined && status["mode"] == "paired" {
            if terminal {
                eprintln!();
            }
            return print(&pair_text::status(&status));
        }
        if terminal {
            let copy = pair_text::copy(&status["copy"]);
            let said = match (joined, copy.is_empty()) {
                (false, _) => "waits for the votes of the present voters (Ctrl-C leaves it under way)",
                (true, true) => "waits for the new node",
                (true, false) => &copy,
            };
            eprint!("\r\x1b[K{said}");
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}

impl Witness {
    /// Does what was asked.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Some(WitnessCommand::Add { site, nodes }) => {
                introduce(&act::add_site(self.state, self.run, site, &nodes)?)
            }
            None => {
                let folders = Folders { state: self.state, run: self.run, counters: self.counters };
                act::run_witness(&folders, self.listen).map(|()| ExitCode::SUCCESS)
            }
        }
    }
}

const FORCE: &str = "This node will take writes alone, without asking anybody. If the other node runs, both take writes, and \
    what it took is lost when they meet (it is exported to a file there first).\n";
const HOLD: &str = "From now on nothing is written while one of the two nodes is lost, until an operator says `ha force-solo`; \
    the witness is not asked any more.\n";
const TRUST: &str = "This node will vote and serve with the state and data that it has. If a newer state of it exists, writes \
    that were acknowledged since are lost.\n";

fn confirm(given: bool, risk: &str, words: &str) -> Result<()> {
    if given {
        return Ok(());
    }
    print(&format!("{risk}Type \"{words}\" to go on: "))?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    if line.trim() != words {
        bail!("nothing was done");
    }
    Ok(())
}

fn introduce(party: &Party) -> Result<ExitCode> {
    let value = json!({ "voter": party.voter.to_string(), "key": party.key.to_string() });
    print(&format!("{value}\n"))
}

/// Prints to standard output; whoever stops reading has seen enough.
pub fn print(text: &str) -> Result<ExitCode> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}
