//! External programs. A failure carries the command line, how it ended, and the last lines that it printed.

use anyhow::{Context, Result};
use std::process::{Command, Stdio};

/// Programs of the verified root that the agent starts.
#[derive(Clone, Copy, Debug)]
pub enum Tool {
    /// Makes the state file system.
    Mke2fs,
    /// Checks it.
    E2fsck,
    /// Grows it.
    Resize2fs,
    /// Makes SSH host keys.
    SshKeygen,
    /// Asks systemd.
    Systemctl,
}

/// Most characters of the beginning, and of the end, of a program's output that an error carries.
const OUTPUT_MAX: usize = 200;

impl Tool {
    const fn path(self) -> &'static str {
        match self {
            Self::Mke2fs => "/usr/sbin/mke2fs",
            Self::E2fsck => "/usr/sbin/e2fsck",
            Self::Resize2fs => "/usr/sbin/resize2fs",
            Self::SshKeygen => "/usr/bin/ssh-keygen",
            Self::Systemctl => "/usr/bin/systemctl",
        }
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn run(self, args: &[&str]) -> Result<Outcome> {
        let command = format!("{} {}", self.path(), args.join(" "));
        let output = Command::new(self.path())
            .args(args)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start `{command}`"))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Outcome { command, status: output.status, text: String::from_utf8_lossy(&text).into_owned() })
    }
}

/// How a program ended.
pub struct Outcome {
    command: String,
    status: std::process::ExitStatus,
    /// What it printed.
    pub text: String,
}

impl Outcome {
    /// Its exit code; `None` after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Its output if it ended with 0.
    ///
    /// # Errors
    /// If it did not.
    pub fn success(self) -> Result<String> {
        if self.status.success() { Ok(self.text) } else { Err(self.failure()) }
    }

    /// The failure as an error.
    pub fn failure(&self) -> anyhow::Error {
        let lines: Vec<&str> = self.text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let text = shortened(&lines.join(" | "));
        anyhow::anyhow!("`{}` ended with {}: {text}", self.command, self.status)
    }
}

/// Some programs say first what is wrong, some last.
fn shortened(text: &str) -> String {
    let count = text.chars().count();
    if count <= 2 * OUTPUT_MAX {
        return text.to_owned();
    }
    let start: String = text.chars().take(OUTPUT_MAX).collect();
    let end: String = text.chars().skip(count - OUTPUT_MAX).collect();
    format!("{start} … {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_output_keeps_both_ends() {
        assert_eq!(shortened("short"), "short");
        let long = shortened(&format!("first{}last", "é".repeat(1000)));
        assert!(long.starts_with("first") && long.ends_with("last") && long.chars().count() == 403);
    }
}
