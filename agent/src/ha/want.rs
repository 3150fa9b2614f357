//! What the world around a node must look like in its state, and the ordered effects that make it so.
//!
//! Wants are levels, not actions: making one true that is true already does nothing, so every effect may be repeated
//! and a boot repeats them all. The order of one step's effects is part of safety: what closes comes first, then the
//! save, then everything that relies on it. It does not know how a want is carried out.

use super::message::{Message, StandbyName};
use super::port::{self, Port};
use super::register::{Mode, VoterId};
use super::settings::Rule;
use super::state::{Copying, Join, Ms, Node, Phase, Refusal, Saved};

/// How Postgres runs. Its files are rewritten from this before each start, whatever they say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Postgres {
    /// Not at all; stopped in good order.
    Stopped,
    /// As primary on this timeline, promoted if the data are on the one before.
    Primary {
        /// Timeline of the register.
        timeline: u32,
        /// `synchronous_standby_names` at the start: never empty, whatever is wanted later.
        start_names: StandbyName,
    },
    /// As standby that streams under this name through the tunnel.
    Standby {
        /// `application_name`, and the slot on the primary.
        name: StandbyName,
    },
}

/// `synchronous_standby_names` of a running primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Names {
    /// Commits do not wait.
    Off,
    /// Commits wait for this standby's disk.
    Only(StandbyName),
}

/// The replication tunnel of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tunnel {
    /// No byte passes after this is done.
    Closed,
    /// The standby may stream from here.
    Serve {
        /// The only name that is let in.
        name: StandbyName,
        /// Whether its acknowledgements are held back.
        withhold: bool,
    },
    /// This node may stream from its peer.
    Follow {
        /// The name it uses.
        name: StandbyName,
    },
}

/// A job of some length. Wanting another one, or none, cancels it, and its late report is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Task {
    /// None.
    Rest,
    /// Commit a row of no meaning and watch the session: waiting for a standby, or done.
    Canary {
        /// Names this canary in its reports.
        attempt: u32,
    },
    /// Bring the database directory to the source's state.
    Copy {
        /// How.
        how: Copying,
        /// From whom.
        source: VoterId,
    },
}

/// Everything that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wants {
    /// Postgres' role.
    pub postgres: Postgres,
    /// What commits wait for.
    pub names: Names,
    /// The replication tunnel.
    pub tunnel: Tunnel,
    /// The local datastore port.
    pub port: Port,
    /// The running job.
    pub task: Task,
}

/// What a step asks of the world, to be done in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// Make this durable before anything that follows.
    Save(Saved),
    /// Run or stop Postgres.
    Postgres(Postgres),
    /// Set the names and reload.
    Names(Names),
    /// Open or close the tunnel; closing is complete when this returns.
    Tunnel(Tunnel),
    /// Open or close the port; closing cuts the connections and is complete when this returns.
    Port(Port),
    /// Begin a job, or cancel the present one.
    Task(Task),
    /// Send a message.
    Send(Message),
    /// Tell the operator why a command was not taken.
    CommandRefused(&'static str),
    /// Tell the operator that a party was not listened to.
    Rejected(VoterId, Refusal),
}

impl Wants {
    /// The state of a machine after a boot, before the agent has done anything.
    #[must_use]
    pub fn nothing(me: VoterId) -> Self {
        Self {
            postgres: Postgres::Stopped,
            names: Names::Only(nobody(me)),
            tunnel: Tunnel::Closed,
            port: Port::Closed,
            task: Task::Rest,
        }
    }

    /// What this node wants now.
    #[must_use]
    pub fn of(node: &Node, now: Ms) -> Self {
        Self {
            postgres: postgres(node),
            names: names(node),
            tunnel: tunnel(node),
            port: port::forward(node, now),
            task: task(node),
        }
    }

    /// Effects from `self` to `next`, with the save between what closes and what opens.
    pub fn effects_to(&self, next: &Self, save: Option<Saved>, out: &mut Vec<Effect>) {
        if self.tunnel != next.tunnel {
            match (self.tunnel, next.tunnel) {
                (Tunnel::Serve { name: a, withhold: false }, Tunnel::Serve { name: b, withhold: true })
                    if a == b =>
                {
                    out.push(Effect::Tunnel(next.tunnel));
                }
                (Tunnel::Serve { name: a, .. }, Tunnel::Serve { name: b, .. }) if a == b => {}
                (Tunnel::Serve { .. } | Tunnel::Follow { .. }, _) => {
                    out.push(Effect::Tunnel(Tunnel::Closed));
                }
                (Tunnel::Closed, _) => {}
            }
        }
        if self.port != next.port && self.port != Port::Closed {
            out.push(Effect::Port(Port::Closed));
        }
        out.extend(save.map(Effect::Save));
        if self.postgres != next.postgres {
            out.push(Effect::Postgres(next.postgres));
        }
        if self.names != next.names {
            out.push(Effect::Names(next.names));
        }
        if self.tunnel != next.tunnel && next.tunnel != Tunnel::Closed {
            out.push(Effect::Tunnel(next.tunnel));
        }
        if self.task != next.task {
            out.push(Effect::Task(next.task));
        }
        if self.port != next.port && next.port != Port::Closed {
            out.push(Effect::Port(next.port));
        }
    }
}

