//! `farhold fleet`: which device runs what, from the reports that have come.

use crate::fleet::{self, Device};
use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

/// Says which device runs what and how updates go, from the reports that `farhold serve` collected.
#[derive(clap::Args)]
pub struct FleetCmd {
    /// Folder of reports: `reports` in the repository that is served, unless `serve --reports` said otherwise.
    reports: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl FleetCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If reports cannot be read.
    pub fn run(&self) -> Result<ExitCode> {
        let devices = fleet::devices(&self.reports)?;
        let text = if self.json {
            format!("{}\n", serde_json::to_string_pretty(&devices).context("print the fleet")?)
        } else {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            table(&devices, now)
        };
        std::io::stdout().write_all(text.as_bytes()).context("write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}

fn ago(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86400),
    }
}

fn table(devices: &[Device], now_s: u64) -> String {
    let mut out = String::new();
    let row = |out: &mut String, cells: [&str; 6]| {
        let [site, node, version, phase, heard, text] = cells;
        let line = format!("{site:16} {node:20} {version:14} {phase:11} {heard:>8}  {text}");
        out.push_str(line.trim_end());
        out.push('\n');
    };
    row(&mut out, ["SITE", "NODE", "VERSION", "UPDATE", "HEARD", ""]);
    for device in devices {
        let heard = ago(now_s.saturating_sub(device.heard_s));
        let site = if device.site.is_empty() { "-" } else { &device.site };
        let node = if device.node.is_empty() { &device.device } else { &device.node };
        let text = match device.findings {
            0 => device.text.clone(),
            n => format!("{} ({n} to look at)", device.text),
        };
        row(&mut out, [site, node, &device.version, &device.phase, &heard, &text]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_where_what_and_when() {
        let device = Device {
            node: "node-1".into(),
            version: "1.2.0".into(),
            phase: "fetching".into(),
            text: "40 %".into(),
            findings: 2,
            heard_s: 1000,
            ..Device::default()
        };
        let text = table(&[device], 1000 + 3 * 3600);
        let row = text.lines().nth(1).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(
            words,
            ["-", "node-1", "1.2.0", "fetching", "3", "h", "40", "%", "(2", "to", "look", "at)"]
        );
    }
}
