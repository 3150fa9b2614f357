//! QEMU is killed at random times of an installation. Each time, the disk alone starts nothing or a whole system, and the
//! stick takes the disk again without being told so; at the end it installs and the machine works.
//!
//! `FARHOLD_TEST_CUTS` sets how many cuts (30), `FARHOLD_TEST_SEED` repeats a run's times. That every single write and
//! flush survives is shown in memory: `installer/src/write/tests.rs`.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::installation::{Desk, End, PATIENCE};
use qemu_tests::machine::Bus;
use qemu_tests::testing::{Random, TestVm, number};
use qemu_tests::vm::POLL;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What firmware says of a machine from which nothing starts, and what a system says that does.
const ALONE: [&str; 5] = [
    "BdsDxe: No bootable option",
    "UEFI Interactive Shell",
    " slot=a ",
    "farhold-init: STOPPED",
    "Kernel panic",
];

#[test]
fn installation_survives_power_cuts() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (wanted, seed) = (number("FARHOLD_TEST_CUTS", 30)?, number("FARHOLD_TEST_SEED", now)?);
    eprintln!("seed {seed}, {wanted} cuts");
    let desk = Desk::new()?;
    let vm = desk.machine(&desk.stick(&[("site", "disk: {bus: [nvme]}\n")])?, &[Bus::Nvme])?;
    // Firmware would look for a system on the network, for minutes.
    vm.change(|machine| machine.ssh_port = None)?;
    let (mut random, mut cuts, mut whole) = (Random::new(seed), 0, 0);
    let took = install(&vm, None)?.context("it was not cut")?;
    eprintln!("undisturbed: {:.1} s from the first write to the end", took.as_secs_f64());
    vm.renew_target()?;
    while cuts < wanted {
        let after = Duration::from_millis(random.below(u64::try_from(took.as_millis())? * 9 / 8));
        let done = install(&vm, Some(after))?;
        cuts += u64::from(done.is_none());
        let system = starts(&vm)?;
        ensure!(system || done.is_none(), "nothing starts from a disk that was said to be done");
        eprintln!(
            "cut {cuts} of {wanted}, {:.1} s after the first write: {}",
            after.as_secs_f64(),
            if system { "a whole system" } else { "nothing starts" }
        );
        if system {
            whole += 1;
            vm.renew_target()?;
        }
    }
    install(&vm, None)?;
    ensure!(starts(&vm)?, "nothing starts after the last installation");
    eprintln!("{cuts} cuts, {whole} times a whole system after one; the last installation works");
    Ok(())
}

/// Starts the stick, and cuts the power so long after it began to write; how long it took if it was done before.
fn install(vm: &TestVm, cut_after: Option<Duration>) -> Result<Option<Duration>> {
    vm.with_stick(true)?;
    vm.power_on()?;
    vm.installer_says(&mut vm.console()?, &["write the system"])?;
    let begun = Instant::now();
    if let Some(after) = cut_after {
        while vm.process()?.is_some() && begun.elapsed() < after {
            std::thread::sleep(POLL);
        }
        let off = vm.process()?.is_none();
        vm.cut()?;
        if !off {
            return Ok(None);
        }
    }
    let end = vm.installer_ends()?;
    ensure!(end == End::Done, "{end:?}");
    Ok(Some(begun.elapsed()))
}

/// Whether a whole system starts from the disk alone. Anything between that and nothing is an error.
fn starts(vm: &TestVm) -> Result<bool> {
    vm.with_stick(false)?;
    vm.power_on()?;
    let (index, line) = vm.wait_console(&mut vm.console()?, &ALONE, PATIENCE)?;
    let system = index == 2;
    ensure!(index <= 2, "something half-written starts: {line}");
    if system {
        let status = vm.wait_status("the agent", PATIENCE, |_| true)?;
        let observed = status.observed.context("the agent does not know what runs")?;
        ensure!(observed.slot == Slot::A && observed.version == "1.0.0", "{observed:?} runs");
    }
    vm.cut()?;
    Ok(system)
}
