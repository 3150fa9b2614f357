//! The command line.

use crate::stick::Stick;
use crate::{early, fetch_file, host_keys, kubernetes, offline, pair, pairing, render, run};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use formats::status::{SOCKET, Status, Why};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// Longest answer of the agent that is read, bytes.
const ANSWER_MAX: u64 = 4 << 20;
/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long it may take over a look at a source on a slow link, or over verifying a slot.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

/// Seconds without progress after which a stick is given back.
const STILL_S: u32 = 120;

/// Looks after a Farhold device: what should run, what runs, and why.
#[derive(Parser)]
#[command(name = "farhold-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run as the device's daemon
    Run,
    /// Prepare /var and /etc, before systemd; started by the init
    Early,
    /// Make this device's SSH host key, once
    HostKeys,
    /// Say what runs, what should run, and what needs attention
    Status(Output),
    /// Say why the device is as it is, and what happened last
    Why(Output),
    /// The two nodes of a site: their state, hand-over, repair
    Ha(pair::Ha),
    /// Make this node one of a pair, by a code that both are told
    Pair(pairing::Pair),
    /// Kubernetes on this node of a site: run it, let its pods leave
    K3s(kubernetes::K3s),
    /// Be the third voter of two-node sites
    Witness(pair::Witness),
    /// Say what an update would do, or do it
    Update(Update),
    /// Install a release from a stick or folder, and leave a report on it
    Import(Import),
    /// Fetch one file over any carrier, to see what a link is worth
    Fetch(fetch_file::Fetch),
    /// Keep the release on trial without waiting for its checks
    Commit(Output),
    /// Give up the update, leave the trial, or go back to the other slot
    Rollback(Output),
}

