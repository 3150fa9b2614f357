//! Two nodes and a witness with their databases and disks: the real `step` in a world where every act is a choice.
//!
//! Shared by the model checker and the random schedules; it knows nothing of networks: what is sent comes back from each
//! act, and the caller delivers it, or not, as often as it likes.

use super::database::{Database, Up};
use crate::ha::acceptor::Acceptor;
use crate::ha::message::{Flushed, Message};
use crate::ha::register::{Members, OnPeerLoss, Platform, Register, VoterId};
use crate::ha::resume::{Start, blank, resume};
use crate::ha::settings::Settings;
use crate::ha::state::{Command, Copying, Data, Event, Ms, Node, Phase, Refusal, Saved};
use crate::ha::want::{Effect, Task};
use crate::ha::witness::{self, Witness, WitnessEffect, WitnessEvent};

pub const A: VoterId = VoterId(1);
pub const B: VoterId = VoterId(2);
pub const W: VoterId = VoterId(3);
pub const PLATFORM: Platform = Platform { postgres_major: 17, machine: 62 };
pub const SYSTEM: u64 = 77;
/// Where each node's clock stands at first: far from 0, so that everything can be long ago.
pub const NOON: Ms = 1_000_000;

/// One thing that happens at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    Deliver(Message),
    /// Delivered, and the power goes right after the save.
    DeliverCut(Message),
    Tick(VoterId),
    TickCut(VoterId),
    /// The clock jumps beyond every deadline.
    Late(VoterId),
    /// Postgres moves towards its wanted role.
    Run(usize),
    Look(usize),
    ReadNames(usize),
    Publish(usize),
    /// The other node's database receives and flushes everything from this one.
    Stream(usize),
    Arrive(usize),
    StreamGone(usize),
    Canary(usize),
    Copy(usize),
    CopyFail(usize),
    Write(usize),
    Acknowledge(usize),
    Kill(usize),
    Hang(usize),
    Crash(VoterId),
    Restart(VoterId),
    /// Starts from the backup, or from its own state without proof that it is the newest.
    Restore(VoterId, bool),
    Backup(VoterId),
    Operator(usize, Command),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    /// `None` while the power is off.
    pub node: Option<Node>,
    pub disk: Saved,
    pub database: Database,
    pub backup: (Saved, Database),
    pub now: Ms,
    /// The disk does not finish flushes.
    pub hung: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub sites: [Site; 2],
    pub witness: Witness,
    pub witness_up: bool,
    pub witness_backup: Acceptor,
    pub settings: Settings,
    /// Writes that a client saw, acknowledged or read.
    pub exposed: u32,
    pub acknowledged: u32,
    pub writes: u8,
    pub lives: u64,
    pub violation: Option<&'static str>,
    /// In the model a clock is either on time or late; elsewhere it counts.
    pub coarse: bool,
}

pub fn settings() -> Settings {
    Settings { join_lag_bytes: 100, ..Settings::new(PLATFORM) }
}

pub fn pair(loss: OnPeerLoss) -> Members {
    Members::Pair { nodes: [A, B], loss }
}

impl World {
    /// A serves alone, B and W are new; the members are already decided.
    pub fn new(loss: OnPeerLoss, settings: Settings) -> Self {
        let first = Register::first(A, SYSTEM, PLATFORM);
        let register = Register { epoch: 2, members: pair(loss), ..first };
        let site = |saved: Saved| {
            let database = Database::new(saved.voter.id);
            Site { node: None, disk: saved, database, backup: (saved, database), now: NOON, hung: false }
        };
        let a = Saved { voter: Acceptor::new(A, 1, register), data: Data::Led };
        let witness = Acceptor::new(W, 3, register);
        let mut world = Self {
            sites: [site(a), site(blank(B, 2, register))],
            witness: Witness::start(witness),
            witness_up: register.members.witness().is_some(),
            witness_backup: witness,
            settings,
            exposed: 0,
            acknowledged: 0,
            writes: 0,
            lives: 10,
            violation: None,
            coarse: false,
        };
        world.start(0, Start::Proven);
        world.start(1, Start::Proven);
        world
    }

