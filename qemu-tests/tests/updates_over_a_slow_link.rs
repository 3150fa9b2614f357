//! A release arrives over 1 Mbit/s with a power cut in the middle, is tried and kept; one that is not healthy is left.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use formats::status::Status;
use qemu_tests::scenario::{RATE_KBIT, Scenario, runs};

/// A block of the published payloads, bytes.
const BLOCK: u64 = 65_536;
/// The agent's memory while it applies an update, and at rest (design section 9), bytes.
const APPLYING_RSS_MAX: u64 = 64 << 20;
const IDLE_RSS_MAX: u64 = 16 << 20;
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
    costs(&scenario, &good.status)?;

    let sick = scenario.sick_release()?;
    ensure!(runs(&sick.status)? == (Slot::B, "1.0.1"), "{:?} runs", sick.status.observed);
    let last = sick.status.update.and_then(|update| update.last).unwrap_or_default();
    ensure!(
        last.contains("1.0.2") && last.contains("rolled back") && last.contains("shop"),
        "it says: {last}"
    );
    Ok(())
}

/// Memory while applying and at rest, and what was written: the slot once, and little else.
fn costs(scenario: &Scenario<'_>, status: &Status) -> Result<()> {
    let update = status.update.as_ref().context("the status has no update")?;
    let cost = update.cost.context("what the update took is not told")?;
    eprintln!("  {cost:?}, {} KiB of memory at rest", status.agent_rss_bytes >> 10);
    ensure!(
        (1..=APPLYING_RSS_MAX).contains(&cost.peak_rss_bytes),
        "the agent took {} KiB",
        cost.peak_rss_bytes >> 10
    );
    ensure!(status.agent_rss_bytes <= IDLE_RSS_MAX, "at rest it takes {} KiB", status.agent_rss_bytes >> 10);
    let line = scenario.device().sh("cat /proc/cmdline")?;
    let blocks = line.split_ascii_whitespace().find_map(|word| word.strip_prefix("farhold.blocks="));
    let image = blocks.context("the command line has no block count")?.parse::<u64>()? * 4096;
    // The hash tree is a 127th of the image.
    let slot = image..=image + image / 100 + BLOCK;
    ensure!(slot.contains(&cost.slot_bytes), "{cost:?}, an image of {image} bytes");
    Ok(())
}
