//! What an operator should know, from the agent's state. Pure. Every finding says what is so and what to do next; codes
//! never change their meaning.

use crate::step::{Room, State};
use crate::store::Condition;
use formats::boot::StateFacts;
use formats::status::{Finding, Severity};

/// Less free room than this share of `/var` is told.
const ROOM_LOW_PERCENT: u64 = 5;

fn finding(severity: Severity, code: &str, message: String, next: &str) -> Finding {
    Finding { severity, code: code.into(), message, next: next.into() }
}

/// All findings, worst first, in a fixed order within a severity.
pub fn of(state: &State) -> Vec<Finding> {
    let mut all = Vec::new();
    boot(state, &mut all);
    partition(state, &mut all);
    store(state, &mut all);
    system(state, &mut all);
    all.extend(state.update.iter().flat_map(|view| view.findings.clone()));
    all.sort_by_key(|finding| finding.severity);
    all
}

fn boot(state: &State, all: &mut Vec<Finding>) {
    let facts = &state.facts;
    if let Some(fallback) = &facts.fallback {
        all.push(finding(
            Severity::Error,
            "boot-fallback",
            format!("the system that should have started could not: {}", fallback.why),
            "install the release again, or another one; until then this slot is the only one that works",
        ));
    }
    if facts.observed.is_none() && !facts.boot_id.is_empty() {
        all.push(finding(
            Severity::Error,
            "root-unverified",
            "the root file system is not a Farhold slot on dm-verity".into(),
            "boot an image that `farhold build` made; updates are refused here",
        ));
    }
    if let (Some(observed), Some(desired)) = (&facts.observed, &state.desired)
        && observed.roothash != desired.roothash
        && !on_trial(state)
    {
        all.push(finding(
            Severity::Warning,
            "release-differs",
            format!(
                "version {} runs, version {} is desired by {}",
                observed.version, desired.version, desired.source
            ),
            "see `farhold-agent why` for what happened last",
        ));
    }
    for unread in &facts.unread {
        all.push(finding(
            Severity::Warning,
            "facts-missing",
            unread.clone(),
            "restart; if it stays so, the image and its init do not fit each other",
        ));
    }
    for note in facts.boot.iter().flat_map(|boot| &boot.notes) {
        let next = "see `journalctl -k -t farhold-init` for the moment it happened";
        all.push(finding(Severity::Warning, "boot-note", note.clone(), next));
    }
    for note in facts.early.iter().flat_map(|early| &early.notes) {
        let next = "see `journalctl -k -g farhold` for the moment it happened";
        all.push(finding(Severity::Warning, "early-note", note.clone(), next));
    }
}

/// A release on trial is meant to run, though it is not the desired one yet.
fn on_trial(state: &State) -> bool {
    let phase = state.update.as_ref().map_or("", |view| view.status.phase.as_str());
    matches!(phase, "trial" | "committing")
}

fn partition(state: &State, all: &mut Vec<Finding>) {
    match state.facts.early.as_ref().map(|early| &early.state) {
        Some(StateFacts::Ephemeral { why }) => all.push(finding(
            Severity::Error,
            "state-ephemeral",
            format!("/var is in memory, nothing of this boot is kept: {why}"),
            "nothing was made or changed on the state partition; check the disk, then restart",
        )),
        Some(StateFacts::ReadOnly { device, why }) => all.push(finding(
            Severity::Error,
            "state-read-only",
            format!("/var shows {device}, but changes are in memory and lost at the next boot: {why}"),
            "copy what matters away, then check the disk; `e2fsck -f` on it from a rescue system repairs a file system",
        )),
        Some(StateFacts::Persistent { device, repaired: true, .. }) => all.push(finding(
            Severity::Info,
            "state-repaired",
            format!("the file system on {device} was repaired at this boot"),
            "nothing, if it was a power cut; the disk may be failing if it comes again",
        )),
        Some(StateFacts::Persistent { repaired: false, .. }) | None => {}
    }
    if let Some(room) = &state.look.room {
        let Room { bytes, free_bytes, free_files } = *room;
        let full = free_bytes == 0 || free_files == Some(0);
        let low = free_bytes < bytes / 100 * ROOM_LOW_PERCENT;
        if full || low {
            let files = free_files.map_or(String::new(), |files| format!(", {files} more files"));
            all.push(finding(
                if full { Severity::Error } else { Severity::Warning },
                if full { "state-full" } else { "state-low" },
                format!("/var has room for {} of {} MiB{files}", free_bytes >> 20, bytes >> 20),
                "remove what is not needed: `du -xh /var | sort -h` shows the largest",
            ));
        }
    }
}

