//! The model: every order of every act within a budget of faults, explored by `stateright` over the real `step`.
//!
//! Messages are a set that only grows: each may be delivered at any later time, again and again, or never, so loss,
//! repetition, delay and reordering need no acts of their own. Clocks are either on time or late, at any moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::fair;
use super::world::{A, Act, B, W, World, settings};
use crate::ha::message::{Body, Message};
use crate::ha::register::{OnPeerLoss, VoterId};
use crate::ha::state::Command;
use crate::ha::want::Task;

/// Messages by number, so that a state carries numbers.
static SEEN: Mutex<(BTreeMap<Message, u32>, Vec<Message>)> = Mutex::new((BTreeMap::new(), Vec::new()));

fn number(message: Message) -> u32 {
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    let (numbers, messages) = &mut *seen;
    *numbers.entry(message).or_insert_with(|| {
        messages.push(message);
        messages.len() as u32 - 1
    })
}

fn message(number: u32) -> Message {
    SEEN.lock().unwrap_or_else(PoisonError::into_inner).1[number as usize]
}

/// How much of each may happen on one path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub late: u8,
    pub crash: u8,
    pub restore: u8,
    pub kill: u8,
    pub hang: u8,
    pub writes: u8,
    pub commands: u8,
    /// Power lost between a save and what follows it.
    pub cuts: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spot {
    pub world: World,
    pub wire: BTreeSet<u32>,
    pub left: Budget,
}

pub struct Pairs {
    pub starts: Vec<World>,
    pub budget: Budget,
    pub epochs: u64,
    pub rounds: u32,
    pub commands: Vec<Command>,
    /// Of how many states one is asked whether service comes back; 0 is none.
    pub sample: u64,
}

fn slot(id: VoterId) -> usize {
    if id == W { 2 } else { World::index(id) }
}

impl Spot {
    fn up(&self, id: VoterId) -> bool {
        if id == W { self.world.witness_up } else { self.world.sites[slot(id)].node.is_some() }
    }

    fn spend(&mut self, act: &Act) -> Option<()> {
        let left = &mut self.left;
        let purse = match act {
            Act::Late(_) => &mut left.late,
            Act::Crash(_) => &mut left.crash,
            Act::DeliverCut(_) | Act::TickCut(_) => &mut left.cuts,
            Act::Restore(..) => &mut left.restore,
            Act::Kill(_) => &mut left.kill,
            Act::Hang(_) => &mut left.hang,
            Act::Write(_) => &mut left.writes,
            Act::Operator(..) => &mut left.commands,
            Act::Deliver(_)
            | Act::Tick(_)
            | Act::Run(_)
            | Act::Look(_)
            | Act::ReadNames(_)
            | Act::Publish(_)
            | Act::Stream(_)
            | Act::Arrive(_)
            | Act::StreamGone(_)
            | Act::Canary(_)
            | Act::Copy(_)
            | Act::CopyFail(_)
            | Act::Acknowledge(_)
            | Act::Restart(_)
            | Act::Backup(_) => return Some(()),
        };
        *purse = purse.checked_sub(1)?;
        Some(())
    }

    fn database_acts(&self, n: usize, acts: &mut Vec<Act>) {
        let (site, database) = (&self.world.sites[n], &self.world.sites[n].database);
        acts.push(Act::Run(n));
        if database.told != database.server() {
            acts.push(Act::Look(n));
        }
        acts.extend([Act::ReadNames(n), Act::Publish(n), Act::Arrive(n), Act::Acknowledge(n)]);
        if fair::stream_is_gone(&self.world, n) {
            acts.push(Act::StreamGone(n));
        } else {
            acts.push(Act::Stream(n));
        }
        if database.serves() {
            acts.push(Act::Write(n));
        }
        match database.task {
            Task::Canary { .. } => acts.push(Act::Canary(n)),
            Task::Copy { .. } => acts.push(Act::Copy(n)),
            Task::Rest => {}
        }
        if site.node.is_some() {
            acts.extend([Act::Kill(n), Act::Hang(n)]);
        }
    }
}

impl Model for Pairs {
    type State = Spot;
    type Action = Act;

    fn init_states(&self) -> Vec<Spot> {
        let spot = |world: &World| {
            let mut world = *world;
            world.be_coarse();
            Spot { world, wire: BTreeSet::new(), left: self.budget }
        };
        self.starts.iter().map(spot).collect()
    }

    fn actions(&self, spot: &Spot, acts: &mut Vec<Act>) {
        for id in [A, B, W] {
            if !spot.up(id) {
                acts.push(Act::Restart(id));
                if spot.left.restore > 0 {
                    acts.extend([Act::Restore(id, true), Act::Restore(id, false)]);
                }
                continue;
            }
            acts.extend([Act::Tick(id), Act::Crash(id)]);
            if id != W {
                acts.extend([Act::Late(id), Act::TickCut(id)]);
            }
        }
        (0..2).filter(|n| spot.world.sites[*n].node.is_some()).for_each(|n| spot.database_acts(n, acts));
        for number in &spot.wire {
            let message = message(*number);
            if spot.up(message.to) {
                acts.push(Act::Deliver(message));
                if message.to != W && !matches!(message.body, Body::Beat(_) | Body::Seen) {
                    acts.push(Act::DeliverCut(message));
                }
            }
        }
        for command in &self.commands {
            acts.extend([Act::Operator(0, *command), Act::Operator(1, *command)]);
        }
    }

