//! What a data node knows and is doing.
//!
//! [`Saved`] is durable and is all that a reboot leaves; [`Run`] is volatile. The drawing is `node.dot` beside this
//! file; a test compares its edges with the edges that simulated sites take.
//! It does not know how one state follows from another (`step`, `enter`, `lead`).

use serde::{Deserialize, Serialize};

use super::acceptor::Acceptor;
use super::message::{Beat, Flushed, Message, StandbyName};
use super::proposer::Proposal;
use super::register::{Lsn, Members, Mode, VoterId, Voters};
use super::settings::Settings;
use super::want::Wants;

/// Milliseconds of a clock that counts through suspend and has no meaning across boots.
pub type Ms = u64;

/// What is known of the node's own database directory; durable, and written before the directory changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Data {
    /// There is none.
    Empty,
    /// It was only ever written by a primary's log stream.
    Followed,
    /// Postgres ran on it as primary: it may hold rows that nobody else has.
    Led,
    /// An operator's forced decision passed over it: its rows are exported, then it is copied anew.
    Overruled,
    /// A rewind or a copy into it began and did not end.
    Broken,
    /// The node started from a state that may be old, so the directory may be old too.
    Suspect,
}

/// The durable part of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Saved {
    /// Register and vote.
    pub voter: Acceptor,
    /// The state of the database directory.
    pub data: Data,
}

/// What a node is doing. A reboot always ends in what [`super::resume::resume`] derives from [`Saved`]:
/// `Mute`, `Refused`, `Inert` (mode `Paired`), `Taking` (own `Solo`) or `Outside` (the peer's `Solo`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Entered by a start whose state may be old. Durable: the new life and the mark. Postgres is stopped, no vote is
    /// cast. A reboot leads here again until all other voters were heard.
    Mute,
    /// Entered by a boot in `Paired`, or when the data are not complete or this node has voted to hand over.
    /// Durable: nothing beyond the register. Postgres is stopped. A reboot leads here.
    Inert,
    /// Entered as standby of `Paired`. Durable: the register, `Data::Followed`. A reboot leads to `Inert`.
    Following,
    /// Entered when the register makes this node primary and Postgres does not run as such yet.
    /// Durable: `Data::Led`, before Postgres starts or is promoted. The port is closed. A reboot leads to `Inert` or
    /// back here.
    Taking,
    /// Entered when Postgres runs as primary of `Paired` after a start: the port is closed until the standby has all
    /// that a reader could see. Durable: nothing new. A reboot leads to `Inert`.
    Proving {
        /// The position to reach, known once a canary commit was seen to wait.
        lsn: Option<Lsn>,
    },
    /// Entered when the standby has everything: the port is open and each commit needs both disks.
    /// Durable: nothing new. A reboot leads to `Inert`.
    Leading,
    /// Entered when Postgres runs as primary of this node's own `Solo`: the port is open.
    /// Durable: the register. A reboot leads to `Taking`.
    Alone(Join),
    /// Entered when the peer holds `Solo`. Postgres is stopped. Durable: the register. A reboot leads here.
    Outside,
    /// Entered when the data cannot simply stream. Durable: `Data::Broken` from the first byte that is overwritten;
    /// a reboot leads to `Outside`, and from a broken directory to a full copy.
    Copying(Copying),
    /// Entered with data that can stream: a standby of the holder, not in sync. Durable: `Data::Followed`.
    /// A reboot leads to `Outside`.
    Catching,
    /// Entered on an operator's wish on the primary: the port is closed and Postgres stops in good order.
    /// Durable: nothing until this node's vote. A reboot leads to `Inert`.
    Handing(Hand),
    /// Entered when going on would overwrite or fork something. Durable: nothing. A reboot tries again.
    Refused(Refusal),
}

/// How far the holder of `Solo` has come in taking its peer back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Join {
    /// Postgres was started with names that nobody has, and no commit has been seen waiting for them yet: clearing them
    /// now could be overtaken by a value that the server read earlier.
    Held,
    /// The names were cleared; a commit that goes through alone has not been seen yet.
    Freeing,
    /// Commits go through alone; the peer is not close enough.
    Apart,
    /// The names are set and the peer's acknowledgements are withheld until a canary is seen to wait.
    Naming,
    /// The canary waited; the log stood at `lsn` afterwards and the peer must flush that far.
    Flushing {
        /// Position taken after the canary waited.
        lsn: Lsn,
    },
    /// The peer has it; `Paired` is being decided.
    Proposing,
}

