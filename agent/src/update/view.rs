//! The update engine as people see it: status, findings, one sentence of why. Pure.

use crate::update::state::{Ended, How, Measured, Phase, Verdict};
use crate::update::step::State;
use formats::status::{Finding, Severity, UpdateStatus};

/// Shorter than this a rate says nothing, ms.
const RATE_MIN_MS: u64 = 1000;

/// Everything that the agent's status shows of updates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// For the status.
    pub status: UpdateStatus,
    /// What an operator should know.
    pub findings: Vec<Finding>,
    /// Why it is so.
    pub because: Vec<String>,
}

/// Looks at the state.
pub fn of(state: &State) -> View {
    let status = status(state);
    let mut because = vec![match &status.last {
        Some(last) => format!("Updates: {}. {last}", status.text),
        None => format!("Updates: {}.", status.text),
    }];
    because.extend(state.table(state.live.clock.1).words(rest(state, &status)));
    View { findings: findings(state), because, status }
}

/// What is left to fetch, from where, and how fast it comes.
fn rest<'s>(state: &'s State, status: &UpdateStatus) -> Option<(u64, &'s str, u64)> {
    let Phase::Fetching(attempt) = &state.memory.phase else { return None };
    let done = if status.part.as_deref() == Some("fetch") { status.done_bytes } else { 0 };
    Some((attempt.plan.fetch_bytes().saturating_sub(done), &attempt.source, status.rate_bytes))
}

fn rate(measured: &Measured) -> u64 {
    let ms = measured.at_ms.saturating_sub(measured.since_ms);
    let bytes = measured.now.done.saturating_sub(measured.since_done);
    if ms < RATE_MIN_MS { 0 } else { bytes * 1000 / ms }
}

fn last(ended: &Ended) -> String {
    let how = match ended.how {
        How::Committed => "was committed",
        How::RolledBack => "was rolled back",
        How::GivenUp => "was given up",
    };
    format!("Version {} {how}: {}.", ended.version, ended.why)
}

fn status(state: &State) -> UpdateStatus {
    let (phase, text, release) = phase(state);
    let measured = state.live.measured;
    let rate_bytes = measured.as_ref().map_or(0, rate);
    let now = measured.map(|measured| measured.now).unwrap_or_default();
    let left = now.total.saturating_sub(now.done);
    let facts = state.facts.as_ref();
    UpdateStatus {
        phase: phase.into(),
        text,
        version: release.as_ref().map(|(version, _)| version.clone()),
        roothash: release.map(|(_, roothash)| roothash),
        source: match &state.memory.phase {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => Some(attempt.source.clone()),
            Phase::Idle
            | Phase::Trial { .. }
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => facts.and_then(|facts| facts.source.clone()),
        },
        part: measured.map(|measured| measured.now.part.to_owned()),
        done_bytes: now.done,
        total_bytes: now.total,
        rate_bytes,
        eta_s: left.checked_div(rate_bytes),
        fetched_bytes: state.live.fetched,
        waiting: waiting(state),
        accepted: state.memory.accepted.map(|floor| (floor.root_version, floor.sequence)),
        last: state.memory.last.as_ref().map(last),
        cost: state.memory.phase.cost().or(state.memory.last.as_ref().and_then(|last| last.cost)),
        can_roll_back: facts.is_some_and(|facts| facts.other.is_some()),
    }
}

type Named = Option<(String, formats::hex::Digest)>;

fn phase(state: &State) -> (&'static str, String, Named) {
    let named = |release: &crate::update::state::Release| Some((release.version.clone(), release.roothash));
    let (word, text, release) = match &state.memory.phase {
        Phase::Idle => ("idle", "nothing is under way".to_owned(), None),
        Phase::Fetching(attempt) => {
            let release = attempt.plan.release();
            (
                "fetching",
                format!("version {} is being fetched from {}", release.version, attempt.source),
                named(&release),
            )
        }
        Phase::Installing(attempt) => {
            let release = attempt.plan.release();
            (
                "installing",
                format!("version {} is being written to the other slot", release.version),
                named(&release),
            )
        }
        Phase::Trial { release, .. } if state.runs(release) => {
            ("trial", format!("version {} runs on trial", release.version), named(release))
        }
        Phase::Trial { release, .. } => {
            ("trial", format!("version {} is to be started on trial", release.version), named(release))
        }
        Phase::Committing { release, .. } => (
            "committing",
            format!("version {} is healthy and becomes permanent", release.version),
            named(release),
        ),
        Phase::Leaving { release, why, .. } => {
            ("leaving", format!("version {} is being left: {why}", release.version), named(release))
        }
        Phase::Returning { to, .. } => {
            ("returning", format!("going back to version {}", to.version), named(to))
        }
    };
    let text = state.live.stuck.as_ref().map_or(text.clone(), |why| format!("{text}; it waits: {why}"));
    (word, text, release)
}

fn waiting(state: &State) -> Vec<String> {
    let waiting = state.live.checks.iter().filter_map(|(name, verdict)| match verdict {
        Verdict::Untried => Some(format!("{name}: not attempted yet")),
        Verdict::Waiting(why) => Some(format!("{name}: {why}")),
        Verdict::Passed => None,
    });
    waiting.collect()
}

fn findings(state: &State) -> Vec<Finding> {
    let mut all = Vec::new();
    let mut add = |severity, code: &str, message: String, next: &str| {
        all.push(Finding { severity, code: code.into(), message, next: next.into() });
    };
    if let Some(ended) = &state.memory.last {
        match ended.how {
            How::Committed => {}
            How::RolledBack | How::GivenUp => add(
                Severity::Warning,
                "update-failed",
                last(ended),
                "put right what it says and publish another version, or insist with `farhold-agent update --now`",
            ),
        }
    }
    if let Some(why) = &state.live.stuck {
        add(
            Severity::Warning,
            "update-waits",
            format!("an update does not go on: {why}"),
            "it is tried again by itself; see `farhold-agent status` for how far it is",
        );
    }
    if let Some((theirs, ours)) = &state.live.boot_loader {
        add(
            Severity::Info,
            "boot-loader-differs",
            format!(
                "the release has another boot loader ({}) than this device ({}), which keeps its own: none is ever \
                 replaced by an update",
                theirs.short(),
                ours.short()
            ),
            "nothing; install anew if the boot loader itself must change",
        );
    }
    if let Some(Err(why)) = state.facts.as_ref().map(|facts| &facts.anchor) {
        add(
            Severity::Warning,
            "update-untrusted",
            format!("this image accepts no updates: {why}"),
            "build the image with `--keys`",
        );
    }
    all
}
