//! The life of `k3s server` on this node, purely: what was seen and the time in, the next state and one effect out.
//!
//! k3s needs the datastore: it is started when the local port leads to a primary, and while the port is closed no clock of a
//! failure runs against it. It never decides who is primary.

use serde::Deserialize;

/// Times, in milliseconds.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Times {
    /// A start may take so long with the datastore there: the first one imports images from disk.
    pub start_ms: u64,
    /// A server that was ready may be unready so long with the datastore there.
    pub stuck_ms: u64,
    /// A server may take so long to stop before it is killed.
    pub stop_ms: u64,
    /// The first pause before a server that failed is started again; each further failure doubles it.
    pub pause_ms: u64,
    /// The longest pause.
    pub pause_max_ms: u64,
    /// A server that was ready for so long has no failures behind it.
    pub steady_ms: u64,
    /// Between two restarts for certificates: where one changed nothing, the next would not either.
    pub renew_pause_ms: u64,
    /// Between two looks at the certificates and at the other node.
    pub seldom_ms: u64,
}

impl Default for Times {
    fn default() -> Self {
        TIMES
    }
}

/// Shipped times.
pub const TIMES: Times = Times {
    start_ms: 900_000,
    stuck_ms: 300_000,
    stop_ms: 60_000,
    pause_ms: 1_000,
    pause_max_ms: 60_000,
    steady_ms: 60_000,
    renew_pause_ms: 24 * 3_600_000,
    seldom_ms: 60_000,
};

/// Where the server is in its life. Nothing of it is on disk: after a restart of the agent a server that still runs is
/// stopped first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// No process. Not started before `from`, nor without datastore and configuration.
    Waiting {
        /// Earliest start.
        from: u64,
    },
    /// The process runs and was not ready yet.
    Starting {
        /// Since when the datastore is there, too.
        since: u64,
    },
    /// It says that it is ready.
    Ready {
        /// Since when.
        since: u64,
    },
    /// It was ready and is not now.
    Unready {
        /// Since when the datastore is there, too.
        since: u64,
    },
    /// It was told to end.
    Stopping {
        /// Since when it was told, or last killed.
        since: u64,
        /// Why.
        why: Stop,
    },
}

/// Why a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The agent ends.
    Asked,
    /// An earlier run of the agent left it behind.
    Leftover,
    /// It makes new certificates when it starts.
    Renewal,
    /// It is not ready although its datastore is there.
    Stuck,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Not seen: it was another's child.
    Unseen,
}

/// The process, as seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    Absent,
    /// It runs.
    Running,
    /// It ended since the last look.
    Ended(End),
}

/// All that is seen before a decision.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// Whether the server is to run at all.
    pub wanted: bool,
    /// Whether the local datastore port leads to a primary.
    pub port_open: bool,
    /// Whether the configuration can be written: password and token are known.
    pub prepared: bool,
    /// The process.
    pub process: Process,
    /// Whether the server says that it is ready.
    pub ready: bool,
    /// Whether a restart for its certificates is due now.
    pub renew: bool,
}

/// The whole state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Where it is.
    pub life: Life,
    /// Failures in a row.
    pub failures: u32,
    /// How the last process ended, unless it was told to.
    pub last_end: Option<End>,
    /// When a restart for certificates was last begun.
    pub renewed_at: Option<u64>,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the configuration and start the process.
    Start,
    /// Tell the process to end.
    Terminate,
    /// End the process.
    Kill,
}

impl State {
    /// The beginning; `leftover` tells of a process of an earlier run.
    pub fn begin(leftover: bool, now: u64) -> (Self, Option<Effect>) {
        let state = Self { life: Life::Waiting { from: now }, failures: 0, last_end: None, renewed_at: None };
        if leftover { state.stop(Stop::Leftover, now) } else { (state, None) }
    }

    /// Whether the server may be restarted for its certificates: not right after a start, and not again soon.
    pub fn may_renew(&self, times: &Times, now: u64) -> bool {
        let paused = self.renewed_at.is_some_and(|at| now.saturating_sub(at) < times.renew_pause_ms);
        let steady =
            matches!(self.life, Life::Ready { since } if now.saturating_sub(since) >= times.steady_ms);
        steady && !paused
    }

    fn at(self, life: Life) -> (Self, Option<Effect>) {
        (Self { life, ..self }, None)
    }

    fn stop(self, why: Stop, now: u64) -> (Self, Option<Effect>) {
        let renewed_at = if why == Stop::Renewal { Some(now) } else { self.renewed_at };
        (Self { life: Life::Stopping { since: now, why }, renewed_at, ..self }, Some(Effect::Terminate))
    }