/// How a database directory is made a copy of the holder's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Copying {
    /// Rows that only this directory may hold are written to a report, without serving them.
    Export,
    /// `pg_rewind`, after a checkpoint on the source.
    Rewind,
    /// A full copy.
    Reseed,
}

/// Why a primary stands down on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hand {
    /// The roles change places.
    Switch,
    /// The node goes down; the peer goes on alone.
    Leave,
}

/// Why a node does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// The register does not name this node.
    #[error(
        "this node is not a member of the pair any more: join it as a new node with `ha replace` on the other"
    )]
    NotMember,
    /// Another database than the register's.
    #[error(
        "the database here has another system identifier than the pair's: nothing was overwritten; move it away"
    )]
    OtherDatabase,
    /// Another Postgres version or processor than the pair's.
    #[error(
        "this node's Postgres version or processor differs from the pair's: replication works only between equals"
    )]
    OtherPlatform,
    /// Somebody else speaks under this node's identity.
    #[error(
        "another machine uses this node's identity: was its disk cloned? Stop one of the two and replace it"
    )]
    Clone,
    /// Two different decisions of one epoch.
    #[error(
        "the peer knows another decision of the same epoch: two operators forced one; say which with `ha replace`"
    )]
    Conflict,
    /// The holder of `Solo` has no complete data.
    #[error(
        "this node alone may serve, but its data may be old or are broken: `ha force-solo` accepts them as they are"
    )]
    HolderData,
}

/// What Postgres on this node was last seen doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Server {
    /// Not running. Reported before each start, so that no restart passes unnoticed.
    Down {
        /// End of the log after a clean stop.
        end: Option<Lsn>,
    },
    /// Running and taking writes.
    Primary {
        /// Timeline that it writes.
        timeline: u32,
        /// End of its log.
        lsn: Lsn,
        /// Its standby, as it sees it itself.
        standby: Option<Flushed>,
    },
    /// Running in recovery.
    Standby {
        /// Timeline that it follows.
        timeline: u32,
        /// End of its flushed log.
        lsn: Lsn,
    },
    /// Running and not answering.
    Stuck,
}

/// What was last heard of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer {
    /// When any word of it at this epoch came.
    pub heard_at: Ms,
    /// When it last said that it was able.
    pub able_at: Ms,
    /// Its last heartbeat at this epoch.
    pub beat: Option<Beat>,
}

/// The volatile part of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// What it is doing.
    pub phase: Phase,
    /// Since when.
    pub since: Ms,
    /// Its running attempt at the next epoch.
    pub proposal: Option<Proposal>,
    /// Highest ballot round that outranked an attempt in this epoch.
    pub round: u32,
    /// When the next attempt may begin, or the running one is given up.
    pub retry_at: Ms,
    /// Voters heard in this life while mute.
    pub heard: Voters,
    /// The other node.
    pub peer: Peer,
    /// When the witness was last heard at this epoch.
    pub witness_at: Ms,
    /// When the node's disk last finished a flush.
    pub fsync_at: Ms,
    /// When Postgres last saw its standby under the right name.
    pub streamed_at: Ms,
    /// Postgres was looked at after that had been long ago, and still saw none: a server that hangs is no evidence.
    pub unstreamed: bool,
    /// Postgres as last reported.
    pub server: Server,
    /// Names the present canary, so that a report about an earlier one is not taken for it.
    pub attempt: u32,
    /// When the peer may next be named, and how often that was put off.
    pub join_at: Ms,
    /// Doublings of the pause before the next rejoin.
    pub pauses: u32,
    /// The operator wants this node to go down.
    pub leaving: bool,
    /// The operator wants other members.
    pub wish: Option<Members>,
    /// What the effects so far have asked for.
    pub shown: Wants,
}

