//! Health, commit, and the ways back: what a trial's checks say, what the operator says, what became of the entry.

use super::{Effect, How, Operation, Outcome, State};
use crate::update::policy;
use crate::update::state::{Phase, Release, Verdict};
use formats::device::HealthCheck;
use formats::entry::EntryName;

impl State {
    /// Attempts the checks that have not passed.
    pub(super) fn probe(&mut self, now_ms: u64, out: &mut Outcome) {
        let Some(facts) = &self.facts else { return };
        let waiting = |name: &str| !matches!(self.live.checks.get(name), Some(Verdict::Passed));
        let names: Vec<String> =
            facts.checks.iter().map(|check| check.name.clone()).filter(|name| waiting(name)).collect();
        for name in &names {
            self.live.checks.entry(name.clone()).or_insert(Verdict::Untried);
        }
        self.live.retry_ms = Some(now_ms + policy::PROBE_MS);
        if !names.is_empty() {
            self.live.working = true;
            out.effects.push(Effect::Probe(names));
        }
    }

    pub(super) fn probed(&mut self, results: Vec<(String, Result<(), String>)>, now_ms: u64) {
        self.live.working = false;
        self.live.retry_ms = Some(now_ms + policy::PROBE_MS);
        for (name, result) in results {
            let verdict = result.map_or_else(Verdict::Waiting, |()| Verdict::Passed);
            self.live.checks.insert(name, verdict);
        }
    }

    /// When a check counts as failed, ms since the kernel started.
    pub(super) fn due_ms(&self, check: &HealthCheck) -> u64 {
        let deadline = u64::from(check.deadline_s) * 1000;
        match self.live.checks.get(&check.name) {
            Some(Verdict::Waiting(_) | Verdict::Passed) => deadline,
            Some(Verdict::Untried) | None => deadline.saturating_add(policy::FIRST_ATTEMPT_MS),
        }
    }

    /// Commits or leaves a trial, if its checks say so. Deadlines count from the boot, by the kernel's clock.
    pub(super) fn judge_trial(&mut self, now_ms: u64, out: &mut Outcome) {
        let Phase::Trial { release, trial } = &self.memory.phase else { return };
        if !self.runs(release) || trial.starts == 0 {
            return;
        }
        let Some(facts) = &self.facts else { return };
        let passed = |name: &str| matches!(self.live.checks.get(name), Some(Verdict::Passed));
        let counted = || {
            let excused = |name: &str| trial.excused.iter().any(|other| other == name);
            facts.checks.iter().filter(move |check| !excused(&check.name))
        };
        let late = counted().find(|check| !passed(&check.name) && now_ms > self.due_ms(check));
        if let Some(check) = late {
            let last = match self.live.checks.get(&check.name) {
                Some(Verdict::Waiting(why)) => why.as_str(),
                Some(Verdict::Untried | Verdict::Passed) | None => "its first attempt did not end",
            };
            let why = format!(
                "health check `{}` did not pass within {} s of the boot: {last}",
                check.name, check.deadline_s
            );
            return self.leave(why, out);
        }
        if self.live.settled && counted().all(|check| passed(&check.name)) {
            out.note("update-healthy", format!("version {} passed its health checks", release.version));
            self.commit(out);
        }
    }

    fn commit(&mut self, out: &mut Outcome) {
        let Phase::Trial { release, trial } = std::mem::take(&mut self.memory.phase) else { return };
        self.memory.phase = Phase::Committing { release, trial };
        self.live.working = false;
        self.live.retry_ms = None;
        self.bless(out);
    }

    pub(super) fn bless(&mut self, out: &mut Outcome) {
        let Phase::Committing { release, .. } = &self.memory.phase else { return };
        out.effects.push(Effect::Entry(Operation::Bless, release.clone()));
        self.live.working = true;
    }

    /// Leaves a trial that runs.
    pub(super) fn leave(&mut self, why: String, out: &mut Outcome) {
        let Phase::Trial { release, .. } = self.memory.phase.clone() else { return };
        out.note("update-unhealthy", format!("version {} is left: {why}", release.version));
        self.live.cost = self.memory.phase.cost();
        self.memory.phase = Phase::Leaving { release, why, restarts: 1 };
        self.live.retry_ms = None;
        self.spend(out);
    }

