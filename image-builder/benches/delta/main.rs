//! Deltas beside their peers, on real pairs of images and on single programs: bytes, seconds, memory; every result is compared
//! byte for byte with what it should be.
//!
//! `FARHOLD_BENCH_PAIRS="S A farhold-A U files"` chooses (default: all of them). `FARHOLD_BENCH_FILES=DIR` names a folder with
//! further pairs of files, `NAME.1` and `NAME.2`. `FARHOLD_BENCH_DIR` is where pairs are made and kept (default:
//! `build/bench-delta`, which takes 12 GB). `FARHOLD_BENCH_LIMIT_S` bounds making, 900 seconds of processor time if it is not set.
//! Peers take hours of processor time; what a program took for the same files is noted in that folder and not measured again
//! (`FARHOLD_BENCH_FRESH=1`: it is); `FARHOLD_BENCH_AT_ONCE=2` runs two of them at once, after which Farhold is measured alone. `FARHOLD_BENCH_ZSTD="-9 -3"` shortens the list of levels that zstd is tried with on images.
//! Making the trees needs root, and what `pairs` names.

mod chunked;
mod debian;
mod measure;
mod pairs;
mod peers;

use anyhow::{Context, Result, ensure};
use measure::{Cost, Figures, Notebook, Outcome};
use pairs::Pair;
use peers::Peer;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// What each pair must reach: bytes as a part of the best peer's.
const GOALS: [(&str, f64); 6] =
    [("S", 0.28), ("A", 0.34), ("farhold-A", 0.34), ("U", 1.0), ("esbuild", 0.5), ("containerd", 0.5)];
/// A major upgrade must be smaller than the whole image, too.
const OF_FULL: f64 = 0.85;
/// Applying: most memory, and the rate of output per second of processor time, or the part of desync's that does instead.
const APPLY_MIB: u64 = 64;
const APPLY_MB_S: f64 = 25.0;
const OF_DESYNC: f64 = 0.8;
/// Making, on two processors: most memory and time.
const MAKE_MIB: u64 = 4096;
const MAKE_S: f64 = 900.0;

/// Where things are.
struct Bench {
    farhold: PathBuf,
    desync: Option<PathBuf>,
    /// Scratch files.
    scratch: tempfile::TempDir,
    notebook: Notebook,
    /// What stands for the program in the notebook.
    program: String,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace folder")?.to_owned();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let work = variable("FARHOLD_BENCH_DIR").unwrap_or_else(|| root.join("build/bench-delta"));
    let wanted = std::env::var("FARHOLD_BENCH_PAIRS").unwrap_or_else(|_| "S A farhold-A U files".into());
    std::fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    let farhold = variable("FARHOLD").unwrap_or_else(|| root.join("target/release/farhold"));
    ensure!(farhold.exists(), "{} is missing: run `make programs` first", farhold.display());
    let (desync, notebook) = (pairs::desync(&work), Notebook::open(&work)?);
    let (scratch, program) = (tempfile::tempdir_in(&work)?, measure::digest(&[&farhold])?);
    let bench = Bench { farhold, desync, scratch, notebook, program };
    let mut pairs = Vec::new();
    for name in wanted.split_whitespace() {
        let found = match name {
            "files" => pairs::files(&work, variable("FARHOLD_BENCH_FILES").as_deref())?,
            image => vec![pairs::image(&work, image)?],
        };
        for pair in found {
            pairs.push((measure::digest(&[&pair.old, &pair.new])?, pair));
        }
    }
    bench.peers(&pairs)?;
    let mut missed = Vec::new();
    for (digest, pair) in &pairs {
        if !bench.compare(pair, digest)? {
            missed.push(pair.name.as_str());
        }
    }
    ensure!(missed.is_empty(), "these pairs miss a goal, see above: {}", missed.join(", "));
    println!("\nall goals are reached");
    Ok(())
}

/// Bytes of output per second of processor time, in MB/s.
fn rate(size: u64, cost: &Cost) -> f64 {
    size as f64 / 1e6 / cost.cpu_s.max(0.001)
}

fn row(name: &str, figures: &Figures, (best, size): (u64, u64), words: &str) {
    let Figures { bytes, make, apply } = figures;
    println!(
        "{name:20} {bytes:>11} {:>7.3} {:>8.1} {:>8.1} {:>5} {:>8.2} {:>8.1} {:>5} {:>7.1}  {words}",
        *bytes as f64 / best as f64,
        make.cpu_s,
        make.wall_s,
        make.mib,
        apply.cpu_s,
        apply.wall_s,
        apply.mib,
        rate(size, apply),
    );
}

/// Prints whether a goal is reached.
fn judge(what: &str, good: bool) -> bool {
    println!("  {}: {what}", if good { "reached" } else { "MISSED " });
    good
}

