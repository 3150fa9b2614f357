//! A release arrives over 1 Mbit/s with a power cut in the middle, is tried and kept; one that is not healthy is left.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use qemu_tests::scenario::{RATE_KBIT, Scenario, runs};

/// A block of the published payloads, bytes.
const BLOCK: u64 = 65_536;
/// The agent flushes what it fetched at least this often, seconds.
const FLUSH_S: u64 = 2;

#[test]
fn updates_over_a_slow_link() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut say = |line: &str| eprintln!("{line}");
    let mut scenario = Scenario::begin(folder.path(), Some(RATE_KBIT), &mut say)?;

    let good = scenario.good_release()?;
    ensure!(runs(&good.status)? == (Slot::B, "1.0.1"), "{:?} runs", good.status.observed);
    // What was sent and not yet received counts too; it is about as much again.
    let most = RATE_KBIT * 1000 / 8 * 2 * FLUSH_S + BLOCK;
    ensure!(good.sent.again <= most, "{} bytes were fetched twice", good.sent.again);
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