    /// Marks the entry of what is to be left as spent.
    pub(super) fn spend(&mut self, out: &mut Outcome) {
        let release = match &self.memory.phase {
            Phase::Leaving { release, .. } | Phase::Returning { from: release, .. } => release.clone(),
            Phase::Idle
            | Phase::Fetching(_)
            | Phase::Installing(_)
            | Phase::Trial { .. }
            | Phase::Committing { .. } => return,
        };
        self.live.working = true;
        out.effects.push(Effect::Entry(Operation::Spend, release));
    }

    pub(super) fn entry_done(
        &mut self,
        operation: Operation,
        found: Result<Option<EntryName>, String>,
        now_ms: u64,
        out: &mut Outcome,
    ) {
        match operation {
            Operation::Look => match found {
                Ok(found) => self.trial_entry(found, out),
                Err(why) => self.later(why, None, now_ms),
            },
            Operation::Arm => self.armed(found, now_ms, out),
            Operation::Bless => self.blessed(found, now_ms, out),
            Operation::Spend => self.spent(found, out),
        }
    }

    fn armed(&mut self, found: Result<Option<EntryName>, String>, now_ms: u64, out: &mut Outcome) {
        let Phase::Trial { release, .. } = &self.memory.phase else { return };
        if self.runs(release) {
            // The trial goes on with the tries that it has.
            if let Err(why) = found {
                out.note("update-rearm-failed", why);
            }
            return;
        }
        match found {
            Ok(_) => self.restart_into_trial(out),
            Err(why) => self.later(why, None, now_ms),
        }
    }

    fn blessed(&mut self, found: Result<Option<EntryName>, String>, now_ms: u64, out: &mut Outcome) {
        let Phase::Committing { release, .. } = &self.memory.phase else { return };
        let release = release.clone();
        match found {
            Ok(Some(_)) => {
                self.memory.current = release.manifest;
                out.committed = Some(release.clone());
                self.end(&release, How::Committed, "it passed its health checks", out);
            }
            Ok(None) => {
                let why = format!("the ESP has no entry of the running version {}", release.version);
                self.later(why, None, now_ms);
            }
            Err(why) => self.later(why, None, now_ms),
        }
    }

    fn spent(&mut self, found: Result<Option<EntryName>, String>, out: &mut Outcome) {
        self.live.working = false;
        if let Err(why) = found {
            // The restart is asked for all the same: a counted entry runs out by itself.
            out.note("update-spend-failed", why);
        }
        match self.memory.phase.clone() {
            Phase::Leaving { release, why, .. } => {
                if self.runs(&release) {
                    self.live.restarting = true;
                    out.effects.push(Effect::Restart(format!("version {} is left: {why}", release.version)));
                } else {
                    self.end_failed(&release, How::RolledBack, &why, out);
                }
            }
            Phase::Returning { to, .. } => {
                self.live.restarting = true;
                out.effects.push(Effect::Restart(format!("return to version {}", to.version)));
            }
            Phase::Idle
            | Phase::Fetching(_)
            | Phase::Installing(_)
            | Phase::Trial { .. }
            | Phase::Committing { .. } => {}
        }
    }

