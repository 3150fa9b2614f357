//! The one entrance: state and event in, next state and ordered effects out.
//!
//! The caller does the effects in order, all of them, before it feeds the next event; what they cause comes back
//! as events. It does not know why a phase follows another (`enter`, `lead`).

use super::acceptor::Learned;
use super::message::{Beat, Body, Flushed, Message};
use super::proposer::Progress;
use super::register::{Mode, Register, VoterId};
use super::settings::Rule;
use super::state::{Command, Data, Event, Hand, Join, Ms, Node, Phase, Refusal, Server};
use super::want::{Effect, Wants};

/// Messages and notices of one step, in the order in which they leave.
#[derive(Default)]
struct Outbox(Vec<Effect>);

/// One decision. `now` is the boot-time clock in milliseconds; it may stand still or jump, which costs availability only.
#[must_use]
pub fn step(node: &Node, event: Event, now: Ms) -> (Node, Vec<Effect>) {
    let mut next = *node;
    let mut out = Outbox::default();
    match event {
        Event::Message(message) => next.hear(&message, now, &mut out),
        Event::Tick => next.tick(now, &mut out),
        Event::Synced => next.run.fsync_at = now,
        Event::Postgres { system_id, server } => next.look(system_id, server, now),
        Event::CanaryWaits { attempt, lsn } if attempt == next.run.attempt => next.canary_waits(lsn, now),
        Event::CanaryDone { attempt } if attempt == next.run.attempt => next.canary_done(now),
        Event::CanaryWaits { .. } | Event::CanaryDone { .. } => {}
        Event::Exported => next.exported(now),
        Event::Copied => next.copied(true, now),
        Event::CopyFailed => next.copied(false, now),
        Event::StreamGone => next.stream_gone(now),
        Event::Operator(command) => next.command(command, now, &mut out),
    }
    next.move_on(now);
    let wants = Wants::of(&next, now);
    let save = (next.saved != node.saved).then_some(next.saved);
    let mut effects = Vec::with_capacity(out.0.len() + 4);
    next.run.shown.effects_to(&wants, save, &mut effects);
    next.run.shown = wants;
    effects.append(&mut out.0);
    (next, effects)
}

impl Outbox {
    fn send(&mut self, node: &Node, to: VoterId, body: Body) {
        let message = Message { from: node.id(), to, register: node.saved.voter.register, body };
        self.0.push(Effect::Send(message));
    }

    fn send_all(&mut self, node: &Node, body: Body) {
        node.saved.voter.others().iter().for_each(|to| self.send(node, to, body));
    }
}

impl Node {
    fn hear(&mut self, message: &Message, now: Ms, out: &mut Outbox) {
        if let Some(refusal) = self.objection(message) {
            out.0.push(Effect::Rejected(message.from, refusal));
            return;
        }
        if message.from == self.id() {
            self.enter(Phase::Refused(Refusal::Clone), now);
            return;
        }
        if let Body::Hello(_) = message.body
            && self.settings.keeps(Rule::HelloVoidsBallot)
        {
            self.run.proposal = None;
        }
        match self.learn(&message.register, now) {
            Learned::Newer | Learned::Same => {
                self.note_contact(message, now);
                self.hear_equal(message, now, out);
            }
            // Whoever is behind is taught; a voter in a new life also gets its answer.
            Learned::Older => {
                let body = self.saved.voter.answer(message).unwrap_or(Body::Seen);
                out.send(self, message.from, body);
            }
            Learned::Conflict => {}
        }
    }

    fn objection(&self, message: &Message) -> Option<Refusal> {
        let (ours, theirs) = (&self.saved.voter.register, &message.register);
        if theirs.system_id != ours.system_id {
            return Some(Refusal::OtherDatabase);
        }
        if theirs.platform != ours.platform {
            return Some(Refusal::OtherPlatform);
        }
        let known = |register: &Register| register.members.voters().contains(message.from);
        (!known(ours) && !known(theirs)).then_some(Refusal::NotMember)
    }

    fn note_contact(&mut self, message: &Message, now: Ms) {
        if Some(message.from) == self.peer() {
            self.run.peer.heard_at = now;
        } else if Some(message.from) == self.saved.voter.register.members.witness() {
            self.run.witness_at = now;
        }
        if self.run.phase == Phase::Inert {
            let settled = self.settled(false);
            self.enter(settled, now);
        }
    }

