//! How phases move on by themselves: taking over, proving, rejoin, hand-over; and when a node asks for a decision.
//!
//! It does not know messages of the vote (`proposer`) nor what a newer register does (`enter`).

use super::proposer::{Goal, Proposal, Stage};
use super::register::Lsn;
use super::settings::Rule;
use super::state::{Copying, Data, Hand, Join, Ms, Node, Phase, Server};

impl Node {
    /// Moves the phase on as far as what is known allows.
    pub(super) fn move_on(&mut self, now: Ms) {
        // Each phase is passed at most once in a row; the bound only guards against a cycle by mistake.
        for _ in 0..8 {
            let next = self.next_phase(now);
            if next == self.run.phase {
                return;
            }
            self.enter(next, now);
        }
    }

    fn next_phase(&mut self, now: Ms) -> Phase {
        let primary = self.runs_primary();
        let down = matches!(self.run.server, Server::Down { .. });
        match self.run.phase {
            // A vote to pair that may be decided: until that is known the restarted holder is no holder.
            Phase::Taking if primary && !self.is_paired() && !self.voted_pair() => Phase::Alone(Join::Held),
            Phase::Taking if primary && self.is_paired() => self.prove(None),
            Phase::Proving { .. } | Phase::Leading | Phase::Alone(_) if down => Phase::Taking,
            Phase::Proving { lsn } => self.prove(lsn),
            Phase::Alone(join) => Phase::Alone(self.next_join(join, now)),
            Phase::Outside => self.begin_rejoin(now),
            Phase::Handing(hand) => self.next_hand(hand, now),
            phase @ (Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Leading
            | Phase::Copying(_)
            | Phase::Catching
            | Phase::Refused(_)) => phase,
        }
    }

    fn prove(&self, lsn: Option<Lsn>) -> Phase {
        let flushed = lsn.is_some_and(|lsn| self.standby_flushed().is_some_and(|has| has >= lsn));
        let waived = !self.settings.keeps(Rule::ServeAfterFlush);
        if flushed || waived { Phase::Leading } else { Phase::Proving { lsn } }
    }

    fn peer_heard(&self, now: Ms) -> bool {
        now.saturating_sub(self.run.peer.heard_at) <= self.settings.peer_lost_ms
    }

    fn next_join(&mut self, join: Join, now: Ms) -> Join {
        let close =
            self.standby_flushed().is_some_and(|has| has + self.settings.join_lag_bytes >= self.lsn());
        let late = now.saturating_sub(self.run.since) > self.settings.join_ms;
        let heard = self.peer_heard(now);
        let bound = self.voted_pair() && self.settings.keeps(Rule::KeepNamesAfterVote);
        let idle = self.saved.voter.accepted.is_none() && self.run.proposal.is_none();
        match join {
            Join::Held if !self.settings.keeps(Rule::SeenOnFirst) => Join::Freeing,
            Join::Freeing if !self.settings.keeps(Rule::SeenOffFirst) => Join::Apart,
            Join::Apart if close && heard && idle && now >= self.run.join_at && !self.peer_leaves() => {
                Join::Naming
            }
            Join::Naming if !self.settings.keeps(Rule::CanaryMustWait) => Join::Flushing { lsn: 0 },
            // Not from `Naming`: names that were not seen in force must not be followed by none.
            Join::Flushing { .. } | Join::Proposing if (late || !heard) && !bound => {
                self.put_off_join(now);
                self.run.proposal = None;
                Join::Freeing
            }
            Join::Flushing { lsn } => {
                let lsn = if self.settings.keeps(Rule::FlushedAfterCanary) { lsn } else { 0 };
                let flushed = self.standby_flushed().is_some_and(|has| has >= lsn);
                if flushed { Join::Proposing } else { join }
            }
            Join::Held | Join::Freeing | Join::Apart | Join::Naming | Join::Proposing => join,
        }
    }

    /// Doubles the pause before the peer is taken back again.
    pub(super) fn put_off_join(&mut self, now: Ms) {
        self.run.join_at = now + (self.settings.rejoin_pause_ms << self.run.pauses);
        self.run.pauses = (self.run.pauses + 1).min(5);
    }