    pub(super) fn commit_asked(&mut self, out: &mut Outcome) {
        match &self.memory.phase {
            Phase::Trial { release, .. } if self.runs(release) => {
                out.accept(format!("version {} is being committed", release.version));
                out.note("update-healthy", "the operator says so");
                self.commit(out);
            }
            Phase::Committing { release, .. } => {
                let text = format!("version {} is being committed already", release.version);
                out.accept(text);
            }
            Phase::Idle
            | Phase::Fetching(_)
            | Phase::Installing(_)
            | Phase::Trial { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => out.refuse("no release runs on trial; see `farhold-agent status`"),
        }
    }

    pub(super) fn rollback_asked(&mut self, out: &mut Outcome) {
        const WHY: &str = "the operator asked for it";
        match self.memory.phase.clone() {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => {
                let release = attempt.plan.release();
                out.effects.push(Effect::Cancel);
                self.end_failed(&release, How::GivenUp, WHY, out);
                out.accept(format!(
                    "version {} is given up; the running version was not touched",
                    release.version
                ));
            }
            Phase::Trial { release, .. } => {
                out.accept(format!("version {} is being left", release.version));
                out.effects.push(Effect::Cancel);
                self.leave(WHY.to_owned(), out);
            }
            Phase::Idle => {
                let other = self.facts.as_ref().and_then(|facts| facts.other);
                if other.is_none() {
                    return out.refuse("the other slot holds no system to go back to");
                }
                let job = self.next_job();
                out.effects.push(Effect::VerifyOther(job));
            }
            Phase::Committing { release, .. } | Phase::Leaving { release, .. } => {
                out.refuse(format!("version {} is being committed or left; ask again", release.version));
            }
            Phase::Returning { to, .. } => out.refuse(format!("version {} is being returned to", to.version)),
        }
    }

    pub(super) fn other_verified(&mut self, found: Result<Release, String>, out: &mut Outcome) {
        self.live.working = false;
        let to = match found {
            Ok(to) => to,
            Err(why) => return out.refuse(format!("there is nothing to go back to: {why}")),
        };
        let Some(from) = self.running().cloned().filter(|_| self.memory.phase == Phase::Idle) else {
            return out.refuse("another release is being installed or tried; see `farhold-agent status`");
        };
        out.note("update-returning", format!("from version {} to {}", from.version, to.version));
        out.accept(format!("the other slot verifies; restarting into version {}", to.version));
        let why = "the operator asked for it".to_owned();
        self.memory.phase = Phase::Returning { to, from, why, restarts: 1 };
        self.spend(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::step::{Event, Facts};
    use formats::arch::Arch;
    use formats::device::Probe;
    use formats::hex::Digest;

    const DEADLINE_MS: u64 = 30_000;

    /// A trial whose agent starts when the deadline of its check is already over.
    fn slow_boot() -> State {
        let release = Release { version: "2".into(), roothash: Digest([2; 32]), manifest: None };
        let probe = Probe::Port { port: 8080 };
        let deadline_s = u32::try_from(DEADLINE_MS / 1000).unwrap();
        let facts = Facts {
            running: Some(release),
            other: None,
            durable: Ok(()),
            counted: true,
            restarted: false,
            evidence: None,
            fallback: None,
            product: "test".into(),
            board: "vm".into(),
            arch: Arch::X86_64,
            channel: 0,
            site: None,
            id: "device".into(),
            anchor: Err("not asked here".into()),
            source: None,
            poll_s: 3600,
            carriers: Vec::new(),
            checks: vec![HealthCheck { name: "shop".into(), deadline_s, probe }],
            seed: 1,
        };
        let started = Event::Started(Box::new(facts), Box::default());
        State::default().step(started, DEADLINE_MS + 10_000).0
    }

    #[test]
    fn a_slow_boot_is_judged_by_the_first_attempt_not_by_its_lateness() {
        let (state, _) = slow_boot().step(Event::Tick, DEADLINE_MS + 11_000);
        assert!(matches!(state.memory.phase, Phase::Trial { .. }), "{:?}", state.memory.phase);
        let passed = Event::Probed(vec![("shop".into(), Ok(()))]);
        let (healthy, _) = state.clone().step(passed, DEADLINE_MS + 12_000);
        let (healthy, _) = healthy.step(Event::Settled, DEADLINE_MS + 13_000);
        assert!(matches!(healthy.memory.phase, Phase::Committing { .. }), "{:?}", healthy.memory.phase);
        let failed = Event::Probed(vec![("shop".into(), Err("refused".into()))]);
        let (sick, _) = state.step(failed, DEADLINE_MS + 12_000);
        let Phase::Leaving { why, .. } = &sick.memory.phase else { panic!("{:?}", sick.memory.phase) };
        assert!(why.ends_with("did not pass within 30 s of the boot: refused"), "{why}");
    }

    #[test]
    fn a_first_attempt_that_never_ends_fails_the_trial() {
        let state = slow_boot();
        let due = DEADLINE_MS + policy::FIRST_ATTEMPT_MS;
        let (state, _) = state.step(Event::Tick, due);
        assert!(matches!(state.memory.phase, Phase::Trial { .. }), "{:?}", state.memory.phase);
        assert!(state.wake_ms().is_some_and(|at| at <= due + 1), "{:?}", state.wake_ms());
        let (state, _) = state.step(Event::Tick, due + 1);
        assert!(matches!(state.memory.phase, Phase::Leaving { .. }), "{:?}", state.memory.phase);
    }
}
