//! What the parties of a pair say to each other, as plain values.
//!
//! Every message carries the newest register that its sender knows to be decided, so any word between two
//! parties also teaches. It does not know how messages are encoded, encrypted or carried; the receiver may assume
//! that `from` is authentic and nothing else: messages are lost, repeated, delayed and reordered at will.

use serde::{Deserialize, Serialize};

use super::register::{Lsn, Register, VoterId};

/// One attempt of one proposer. Ordered: a later attempt outranks an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// Counts attempts within an epoch; 0 is no attempt.
    pub round: u32,
    /// The proposer.
    pub proposer: u64,
    /// The proposer's life: after a start from a state that may be old, ballots of the earlier life cannot recur.
    pub life: u64,
}

/// A vote that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vote {
    /// The attempt it was given to.
    pub ballot: Ballot,
    /// What was voted for.
    pub value: Register,
}

/// The name under which a standby connects and is named in `synchronous_standby_names`.
///
/// It carries node and epoch, so that a clone, or a connection of an earlier pairing, counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StandbyName {
    /// The standby.
    pub node: VoterId,
    /// The epoch in which the pairing is, or will be, decided.
    pub pairing: u64,
}

/// How far a standby's disk has what the primary wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flushed {
    /// The name under which the log was received.
    pub name: StandbyName,
    /// Everything before this is on the standby's disk.
    pub lsn: Lsn,
}

/// What a data node says about itself, over every path there is. It prevents false alarms and is never a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Beat {
    /// Postgres runs in the node's role, its data are complete, and its disk flushed recently.
    pub able: bool,
    /// The node is about to go down on purpose and asks the other to go on alone.
    pub leaving: bool,
    /// Set on a standby that streams: the name it uses and what its disk has.
    pub flushed: Option<Flushed>,
    /// Milliseconds since the last successful flush of the node's disk.
    pub fsync_age_ms: u64,
}

/// What a message says besides the sender's register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Body {
    /// A data node's heartbeat.
    Beat(Beat),
    /// An answer that says nothing but the register: to a heartbeat, or to whoever is behind.
    Seen,
    /// Would you answer if I asked for your vote? Binds nobody.
    Ask(Ballot),
    /// I would; and whether I have given a vote in this epoch that somebody ought to carry to its end.
    Would(Ballot, bool),
    /// Promise to vote in no earlier ballot of this epoch.
    Prepare(Ballot),
    /// Promised; and this is the vote that I gave last in this epoch.
    Promise(Ballot, Option<Vote>),
    /// Vote for this. Sent only after the sender's own vote is durable.
    Accept(Vote),
    /// Voted.
    Accepted(Ballot),
    /// I have promised a later ballot than the one you used.
    Outranked(Ballot),
    /// I started from a state that may be old: what do you hold? Names the sender's life.
    Hello(u64),
    /// The answer to `Hello`: the asker's life, the sender's promise and last vote.
    State {
        /// The life that was asked for.
        life: u64,
        /// The sender's promise in the epoch after its register.
        promised: Ballot,
        /// The sender's last vote in that epoch.
        accepted: Option<Vote>,
    },
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Message {
    /// The sender, authenticated by the carrier.
    pub from: VoterId,
    /// The addressee.
    pub to: VoterId,
    /// The newest register that the sender knows to be decided.
    pub register: Register,
    /// The rest.
    pub body: Body,
}
