//! Every console of the machine at once: what is said appears on all, and a line typed on any is taken. Keeps the log.

use anyhow::{Context, Result, bail};
use init::kernel::boot_ms;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

/// Least time between two looks of a line of progress, ms: a serial line at 9600 baud keeps up.
const PROGRESS_MS: u64 = 1000;

/// The consoles.
pub struct Console {
    files: Vec<File>,
    log: String,
    shown_ms: u64,
    open_line: bool,
}

impl Console {
    /// Opens all that the kernel names as consoles.
    pub fn open() -> Self {
        let names = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_else(|_| "console".into());
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(nix::libc::O_NOCTTY);
            options.open(format!("/dev/{name}")).ok()
        };
        Self {
            files: names.split_whitespace().filter_map(open).collect(),
            log: String::new(),
            shown_ms: 0,
            open_line: false,
        }
    }

    /// A console of one file.
    #[cfg(test)]
    pub(crate) fn of(file: File) -> Self {
        Self { files: vec![file], log: String::new(), shown_ms: 0, open_line: false }
    }

    /// What was said so far, with seconds since the start.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Says lines on all consoles and in the log.
    pub fn say(&mut self, text: &str) {
        let lead = if std::mem::take(&mut self.open_line) { "\r\x1b[K" } else { "" };
        self.put(&format!("{lead}{text}\n"));
        let ms = boot_ms();
        for line in text.lines() {
            self.log.push_str(&format!("[{:5}.{:01}] {line}\r\n", ms / 1000, ms % 1000 / 100));
        }
    }

    /// Shows a line that the next one takes the place of; not in the log.
    pub fn progress(&mut self, text: &str, last: bool) {
        let now = boot_ms();
        if last || now >= self.shown_ms + PROGRESS_MS {
            self.shown_ms = now;
            self.open_line = true;
            self.put(&format!("\r\x1b[K{text}"));
        }
    }

    fn put(&mut self, text: &str) {
        // A console that is gone has no other place to say so.
        self.files.retain_mut(|file| file.write_all(text.as_bytes()).is_ok());
    }

    /// Asks, and gives the first line that comes on any console, without blanks at its ends.
    ///
    /// # Errors
    /// If there is no console to answer on.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        self.put(&format!("{question} "));
        let mut lines = vec![Vec::new(); self.files.len()];
        loop {
            let mut ready: Vec<PollFd<'_>> =
                self.files.iter().map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN)).collect();
            if ready.is_empty() {
                bail!("no console to answer on: put a site.yaml on the stick");
            }
            poll(&mut ready, PollTimeout::NONE).context("wait for an answer")?;
            let has: Vec<bool> =
                ready.iter().map(|fd| fd.revents().is_some_and(|events| !events.is_empty())).collect();
            for (n, _) in has.iter().enumerate().filter(|(_, has)| **has) {
                let mut bytes = [0; 256];
                let count = self.files[n].read(&mut bytes).unwrap_or(0);
                if count == 0 {
                    self.files.remove(n);
                    lines.remove(n);
                    break;
                }
                lines[n].extend_from_slice(&bytes[..count]);
                if let Some(end) = lines[n].iter().position(|byte| *byte == b'\n' || *byte == b'\r') {
                    let answer = String::from_utf8_lossy(&lines[n][..end]).trim().to_owned();
                    self.log.push_str(&format!("{question} {answer}\r\n"));
                    return Ok(answer);
                }
            }
        }
    }
}

/// Counts bytes of a step and says how it goes.
pub struct Meter {
    what: String,
    total: u64,
    began_ms: u64,
}

impl Meter {
    /// Begins a step of `total` bytes.
    pub fn new(what: &str, total: u64) -> Self {
        Self { what: what.to_owned(), total, began_ms: boot_ms() }
    }

    /// One line: share, bytes, rate, time left.
    pub fn line(&self, done: u64) -> String {
        let ms = (boot_ms() - self.began_ms).max(1);
        let rate = done * 1000 / ms;
        let left = (self.total - done.min(self.total)).checked_div(rate).unwrap_or(0);
        format!(
            "  {:22} {:3} %  {} of {} MiB  {:.1} MiB/s  {}:{:02} left",
            self.what,
            done * 100 / self.total.max(1),
            done >> 20,
            self.total >> 20,
            rate as f64 / f64::from(1 << 20),
            left / 60,
            left % 60
        )
    }

    /// What it came to.
    pub fn end(&self) -> String {
        let ms = (boot_ms() - self.began_ms).max(1);
        let rate = self.total as f64 / 1048.576 / ms as f64;
        format!(
            "  {:22} done  {} MiB in {:.1} s ({rate:.1} MiB/s)",
            self.what,
            self.total >> 20,
            ms as f64 / 1000.0
        )
    }
}
