//! The witness: a voter that keeps the register and nothing else.
//!
//! A few hundred bytes per site, no timers beyond the question after a doubtful start, no connections. It does not know
//! Postgres, heartbeats' contents or which site it serves; the caller keeps one of these per site.

use super::acceptor::{Acceptor, Learned};
use super::message::{Body, Message};
use super::register::Voters;
use super::state::Refusal;

/// One site's witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Witness {
    /// Durable.
    pub voter: Acceptor,
    /// Voters heard in this life while mute; volatile.
    pub heard: Voters,
}

/// What happens to a witness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::large_enum_variant,
    reason = "values are copied a few times a second; boxes would cost `Copy`"
)]
pub enum WitnessEvent {
    /// A message came.
    Message(Message),
    /// Time passed; sent while [`Witness::asks`].
    Tick,
}

/// What a witness asks of the world, in order: the save comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WitnessEffect {
    /// Make this durable before anything that follows.
    Save(Acceptor),
    /// Send a message.
    Send(Message),
    /// Tell the operator that a party was not listened to.
    Rejected(super::register::VoterId, Refusal),
}

impl Witness {
    /// A witness that starts with this state, which is or is not shown to be the newest.
    #[must_use]
    pub fn start(voter: Acceptor) -> Self {
        Self { voter, heard: Voters::default() }
    }

    /// Whether it still has to ask the others what they hold.
    #[must_use]
    pub fn asks(&self) -> bool {
        self.voter.muted
    }
}

/// One decision of a witness.
#[must_use]
pub fn step(witness: &Witness, event: WitnessEvent) -> (Witness, Vec<WitnessEffect>) {
    let mut next = *witness;
    let mut out = Vec::new();
    match event {
        WitnessEvent::Message(message) => hear(&mut next, &message, &mut out),
        WitnessEvent::Tick if next.asks() => {
            let hello = Body::Hello(next.voter.life);
            next.voter.others().iter().for_each(|to| out.push(send(&next.voter, to, hello)));
        }
        WitnessEvent::Tick => {}
    }
    if next.voter != witness.voter {
        out.insert(0, WitnessEffect::Save(next.voter));
    }
    (next, out)
}

fn send(voter: &Acceptor, to: super::register::VoterId, body: Body) -> WitnessEffect {
    WitnessEffect::Send(Message { from: voter.id, to, register: voter.register, body })
}

fn hear(witness: &mut Witness, message: &Message, out: &mut Vec<WitnessEffect>) {
    let voter = &mut witness.voter;
    let known = voter.register.members.voters().contains(message.from)
        || message.register.members.voters().contains(message.from);
    if !known || message.from == voter.id {
        out.push(WitnessEffect::Rejected(message.from, Refusal::NotMember));
        return;
    }
    if message.register.system_id != voter.register.system_id {
        out.push(WitnessEffect::Rejected(message.from, Refusal::OtherDatabase));
        return;
    }
    match voter.learn(&message.register) {
        Learned::Newer | Learned::Same | Learned::Older => {}
        Learned::Conflict => {
            out.push(WitnessEffect::Rejected(message.from, Refusal::Conflict));
            return;
        }
    }
    voter.recover(&mut witness.heard, message);
    let behind = message.register.age(&voter.register).is_lt();
    let answer = match voter.answer(message) {
        Some(answer) => Some(answer),
        None if behind => Some(Body::Seen),
        None => matches!(message.body, Body::Beat(_)).then_some(Body::Seen),
    };
    out.extend(answer.map(|body| send(voter, message.from, body)));
}