    /// Goes over to clocks that are either on time or late.
    pub fn be_coarse(&mut self) {
        self.coarse = true;
        for site in &mut self.sites {
            let now = std::mem::replace(&mut site.now, NOON);
            let Some(node) = &mut site.node else { continue };
            let round = |at: &mut Ms| *at = if now.saturating_sub(*at) <= 500 { NOON } else { 0 };
            let run = &mut node.run;
            [&mut run.since, &mut run.witness_at, &mut run.fsync_at, &mut run.streamed_at]
                .into_iter()
                .for_each(round);
            [&mut run.peer.heard_at, &mut run.peer.able_at].into_iter().for_each(round);
            for at in [&mut run.retry_at, &mut run.join_at] {
                *at = if *at > now { NOON + 1 } else { 0 };
            }
        }
    }

    pub fn index(id: VoterId) -> usize {
        usize::from(id == B)
    }

    pub fn node(&self, n: usize) -> Option<&Node> {
        self.sites[n].node.as_ref()
    }

    pub fn phase(&self, n: usize) -> Option<Phase> {
        self.node(n).map(|node| node.run.phase)
    }

    fn start(&mut self, n: usize, start: Start) -> Vec<Message> {
        let site = &mut self.sites[n];
        let (node, effects) = resume(site.disk, start, self.settings, site.now);
        site.node = Some(node);
        self.apply(n, &effects, false)
    }

    fn apply(&mut self, n: usize, effects: &[Effect], cut: bool) -> Vec<Message> {
        let mut sent = Vec::new();
        for effect in effects {
            let site = &mut self.sites[n];
            match *effect {
                Effect::Save(saved) => site.disk = saved,
                Effect::Postgres(want) => site.database.want = want,
                Effect::Names(names) => site.database.file = names,
                Effect::Tunnel(tunnel) => site.database.set_tunnel(tunnel),
                Effect::Port(port) => site.database.set_port(port),
                Effect::Task(task) => site.database.set_task(task),
                Effect::Send(message) => sent.push(message),
                Effect::CommandRefused(_) | Effect::Rejected(..) => {}
            }
            if cut && matches!(effect, Effect::Save(_)) {
                self.crash(n);
                return Vec::new();
            }
        }
        sent
    }

    fn crash(&mut self, n: usize) {
        self.sites[n].node = None;
        self.sites[n].database.crash();
    }

    pub fn feed(&mut self, n: usize, event: Event) -> Vec<Message> {
        self.feed_cut(n, event, false)
    }

    fn feed_cut(&mut self, n: usize, event: Event, cut: bool) -> Vec<Message> {
        let Some(node) = self.sites[n].node else { return Vec::new() };
        let (next, effects) = crate::ha::step(&node, event, self.sites[n].now);
        #[cfg(test)]
        super::drawing::note(node.run.phase, next.run.phase);
        self.sites[n].node = Some(next);
        let sent = self.apply(n, &effects, cut);
        if next.run.phase == Phase::Refused(Refusal::Conflict) {
            self.violation = Some("two different decisions of one epoch");
        }
        if let (true, Some(node)) = (self.coarse, &mut self.sites[n].node) {
            coarsen(node);
        }
        sent
    }

    fn feed_witness(&mut self, event: WitnessEvent) -> Vec<Message> {
        if !self.witness_up {
            return Vec::new();
        }
        let (next, effects) = witness::step(&self.witness, event);
        self.witness = next;
        let mut sent = Vec::new();
        for effect in effects {
            match effect {
                WitnessEffect::Save(_) => {}
                WitnessEffect::Send(message) => sent.push(message),
                WitnessEffect::Rejected(_, Refusal::Conflict) => {
                    self.violation = Some("two different decisions of one epoch");
                }
                WitnessEffect::Rejected(..) => {}
            }
        }
        sent
    }

