//! What a boot means for the phase it comes in: go on, a trial has begun, or one has ended.

use super::{Effect, Facts, How, Operation, Outcome, State};
use crate::update::policy;
use crate::update::state::{Live, Memory, Phase, Release, Trial};
use formats::entry::EntryName;

impl State {
    pub(super) fn started(&mut self, facts: Facts, memory: Memory, now_ms: u64, out: &mut Outcome) {
        self.root = facts.anchor.as_ref().ok().map(|anchor| super::look::trusted(anchor, &memory.chain));
        self.memory = memory;
        self.chain_fetches = None;
        self.live = Live {
            next_check_ms: facts
                .source
                .as_ref()
                .map(|_| policy::first_check_ms(now_ms, facts.poll_s, facts.seed)),
            ..Live::default()
        };
        self.facts = Some(facts);
        let Some(running) = self.running().cloned() else { return };
        self.adopt_trial(&running);
        match self.memory.phase.clone() {
            Phase::Idle => {}
            Phase::Fetching(_) | Phase::Installing(_) | Phase::Committing { .. } => {
                self.go_on_if_still_due(&running, now_ms, out);
            }
            Phase::Trial { release, .. } if self.runs(&release) => self.trial_started(now_ms, out),
            Phase::Trial { release, .. } => self.trial_missed(&release, out),
            Phase::Leaving { release, why, restarts } => {
                if self.runs(&release) {
                    self.still_there(restarts, out);
                } else {
                    self.end_failed(&release, How::RolledBack, &why, out);
                }
            }
            Phase::Returning { from, why, restarts, .. } => {
                if self.runs(&from) {
                    self.still_there(restarts, out);
                } else {
                    self.memory.current = None;
                    self.end_failed(&from, How::RolledBack, &why, out);
                }
            }
        }
    }

    /// A counted boot that the memory does not know about, because the state partition was lost, or because the power
    /// went between two steps: it is a trial all the same, since only a verified slot ever gets an entry.
    fn adopt_trial(&mut self, running: &Release) {
        let facts_counted = self.facts.as_ref().is_some_and(|facts| facts.counted);
        let unknown = match &self.memory.phase {
            Phase::Idle => facts_counted,
            Phase::Fetching(attempt) | Phase::Installing(attempt) => {
                attempt.plan.roothash == running.roothash
            }
            Phase::Trial { .. }
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => false,
        };
        if unknown {
            let manifest = match &self.memory.phase {
                Phase::Fetching(attempt) | Phase::Installing(attempt) => Some(attempt.plan.manifest),
                Phase::Idle
                | Phase::Trial { .. }
                | Phase::Committing { .. }
                | Phase::Leaving { .. }
                | Phase::Returning { .. } => None,
            };
            let release = Release { manifest, ..running.clone() };
            self.memory.phase = Phase::Trial { release, trial: Trial::default() };
        }
    }

    fn go_on_if_still_due(&mut self, running: &Release, now_ms: u64, out: &mut Outcome) {
        if let Phase::Committing { release, trial } = self.memory.phase.clone()
            && release.roothash != running.roothash
        {
            // It was healthy. Its entry was lost while it was renamed, and the old slot took over.
            self.memory.phase = Phase::Trial { release: release.clone(), trial };
            return self.trial_missed(&release, out);
        }
        self.go_on(now_ms, out);
    }

