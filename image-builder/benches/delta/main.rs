//! Deltas beside their peers, on real pairs of images and on single programs: bytes, seconds, memory; every result is compared
//! byte for byte with what it should be.
//!
//! `FARHOLD_BENCH_PAIRS="S A farhold-A U files"` chooses (default: all of them). `FARHOLD_BENCH_FILES=DIR` names a folder with
//! further pairs of files, `NAME.1` and `NAME.2`. `FARHOLD_BENCH_DIR` is where pairs are made and kept (default:
//! `build/bench-delta`, which takes 12 GB). `FARHOLD_BENCH_LIMIT_S` bounds making, 900 seconds if it is not set. Making the trees needs root, and what `pairs` names.

mod pairs;
mod peers;

use anyhow::{Context, Result, ensure};
use pairs::Pair;
use peers::{Method, Outcome, Peer};
use std::path::{Path, PathBuf};

/// What each pair must reach: bytes as a part of the best peer's.
const GOALS: [(&str, f64); 8] = [
    ("S", 0.28),
    ("A", 0.34),
    ("farhold-A", 0.34),
    ("U", 1.0),
    ("esbuild", 0.5),
    ("containerd", 0.5),
    ("libcrypto-arm64", 1.0),
    ("postgres-arm64", 1.0),
];

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace folder")?.to_owned();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let work = variable("FARHOLD_BENCH_DIR").unwrap_or_else(|| root.join("build/bench-delta"));
    let wanted = std::env::var("FARHOLD_BENCH_PAIRS").unwrap_or_else(|_| "S A farhold-A U files".into());
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let farhold = root.join("target/release/farhold");
    ensure!(farhold.exists(), "{} is missing: run `make programs` first", farhold.display());
    let mut misses = 0;
    for name in wanted.split_whitespace() {
        let pairs = match name {
            "files" => pairs::files(&work, variable("FARHOLD_BENCH_FILES").as_deref())?,
            image => vec![pairs::image(&work, image)?],
        };
        for pair in pairs {
            misses += usize::from(!compare(&farhold, &work, &pair)?);
        }
    }
    ensure!(misses == 0, "{misses} pairs miss their goal, see above");
    Ok(())
}

/// Runs every method on `pair` and prints the table; false if a goal is missed.
fn compare(farhold: &Path, work: &Path, pair: &Pair) -> Result<bool> {
    let size = std::fs::metadata(&pair.new)?.len();
    println!("\n{}: {} -> {}, {size} bytes", pair.name, pair.old.display(), pair.new.display());
    println!(
        "{:24} {:>12} {:>7} {:>8} {:>9} {:>8} {:>9} {:>7}",
        "method", "bytes", "ratio", "make s", "make MiB", "apply s", "apply MiB", "MB/s"
    );
    let ours = peers::run(&Method::Farhold(farhold), pair, work)?;
    let mut found = Vec::new();
    for peer in Peer::ALL {
        match peers::run(&Method::Peer(peer), pair, work)? {
            Outcome::Done(figures) => found.push((peer, figures)),
            Outcome::Left(why) => println!("{:24} {why}", peer.name()),
        }
    }
    let Outcome::Done(ours) = ours else {
        anyhow::bail!("farhold made no delta of {}", pair.name);
    };
    let best = found.iter().filter(|(peer, _)| peer.patches()).map(|(_, figures)| figures.bytes).min();
    let best = best.context("no peer is installed: install zstd, xdelta3, bsdiff and casync")?;
    let ratio = |bytes: u64| bytes as f64 / best as f64;
    for (name, figures) in
        found.iter().map(|(peer, figures)| (peer.name(), figures)).chain([("farhold", &ours)])
    {
        println!(
            "{name:24} {:>12} {:>7.3} {:>8.1} {:>9} {:>8.1} {:>9} {:>7.1}",
            figures.bytes,
            ratio(figures.bytes),
            figures.make_s,
            figures.make_mib,
            figures.apply_s,
            figures.apply_mib,
            size as f64 / 1e6 / figures.apply_s.max(0.001),
        );
    }
    let goal = GOALS.iter().find(|(name, _)| *name == pair.name).map(|(_, goal)| *goal);
    // Single programs are measured against bsdiff packed with zstd, which is what bsdiff's own bzip2 hides.
    let bsdiff = found.iter().find(|(peer, _)| *peer == Peer::Bsdiff).map(|(_, figures)| figures.bytes);
    let base = if pair.program { bsdiff.unwrap_or(best) } else { best };
    let reached = ours.bytes as f64 / base as f64;
    let memory = ours.apply_mib <= 64;
    let word = |good: bool| if good { "reached" } else { "MISSED" };
    if let Some(goal) = goal {
        println!("bytes: {reached:.3} of {base}, goal {goal}: {}", word(reached <= goal));
    }
    println!("memory while applying: {} MiB, goal 64: {}", ours.apply_mib, word(memory));
    Ok(memory && goal.is_none_or(|goal| reached <= goal))
}
