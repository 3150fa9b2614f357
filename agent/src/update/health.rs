//! Attempts the health checks that the profile declares. Every check ends within a bounded time; what its result leads to
//! is decided elsewhere.

use crate::io::tool::Tool;
use anyhow::{Context, Result, bail, ensure};
use formats::device::Probe;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// How long a connection or an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a command may take, in [`POLL`]s.
const COMMAND_POLLS: u32 = 300;
const POLL: Duration = Duration::from_millis(100);

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