    fn trial_started(&mut self, now_ms: u64, out: &mut Outcome) {
        let Some(facts) = self.facts.clone() else { return };
        let Phase::Trial { release, trial } = &mut self.memory.phase else { return };
        let release = release.clone();
        if !facts.restarted {
            trial.starts += 1;
            out.note(
                "update-trial",
                format!("version {} runs on trial, start {}", release.version, trial.starts),
            );
        }
        if trial.starts > policy::STARTS_MAX {
            let why = format!("it was started {} times and never became healthy", trial.starts - 1);
            return self.leave(why, out);
        }
        let again = trial.starts > 1 && !facts.restarted;
        if again && facts.counted && facts.evidence.is_none() && trial.rearms < policy::REARMS_MAX {
            // Counted durably before the rename: a user who switches off and on costs an honest trial nothing.
            trial.rearms += 1;
            out.note(
                "update-rearmed",
                format!(
                    "the power went in the trial; its tries are given back ({} of {} times)",
                    trial.rearms,
                    policy::REARMS_MAX
                ),
            );
            out.effects.push(Effect::Entry(Operation::Arm, release));
        } else if let (true, Some(evidence)) = (again, &facts.evidence) {
            out.note("update-crashed", format!("the boot before this one ended badly: {evidence}"));
        }
        self.probe(now_ms, out);
    }

    /// The old slot runs although a trial is due.
    fn trial_missed(&mut self, release: &Release, out: &mut Outcome) {
        let fallback = self.facts.as_ref().and_then(|facts| facts.fallback.clone());
        if let Some(why) = fallback {
            return self.end_failed(release, How::RolledBack, &why, out);
        }
        out.effects.push(Effect::Entry(Operation::Look, release.clone()));
    }

    /// The entry of a trial that did not happen tells why.
    pub(super) fn trial_entry(&mut self, found: Option<EntryName>, out: &mut Outcome) {
        let evidence = self.facts.as_ref().and_then(|facts| facts.evidence.clone());
        let Phase::Trial { release, trial } = &mut self.memory.phase else { return };
        let release = release.clone();
        if self.live.restarting {
            return;
        }
        let started = trial.starts > 0;
        let spent = found.as_ref().and_then(|entry| entry.tries).is_some_and(|tries| tries.left == 0);
        if found.is_none() && trial.attempt.is_some() && trial.restarts < policy::RESTARTS_MAX {
            // The power went before the entry stood, or while it was renamed.
            return self.enter(out);
        }
        if started || evidence.is_some() && spent {
            let starts = trial.starts;
            let how = match (starts, evidence) {
                (0, Some(evidence)) => format!("it was started and never came up: {evidence}"),
                (0, None) => "it never came up".to_owned(),
                (_, evidence) => {
                    let crash = evidence.map_or(String::new(), |evidence| format!(" ({evidence})"));
                    format!("it was started {starts} time(s), and the boot loader came back{crash}")
                }
            };
            return self.end_failed(&release, How::RolledBack, &how, out);
        }
        if found.is_none() {
            return self.end_failed(&release, How::RolledBack, "its boot entry was lost", out);
        }
        // Its tries were spent, or passed over, without its agent ever starting: once more, in case it was the power.
        if trial.restarts >= 2 {
            let why = "the boot loader came back from it, and its agent never started";
            return self.end_failed(&release, How::RolledBack, why, out);
        }
        if spent {
            trial.rearms += 1;
            out.effects.push(Effect::Entry(Operation::Arm, release));
        } else {
            self.restart_into_trial(out);
        }
    }

    /// A restart out of a release led back into it.
    fn still_there(&mut self, restarts: u32, out: &mut Outcome) {
        if restarts >= policy::RESTARTS_MAX {
            let why =
                format!("{restarts} restarts led back here: the boot loader does not take the other entry");
            out.note("update-stuck", why.clone());
            self.live.stuck = Some(why);
            return;
        }
        match &mut self.memory.phase {
            Phase::Leaving { restarts, .. } | Phase::Returning { restarts, .. } => *restarts += 1,
            Phase::Idle
            | Phase::Fetching(_)
            | Phase::Installing(_)
            | Phase::Trial { .. }
            | Phase::Committing { .. } => {}
        }
        self.spend(out);
    }

    /// Back to rest after a release failed here; it is not tried again by itself.
    pub(super) fn end_failed(&mut self, release: &Release, how: How, why: &str, out: &mut Outcome) {
        self.memory.put_in_quarantine(release, why);
        self.end(release, how, why, out);
    }
}