    fn begin_rejoin(&mut self, now: Ms) -> Phase {
        let able = self.run.peer.beat.is_some_and(|beat| beat.able);
        if !able || !self.peer_heard(now) || self.run.leaving || now < self.run.join_at {
            return Phase::Outside;
        }
        match self.saved.data {
            Data::Followed => Phase::Catching,
            Data::Led | Data::Overruled | Data::Suspect => Phase::Copying(Copying::Export),
            Data::Empty | Data::Broken => self.begin_copy(Copying::Reseed),
        }
    }

    /// Marks the directory durably before its first byte is overwritten.
    fn begin_copy(&mut self, how: Copying) -> Phase {
        self.saved.data = Data::Broken;
        Phase::Copying(how)
    }

    /// The export is done: overwrite, by rewind where the histories can be compared.
    pub(super) fn exported(&mut self, now: Ms) {
        if self.run.phase != Phase::Copying(Copying::Export) {
            return;
        }
        let how = match self.saved.data {
            Data::Led => Copying::Rewind,
            Data::Empty | Data::Followed | Data::Overruled | Data::Broken | Data::Suspect => Copying::Reseed,
        };
        let next = self.begin_copy(how);
        self.enter(next, now);
    }

    /// The copy ended well or badly.
    pub(super) fn copied(&mut self, well: bool, now: Ms) {
        match self.run.phase {
            Phase::Copying(Copying::Rewind | Copying::Reseed) if well => {
                self.saved.data = Data::Followed;
                self.enter(Phase::Catching, now);
            }
            Phase::Copying(_) => {
                // Without a pause the same job would be wanted at once, and no effect would begin it again.
                self.put_off_join(now);
                self.enter(Phase::Outside, now);
            }
            Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Proving { .. }
            | Phase::Leading
            | Phase::Alone(_)
            | Phase::Outside
            | Phase::Catching
            | Phase::Handing(_)
            | Phase::Refused(_) => {}
        }
    }

    /// The source does not have the log any more that this standby needs.
    pub(super) fn stream_gone(&mut self, now: Ms) {
        if self.run.phase == Phase::Catching {
            self.saved.data = Data::Broken;
            self.enter(Phase::Outside, now);
        }
    }

    fn next_hand(&mut self, hand: Hand, now: Ms) -> Phase {
        let late = now.saturating_sub(self.run.since) > self.settings.hand_over_ms;
        let bound = self.voted_hand_over() && self.settings.keeps(Rule::StayDownAfterHandOver);
        if late && !bound {
            self.run.proposal = None;
            self.run.leaving = false;
            return Phase::Taking;
        }
        self.run.leaving |= hand == Hand::Leave && self.handed_over_at().is_some();
        Phase::Handing(hand)
    }

    /// End of this node's log, once it has stopped in good order and the peer's disk has all of it.
    pub(super) fn handed_over_at(&self) -> Option<Lsn> {
        let Server::Down { end: Some(end) } = self.run.server else { return None };
        let flushed = self.run.peer.beat.and_then(|beat| beat.flushed)?;
        let complete = Some(flushed.name) == self.standby_name() && flushed.lsn >= end;
        (complete || !self.settings.keeps(Rule::HandOverComplete)).then_some(end)
    }

