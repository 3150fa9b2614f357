//! The QEMU process of a machine, told apart from any later process with the same number by its start time.
//!
//! Follows proc_pid_stat(5).

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process number.
    pub pid: i32,
    /// Start time in clock ticks since the host's boot.
    pub start_ticks: u64,
}

impl Process {
    /// Notes the identity of a process that runs now.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn observe(pid: i32) -> Result<Self> {
        let (_, start_ticks) = stat(pid).with_context(|| format!("observe process {pid}: it has ended"))?;
        Ok(Self { pid, start_ticks })
    }

    /// Whether it still runs; a zombie does not.
    pub fn alive(self) -> bool {
        matches!(stat(self.pid), Some((state, start)) if start == self.start_ticks && !matches!(state, 'Z' | 'X'))
    }

    /// Sends a signal, if it still runs.
    ///
    /// # Errors
    /// If the signal may not be sent.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if self.alive() {
            kill(Pid::from_raw(self.pid), signal)
                .with_context(|| format!("send {signal} to QEMU (process {})", self.pid))?;
        }
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// If it still runs after `patience`.
    pub fn wait_end(self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        while self.alive() {
            if Instant::now() > deadline {
                anyhow::bail!("QEMU (process {}) still runs after {} s", self.pid, patience.as_secs());
            }
            std::thread::sleep(crate::vm::POLL);
        }
        Ok(())
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The program's name stands in parentheses and may hold blanks and parentheses itself.
fn parse_stat(text: &str) -> Option<(char, u64)> {
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_survives_odd_program_names() {
        let line = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(parse_stat(line), Some(('S', 777)));
        assert_eq!(parse_stat("42 (x"), None);
    }

    #[test]
    fn a_reused_number_is_another_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let this = Process::observe(own).unwrap();
        assert!(this.alive());
        assert!(!Process { start_ticks: this.start_ticks + 1, ..this }.alive());
    }
}
