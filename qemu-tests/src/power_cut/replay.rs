//! Goes through a trace: every state of every epoch of every transition, judged.

use crate::power_cut::judge::{Facts, Judge, Verdict};
use crate::power_cut::states::{self, Cover, Epoch};
use crate::power_cut::trace::{Record, Run, Step, Trace};
use crate::power_cut::volume::Volume;
use anyhow::Result;
use std::collections::BTreeMap;

/// A state on its way through.
#[derive(Clone, Copy, Debug)]
pub struct State<'s> {
    /// The transition in which the power was cut.
    pub step: &'s Step,
    /// The ESP.
    pub volume: &'s Volume,
    /// What was said of it.
    pub verdict: &'s Verdict,
}

/// What was seen in one transition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Name of the transition.
    pub name: String,
    /// Epochs: stretches between two flushes in which something was written.
    pub epochs: u64,
    /// Epochs gone through exhaustively.
    pub exhaustive: u64,
    /// Distinct states of the epochs.
    pub states: u64,
    /// States from which nothing boots.
    pub unbootable: u64,
    /// Why, for the first of them.
    pub why: Option<String>,
    /// States in which two names have one chain of clusters.
    pub shared: u64,
    /// States in which an entry is listed that is not whole.
    pub broken: u64,
    /// States in which a torn long name hides an entry's counters.
    pub torn: u64,
    /// How often which entry comes first.
    pub chosen: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, verdict: &Verdict) {
        self.states += 1;
        self.shared += u64::from(!verdict.shared.is_empty());
        self.broken += u64::from(!verdict.broken.is_empty());
        self.torn += u64::from(!verdict.torn.is_empty());
        match &verdict.unbootable {
            Some(why) => {
                self.unbootable += 1;
                self.why.get_or_insert_with(|| why.clone());
            }
            None => *self.chosen.entry(verdict.chosen.clone()).or_default() += 1,
        }
    }

    /// The sum of several.
    pub fn sum(tallies: &[Self]) -> Self {
        let mut all = Self { name: "all".into(), ..Self::default() };
        for tally in tallies {
            all.epochs += tally.epochs;
            all.exhaustive += tally.exhaustive;
            all.states += tally.states;
            all.unbootable += tally.unbootable;
            all.shared += tally.shared;
            all.broken += tally.broken;
            all.torn += tally.torn;
            all.why = all.why.or_else(|| tally.why.clone());
        }
        all
    }
}

/// Goes through all states; `each` sees every one.
///
/// # Errors
/// If the trace is damaged.
pub fn replay(trace: &Trace, seed: u64, each: &mut dyn FnMut(State<'_>)) -> Result<Vec<Tally>> {
    let judge = Judge::new(trace)?;
    let mut volume = trace.base();
    // Written, but not yet flushed; goes on from one transition into the next.
    let mut pending = Epoch::default();
    let mut tallies = Vec::new();
    for step in &trace.steps {
        let mut tally = Tally { name: step.name.clone(), ..Tally::default() };
        for record in &step.records {
            match record {
                Record::Write(runs) => {
                    pending.requests.push(runs.iter().flat_map(|run: &Run| run.sectors()).collect())
                }
                Record::Flush => {
                    epoch(&judge, step, (&mut volume, &pending), seed, &mut |state| {
                        tally.add(state.verdict);
                        each(state);
                    })
                    .count(&mut tally);
                    for request in std::mem::take(&mut pending).requests {
                        volume.apply(&request);
                    }
                }
            }
        }
        epoch(&judge, step, (&mut volume, &pending), seed, &mut |state| {
            tally.add(state.verdict);
            each(state);
        })
        .count(&mut tally);
        tallies.push(tally);
    }
    Ok(tallies)
}

/// What an epoch was.
struct Done {
    written: bool,
    cover: Cover,
}

impl Done {
    fn count(self, tally: &mut Tally) {
        tally.epochs += u64::from(self.written);
        match self.cover {
            Cover::Whole => tally.exhaustive += u64::from(self.written),
            Cover::Sample => {}
        }
    }
}

fn epoch(
    judge: &Judge,
    step: &Step,
    (volume, pending): (&mut Volume, &Epoch),
    seed: u64,
    each: &mut dyn FnMut(State<'_>),
) -> Done {
    let facts = Facts { complete: &step.complete, loaders: step.loaders };
    let base = volume.clone();
    let cover = states::visit(pending, &base, seed, &mut |patch| {
        let undo = volume.apply(patch);
        let verdict = judge.judge(volume, facts);
        each(State { step, volume, verdict: &verdict });
        volume.apply(&undo);
    });
    Done { written: !pending.requests.is_empty(), cover }
}

/// The figures of a replay as a table.
pub fn table(tallies: &[Tally]) -> String {
    let mut out = format!(
        "{:34} {:>6} {:>10} {:>7} {:>10} {:>7} {:>6}\n",
        "transition", "epochs", "exhaustive", "states", "unbootable", "shared", "torn"
    );
    for t in tallies.iter().chain([&Tally::sum(tallies)]) {
        out.push_str(&format!(
            "{:34} {:>6} {:>10} {:>7} {:>10} {:>7} {:>6}\n",
            t.name, t.epochs, t.exhaustive, t.states, t.unbootable, t.shared, t.torn
        ));
    }
    out
}
