//! Writes one image onto a file that stands for a device: with `farhold flash`, with `dd conv=fsync` and `cmp`, and with
//! bmaptool, in turn, several rounds. Prints medians of time by the clock, and ratios.
//!
//! The image is warm in the page cache for all. The file holds old bytes from end to end at first; bmaptool empties it, as
//! it does with every file, and leaves holes. Its pages are dropped before `cmp` reads it; `farhold flash` reads past the
//! cache. bmaptool checks what it reads of the image and never what it wrote, so it is measured both alone and followed
//! by the same `cmp`.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 5;

struct Bench {
    image: PathBuf,
    bmap: PathBuf,
    target: PathBuf,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace folder")?;
    let named = std::env::var_os("FARHOLD_BENCH_IMAGE").map(PathBuf::from);
    let image = named.unwrap_or_else(|| root.join("build/edge-minimal/disk.img"));
    let bytes = fs::metadata(&image)
        .with_context(|| {
            format!("{}: `make image` bakes it, or name one in FARHOLD_BENCH_IMAGE", image.display())
        })?
        .len();
    let work = tempfile::Builder::new().prefix("farhold-bench-").tempdir_in(root.join("build"))?;
    let bench = Bench { image, bmap: work.path().join("image.bmap"), target: work.path().join("device") };
    fill(&bench.target, bytes)?;
    run(Command::new("bmaptool").arg("create").arg(&bench.image).arg("-o").arg(&bench.bmap))
        .context("bmaptool: install `bmap-tools`")?;
    run(Command::new("cat").arg(&bench.image))?;
    println!("image of {} MiB, {ROUNDS} rounds, medians in seconds", bytes >> 20);
    let mut seconds: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        seconds[0].push(bench.farhold()?);
        let [dd, compare] = [bench.dd()?, bench.compare()?];
        seconds[1].push(dd + compare);
        let bmap = bench.bmaptool()?;
        seconds[2].push(bmap);
        seconds[3].push(bmap + bench.compare()?);
    }
    let [ours, dd, bmap, bmap_compared] = seconds.map(median);
    println!("farhold flash                  {ours:7.2}");
    println!("dd conv=fsync, cmp             {dd:7.2}  ratio {:.2} (reach <= 0.70)", ours / dd);
    println!("bmaptool copy, nothing read back {bmap:5.2}  ratio {:.2}", ours / bmap);
    println!(
        "bmaptool copy, cmp             {bmap_compared:7.2}  ratio {:.2} (reach <= 1.00)",
        ours / bmap_compared
    );
    Ok(())
}

/// Old bytes everywhere, on the disk.
fn fill(target: &Path, bytes: u64) -> Result<()> {
    let mut file = File::create(target)?;
    let old = vec![0xaa; 4 << 20];
    let mut left = bytes;
    while left > 0 {
        let part = left.min(old.len() as u64) as usize;
        file.write_all(&old[..part])?;
        left -= part as u64;
    }
    file.sync_all().context("fill the target")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Seconds that a command takes; it must succeed.
fn run(command: &mut Command) -> Result<f64> {
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).output().context("start it")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(begun.elapsed().as_secs_f64())
}

fn named(name: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(name);
    word.push(path);
    word
}

impl Bench {
    fn farhold(&self) -> Result<f64> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farhold"));
        run(command.args(["flash", "--yes", "--json"]).arg(&self.image).arg(&self.target))
    }

    fn dd(&self) -> Result<f64> {
        let mut command = Command::new("dd");
        command.args(["bs=4M", "conv=fsync,notrunc", "status=none"]);
        run(command.arg(named("if=", &self.image)).arg(named("of=", &self.target)))
    }

    fn bmaptool(&self) -> Result<f64> {
        run(Command::new("bmaptool")
            .args(["copy", "--bmap"])
            .arg(&self.bmap)
            .arg(&self.image)
            .arg(&self.target))
    }

    /// Reads the target from the medium.
    fn compare(&self) -> Result<f64> {
        run(Command::new("dd")
            .args(["iflag=nocache", "count=0", "status=none"])
            .arg(named("if=", &self.target)))?;
        run(Command::new("cmp").arg(&self.image).arg(&self.target))
    }
}
