//! QEMU is killed at random times over whole updates: the device always boots something whole, and every update ends.
//!
//! `FARHOLD_TEST_CUTS` sets how many cuts (50), `FARHOLD_TEST_SEED` repeats a run's times.

use anyhow::{Result, ensure};
use formats::status::Status;
use qemu_tests::scenario::{Scenario, runs};
use qemu_tests::testing::{Random, number};
use qemu_tests::vm::BOOT_PATIENCE;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest time from power-on to a cut; an undisturbed update with its restart takes about as long.
const LONGEST_MS: u64 = 90_000;
/// After so many cuts in a row the device is left alone once, so that the test moves on.
const CUTS_IN_A_ROW: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(500);

#[test]
fn random_power_cuts() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (wanted, seed) = (number("FARHOLD_TEST_CUTS", 50)?, number("FARHOLD_TEST_SEED", now)?);
    eprintln!("seed {seed}, {wanted} cuts");
    let folder = tempfile::tempdir()?;
    let mut say = |line: &str| eprintln!("{line}");
    let mut scenario = Scenario::begin(folder.path(), None, &mut say)?;
    let (mut random, mut cuts, mut updates) = (Random::new(seed), 0, 0u32);
    let mut runs_now = "1.0.0".to_owned();
    while cuts < wanted {
        let next = format!("1.0.{}", updates + 1);
        scenario.offer(&next)?;
        cuts += update(&scenario, &runs_now, &next, &mut random)?;
        runs_now = next;
        updates += 1;
        eprintln!("{runs_now} is committed; {cuts} cuts so far");
    }
    eprintln!("{cuts} cuts over {updates} updates: always a whole system, every update done");
    Ok(())
}

/// Takes the device to `new` through cuts; gives how many there were.
fn update(scenario: &Scenario<'_>, old: &str, new: &str, random: &mut Random) -> Result<u64> {
    let (device, mut cuts, mut in_a_row) = (scenario.device(), 0, 0);
    if device.process()?.is_none() {
        device.power_on()?;
    }
    loop {
        let alone = in_a_row == CUTS_IN_A_ROW;
        let wait = if alone { PATIENCE } else { Duration::from_millis(random.below(LONGEST_MS)) };
        if follow(scenario, old, new, Instant::now() + wait)? {
            return Ok(cuts);
        }
        ensure!(!alone, "the update to {new} did not end in {} s without a cut", wait.as_secs());
        device.cut()?;
        (cuts, in_a_row) = (cuts + 1, in_a_row + 1);
        device.power_on()?;
        if in_a_row == CUTS_IN_A_ROW {
            let status = device.wait_status("a boot after cuts", BOOT_PATIENCE, |_| true)?;
            whole(&status, old, new)?;
        }
    }
}

/// Looks on, and orders the update where none is under way; whether it was committed before the time of the next cut.
fn follow(scenario: &Scenario<'_>, old: &str, new: &str, until: Instant) -> Result<bool> {
    let device = scenario.device();
    while Instant::now() < until {
        if let Some(status) = device.ask_status()?
            && let Some(update) = &status.update
        {
            whole(&status, old, new)?;
            let idle = update.phase == "idle";
            if idle && runs(&status)?.1 == new {
                return Ok(true);
            }
            // What cannot be reached in the seconds after a boot is asked again.
            if idle && let Err(error) = scenario.order() {
                eprintln!("not taken: {error:#}");
            }
        }
        std::thread::sleep(LOOK);
    }
    Ok(false)
}

fn whole(status: &Status, old: &str, new: &str) -> Result<()> {
    let Some(observed) = &status.observed else { return Ok(()) };
    ensure!(observed.version == old || observed.version == new, "{observed:?} runs");
    Ok(())
}
