//! `farhold lab push`: a release goes to the nodes of the lab while one watches.

use super::SiteArgs;
use crate::serve::http;
use anyhow::{Context, Result, bail};
use clap::Args;
use formats::repository as names;
use formats::status::Status;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use qemu_tests::server::HOST_IN_GUEST;
use qemu_tests::vm::Vm;
use serde::Serialize;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How often a node is asked; its answer does not go over its network.
const ASK: Duration = Duration::from_millis(500);
/// A node that says nothing for so long, a trial boot included, is given up.
const SILENCE: Duration = Duration::from_secs(600);
/// Links lose the order as they lose everything: it is given again.
const ORDERS: u32 = 5;
/// Exit status of ssh when there is no connection.
const NO_CONNECTION: i32 = 255;

/// Serves a repository or release folder to the lab's nodes, tells them to take it, and shows how it goes: live beside `farhold lab link`.
#[derive(Args)]
pub struct PushCmd {
    /// Repository or release folder.
    repo: PathBuf,
    #[command(flatten)]
    site: SiteArgs,
    /// Only this node [default: every node that runs, all at once].
    #[arg(long)]
    node: Option<String>,
    /// Print JSON at the end.
    #[arg(long)]
    json: bool,
}

/// How it went for a node.
#[derive(Serialize)]
struct Pushed {
    node: String,
    /// What the node said to the order, or what kept it from hearing it.
    said: String,
    /// Whether it has what it was offered: it runs, or there was nothing newer.
    good: bool,
    /// Version that it took; `None` if it took none.
    version: Option<String>,
    /// What became of it, in the node's words.
    last: Option<String>,
    /// Bytes that it fetched.
    fetched_bytes: u64,
    seconds: u64,
}

impl PushCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If there is no site, nothing to serve, or a node does not end up with the release.
    pub fn run(&self) -> Result<ExitCode> {
        let there = |name: &str| self.repo.join(name).exists();
        if !there(names::ANNOUNCE) && !there(names::ANNOUNCEMENTS) {
            bail!(
                "{0} has nothing to push: `farhold publish RELEASE --repo {0}` puts a release there",
                self.repo.display()
            );
        }
        let nodes = self.nodes()?;
        let (tell, told) = mpsc::channel();
        let options = http::Options {
            folder: self.repo.clone(),
            address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            bits_per_s: None,
            log: false,
        };
        let server =
            thread::spawn(move || http::run(options, |address| tell.send(address).unwrap_or_default()));
        let Ok(address) = told.recv() else {
            return ended(server, "the server").map(|_| ExitCode::FAILURE);
        };
        let source = format!("http://{HOST_IN_GUEST}:{}", address.port());
        let bars = MultiProgress::new();
        let style =
            ProgressStyle::with_template("{prefix} {msg} {wide_bar} {bytes}/{total_bytes} {elapsed}")?;
        let followed: Vec<_> = nodes
            .into_iter()
            .map(|(name, vm)| {
                let bar = bars.add(ProgressBar::new(0).with_style(style.clone()).with_prefix(name.clone()));
                bar.enable_steady_tick(Duration::from_millis(250));
                let source = source.clone();
                thread::spawn(move || push(name, &vm, &source, &bar))
            })
            .collect();
        while !followed.iter().all(thread::JoinHandle::is_finished) {
            if server.is_finished() {
                bail!("interrupted; the nodes keep what came, and pushing again goes on from there");
            }
            thread::sleep(Duration::from_millis(100));
        }
        let results: Vec<Pushed> =
            followed.into_iter().map(|thread| ended(thread, "who followed a node")).collect::<Result<_>>()?;
        self.tell(&results)?;
        let all = results.iter().all(|pushed| pushed.good);
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn nodes(&self) -> Result<Vec<(String, Vm)>> {
        let site = self.site.open()?;
        let mut nodes = Vec::new();
        for name in site.nodes() {
            let vm = site.vm(Some(name))?;
            if self.node.as_ref().map_or(vm.process()?.is_some(), |node| node == name) {
                nodes.push((name.clone(), vm));
            }
        }
        if nodes.is_empty() {
            site.vm(self.node.as_deref())?;
            bail!("every node of {} is off; `farhold lab start` powers them on", site.folder().display());
        }
        Ok(nodes)
    }

    fn tell(&self, results: &[Pushed]) -> Result<()> {
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(results).context("print how it went")?)
        } else {
            results.iter().map(words).collect()
        };
        std::io::stdout().write_all(text.as_bytes()).context("write to standard output")
    }
}