fn store(state: &State, all: &mut Vec<Finding>) {
    let (severity, code, message, next) = match &state.condition {
        Condition::Ready => return store_failure(state, all),
        Condition::Salvaged { aside, rows, why } => (
            Severity::Warning,
            "store-salvaged",
            format!(
                "the agent's database was damaged ({why}): {rows} rows were kept, the file is {}",
                aside.display()
            ),
            "keep the file for support, or remove it; check the disk if it comes again",
        ),
        Condition::Newer { found, known } => (
            Severity::Warning,
            "store-newer",
            format!(
                "the agent's database has schema {found}, this agent knows {known}: it is read, not written"
            ),
            "install the newer release again; nothing of the database is lost",
        ),
        Condition::ReadOnly { why } => (
            Severity::Error,
            "store-read-only",
            format!("the agent's database can only be read: {why}"),
            "check the disk; what the agent decides now is forgotten at the next start",
        ),
        Condition::Full { why } => (
            Severity::Error,
            "store-full",
            format!("the agent's database cannot be written for lack of room: {why}"),
            "make room on /var, then restart the agent: `systemctl restart farhold-agent`",
        ),
        Condition::Unavailable { why } => (
            Severity::Error,
            "store-unavailable",
            format!("the agent's database cannot be opened: {why}"),
            "check /var/lib/farhold; what the agent decides now is forgotten at the next start",
        ),
    };
    all.push(finding(severity, code, message, next));
    store_failure(state, all);
}

fn store_failure(state: &State, all: &mut Vec<Finding>) {
    if let (Some(why), Condition::Ready | Condition::Salvaged { .. }) =
        (&state.store_failure, &state.condition)
    {
        all.push(finding(
            Severity::Error,
            "store-failed",
            format!("the agent cannot write its database: {why}"),
            "make room on /var or check the disk; the agent goes on and tries again",
        ));
    }
}

fn system(state: &State, all: &mut Vec<Finding>) {
    let system = match &state.look.system {
        Ok(system) => system,
        Err(why) => {
            all.push(finding(
                Severity::Warning,
                "system-unknown",
                format!("systemd does not answer: {why}"),
                "see `systemctl status`",
            ));
            return;
        }
    };
    if !system.failed.is_empty() {
        all.push(finding(
            Severity::Warning,
            "units-failed",
            format!("failed: {}", system.failed.join(", ")),
            "see `systemctl status` and `journalctl -u` of the unit",
        ));
    }
    if !system.jobs.is_empty() {
        all.push(finding(
            if state.ready_ms > 0 { Severity::Warning } else { Severity::Info },
            "system-starting",
            format!("systemd still starts: {}", system.jobs.join(", ")),
            "see `systemctl status` and `journalctl -u` of the unit",
        ));
    }
    let armed = state.facts.boot.as_ref().and_then(|boot| boot.watchdog.as_ref());
    if let Some(watchdog) = armed.filter(|_| state.ready_ms > 0 && !system.feeds_watchdog) {
        all.push(finding(
            Severity::Error,
            "watchdog-unfed",
            format!(
                "{} resets the machine after {} s, and systemd does not feed it",
                watchdog.device, watchdog.timeout_s
            ),
            "set RuntimeWatchdogSec= in the image's system.conf.d, or leave `watchdog_s` out of the profile",
        ));
    }
}

/// One sentence for each thing that was decided at this boot.
pub fn because(state: &State) -> Vec<String> {
    let mut because = Vec::new();
    match (&state.facts.observed, &state.facts.boot) {
        (Some(observed), boot) => {
            let trial = boot.as_ref().is_some_and(|boot| boot.trial);
            because.push(format!(
                "Slot {} runs, since its hash tree opens with the roothash of version {} on the signed command line{}.",
                observed.slot,
                observed.version,
                if trial { "; this boot is a trial that systemd-boot counts" } else { "" }
            ));
        }
        (None, _) => {
            because.push("No slot runs: the root is not a device-mapper device that Farhold made.".into())
        }
    }
    because.push(match &state.desired {
        Some(desired) => {
            format!("Version {} is desired; that came from: {}.", desired.version, desired.source)
        }
        None => "No release is desired, because nothing that is recorded here would be kept.".into(),
    });
    because.push(match state.facts.early.as_ref().map(|early| &early.state) {
        Some(StateFacts::Persistent { device, bytes, made, .. }) => {
            let how = if *made {
                "made at this boot, where the builder's marker was"
            } else {
                "found, checked and mounted"
            };
            format!("/var is the file system on {device} ({} MiB), {how}.", bytes >> 20)
        }
        Some(StateFacts::ReadOnly { device, .. }) => {
            format!("/var is {device} under a layer in memory, since it cannot be written.")
        }
        Some(StateFacts::Ephemeral { .. }) => {
            "/var is in memory, since the state partition cannot be used.".into()
        }
        None => "/var was not prepared by Farhold's early stage.".into(),
    });
    because.extend(state.update.iter().flat_map(|view| view.because.clone()));
    because
}
