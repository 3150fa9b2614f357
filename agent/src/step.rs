//! The agent's decisions: a state and an event give a state, records to make durable, and effects. Pure.
//!
//! ```text
//! Starting ──Booted──▶ Starting ──Settled──▶ Running ⇄ Degraded      (by the findings)
//! ```

use crate::findings;
use crate::io::systemd::SystemView;
use crate::store::{Condition, Loaded, Record};
use crate::update::view::View;
use formats::boot::{BootFacts, EarlyFacts, StateFacts};
use formats::efi::Fallback;
use formats::status::{
    AgentState, Desired, EventLine, Finding, HaStatus, Observed, ProfileId, STATUS_SCHEMA, Status, Why,
};

/// What was read once, at the start.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Host name.
    pub node: String,
    /// Machine id.
    pub machine_id: String,
    /// Boot id.
    pub boot_id: String,
    /// Names from the profile in the verified root.
    pub profile: ProfileId,
    /// The init's facts.
    pub boot: Option<BootFacts>,
    /// The early stage's facts.
    pub early: Option<EarlyFacts>,
    /// What runs, from the device-mapper table.
    pub observed: Option<Observed>,
    /// A fallback of the init that led here.
    pub fallback: Option<Fallback>,
    /// What could not be read, one reason each.
    pub unread: Vec<String>,
}

/// Free room of `/var`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Files that can still be made; `None` if the file system does not count them.
    pub free_files: Option<u64>,
}

/// What is looked at again on request.
#[derive(Clone, Debug)]
pub struct Look {
    /// systemd's view, or why there is none.
    pub system: Result<SystemView, String>,
    /// Room of `/var`.
    pub room: Option<Room>,
    /// The pair, if this node belongs to one.
    pub ha: Option<HaStatus>,
}

/// What an agent knows when it starts.
#[derive(Clone, Debug)]
pub struct Booted {
    /// Facts of this boot.
    pub facts: Facts,
    /// What was remembered.
    pub loaded: Loaded,
    /// How the store was found.
    pub condition: Condition,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The agent has started: facts, and what its store remembers.
    Booted(Box<Booted>),
    /// systemd has finished its start jobs, or the agent stopped waiting for that.
    Settled(Look),
    /// Looked again.
    Looked(Look),
    /// Records could not be made durable; why.
    StoreFailed(String),
    /// Records were made durable again.
    StoreWorks,
    /// The update engine has got on: what people see of it, what happened (code and text), and a release that should run
    /// from now on.
    Updated(Box<View>, Vec<(&'static str, String)>, Option<Desired>),
}

/// What is to be done, besides the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Say that the device is up, on the console and in the journal.
    Announce,
    /// Remove the init's record of a fallback.
    ClearFallback,
}

/// The whole state of the agent.
#[derive(Clone, Debug)]
pub struct State {
    /// Of the agent.
    pub agent: AgentState,
    /// Read once.
    pub facts: Facts,
    /// What is meant to run.
    pub desired: Option<Desired>,
    /// How the store was found.
    pub condition: Condition,
    /// Why the store fails now.
    pub store_failure: Option<String>,
    /// Last look.
    pub look: Look,
    /// Boots that the store has seen, this one included.
    pub boots: u64,
    /// Latest events, newest first.
    pub events: Vec<EventLine>,
    /// Milliseconds since the kernel started, when the agent was ready; 0 before.
    pub ready_ms: u64,
    /// The update engine, as people see it.
    pub update: Option<View>,
}

/// What a step leads to, in this order: `records` are made durable before `effects` are done.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// To be made durable.
    pub records: Vec<Record>,
    /// To be done.
    pub effects: Vec<Effect>,
}

/// Events kept in memory.
const EVENTS_KEPT: usize = 50;

impl State {
    /// Before anything is known.
    pub fn new() -> Self {
        Self {
            agent: AgentState::Starting,
            facts: Facts::default(),
            desired: None,
            condition: Condition::Ready,
            store_failure: None,
            look: Look::default(),
            boots: 0,
            events: Vec::new(),
            ready_ms: 0,
            update: None,
        }
    }

    /// Takes an event in, at `now_ms` since the kernel started.
    pub fn step(mut self, event: Event, now_ms: u64) -> (Self, Outcome) {
        let mut outcome = Outcome::default();
        match event {
            Event::Booted(booted) => self.booted(*booted, &mut outcome, now_ms),
            Event::Settled(look) => {
                self.look = look;
                self.ready_ms = now_ms;
                outcome.effects.push(Effect::Announce);
                if self.facts.fallback.is_some() {
                    outcome.effects.push(Effect::ClearFallback);
                }
                self.event(&mut outcome, now_ms, "ready", self.ready_text());
            }
            Event::Looked(look) => self.look = look,
            Event::StoreFailed(why) => self.store_failure = Some(why),
            Event::StoreWorks => self.store_failure = None,
            Event::Updated(view, notes, desired) => {
                self.update = Some(*view);
                for (code, text) in notes {
                    self.event(&mut outcome, now_ms, code, text);
                }
                if let Some(desired) = desired {
                    outcome.records.push(Record::Desired(desired.clone()));
                    self.desired = Some(desired);
                }
            }
        }
        if self.ready_ms > 0 {
            let worst = self.findings().first().map(|finding| finding.severity);
            self.agent = match worst {
                Some(formats::status::Severity::Error | formats::status::Severity::Warning) => {
                    AgentState::Degraded
                }
                Some(formats::status::Severity::Info) | None => AgentState::Running,
            };
        }
        (self, outcome)
    }

