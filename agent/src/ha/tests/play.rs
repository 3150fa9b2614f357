//! A world directed by hand: what is sent waits on the wire until the script lets it pass, or loses it.

use super::fair;
use super::world::{A, Act, B, W, World, settings};
use crate::ha::message::{Body, Message};
use crate::ha::register::{OnPeerLoss, VoterId};
use crate::ha::settings::Settings;
use crate::ha::state::{Join, Phase};
use crate::ha::want::Tunnel;

pub struct Play {
    pub world: World,
    pub wire: Vec<Message>,
}

impl Play {
    pub fn paired() -> Self {
        Self::paired_with(settings())
    }

    pub fn paired_with(settings: Settings) -> Self {
        Self { world: fair::paired(OnPeerLoss::Witness(W), settings), wire: Vec::new() }
    }

    /// A is the holder, B streams and is close; nothing is named yet.
    pub fn joining(settings: Settings) -> Self {
        let mut world = World::new(OnPeerLoss::Witness(W), settings);
        let near = |world: &World| world.sites[0].database.confirmed.is_some();
        assert!(fair::run(&mut world, [true, true, true], 300, near));
        Self { world, wire: Vec::new() }
    }

    pub fn act(&mut self, act: Act) {
        self.wire.extend(self.world.act(act));
    }

    pub fn acts(&mut self, acts: &[Act]) {
        acts.iter().for_each(|act| self.act(*act));
    }

    /// Everything on the wire from one to the other arrives.
    pub fn pass(&mut self, from: VoterId, to: VoterId) {
        let wire = std::mem::take(&mut self.wire);
        let (now, later): (Vec<_>, Vec<_>) = wire.into_iter().partition(|m| m.from == from && m.to == to);
        self.wire = later;
        now.into_iter().for_each(|message| self.act(Act::Deliver(message)));
    }

    /// These two talk, in both directions, until neither has anything to say.
    pub fn talk(&mut self, x: VoterId, y: VoterId) {
        for _ in 0..12 {
            self.pass(x, y);
            self.pass(y, x);
        }
    }

    pub fn lose(&mut self) {
        self.wire.clear();
    }

    /// The node's clock goes on, and it says what it has to say.
    pub fn wait(&mut self, id: VoterId, ms: u64) {
        if id != W {
            self.world.sites[World::index(id)].now += ms;
        }
        self.act(Act::Tick(id));
    }

    /// Two parties talk for a while; nobody else is heard.
    pub fn only(&mut self, x: VoterId, y: VoterId, rounds: usize) {
        for _ in 0..rounds {
            self.wait(x, 150);
            self.wait(y, 150);
            self.talk(x, y);
            self.lose();
            for n in [x, y].into_iter().filter(|id| *id != W).map(World::index) {
                self.local(n);
            }
            self.talk(x, y);
            self.lose();
        }
    }

    /// The node's own server does what is wanted, without any word from the other's.
    pub fn local(&mut self, n: usize) {
        for _ in 0..4 {
            for act in [Act::Run(n), Act::ReadNames(n), Act::Publish(n), Act::Look(n), Act::Canary(n)] {
                self.act(act);
            }
        }
    }

    pub fn phase(&self, n: usize) -> Phase {
        self.world.phase(n).unwrap()
    }

    pub fn epoch(&self, n: usize) -> u64 {
        self.world.sites[n].disk.voter.register.epoch
    }

    pub fn tunnel(&self, n: usize) -> Tunnel {
        self.world.sites[n].database.tunnel
    }

    /// From [`Play::joining`]: A goes on towards taking B back and is stopped as soon as it has come so far.
    pub fn until(&mut self, far: Join) {
        for _ in 0..40 {
            self.wait(A, 100);
            self.wait(B, 100);
            self.talk(A, B);
            self.lose();
            for _ in 0..4 {
                let other = [Act::Run(1), Act::Look(1)];
                let own = [Act::Run(0), Act::ReadNames(0), Act::Publish(0), Act::Stream(0), Act::Arrive(0)];
                for act in other.into_iter().chain(own).chain([Act::Look(0), Act::Canary(0)]) {
                    if self.phase(0) == Phase::Alone(far) {
                        return;
                    }
                    self.act(act);
                }
            }
        }
        panic!("A did not come to {far:?}: {:?}", self.phase(0));
    }

    /// From [`Play::joining`]: A's own vote for `Paired` is durable and its requests are on the wire.
    pub fn vote_for_pair(&mut self) {
        self.until(Join::Proposing);
        self.lose();
        self.wait(A, 500);
        for _ in 0..2 {
            self.pass(A, B);
            self.pass(B, A);
        }
        assert!(self.world.node(0).is_some_and(|node| node.voted_pair()), "A has not voted");
        self.wire.retain(|m| matches!(m.body, Body::Accept(_)));
        assert!(!self.wire.is_empty());
    }
}