/// What a thread came to.
fn ended<T>(thread: thread::JoinHandle<Result<T>>, who: &str) -> Result<T> {
    match thread.join() {
        Ok(result) => result,
        Err(_panic) => bail!("{who} has failed"),
    }
}

fn words(pushed: &Pushed) -> String {
    let Pushed { node, said, fetched_bytes, seconds, .. } = pushed;
    match &pushed.version {
        None => format!("{node}: {said}\n"),
        Some(version) => {
            let end = if pushed.good { "runs" } else { "does not run" };
            let last = pushed.last.as_deref().unwrap_or("nothing is said of it");
            format!(
                "{node}: {version} {end}, {} KiB fetched, {seconds} s. {last}\n",
                fetched_bytes.div_ceil(1024)
            )
        }
    }
}

/// Gives the order and follows what the node does.
fn push(node: String, vm: &Vm, source: &str, bar: &ProgressBar) -> Result<Pushed> {
    let begun = Instant::now();
    bar.set_message("is told");
    let (good, said) = order(vm, source)?;
    let mut pushed = Pushed { node, said, good, version: None, last: None, fetched_bytes: 0, seconds: 0 };
    let mut heard = Instant::now();
    loop {
        if vm.process()?.is_none() {
            bail!("{} was switched off", pushed.node);
        }
        match vm.ask_status()? {
            Some(status) => {
                heard = Instant::now();
                if over(&status, &mut pushed, bar) {
                    break;
                }
            }
            None if heard.elapsed() > SILENCE => {
                bail!("{} says nothing any more: `farhold lab console {0}`", pushed.node)
            }
            None => bar.set_message("does not answer"),
        }
        thread::sleep(ASK);
    }
    pushed.seconds = begun.elapsed().as_secs();
    bar.finish_and_clear();
    Ok(pushed)
}

/// Whether the node takes the order, and what it says to it.
fn order(vm: &Vm, source: &str) -> Result<(bool, String)> {
    let order = format!("farhold-agent update --now --source {source}");
    let mut outcome = vm.run(&order)?;
    for _ in 1..ORDERS {
        if outcome.code != NO_CONNECTION {
            break;
        }
        outcome = vm.run(&order)?;
    }
    let said = format!("{} {}", outcome.stdout.trim(), outcome.stderr.trim());
    Ok((outcome.code == 0, said.trim().to_owned()))
}

/// Takes a status in; whether nothing goes on any more.
fn over(status: &Status, pushed: &mut Pushed, bar: &ProgressBar) -> bool {
    let Some(update) = &status.update else { return true };
    pushed.fetched_bytes = pushed.fetched_bytes.max(update.fetched_bytes);
    if update.phase != "idle" {
        let version = update.version.clone();
        let part = update.part.as_deref().unwrap_or_default();
        bar.set_message(format!("{} {} {part}", update.phase, version.as_deref().unwrap_or_default()));
        bar.set_length(update.total_bytes);
        bar.set_position(update.done_bytes);
        pushed.version = version.or(pushed.version.take());
        return false;
    }
    if let Some(version) = &pushed.version {
        pushed.good = status.observed.as_ref().is_some_and(|observed| observed.version == *version);
    }
    pushed.last.clone_from(&update.last);
    qemu_tests::status::settled(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_it_is_said_in_a_line() {
        let mut pushed = Pushed {
            node: "node1".into(),
            said: "Nothing newer.".into(),
            good: false,
            version: None,
            last: None,
            fetched_bytes: 1025,
            seconds: 61,
        };
        assert_eq!(words(&pushed), "node1: Nothing newer.\n");
        pushed.version = Some("1.0.1".into());
        pushed.last = Some("Version 1.0.1 was rolled back: it did not start.".into());
        assert_eq!(
            words(&pushed),
            "node1: 1.0.1 does not run, 2 KiB fetched, 61 s. Version 1.0.1 was rolled back: it did not start.\n"
        );
    }
}
