//! Attempts the health checks that the profile declares. Every check ends within a bounded time; what its result leads to
//! is decided elsewhere.

use crate::io::tool::Tool;
use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::device::{HealthCheck, Probe};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a command may take, in [`POLL`]s.
const COMMAND_POLLS: u32 = 300;
const POLL: Duration = Duration::from_millis(100);

/// An attempt that takes longer hangs: all of them have limits of their own below this.
pub const HANGS: Duration = Duration::from_secs(45);
const STACK: usize = 512 << 10;

/// Attempts of checks, each on a thread of its own: one that hangs, as on a file system that went away, holds up neither
/// the others nor the way back.
#[derive(Default)]
pub struct Attempts(BTreeMap<String, mpsc::Receiver<Result<()>>>);

impl Attempts {
    /// Attempts these checks once, all at a time, and gives what came of each within `patience`.
    pub fn all<'c>(
        &mut self,
        checks: impl Iterator<Item = &'c HealthCheck>,
        patience: Duration,
    ) -> Vec<(String, Result<()>)> {
        let mut begun = Vec::new();
        for check in checks {
            let name = check.name.clone();
            // What ended too late is of an earlier time; the check is attempted anew.
            if self.0.get(&name).is_some_and(|hung| matches!(hung.try_recv(), Err(TryRecvError::Empty))) {
                begun.push((name, Err(anyhow!("an attempt that hangs has not ended yet"))));
                continue;
            }
            self.0.remove(&name);
            begun.push((name, begin(check)));
        }
        let end = Instant::now() + patience;
        let ended = begun.into_iter().map(|(name, begun)| {
            let result = begun.and_then(|attempt| {
                match attempt.recv_timeout(end.saturating_duration_since(Instant::now())) {
                    Ok(result) => result,
                    Err(RecvTimeoutError::Disconnected) => bail!("its attempt ended without a result"),
                    Err(RecvTimeoutError::Timeout) => {
                        self.0.insert(name.clone(), attempt);
                        bail!("it hangs: no result within {} s", patience.as_secs())
                    }
                }
            });
            (name, result)
        });
        ended.collect()
    }
}

fn begin(check: &HealthCheck) -> Result<mpsc::Receiver<Result<()>>> {
    let (send, receive) = mpsc::channel();
    let probe = check.probe.clone();
    let thread = std::thread::Builder::new().name("check".into()).stack_size(STACK);
    // Whoever gave up waiting needs no result.
    let run = move || drop(send.send(attempt(&probe)));
    thread.spawn(run).context("start a thread for the check")?;
    Ok(receive)
}

/// Attempts a check once.
///
/// # Errors
/// Why it did not pass.
pub fn attempt(probe: &Probe) -> Result<()> {
    match probe {
        Probe::Unit { unit } => {
            let outcome = Tool::Systemctl.run(&["is-active", unit])?;
            ensure!(outcome.code() == Some(0), "unit {unit} is {}", outcome.text.trim());
            Ok(())
        }
        Probe::Port { port } => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            TcpStream::connect_timeout(&address, PATIENCE)
                .with_context(|| format!("connect to {address}"))?;
            Ok(())
        }
        Probe::Http { url } => http(url),
        Probe::NodeReady => node_ready(),
        Probe::Disk { path, min_free_percent } => {
            let room =
                nix::sys::statvfs::statvfs(path.as_str()).with_context(|| format!("look at {path}"))?;
            let percent = room.blocks_available() * 100 / room.blocks().max(1);
            ensure!(
                percent >= u64::from(*min_free_percent),
                "{path} has {percent} % free, but must have {min_free_percent} %"
            );
            Ok(())
        }
        Probe::Command { argv } => command(argv),
    }
}

fn http(url: &str) -> Result<()> {
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::blocking::Client::builder().timeout(PATIENCE).no_proxy().build();
    let answer = client.context("set up HTTP")?.get(url).send().with_context(|| format!("ask {url}"))?;
    ensure!(answer.status().is_success(), "{url} answered with HTTP status {}", answer.status().as_u16());
    Ok(())
}

fn node_ready() -> Result<()> {
    let node = nix::unistd::gethostname().context("ask for the host name")?;
    let node = node.to_string_lossy().to_lowercase();
    let condition = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let argv = ["/usr/bin/k3s", "kubectl", "get", "node", &node, "-o", condition].map(str::to_owned);
    let said = output(&argv)?;
    ensure!(said.trim() == "True", "node {node} has Ready `{}`", said.trim());
    Ok(())
}

