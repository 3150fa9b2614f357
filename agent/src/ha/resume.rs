//! The state of a node after a boot, from what is on disk and what the boot could prove.
//!
//! Contract with the caller: Postgres is down, port and tunnel are closed and no job runs when this is called, since they
//! live and die with the agent. It does not know how a start is proven (a counter outside every backup, or a TPM).

use super::acceptor::Acceptor;
use super::proposer::Proposal;
use super::register::{Register, VoterId, Voters};
use super::settings::{Rule, Settings};
use super::state::{Data, Ms, Node, Peer, Phase, Run, Saved, Server};
use super::want::{Effect, Wants};

/// What the boot found out about the saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// A counter outside every backup shows that the state is the newest.
    Proven,
    /// Nothing shows it; `life` is a fresh random number.
    Unproven {
        /// Number of the new life.
        life: u64,
    },
}

/// A new node that was told the register and has no database.
#[must_use]
pub fn blank(id: VoterId, life: u64, register: Register) -> Saved {
    Saved { voter: Acceptor::new(id, life, register), data: Data::Empty }
}

/// The node after a boot, and the effects to begin with.
#[must_use]
pub fn resume(saved: Saved, start: Start, settings: Settings, now: Ms) -> (Node, Vec<Effect>) {
    let saved = match start {
        Start::Proven => saved,
        Start::Unproven { life } => unproven(saved, life, &settings),
    };
    let run = Run {
        phase: Phase::Inert,
        since: now,
        proposal: None::<Proposal>,
        round: 0,
        retry_at: now,
        heard: Voters::default(),
        peer: Peer { heard_at: now, able_at: now, beat: None },
        witness_at: now,
        fsync_at: now,
        streamed_at: now,
        unstreamed: false,
        server: Server::Down { end: None },
        attempt: 0,
        join_at: now,
        pauses: 0,
        leaving: false,
        wish: None,
        shown: Wants::nothing(saved.voter.id),
    };
    let mut node = Node { settings, saved, run };
    node.run.phase = node.settled(true);
    node.mark_led();
    let wants = Wants::of(&node, now);
    let mut effects = Vec::new();
    Wants::nothing(node.id()).effects_to(&wants, Some(node.saved), &mut effects);
    node.run.shown = wants;
    (node, effects)
}

fn unproven(saved: Saved, life: u64, settings: &Settings) -> Saved {
    let mut voter = saved.voter.unproven(life);
    voter.muted &= settings.keeps(Rule::MuteUntilHeard);
    let data = match saved.data {
        Data::Followed | Data::Led | Data::Suspect if settings.keeps(Rule::OnlyCompleteData) => Data::Suspect,
        data
        @ (Data::Followed | Data::Led | Data::Suspect | Data::Empty | Data::Overruled | Data::Broken) => data,
    };
    Saved { voter, data }
}
