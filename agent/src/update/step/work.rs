//! Fetching, installing, entering: what follows from how a job ended, and which way to a target is tried next.

use super::{Effect, Fault, How, Outcome, Part, State};
use crate::update::plan::Made;
use crate::update::policy;
use crate::update::state::{Attempt, Phase, Trial};

impl State {
    /// Begins or takes up what the current phase needs.
    pub(super) fn go_on(&mut self, now_ms: u64, out: &mut Outcome) {
        if self.live.working {
            return;
        }
        match &self.memory.phase {
            Phase::Idle => {}
            Phase::Fetching(_) => self.fetch(out),
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

    pub(super) fn fetch(&mut self, out: &mut Outcome) {
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

    pub(super) fn entered(&mut self, out: &mut Outcome) {
        self.live.working = false;
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
        match fault {
            Fault::Unreachable(retry_after) => self.later(why, retry_after, now_ms),
            Fault::Absent | Fault::Damaged => self.next_way(part, why, now_ms, out),
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
    fn next_way(&mut self, part: Part, why: String, now_ms: u64, out: &mut Outcome) {
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
        let plan = &attempt.plan;
        let (made, at): (&Made, usize) = match part {
            Part::Slot => (&plan.slot, attempt.slot_way + 1),
            Part::Uki => (&plan.uki, attempt.uki_way + 1),
        };
        if at >= made.ways.len() {
            let release = plan.release();
            return self.end(&release, How::GivenUp, &why, out);
        }
        let what = match part {
            Part::Slot => "slot image",
            Part::Uki => "UKI",
        };
        let left = made.ways.len() - at;
        out.note("update-fallback", format!("{what}: {why}; {left} other way(s) to it, the next is tried"));
        match part {
            Part::Slot => attempt.slot_way = at,
            Part::Uki => attempt.uki_way = at,
        }
        self.memory.phase = Phase::Fetching(attempt);
        self.live.failures = 0;
        self.go_on(now_ms, out);
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
        self.later(why, None, now_ms);
    }
}
