//! Power cuts at every flush epoch of every transition of the ESP, with un-flushed writes lost, kept, torn and
//! reordered: from each state a machine boots by itself.

use anyhow::{Context, Result, ensure};
use qemu_tests::power_cut::judge::Judge;
use qemu_tests::power_cut::life::Order;
use qemu_tests::power_cut::materialise::{Fsck, described};
use qemu_tests::power_cut::replay::{State, Tally, replay, table};
use qemu_tests::power_cut::states::Random;
use qemu_tests::power_cut::stored;
use qemu_tests::power_cut::trace::{Record, Trace};
use qemu_tests::power_cut::volume::Volume;
use std::path::Path;

const SEED: u64 = 0x0fa7;
/// States that `fsck.fat` looks at, spread over all.
const CHECKED: usize = 150;

fn trace(order: Order) -> Result<Trace> {
    stored::trace(order, Path::new(env!("CARGO_TARGET_TMPDIR")))
}

#[test]
fn every_state_boots() -> Result<()> {
    let trace = trace(Order::FirstSector)?;
    let mut picked = Picked { random: Random(SEED), seen: 0, states: Vec::new() };
    let tallies = replay(&trace, SEED, &mut |state| picked.offer(state))?;
    eprint!("{}", table(&tallies));
    let all = Tally::sum(&tallies);
    ensure!(all.unbootable == 0, "{} states do not boot, as: {:?}", all.unbootable, all.why);
    ensure!(all.states > 10_000, "only {} states", all.states);
    ensure!(tallies.iter().all(|tally| tally.states > 1), "a transition has no states");
    agrees_with_fsck(&trace, &picked.states)
}

/// A sample in which every state is as likely as any other.
struct Picked {
    random: Random,
    seen: u64,
    states: Vec<(Volume, bool)>,
}

impl Picked {
    fn offer(&mut self, state: State<'_>) {
        self.seen += 1;
        let entry = || (state.volume.clone(), !state.verdict.shared.is_empty());
        let place = self.random.below(self.seen) as usize;
        if self.states.len() < CHECKED {
            self.states.push(entry());
        } else if let Some(old) = self.states.get_mut(place) {
            *old = entry();
        }
    }
}

/// What the strict reader calls shared, `fsck.fat` calls so too, and the other way round; and it can read all of them.
fn agrees_with_fsck(trace: &Trace, states: &[(Volume, bool)]) -> Result<()> {
    let (fsck, judge) = (Fsck::find()?, Judge::new(trace)?);
    let folder = tempfile::tempdir()?;
    let image = folder.path().join("esp.img");
    for (volume, shared) in states {
        described(volume, judge.contents(), &image)?;
        let said = fsck.check(&image)?;
        ensure!(said.contains("share clusters") == *shared, "shared: {shared}, but fsck.fat says: {said}");
    }
    eprintln!("fsck.fat read {} of the states and agrees", states.len());
    Ok(())
}

#[test]
fn renaming_in_and_unlinking_is_found_to_be_unsafe() -> Result<()> {
    let mut last = None;
    let tallies = replay(&trace(Order::Renames)?, SEED, &mut |state| {
        last.clone_from(&state.verdict.unbootable);
    })?;
    eprint!("{}", table(&tallies));
    let of =
        |name: &str| tallies.iter().find(|tally| tally.name.starts_with(name)).context("no such transition");
    ensure!(of("rename 1.0.1 in, ")?.shared > 0, "no cut in a rename leaves both names");
    let over = of("stage 1.0.2 over")?;
    ensure!(over.unbootable * 2 > over.states, "{} of {} states do not boot", over.unbootable, over.states);
    ensure!(last.is_some(), "a UKI whose clusters another file took boots");
    let unlink = of("unlink 1.0.1")?;
    ensure!(unlink.unbootable > 0, "an entry that comes first was unlinked without harm");
    let why = unlink.why.as_deref().unwrap_or_default();
    ensure!(why.contains("its chain breaks after"), "{why}");
    Ok(())
}

/// Were the flushes left out, or a slot not complete, the replay would say so.
#[test]
fn missing_flushes_and_incomplete_slots_are_noticed() -> Result<()> {
    let whole = stored::read(&stored::kept(Order::FirstSector))?;
    let unbootable = |change: &dyn Fn(&mut Trace)| -> Result<u64> {
        let mut trace = whole.clone();
        change(&mut trace);
        trace.steps.truncate(1);
        Ok(Tally::sum(&replay(&trace, SEED, &mut |_| {})?).unbootable)
    };
    ensure!(unbootable(&|_| {})? == 0);
    let unflushed = unbootable(&|trace| {
        trace.steps.iter_mut().for_each(|step| step.records.retain(|record| *record != Record::Flush));
    })?;
    ensure!(unflushed > 0, "a UKI placed without a flush was not noticed");
    let incomplete = unbootable(&|trace| {
        trace.steps.iter_mut().for_each(|step| drop(step.complete.pop()));
    })?;
    ensure!(incomplete > 0, "an entry for an incomplete slot was not noticed");
    Ok(())
}
