//! States that a power cut left of the ESP, booted: the firmware and systemd-boot take the entry that the model says.

use anyhow::{Context, Result, ensure};
use qemu_tests::power_cut::life::{Life, Order};
use qemu_tests::power_cut::materialise::onto;
use qemu_tests::power_cut::record::Recording;
use qemu_tests::power_cut::replay::{State, Tally, replay, table};
use qemu_tests::power_cut::states::Random;
use qemu_tests::power_cut::volume::Volume;
use qemu_tests::testing::TestVm;
use std::path::Path;

const SEED: u64 = 0xb007;
/// The release whose image is on no slot: its UKI is never started.
const THIRD: &str = "1.0.2";

/// A state to boot.
struct Picked {
    step: String,
    volume: Volume,
    chosen: String,
    /// How many states of this transition had the same choice.
    of: u64,
}

#[test]
fn states_boot_as_the_model_says() -> Result<()> {
    let work = tempfile::tempdir()?;
    let life = Life::prepare(work.path())?;
    let before = life.before().to_owned();
    let recording = life.record(Order::FirstSector)?;
    let picked = pick(&recording)?;
    ensure!(picked.len() >= 8, "only {} kinds of states", picked.len());
    for state in &picked {
        boots(&before, &recording, state)?;
    }
    eprintln!("{} states booted", picked.len());
    Ok(())
}

/// One state of each transition and choice, as likely as any other of its kind; and those that stand out.
fn pick(recording: &Recording) -> Result<Vec<Picked>> {
    let mut random = Random(SEED);
    let mut picked: Vec<Picked> = Vec::new();
    let tallies = replay(&recording.trace, SEED, &mut |state: State<'_>| {
        let chosen = &state.verdict.chosen;
        if chosen.starts_with(THIRD) {
            return;
        }
        let same = |p: &&mut Picked| p.step == state.step.name && p.chosen == *chosen;
        match picked.iter_mut().find(same) {
            None => picked.push(Picked {
                step: state.step.name.clone(),
                volume: state.volume.clone(),
                chosen: chosen.clone(),
                of: 1,
            }),
            Some(old) => {
                old.of += 1;
                if random.below(old.of) == 0 {
                    old.volume.clone_from(state.volume);
                }
            }
        }
    })?;
    eprint!("{}", table(&tallies));
    let all = Tally::sum(&tallies);
    ensure!(all.unbootable == 0, "{} states do not boot, as: {:?}", all.unbootable, all.why);
    Ok(picked)
}

fn boots(before: &Path, recording: &Recording, state: &Picked) -> Result<()> {
    let vm = TestVm::create_with("cut", &[before], |_| {})?;
    let contents = recording.trace.contents()?;
    let base = recording.trace.base();
    let changed = onto(&vm.disk(0)?, &base, &state.volume, (&contents, &recording.data))?;
    let status = vm.boot().with_context(|| format!("power cut in `{}`", state.step))?;
    let observed = status.observed.context("the agent does not know what runs")?;
    let runs = state.chosen.starts_with(&format!("{}_", observed.version));
    ensure!(
        runs,
        "{} runs, but {} comes first after a cut in `{}`",
        observed.version,
        state.chosen,
        state.step
    );
    eprintln!("cut in `{}`, {changed} sectors: {} boots", state.step, state.chosen);
    Ok(())
}
