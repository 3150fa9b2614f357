//! A device that the first state with updates was baked for takes a release of today's programs, and the one after it.
//!
//! `FARHOLD_OLD_IMAGE_DIR` names the build of that state, as `make test-all` bakes it.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::programs::IMAGE_VARIABLE;
use qemu_tests::scenario::{Scenario, runs};
use std::process::Command;

const OLD_VARIABLE: &str = "FARHOLD_OLD_IMAGE_DIR";
/// Set for the process that is the test itself: the lab takes its image from the environment.
const INNER: &str = "FARHOLD_OLD_IMAGE_BOOTS";

#[test]
fn old_agent_takes_a_new_release() -> Result<()> {
    if std::env::var_os(INNER).is_some() {
        return takes_releases();
    }
    let old = std::env::var_os(OLD_VARIABLE)
        .with_context(|| format!("{OLD_VARIABLE} is not set: `make test-all` bakes the old image"))?;
    let own = std::env::current_exe()?;
    let arguments = ["--exact", "old_agent_takes_a_new_release", "--nocapture"];
    let outcome = Command::new(own).args(arguments).env(IMAGE_VARIABLE, old).env(INNER, "1").status()?;
    ensure!(outcome.success(), "the test on the old image failed");
    Ok(())
}

fn takes_releases() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut say = |line: &str| eprintln!("{line}");
    let mut scenario = Scenario::begin(folder.path(), None, &mut say)?;
    let begun = scenario.device().ask_status()?.context("the old agent does not answer")?;
    for (version, slot) in [("1.0.1", Slot::B), ("1.0.2", Slot::A)] {
        let told = scenario.release(version)?;
        ensure!(runs(&told.status)? == (slot, version), "{:?} runs", told.status.observed);
        let last = told.status.update.as_ref().and_then(|update| update.last.clone()).unwrap_or_default();
        ensure!(last.contains(version) && last.contains("committed"), "it says: {last}");
        ensure!(told.status.machine_id == begun.machine_id, "the device has another identity");
    }
    Ok(())
}
