//! One attempt to have the next epoch decided: ask, prepare, accept.
//!
//! Volatile: a reboot forgets the attempt, the votes given in it are in the acceptors. It does not know when an
//! attempt is due, nor what its goal means for Postgres (`lead`).

use super::acceptor::Acceptor;
use super::message::{Ballot, Body, Message, Vote};
use super::register::{Lsn, Members, Mode, Register, VoterId, Voters};
use super::settings::{Rule, Settings};

/// What an attempt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Goal {
    /// Go on alone, from `Paired`.
    Alone,
    /// Take the peer back, from this node's own `Solo`.
    Pair,
    /// Let the peer be primary; this node's log ends at `lsn` and the peer has all of it.
    Switch {
        /// End of this node's log after a clean stop.
        lsn: Lsn,
    },
    /// Change nodes, witness or policy.
    Members(Members),
    /// Nothing of its own: have a vote that anybody gave carried to its end.
    Finish,
}

/// How far an attempt has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Asked, without commitment, who would answer. Nothing is durable.
    Asking {
        /// Who would, this node included.
        yes: Voters,
        /// Whether any of them has given a vote that is not known to be decided.
        open: bool,
    },
    /// This node's promise is durable; promises of others are awaited.
    Preparing {
        /// Who promised.
        promises: Voters,
        /// The latest vote that any of them had given.
        carried: Option<Vote>,
    },
    /// This node's vote is durable; votes of others are awaited.
    Accepting {
        /// What is voted on.
        value: Register,
        /// Who voted.
        votes: Voters,
    },
}

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proposal {
    /// What it is for.
    pub goal: Goal,
    /// The ballot it uses.
    pub ballot: Ballot,
    /// How far it has come.
    pub stage: Stage,
}

/// What an answer did to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing yet.
    Waiting,
    /// It moved on; the requests of its new stage are to be sent.
    Moved,
    /// The value is decided.
    Decided(Register),
    /// A later ballot, or nothing to propose: the attempt is over.
    Over,
}

impl Goal {
    /// The value that this goal proposes from here.
    fn value(&self, base: &Register, me: VoterId, lsn: Lsn) -> Option<Register> {
        let next = base.next(me);
        match (self, base.mode) {
            (Self::Alone, Mode::Paired { primary, .. }) => {
                let timeline = base.timeline + u32::from(primary != me);
                Some(Register { mode: Mode::Solo { holder: me }, timeline, start_lsn: lsn, ..next })
            }
            (Self::Pair, Mode::Solo { holder }) => {
                let standby = base.members.peer_of(holder)?;
                let mode = Mode::Paired { primary: holder, standby, pairing: next.epoch };
                Some(Register { mode, start_lsn: lsn, ..next })
            }
            (Self::Switch { lsn }, Mode::Paired { primary, standby, .. }) => {
                let mode = Mode::Paired { primary: standby, standby: primary, pairing: next.epoch };
                Some(Register { mode, timeline: base.timeline + 1, start_lsn: *lsn, ..next })
            }
            (Self::Members(members), Mode::Solo { .. } | Mode::Paired { .. }) => {
                Some(Register { members: *members, ..next })
            }
            (Self::Alone, Mode::Solo { .. })
            | (Self::Pair | Self::Switch { .. }, _)
            | (Self::Finish, Mode::Solo { .. } | Mode::Paired { .. }) => None,
        }
    }
}

impl Proposal {
    /// Begins an attempt by asking who would answer, or, where a vote is already given, by preparing.
    #[must_use]
    pub fn begin(goal: Goal, acceptor: &Acceptor, seen_round: u32) -> Self {
        let yes = [acceptor.id].into_iter().collect();
        let open = acceptor.accepted.is_some();
        Self { goal, ballot: acceptor.next_ballot(seen_round), stage: Stage::Asking { yes, open } }
    }

    /// The request that the present stage sends to every other voter.
    #[must_use]
    pub fn request(&self) -> Body {
        match self.stage {
            Stage::Asking { .. } => Body::Ask(self.ballot),
            Stage::Preparing { .. } => Body::Prepare(self.ballot),
            Stage::Accepting { value, .. } => Body::Accept(Vote { ballot: self.ballot, value }),
        }
    }

    /// Whether a standby that makes this attempt must have its tunnel closed.
    #[must_use]
    pub fn needs_tunnel_closed(&self, settings: &Settings) -> bool {
        let asked = match self.stage {
            Stage::Asking { .. } => false,
            Stage::Preparing { .. } | Stage::Accepting { .. } => true,
        };
        match self.goal {
            Goal::Alone => asked && settings.keeps(Rule::CloseTunnelFirst),
            Goal::Pair | Goal::Switch { .. } | Goal::Members(_) | Goal::Finish => false,
        }
    }

    /// Takes an answer from another voter at the same epoch.
    pub fn answer(&mut self, message: &Message) -> Progress {
        match (&mut self.stage, message.body) {
            (Stage::Asking { yes, open }, Body::Would(ballot, voted)) if ballot == self.ballot => {
                yes.insert(message.from);
                *open |= voted;
            }
            (Stage::Preparing { promises, carried }, Body::Promise(ballot, vote))
                if ballot == self.ballot =>
            {
                promises.insert(message.from);
                if vote.map(|vote| vote.ballot) > carried.map(|vote| vote.ballot) {
                    *carried = vote;
                }
            }
            (Stage::Accepting { votes, .. }, Body::Accepted(ballot)) if ballot == self.ballot => {
                votes.insert(message.from);
            }
            (Stage::Preparing { .. } | Stage::Accepting { .. }, Body::Outranked(by)) if by > self.ballot => {
                return Progress::Over;
            }
            (Stage::Asking { .. } | Stage::Preparing { .. } | Stage::Accepting { .. }, _) => {
                return Progress::Waiting;
            }
        }
        Progress::Moved
    }

    /// Moves on as far as the votes at hand allow. `lsn` is where this node's log stands.
    pub fn advance(&mut self, acceptor: &mut Acceptor, settings: &Settings, lsn: Lsn) -> Progress {
        let members = acceptor.register.members;
        let mut moved = Progress::Waiting;
        loop {
            match self.stage {
                Stage::Asking { open: false, .. } if self.goal == Goal::Finish => return moved,
                Stage::Asking { yes, .. } => {
                    if settings.keeps(Rule::AskFirst) && !members.is_quorum(&yes) {
                        return moved;
                    }
                    if !acceptor.promise(self.ballot) {
                        return Progress::Over;
                    }
                    let promises = [acceptor.id].into_iter().collect();
                    self.stage = Stage::Preparing { promises, carried: acceptor.accepted };
                }
                Stage::Preparing { promises, carried } => {
                    if !members.is_quorum(&promises) {
                        return moved;
                    }
                    let own = self.goal.value(&acceptor.register, acceptor.id, lsn);
                    let carried = carried.filter(|_| settings.keeps(Rule::CarryVotes));
                    let Some(value) = carried.map(|vote| vote.value).or(own) else { return Progress::Over };
                    if !acceptor.vote(Vote { ballot: self.ballot, value }) {
                        return Progress::Over;
                    }
                    self.stage = Stage::Accepting { value, votes: [acceptor.id].into_iter().collect() };
                }
                Stage::Accepting { value, votes } => {
                    return if members.is_quorum(&votes) { Progress::Decided(value) } else { moved };
                }
            }
            moved = Progress::Moved;
        }
    }
}
