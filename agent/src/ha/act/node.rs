//! The loop of a data node: event → `step` → effects, all of them, in order → next event.
//!
//! One thread. Effects are carried out without a pause between them, so that nothing else of this process sees a state in
//! between. It does not decide anything.

use super::config::Config;
use super::control::{self, Request};
use super::copy;
use super::gate::Gate;
use super::identity::{Identity, Number};
use super::saved::{Opened, Store};
use super::seal::{self, Envelope, Freshness, Header, Stamp};
use super::server;
use super::session::{self, Seen};
use super::stream::Ends;
use super::{port, tunnel};
use crate::clock::{boot_ms, boot_us};
use crate::durable;
use crate::ha::message::{Message, StandbyName};
use crate::ha::register::{Platform, Register, VoterId};
use crate::ha::resume::{Start, blank, resume};
use crate::ha::state::{Event, Node, Saved};
use crate::ha::step;
use crate::ha::want::{Effect, Names, Postgres, Task, Tunnel, nobody};
use anyhow::{Context, Result, bail};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};

/// Between two ticks of the decisions.
const TICK: Duration = Duration::from_millis(100);
/// Between two probes of the disk.
const PROBE: Duration = Duration::from_millis(500);

/// Something that happened, and whom to tell when its effects are done.
struct Input {
    event: Event,
    done: oneshot::Sender<()>,
}

