//! The register: what the voters of a pair have decided, one value per epoch.
//!
//! It does not know how a value is agreed on (`acceptor`, `proposer`) nor what a node does about it (`state`).
//! Specification: `docs/ha-protocol.md`, "The register" and "What may follow what".

use serde::{Deserialize, Serialize};

use std::cmp::Ordering;

/// A position in Postgres' write-ahead log, in bytes.
pub type Lsn = u64;

/// One voter: a data node or a witness with its durable state.
///
/// The number is drawn at random together with the state that it names, so that a voter whose state was
/// lost and made anew is another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VoterId(pub u64);

/// What decides when the two nodes cannot reach each other. A witness and a preferred node exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OnPeerLoss {
    /// A third voter: two of three decide.
    Witness(VoterId),
    /// Nobody: both nodes are needed, and without one of them nothing is written until an operator says so.
    Hold,
    /// This node goes on alone at once; the other never does, not even when the preferred node is dead.
    Prefer(VoterId),
}

/// The data nodes, and with them the voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Members {
    /// One node; its vote decides.
    Single(VoterId),
    /// Two nodes, in no particular order.
    Pair {
        /// The two data nodes; the order means nothing but must not change without a decision.
        nodes: [VoterId; 2],
        /// Who decides when they cannot reach each other.
        loss: OnPeerLoss,
    },
}

/// Who has the data and who may acknowledge a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// A commit needs both disks. Both nodes are in the in-sync set.
    Paired {
        /// The node whose Postgres takes writes.
        primary: VoterId,
        /// The node whose flush every acknowledgement needs.
        standby: VoterId,
        /// The epoch in which this replication relation was formed; part of the standby's name.
        pairing: u64,
    },
    /// The holder acknowledges alone and is the whole in-sync set.
    Solo {
        /// The only node that may acknowledge, and the only one that may propose leaving this mode.
        holder: VoterId,
    },
}

/// What cannot differ within a pair: physical replication works only between equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// Postgres' major version.
    pub postgres_major: u16,
    /// The ELF machine number of the processor architecture.
    pub machine: u16,
}

/// One decided epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Register {
    /// How many times an operator forced a decision without a quorum; outranks the epoch.
    pub forces: u32,
    /// Counts decisions; each is one Paxos instance over the voters of the epoch before.
    pub epoch: u64,
    /// The node that introduced this value.
    pub by: VoterId,
    /// Nodes and voters from here on.
    pub members: Members,
    /// Who acknowledges, and who is in sync.
    pub mode: Mode,
    /// The database's own identifier, as `initdb` drew it.
    pub system_id: u64,
    /// Postgres version and processor of the pair.
    pub platform: Platform,
    /// The timeline that the primary of this epoch writes.
    pub timeline: u32,
    /// Where the log stood when this epoch was proposed, as far as the proposer knew.
    pub start_lsn: Lsn,
}

/// Up to three voters, without order and without repetition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Voters([Option<VoterId>; 3]);

/// Why a value may not follow the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSuccessor {
    /// The epoch does not count up by one, or a fixed field differs.
    #[error("epoch, system identifier, platform and number of forced decisions must follow the epoch before")]
    Fixed,
    /// A mode that this proposer may not bring about from the mode before.
    #[error("this node may not propose this mode from the mode before it")]
    Mode,
    /// A change of members that leaves out a node that holds the data.
    #[error("nodes may change only in Solo, must keep the holder, and Paired needs exactly its two nodes")]
    Members,
}

impl Voters {
    /// Adds a voter; adding it again changes nothing.
    pub fn insert(&mut self, voter: VoterId) {
        if !self.contains(voter)
            && let Some(free) = self.0.iter_mut().find(|slot| slot.is_none())
        {
            *free = Some(voter);
            self.0.sort_by_key(|slot| (slot.is_none(), *slot));
        }
    }

    /// Whether the voter is among these.
    #[must_use]
    pub fn contains(&self, voter: VoterId) -> bool {
        self.0.contains(&Some(voter))
    }

    /// The voters in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = VoterId> + use<> {
        self.0.into_iter().flatten()
    }
}

impl FromIterator<VoterId> for Voters {
    fn from_iter<I: IntoIterator<Item = VoterId>>(voters: I) -> Self {
        let mut set = Self::default();
        voters.into_iter().for_each(|voter| set.insert(voter));
        set
    }
}

impl Members {
    /// Everyone with a vote.
    #[must_use]
    pub fn voters(&self) -> Voters {
        self.nodes().into_iter().flatten().chain(self.witness()).collect()
    }

    /// The data nodes.
    #[must_use]
    pub fn nodes(&self) -> [Option<VoterId>; 2] {
        match self {
            Self::Single(node) => [Some(*node), None],
            Self::Pair { nodes: [a, b], .. } => [Some(*a), Some(*b)],
        }
    }

    /// Whether this is one of the data nodes.
    #[must_use]
    pub fn has_node(&self, node: VoterId) -> bool {
        self.nodes().contains(&Some(node))
    }

    /// The witness, if there is one.
    #[must_use]
    pub fn witness(&self) -> Option<VoterId> {
        match self {
            Self::Pair { loss: OnPeerLoss::Witness(witness), .. } => Some(*witness),
            Self::Pair { loss: OnPeerLoss::Hold | OnPeerLoss::Prefer(_), .. } | Self::Single(_) => None,
        }
    }

