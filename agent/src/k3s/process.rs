//! The process of `k3s server`: start, look, end; also one that an earlier run of the agent left behind.
//!
//! Only the process itself is told to end: pods go on while the server restarts. It does not decide when.

use super::step::{End, Process};
use crate::durable;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A process by number and start, which together never come again in a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id {
    pid: i32,
    started: u64,
}

/// The server's process.
pub struct Server {
    note: PathBuf,
    child: Option<Child>,
    other: Option<Id>,
}

impl Server {
    /// Looks whether an earlier run left one behind; `run` is a folder that is gone after a boot.
    pub fn find(run: &Path) -> Self {
        let note = run.join("process");
        let told = std::fs::read_to_string(&note).unwrap_or_default();
        let other = told.split_once(' ').and_then(|(pid, started)| {
            Some(Id { pid: pid.parse().ok()?, started: started.trim().parse().ok()? })
        });
        Self { note, child: None, other: other.filter(|id| started(id.pid) == Some(id.started)) }
    }

    /// Whether there is one that this run did not start.
    pub fn is_leftover(&self) -> bool {
        self.other.is_some()
    }

    /// Starts it, its words going where the agent's go.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(&mut self, program: &[String], args: &[&str]) -> Result<()> {
        let (name, first) = program.split_first().context("no program")?;
        let mut command = Command::new(name);
        command.args(first).args(args).stdin(Stdio::null()).process_group(0);
        // The service manager hears of readiness from the agent.
        command.env_remove("NOTIFY_SOCKET");
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        let pid = i32::try_from(child.id()).context("a process number")?;
        self.child = Some(child);
        let note = format!("{pid} {}\n", started(pid).unwrap_or(0));
        durable::write(&self.note, note.as_bytes(), 0o600)
    }

    /// What it does now.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn look(&mut self) -> Result<Process> {
        if let Some(child) = &mut self.child {
            let Some(status) = child.try_wait().context("look at k3s")? else { return Ok(Process::Running) };
            self.child = None;
            let by_signal = status.signal().map(End::Signal);
            return Ok(Process::Ended(by_signal.unwrap_or(End::Status(status.code().unwrap_or(-1)))));
        }
        let Some(other) = self.other else { return Ok(Process::Absent) };
        if started(other.pid) == Some(other.started) {
            return Ok(Process::Running);
        }
        self.other = None;
        Ok(Process::Ended(End::Unseen))
    }

    /// Sends it a signal; one that is gone is none the worse.
    ///
    /// # Errors
    /// If the kernel does not allow it.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let own = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        let Some(pid) = own.or(self.other.map(|id| id.pid)) else { return Ok(()) };
        match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to k3s, process {pid}")),
        }
    }
}

/// When a process began, in the kernel's ticks (proc_pid_stat(5), field 22); nothing if it is gone or only waits to be reaped.
fn started(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    fields.nth(18)?.parse().ok().filter(|_| state != "Z" && state != "X")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn wait(server: &mut Server) -> Process {
        loop {
            match server.look().unwrap() {
                Process::Running => std::thread::sleep(Duration::from_millis(5)),
                seen @ (Process::Absent | Process::Ended(_)) => return seen,
            }
        }
    }

    fn shell(script: &str) -> [String; 3] {
        ["sh", "-c", script].map(str::to_owned)
    }

    #[test]
    fn the_way_it_ended_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Server::find(folder.path());
        assert_eq!(server.look().unwrap(), Process::Absent);
        server.start(&shell("exit 3"), &[]).unwrap();
        assert_eq!(wait(&mut server), Process::Ended(End::Status(3)));
        server.start(&shell("exec sleep 1000"), &[]).unwrap();
        server.signal(Signal::SIGKILL).unwrap();
        assert_eq!(wait(&mut server), Process::Ended(End::Signal(9)));
        assert_eq!(server.look().unwrap(), Process::Absent);
        server.signal(Signal::SIGTERM).unwrap();
        let error = server.start(&["/nowhere/k3s".to_owned()], &[]).unwrap_err().to_string();
        assert_eq!(error, "start /nowhere/k3s");
    }

    #[test]
    fn a_leftover_is_found_and_ended_and_a_stranger_with_its_number_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Server::find(folder.path());
        first.start(&shell("exec sleep 1000"), &[]).unwrap();
        let mut second = Server::find(folder.path());
        assert!(second.is_leftover());
        assert_eq!(second.look().unwrap(), Process::Running);
        second.signal(Signal::SIGTERM).unwrap();
        assert_eq!(wait(&mut first), Process::Ended(End::Signal(15)));
        assert_eq!(second.look().unwrap(), Process::Ended(End::Unseen));
        assert!(!Server::find(folder.path()).is_leftover());
        let own = std::process::id();
        std::fs::write(folder.path().join("process"), format!("{own} 1\n")).unwrap();
        assert!(!Server::find(folder.path()).is_leftover(), "another process with this number");
    }
}
