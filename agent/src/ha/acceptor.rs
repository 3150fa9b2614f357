//! One voter's durable vote: the decided register, and promise and vote for the epoch after it.
//!
//! It does not know whether it sits in a data node or in a witness. Everything in [`Acceptor`] is durable before
//! an answer leaves (the caller emits the save before the send). Specification: Lamport, "Paxos Made Simple" (2001),
//! one instance per epoch, over the voters that the register of the epoch before names;
//! the silence of a voter that may be out of date: `docs/ha-protocol.md`, "Mute".

use serde::{Deserialize, Serialize};

use std::cmp::Ordering;

use super::message::{Ballot, Body, Message, Vote};
use super::register::{Register, VoterId, Voters};

/// What a voter keeps on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Acceptor {
    /// Who this voter is.
    pub id: VoterId,
    /// Drawn anew at each start that cannot be shown to be from the newest state.
    pub life: u64,
    /// Set at such a start, durable, cleared when all other voters were heard.
    pub muted: bool,
    /// The newest register known to be decided.
    pub register: Register,
    /// The promise for the next epoch.
    pub promised: Ballot,
    /// The last vote for the next epoch.
    pub accepted: Option<Vote>,
}

/// What became of a register that another party reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// It was newer and is now ours.
    Newer,
    /// It is the one we have.
    Same,
    /// Ours is newer.
    Older,
    /// Same epoch, different content: impossible unless state was forged or two operators forced a decision.
    Conflict,
}

impl Acceptor {
    /// A voter that has never voted, at a register that it was told.
    #[must_use]
    pub fn new(id: VoterId, life: u64, register: Register) -> Self {
        Self { id, life, muted: false, register, promised: Ballot::default(), accepted: None }
    }

    /// Marks a start from a state that may not be the newest: a new life, and no vote until all others were heard.
    #[must_use]
    pub fn unproven(self, life: u64) -> Self {
        // A vote that matters was given by another voter too, and comes back with its answer; one that only this voter
        // remembers would bind the others to a node whose data may be old.
        let accepted = self.accepted.filter(|_| self.decides_alone());
        Self { life, muted: true, accepted, ..self }
    }

    /// All voters but this one.
    #[must_use]
    pub fn others(&self) -> Voters {
        self.register.members.voters().iter().filter(|voter| *voter != self.id).collect()
    }

    /// Whether this vote alone decides. Nobody else can know what such a voter forgot, so only an operator can end its
    /// silence.
    #[must_use]
    pub fn decides_alone(&self) -> bool {
        self.register.members.is_quorum(&[self.id].into_iter().collect())
    }

    /// Whether this voter may answer requests for a vote.
    #[must_use]
    pub fn votes(&self) -> bool {
        !self.muted && self.register.members.voters().contains(self.id)
    }

    /// Takes a decided register; a newer one starts the next epoch's vote afresh.
    pub fn learn(&mut self, register: &Register) -> Learned {
        match register.age(&self.register) {
            Ordering::Greater => {
                self.register = *register;
                self.promised = Ballot::default();
                self.accepted = None;
                Learned::Newer
            }
            Ordering::Equal if *register == self.register => Learned::Same,
            Ordering::Equal => Learned::Conflict,
            Ordering::Less => Learned::Older,
        }
    }

    /// Promises a ballot, unless a later one was promised.
    pub fn promise(&mut self, ballot: Ballot) -> bool {
        if ballot < self.promised {
            return false;
        }
        self.promised = ballot;
        true
    }

    /// Votes, unless a later ballot was promised or the value may not follow the register.
    pub fn vote(&mut self, vote: Vote) -> bool {
        if vote.ballot < self.promised || self.register.check_successor(&vote.value).is_err() {
            return false;
        }
        self.promised = vote.ballot;
        self.accepted = Some(vote);
        true
    }

    /// The next ballot of this proposer, above everything that was seen.
    #[must_use]
    pub fn next_ballot(&self, seen_round: u32) -> Ballot {
        let round = self.promised.round.max(seen_round) + 1;
        Ballot { round, proposer: self.id.0, life: self.life }
    }

    /// Answers a request for a vote or for this voter's state, from a party at the same epoch.
    pub fn answer(&mut self, request: &Message) -> Option<Body> {
        if let Body::Hello(life) = request.body {
            // One voter that may be out of date cannot vouch for another.
            let state = Body::State { life, promised: self.promised, accepted: self.accepted };
            return (!self.muted).then_some(state);
        }
        if !self.votes() || request.register != self.register {
            return None;
        }
        match request.body {
            Body::Ask(ballot) => Some(Body::Would(ballot, self.accepted.is_some())),
            Body::Prepare(ballot) if self.promise(ballot) => Some(Body::Promise(ballot, self.accepted)),
            Body::Accept(vote) if self.vote(vote) => Some(Body::Accepted(vote.ballot)),
            Body::Prepare(_) | Body::Accept(_) => Some(Body::Outranked(self.promised)),
            Body::Beat(_)
            | Body::Seen
            | Body::Would(..)
            | Body::Promise(..)
            | Body::Accepted(_)
            | Body::Outranked(_)
            | Body::Hello(_)
            | Body::State { .. } => None,
        }
    }

    /// Takes the answer to our `Hello`: whatever promise or vote of ours was lost and mattered, another voter holds
    /// at least its equal.
    pub fn recover(&mut self, heard: &mut Voters, answer: &Message) {
        let Body::State { life, promised, accepted } = answer.body else { return };
        if !self.muted || life != self.life {
            return;
        }
        if answer.register == self.register {
            self.promised = self.promised.max(promised);
            if accepted.map(|vote| vote.ballot) > self.accepted.map(|vote| vote.ballot) {
                self.accepted = accepted;
            }
        }
        heard.insert(answer.from);
        if !self.decides_alone() && self.others().iter().all(|voter| heard.contains(voter)) {
            self.muted = false;
        }
    }

    /// An operator vouches that this state is the newest.
    pub fn trust(&mut self) {
        self.muted = false;
    }
}
