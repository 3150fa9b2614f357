//! A device that knows nothing but a broker takes what is announced there, by itself, over MQTT alone; what it reports is
//! seen in the fleet.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::broker::Broker;
use qemu_tests::programs::run;
use qemu_tests::scenario::runs;
use qemu_tests::status::settled;
use qemu_tests::testing::TestVm;
use qemu_tests::vm::BOOT_PATIENCE;
use qemu_tests::workshop::Workshop;
use std::time::Duration;

/// The look after the announcement, a fetch, the writing of a slot and a boot, emulated.
const PATIENCE: Duration = Duration::from_secs(900);

#[test]
fn takes_a_release_over_mqtt() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut broker = Broker::start(folder.path())?;
    let mut workshop = Workshop::new(folder.path())?;
    let source = format!("\nsettings:\n  update: {{ source: \"{}\" }}\n", broker.url());
    workshop.change("\nsettings:\n", &source)?;
    let first = workshop.bake("1.0.0")?;
    workshop.publish(&first)?;
    let (repository, log) = (workshop.repository(), folder.path().join("serve.log"));
    broker.serve(workshop.programs(), &repository, &log)?;

    let device = TestVm::create_with("device", &[&first.join("disk.img")], |_| {})?;
    let status = device.boot()?;
    ensure!(runs(&status)? == (Slot::A, "1.0.0"), "{:?} runs", status.observed);

    workshop.add_packages("site-tools", &["strace"])?;
    let second = workshop.bake("1.0.1")?;
    let published = workshop.publish(&second)?;
    run(workshop.programs().farhold().arg("push").arg(&repository))?;
    let status = device.wait_status("the announced release", PATIENCE, |status| {
        let kept = |last: &String| last.starts_with("Version 1.0.1 was committed");
        status.update.as_ref().is_some_and(|now| now.last.as_ref().is_some_and(kept)) && settled(status)
    })?;
    ensure!(runs(&status)? == (Slot::B, "1.0.1"), "{:?} runs", status.observed);
    let said = std::fs::read_to_string(&log)?;
    eprintln!("1.0.1 came over MQTT: {published:?}, {} answers of the server", said.lines().count());

    let fleet = || {
        let mut command = workshop.programs().farhold();
        let said = run(command.arg("fleet").arg(repository.join("reports")).arg("--json"))?;
        Ok(said.contains("1.0.1").then_some(said))
    };
    let told = device.wait("the device's report", BOOT_PATIENCE, fleet).context("ask the fleet")?;
    eprintln!("{told}");
    Ok(())
}
