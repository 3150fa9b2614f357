//! `farhold-agent run`: the one loop. Event → `step` → records made durable → effects → next event.

use crate::io::clock::boot_ms;
use crate::io::{efi, notify};
use crate::observe;
use crate::reports::{self, Outgoing};
use crate::serve::{self, Request};
use crate::step::{Booted, Effect, Event, State};
use crate::store::{self, Record, Store};
use crate::update::step as update;
use crate::updates::{Asked, Updates};
use anyhow::{Context, Result};
use formats::status::Desired;
use serde_json::json;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Where the agent keeps its database.
pub const STATE_STORE: &str = "/var/lib/farhold";
/// How long systemd may take over its start jobs before the agent reports without waiting for them.
const SETTLE_MAX: Duration = Duration::from_secs(300);
/// A look at the system is good for so long; then a request leads to a new one.
const LOOK_GOOD: Duration = Duration::from_secs(5);
/// Without systemd's watchdog the loop wakes this seldom.
const IDLE: Duration = Duration::from_secs(3600);
/// Records that are kept in memory while the store fails.
const PENDING_MAX: usize = 256;

struct Agent {
    state: Option<State>,
    store: Option<Store>,
    pending: Vec<Record>,
    looked: Option<Instant>,
    updates: Updates,
    reports: Outgoing,
}

/// Events of the update engine that wait at once.
const EVENTS: usize = 32;

/// Runs until it is told to stop.
///
/// # Errors
/// If the socket cannot be opened; everything else is a finding.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(256 << 10)
        .build()
        .context("start the loop")?;
    runtime.block_on(main_loop())
}

async fn main_loop() -> Result<()> {
    let listener = serve::listen()?;
    let (send, mut requests) = mpsc::channel(serve::QUEUE);
    let for_port = send.clone();
    let port = std::thread::Builder::new().name("port".into()).stack_size(128 << 10);
    port.spawn(move || serve::port(&for_port)).context("start the port's thread")?;
    let (report, mut reports) = mpsc::channel(EVENTS);
    let mut agent = Agent::start(report)?;
    notify::send("READY=1\nSTATUS=serving")?;
    let mut terminate = signal(SignalKind::terminate()).context("wait for signals")?;
    let mut feed = tokio::time::interval(notify::watchdog_interval().unwrap_or(IDLE));
    let settled = settled();
    tokio::pin!(settled);
    let mut waiting = true;
    loop {
        let wake = agent.updates.wake();
        tokio::select! {
            () = &mut settled, if waiting => {
                waiting = false;
                let look = look().await?;
                agent.handle(Event::Settled(look));
                agent.update(update::Event::Settled);
            }
            Some(event) = reports.recv() => agent.update(event),
            () = tokio::time::sleep(reports::TURN), if agent.reports.waiting && agent.updates.broker().is_some() => agent.report(),
            () = tokio::time::sleep(wake.unwrap_or(IDLE)), if wake.is_some() => agent.update(update::Event::Tick),
            Ok((stream, _)) = listener.accept() => {
                tokio::spawn(serve_client(stream, send.clone()));
            }
            Some(request) = requests.recv() => agent.answer(request).await?,
            _ = feed.tick() => notify::send("WATCHDOG=1")?,
            _ = terminate.recv() => break,
        }
    }
    notify::send("STOPPING=1")
}

async fn serve_client(stream: tokio::net::UnixStream, requests: mpsc::Sender<Request>) {
    if let Err(error) = serve::connection(stream, requests).await {
        tracing::debug!(error = format!("{error:#}"), "client");
    }
}

