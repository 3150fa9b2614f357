//! How the pair is, as one node knows it, and what would happen if the peer died now.
//!
//! It does not ask anybody: everything here was heard or seen before.

use super::record;
use super::site::Site;
use crate::clock::boot_ms;
use crate::ha::port::Port;
use crate::ha::register::{Members, Mode, OnPeerLoss};
use crate::ha::state::{Node, Phase, Server};
use serde_json::{Value, json};

/// A voter or site number, as the configuration writes it.
fn number(number: u64) -> String {
    format!("{number:016x}")
}

/// One object; `null` is what this node cannot know in its role.
pub fn status(site: &Site) -> Value {
    let node = site.node.borrow();
    let common = json!({
        "site": site.config.site,
        "voter": number(site.voter().0),
        "troubles": site.watch.troubles(),
        "copy": site.watch.copy(),
        "last_command": record::last(&site.config.state),
        "moved_to_another_machine": site.moved,
    });
    let Some(node) = node.as_ref() else {
        return joined(
            common,
            json!({ "phase": "Unjoined",
            "says": "this node belongs to no pair yet: run `ha apply` on the node that has the data" }),
        );
    };
    let now = boot_ms();
    let own = json!({
        "epoch": node.saved.voter.register.epoch,
        "forced": node.saved.voter.register.forces,
        "role": role(node),
        "phase": format!("{:?}", node.run.phase),
        "says": says(node),
        "port": format!("{:?}", site.forward()),
        "data": format!("{:?}", node.saved.data),
        "server": server(node.run.server),
        "mute": node.saved.voter.muted,
        "disk_flushed_ms": now.saturating_sub(node.run.fsync_at),
    });
    joined(joined(common, own), others(site, node, now))
}

fn others(site: &Site, node: &Node, now: u64) -> Value {
    let (register, run) = (&node.saved.voter.register, &node.run);
    let lag = node.standby_flushed().map(|flushed| node.lsn().saturating_sub(flushed));
    let lag_s = lag.map(|_| site.watch.lag_ms(now) as f64 / 1000.0);
    let standby = match register.mode {
        Mode::Paired { standby, .. } => Some(number(standby.0)),
        Mode::Solo { .. } => None,
    };
    let beat = run.peer.beat;
    let peer = node.peer();
    let doubles: Vec<String> = site.watch.doubles(now).iter().map(|voter| number(voter.0)).collect();
    json!({
        "mode": match register.mode { Mode::Paired { .. } => "paired", Mode::Solo { .. } => "solo" },
        "primary": number(register.mode.primary().0),
        "standby": standby,
        "is_primary": register.mode.primary() == node.id(),
        "peer": peer.map(|peer| number(peer.0)),
        "peer_heard_ms": peer.map(|_| now.saturating_sub(run.peer.heard_at)),
        "peer_able": beat.filter(|_| peer.is_some()).map(|beat| beat.able),
        "peer_leaves": beat.filter(|_| peer.is_some()).map(|beat| beat.leaving),
        "serial_heard_ms": site.serial_heard.get().map(|at| now.saturating_sub(at)),
        "lag_bytes": lag,
        "lag_s": lag_s,
        "policy": policy(&register.members),
        "witness": register.members.witness().map(|witness| number(witness.0)),
        "witness_heard_ms": register.members.witness().map(|_| now.saturating_sub(run.witness_at)),
        "two_machines_speak_as": doubles,
        "if_the_peer_died_now": prospect(node, now),
    })
}

fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

fn policy(members: &Members) -> &'static str {
    match members {
        Members::Single(_) => "one node",
        Members::Pair { loss: OnPeerLoss::Witness(_), .. } => "witness",
        Members::Pair { loss: OnPeerLoss::Hold, .. } => "hold",
        Members::Pair { loss: OnPeerLoss::Prefer(_), .. } => "prefer",
    }
}

fn server(server: Server) -> &'static str {
    match server {
        Server::Down { .. } => "down",
        Server::Primary { .. } => "primary",
        Server::Standby { .. } => "standby",
        Server::Stuck => "stuck",
    }
}

fn role(node: &Node) -> &'static str {
    match node.run.phase {
        Phase::Mute => "waits: its state may be old",
        Phase::Inert => "waits for another voter",
        Phase::Following => "standby, in sync",
        Phase::Taking | Phase::Proving { .. } => "becomes primary",
        Phase::Leading => "primary, in sync",
        Phase::Alone(_) => "primary, alone",
        Phase::Outside => "outside, waits for the primary",
        Phase::Copying(_) => "outside, is copied anew",
        Phase::Catching => "outside, catches up",
        Phase::Handing(_) => "hands the primary role over",
        Phase::Refused(_) => "refuses to take part",
    }
}

fn says(node: &Node) -> Option<String> {
    match node.run.phase {
        Phase::Refused(refusal) => Some(refusal.to_string()),
        Phase::Mute => Some(
            "this node's state may be old: it waits to hear all other voters, or for `ha trust`".to_owned(),
        ),
        Phase::Inert
        | Phase::Following
        | Phase::Taking
        | Phase::Proving { .. }
        | Phase::Leading
        | Phase::Alone(_)
        | Phase::Outside
        | Phase::Copying(_)
        | Phase::Catching
        | Phase::Handing(_) => None,
    }
}

/// What would happen if the peer died now.
fn prospect(node: &Node, now: u64) -> String {
    let register = &node.saved.voter.register;
    let fixed = match (register.mode, register.members, node.run.phase) {
        (_, _, Phase::Refused(_)) => "this node does not take part: see what it says",
        (_, _, Phase::Mute) => "service stops: this node waits to hear the others, or for `ha trust`",
        (_, Members::Single(_), _) => "there is no peer",
        (Mode::Solo { holder }, _, _) if holder == node.id() => {
            "service goes on: this node serves alone already"
        }
        (Mode::Solo { .. }, _, _) => "service stops until the peer is back: this node is not in sync yet",
        (Mode::Paired { .. }, Members::Pair { loss: OnPeerLoss::Witness(_), .. }, _) => {
            return with_witness(node, now);
        }
        (Mode::Paired { .. }, Members::Pair { loss: OnPeerLoss::Prefer(preferred), .. }, _)
            if preferred == node.id() =>
        {
            "this node goes on alone"
        }
        (Mode::Paired { .. }, Members::Pair { loss: OnPeerLoss::Prefer(_), .. }, _) => {
            "service stops: only the peer is preferred; `ha force-solo` here goes on"
        }
        (Mode::Paired { .. }, Members::Pair { .. }, _) => {
            "nothing is written until an operator says `ha force-solo`"
        }
    };
    fixed.to_owned()
}

fn with_witness(node: &Node, now: u64) -> String {
    let age = now.saturating_sub(node.run.witness_at);
    let fsync = now.saturating_sub(node.run.fsync_at);
    if fsync > node.settings.fsync_recent_ms {
        return format!("service stops: this node's disk has not finished a flush for {fsync} ms");
    }
    if age > node.settings.stale_ms {
        return format!(
            "nothing is written: the witness has been silent for {} s; then `ha force-solo` goes on",
            age / 1000
        );
    }
    let detection = node.settings.peer_lost_ms;
    format!("this node goes on alone after about {detection} ms: the witness answered {age} ms ago")
}

impl Site {
    /// Whether the database role is here and serves.
    pub fn serves(&self) -> bool {
        self.forward() == Port::Local
    }
}
