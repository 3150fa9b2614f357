//! The recovery menu of an installed machine: it comes by itself when both slots are broken, and by a key while the
//! machine starts; it shows the status, installs again from a stick and keeps the data, loses them on request, and sets
//! an address. An installation that is told to keep the data does so too.

use anyhow::{Result, ensure};
use formats::boot::StateFacts;
use formats::layout::Slot;
use formats::status::Status;
use formats::verity::BLOCK;
use qemu_tests::console::Console;
use qemu_tests::installation::{Desk, End, PATIENCE};
use qemu_tests::keyboard::Keyboard;
use qemu_tests::machine::Bus;
use qemu_tests::status::settled;
use qemu_tests::testing::TestVm;

const MENU: &str = "6  power off";

#[test]
fn recovery_needs_no_slot() -> Result<()> {
    let desk = Desk::new()?;
    let keep = desk.stick(&[("site", "node: pump-2\ndisk: {bus: [nvme], existing: keep}\n")])?;
    let vm = desk.machine(&keep, &[Bus::Nvme])?;
    vm.power_on()?;
    ensure!(vm.installer_ends()? == End::Done);
    ensure!(vm.stick_log()?.contains(": empty"), "{}", vm.stick_log()?);
    vm.with_stick(false)?;
    let first = starts(&vm)?;

    vm.with_stick(true)?;
    vm.power_on()?;
    ensure!(vm.installer_ends()? == End::Done);
    ensure!(vm.stick_log()?.contains("; its data stays"), "{}", vm.stick_log()?);
    vm.with_stick(false)?;
    kept(&starts(&vm)?, &first)?;
    eprintln!("installed again by `existing: keep`: the identity is the same");

    break_slots(&vm)?;
    vm.with_stick_behind()?;
    installs_from_the_menu(&vm)?;
    vm.with_stick(false)?;
    kept(&starts(&vm)?, &first)?;
    eprintln!("both slots broken: installed again from the menu, the identity is the same");

    let status = resets_from_the_menu(&vm)?;
    ensure!(status.machine_id != first.machine_id, "the identity is still {}", first.machine_id);
    ensure!(status.node != "pump-2", "the name is still {}", status.node);
    ensure!(made(&status), "the state partition was not made anew: {:?}", status.state);
    let network = vm.sh("cat /etc/systemd/network/10-site-0.network")?;
    ensure!(network.contains("Address=10.0.2.15/24\nGateway=10.0.2.2"), "the network is {network}");
    Ok(())
}

/// The status of the system that starts from the disk; switches off again.
fn starts(vm: &TestVm) -> Result<Status> {
    vm.power_on()?;
    let status = vm.wait_status("the agent", PATIENCE, |status| status.observed.is_some())?;
    vm.cut()?;
    Ok(status)
}

/// An identity is only on the state partition, and an installation that keeps it brings none along.
fn kept(now: &Status, first: &Status) -> Result<()> {
    ensure!(made(first) && !made(now), "made {:?}, then {:?}", first.state, now.state);
    ensure!(now.machine_id == first.machine_id, "{} became {}", first.machine_id, now.machine_id);
    ensure!(now.node == "pump-2", "the node is {}", now.node);
    Ok(())
}

fn made(status: &Status) -> bool {
    matches!(status.state, Some(StateFacts::Persistent { made: true, .. }))
}

/// Superblock and topmost hashes of both slots.
fn break_slots(vm: &TestVm) -> Result<()> {
    let disk = vm.disk(0)?;
    Slot::BOTH.into_iter().try_for_each(|slot| disk.write(slot.verity_label(), 0, &[0; 2 * BLOCK]))
}

/// Waits for the menu and answers with a number.
fn choose(vm: &TestVm, (console, keyboard): (&mut Console, &mut Keyboard), number: &str) -> Result<()> {
    vm.installer_says(console, &[MENU])?;
    asked(vm, (console, keyboard), "Number:", number)
}

fn asked(
    vm: &TestVm,
    (console, keyboard): (&mut Console, &mut Keyboard),
    question: &str,
    answer: &str,
) -> Result<()> {
    vm.installer_says(console, &[question])?;
    keyboard.keys(&format!("{answer}\r"))
}

fn installs_from_the_menu(vm: &TestVm) -> Result<()> {
    vm.power_on()?;
    let (mut console, mut keyboard) = (vm.console()?, vm.keyboard()?);
    // Nobody touches a key: the init of the broken slot asks for this entry.
    choose(vm, (&mut console, &mut keyboard), "1")?;
    vm.installer_says(&mut console, &["slot a: "])?;
    let slot = vm.wait("the slot's status", PATIENCE, || console.rest_of_line())?;
    ensure!(!slot.contains("an image of"), "the broken slot is {slot}");
    choose(vm, (&mut console, &mut keyboard), "2")?;
    asked(vm, (&mut console, &mut keyboard), "KEEP to renew", "KEEP")?;
    ensure!(vm.installer_ends()? == End::Done);
    let log = vm.stick_log()?;
    ensure!(log.contains("Disk: /dev/nvme0n1") && log.contains("; its data stays"), "{log}");
    Ok(())
}

fn resets_from_the_menu(vm: &TestVm) -> Result<Status> {
    vm.power_on()?;
    let (mut console, mut keyboard) = (vm.console()?, vm.keyboard()?);
    vm.choose_last_entry((&mut console, &mut keyboard), "Farhold recovery 1.0.0")?;
    choose(vm, (&mut console, &mut keyboard), "1")?;
    vm.installer_says(&mut console, &["slot a: an image of"])?;
    choose(vm, (&mut console, &mut keyboard), "4")?;
    asked(vm, (&mut console, &mut keyboard), "Type RESET", "RESET")?;
    choose(vm, (&mut console, &mut keyboard), "3")?;
    asked(vm, (&mut console, &mut keyboard), "Address as", "10.0.2.15/24")?;
    asked(vm, (&mut console, &mut keyboard), "Router as", "10.0.2.2")?;
    choose(vm, (&mut console, &mut keyboard), "5")?;
    vm.wait_status("the next start", PATIENCE, settled)
}