    fn next_state(&self, spot: &Spot, act: Act) -> Option<Spot> {
        let mut next = spot.clone();
        next.spend(&act)?;
        for message in next.world.act(act) {
            next.wire.insert(number(message));
        }
        (next != *spot).then_some(next)
    }

    fn within_boundary(&self, spot: &Spot) -> bool {
        let voters =
            [spot.world.sites[0].disk.voter, spot.world.sites[1].disk.voter, spot.world.witness.voter];
        voters.iter().all(|v| v.register.epoch <= self.epochs && v.promised.round <= self.rounds)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one truth, nothing lost", |_: &Self, spot: &Spot| {
                spot.world.violation.is_none()
            }),
            Property::always("service comes back", Self::comes_back),
        ]
    }
}

impl Pairs {
    fn comes_back(&self, spot: &Spot) -> bool {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        spot.hash(&mut hasher);
        self.sample == 0
            || !hasher.finish().is_multiple_of(self.sample)
            || fair::all_recover(&spot.world).is_ok()
    }

    /// Explores at most so many states; prints what it did.
    pub fn check(self, name: &str, states: usize) -> Result<usize, String> {
        let checker = self
            .checker()
            .target_state_count(states)
            .finish_when(HasDiscoveries::AnyFailures)
            .spawn_bfs()
            .join();
        println!(
            "{name}: {} different states, {} visits, depth {}",
            checker.unique_state_count(),
            checker.state_count(),
            checker.max_depth()
        );
        match checker.discoveries().into_iter().next() {
            None => Ok(checker.unique_state_count()),
            Some((property, path)) => {
                let last = path.last_state().world;
                let acts =
                    path.into_actions().into_iter().map(|act| format!("  {act:?}\n")).collect::<String>();
                Err(format!("{property}: {:?} after\n{acts}{:?}", last.violation, last.sites))
            }
        }
    }
}

/// From a pair in sync: everything that one loss of the peer can lead to.
fn in_sync(budget: Budget) -> Pairs {
    let starts = vec![fair::paired(OnPeerLoss::Witness(W), settings())];
    Pairs { starts, budget, epochs: 5, rounds: 3, commands: Vec::new(), sample: 256 }
}

/// From the moment at which the holder of `Solo` is about to take its peer back.
fn joining(budget: Budget) -> Pairs {
    let mut world = World::new(OnPeerLoss::Witness(W), settings());
    let near = |world: &World| world.sites[0].database.confirmed.is_some();
    assert!(fair::run(&mut world, [true, true, true], 300, near));
    Pairs { starts: vec![world], budget, epochs: 4, rounds: 3, commands: Vec::new(), sample: 256 }
}

fn states(ordinary: usize) -> usize {
    std::env::var("FARHOLD_HA_STATES").ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

fn assert_holds(outcome: Result<usize, String>) {
    match outcome {
        Ok(states) => {
            assert!(states > 10_000, "only {states} states: the model is too small to say anything")
        }
        Err(path) => panic!("{path}"),
    }
}

#[test]
fn model_of_a_pair_that_loses_a_node() {
    let budget = Budget { late: 2, crash: 1, writes: 1, ..Budget::default() };
    assert_holds(in_sync(budget).check("loses a node", states(300_000)));
}

#[test]
fn model_of_a_rejoin() {
    let budget = Budget { late: 1, crash: 1, kill: 1, writes: 1, ..Budget::default() };
    assert_holds(joining(budget).check("rejoin", states(300_000)));
}

#[test]
fn model_of_a_voter_with_old_state() {
    let budget = Budget { late: 2, crash: 1, restore: 1, ..Budget::default() };
    assert_holds(in_sync(budget).check("old state", states(300_000)));
}

#[test]
fn model_of_a_planned_hand_over() {
    let budget = Budget { late: 1, crash: 1, commands: 1, cuts: 1, ..Budget::default() };
    let commands = vec![Command::Switchover, Command::Leave];
    assert_holds(Pairs { commands, ..in_sync(budget) }.check("hand-over", states(300_000)));
}

/// For `make test-all`: the same questions with every kind of fault at once.
#[test]
#[ignore = "long: minutes and some GiB; FARHOLD_HA_STATES says how many visits"]
fn model_with_every_fault() {
    let budget = Budget { late: 3, crash: 2, restore: 1, kill: 1, hang: 1, writes: 2, commands: 1, cuts: 1 };
    let commands = vec![Command::Switchover, Command::Leave];
    assert_holds(Pairs { commands, ..in_sync(budget) }.check("every fault, in sync", states(1_000_000)));
    assert_holds(joining(Budget { commands: 0, ..budget }).check("every fault, rejoin", states(1_000_000)));
}
