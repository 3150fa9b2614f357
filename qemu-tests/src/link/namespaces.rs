//! Two network namespaces of an ordinary user, joined by `farhold lab link` on two TAP devices.

use super::pipe::Counts;
use super::run::Both;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// Makes the namespaces, says so, and waits until it is killed.
const SETUP: &str = "set -e; mount -t tmpfs t /run; mkdir /run/netns; ip link set lo up; \
    for n in 1 2; do ip netns add n$n; ip netns exec n$n ip link set lo up; done; echo ready; exec sleep 100000";
/// Hands a device to its namespace; it stays joined to the link.
const HAND_OVER: &str = "set -e; for n in 1 2; do ip link set tap$n netns n$n; \
    ip netns exec n$n ip addr add 10.78.0.$n/24 dev tap$n; \
    ip netns exec n$n ip link set tap$n addrgenmode none; \
    ip netns exec n$n ip link set tap$n up; done";

/// Two namespaces; they end with the link when this is dropped.
pub struct Namespaces {
    holder: Child,
    link: Child,
    _said: BufReader<ChildStderr>,
}

/// Address of the first namespace.
pub const NEAR: &str = "10.78.0.1";
/// Address of the second.
pub const FAR: &str = "10.78.0.2";

impl Namespaces {
    /// Joins two namespaces by a link with these options of `farhold lab link`.
    ///
    /// # Errors
    /// If the host does not let ordinary users have namespaces, or `ip` or `farhold` fails.
    pub fn new(farhold: &Path, options: &[&str]) -> Result<Self> {
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--net", "--kill-child", "sh", "-c", SETUP])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start `unshare` (Debian: util-linux)")?;
        let mut line = String::new();
        if let Some(out) = holder.stdout.take() {
            BufReader::new(out).read_line(&mut line).context("hear from `unshare`")?;
        }
        ensure!(line.trim() == "ready", "no network namespaces here: see what `unshare` or `ip` said above");
        let mut command = inside(&holder, farhold.as_os_str());
        command.args(["lab", "link", "--json", "--tap", "tap1", "tap2"]).args(options);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut link = command.spawn().context("start farhold lab link")?;
        let mut said = BufReader::new(link.stderr.take().context("hear farhold lab link")?);
        line.clear();
        said.read_line(&mut line).context("hear farhold lab link")?;
        let namespaces = Self { holder, link, _said: said };
        ensure!(line.contains("are joined"), "farhold lab link says `{}`", line.trim());
        let handed = inside(&namespaces.holder, "sh".as_ref()).args(["-c", HAND_OVER]).status();
        ensure!(handed.context("start `ip`")?.success(), "the link's ends cannot be handed over");
        Ok(namespaces)
    }

    /// A command in the first namespace or the second.
    pub fn command(&self, number: u8, program: &Path) -> Command {
        let mut command = inside(&self.holder, "ip".as_ref());
        command.args(["netns", "exec", &format!("n{number}")]).arg(program);
        // There is nothing here but the other end.
        command.env("NO_PROXY", "*").env("no_proxy", "*");
        command
    }

    /// Ends the link; gives what became of its packets from the first namespace to the second, and back.
    ///
    /// # Errors
    /// If it ended before.
    pub fn end(mut self) -> Result<Both> {
        kill(Pid::from_raw(i32::try_from(self.link.id())?), Signal::SIGINT).context("end the link")?;
        let out = self.link.stdout.take().context("hear farhold lab link")?;
        let said = std::io::read_to_string(out).context("hear farhold lab link")?;
        let Counted { there, back } =
            serde_json::from_str(&said).with_context(|| format!("farhold lab link says `{said}`"))?;
        Ok([there, back])
    }
}

/// What `farhold lab link --json` says.
#[derive(serde::Deserialize)]
struct Counted {
    there: Counts,
    back: Counts,
}

fn inside(holder: &Child, program: &std::ffi::OsStr) -> Command {
    let mut command = Command::new("nsenter");
    command.args([
        "--target",
        &holder.id().to_string(),
        "--user",
        "--mount",
        "--net",
        "--preserve-credentials",
    ]);
    command.arg(program);
    command
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // They may have ended by themselves.
        for child in [&mut self.link, &mut self.holder] {
            drop(child.kill());
            drop(child.wait());
        }
    }
}