fn command(argv: &[String]) -> Result<()> {
    output(argv).map(drop)
}

/// Runs a program that is ended, with all that it started, when it takes too long.
fn output(argv: &[String]) -> Result<String> {
    let (program, args) = argv.split_first().context("the command is empty")?;
    let line = argv.join(" ");
    let mut said = tempfile_in_memory()?;
    let mut child = Command::new(program)
        .args(args)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(said.try_clone().context("share a file in memory")?)
        .stderr(said.try_clone().context("share a file in memory")?)
        .spawn()
        .with_context(|| format!("start `{line}`"))?;
    for _ in 0..COMMAND_POLLS {
        if let Some(status) = child.try_wait().with_context(|| format!("wait for `{line}`"))? {
            let text = text_of(&mut said)?;
            if status.success() {
                return Ok(text);
            }
            let last: String = text.lines().last().unwrap_or_default().chars().take(200).collect();
            bail!("`{line}` ended with {status}: {last}");
        }
        std::thread::sleep(POLL);
    }
    let group = nix::unistd::Pid::from_raw(i32::try_from(child.id()).context("read a process id")?);
    nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL)
        .with_context(|| format!("end `{line}`"))?;
    child.wait().with_context(|| format!("wait for `{line}`"))?;
    bail!("`{line}` did not end within {} s", (POLL * COMMAND_POLLS).as_secs())
}

/// Output goes to a file, since a pipe that nobody empties would stop the program.
fn tempfile_in_memory() -> Result<std::fs::File> {
    let fd = nix::sys::memfd::memfd_create(c"check", nix::sys::memfd::MFdFlags::MFD_CLOEXEC);
    Ok(std::fs::File::from(fd.context("make a file in memory")?))
}

fn text_of(file: &mut std::fs::File) -> Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    const MAX: u64 = 64 << 10;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).context("read what was said")?;
    file.take(MAX).read_to_end(&mut bytes).context("read what was said")?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(probe: &Probe) -> String {
        format!("{:#}", attempt(probe).unwrap_err())
    }

    #[test]
    fn commands_pass_by_their_exit_status_and_say_why_not() {
        let command =
            |words: &[&str]| Probe::Command { argv: words.iter().map(|w| (*w).to_owned()).collect() };
        attempt(&command(&["true"])).unwrap();
        let why = fails(&command(&["sh", "-c", "echo first; echo 'no licence' >&2; exit 3"]));
        assert!(why.ends_with("exit status: 3: no licence"), "{why}");
        assert!(fails(&command(&["/nowhere/x"])).starts_with("start `/nowhere/x`"));
        assert!(fails(&command(&[])).contains("empty"));
    }

    #[test]
    fn a_check_that_hangs_holds_up_nothing() {
        let check = |name: &str, words: &[&str]| HealthCheck {
            name: name.into(),
            deadline_s: 1,
            probe: Probe::Command { argv: words.iter().map(|w| (*w).to_owned()).collect() },
        };
        let all = [check("hangs", &["sleep", "60"]), check("passes", &["true"])];
        let mut attempts = Attempts::default();
        let first = attempts.all(all.iter(), Duration::from_secs(5));
        assert!(format!("{:#}", first[0].1.as_ref().unwrap_err()).starts_with("it hangs: "));
        assert!(first[1].1.is_ok(), "{first:?}");
        let begun = Instant::now();
        let second = attempts.all(all.iter().take(1), HANGS);
        assert!(format!("{:#}", second[0].1.as_ref().unwrap_err()).contains("has not ended yet"));
        assert!(begun.elapsed() < HANGS, "nobody waits for it again");
    }

    #[test]
    fn ports_and_disks_are_looked_at() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        attempt(&Probe::Port { port }).unwrap();
        drop(listener);
        assert!(fails(&Probe::Port { port }).contains("connect to 127.0.0.1"));
        attempt(&Probe::Disk { path: "/".into(), min_free_percent: 0 }).unwrap();
        assert!(fails(&Probe::Disk { path: "/".into(), min_free_percent: 101 }).contains("must have 101 %"));
    }
}