/// A standby's name that no standby can have.
#[must_use]
pub fn nobody(me: VoterId) -> StandbyName {
    StandbyName { node: me, pairing: 0 }
}

fn start_names(node: &Node) -> StandbyName {
    let named = node.is_paired() || node.voted_pair();
    node.standby_name().filter(|_| named).unwrap_or(nobody(node.id()))
}

fn postgres(node: &Node) -> Postgres {
    match (node.run.phase, node.standby_name()) {
        (Phase::Following | Phase::Catching, Some(name)) => Postgres::Standby { name },
        (Phase::Taking | Phase::Proving { .. } | Phase::Leading | Phase::Alone(_), _) => {
            let timeline = node.saved.voter.register.timeline;
            Postgres::Primary { timeline, start_names: start_names(node) }
        }
        (Phase::Following | Phase::Catching, None)
        | (
            Phase::Mute
            | Phase::Inert
            | Phase::Outside
            | Phase::Copying(_)
            | Phase::Handing(_)
            | Phase::Refused(_),
            _,
        ) => Postgres::Stopped,
    }
}

fn names(node: &Node) -> Names {
    let pair = node.standby_name().map_or(Names::Only(nobody(node.id())), Names::Only);
    match node.run.phase {
        Phase::Alone(Join::Freeing | Join::Apart) => Names::Off,
        Phase::Alone(Join::Naming | Join::Flushing { .. } | Join::Proposing) => pair,
        Phase::Taking | Phase::Proving { .. } | Phase::Leading | Phase::Alone(Join::Held) => {
            Names::Only(start_names(node))
        }
        Phase::Mute
        | Phase::Inert
        | Phase::Following
        | Phase::Outside
        | Phase::Copying(_)
        | Phase::Catching
        | Phase::Handing(_)
        | Phase::Refused(_) => Names::Only(nobody(node.id())),
    }
}

fn tunnel(node: &Node) -> Tunnel {
    let Some(name) = node.standby_name() else { return Tunnel::Closed };
    let asking = node.run.proposal.is_some_and(|proposal| proposal.needs_tunnel_closed(&node.settings));
    let shut = asking || (node.voted_alone() && node.settings.keeps(Rule::CloseTunnelFirst));
    match node.run.phase {
        Phase::Following if !shut => Tunnel::Follow { name },
        Phase::Catching => Tunnel::Follow { name },
        Phase::Proving { lsn } if !node.voted_alone() => Tunnel::Serve { name, withhold: lsn.is_none() },
        Phase::Leading | Phase::Handing(_) if !node.voted_alone() => Tunnel::Serve { name, withhold: false },
        Phase::Alone(join) => Tunnel::Serve { name, withhold: join == Join::Naming },
        Phase::Following
        | Phase::Proving { .. }
        | Phase::Leading
        | Phase::Handing(_)
        | Phase::Mute
        | Phase::Inert
        | Phase::Taking
        | Phase::Outside
        | Phase::Copying(_)
        | Phase::Refused(_) => Tunnel::Closed,
    }
}

fn task(node: &Node) -> Task {
    let canary = Task::Canary { attempt: node.run.attempt };
    match (node.run.phase, node.saved.voter.register.mode) {
        (Phase::Copying(how), Mode::Solo { holder }) => Task::Copy { how, source: holder },
        (Phase::Proving { lsn: None } | Phase::Alone(Join::Held | Join::Freeing | Join::Naming), _) => canary,
        (Phase::Copying(_), Mode::Paired { .. })
        | (Phase::Proving { lsn: Some(_) }, _)
        | (Phase::Alone(Join::Apart | Join::Flushing { .. } | Join::Proposing), _)
        | (
            Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Leading
            | Phase::Outside
            | Phase::Catching
            | Phase::Handing(_)
            | Phase::Refused(_),
            _,
        ) => Task::Rest,
    }
}