    fn hear_equal(&mut self, message: &Message, now: Ms, out: &mut Outbox) {
        match message.body {
            Body::Beat(beat) if Some(message.from) == self.peer() => {
                self.run.peer.beat = Some(beat);
                let able = beat.able && beat.fsync_age_ms <= self.settings.fsync_recent_ms;
                self.run.peer.able_at = if able { now } else { self.run.peer.able_at };
            }
            Body::Beat(_) | Body::Seen => {}
            Body::Ask(_) | Body::Prepare(_) | Body::Accept(_) | Body::Hello(_) => {
                let promised = self.saved.voter.promised;
                if let Some(answer) = self.saved.voter.answer(message) {
                    out.send(self, message.from, answer);
                }
                if self.saved.voter.promised > promised {
                    // Another proposer is at work: let it finish before beginning anything.
                    self.run.proposal = None;
                    self.run.retry_at = now + 2 * self.settings.retry_ms;
                }
            }
            Body::Would(..) | Body::Promise(..) | Body::Accepted(_) | Body::Outranked(_) => {
                self.hear_answer(message, now, out);
            }
            Body::State { .. } => {
                let muted = self.saved.voter.muted;
                self.saved.voter.recover(&mut self.run.heard, message);
                if muted && !self.saved.voter.muted {
                    let settled = self.settled(false);
                    self.enter(settled, now);
                }
            }
        }
    }

    fn hear_answer(&mut self, message: &Message, now: Ms, out: &mut Outbox) {
        if let Body::Outranked(by) = message.body {
            self.run.round = self.run.round.max(by.round);
        }
        let Some(mut proposal) = self.run.proposal else { return };
        match proposal.answer(message) {
            Progress::Moved => {
                self.run.proposal = Some(proposal);
                self.press_on(now, out);
            }
            Progress::Over => self.run.proposal = None,
            Progress::Waiting | Progress::Decided(_) => {}
        }
    }

    /// Takes the running attempt as far as the votes at hand allow.
    fn press_on(&mut self, now: Ms, out: &mut Outbox) {
        let Some(mut proposal) = self.run.proposal else { return };
        let lsn = self.lsn();
        match proposal.advance(&mut self.saved.voter, &self.settings, lsn) {
            Progress::Waiting => self.run.proposal = Some(proposal),
            Progress::Moved => {
                self.run.proposal = Some(proposal);
                // Each stage has its own time: three ways there and back do not fit into the first pause on a slow link.
                self.run.retry_at = now + self.patience(&proposal);
                out.send_all(self, proposal.request());
            }
            Progress::Over => self.run.proposal = None,
            Progress::Decided(value) => {
                let before = self.saved.voter.others();
                self.learn(&value, now);
                let now_voters = self.saved.voter.others();
                let mut told = before;
                now_voters.iter().for_each(|voter| told.insert(voter));
                told.iter().for_each(|voter| out.send(self, voter, Body::Seen));
            }
        }
    }

    fn tick(&mut self, now: Ms, out: &mut Outbox) {
        if self.saved.voter.muted {
            out.send_all(self, Body::Hello(self.saved.voter.life));
        }
        self.move_on(now);
        let settled = self.run.phase == Phase::Leading
            && now.saturating_sub(self.run.since) > self.settings.rejoin_pause_ms << 5;
        self.run.pauses = if settled { 0 } else { self.run.pauses };
        self.stay_if_needed(now);
        if self.pursue(now) {
            let before = self.run.proposal;
            self.press_on(now, out);
            if self.run.proposal == before
                && let Some(proposal) = before
            {
                out.send_all(self, proposal.request());
            }
        }
        out.send_all(self, Body::Beat(self.beat(now)));
    }

    /// This node's word about itself.
    #[must_use]
    pub fn beat(&self, now: Ms) -> Beat {
        let flushed = match (self.run.phase, self.run.server) {
            (Phase::Following | Phase::Catching, Server::Standby { lsn, .. }) => {
                self.standby_name().map(|name| Flushed { name, lsn })
            }
            (
                Phase::Following
                | Phase::Catching
                | Phase::Mute
                | Phase::Inert
                | Phase::Taking
                | Phase::Proving { .. }
                | Phase::Leading
                | Phase::Alone(_)
                | Phase::Outside
                | Phase::Copying(_)
                | Phase::Handing(_)
                | Phase::Refused(_),
                _,
            ) => None,
        };
        let fsync_age_ms = now.saturating_sub(self.run.fsync_at);
        Beat { able: self.able(now), leaving: self.run.leaving, flushed, fsync_age_ms }
    }

    fn look(&mut self, system_id: u64, server: Server, now: Ms) {
        if system_id != self.saved.voter.register.system_id {
            self.enter(Phase::Refused(Refusal::OtherDatabase), now);
            return;
        }
        self.run.server = server;
        if self.standby_flushed().is_some() {
            self.run.streamed_at = now;
        }
        self.run.unstreamed = now.saturating_sub(self.run.streamed_at) > self.settings.peer_lost_ms;
    }