/// What the parts of one node share.
pub struct Site {
    /// What the node was told.
    pub config: Config,
    /// Its key.
    pub identity: Identity,
    me: Number,
    /// The decisions' state; nothing before a register was told.
    pub node: RefCell<Option<Node>>,
    /// Cut when the port closes.
    pub port_gate: Rc<Gate>,
    /// Cut when the tunnel closes.
    pub tunnel_gate: Rc<Gate>,
    /// Cut when a copy ends.
    pub copy_gate: Rc<Gate>,
    /// The wanted tunnel.
    pub tunnel: Cell<Tunnel>,
    /// The wanted job.
    pub task: Cell<Task>,
    /// The wanted role.
    pub postgres: Cell<Postgres>,
    /// The wanted names.
    pub names: Cell<Names>,
    /// Told when the role changes.
    pub server_wanted: Notify,
    /// Whether a server runs on the directory, or is about to.
    pub server_runs: Cell<bool>,
    /// The server's process.
    pub server_pid: Cell<Option<i32>>,
    /// The database's number.
    pub system_id: Cell<u64>,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Site {
    /// Reports an event, and returns when its effects are done.
    pub async fn report(&self, event: Event) {
        let (done, waits) = oneshot::channel();
        if self.inputs.send(Input { event, done }).is_ok() && waits.await.is_err() {
            tracing::debug!("an event was dropped");
        }
    }

    /// This node's number.
    pub fn voter(&self) -> VoterId {
        self.me.voter()
    }

    /// The newest register that is known.
    pub fn register(&self) -> Option<Register> {
        self.node.borrow().as_ref().map(|node| node.saved.voter.register)
    }

    /// The epoch that is known.
    pub fn epoch(&self) -> Option<u64> {
        self.register().map(|register| register.epoch)
    }

    /// The standby's name in this epoch.
    pub fn standby_name(&self) -> Option<StandbyName> {
        self.node.borrow().as_ref().and_then(Node::standby_name)
    }

    /// Folder of the server's socket.
    pub fn sockets(&self) -> PathBuf {
        self.config.run.join("db")
    }

    /// The server's socket.
    pub fn server_socket(&self) -> PathBuf {
        self.sockets().join(".s.PGSQL.5432")
    }

    /// Folder of the tunnel's end for the standby.
    pub fn tunnel_sockets(&self) -> PathBuf {
        self.config.run.join("tunnel")
    }

    /// Folder of the tunnel's end for copies.
    pub fn copy_sockets(&self) -> PathBuf {
        self.config.run.join("copy")
    }

    /// The server's main file.
    pub fn main_file(&self) -> PathBuf {
        self.config.state.join("postgresql.conf")
    }

    /// Both ends of a stream with the peer, and where it listens.
    pub fn peer_ends(&self) -> Option<(Ends<'_>, &[SocketAddr])> {
        let peer = self.config.peer.as_ref()?;
        let ends = Ends {
            site: self.config.site,
            me: &self.identity,
            voter: self.voter(),
            peer: peer.voter.voter(),
            key: peer.key,
        };
        Some((ends, &peer.addresses))
    }
}

/// The loop's own part.
struct Loop {
    site: Rc<Site>,
    store: Store,
    udp: UdpSocket,
    session: u64,
    stamp_us: u64,
    known: BTreeMap<VoterId, Freshness>,
    job: Option<JoinHandle<()>>,
    platform: Platform,
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
pub fn files(config: &Config) -> (PathBuf, Vec<PathBuf>) {
    let counters = [config.run.join("count")].into_iter().chain(config.counter.clone()).collect();
    (config.state.join("voter"), counters)
}

async fn main(config: Config) -> Result<()> {
    for folder in ["db", "tunnel", "copy"] {
        durable::make_folder(&config.run.join(folder), 0o700)?;
    }
    let identity = Identity::open(&config.state)?;
    let (path, counters) = files(&config);
    let Opened { store, voter, value, start } = Store::open::<Saved>(&path, counters)?;
    let platform = platform(&config)?;
    server::stop_leftover(&config.postgres.data).await?;
    let udp = UdpSocket::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let tcp =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let clients =
        TcpListener::bind(config.port).await.with_context(|| format!("listen on {}", config.port))?;
    let (inputs, events) = mpsc::unbounded_channel();
    let site = Rc::new(Site {
        me: voter,
        identity,
        node: RefCell::new(None),
        port_gate: Rc::default(),
        tunnel_gate: Rc::default(),
        copy_gate: Rc::default(),
        tunnel: Cell::new(Tunnel::Closed),
        task: Cell::new(Task::Rest),
        postgres: Cell::new(Postgres::Stopped),
        names: Cell::new(Names::Only(nobody(voter.voter()))),
        server_wanted: Notify::new(),
        server_runs: Cell::new(false),
        server_pid: Cell::new(None),
        system_id: Cell::new(0),
        inputs,
        config,
    });
    let (requests, asked) = mpsc::channel(8);
    spawn_local(port::serve(Rc::clone(&site), clients));
    spawn_local(tunnel::serve(Rc::clone(&site), tcp));
    spawn_local(tunnel::follow(Rc::clone(&site), socket(&site.tunnel_sockets().join(".s.PGSQL.5432"))?));
    spawn_local(tunnel::fetch(Rc::clone(&site), socket(&site.copy_sockets().join(".s.PGSQL.5432"))?));
    spawn_local(control::serve(socket(&site.config.run.join("control"))?, requests));
    spawn_local(probe(Rc::clone(&site)));
    spawn_local(server::supervise(Rc::clone(&site)));
    let session = Number::draw()?.0;
    let mut agent =
        Loop { site, store, udp, session, stamp_us: 0, known: BTreeMap::new(), job: None, platform };
    if let Some(saved) = value {
        agent.begin(saved, start)?;
    }
    agent.serve(events, asked).await
}

fn socket(path: &std::path::Path) -> Result<UnixListener> {
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}

/// Shows again and again that the disk finishes flushes.
async fn probe(site: Rc<Site>) {
    let path = site.config.state.join("probe");
    loop {
        let path = path.clone();
        let flushed = tokio::task::spawn_blocking(move || {
            use std::io::Write;
            let mut file = std::fs::File::create(path)?;
            file.write_all(b"x")?;
            file.sync_data()
        });
        match flushed.await {
            Ok(Ok(())) => site.report(Event::Synced).await,
            Ok(Err(error)) => tracing::warn!(%error, "the disk does not flush"),
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

    fn begin(&mut self, saved: Saved, start: Start) -> Result<()> {
        let settings = self.site.config.settings(self.platform);
        let (node, effects) = resume(saved, start, settings, boot_ms());
        self.site.system_id.set(saved.voter.register.system_id);
        tracing::info!(phase = ?node.run.phase, epoch = saved.voter.register.epoch, ?start, "the node begins");
        self.site.node.borrow_mut().replace(node);
        effects.into_iter().try_for_each(|effect| self.perform(effect))
    }

    /// One decision with all its effects; says why a command was not taken.
    fn step(&mut self, event: Event) -> Result<Option<&'static str>> {
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

    fn send(&mut self, message: &Message) {
        let Some(party) = self.site.config.party(message.to) else {
            tracing::debug!(to = ?message.to, "the configuration does not name a voter");
            return;
        };
        let now = boot_us();
        self.stamp_us = now.max(self.stamp_us + 1);
        let stamp = Stamp { session: self.session, at_us: self.stamp_us };
        let echo = self.known.get(&message.to).map(|known| known.echo(now)).unwrap_or_default();
        let header = Header { site: self.site.config.site, from: message.from, to: message.to };
        let envelope = Envelope { stamp, echo, message: *message };
        match seal::seal(&self.site.identity, &party.key.point(), header, &envelope) {
            Ok(datagram) => party.addresses.iter().for_each(|address| {
                if let Err(error) = self.udp.try_send_to(&datagram, *address) {
                    tracing::trace!(%error, %address, "a message did not leave");
                }
            }),
            Err(error) => tracing::warn!(error = format!("{error:#}"), "a message was not sent"),
        }
    }

    fn hear(&mut self, datagram: &[u8], from: SocketAddr) -> Result<()> {
        let Some(header) = Header::decode(datagram) else { return Ok(()) };
        let ours = header.site == self.site.config.site && header.to == self.site.voter();
        let Some(party) = self.site.config.party(header.from).filter(|_| ours) else {
            tracing::debug!(%from, "a datagram of a stranger");
            return Ok(());
        };
        let envelope = match seal::open(&self.site.identity, &party.key.point(), datagram) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::debug!(%from, error = format!("{error:#}"), "a datagram was dropped");
                return Ok(());
            }
        };
        let register = envelope.message.register;
        let joins = self.site.node.borrow().is_none() && register.members.has_node(self.site.voter());
        if joins {
            let life = Number::draw()?.0;
            self.begin(blank(self.site.voter(), life, register), Start::Proven)?;
        }
        let known = self.known.entry(header.from).or_default();
        if known.accept(&envelope, self.session, boot_us()) {
            self.step(Event::Message(envelope.message))?;
        }
        Ok(())
    }

    fn answer(&mut self, request: Request) -> Result<()> {
        let answer = match request.ask.command(&self.site) {
            Ok(Some(command)) => {
                tracing::warn!(?command, "an operator commands");
                let refused = self.step(Event::Operator(command))?;
                refused.map_or_else(|| Ok(control::status(&self.site)), |why| Err(why.to_owned()))
            }
            Ok(None) => Ok(control::status(&self.site)),
            Err(error) => Err(format!("{error:#}")),
        };
        if request.reply.send(answer).is_err() {
            tracing::debug!("an operator did not wait for the answer");
        }
        Ok(())
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