/// Ends when systemd has done its start jobs, whatever came of them.
async fn settled() {
    let wait = tokio::process::Command::new("/usr/bin/systemctl")
        .args(["is-system-running", "--wait"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    match tokio::time::timeout(SETTLE_MAX, wait).await {
        Ok(Ok(status)) => tracing::debug!(%status, "systemd has settled"),
        Ok(Err(error)) => tracing::warn!(%error, "systemctl cannot be started"),
        Err(_) => tracing::warn!(seconds = SETTLE_MAX.as_secs(), "systemd has not settled"),
    }
}

async fn look() -> Result<crate::step::Look> {
    tokio::task::spawn_blocking(observe::look).await.context("look at the system")
}

impl Agent {
    fn start(report: mpsc::Sender<update::Event>) -> Result<Self> {
        let facts = observe::facts();
        let (store, mut condition) = store::open(Path::new(STATE_STORE));
        let loaded = match store.as_ref().map(Store::load) {
            Some(Ok(loaded)) => loaded,
            Some(Err(error)) => {
                condition = store::Condition::Unavailable { why: error.to_string() };
                store::Loaded::default()
            }
            None => store::Loaded::default(),
        };
        tracing::info!(?condition, "store opened");
        let updates = Updates::default();
        let mut agent = Self {
            state: Some(State::new()),
            store,
            pending: Vec::new(),
            looked: None,
            updates,
            reports: Outgoing::default(),
        };
        let memory = loaded.update.clone();
        agent.handle(Event::Booted(Box::new(Booted { facts, loaded, condition })));
        if let Some(state) = &agent.state {
            let started = agent.updates.start(state, memory, report)?;
            agent.update(started);
        }
        Ok(agent)
    }

    /// One turn of the update engine: what it remembers is durable before anything is done.
    fn update(&mut self, event: update::Event) {
        let mut outcome = self.updates.step(event);
        if let Some(memory) = outcome.memory.take() {
            let written = match self.store.as_mut() {
                Some(store) => store.record(&[Record::Update(memory)]).map_err(|error| error.to_string()),
                None => Err("the database cannot be opened".to_owned()),
            };
            if let Err(why) = written
                && outcome.must_keep
            {
                tracing::error!(why, "the update engine's memory is not durable; nothing is done");
                self.updates.forget(why);
                return;
            }
        }
        let committed = outcome.committed.take().map(|release| Desired {
            version: release.version,
            roothash: release.roothash,
            source: "update".into(),
        });
        let notes = std::mem::take(&mut outcome.notes);
        self.handle(Event::Updated(Box::new(self.updates.view()), notes, committed));
        self.updates.perform(outcome);
    }

    /// One turn of the loop.
    fn handle(&mut self, event: Event) {
        let Some(state) = self.state.take() else { return };
        let looked = matches!(event, Event::Settled(_) | Event::Looked(_));
        let (state, outcome) = state.step(event, boot_ms());
        self.state = Some(state);
        if looked {
            self.looked = Some(Instant::now());
        }
        let mut records = outcome.records;
        self.reports.waiting |= records.iter().any(|record| matches!(record, Record::Event(_)));
        records.extend(self.standing());
        self.persist(records);
        for effect in outcome.effects {
            self.perform(&effect);
        }
    }

    /// How the device stands, if that changed since it was last reported; not before all is known.
    fn standing(&mut self) -> Option<Record> {
        let state = self.state.as_ref().filter(|state| state.ready_ms > 0)?;
        let (target, site) = self.updates.named();
        let standing = reports::standing(&state.status(boot_ms(), 0), target, site.as_deref());
        self.reports.stands(standing)
    }

    /// Sends what is to be reported.
    fn report(&mut self) {
        let (Some(store), Some(broker)) = (self.store.as_mut(), self.updates.broker()) else { return };
        let Some(state) = &self.state else { return };
        if let Err(error) = self.reports.turn(store, broker, &state.facts.machine_id) {
            tracing::warn!(%error, "reports wait in the store");
        }
    }

    /// Makes records durable. Those that cannot be wait for the next turn, the oldest going first.
    fn persist(&mut self, records: Vec<Record>) {
        self.pending.extend(records);
        let excess = self.pending.len().saturating_sub(PENDING_MAX);
        self.pending.drain(..excess);
        let Some(store) = self.store.as_mut().filter(|_| !self.pending.is_empty()) else { return };
        let written = store.record(&self.pending);
        let failed = self.state.as_ref().is_some_and(|state| state.store_failure.is_some());
        match written {
            Ok(()) => {
                self.pending.clear();
                if failed {
                    self.handle(Event::StoreWorks);
                }
            }
            Err(error) => {
                let why = error.to_string();
                if !failed {
                    tracing::error!(why, "records are not durable");
                }
                if let Some(state) = self.state.take() {
                    self.state = Some(state.step(Event::StoreFailed(why), boot_ms()).0);
                }
            }
        }
    }

    fn perform(&mut self, effect: &Effect) {
        match effect {
            Effect::Announce => {
                let Some(line) = self.state.as_ref().map(State::announcement) else { return };
                tracing::info!("{line}");
                if let Err(error) = console(&line) {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the console does not show that the device is up"
                    );
                }
            }
            Effect::ClearFallback => match efi::clear_fallback() {
                Ok(()) => tracing::info!("the init's record of a fallback is removed"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the init's record of a fallback stays")
                }
            },
        }
    }

    async fn answer(&mut self, request: Request) -> Result<()> {
        let request = match self.updates.take(request) {
            Asked::Event(event) => {
                self.update(event);
                return Ok(());
            }
            Asked::Answered => return Ok(()),
            Asked::Other(request) => request,
        };
        if self.looked.is_none_or(|at| at.elapsed() > LOOK_GOOD) {
            let look = look().await?;
            self.handle(Event::Looked(look));
        }
        let Some(state) = &self.state else { return Ok(()) };
        let text = match request.word.as_str() {
            "status" => {
                let mut status = state.status(boot_ms(), observe::rss_bytes());
                status.agent_peak_rss_bytes = observe::peak_rss_bytes();
                serde_json::to_string(&status)
            }
            "why" => serde_json::to_string(&state.why()),
            word => serde_json::to_string(&json!({
                "error": format!("unknown word `{}`, must be `status`, `why`, `update plan`, `update now`, `commit` or `rollback`", word.escape_debug())
            })),
        };
        // A client that has gone away needs no answer.
        drop(request.answer.send(text.context("encode the answer")?));
        Ok(())
    }
}

fn console(line: &str) -> Result<()> {
    let mut console =
        std::fs::OpenOptions::new().write(true).open("/dev/console").context("open /dev/console")?;
    console.write_all(format!("{line}\r\n").as_bytes()).context("write to /dev/console")
}
