//! What must hold of the simulated world, and what counts as service in it. Looks only; acts stand in `world`.

use super::world::World;
use crate::ha::register::{Mode, Register, Voters};
use crate::ha::state::Phase;

impl World {
    /// The newest decision, known to somebody or not: a vote that reached anybody but its proposer is decided, because
    /// the proposer voted first and two votes suffice.
    pub fn newest(&self) -> Register {
        let voters = [self.sites[0].disk.voter, self.sites[1].disk.voter, self.witness.voter];
        let mut newest = voters[2].register;
        for voter in voters {
            let vote = voter.accepted.filter(|vote| vote.ballot.proposer != voter.id.0);
            for register in [Some(voter.register), vote.map(|vote| vote.value)].into_iter().flatten() {
                newest = if register.age(&newest).is_gt() { register } else { newest };
            }
        }
        newest
    }

    /// What must hold after every act.
    pub(super) fn judge(&mut self) {
        let [a, b] = [&self.sites[0], &self.sites[1]];
        let can = [a.database.can_acknowledge(&b.database), b.database.can_acknowledge(&a.database)];
        if can == [true, true] {
            self.violation = Some("two primaries could acknowledge at once");
        }
        for database in self.sites.map(|site| site.database) {
            if database.serves() {
                self.exposed |= database.log.writes(database.visible) | self.acknowledged;
            }
        }
        for (site, can) in self.sites.iter().zip(can) {
            let log = &site.database.log;
            if can && self.exposed & !log.writes(log.end()) != 0 {
                self.violation = Some("a primary serves without a write that a client has seen");
            }
        }
        self.judge_registers();
        self.judge_copies();
    }

    fn judge_registers(&mut self) {
        let known = [
            self.sites[0].disk.voter.register,
            self.sites[1].disk.voter.register,
            self.witness.voter.register,
        ];
        let split = known.iter().any(|x| known.iter().any(|y| x.age(y).is_eq() && x != y));
        if split {
            self.violation = Some("two different decisions of one epoch");
        }
    }

    /// Every member of the in-sync set whose directory is intact holds every write that a client has seen.
    fn judge_copies(&mut self) {
        // What a node that decides alone has forgotten, nobody knows, so who is in sync is unknown until it is vouched for.
        let voters = self.sites.map(|site| site.disk.voter);
        if voters.iter().any(|voter| voter.muted && voter.decides_alone()) {
            return;
        }
        let newest = self.newest();
        for site in &self.sites {
            let intact = site.disk.data.complete() && !site.database.ruined;
            let member = newest.mode.in_sync().contains(site.database.me);
            let log = &site.database.log;
            if member && intact && self.exposed & !log.writes(log.end()) != 0 {
                self.violation = Some("a member of the in-sync set lacks a write that a client has seen");
            }
        }
    }

    /// Whether some node takes and can acknowledge writes.
    pub fn in_service(&self) -> bool {
        let [a, b] = [&self.sites[0], &self.sites[1]];
        a.database.can_acknowledge(&b.database) || b.database.can_acknowledge(&a.database)
    }

    /// Whether both nodes are in sync and one serves.
    pub fn paired(&self) -> bool {
        self.in_service()
            && matches!(self.newest().mode, Mode::Paired { .. })
            && [0, 1].iter().all(|n| matches!(self.phase(*n), Some(Phase::Leading | Phase::Following)))
            && self.sites.iter().all(|site| site.disk.voter.register == self.newest())
    }

    /// Whether these two, and nobody else, must be able to bring the service back.
    pub fn must_recover(&self, up: [bool; 3]) -> bool {
        let voters = [self.sites[0].disk.voter, self.sites[1].disk.voter, self.witness.voter];
        let live = |n: usize| up[n] && !voters[n].muted;
        let newest = self.newest();
        // A vote that reached another voter is decided, since its proposer voted first: trap 13 counts from there.
        let votes = (0..3).filter(|n| live(*n)).filter_map(|n| voters[n].accepted);
        let open: Vec<Register> =
            votes.map(|vote| vote.value).filter(|v| v.epoch == newest.epoch + 1).collect();
        let member = (0..2).any(|n| {
            let site = &self.sites[n];
            let in_sync = |register: &Register| register.mode.in_sync().contains(voters[n].id);
            live(n) && site.disk.data.complete() && in_sync(&newest) && open.iter().all(in_sync)
        });
        let votes: Voters = (0..3).filter(|n| live(*n)).map(|n| voters[n].id).collect();
        // A witness never speaks first: a node that was not told of it does not talk to it.
        let talk = (0..2)
            .filter(|n| live(*n))
            .all(|n| votes.iter().all(|id| voters[n].register.members.voters().contains(id)));
        // While a change of members is being decided it is open which voters count.
        let pending =
            voters.iter().any(|voter| voter.accepted.is_some_and(|v| v.value.members != newest.members));
        let wished = self.sites.iter().any(|site| site.node.is_some_and(|node| node.run.wish.is_some()));
        member && talk && !pending && !wished && newest.members.is_quorum(&votes)
    }
}
