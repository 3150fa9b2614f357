//! Firmware boots a stick, the stick installs a machine without asking, and the machine's own disk then boots to a
//! running agent that has what the site's file said.

use anyhow::{Context, Result, ensure};
use formats::boot::StateFacts;
use formats::layout::{LABEL_STATE, STATE_TAIL_BYTES, Slot};
use formats::seed::{AREA_BYTES, Seed};
use formats::status::{AgentState, Status};
use qemu_tests::boot::table;
use qemu_tests::installation::{Desk, End, PATIENCE, SERIAL};
use qemu_tests::machine::Bus;
use qemu_tests::testing::TestVm;
use std::time::Instant;

/// Not for this machine; it would refuse every disk.
const OTHERS: &str = "disk: {serial: none-has-this}\n";
/// The address is the one at which the lab's network finds a machine, so only a machine that has it answers.
const SITE: &str = "node: pump-1\nsite: north\ndisk: {bus: [BUS, usb], prefer: largest}\nnetwork:\n  - {addresses: [10.0.2.15/24], \
                    gateway: 10.0.2.2}\nproxy: http://192.0.2.1:3128\n\
                    carriers:\n  - {name: cellular, source: 'https://updates.example/repo', month_kib: 500000}\n";
/// The stick as the largest disk.
const STICK_BYTES: u64 = 8 << 30;

#[test]
fn installs_onto_nvme() -> Result<()> {
    installs(Bus::Nvme, "nvme", false)
}

/// From a stick that cannot be written to.
#[cfg(feature = "long")]
#[test]
fn installs_onto_virtio_from_a_write_protected_stick() -> Result<()> {
    installs(Bus::Virtio, "virtio", true)
}

fn installs(bus: Bus, name: &str, protected: bool) -> Result<()> {
    let begun = Instant::now();
    let desk = Desk::new()?;
    let stick = desk.stick(&[("site", OTHERS), (SERIAL, &SITE.replace("BUS", name))])?;
    let vm = desk.machine(&stick, &[bus])?;
    vm.disk(0)?.grow(STICK_BYTES)?;
    vm.change(|machine| machine.disks[0].read_only = protected)?;
    eprintln!("baked, and a stick made, in {:.1} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    vm.power_on()?;
    let end = vm.installer_ends()?;
    ensure!(end == End::Done, "{end:?}");
    eprintln!("installed in {:.1} s from power-on", begun.elapsed().as_secs_f64());
    if protected {
        ensure!(vm.stick_log().is_err(), "a log on a stick that cannot be written to");
    } else {
        the_log_says_it(&vm)?;
    }

    vm.with_stick(false)?;
    vm.power_on()?;
    let (status, wall) = vm.follow_boot(PATIENCE, |_, _| {})?;
    eprint!("{}", table(&status, u64::try_from(wall.as_millis())?));
    runs(&status)?;
    has_what_the_site_said(&vm, &status)?;
    vm.cut()?;
    the_seed_is_wiped(&vm)
}

fn the_log_says_it(vm: &TestVm) -> Result<()> {
    let log = vm.stick_log()?.replace('\r', "");
    eprintln!("{log}");
    for line in [&format!("Site: sites/{SERIAL}.yaml"), "signatures good", ": empty", "DONE. "] {
        ensure!(log.contains(line), "the log on the stick has no `{line}`:\n{log}");
    }
    Ok(())
}

fn runs(status: &Status) -> Result<()> {
    ensure!(status.agent == AgentState::Running, "the agent is {:?}: {:?}", status.agent, status.findings);
    let observed = status.observed.as_ref().context("the agent does not know what runs")?;
    ensure!(observed.slot == Slot::A && observed.version == "1.0.0", "{observed:?} runs");
    let Some(StateFacts::Persistent { made: true, .. }) = &status.state else {
        anyhow::bail!("the state partition was not made: {:?}", status.state);
    };
    Ok(())
}

fn has_what_the_site_said(vm: &TestVm, status: &Status) -> Result<()> {
    ensure!(status.node == "pump-1", "the node is {}", status.node);
    let name = vm.sh("cat /proc/sys/kernel/hostname /etc/machine-id")?;
    ensure!(name == format!("pump-1\n{}", status.machine_id), "host name and machine id are {name:?}");
    let route = vm.sh("grep -h . /run/systemd/netif/links/* /etc/systemd/network/10-site-0.network")?;
    ensure!(route.contains("Address=10.0.2.15/24") && !route.contains("DHCP=yes"), "the network is {route}");
    let proxy = vm.sh(
        "tr '\\0' '\\n' < /proc/$(systemctl show -p MainPID --value farhold-agent)/environ | grep -i proxy",
    )?;
    ensure!(proxy.contains("https_proxy=http://192.0.2.1:3128"), "the agent's proxy is {proxy:?}");
    let said = vm.sh("cat /var/lib/farhold/site")?;
    ensure!(said.trim_end() == "north", "site is {said}");
    let said = vm.sh("cat /var/lib/farhold/site.json && farhold-agent why")?;
    ensure!(said.contains("500000"), "site.json is {said}");
    ensure!(said.contains("Carrier cellular"), "the agent does not use the site's carriers: {said}");
    Ok(())
}

/// There may be secrets in it.
fn the_seed_is_wiped(vm: &TestVm) -> Result<()> {
    let disk = vm.disk(0)?;
    let at = disk.partition(LABEL_STATE)?.bytes - STATE_TAIL_BYTES;
    let area = disk.read(LABEL_STATE, at, AREA_BYTES)?;
    ensure!(Seed::parse(&area) == Ok(None), "the seed is still on the disk");
    Ok(())
}

/// What firmware and kernel show of a write-protected stick and of two disks, and that a refusal leaves them as they were.
#[test]
fn a_refusal_writes_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let vm = desk.machine(&desk.stick(&[("site", "node: pump-1\n")])?, &[Bus::Nvme, Bus::Virtio])?;
    vm.change(|machine| machine.disks[0].read_only = true)?;
    vm.power_on()?;
    let mut console = vm.console()?;
    vm.installer_says(&mut console, &["The stick is write-protected"])?;
    let End::Failed(why) = vm.installer_ends()? else { anyhow::bail!("it chose one of two disks") };
    ensure!(why.starts_with("2 disks could be meant") && why.contains("/dev/vda"), "it says: {why}");
    let said = ["Next: name one in site.yaml", "Nothing was written: the disks are as they were"];
    for line in said {
        vm.wait_console(&mut console, &[line], PATIENCE)?;
    }
    vm.cut()?;
    ensure!(vm.written_to_disks()? == 0, "{} bytes were written", vm.written_to_disks()?);
    Ok(())
}
