//! Traces kept with the tests, and made again when they do not fit the image under test.
//!
//! A trace is of one kernel, one systemd-boot and one firmware. Where the image under test has others, it is recorded
//! anew, once, into the test's own folder. `FARHOLD_RECORD=1` does so in any case and replaces what is kept.

use crate::disk::DiskImage;
use crate::power_cut::life::{Life, Order};
use crate::power_cut::record::Recording;
use crate::power_cut::trace::{Key, Trace};
use crate::programs::build_folder;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Set, traces are recorded anew and kept.
const RECORD_VARIABLE: &str = "FARHOLD_RECORD";

/// The trace of an order: the kept one if it is of the image under test, else a new one. `work` is the test's folder.
///
/// # Errors
/// If there is no image under test, a trace is damaged, or recording fails.
pub fn trace(order: Order, work: &Path) -> Result<Trace> {
    let key = Key::of(&DiskImage::new(build_folder()?.join("disk.img")))?;
    let again = std::env::var_os(RECORD_VARIABLE).is_some();
    let own = work.join(file(order));
    for path in [kept(order), own.clone()].iter().filter(|path| !again && path.exists()) {
        let found = read(path)?;
        if found.key == key {
            return Ok(found);
        }
        eprintln!("{} is of another kernel, systemd-boot or firmware", path.display());
    }
    eprintln!("recording the ESP anew; this boots a machine several times");
    let recording = record(order)?;
    let path = if again { kept(order) } else { own };
    write(&path, &recording.trace)?;
    eprintln!("recorded: {}", path.display());
    Ok(recording.trace)
}

/// Records a life in a machine of the image under test.
///
/// # Errors
/// As [`Life::prepare`] and [`Life::record`].
pub fn record(order: Order) -> Result<Recording> {
    let work = tempfile::tempdir()?;
    Life::prepare(work.path())?.record(order)
}

fn file(order: Order) -> &'static str {
    match order {
        Order::FirstSector => "esp-first-sector.trace.zst",
        Order::Renames => "esp-renames.trace.zst",
    }
}

/// Where the trace of an order is kept with the tests.
pub fn kept(order: Order) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file(order))
}

/// Reads a trace file.
///
/// # Errors
/// If it is missing or damaged.
pub fn read(path: &Path) -> Result<Trace> {
    let what = || format!("read the trace {}", path.display());
    Trace::decode(&std::fs::read(path).with_context(what)?).with_context(what)
}

fn write(path: &Path, trace: &Trace) -> Result<()> {
    let what = || format!("write the trace {}", path.display());
    let folder = path.parent().with_context(what)?;
    std::fs::create_dir_all(folder).with_context(what)?;
    std::fs::write(path, trace.encode()?).with_context(what)
}
