//! What can be told when the agent does not run: facts in `/run`, and the database, only read.

use crate::io::clock::boot_ms;
use crate::observe;
use crate::run::STATE_STORE;
use crate::step::{Booted, Event, State};
use crate::store::{self, Condition, Loaded};
use formats::status::{Finding, Severity, Status, Why};
use std::path::Path;

/// State as the agent would see it, without writing anything. `why` says why the agent did not answer.
pub fn state() -> State {
    let (loaded, condition) = match store::open_for_reading(Path::new(STATE_STORE)) {
        Ok(store) => (store.load().unwrap_or_default(), Condition::Ready),
        Err(error) => (Loaded::default(), Condition::Unavailable { why: format!("{error:#}") }),
    };
    let (events, boots, desired) = (loaded.events.clone(), loaded.boots, loaded.desired.clone());
    let facts = observe::facts();
    let (state, _) =
        State::new().step(Event::Booted(Box::new(Booted { facts, loaded, condition })), boot_ms());
    let (mut state, _) = state.step(Event::Looked(observe::look()), boot_ms());
    // What the step would have recorded did not happen.
    state.events = events;
    state.boots = boots;
    state.desired = desired;
    state
}

/// The finding that comes before all others.
pub fn finding(why: &str) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "agent-not-running".into(),
        message: format!("the agent does not answer: {why}; this is what the disk says"),
        next: "systemctl status farhold-agent".into(),
    }
}

/// The status of a device whose agent does not run.
pub fn status(why: &str) -> Status {
    let mut status = state().status(boot_ms(), 0);
    status.findings.insert(0, finding(why));
    status
}

/// The reasons of a device whose agent does not run.
pub fn why(reason: &str) -> Why {
    let mut why = state().why();
    why.findings.insert(0, finding(reason));
    why
}