impl Bench {
    /// What `peer` does with `pair`, from the notebook if it is there.
    fn peer(&self, peer: Peer, (digest, pair): (&str, &Pair), scratch: &Path) -> Result<Outcome> {
        let measure = || {
            eprintln!("{} on {}", peer.name(), pair.name);
            peers::run(peer, pair, scratch, self.desync.as_deref())
        };
        self.notebook.once(&peer.key(pair), digest, measure)
    }

    /// Measures every peer on every pair, as many at once as `FARHOLD_BENCH_AT_ONCE` says: their processor time counts.
    fn peers(&self, pairs: &[(String, Pair)]) -> Result<()> {
        let wanted = std::env::var("FARHOLD_BENCH_AT_ONCE").ok().and_then(|count| count.parse().ok());
        let tasks: Vec<_> = pairs.iter().flat_map(|pair| Peer::ALL.map(|peer| (pair, peer))).collect();
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            let scratch = tempfile::tempdir_in(self.scratch.path())?;
            while let Some(((digest, pair), peer)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.peer(*peer, (digest, pair), scratch.path())?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..wanted.unwrap_or(1)).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok(())
        })
    }

    /// Runs every method on `pair` and prints the table; false if a goal is missed.
    fn compare(&self, pair: &Pair, digest: &str) -> Result<bool> {
        let size = std::fs::metadata(&pair.new)?.len();
        println!("\n{}: {} -> {}, {size} bytes", pair.name, pair.old.display(), pair.new.display());
        let (mut found, scratch) = (Vec::new(), self.scratch.path());
        for peer in Peer::ALL {
            match self.peer(peer, (digest, pair), scratch)? {
                Outcome::Done(figures, words) => found.push((peer, figures, words)),
                Outcome::Left(why) => println!("{:20} {why}", peer.name()),
            }
        }
        let own = || peers::farhold(&self.farhold, pair, scratch);
        let Outcome::Done(ours, _) = self.notebook.once(&self.program, digest, own)? else {
            anyhow::bail!("farhold made no delta of {}", pair.name);
        };
        let patching = found.iter().filter(|(peer, _, _)| peer.patches());
        let best = patching.map(|(_, figures, _)| figures.bytes).min();
        let best = best.context("no peer is installed: install zstd, xdelta3, bsdiff and casync")?;
        println!(
            "{:20} {:>11} {:>7} {:>8} {:>8} {:>5} {:>8} {:>8} {:>5} {:>7}",
            "method", "bytes", "ratio", "make cpu", "wall s", "MiB", "apply", "wall s", "MiB", "MB/s"
        );
        for (peer, figures, words) in &found {
            row(peer.name(), figures, (best, size), words);
        }
        row("farhold", &ours, (best, size), "");
        Ok(verdict(pair, size, &ours, &found))
    }
}

/// Compares with the goals; what is no image has goals of bytes and memory only.
fn verdict(pair: &Pair, size: u64, ours: &Figures, found: &[(Peer, Figures, String)]) -> bool {
    let of = |wanted: Peer| found.iter().find(|(peer, _, _)| *peer == wanted).map(|(_, figures, _)| figures);
    let best = found.iter().filter(|(peer, _, _)| peer.patches()).map(|(_, figures, _)| figures.bytes).min();
    // Single programs are measured against bsdiff packed with zstd, which is what bsdiff's own bzip2 hides.
    let base = if pair.program { of(Peer::Bsdiff).map(|figures| figures.bytes) } else { best };
    let base = base.or(best).unwrap_or(1);
    let mut good = true;
    if let Some((_, goal)) = GOALS.iter().find(|(name, _)| *name == pair.name) {
        let reached = ours.bytes as f64 / base as f64;
        good &= judge(&format!("bytes {reached:.3} of {base}, at most {goal}"), reached <= *goal);
    }
    if let Some(full) = of(Peer::Full).filter(|_| pair.name == "U") {
        let reached = ours.bytes as f64 / full.bytes as f64;
        good &=
            judge(&format!("bytes {reached:.3} of the full image, at most {OF_FULL}"), reached <= OF_FULL);
    }
    let mib = ours.apply.mib;
    good &= judge(&format!("{mib} MiB while applying, at most {APPLY_MIB}"), mib <= APPLY_MIB);
    if pair.program {
        return good;
    }
    let own = rate(size, &ours.apply);
    let desync = of(Peer::Desync).map_or(f64::INFINITY, |figures| rate(size, &figures.apply) * OF_DESYNC);
    let what =
        format!("{own:.1} MB/s applied, at least {APPLY_MB_S} or {OF_DESYNC} of desync's ({desync:.1})");
    good &= judge(&what, own >= APPLY_MB_S.min(desync));
    let Cost { cpu_s, mib, .. } = ours.make;
    let what =
        format!("made in {cpu_s:.0} s of processor time, {mib} MiB; at most {MAKE_S} s, {MAKE_MIB} MiB");
    good & judge(&what, cpu_s <= MAKE_S && mib <= MAKE_MIB)
}
