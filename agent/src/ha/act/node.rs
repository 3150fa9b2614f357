//! The loop of a data node: event → `step` → effects, all of them, in order → next event.
//!
//! One thread. Effects are carried out without a pause between them, so that nothing else of this process sees a state in
//! between. It does not decide anything.

use super::config::Config;
use super::control::{self, Request};
use super::copy;
use super::identity::{Identity, Number};
use super::listen::socket;
use super::machine;
use super::record;
use super::saved::{self, Counters, Opened, Store};
use super::seal::{self, Freshness};
use super::serial::Line;
use super::server;
use super::session::{self, Seen};
use super::site::{Input, Site};
use super::status;
use super::{port, tunnel};
use crate::clock::boot_ms;
use crate::durable;
use crate::ha::register::{Platform, VoterId};
use crate::ha::resume::{Start, resume};
use crate::ha::state::{Command, Event, Saved};
use crate::ha::step;
use crate::ha::want::{Effect, Postgres, Task, Tunnel};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

/// Between two ticks of the decisions.
const TICK: Duration = Duration::from_millis(100);
/// Between two probes of the disk.
const PROBE: Duration = Duration::from_millis(500);

/// Less free space than two segments of the log is a full disk, bytes.
const FREE_MIN: u64 = 32 << 20;

/// The loop's own part.
pub struct Loop {
    pub(super) site: Rc<Site>,
    store: Store,
    pub(super) udp: UdpSocket,
    pub(super) serial: Option<Line>,
    pub(super) stamp_us: u64,
    pub(super) known: BTreeMap<VoterId, Freshness>,
    job: Option<JoinHandle<()>>,
}

/// Runs a data node until it is told to stop.
///
/// # Errors
/// If it cannot start, or a state cannot be made durable.
pub fn run(config: Config) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_stack_size(256 << 10)
        .build()
        .context("start the loop")?;
    tokio::task::LocalSet::new().block_on(&runtime, main(config))
}

/// What a node runs on.
///
/// # Errors
/// If Postgres does not say its version.
pub fn platform(config: &Config) -> Result<Platform> {
    let path = config.postgres.bin.join("postgres");
    let output = std::process::Command::new(&path).arg("--version").output();
    let text = output.with_context(|| format!("start {}", path.display()))?.stdout;
    let text = String::from_utf8_lossy(&text);
    let major = text.split_whitespace().nth(2).and_then(|version| {
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    let machine = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        other => bail!("a pair runs on x86_64 or aarch64, not on {other}"),
    };
    let postgres_major = major.with_context(|| format!("{} says no version: {text:?}", path.display()))?;
    Ok(Platform { postgres_major, machine })
}

/// Where a node's state and its counters are.
pub fn files(config: &Config) -> (PathBuf, Counters) {
    let counters = Counters { boot: config.run.join("count"), kept: config.counter.clone() };
    (config.state.join("voter"), counters)
}

async fn main(config: Config) -> Result<()> {
    for folder in ["db", "tunnel", "copy", "port"] {
        durable::make_folder(&config.run.join(folder), 0o700)?;
    }
    let identity = Identity::open(&config.state)?;
    let (path, counters) = files(&config);
    let Opened { store, voter, value, start } = Store::open::<Saved>(&path, counters)?;
    let platform = platform(&config)?;
    server::clear(&config.postgres.data).await?;
    let udp = UdpSocket::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let tcp =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let clients =
        TcpListener::bind(config.port).await.with_context(|| format!("listen on {}", config.port))?;
    let (inputs, events) = mpsc::unbounded_channel();
    let moved = !machine::same(&config);
    let start = match start {
        Start::Proven if moved => Start::Unproven { life: Number::draw()?.0 },
        Start::Proven | Start::Unproven { .. } => start,
    };
    if moved {
        tracing::error!("this disk was in another machine before, or was cloned: its state may be old");
    }
    let site = Rc::new(Site::new(config, identity, voter, (platform, moved, inputs))?);
    let (requests, asked) = mpsc::channel(8);
    let here = socket(&site.config.port_sockets().join(".s.PGSQL.5432"))?;
    spawn_local(port::serve(Rc::clone(&site), clients, here));
    spawn_local(tunnel::serve(Rc::clone(&site), tcp));
    spawn_local(tunnel::follow(Rc::clone(&site), socket(&site.tunnel_sockets().join(".s.PGSQL.5432"))?));
    spawn_local(tunnel::fetch(Rc::clone(&site), socket(&site.copy_sockets().join(".s.PGSQL.5432"))?));
    spawn_local(tunnel::blocks(Rc::clone(&site), socket(&site.config.run.join("blocks"))?));
    spawn_local(control::serve(socket(&site.config.run.join("control"))?, requests));
    spawn_local(probe(Rc::clone(&site)));
    spawn_local(server::supervise(Rc::clone(&site)));
    let serial = site.config.serial.clone().map(|config| Line::open(Rc::clone(&site), config));
    let mut agent = Loop { site, store, udp, serial, stamp_us: 0, known: BTreeMap::new(), job: None };
    if let Some(saved) = value {
        agent.begin(saved, start)?;
    }
    machine::keep(&agent.site.config)?;
    agent.serve(events, asked).await
}

/// A full disk counts as one that does not flush: the peer may have room, and takes over while this node can still learn of it.
fn enough_space(folder: &std::path::Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let room = nix::sys::statvfs::statvfs(folder).with_context(|| format!("look at {}", folder.display()))?;
    let free = room.blocks_available().saturating_mul(room.fragment_size());
    if free < FREE_MIN {
        bail!("the disk of {} is full: {free} bytes are free, {FREE_MIN} must be", folder.display());
    }
    Ok(())
}

/// Shows again and again that the disk finishes flushes.
async fn probe(site: Rc<Site>) {
    let path = site.config.state.join("probe");
    let (state, _) = files(&site.config);
    loop {
        let (path, state) = (path.clone(), state.clone());
        let folders = [site.config.state.clone(), site.config.postgres.data.clone()];
        let flushed = tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut file = std::fs::File::create(path)?;
            file.write_all(b"x")?;
            file.sync_data()?;
            saved::keep_reserve(&state)?;
            folders.iter().try_for_each(|folder| enough_space(folder))
        });
        match flushed.await {
            Ok(Ok(())) => {
                site.watch.works("disk");
                site.report(Event::Synced).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "the disk does not flush");
                site.watch.trouble("disk", format!("{error:#}"));
            }
            Err(error) => tracing::warn!(%error, "the disk was not probed"),
        }
        tokio::time::sleep(PROBE).await;
    }
}

