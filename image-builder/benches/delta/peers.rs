//! One method on one pair: make, apply, compare; with what each took.
//!
//! Peers run with the highest level that ends within the limit for making; a level that does not is reported and the next
//! lower one is tried.

use crate::pairs::Pair;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Making may take this long, in seconds, unless `FARHOLD_BENCH_LIMIT_S` says otherwise.
const LIMIT_S: u32 = 900;
/// bsdiff takes 17 times the old file in memory.
const BSDIFF_MAX: u64 = 200 << 20;

/// Who makes deltas.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// `zstd --patch-from`.
    Zstd,
    /// xdelta3 with its secondary compression.
    Xdelta,
    /// bsdiff, its three streams packed with zstd instead of bzip2 if that is smaller.
    Bsdiff,
    /// casync: chunks that the old image has not.
    Casync,
    /// No delta: the whole image, packed.
    Full,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Zstd, Self::Xdelta, Self::Bsdiff, Self::Casync, Self::Full];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd --patch-from",
            Self::Xdelta => "xdelta3 -9 -S lzma",
            Self::Bsdiff => "bsdiff + zstd -19",
            Self::Casync => "casync 64 KiB",
            Self::Full => "full, zstd -3",
        }
    }

    /// True if it uses the old image.
    pub fn patches(self) -> bool {
        self != Self::Full
    }

    fn program(self) -> &'static str {
        match self {
            Self::Zstd | Self::Full => "zstd",
            Self::Xdelta => "xdelta3",
            Self::Bsdiff => "bsdiff",
            Self::Casync => "casync",
        }
    }
}

/// What to measure.
pub enum Method<'a> {
    /// The program of this tree.
    Farhold(&'a Path),
    /// Another one.
    Peer(Peer),
}

/// What one method took.
pub struct Figures {
    pub bytes: u64,
    pub make_s: f64,
    pub make_mib: u64,
    pub apply_s: f64,
    pub apply_mib: u64,
}

/// What became of a method.
pub enum Outcome {
    /// It made a delta, and the delta gave the new file back.
    Done(Figures),
    /// It was not tried, or did not end; why.
    Left(String),
}

fn limit_s() -> u32 {
    std::env::var("FARHOLD_BENCH_LIMIT_S").ok().and_then(|limit| limit.parse().ok()).unwrap_or(LIMIT_S)
}