    fn booted(&mut self, booted: Booted, outcome: &mut Outcome, now_ms: u64) {
        let Booted { facts, loaded, condition } = booted;
        self.boots = loaded.boots + 1;
        self.events = loaded.events;
        self.desired = loaded.desired;
        self.condition = condition;
        self.facts = facts;
        let observed = self.facts.observed.clone();
        let trial = self.facts.boot.as_ref().is_some_and(|boot| boot.trial);
        let seen =
            self.events.iter().any(|event| event.boot_id == self.facts.boot_id && event.code == "boot");
        if seen {
            self.boots -= 1;
            self.event(outcome, now_ms, "restart", "the agent was started again in the same boot".into());
        } else {
            let boot_id = self.facts.boot_id.clone();
            outcome.records.push(Record::Boot { boot_id, observed: observed.clone(), trial });
            let text = observed.as_ref().map_or("the root is not Farhold's".to_owned(), |o| {
                format!("slot {} version {} roothash {}", o.slot, o.version, o.roothash)
            });
            self.event(outcome, now_ms, "boot", text);
        }
        if let Some(observed) = observed {
            // The first start on this state partition: what the factory installed is what should run. A store that is
            // only in memory would call every release that.
            if self.desired.is_none() && self.kept() {
                let (version, roothash) = (observed.version.clone(), observed.roothash);
                let desired = Desired { version, roothash, source: "factory".into() };
                outcome.records.push(Record::Desired(desired.clone()));
                self.desired = Some(desired);
            }
            if loaded.observed.as_ref() != Some(&observed) {
                outcome.records.push(Record::Observed(observed));
            }
        }
        if let Some(fallback) = self.facts.fallback.clone() {
            let text = format!("came here after {} restart(s): {}", fallback.asked.len(), fallback.why);
            self.event(outcome, now_ms, "fallback", text);
        }
        if let Condition::Salvaged { aside, rows, .. } = &self.condition {
            let text = format!("database damaged: {rows} rows kept, the rest in {}", aside.display());
            self.event(outcome, now_ms, "store-salvaged", text);
        }
    }

    /// Whether what is recorded outlives this boot.
    fn kept(&self) -> bool {
        let persistent = matches!(
            self.facts.early.as_ref().map(|early| &early.state),
            Some(StateFacts::Persistent { .. })
        );
        persistent && matches!(self.condition, Condition::Ready | Condition::Salvaged { .. })
    }

    fn event(&mut self, outcome: &mut Outcome, now_ms: u64, code: &str, text: String) {
        let boot_id = self.facts.boot_id.clone();
        let line = EventLine { boot_id, uptime_ms: now_ms, code: code.into(), text };
        self.events.insert(0, line.clone());
        self.events.truncate(EVENTS_KEPT);
        outcome.records.push(Record::Event(line));
    }

    fn ready_text(&self) -> String {
        let codes: Vec<String> = self.findings().into_iter().map(|finding| finding.code).collect();
        if codes.is_empty() { "nothing to report".into() } else { format!("findings: {}", codes.join(", ")) }
    }

    /// What an operator should know, worst first.
    pub fn findings(&self) -> Vec<Finding> {
        findings::of(self)
    }

    /// The status, as of `now_ms`, with the agent's resident memory.
    pub fn status(&self, now_ms: u64, rss_bytes: u64) -> Status {
        let facts = &self.facts;
        let system = self
            .look
            .system
            .clone()
            .unwrap_or_else(|_| SystemView { state: "unknown".into(), ..SystemView::default() });
        Status {
            schema: STATUS_SCHEMA,
            agent: self.agent,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            node: facts.node.clone(),
            machine_id: facts.machine_id.clone(),
            boot_id: facts.boot_id.clone(),
            profile: facts.profile.clone(),
            observed: facts.observed.clone(),
            desired: self.desired.clone(),
            state: facts.early.as_ref().map(|early| early.state.clone()),
            boot: facts.boot.clone(),
            early_ms: facts.early.as_ref().map(|early| early.early_ms),
            system: system.state,
            failed_units: system.failed,
            uptime_ms: now_ms,
            ready_ms: self.ready_ms,
            agent_rss_bytes: rss_bytes,
            agent_peak_rss_bytes: 0,
            findings: self.findings(),
            update: self.update.as_ref().map(|view| view.status.clone()),
            ha: self.look.ha.clone(),
        }
    }

    /// Why the device is as it is.
    pub fn why(&self) -> Why {
        Why {
            schema: STATUS_SCHEMA,
            because: findings::because(self),
            findings: self.findings(),
            events: self.events.clone(),
        }
    }

    /// The line that says that the device is up.
    pub fn announcement(&self) -> String {
        let word = match self.agent {
            AgentState::Starting => "starting",
            AgentState::Running => "running",
            AgentState::Degraded => "degraded",
        };
        let what = self.facts.observed.as_ref().map_or("slot=? version=? roothash=?".to_owned(), |o| {
            format!("slot={} version={} roothash={}", o.slot, o.version, o.roothash)
        });
        let codes: Vec<String> = self.findings().into_iter().map(|finding| finding.code).collect();
        let findings =
            if codes.is_empty() { String::new() } else { format!(" findings={}", codes.join(",")) };
        format!("farhold: {word} {what} ready_ms={}{findings}", self.ready_ms)
    }
}

impl Default for Look {
    fn default() -> Self {
        Self {
            system: Ok(SystemView { state: "starting".into(), ..SystemView::default() }),
            room: None,
            ha: None,
        }
    }
}

#[cfg(test)]
pub mod tests;