    fn canary_waits(&mut self, lsn: u64, now: Ms) {
        match self.run.phase {
            Phase::Proving { lsn: None } => self.enter(Phase::Proving { lsn: Some(lsn) }, now),
            Phase::Alone(Join::Held) => self.enter(Phase::Alone(Join::Freeing), now),
            Phase::Alone(Join::Naming) => self.enter(Phase::Alone(Join::Flushing { lsn }), now),
            Phase::Proving { lsn: Some(_) }
            | Phase::Alone(Join::Freeing | Join::Apart | Join::Flushing { .. } | Join::Proposing)
            | Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Leading
            | Phase::Outside
            | Phase::Copying(_)
            | Phase::Catching
            | Phase::Handing(_)
            | Phase::Refused(_) => {}
        }
    }

    fn canary_done(&mut self, now: Ms) {
        match self.run.phase {
            Phase::Alone(Join::Freeing) => self.enter(Phase::Alone(Join::Apart), now),
            // Committed although nobody acknowledged: the names are not in force yet. Try another.
            Phase::Proving { lsn: None } | Phase::Alone(Join::Held | Join::Naming) => self.run.attempt += 1,
            Phase::Proving { lsn: Some(_) }
            | Phase::Alone(Join::Apart | Join::Flushing { .. } | Join::Proposing)
            | Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Leading
            | Phase::Outside
            | Phase::Copying(_)
            | Phase::Catching
            | Phase::Handing(_)
            | Phase::Refused(_) => {}
        }
    }

    fn command(&mut self, command: Command, now: Ms, out: &mut Outbox) {
        let refused = match command {
            Command::Switchover => self.hand(Hand::Switch, now),
            Command::Leave => self.hand(Hand::Leave, now),
            Command::Stay => {
                self.run.leaving = false;
                None
            }
            Command::Change(members) => self.wish(members),
            Command::ForceSolo => self.force(now),
            Command::Trust => {
                self.saved.voter.trust();
                self.saved.data = if self.saved.data == Data::Suspect { Data::Led } else { self.saved.data };
                let settled = self.settled(true);
                self.enter(settled, now);
                None
            }
        };
        out.0.extend(refused.map(Effect::CommandRefused));
    }

    fn hand(&mut self, hand: Hand, now: Ms) -> Option<&'static str> {
        let peer_able = self.run.peer.beat.is_some_and(|beat| beat.able && !beat.leaving)
            && now.saturating_sub(self.run.peer.able_at) <= self.settings.peer_lost_ms;
        if !peer_able {
            return Some(
                "the peer is not ready to take over: wait until `ha status` shows both nodes in sync",
            );
        }
        match (self.run.phase, hand) {
            (Phase::Leading, Hand::Switch | Hand::Leave) if self.saved.voter.accepted.is_none() => {
                self.run.proposal = None;
                self.enter(Phase::Handing(hand), now);
                None
            }
            (Phase::Following, Hand::Leave) => {
                self.run.leaving = true;
                None
            }
            (
                Phase::Leading
                | Phase::Following
                | Phase::Mute
                | Phase::Inert
                | Phase::Taking
                | Phase::Proving { .. }
                | Phase::Alone(_)
                | Phase::Outside
                | Phase::Copying(_)
                | Phase::Catching
                | Phase::Handing(_)
                | Phase::Refused(_),
                Hand::Switch | Hand::Leave,
            ) => Some("the database role can be handed over only by the primary of a pair that is in sync"),
        }
    }

    fn wish(&mut self, members: super::register::Members) -> Option<&'static str> {
        let register = &self.saved.voter.register;
        let value = Register { members, ..register.next(self.id()) };
        if register.check_successor(&value).is_err() {
            return Some(
                "nodes can be changed only on the node that holds the data alone, and must keep it; \
                         witness and policy on the primary",
            );
        }
        self.run.wish = Some(members);
        None
    }

    fn force(&mut self, now: Ms) -> Option<&'static str> {
        let before = self.saved.voter.register;
        let usable = match self.saved.data {
            Data::Followed | Data::Led | Data::Suspect => true,
            Data::Empty | Data::Overruled | Data::Broken => false,
        };
        if !usable || !before.members.has_node(self.id()) {
            return Some(
                "this node has no complete copy of the database: force the other node, or restore a backup",
            );
        }
        let promoted = match before.mode {
            Mode::Paired { primary, .. } => primary != self.id(),
            Mode::Solo { holder } => holder != self.id(),
        };
        // A change of members that waits for votes which cannot come is carried along.
        let members = self.run.wish.unwrap_or(before.members);
        let forced = Register {
            forces: before.forces + 1,
            members,
            mode: Mode::Solo { holder: self.id() },
            timeline: before.timeline + u32::from(promoted),
            start_lsn: self.lsn(),
            ..before.next(self.id())
        };
        self.saved.voter.trust();
        self.saved.data = if self.saved.data == Data::Suspect { Data::Led } else { self.saved.data };
        self.learn(&forced, now);
        None
    }
}