/// A data node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Times and platform.
    pub settings: Settings,
    /// Durable.
    pub saved: Saved,
    /// Volatile.
    pub run: Run,
}

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::large_enum_variant,
    reason = "values are copied a few times a second; boxes would cost `Copy`"
)]
pub enum Event {
    /// A message came.
    Message(Message),
    /// Time passed. Sent several times per `retry_ms`.
    Tick,
    /// The disk finished a flush that began after the last such event.
    Synced,
    /// Postgres was looked at.
    Postgres {
        /// The identifier of the database in the directory.
        system_id: u64,
        /// What it does.
        server: Server,
    },
    /// The canary of this attempt was seen waiting for a standby; the log ended at `lsn` after that was seen.
    CanaryWaits {
        /// Which canary.
        attempt: u32,
        /// Position read after the wait was seen.
        lsn: Lsn,
    },
    /// The canary of this attempt was committed.
    CanaryDone {
        /// Which canary.
        attempt: u32,
    },
    /// The export is complete and durable.
    Exported,
    /// The rewind or copy is complete and durable.
    Copied,
    /// The rewind or copy cannot be completed.
    CopyFailed,
    /// The log that the standby needs is gone from its source.
    StreamGone,
    /// An operator's command.
    Operator(Command),
}

/// What an operator can ask of the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Command {
    /// Make the peer primary.
    Switchover,
    /// Let the peer go on alone, so that this node can go down.
    Leave,
    /// Take `Leave` back.
    Stay,
    /// Change nodes, witness or policy.
    Change(Members),
    /// Go on alone without a quorum. The operator vouches that every other party that could hold a newer decision is off
    /// and stays off until it meets this node.
    ForceSolo,
    /// The operator vouches that this node's state and data are its newest.
    Trust,
}

impl Data {
    /// Whether a node with these data holds what the register says of it.
    #[must_use]
    pub fn complete(self) -> bool {
        match self {
            Self::Followed | Self::Led => true,
            Self::Empty | Self::Overruled | Self::Broken | Self::Suspect => false,
        }
    }
}

impl Node {
    /// This node.
    #[must_use]
    pub fn id(&self) -> VoterId {
        self.saved.voter.id
    }

    /// The other data node.
    #[must_use]
    pub fn peer(&self) -> Option<VoterId> {
        self.saved.voter.register.members.peer_of(self.id())
    }

    /// The name that replication uses in this epoch: of the pair, or of the pair that is to come.
    #[must_use]
    pub fn standby_name(&self) -> Option<StandbyName> {
        let register = &self.saved.voter.register;
        match register.mode {
            Mode::Paired { standby, pairing, .. } => Some(StandbyName { node: standby, pairing }),
            Mode::Solo { holder } => {
                let node = register.members.peer_of(holder)?;
                Some(StandbyName { node, pairing: register.epoch + 1 })
            }
        }
    }

    /// A vote that this node introduced and gave, and whose decision is not known.
    #[must_use]
    pub fn own_vote(&self) -> Option<Mode> {
        let vote = self.saved.voter.accepted?;
        (vote.value.by == self.id()).then_some(vote.value.mode)
    }

    /// Whether this node has voted to be alone; until that is decided nothing streams through its tunnel.
    #[must_use]
    pub fn voted_alone(&self) -> bool {
        match self.own_vote() {
            Some(Mode::Solo { .. }) => self.is_paired(),
            Some(Mode::Paired { .. }) | None => false,
        }
    }

    /// Whether this node, as holder, has voted to take its peer back.
    #[must_use]
    pub fn voted_pair(&self) -> bool {
        match self.own_vote() {
            Some(Mode::Paired { .. }) => !self.is_paired(),
            Some(Mode::Solo { .. }) | None => false,
        }
    }

    /// Whether this node, as primary, has voted for the peer to be primary.
    #[must_use]
    pub fn voted_hand_over(&self) -> bool {
        self.own_vote().is_some_and(|mode| mode.primary() != self.id())
    }

    /// Whether the register says `Paired`.
    #[must_use]
    pub fn is_paired(&self) -> bool {
        match self.saved.voter.register.mode {
            Mode::Paired { .. } => true,
            Mode::Solo { .. } => false,
        }
    }

    /// How far the standby's disk is, as this node's own Postgres sees it under the right name.
    #[must_use]
    pub fn standby_flushed(&self) -> Option<Lsn> {
        match self.run.server {
            Server::Primary { standby: Some(flushed), .. } if Some(flushed.name) == self.standby_name() => {
                Some(flushed.lsn)
            }
            Server::Primary { .. } | Server::Standby { .. } | Server::Down { .. } | Server::Stuck => None,
        }
    }

    /// End of this node's log as last reported.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        match self.run.server {
            Server::Primary { lsn, .. } | Server::Standby { lsn, .. } => lsn,
            Server::Down { end } => end.unwrap_or_default(),
            Server::Stuck => 0,
        }
    }
}
