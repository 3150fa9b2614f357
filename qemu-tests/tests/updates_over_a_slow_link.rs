//! A release arrives over 1 Mbit/s with a power cut in the middle, is tried and kept; one that is not healthy is left.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::scenario::{Scenario, runs};

/// A block of the published payloads, and what the agent fetches between two flushes, bytes.
const BLOCK: u64 = 65_536;

#[test]
fn updates_over_a_slow_link() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut say = |line: &str| eprintln!("{line}");
    let mut scenario = Scenario::begin(folder.path(), &mut say)?;

    let good = scenario.good_release()?;
    ensure!(runs(&good.status)? == (Slot::B, "1.0.1"), "{:?} runs", good.status.observed);
    // Announcement, manifest, catalogue and roots may be read again after the cut; blocks hardly.
    ensure!(good.sent.again <= 2 * BLOCK, "{} bytes were fetched twice", good.sent.again);
    ensure!(good.sent.bytes < good.published.full_bytes / 10, "{} bytes over the link", good.sent.bytes);
    scenario.device().sh("strace -V").context("the new release's program")?;

    let sick = scenario.sick_release()?;
    ensure!(runs(&sick.status)? == (Slot::B, "1.0.1"), "{:?} runs", sick.status.observed);
    let last = sick.status.update.and_then(|update| update.last).unwrap_or_default();
    ensure!(
        last.contains("1.0.2") && last.contains("rolled back") && last.contains("shop"),
        "it says: {last}"
    );
    Ok(())
}
