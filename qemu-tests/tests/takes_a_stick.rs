//! A stick with a release, plugged into a machine that runs, is found by the machine itself; nobody types anything. The
//! release is tried and kept, and the stick brings the device's report back.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::scenario::runs;
use qemu_tests::status::settled;
use qemu_tests::stick::FatStick;
use qemu_tests::testing::TestVm;
use qemu_tests::vm::BOOT_PATIENCE;
use qemu_tests::workshop::Workshop;
use std::time::Duration;

/// The lab's own board has a kernel without USB.
const BOARD: &str = "generic-uefi";
const STICK_BYTES: u64 = 2 << 30;
/// Reading, writing a slot and a boot, emulated.
const PATIENCE: Duration = Duration::from_secs(900);
/// When the import of the stick ended in this boot; 0 before.
const IMPORT_ENDED: &str = "systemctl show -P InactiveEnterTimestampMonotonic farhold-import@sda.service";

#[test]
fn takes_a_stick() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut workshop = Workshop::new(folder.path())?.for_board(BOARD);
    let first = workshop.bake("1.0.0")?;
    workshop.publish(&first)?;
    workshop.add_packages("site-tools", &["strace"])?;
    let second = workshop.bake("1.0.1")?;
    let published = workshop.publish(&second)?;
    let stick = FatStick::make(&folder.path().join("stick.img"), STICK_BYTES, &workshop.repository())?;

    let device =
        TestVm::create_with("device", &[&first.join("disk.img")], |machine| machine.usb_ports = true)?;
    let status = device.boot()?;
    ensure!(runs(&status)? == (Slot::A, "1.0.0"), "{:?} runs", status.observed);
    device.plug(&stick)?;
    let status = device.wait_status("the stick's release", PATIENCE, |status| {
        let kept = |last: &String| last.starts_with("Version 1.0.1 was committed");
        status.update.as_ref().is_some_and(|now| now.last.as_ref().is_some_and(kept)) && settled(status)
    })?;
    ensure!(runs(&status)? == (Slot::B, "1.0.1"), "{:?} runs", status.observed);
    eprintln!("1.0.1 came from a stick: {published:?}");

    // The stick is still there after the restart, and is looked at again.
    device.wait("the end of the import", BOOT_PATIENCE, || {
        Ok((device.sh(IMPORT_ENDED)?.trim() != "0").then_some(()))
    })?;
    device.unplug()?;
    let reports = stick.texts("reports")?;
    ensure!(reports.len() == 1, "the stick has {reports:?}");
    let report: serde_json::Value = serde_json::from_str(&reports[0].1).context("read the report")?;
    ensure!(report["observed"]["version"] == "1.0.1", "the report says {report}");
    ensure!(report["machine_id"] == status.machine_id.as_str(), "the report says {report}");
    Ok(())
}
