//! Status and reasons as text for people: one screen, worst first. Pure.

use formats::boot::StateFacts;
use formats::status::{AgentState, EventLine, Finding, Severity, Status, UpdateCost, UpdateStatus, Why};
use std::fmt::Write;

/// Events that fit on a screen.
const EVENTS_SHOWN: usize = 12;
/// Letters of an id that tell boots apart.
const ID_SHOWN: usize = 8;

/// The status.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let stopped = status.findings.iter().any(|finding| finding.code == "agent-not-running");
    let agent = match status.agent {
        _ if stopped => "not running",
        AgentState::Starting => "starting",
        AgentState::Running => "running",
        AgentState::Degraded => "degraded",
    };
    let profile = &status.profile;
    let mut row = |name: &str, text: String| writeln!(out, "{name:<9} {text}");
    let rows = [
        row("node", format!("{}  (machine {})", or_dash(&status.node), or_dash(&status.machine_id))),
        row("agent", format!("{agent}, up {}{}", seconds(status.uptime_ms), ready(status))),
        row(
            "profile",
            format!(
                "{} for {} on {} ({})",
                or_dash(&profile.name),
                or_dash(&profile.product),
                or_dash(&profile.board),
                or_dash(&profile.arch)
            ),
        ),
        row("runs", runs(status)),
        row("desired", desired(status)),
        row("state", state(status.state.as_ref())),
        row("system", system(status)),
        row("update", status.update.as_ref().map_or("-".into(), update)),
        status.ha.as_ref().map_or(Ok(()), |ha| row("pair", ha.text.clone())),
    ];
    debug_assert!(rows.iter().all(Result::is_ok), "writing to a string does not fail");
    out + &findings(&status.findings)
}

fn update(update: &UpdateStatus) -> String {
    let mut text = update.text.clone();
    if update.part.is_some() {
        text.push_str(&format!("\n          {}", progress(update)));
    }
    for check in &update.waiting {
        text.push_str(&format!("\n          waits for {check}"));
    }
    if let Some(last) = &update.last {
        text.push_str(&format!("\n          {last}"));
    }
    if let Some(UpdateCost { slot_bytes, esp_bytes, staged_bytes, peak_rss_bytes }) = update.cost {
        text.push_str(&format!(
            "\n          written: {} KiB to the slot, {} to the ESP, {} to /var; at most {} KiB of memory",
            slot_bytes >> 10,
            esp_bytes >> 10,
            staged_bytes >> 10,
            peak_rss_bytes >> 10
        ));
    }
    text
}

/// How far an update is, in one line.
pub fn progress(update: &UpdateStatus) -> String {
    let UpdateStatus { done_bytes, total_bytes, rate_bytes, .. } = *update;
    let Some(part) = &update.part else { return update.text.clone() };
    let percent = (done_bytes * 100).checked_div(total_bytes).unwrap_or(0);
    let rate = if rate_bytes == 0 { String::new() } else { format!(", {} KiB/s", rate_bytes >> 10) };
    let eta = update.eta_s.map_or(String::new(), |eta| format!(", {} left", seconds(eta * 1000)));
    format!("{part} {} of {} KiB ({percent} %){rate}{eta}", done_bytes >> 10, total_bytes >> 10)
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn seconds(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..120 => format!("{s}.{} s", ms % 1000 / 100),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

fn ready(status: &Status) -> String {
    if status.ready_ms == 0 {
        return String::new();
    }
    let memory = if status.agent_rss_bytes == 0 {
        String::new()
    } else {
        format!(
            ", {}.{} MiB",
            status.agent_rss_bytes >> 20,
            ((status.agent_rss_bytes % (1 << 20)) * 10) >> 20
        )
    };
    format!(", ready after {}{memory}", seconds(status.ready_ms))
}

fn runs(status: &Status) -> String {
    let trial = status.boot.as_ref().is_some_and(|boot| boot.trial);
    status.observed.as_ref().map_or("not a Farhold slot".into(), |o| {
        let trial = if trial { ", on trial" } else { "" };
        format!(
            "version {} in slot {}{trial}, roothash {}, kernel {}",
            o.version,
            o.slot,
            o.roothash.short(),
            o.kernel
        )
    })
}

fn desired(status: &Status) -> String {
    let Some(desired) = &status.desired else { return "-".into() };
    let same = status.observed.as_ref().is_some_and(|o| o.roothash == desired.roothash);
    let verdict = if same { "as it runs" } else { "DIFFERS from what runs" };
    format!("version {} from {}, {verdict}", desired.version, desired.source)
}

fn state(state: Option<&StateFacts>) -> String {
    match state {
        None => "unknown".into(),
        Some(StateFacts::Ephemeral { .. }) => "in memory, NOT KEPT".into(),
        Some(StateFacts::ReadOnly { device, .. }) => format!("{device}, read-only, changes NOT KEPT"),
        Some(StateFacts::Persistent { device, bytes, made, grown_bytes, .. }) => {
            let made = if *made { ", made at this boot" } else { "" };
            let grown = if *grown_bytes > 0 {
                format!(", grown by {} MiB", grown_bytes >> 20)
            } else {
                String::new()
            };
            format!("{device}, {} MiB{made}{grown}", bytes >> 20)
        }
    }
}

fn system(status: &Status) -> String {
    let failed = &status.failed_units;
    if failed.is_empty() {
        status.system.clone()
    } else {
        format!("{}, failed: {}", status.system, failed.join(" "))
    }
}

fn findings(findings: &[Finding]) -> String {
    let line = |finding: &Finding| {
        let mark = match finding.severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warn ",
            Severity::Info => "info ",
        };
        format!("\n{mark} {}: {}\n      next: {}\n", finding.code, finding.message, finding.next)
    };
    if findings.is_empty() {
        "\nNothing needs attention.\n".into()
    } else {
        findings.iter().map(line).collect()
    }
}

/// The reasons.
pub fn why(why: &Why) -> String {
    let because: String = why.because.iter().map(|sentence| format!("{sentence}\n")).collect();
    let events: String = why.events.iter().take(EVENTS_SHOWN).map(event).collect();
    let events = if events.is_empty() {
        String::new()
    } else {
        format!("\nWhat happened last, newest first:\n{events}")
    };
    format!("{because}{}{events}", findings(&why.findings))
}

fn event(event: &EventLine) -> String {
    let id: String = event.boot_id.chars().take(ID_SHOWN).collect();
    format!("  boot {id} +{:<8} {}: {}\n", seconds(event.uptime_ms), event.code, event.text)
}