    /// It ended although nobody told it to. Without its datastore that is no failure of its own.
    fn failed(self, end: Option<End>, counts: bool, times: &Times, now: u64) -> (Self, Option<Effect>) {
        let failures = if counts { self.failures.saturating_add(1) } else { self.failures };
        let doubled = times.pause_ms.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
        let from = now.saturating_add(doubled.min(times.pause_max_ms));
        (Self { life: Life::Waiting { from }, failures, last_end: end.or(self.last_end), ..self }, None)
    }
}

/// One decision.
pub fn step(state: State, look: &Look, times: &Times, now: u64) -> (State, Option<Effect>) {
    let ended = match look.process {
        Process::Running => None,
        Process::Absent => Some(None),
        Process::Ended(end) => Some(Some(end)),
    };
    match (state.life, ended) {
        (Life::Waiting { from }, _) => {
            if look.wanted && look.port_open && look.prepared && now >= from {
                (State { life: Life::Starting { since: now }, ..state }, Some(Effect::Start))
            } else {
                (state, None)
            }
        }
        (Life::Stopping { why, .. }, Some(_)) => match why {
            Stop::Asked | Stop::Leftover | Stop::Renewal => state.at(Life::Waiting { from: now }),
            Stop::Stuck => state.failed(None, true, times, now),
        },
        (Life::Stopping { since, why }, None) => {
            if now.saturating_sub(since) < times.stop_ms {
                return (state, None);
            }
            (State { life: Life::Stopping { since: now, why }, ..state }, Some(Effect::Kill))
        }
        (Life::Starting { .. } | Life::Ready { .. } | Life::Unready { .. }, Some(end)) => {
            state.failed(end, look.port_open, times, now)
        }
        (Life::Starting { .. } | Life::Ready { .. } | Life::Unready { .. }, None) if !look.wanted => {
            state.stop(Stop::Asked, now)
        }
        (Life::Starting { since }, None) => {
            let late = waits(since, times.start_ms, look, now);
            unready(state, late, |since| Life::Starting { since }, look, now)
        }
        (Life::Unready { since }, None) => {
            let late = waits(since, times.stuck_ms, look, now);
            unready(state, late, |since| Life::Unready { since }, look, now)
        }
        (Life::Ready { .. }, None) if !look.ready => state.at(Life::Unready { since: now }),
        (Life::Ready { since }, None) => {
            let renew = look.renew && state.may_renew(times, now);
            let steady = now.saturating_sub(since) >= times.steady_ms;
            let state = if steady { State { failures: 0, last_end: None, ..state } } else { state };
            if renew { state.stop(Stop::Renewal, now) } else { (state, None) }
        }
    }
}

/// A server that is not ready yet or not any more: since when it has no excuse, or nothing if that is too long.
fn waits(since: u64, patience: u64, look: &Look, now: u64) -> Option<u64> {
    let since = if look.port_open { since } else { now };
    (now.saturating_sub(since) < patience).then_some(since)
}

fn unready(
    state: State,
    since: Option<u64>,
    life: impl Fn(u64) -> Life,
    look: &Look,
    now: u64,
) -> (State, Option<Effect>) {
    match since {
        _ if look.ready => state.at(Life::Ready { since: now }),
        Some(since) => state.at(life(since)),
        None => state.stop(Stop::Stuck, now),
    }
}

/// The state in words, for an operator.
pub fn words(state: &State, look: &Look) -> String {
    let again = match (state.failures, state.last_end) {
        (0, _) => String::new(),
        (times, Some(End::Signal(9))) => {
            format!("; it failed {times} times in a row, last by signal 9: perhaps out of memory")
        }
        (times, Some(End::Signal(signal))) => {
            format!("; it failed {times} times in a row, last by signal {signal}")
        }
        (times, Some(End::Status(status))) => {
            format!("; it failed {times} times in a row, last with status {status}")
        }
        (times, Some(End::Unseen) | None) => format!("; it failed {times} times in a row"),
    };
    let now = match state.life {
        Life::Waiting { .. } if !look.wanted => "stopped",
        Life::Waiting { .. } if !look.port_open => "waits for the datastore port",
        Life::Waiting { .. } if !look.prepared => "waits for password and token from the database",
        Life::Waiting { .. } => "waits before the next start",
        Life::Starting { .. } if !look.port_open => "starts, and the datastore port is closed",
        Life::Starting { .. } => "starts",
        Life::Ready { .. } => "ready",
        Life::Unready { .. } if !look.port_open => "not ready: the datastore port is closed",
        Life::Unready { .. } => "not ready",
        Life::Stopping { why: Stop::Asked, .. } => "stops",
        Life::Stopping { why: Stop::Leftover, .. } => {
            "is stopped: an earlier run of the agent left it behind"
        }
        Life::Stopping { why: Stop::Renewal, .. } => "restarts for new certificates",
        Life::Stopping { why: Stop::Stuck, .. } => {
            "restarts: it was not ready although the datastore is there"
        }
    };
    format!("{now}{again}")
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
