//! systemd's view of the system, asked with `systemctl`.

use crate::io::tool::Tool;
use anyhow::{Context, Result};

/// What systemd says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemView {
    /// `running`, `degraded`, `starting`…
    pub state: String,
    /// Units that failed.
    pub failed: Vec<String>,
    /// Whether systemd feeds the hardware watchdog.
    pub feeds_watchdog: bool,
}

/// Most failed units that are listed.
const FAILED_MAX: usize = 64;

/// Asks systemd. Starts one process, or two if units failed.
///
/// # Errors
/// If it does not answer.
pub fn view() -> Result<SystemView> {
    let text = Tool::Systemctl
        .run(&["show", "--property=SystemState,NFailedUnits,RuntimeWatchdogUSec"])?
        .success()?;
    let (mut view, failed) = parse(&text).context("systemctl show: no SystemState")?;
    if failed > 0 {
        let list = Tool::Systemctl
            .run(&["list-units", "--failed", "--plain", "--no-legend", "--no-pager"])?
            .success()?;
        view.failed = unit_names(&list);
    }
    Ok(view)
}

fn parse(text: &str) -> Option<(SystemView, u32)> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let feeds_watchdog = value("RuntimeWatchdogUSec").is_some_and(|time| time != "0" && time != "infinity");
    let view = SystemView { state: value("SystemState")?.to_owned(), failed: Vec::new(), feeds_watchdog };
    Some((view, value("NFailedUnits").and_then(|n| n.parse().ok()).unwrap_or(0)))
}

fn unit_names(list: &str) -> Vec<String> {
    let first = |line: &str| line.split_ascii_whitespace().next().map(str::to_owned);
    list.lines().filter_map(first).take(FAILED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_systemctl_prints() {
        let (view, failed) =
            parse("NFailedUnits=2\nSystemState=degraded\nRuntimeWatchdogUSec=5min\n").unwrap();
        assert_eq!((view.state.as_str(), failed, view.feeds_watchdog), ("degraded", 2, true));
        assert!(!parse("SystemState=running\nRuntimeWatchdogUSec=0\n").unwrap().0.feeds_watchdog);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn takes_the_first_word_of_each_line() {
        let list =
            "ssh.service loaded failed failed OpenBSD Secure Shell server\nx.mount loaded failed failed /x\n";
        assert_eq!(unit_names(list), ["ssh.service", "x.mount"]);
    }
}