#[derive(Args)]
struct Update {
    /// Say what would be done; nothing is changed
    #[arg(long, required_unless_present = "now", conflicts_with = "now")]
    plan: bool,
    /// Look for a release now, and install it
    #[arg(long)]
    now: bool,
    /// Folder or http(s) address of a release, instead of the profile's
    #[arg(long, value_name = "DIR|URL")]
    source: Option<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
struct Import {
    /// Folder with a repository or a release, or a block device, which is mounted for reading
    path: std::path::PathBuf,
    /// Write nothing onto it
    #[arg(long)]
    no_report: bool,
    /// Leave alone what holds no release: for a stick that was plugged in, for whatever reason
    #[arg(long)]
    if_release: bool,
    #[command(flatten)]
    output: Output,
}

/// What the agent answers to a request.
#[derive(Serialize, Deserialize)]
struct Answer {
    ok: bool,
    text: String,
}

#[derive(Args)]
struct Output {
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Runs the command that was asked for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    logs();
    let done = match cli.command {
        Command::Run => run::run().map(|()| ExitCode::SUCCESS),
        Command::Early => early::run().map(|()| ExitCode::SUCCESS),
        Command::HostKeys => host_keys::run().map(|()| ExitCode::SUCCESS),
        Command::Status(output) => status(&output),
        Command::Why(output) => why(&output),
        Command::Ha(ha) => ha.run(),
        Command::Pair(pair) => pair.run(),
        Command::K3s(k3s) => k3s.run(),
        Command::Witness(witness) => witness.run(),
        Command::Update(update) => do_update(&update),
        Command::Import(import) => do_import(&import),
        Command::Fetch(fetch) => fetch.run(),
        Command::Commit(output) => request("commit", &output),
        Command::Rollback(output) => request("rollback", &output),
    };
    done.unwrap_or_else(|error| {
        eprintln!("farhold-agent: {error:#}");
        ExitCode::FAILURE
    })
}

/// To standard error: the journal, or the kernel log before there is one. Both have times of their own.
fn logs() {
    let filter = EnvFilter::try_from_env("FARHOLD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time();
    subscriber.with_env_filter(filter).init();
}

fn status(output: &Output) -> Result<ExitCode> {
    let (status, code) = match ask::<Status>("status") {
        Ok(status) => (status, ExitCode::SUCCESS),
        Err(error) => (offline::status(&format!("{error:#}")), ExitCode::FAILURE),
    };
    print(output, &status, render::status)?;
    Ok(code)
}

fn why(output: &Output) -> Result<ExitCode> {
    let (why, code) = match ask::<Why>("why") {
        Ok(why) => (why, ExitCode::SUCCESS),
        Err(error) => (offline::why(&format!("{error:#}")), ExitCode::FAILURE),
    };
    print(output, &why, render::why)?;
    Ok(code)
}

fn do_update(update: &Update) -> Result<ExitCode> {
    let intent = if update.now { "now" } else { "plan" };
    let source = update.source.as_deref().map(absolute).transpose()?.unwrap_or_default();
    let code = request(format!("update {intent} {source}").trim(), &update.output)?;
    if update.now && code == ExitCode::SUCCESS && !update.output.json && std::io::stderr().is_terminal() {
        follow()?;
    }
    Ok(code)
}

fn do_import(import: &Import) -> Result<ExitCode> {
    let path =
        std::path::absolute(&import.path).with_context(|| format!("find {}", import.path.display()))?;
    let stick = match Stick::open(&path) {
        Err(error) if import.if_release => {
            eprintln!("farhold-agent: left alone: {error:#}");
            return Ok(ExitCode::SUCCESS);
        }
        opened => opened?,
    };
    if import.if_release && !stick.offers() {
        eprintln!("{} holds no release and is left alone", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let source = absolute(&stick.folder().display().to_string())?;
    let code = request(&format!("update now {source}"), &import.output)?;
    if code == ExitCode::SUCCESS {
        while_it_is_read(&stick)?;
    }
    if import.no_report {
        return Ok(code);
    }
    // A stick that is full, read-only or gone keeps nobody from anything.
    match ask::<Status>("status").and_then(|status| stick.report(&status)) {
        Ok(name) => eprintln!("the report is {name}"),
        Err(error) => eprintln!("farhold-agent: no report: {error:#}"),
    }
    Ok(code)
}

/// Waits until the stick is not needed any more: all is fetched, it is gone, or nothing comes.
fn while_it_is_read(stick: &Stick) -> Result<()> {
    let (mut done, mut still) = (0, 0);
    while stick.there() && still < STILL_S {
        let update = ask::<Status>("status")?.update.unwrap_or_default();
        if update.phase != "fetching" {
            return Ok(());
        }
        still = if update.done_bytes == done { still + 1 } else { 0 };
        done = update.done_bytes;
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K{}", render::progress(&update));
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    eprintln!(
        "not all of it came: what came is kept; the rest comes from any other source, or from this one again"
    );
    Ok(())
}

/// The agent has another working folder than its caller.
fn absolute(source: &str) -> Result<String> {
    anyhow::ensure!(!source.contains(char::is_whitespace), "the source `{source}` has blanks in its name");
    if source.contains("://") {
        return Ok(source.to_owned());
    }
    let path = std::path::absolute(source).with_context(|| format!("find {source}"))?;
    path.into_os_string().into_string().ok().with_context(|| format!("the name of {source} is not UTF-8"))
}

/// Shows progress until the machine restarts or the update ends.
fn follow() -> Result<()> {
    loop {
        let update = ask::<Status>("status")?.update.unwrap_or_default();
        eprint!("\r\x1b[K{}", render::progress(&update));
        if !matches!(update.phase.as_str(), "fetching" | "installing") {
            eprintln!();
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn request(words: &str, output: &Output) -> Result<ExitCode> {
    let answer: Answer = ask_within(words, LONG_PATIENCE)?;
    if answer.ok || output.json {
        print(output, &answer, |answer| format!("{}\n", answer.text))?;
    } else {
        eprintln!("farhold-agent: {}", answer.text);
    }
    Ok(if answer.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print<T: Serialize>(output: &Output, value: &T, human: fn(&T) -> String) -> Result<()> {
    let text = if output.json {
        format!("{}\n", serde_json::to_string_pretty(value).context("encode the answer")?)
    } else {
        human(value)
    };
    std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
}

fn ask<T: DeserializeOwned>(word: &str) -> Result<T> {
    ask_within(word, PATIENCE)
}

fn ask_within<T: DeserializeOwned>(word: &str, patience: Duration) -> Result<T> {
    let mut stream = UnixStream::connect(SOCKET)
        .with_context(|| format!("connect to {SOCKET}, where a device's agent answers root while it runs"))?;
    stream.set_read_timeout(Some(patience)).context("set a time limit")?;
    stream.write_all(format!("{word}\n").as_bytes()).with_context(|| format!("ask on {SOCKET}"))?;
    let mut line = String::new();
    BufReader::new(stream)
        .take(ANSWER_MAX)
        .read_line(&mut line)
        .with_context(|| format!("read from {SOCKET}"))?;
    serde_json::from_str(&line).with_context(|| format!("read the answer on {SOCKET}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_its_help_fits_a_screen() {
        Cli::command().debug_assert();
        let help = Cli::command().render_long_help().to_string();
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
}
