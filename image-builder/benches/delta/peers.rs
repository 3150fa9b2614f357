//! One method on one pair: make, apply, compare; with what each took.
//!
//! zstd runs with the highest level that ends within the limit for making: a level that does not is reported and the next
//! lower one is tried.

use crate::chunked;
use crate::measure::{Figures, Outcome, limit_s, proved, text};
use crate::pairs::Pair;
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

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
    /// The same by another program.
    Desync,
    /// No delta: the whole image, packed.
    Full,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Full, Self::Casync, Self::Desync, Self::Bsdiff, Self::Xdelta, Self::Zstd];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd --patch-from",
            Self::Xdelta => "xdelta3 -9 -S lzma",
            Self::Bsdiff => "bsdiff + zstd -19",
            Self::Casync => "casync 64 KiB",
            Self::Desync => "desync 16:64:256",
            Self::Full => "full, zstd -3",
        }
    }

    /// What stands for it in the notebook: its name, and whatever else the figures for `pair` depend on.
    pub fn key(self, pair: &Pair) -> String {
        match self {
            Self::Zstd => format!("{} {}", self.name(), zstd_levels(pair)),
            Self::Xdelta | Self::Bsdiff | Self::Casync | Self::Desync | Self::Full => self.name().to_owned(),
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
            Self::Desync => "desync",
        }
    }
}

fn ended(figures: Option<Figures>) -> Outcome {
    match figures {
        Some(figures) => Outcome::Done(figures, String::new()),
        None => Outcome::Left(format!("did not end in {} s", limit_s())),
    }
}

/// Runs `peer` on `pair`; `desync` is where that program is.
///
/// # Errors
/// If a program fails, or gives other bytes than the new file's.
pub fn run(peer: Peer, pair: &Pair, work: &Path, desync: Option<&Path>) -> Result<Outcome> {
    let program = match (peer, desync) {
        (Peer::Desync, Some(path)) => text(path)?,
        _ => peer.program(),
    };
    let installed = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    if !installed {
        return Ok(Outcome::Left(format!("{program} is not installed")));
    }
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let (old, new, to, out) = (text(&pair.old)?, text(&pair.new)?, text(&delta)?, text(&out)?);
    match peer {
        Peer::Zstd => zstd(pair, work),
        Peer::Xdelta => {
            let window =
                (fs::metadata(&pair.old)?.len().next_power_of_two().clamp(1 << 19, 1 << 31)).to_string();
            let make = ["xdelta3", "-e", "-9", "-S", "lzma", "-B", &window, "-f", "-s", old, new, to];
            let apply = ["xdelta3", "-d", "-B", &window, "-f", "-s", old, to, out];
            Ok(ended(proved(pair, work, (&make, &apply))?))
        }
        Peer::Bsdiff => bsdiff(pair, work),
        Peer::Casync | Peer::Desync if pair.program => Ok(Outcome::Left("is for images".into())),
        Peer::Casync | Peer::Desync => chunked::measure(program, pair, work),
        Peer::Full => {
            let make = ["zstd", "-3", "--long=27", "-T1", "-q", "-f", new, "-o", to];
            let apply = ["zstd", "-d", "--long=27", "-q", "-f", to, "-o", out];
            Ok(ended(proved(pair, work, (&make, &apply))?))
        }
    }
}

/// The levels that zstd is tried with, the highest first.
fn zstd_levels(pair: &Pair) -> String {
    let chosen = std::env::var("FARHOLD_BENCH_ZSTD").ok().filter(|_| !pair.program);
    chosen.unwrap_or_else(|| "-19 -17 -15 -9 -3".into())
}

fn zstd(pair: &Pair, work: &Path) -> Result<Outcome> {
    let chosen = zstd_levels(pair);
    let levels = chosen.split_whitespace();
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let from = format!("--patch-from={}", text(&pair.old)?);
    for level in levels {
        let (new, to) = (text(&pair.new)?, text(&delta)?);
        let make = ["zstd", level, "--long=31", "-T1", "-q", "-f", &from, new, "-o", to];
        let apply = ["zstd", "-d", "--long=31", "-q", "-f", &from, to, "-o", text(&out)?];
        if let Some(figures) = proved(pair, work, (&make, &apply))? {
            return Ok(Outcome::Done(figures, format!("level {level}")));
        }
    }
    Ok(Outcome::Left(format!("no level ended in {} s", limit_s())))
}

/// The program of this tree.
///
/// # Errors
/// As for [`run`].
pub fn farhold(program: &Path, pair: &Pair, work: &Path) -> Result<Outcome> {
    let (delta, out) = (work.join("peer.delta"), work.join("peer.out"));
    let (old, new, to, out) = (text(&pair.old)?, text(&pair.new)?, text(&delta)?, text(&out)?);
    let program = text(program)?;
    let make = [program, "delta", "make", old, new, "--out", to, "--jobs", "2"];
    let apply = [program, "delta", "apply", old, to, "--out", out];
    Ok(ended(proved(pair, work, (&make, &apply))?))
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
    let words = format!("{} as it packs itself", figures.bytes);
    figures.bytes = figures.bytes.min(repacked);
    Ok(Outcome::Done(figures, words))
}