/// Seconds and peak MiB of a command; `None` if it did not end in time.
fn measured(work: &Path, words: &[&str]) -> Result<Option<(f64, u64)>> {
    let report = work.join("time");
    let limit = limit_s().to_string();
    let mut command = Command::new("/usr/bin/time");
    command.args(["-q", "-f", "%e %M", "-o"]).arg(&report).args(["timeout", &limit]).args(words);
    let output = command.stdin(Stdio::null()).output().context("start /usr/bin/time (package time)")?;
    if output.status.code() == Some(124) {
        return Ok(None);
    }
    let tail = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {}\n{tail}", output.status);
    let text = fs::read_to_string(&report)?;
    let mut fields = text.split_whitespace();
    let mut number = || -> Result<f64> { Ok(fields.next().context("/usr/bin/time says nothing")?.parse()?) };
    let (seconds, kib) = (number()?, number()?);
    Ok(Some((seconds, kib as u64 / 1024)))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

fn same(left: &Path, right: &Path) -> Result<bool> {
    Ok(Command::new("cmp").arg("-s").args([left, right]).status().context("start cmp")?.success())
}

/// Runs `method` on `pair`.
///
/// # Errors
/// If a program fails, or gives other bytes than the new file's.
pub fn run(method: &Method, pair: &Pair, work: &Path) -> Result<Outcome> {
    let peer = match method {
        Method::Farhold(program) => return farhold(program, pair, work),
        Method::Peer(peer) => *peer,
    };
    let installed = Command::new(peer.program()).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !installed {
        return Ok(Outcome::Left(format!("{} is not installed", peer.program())));
    }
    match peer {
        Peer::Zstd => {
            for level in ["-19", "-15", "-9", "-3"] {
                let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
                let from = format!("--patch-from={}", text(&pair.old)?);
                let (old_new, to) = (text(&pair.new)?, text(&delta)?);
                let make = ["zstd", level, "--long=31", "-T1", "-q", "-f", &from, old_new, "-o", to];
                let apply = ["zstd", "-d", "--long=31", "-q", "-f", &from, to, "-o", text(&out)?];
                match proved(pair, work, (&make, &apply))? {
                    Some(figures) => return Ok(Outcome::Done(figures)),
                    None => println!("{:24} level {level} did not end in {} s", peer.name(), limit_s()),
                }
            }
            Ok(Outcome::Left("no level ended".into()))
        }
        Peer::Xdelta => {
            let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
            let window =
                (fs::metadata(&pair.old)?.len().next_power_of_two().clamp(1 << 19, 1 << 31)).to_string();
            let (old, new, to, out) = (text(&pair.old)?, text(&pair.new)?, text(&delta)?, text(&out)?);
            let make = ["xdelta3", "-e", "-9", "-S", "lzma", "-B", &window, "-f", "-s", old, new, to];
            let apply = ["xdelta3", "-d", "-B", &window, "-f", "-s", old, to, out];
            Ok(proved(pair, work, (&make, &apply))?
                .map_or_else(|| Outcome::Left(format!("did not end in {} s", limit_s())), Outcome::Done))
        }
        Peer::Bsdiff => bsdiff(pair, work),
        Peer::Casync => casync(pair, work),
        Peer::Full => {
            let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
            let (new, to, out) = (text(&pair.new)?, text(&delta)?, text(&out)?);
            let make = ["zstd", "-3", "--long=27", "-T1", "-q", "-f", new, "-o", to];
            let apply = ["zstd", "-d", "--long=27", "-q", "-f", to, "-o", out];
            Ok(proved(pair, work, (&make, &apply))?
                .map_or_else(|| Outcome::Left(format!("did not end in {} s", limit_s())), Outcome::Done))
        }
    }
}

/// Makes `peer.delta`, applies it to `peer.out`, compares; `None` if making did not end in time.
fn proved(pair: &Pair, work: &Path, (make, apply): (&[&str], &[&str])) -> Result<Option<Figures>> {
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let Some((make_s, make_mib)) = measured(work, make)? else { return Ok(None) };
    let Some((apply_s, apply_mib)) = measured(work, apply)? else { bail!("{apply:?} did not end") };
    ensure!(same(&out, &pair.new)?, "{}: {} gave other bytes back", pair.name, make[0]);
    let bytes = fs::metadata(&delta)?.len();
    fs::remove_file(&out)?;
    Ok(Some(Figures { bytes, make_s, make_mib, apply_s, apply_mib }))
}

fn farhold(program: &Path, pair: &Pair, work: &Path) -> Result<Outcome> {
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let (old, new, to, out) = (text(&pair.old)?, text(&pair.new)?, text(&delta)?, text(&out)?);
    let program = text(program)?;
    let make = [program, "delta", "make", old, new, "--out", to, "--jobs", "2"];
    let apply = [program, "delta", "apply", old, to, "--out", out];
    Ok(proved(pair, work, (&make, &apply))?
        .map_or_else(|| Outcome::Left(format!("did not end in {} s", limit_s())), Outcome::Done))
}

/// bsdiff's own file (streams packed with bzip2), or with its streams packed by zstd -19, whichever is smaller.
fn bsdiff(pair: &Pair, work: &Path) -> Result<Outcome> {
    if fs::metadata(&pair.old)?.len() > BSDIFF_MAX {
        return Ok(Outcome::Left("needs 17 times the old image in memory".into()));
    }
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let (old, new, to, out) = (text(&pair.old)?, text(&pair.new)?, text(&delta)?, text(&out)?);
    let Some(mut figures) = proved(pair, work, (&["bsdiff", old, new, to], &["bspatch", old, out, to]))?
    else {
        return Ok(Outcome::Left(format!("did not end in {} s", limit_s())));
    };
    let patch = fs::read(&delta)?;
    let field = |at: usize| -> Result<usize> {
        let word = patch.get(at..at + 8).and_then(|word| word.first_chunk()).context("bsdiff's header")?;
        Ok(usize::try_from(u64::from_le_bytes(*word))?)
    };
    let (control, diff) = (field(8)?, field(16)?);
    let mut repacked = 32;
    for (from, to) in
        [(32, 32 + control), (32 + control, 32 + control + diff), (32 + control + diff, patch.len())]
    {
        let stream = work.join("peer.stream");
        fs::write(&stream, patch.get(from..to).context("bsdiff's streams")?)?;
        let script = "bzip2 -dc \"$0\" | zstd -19 --long=27 -q -c | wc -c";
        let output = Command::new("sh").args(["-c", script]).arg(&stream).output().context("start sh")?;
        ensure!(output.status.success(), "repack bsdiff's streams: {}", output.status);
        repacked += String::from_utf8_lossy(&output.stdout).trim().parse::<u64>()?;
    }
    figures.bytes = figures.bytes.min(repacked);
    Ok(Outcome::Done(figures))
}

/// Files of a chunk store with their lengths.
fn chunks(store: &Path) -> Result<BTreeMap<PathBuf, u64>> {
    let mut found = BTreeMap::new();
    for folder in fs::read_dir(store).with_context(|| format!("read {}", store.display()))? {
        for file in fs::read_dir(folder?.path())? {
            let file = file?;
            found.insert(file.path().strip_prefix(store)?.to_owned(), file.metadata()?.len());
        }
    }
    Ok(found)
}

/// What a device that has the old image fetches: the index, and the chunks of the new image that the old one has not.
fn casync(pair: &Pair, work: &Path) -> Result<Outcome> {
    if pair.program {
        return Ok(Outcome::Left("is for images".into()));
    }
    let place = |name: &str| work.join("casync").join(name);
    if work.join("casync").exists() {
        fs::remove_dir_all(work.join("casync"))?;
    }
    fs::create_dir_all(work.join("casync"))?;
    let (old_store, new_store) = (place("old.castr"), place("new.castr"));
    let (old_index, new_index) = (place("old.caibx"), place("new.caibx"));
    let store = |store: &Path| -> Result<String> { Ok(format!("--store={}", text(store)?)) };
    let make = |into: &Path, index: &Path, image: &Path| -> Result<Option<(f64, u64)>> {
        measured(work, &["casync", "make", "--chunk-size=65536", &store(into)?, text(index)?, text(image)?])
    };
    let (Some(_), Some((make_s, make_mib))) =
        (make(&old_store, &old_index, &pair.old)?, make(&new_store, &new_index, &pair.new)?)
    else {
        return Ok(Outcome::Left(format!("did not end in {} s", limit_s())));
    };
    let (old, new) = (chunks(&old_store)?, chunks(&new_store)?);
    let missing: u64 = new.iter().filter(|(name, _)| !old.contains_key(*name)).map(|(_, len)| len).sum();
    let out = place("out");
    let seed = format!("--seed={}", text(&pair.old)?);
    let extract = ["casync", "extract", &store(&new_store)?, &seed, text(&new_index)?, text(&out)?];
    let Some((apply_s, apply_mib)) = measured(work, &extract)? else { bail!("casync extract did not end") };
    ensure!(same(&out, &pair.new)?, "{}: casync gave other bytes back", pair.name);
    let bytes = fs::metadata(&new_index)?.len() + missing;
    fs::remove_dir_all(work.join("casync"))?;
    Ok(Outcome::Done(Figures { bytes, make_s, make_mib, apply_s, apply_mib }))
}