    /// Whether this node could serve, as far as it knows.
    pub(super) fn able(&self, now: Ms) -> bool {
        let recent = now.saturating_sub(self.run.fsync_at) <= self.settings.fsync_recent_ms
            || !self.settings.keeps(Rule::RecentFsync);
        let runs = match (self.run.phase, self.run.server) {
            (Phase::Following, Server::Standby { .. }) => true,
            (Phase::Proving { .. } | Phase::Leading | Phase::Alone(_), Server::Primary { .. }) => true,
            // Planned, short, and taken back after a while.
            (Phase::Handing(_), _) => true,
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
                | Phase::Refused(_),
                Server::Primary { .. } | Server::Standby { .. } | Server::Down { .. } | Server::Stuck,
            ) => false,
        };
        recent && runs && self.saved.data.complete()
    }

    fn peer_leaves(&self) -> bool {
        self.run.peer.beat.is_some_and(|beat| beat.leaving)
    }

    /// A standby that wants to go takes that back when it is needed.
    pub(super) fn stay_if_needed(&mut self, now: Ms) {
        if self.run.phase == Phase::Following && self.peer_is_lost(now) {
            self.run.leaving = false;
        }
    }

    /// Whether the peer is lost, cannot serve, or asks to be left alone.
    fn peer_is_lost(&self, now: Ms) -> bool {
        let old = |at: Ms| now.saturating_sub(at) > self.settings.peer_lost_ms;
        let streams = match self.run.phase {
            Phase::Leading | Phase::Proving { .. } => self.run.unstreamed,
            Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Alone(_)
            | Phase::Outside
            | Phase::Copying(_)
            | Phase::Catching
            | Phase::Handing(_)
            | Phase::Refused(_) => false,
        };
        old(self.run.peer.able_at) || streams || self.peer_leaves()
    }

    /// What this node wants decided now.
    pub(super) fn goal(&self, now: Ms) -> Option<Goal> {
        if !self.saved.voter.votes() {
            return None;
        }
        if self.saved.voter.accepted.is_some() {
            return Some(Goal::Finish);
        }
        match self.run.phase {
            Phase::Following | Phase::Proving { .. } | Phase::Leading
                if self.able(now) && self.peer_is_lost(now) && !self.run.leaving =>
            {
                Some(Goal::Alone)
            }
            // The holder is gone: it may have taken this node back, with the witness, before this node heard of it.
            Phase::Outside | Phase::Catching if self.saved.data.complete() && !self.peer_heard(now) => {
                Some(Goal::Finish)
            }
            Phase::Alone(Join::Proposing) => Some(Goal::Pair),
            Phase::Handing(Hand::Switch) => self.handed_over_at().map(|lsn| Goal::Switch { lsn }),
            // Not while the peer is away: the new voters might be unable to decide that it is lost.
            Phase::Leading if !self.peer_is_lost(now) => self.run.wish.map(Goal::Members),
            Phase::Alone(Join::Freeing | Join::Apart) => self.run.wish.map(Goal::Members),
            Phase::Mute
            | Phase::Inert
            | Phase::Following
            | Phase::Taking
            | Phase::Proving { .. }
            | Phase::Leading
            | Phase::Alone(Join::Held | Join::Naming | Join::Flushing { .. })
            | Phase::Outside
            | Phase::Copying(_)
            | Phase::Catching
            | Phase::Handing(Hand::Leave)
            | Phase::Refused(_) => None,
        }
    }

    /// Begins, repeats or gives up this node's attempt at the next epoch; says whether requests are due.
    pub(super) fn pursue(&mut self, now: Ms) -> bool {
        let goal = self.goal(now);
        if let Some(proposal) = self.run.proposal {
            let free = match proposal.stage {
                Stage::Asking { .. } | Stage::Preparing { .. } => true,
                Stage::Accepting { .. } => false,
            };
            let unwanted = free && goal != Some(proposal.goal);
            if !unwanted && now < self.run.retry_at {
                return true;
            }
            self.run.proposal = None;
        } else if now < self.run.retry_at {
            return false;
        }
        let Some(goal) = goal else { return false };
        let proposal = Proposal::begin(goal, &self.saved.voter, self.run.round);
        self.run.retry_at = now + self.patience(&proposal);
        self.run.proposal = Some(proposal);
        true
    }

    /// How long a stage of an attempt may take: doubles with each ballot of the epoch, so that answers that take longer
    /// than the first pause are waited for in the end.
    pub(super) fn patience(&self, proposal: &Proposal) -> Ms {
        let extra = if self.run.phase == Phase::Following { self.settings.retry_ms / 2 } else { 0 };
        let doublings = proposal.ballot.round.saturating_sub(1).min(4);
        (self.settings.retry_ms + extra) << doublings
    }
}
