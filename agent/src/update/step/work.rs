//! Fetching, installing, entering: what follows from how a job ended, and which way to a target is tried next.

use super::{Effect, Fault, How, Outcome, Part, State};
use crate::update::plan::{self, Place, Way};
use crate::update::policy;
use crate::update::state::{Attempt, Phase, Trial};
use formats::hex::Digest;
use formats::status::UpdateCost;

impl State {
    /// Begins or takes up what the current phase needs.
    pub(super) fn go_on(&mut self, now_ms: u64, out: &mut Outcome) {
        if self.live.working {
            return;
        }
        match &self.memory.phase {
            Phase::Idle => {}
            Phase::Fetching(_) => self.fetch(now_ms, out),
            Phase::Installing(_) => self.install(out),
            Phase::Trial { release, .. } if self.runs(release) => self.probe(now_ms, out),
            Phase::Trial { .. } => self.enter(out),
            Phase::Committing { .. } => self.bless(out),
            Phase::Leaving { .. } | Phase::Returning { .. } => self.spend(out),
        }
    }

    fn attempt(&self) -> Option<Box<Attempt>> {
        match &self.memory.phase {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => Some(attempt.clone()),
            Phase::Trial { trial, .. } => trial.attempt.clone(),
            Phase::Idle | Phase::Committing { .. } | Phase::Leaving { .. } | Phase::Returning { .. } => None,
        }
    }

    pub(super) fn fetch(&mut self, now_ms: u64, out: &mut Outcome) {
        if !self.take_carrier(now_ms, out) {
            return;
        }
        let Some(attempt) = self.attempt() else { return };
        let job = self.next_job();
        out.effects.push(Effect::Fetch(job, attempt));
    }

    fn install(&mut self, out: &mut Outcome) {
        let Some(attempt) = self.attempt() else { return };
        let job = self.next_job();
        out.effects.push(Effect::Install(job, attempt));
    }

    pub(super) fn enter(&mut self, out: &mut Outcome) {
        let Some(attempt) = self.attempt() else { return };
        let job = self.next_job();
        out.effects.push(Effect::Enter(job, attempt));
    }

    pub(super) fn fetched(&mut self, out: &mut Outcome) {
        self.live.working = false;
        self.book_job();
        if let Phase::Fetching(attempt) = &self.memory.phase {
            out.note("update-fetched", format!("version {}: all objects are here", attempt.plan.version));
            self.memory.phase = Phase::Installing(attempt.clone());
            self.install(out);
        }
    }

    pub(super) fn installed(&mut self, out: &mut Outcome) {
        self.live.working = false;
        if matches!(self.memory.phase, Phase::Installing(_)) {
            out.effects.push(Effect::Baseline);
        }
    }

    /// The trial is remembered before its entry stands: whatever boots next, it is known for what it is.
    pub(super) fn baseline(&mut self, excused: Vec<String>, out: &mut Outcome) {
        let Phase::Installing(attempt) = &self.memory.phase else { return };
        let release = attempt.plan.release();
        let failing = if excused.is_empty() {
            String::new()
        } else {
            format!("; these checks fail on the running version too and do not count: {}", excused.join(", "))
        };
        out.note(
            "update-installed",
            format!("version {} is verified in the other slot{failing}", release.version),
        );
        let trial = Trial { excused, attempt: Some(attempt.clone()), ..Trial::default() };
        self.memory.phase = Phase::Trial { release, trial };
        self.enter(out);
    }

    pub(super) fn entered(&mut self, cost: UpdateCost, out: &mut Outcome) {
        self.live.working = false;
        if let Phase::Trial { trial, .. } = &mut self.memory.phase {
            trial.cost = Some(cost);
        }
        let UpdateCost { slot_bytes, esp_bytes, staged_bytes, peak_rss_bytes } = cost;
        out.note(
            "update-cost",
            format!(
                "written: {} KiB to the slot, {} to the ESP, {} to /var for what was fetched; at most {} KiB of memory",
                slot_bytes >> 10,
                esp_bytes >> 10,
                staged_bytes >> 10,
                peak_rss_bytes >> 10
            ),
        );
        self.restart_into_trial(out);
    }

    /// Restarts into the trial; a decision asks for a few restarts at most.
    pub(super) fn restart_into_trial(&mut self, out: &mut Outcome) {
        let Phase::Trial { release, trial } = &mut self.memory.phase else { return };
        let release = release.clone();
        if trial.restarts >= policy::RESTARTS_MAX {
            let why = format!("{} restarts did not lead into it", trial.restarts);
            return self.end_failed(&release, How::RolledBack, &why, out);
        }
        trial.restarts += 1;
        self.live.restarting = true;
        out.note("update-trial", format!("restarting into version {} on trial", release.version));
        out.effects.push(Effect::Restart(format!("trial of version {}", release.version)));
    }

    pub(super) fn failed(&mut self, what: (Part, Fault, String), now_ms: u64, out: &mut Outcome) {
        let (part, fault, why) = what;
        self.live.working = false;
        self.book_job();
        match fault {
            Fault::Unreachable(retry_after) => self.unreachable(why, retry_after, now_ms, out),
            Fault::Absent | Fault::Damaged => self.next_way((part, fault, why), now_ms, out),
            Fault::Incomplete => {
                if let Some(attempt) = self.attempt() {
                    self.memory.phase = Phase::Fetching(attempt);
                    self.failed_here(why, now_ms, out);
                }
            }
            Fault::Local => self.failed_here(why, now_ms, out),
        }
    }