impl Loop {
    async fn serve(
        &mut self,
        mut events: mpsc::UnboundedReceiver<Input>,
        mut asked: mpsc::Receiver<Request>,
    ) -> Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut datagram = [0; seal::DATAGRAM_MAX + 1];
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => break,
                Some(input) = events.recv() => {
                    self.step(input.event)?;
                    if input.done.send(()).is_err() {
                        tracing::trace!("nobody waits for an event's effects");
                    }
                }
                _ = ticks.tick() => self.step(Event::Tick).map(drop)?,
                received = self.udp.recv_from(&mut datagram) => if let Ok((length, from)) = received {
                    self.hear(&datagram[..length], from)?;
                },
                frame = heard(&mut self.serial) => self.hear_serial(&frame)?,
                Some(request) = asked.recv() => self.answer(request)?,
            }
        }
        self.end(&mut events).await
    }

    /// Closes everything and stops the server in good order.
    async fn end(&mut self, events: &mut mpsc::UnboundedReceiver<Input>) -> Result<()> {
        self.site.node.borrow_mut().take();
        self.perform(Effect::Port(crate::ha::port::Port::Closed))?;
        self.perform(Effect::Task(Task::Rest))?;
        self.perform(Effect::Postgres(Postgres::Stopped))?;
        let until = tokio::time::Instant::now() + Duration::from_secs(30);
        while self.site.server_runs.get() && tokio::time::Instant::now() < until {
            while let Ok(input) = events.try_recv() {
                if input.done.send(()).is_err() {
                    tracing::trace!("nobody waits for an event's effects");
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, saved: Saved, start: Start) -> Result<()> {
        let settings = self.site.config.settings(self.site.platform);
        let (node, effects) = resume(saved, start, settings, boot_ms());
        self.site.system_id.set(saved.voter.register.system_id);
        tracing::info!(phase = ?node.run.phase, epoch = saved.voter.register.epoch, ?start, "the node begins");
        self.site.node.borrow_mut().replace(node);
        effects.into_iter().try_for_each(|effect| self.perform(effect))
    }

    /// One decision with all its effects; says why a command was not taken.
    pub(super) fn step(&mut self, event: Event) -> Result<Option<&'static str>> {
        let Some(node) = *self.site.node.borrow() else { return Ok(None) };
        let (next, effects) = step(&node, event, boot_ms());
        if (node.run.phase, node.saved.voter.register.epoch)
            != (next.run.phase, next.saved.voter.register.epoch)
        {
            tracing::info!(from = ?node.run.phase, to = ?next.run.phase, epoch = next.saved.voter.register.epoch,
                mode = ?next.saved.voter.register.mode, "the node moves");
        }
        self.site.node.borrow_mut().replace(next);
        let mut refused = None;
        for effect in effects {
            if let Effect::CommandRefused(why) = effect {
                refused = Some(why);
            }
            self.perform(effect)?;
        }
        Ok(refused)
    }

    fn perform(&mut self, effect: Effect) -> Result<()> {
        let site = Rc::clone(&self.site);
        match effect {
            Effect::Save(saved) => self.store.write(site.me, &Some(saved))?,
            Effect::Postgres(want) => {
                site.postgres.set(want);
                site.server_wanted.notify_one();
            }
            Effect::Names(names) => {
                site.names.set(names);
                if site.server_pid.get().is_some() {
                    server::write_files(&site, site.postgres.get())?;
                    server::reload(&site)?;
                }
            }
            Effect::Tunnel(tunnel) => {
                let same = match (site.tunnel.replace(tunnel), tunnel) {
                    (Tunnel::Serve { name: a, .. }, Tunnel::Serve { name: b, .. }) => a == b,
                    (old, new) => old == new,
                };
                if same { site.tunnel_gate.wake() } else { site.tunnel_gate.cut() }
            }
            Effect::Port(_) => site.port_gate.cut(),
            Effect::Task(task) => self.begin_task(task),
            Effect::Send(message) => self.send(&message),
            Effect::CommandRefused(why) => tracing::warn!(why, "a command was refused"),
            Effect::Rejected(from, refusal) => tracing::debug!(?from, %refusal, "not listened to"),
        }
        Ok(())
    }

    fn begin_task(&mut self, task: Task) {
        if let Some(job) = self.job.take() {
            job.abort();
        }
        self.site.copy_gate.cut();
        self.site.task.set(task);
        let site = Rc::clone(&self.site);
        self.job = match task {
            Task::Rest => None,
            Task::Canary { attempt } => Some(spawn_local(canary(site, attempt))),
            Task::Copy { how, .. } => Some(spawn_local(copy::run(site, how))),
        };
    }

    fn answer(&mut self, request: Request) -> Result<()> {
        let answer = match request.ask.command(&self.site) {
            Ok(Some(command)) => self.obey(&request, command)?,
            Ok(None) => Ok(status::status(&self.site)),
            Err(error) => Err(format!("{error:#}")),
        };
        if request.reply.send(answer).is_err() {
            tracing::debug!("an operator did not wait for the answer");
        }
        Ok(())
    }

    /// Records who commands, durably, and then obeys.
    fn obey(&mut self, request: &Request, command: Command) -> Result<Result<serde_json::Value, String>> {
        tracing::warn!(?command, who = request.who, "an operator commands");
        let words = serde_json::to_string(&request.ask).context("name a command")?;
        let words = words.trim_matches('"');
        if let Err(error) = record::add(&self.site.config.state, &request.who, words, self.site.epoch()) {
            return Ok(Err(format!("{error:#}; nothing was done")));
        }
        let refused = self.step(Event::Operator(command))?;
        Ok(refused.map_or_else(|| Ok(status::status(&self.site)), |why| Err(why.to_owned())))
    }
}

async fn heard(serial: &mut Option<Line>) -> Vec<u8> {
    match serial {
        Some(line) => line.heard().await,
        None => std::future::pending().await,
    }
}

async fn canary(site: Rc<Site>, attempt: u32) {
    loop {
        let sockets = site.sockets();
        let told = session::canary(&sockets, async |seen| {
            let event = match seen {
                Seen::Waits(lsn) => Event::CanaryWaits { attempt, lsn },
                Seen::Done => Event::CanaryDone { attempt },
            };
            site.report(event).await;
        });
        match told.await {
            Ok(()) => return,
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the canary was not seen"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