    /// The other data node of a pair.
    #[must_use]
    pub fn peer_of(&self, node: VoterId) -> Option<VoterId> {
        match self {
            Self::Pair { nodes: [a, b], .. } if *a == node => Some(*b),
            Self::Pair { nodes: [a, b], .. } if *b == node => Some(*a),
            Self::Pair { .. } | Self::Single(_) => None,
        }
    }

    /// Whether these votes decide. Any two sets for which this is true share a voter.
    #[must_use]
    pub fn is_quorum(&self, votes: &Voters) -> bool {
        match self {
            Self::Single(node) => votes.contains(*node),
            Self::Pair { nodes, loss: OnPeerLoss::Hold } => nodes.iter().all(|node| votes.contains(*node)),
            Self::Pair { loss: OnPeerLoss::Prefer(node), .. } => votes.contains(*node),
            Self::Pair { loss: OnPeerLoss::Witness(_), .. } => {
                self.voters().iter().filter(|voter| votes.contains(*voter)).count() >= 2
            }
        }
    }
}

impl Mode {
    /// The only node that may acknowledge.
    #[must_use]
    pub fn primary(&self) -> VoterId {
        match self {
            Self::Paired { primary, .. } => *primary,
            Self::Solo { holder } => *holder,
        }
    }

    /// Nodes that are known to hold every acknowledged write.
    #[must_use]
    pub fn in_sync(&self) -> Voters {
        match self {
            Self::Paired { primary, standby, .. } => [*primary, *standby].into_iter().collect(),
            Self::Solo { holder } => [*holder].into_iter().collect(),
        }
    }
}

impl Register {
    /// The first epoch of a site: one node that holds everything.
    #[must_use]
    pub fn first(node: VoterId, system_id: u64, platform: Platform) -> Self {
        Self {
            forces: 0,
            epoch: 1,
            by: node,
            members: Members::Single(node),
            mode: Mode::Solo { holder: node },
            system_id,
            platform,
            timeline: 1,
            start_lsn: 0,
        }
    }

    /// Which of two decided registers is the later one.
    #[must_use]
    pub fn age(&self, other: &Self) -> Ordering {
        (self.forces, self.epoch).cmp(&(other.forces, other.epoch))
    }

    /// The next epoch with everything else as it is, introduced by `by`.
    #[must_use]
    pub fn next(&self, by: VoterId) -> Self {
        Self { epoch: self.epoch + 1, by, ..*self }
    }

    /// Checks that `value` may be decided as the epoch after this one.
    ///
    /// # Errors
    /// [`BadSuccessor`] names the rule that the value breaks.
    pub fn check_successor(&self, value: &Self) -> Result<(), BadSuccessor> {
        let same = value.epoch == self.epoch + 1
            && value.forces == self.forces
            && value.system_id == self.system_id
            && value.platform == self.platform;
        if !same {
            return Err(BadSuccessor::Fixed);
        }
        self.check_mode(value)?;
        self.check_members(value)
    }

    fn check_mode(&self, value: &Self) -> Result<(), BadSuccessor> {
        let (by, epoch) = (value.by, value.epoch);
        let fits = match (self.mode, value.mode) {
            (Mode::Solo { holder }, Mode::Solo { holder: next }) => by == holder && next == holder,
            (Mode::Solo { holder }, Mode::Paired { primary, standby, pairing }) => {
                by == holder
                    && primary == holder
                    && self.members.peer_of(holder) == Some(standby)
                    && pairing == epoch
            }
            (Mode::Paired { primary, standby, .. }, Mode::Solo { holder }) => {
                by == holder && (holder == primary || holder == standby)
            }
            (Mode::Paired { primary, standby, pairing }, Mode::Paired { .. }) => {
                let stays = value.mode == Mode::Paired { primary, standby, pairing };
                let swaps = value.mode == Mode::Paired { primary: standby, standby: primary, pairing: epoch };
                by == primary && (stays || swaps)
            }
        };
        let timeline = self.timeline + u32::from(self.mode.primary() != value.mode.primary());
        if fits && value.timeline == timeline { Ok(()) } else { Err(BadSuccessor::Mode) }
    }

    fn check_members(&self, value: &Self) -> Result<(), BadSuccessor> {
        let fits = match (self.mode, value.mode) {
            (Mode::Solo { holder }, Mode::Solo { .. }) => value.members.has_node(holder),
            (Mode::Paired { .. }, Mode::Paired { primary, .. }) if primary == self.mode.primary() => {
                value.members.nodes() == self.members.nodes()
            }
            (Mode::Paired { .. }, Mode::Paired { .. } | Mode::Solo { .. })
            | (Mode::Solo { .. }, Mode::Paired { .. }) => value.members == self.members,
        };
        let shape = match value.members {
            Members::Single(_) => true,
            Members::Pair { nodes: [a, b], loss } => {
                a != b
                    && match loss {
                        OnPeerLoss::Witness(witness) => witness != a && witness != b,
                        OnPeerLoss::Prefer(node) => node == a || node == b,
                        OnPeerLoss::Hold => true,
                    }
            }
        };
        if fits && shape { Ok(()) } else { Err(BadSuccessor::Members) }
    }
}
