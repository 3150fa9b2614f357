//! `farhold serve` beside a test, and what went over its line.

use crate::programs::Programs;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

/// Address of the host in the guest's user-mode network (QEMU's documentation, "Network emulation").
pub const HOST_IN_GUEST: &str = "10.0.2.2";

/// A running server; ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
    log: PathBuf,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of all bodies.
    pub bytes: u64,
    /// Of those, bytes that had been sent before.
    pub again: u64,
}

impl Server {
    /// Serves a repository on a free loopback port at no more than `rate_kbit`.
    ///
    /// # Errors
    /// If `farhold serve` does not start.
    pub fn start(
        programs: &Programs,
        repository: &Path,
        rate_kbit: Option<u64>,
        log: PathBuf,
    ) -> Result<Self> {
        let mut command = programs.farhold();
        command.arg("serve").arg(repository).args(["--http", "127.0.0.1:0", "--log"]);
        if let Some(rate) = rate_kbit {
            command.arg("--rate-kbit").arg(rate.to_string());
        }
        let errors = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().context("start farhold serve")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.as_mut() {
            BufReader::new(out).read_line(&mut line).context("hear from farhold serve")?;
        }
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
        let server = Self { child, port: port.unwrap_or(0), log };
        ensure!(server.port != 0, "farhold serve says `{line}`: {}", server.said()?);
        Ok(server)
    }

    /// Its address as the guest sees it.
    pub fn url(&self) -> String {
        format!("http://{HOST_IN_GUEST}:{}", self.port)
    }

    fn said(&self) -> Result<String> {
        std::fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// Bytes of bodies sent so far, and how many of them more than once.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn sent(&self) -> Result<Sent> {
        Ok(count(&self.said()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which was seen by whoever asked it for something.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Counts a log of `METHOD PATH RANGE STATUS BYTES`, where the range may be empty and starts where the body did.
fn count(log: &str) -> Sent {
    let mut seen: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    let mut sent = Sent::default();
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, path, range, _, bytes] = words[..] else { continue };
        let Ok(bytes) = bytes.parse::<u64>() else { continue };
        let start = range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse().ok());
        let (start, spans) = (start.unwrap_or(0u64), seen.entry(path).or_default());
        sent.bytes += bytes;
        sent.again += covered(spans, start, start + bytes);
        spans.push((start, start + bytes));
    }
    sent
}

/// How many bytes of `start..end` lie in one of the spans.
fn covered(spans: &[(u64, u64)], start: u64, end: u64) -> u64 {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable();
    let (mut at, mut total) = (start, 0);
    for (from, to) in sorted {
        let (from, to) = (from.max(at), to.min(end));
        if from < to {
            total += to - from;
            at = to;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_sent_twice_are_counted_once_as_such() {
        let log = "GET /objects/a bytes=0-99 206 100\nGET /announce  200 10\nfarhold: a connection ended: reset\n\
                   GET /objects/a bytes=60- 206 80\nGET /objects/a bytes=0-9 206 10\nGET /announce  304 0\n";
        assert_eq!(count(log), Sent { bytes: 200, again: 50 });
    }
}
