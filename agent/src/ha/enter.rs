//! Which phase a register puts a node in, at a boot and when a newer epoch is learned.
//!
//! It does not know how an epoch is decided, nor how a phase moves on by itself (`lead`).

use super::acceptor::Learned;
use super::register::{Mode, Register};
use super::settings::Rule;
use super::state::{Data, Join, Ms, Node, Phase, Refusal, Server};

impl Node {
    /// Goes to a phase; the clock of the phase starts only if it is another one.
    pub(super) fn enter(&mut self, phase: Phase, now: Ms) {
        if phase == self.run.phase {
            return;
        }
        self.run.phase = phase;
        self.run.since = now;
        match phase {
            // Each of these begins with a canary of its own.
            Phase::Proving { lsn: None } | Phase::Alone(Join::Held | Join::Freeing | Join::Naming) => {
                self.run.attempt += 1
            }
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
        // A standby that asked to go down and was made primary instead is needed now.
        self.run.leaving &= phase != Phase::Taking;
        self.mark_led();
    }

    /// Marks the data before Postgres runs on them as primary.
    pub(super) fn mark_led(&mut self) {
        if self.run.phase == Phase::Taking && self.saved.data == Data::Followed {
            self.saved.data = Data::Led;
        }
    }

    /// The phase that register and data lead to, with nothing else known.
    pub(super) fn settled(&self, booted: bool) -> Phase {
        let voter = &self.saved.voter;
        let (me, complete) = (self.id(), self.saved.data.complete());
        if voter.muted {
            return Phase::Mute;
        }
        if !voter.register.members.has_node(me) {
            return Phase::Refused(Refusal::NotMember);
        }
        if voter.register.platform != self.settings.platform {
            return Phase::Refused(Refusal::OtherPlatform);
        }
        let handed = self.voted_hand_over() && self.settings.keeps(Rule::StayDownAfterHandOver);
        // Where this vote alone decides, nobody can have decided anything meanwhile.
        let unaware = booted && !voter.register.members.is_quorum(&[me].into_iter().collect());
        match voter.register.mode {
            Mode::Paired { .. } if unaware || !complete || handed => Phase::Inert,
            Mode::Paired { primary, .. } if primary == me => Phase::Taking,
            Mode::Paired { .. } => Phase::Following,
            Mode::Solo { holder } if holder != me => Phase::Outside,
            Mode::Solo { .. } if complete => Phase::Taking,
            Mode::Solo { .. } => Phase::Refused(Refusal::HolderData),
        }
    }

    /// Takes a decided register from anybody and goes where it leads.
    pub(super) fn learn(&mut self, register: &Register, now: Ms) -> Learned {
        let before = self.saved.voter.register;
        let learned = self.saved.voter.learn(register);
        match learned {
            Learned::Newer => self.learned(&before, now),
            Learned::Conflict => self.enter(Phase::Refused(Refusal::Conflict), now),
            Learned::Same | Learned::Older => {}
        }
        learned
    }

    /// Goes from the phase under the register `before` to the one under the register that now is ours.
    pub(super) fn learned(&mut self, before: &Register, now: Ms) {
        let register = self.saved.voter.register;
        self.run.proposal = None;
        self.run.round = 0;
        self.run.retry_at = now + self.settings.retry_ms;
        self.run.peer.able_at = now;
        self.run.streamed_at = now;
        self.run.unstreamed = false;
        self.adjust_data(before);
        let next = self.after(before);
        if let (Phase::Leading | Phase::Proving { .. }, Phase::Alone(_)) = (self.run.phase, next) {
            self.put_off_join(now);
        }
        if register.members == self.run.wish.unwrap_or(register.members) {
            self.run.wish = None;
        }
        self.enter(next, now);
    }

    fn adjust_data(&mut self, before: &Register) {
        let (register, me) = (self.saved.voter.register, self.id());
        let handed_over = match register.mode {
            Mode::Paired { standby, .. } => standby == me && register.by == me,
            Mode::Solo { .. } => false,
        };
        let overruled = register.forces != before.forces && register.mode.primary() != me;
        self.saved.data = match self.saved.data {
            // Stopped in good order, and the peer was seen to have everything before this node voted.
            Data::Led if handed_over => Data::Followed,
            Data::Led | Data::Followed | Data::Suspect if overruled => Data::Overruled,
            data @ (Data::Led
            | Data::Followed
            | Data::Suspect
            | Data::Empty
            | Data::Overruled
            | Data::Broken) => data,
        };
    }

    fn after(&self, before: &Register) -> Phase {
        let (register, me) = (&self.saved.voter.register, self.id());
        let settled = self.settled(false);
        let same_mode = register.mode == before.mode && register.members.nodes() == before.members.nodes();
        match (self.run.phase, settled, register.mode) {
            // The proof was complete before the vote, and Postgres was not restarted since.
            (Phase::Alone(Join::Proposing), Phase::Taking, Mode::Paired { primary, .. }) if primary == me => {
                Phase::Leading
            }
            (Phase::Proving { lsn: None }, Phase::Taking, Mode::Solo { .. }) if self.runs_primary() => {
                Phase::Alone(Join::Held)
            }
            (Phase::Leading | Phase::Proving { .. }, Phase::Taking, Mode::Solo { .. })
                if self.runs_primary() =>
            {
                Phase::Alone(Join::Freeing)
            }
            (Phase::Alone(Join::Held | Join::Naming), Phase::Taking, Mode::Solo { .. }) => {
                Phase::Alone(Join::Held)
            }
            (
                Phase::Alone(Join::Freeing | Join::Apart | Join::Flushing { .. } | Join::Proposing),
                Phase::Taking,
                Mode::Solo { .. },
            ) => Phase::Alone(Join::Freeing),
            (phase @ (Phase::Leading | Phase::Proving { .. } | Phase::Handing(_)), Phase::Taking, _)
                if same_mode =>
            {
                phase
            }
            (phase @ Phase::Copying(_), Phase::Outside, _) if same_mode => phase,
            (
                Phase::Mute
                | Phase::Inert
                | Phase::Following
                | Phase::Taking
                | Phase::Proving { .. }
                | Phase::Leading
                | Phase::Alone(_)
                | Phase::Outside
                | Phase::Copying(_)
                | Phase::Catching
                | Phase::Handing(_)
                | Phase::Refused(_),
                settled,
                _,
            ) => settled,
        }
    }

    /// Whether Postgres was last seen as the primary that the register wants.
    pub(super) fn runs_primary(&self) -> bool {
        match self.run.server {
            Server::Primary { timeline, .. } => timeline >= self.saved.voter.register.timeline,
            Server::Down { .. } | Server::Standby { .. } | Server::Stuck => false,
        }
    }
}