    /// Does one act; what it sends comes back. Acts that are not possible do nothing.
    pub fn act(&mut self, act: Act) -> Vec<Message> {
        let sent = match act {
            Act::Deliver(message) => self.deliver(message, false),
            Act::DeliverCut(message) => self.deliver(message, true),
            Act::Tick(id) => self.tick(id, false),
            Act::TickCut(id) => self.tick(id, true),
            Act::Late(id) => self.late(id),
            Act::Crash(id) | Act::Restart(id) | Act::Restore(id, _) | Act::Backup(id) => self.power(id, act),
            Act::Operator(n, command) => self.feed(n, Event::Operator(command)),
            Act::Hang(n) => {
                self.sites[n].hung = !self.sites[n].hung;
                Vec::new()
            }
            Act::Run(_)
            | Act::Look(_)
            | Act::ReadNames(_)
            | Act::Publish(_)
            | Act::Stream(_)
            | Act::Arrive(_)
            | Act::StreamGone(_)
            | Act::Canary(_)
            | Act::Copy(_)
            | Act::CopyFail(_)
            | Act::Write(_)
            | Act::Acknowledge(_)
            | Act::Kill(_) => self.database_act(act),
        };
        self.judge();
        sent
    }

    fn deliver(&mut self, message: Message, cut: bool) -> Vec<Message> {
        if message.to == W {
            self.feed_witness(WitnessEvent::Message(message))
        } else {
            self.feed_cut(Self::index(message.to), Event::Message(message), cut)
        }
    }

    fn tick(&mut self, id: VoterId, cut: bool) -> Vec<Message> {
        if id == W {
            return self.feed_witness(WitnessEvent::Tick);
        }
        let n = Self::index(id);
        if !self.sites[n].hung {
            self.feed(n, Event::Synced);
        }
        self.feed_cut(n, Event::Tick, cut)
    }

    fn late(&mut self, id: VoterId) -> Vec<Message> {
        if id != W {
            let site = &mut self.sites[Self::index(id)];
            match (&mut site.node, self.coarse) {
                (Some(node), true) => stale(node),
                (Some(_) | None, _) => site.now += 20_000,
            }
        }
        self.tick(id, false)
    }

    fn power(&mut self, id: VoterId, act: Act) -> Vec<Message> {
        let n = Self::index(id);
        match (act, id == W) {
            (Act::Crash(_), true) => {
                self.witness_up = false;
                self.witness = Witness::start(self.witness.voter);
            }
            (Act::Crash(_), false) => self.crash(n),
            (Act::Restart(_), true) => self.witness_up = true,
            (Act::Restart(_), false) => return self.start(n, Start::Proven),
            (Act::Restore(_, old), true) => {
                self.lives += 1;
                let voter = if old { self.witness_backup } else { self.witness.voter };
                let muted = self.settings.keeps(crate::ha::settings::Rule::MuteUntilHeard);
                let voter = Acceptor { muted, ..voter.unproven(self.lives) };
                self.witness = Witness::start(voter);
                self.witness_up = true;
            }
            (Act::Restore(_, old), false) => {
                self.lives += 1;
                let site = &mut self.sites[n];
                if old {
                    (site.disk, site.database) = site.backup;
                }
                site.database.crash();
                return self.start(n, Start::Unproven { life: self.lives });
            }
            (Act::Backup(_), true) => self.witness_backup = self.witness.voter,
            (Act::Backup(_), false) => self.sites[n].backup = (self.sites[n].disk, self.sites[n].database),
            (_, _) => {}
        }
        Vec::new()
    }

