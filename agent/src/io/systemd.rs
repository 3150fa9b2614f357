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
    /// Units whose start jobs are not done, while it is `starting`.
    pub jobs: Vec<String>,
    /// Whether systemd feeds the hardware watchdog.
    pub feeds_watchdog: bool,
}

/// Most units that are listed.
const UNITS_MAX: usize = 64;

/// Asks systemd. Starts one process, or two if units failed.
///
/// # Errors
/// If it does not answer.
pub fn view() -> Result<SystemView> {
    let text = Tool::Systemctl
        .run(&["show", "--property=SystemState,NFailedUnits,RuntimeWatchdogUSec"])?
        .success()?;
    let (mut view, failed) = parse(&text).context("systemctl show: no SystemState")?;
    let list =
        |args: &[&str]| Tool::Systemctl.run(&[args, &["--plain", "--no-legend", "--no-pager"]].concat());
    if failed > 0 {
        view.failed = names(&list(&["list-units", "--failed"])?.success()?, 0);
    }
    if view.state == "starting" {
        view.jobs = running_jobs(&list(&["list-jobs"])?.success()?);
    }
    Ok(view)
}

fn parse(text: &str) -> Option<(SystemView, u32)> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let feeds_watchdog = value("RuntimeWatchdogUSec").is_some_and(|time| time != "0" && time != "infinity");
    let view =
        SystemView { state: value("SystemState")?.to_owned(), feeds_watchdog, ..SystemView::default() };
    Some((view, value("NFailedUnits").and_then(|n| n.parse().ok()).unwrap_or(0)))
}

/// The word at a place of each line.
fn names(list: &str, at: usize) -> Vec<String> {
    let word = |line: &str| line.split_ascii_whitespace().nth(at).map(str::to_owned);
    list.lines().filter_map(word).take(UNITS_MAX).collect()
}

/// Units of the jobs that run; the others only wait for those. Lines are number, unit, kind, state.
fn running_jobs(list: &str) -> Vec<String> {
    let running: Vec<&str> = list.lines().filter(|line| line.trim_end().ends_with(" running")).collect();
    names(&running.join("\n"), 1)
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
        assert_eq!(names(list, 0), ["ssh.service", "x.mount"]);
    }

    #[test]
    fn jobs_that_only_wait_are_left_out() {
        let list = "1 multi-user.target start waiting\n52 wait-online.service start running\n";
        assert_eq!(running_jobs(list), ["wait-online.service"]);
    }
}
