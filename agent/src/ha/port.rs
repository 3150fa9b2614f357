//! Where the local datastore port may forward, asked before each chunk that passes.
//!
//! A convenience with a bound on the age of reads, and no part of safety: a port that is wrong forwards to a Postgres
//! that cannot acknowledge. It does not know connections.

use super::state::{Join, Ms, Node, Phase};

/// Where the port forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// Nowhere: connections are refused, old ones are cut.
    Closed,
    /// To the Postgres here.
    Local,
    /// To the peer's Postgres, through the tunnel.
    Peer,
}

/// Where this node's port may forward at this moment.
#[must_use]
pub fn forward(node: &Node, now: Ms) -> Port {
    let within = |at: Ms| now.saturating_sub(at) <= node.settings.stale_ms;
    let peer = within(node.run.peer.heard_at);
    let confirmed = peer || within(node.run.witness_at);
    match node.run.phase {
        // The holder of `Solo` needs nobody: nobody else can have been chosen.
        Phase::Alone(
            Join::Held | Join::Freeing | Join::Apart | Join::Naming | Join::Flushing { .. } | Join::Proposing,
        ) => Port::Local,
        Phase::Leading if confirmed => Port::Local,
        Phase::Following if confirmed => Port::Peer,
        Phase::Outside | Phase::Copying(_) | Phase::Catching if peer => Port::Peer,
        Phase::Leading
        | Phase::Following
        | Phase::Outside
        | Phase::Copying(_)
        | Phase::Catching
        | Phase::Mute
        | Phase::Inert
        | Phase::Taking
        | Phase::Proving { .. }
        | Phase::Handing(_)
        | Phase::Refused(_) => Port::Closed,
    }
}