    fn database_act(&mut self, act: Act) -> Vec<Message> {
        match act {
            Act::Run(n) => self.run(n),
            Act::Look(n) => return self.look(n),
            Act::ReadNames(n) => {
                self.sites[n].database.read_names();
            }
            Act::Publish(n) => {
                self.sites[n].database.publish_names();
            }
            Act::Stream(n) => self.stream(n),
            Act::Arrive(n) => {
                self.sites[n].database.arrive();
            }
            Act::StreamGone(n) => return self.feed(1 - n, Event::StreamGone),
            Act::Canary(n) => return self.canary(n),
            Act::Copy(n) => return self.copy(n),
            Act::CopyFail(n) if matches!(self.sites[n].database.task, Task::Copy { .. }) => {
                // The job is over; only another effect begins one.
                self.sites[n].database.task = Task::Rest;
                return self.feed(n, Event::CopyFailed);
            }
            Act::CopyFail(_) => {}
            Act::Write(n) => self.write(n),
            Act::Acknowledge(n) => self.acknowledge(n),
            Act::Kill(n) => self.sites[n].database.kill(),
            Act::Deliver(_)
            | Act::DeliverCut(_)
            | Act::Tick(_)
            | Act::TickCut(_)
            | Act::Late(_)
            | Act::Hang(_)
            | Act::Crash(_)
            | Act::Restart(_)
            | Act::Restore(..)
            | Act::Backup(_)
            | Act::Operator(..) => {}
        }
        Vec::new()
    }

    fn run(&mut self, n: usize) {
        // A server that stops in good order sends its last records to a standby that is connected.
        self.stream(n);
        if let Err(broken) = self.sites[n].database.run() {
            self.violation = Some(broken);
        }
    }

    fn look(&mut self, n: usize) -> Vec<Message> {
        let server = self.sites[n].database.server();
        self.sites[n].database.told = server;
        self.feed(n, Event::Postgres { system_id: SYSTEM, server })
    }

    fn stream(&mut self, n: usize) {
        let (primary, standby) = (self.sites[n].database, self.sites[1 - n].database);
        let Some(name) = primary.connection(&standby) else { return };
        if !standby.log.starts(&primary.log) {
            return;
        }
        self.sites[1 - n].database.log = primary.log;
        self.sites[1 - n].database.timeline = primary.timeline;
        self.sites[n].database.arriving = Some(Flushed { name, lsn: primary.log.end() });
    }

    fn canary(&mut self, n: usize) -> Vec<Message> {
        let database = &self.sites[n].database;
        let (Task::Canary { attempt }, Up::Primary) = (database.task, database.up) else { return Vec::new() };
        let event = if database.force == crate::ha::want::Names::Off {
            Event::CanaryDone { attempt }
        } else {
            Event::CanaryWaits { attempt, lsn: database.log.end() }
        };
        self.feed(n, event)
    }

    fn copy(&mut self, n: usize) -> Vec<Message> {
        let source = self.sites[1 - n];
        let database = &mut self.sites[n].database;
        let Task::Copy { how, .. } = database.task else { return Vec::new() };
        let serves = source.node.is_some() && source.database.up == Up::Primary;
        match (database.up, how) {
            (Up::Down { .. }, Copying::Export) => self.feed(n, Event::Exported),
            (Up::Down { .. }, Copying::Rewind | Copying::Reseed) if serves => {
                (database.log, database.timeline) = (source.database.log, source.database.timeline);
                database.ruined = false;
                self.feed(n, Event::Copied)
            }
            (Up::Down { .. } | Up::Primary | Up::Standby, _) => Vec::new(),
        }
    }

    fn write(&mut self, n: usize) {
        let database = &mut self.sites[n].database;
        if database.serves() && !database.log.full() && self.writes < 31 {
            database.log.push(self.writes);
            database.waits |= 1 << self.writes;
            self.writes += 1;
        }
    }

    fn acknowledge(&mut self, n: usize) {
        if let Some(write) = self.sites[n].database.acknowledge() {
            self.acknowledged |= 1 << write;
        }
    }
}

/// Times of a node in the model: each is now, or long ago, or still to come.
fn coarsen(node: &mut Node) {
    for at in [&mut node.run.retry_at, &mut node.run.join_at] {
        *at = if *at > NOON { NOON + 1 } else { 0 };
    }
}

fn stale(node: &mut Node) {
    let run = &mut node.run;
    (run.since, run.retry_at, run.join_at, run.witness_at, run.fsync_at, run.streamed_at) =
        (0, 0, 0, 0, 0, 0);
    (run.peer.heard_at, run.peer.able_at) = (0, 0);
}