    /// Falls back to the next way to the target.
    fn next_way(&mut self, what: (Part, Fault, String), now_ms: u64, out: &mut Outcome) {
        let (part, fault, why) = what;
        let phase = std::mem::take(&mut self.memory.phase);
        let mut attempt = match phase {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => attempt,
            // The UKI on the ESP is checked against its id; a trial that cannot be entered begins anew.
            Phase::Trial { trial: Trial { attempt: Some(attempt), .. }, .. } => attempt,
            Phase::Trial { .. }
            | Phase::Idle
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => {
                self.memory.phase = phase;
                return;
            }
        };
        let gone = fault == Fault::Damaged;
        attempt.leave_way(part, gone);
        let left = attempt.ways_left(part);
        let what = match part {
            Part::Slot => "slot image",
            Part::Uki => "UKI",
        };
        if left > 0 {
            if let Err(why) = attempt.settle() {
                let release = attempt.plan.release();
                return self.end(&release, How::GivenUp, &why, out);
            }
            out.note(
                "update-fallback",
                format!("{what}: {why}; {left} other way(s) to it, the next is tried"),
            );
            self.memory.phase = Phase::Fetching(attempt);
            self.live.failures = 0;
            return self.go_on(now_ms, out);
        }
        let none = attempt.plan.slot.ways.is_empty() || attempt.plan.uki.ways.is_empty();
        if none || attempt.rounds >= policy::ROUNDS_MAX {
            let release = attempt.plan.release();
            return self.end(&release, How::GivenUp, &why, out);
        }
        // Nothing is wrong with what is here: it stays, and a mirror that lacks something may have it later.
        attempt.begin_round();
        out.note("update-fallback", format!("{what}: {why}; all ways to it are tried again later"));
        self.memory.phase = Phase::Fetching(attempt);
        self.later(why, Some(policy::ROUND_S), now_ms);
    }

    fn failed_here(&mut self, why: String, now_ms: u64, out: &mut Outcome) {
        let attempt = match &mut self.memory.phase {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => attempt,
            Phase::Trial { trial: Trial { attempt: Some(attempt), .. }, .. } => attempt,
            Phase::Trial { .. }
            | Phase::Idle
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => return,
        };
        attempt.failures += 1;
        if attempt.failures > policy::INSTALLS_MAX {
            let release = attempt.plan.release();
            return self.end(&release, How::GivenUp, &why, out);
        }
        out.note("update-failed-here", format!("{why}; it is tried again"));
        // A file system without room or inodes, although it was looked at before: the other slot has none of its own.
        if attempt.failures > 1 && attempt.plan.place == Place::State && attempt.fits_slot() {
            attempt.plan.place = Place::Slot;
        }
        self.later(why, None, now_ms);
    }
}

impl Attempt {
    /// The ways that are being tried.
    pub fn current(&self) -> impl Iterator<Item = &Way> {
        let slot = self.plan.slot.ways.get(self.slot_way);
        slot.into_iter().chain(self.plan.uki.ways.get(self.uki_way))
    }

    /// Objects of which what is staged is kept: those of all ways that may be tried again, if there is room for them.
    pub fn kept(&self) -> Vec<Digest> {
        let all = || self.plan.slot.ways.iter().chain(&self.plan.uki.ways);
        let only_there = plan::Keep { spare: 0, ..self.plan.keep };
        match plan::place(all(), only_there) {
            Ok(Place::State) => all().map(|way| way.object.id).collect(),
            Ok(Place::Slot) | Err(_) => self.current().map(|way| way.object.id).collect(),
        }
    }

    fn ways_left(&self, part: Part) -> usize {
        match part {
            Part::Slot => self.plan.slot.ways.len().saturating_sub(self.slot_way),
            Part::Uki => self.plan.uki.ways.len().saturating_sub(self.uki_way),
        }
    }

    /// Goes on to the next way; one that gave the wrong bytes is not tried again.
    fn leave_way(&mut self, part: Part, gone: bool) {
        let (made, at) = match part {
            Part::Slot => (&mut self.plan.slot, &mut self.slot_way),
            Part::Uki => (&mut self.plan.uki, &mut self.uki_way),
        };
        if gone && *at < made.ways.len() {
            made.ways.remove(*at);
        } else {
            *at += 1;
        }
    }

    fn begin_round(&mut self) {
        (self.slot_way, self.uki_way) = (0, 0);
        self.rounds += 1;
        // The first ways fitted when the plan was made.
        drop(self.settle());
    }

    /// Chooses anew where objects are kept: ways differ in what they take.
    fn settle(&mut self) -> Result<(), String> {
        if self.plan.keep != plan::Keep::default() {
            self.plan.place = plan::place(self.current(), self.plan.keep)?;
        }
        Ok(())
    }

    fn fits_slot(&self) -> bool {
        let keep = plan::Keep { var: 0, ..self.plan.keep };
        plan::place(self.current(), keep) == Ok(Place::Slot)
    }
}
