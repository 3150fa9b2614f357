//! The update engine between the loop and its thread: requests in, effects out, answers back. Decides nothing.

use crate::io::clock::{boot_ms, wall_s};
use crate::restart::Restart;
use crate::serve::Request;
use crate::step;
use crate::update::carrier::mqtt::Broker;
use crate::update::engine::Engine;
use crate::update::observe;
use crate::update::state::{Intent, Memory, Phase, Release};
use crate::update::step::{Answer, Effect, Event, State};
use crate::update::view::{self, View};
use anyhow::Result;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// The engine with those who wait for its answers.
#[derive(Default)]
pub struct Updates {
    state: State,
    engine: Option<Engine>,
    restart: Restart,
    waiting: Vec<oneshot::Sender<String>>,
}

/// What a turn leads to.
pub struct Outcome {
    /// To be made durable first.
    pub memory: Option<Box<Memory>>,
    /// Whether nothing may be done if it cannot be.
    pub must_keep: bool,
    /// What happened.
    pub notes: Vec<(&'static str, String)>,
    /// A release that should run from now on.
    pub committed: Option<Release>,
    effects: Vec<Effect>,
    answer: Option<Answer>,
}

/// What a request is.
pub enum Asked {
    /// Something for the engine.
    Event(Event),
    /// It has its answer.
    Answered,
    /// Not about updates.
    Other(Request),
}

fn text(answer: &Answer) -> String {
    serde_json::json!({ "ok": answer.ok, "text": answer.text }).to_string()
}

fn refuse(request: Request, why: &str) -> Asked {
    // A client that has gone away needs no answer.
    drop(request.answer.send(text(&Answer { ok: false, text: why.to_owned() })));
    Asked::Answered
}

impl Updates {
    /// Looks at this boot and starts the engine's thread; gives the event to begin with.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn start(
        &mut self,
        state: &step::State,
        memory: Memory,
        report: mpsc::Sender<Event>,
    ) -> Result<Event> {
        let again = |event: &formats::status::EventLine| {
            event.boot_id == state.facts.boot_id && event.code == "restart"
        };
        let restarted = state.events.iter().any(again);
        let facts = observe::facts(&state.facts, &state.condition, &memory, restarted);
        if let Some(surroundings) = observe::surroundings(&state.facts, &facts) {
            self.engine = Some(Engine::start(surroundings, report)?);
        }
        Ok(Event::Started(Box::new(facts), Box::new(memory)))
    }

    /// Takes an event in.
    pub fn step(&mut self, event: Event) -> Outcome {
        self.state.told(wall_s(), boot_ms());
        let (state, out) = std::mem::take(&mut self.state).step(event, boot_ms());
        self.state = state;
        if self.state.memory.phase == Phase::Idle {
            self.restart.call_off();
        }
        Outcome {
            memory: out.persist.then(|| Box::new(self.state.memory.clone())),
            must_keep: self.state.facts.as_ref().is_some_and(|facts| facts.durable.is_ok()),
            notes: out.notes,
            committed: out.committed,
            effects: out.effects,
            answer: out.answer,
        }
    }

    /// The memory could not be made durable: whoever waits is told.
    pub fn forget(&mut self, why: String) {
        self.reply(&Answer { ok: false, text: format!("what was decided cannot be kept: {why}") });
        let (state, _) = std::mem::take(&mut self.state).step(Event::Forgetful(why), boot_ms());
        self.state = state;
    }

    /// Does what a turn led to.
    pub fn perform(&mut self, outcome: Outcome) {
        for effect in outcome.effects {
            match (&effect, &self.engine) {
                (Effect::Restart(why), _) => {
                    let failed = matches!(self.state.memory.phase, Phase::Leaving { .. });
                    self.restart.ask(why, failed);
                }
                (_, Some(engine)) => engine.perform(effect),
                (_, None) => tracing::warn!(?effect, "no Farhold slot runs, so there is nothing to update"),
            }
        }
        if let Some(answer) = &outcome.answer {
            self.reply(answer);
        }
    }

    fn reply(&mut self, answer: &Answer) {
        for waiting in self.waiting.drain(..) {
            drop(waiting.send(text(answer)));
        }
    }

    /// How long nothing happens by itself.
    pub fn wake(&self) -> Option<Duration> {
        self.state.wake_ms().map(|at| Duration::from_millis(at.saturating_sub(boot_ms())))
    }

    /// The broker that reports go to, if there is one.
    pub fn broker(&self) -> Option<&Broker> {
        self.engine.as_ref().and_then(Engine::broker)
    }

    /// Target tag and site, as reports name them.
    pub fn named(&self) -> ([u8; 8], Option<String>) {
        let facts = self.state.facts.as_ref();
        let tag = facts.map(|facts| formats::frame::target_tag(&facts.product, &facts.board, facts.arch));
        (tag.unwrap_or_default(), facts.and_then(|facts| facts.site.clone()))
    }

    /// What people see.
    pub fn view(&self) -> View {
        view::of(&self.state)
    }

    /// Takes a request, if it is about updates.
    pub fn take(&mut self, request: Request) -> Asked {
        let mut words = request.word.split_ascii_whitespace();
        let named = (words.next(), words.next());
        let source = words.next().map(str::to_owned);
        let event = match named {
            (Some("update"), Some("plan")) => Event::Check(source, Intent::Plan),
            (Some("update"), Some("now")) => Event::Check(source, Intent::Now),
            (Some("commit"), None) => Event::Commit,
            (Some("rollback"), None) => Event::Rollback,
            (_, _) => return Asked::Other(request),
        };
        if !request.from_root {
            return refuse(request, "only root may ask for this; use sudo");
        }
        if !self.waiting.is_empty() {
            return refuse(request, "another request is being worked on; ask again in a moment");
        }
        self.waiting.push(request.answer);
        Asked::Event(event)
    }
}
