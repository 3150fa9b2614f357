//! `farhold flash`: an image onto a card, disk or stick, from the desk.

use crate::flash::map::Map;
use crate::flash::{self, Job, Watch, inuse};
use crate::progress::{Bar, Progress};
use anyhow::{Context, Result, bail, ensure};
use formats::arch::Arch;
use installer::machine;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Writes an image to a device, reads it back and compares. What stands on the device is lost.
#[derive(clap::Args)]
pub struct FlashCmd {
    /// Image, as disk.img or a stick's; `.zst` is unpacked.
    image: PathBuf,
    /// Device, as /dev/sdb; see `farhold devices`.
    device: PathBuf,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

static CANCEL: AtomicBool = AtomicBool::new(false);

extern "C" fn cancel(_: i32) {
    CANCEL.store(true, Ordering::Relaxed);
}

struct Bars {
    write: Bar,
    check: Bar,
}

impl Watch for Bars {
    fn written(&self, bytes: u64) {
        self.write.add(bytes);
    }
    fn checked(&self, bytes: u64) {
        self.check.add(bytes);
    }
}

impl FlashCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the device may not be written, or the image is not on it afterwards.
    pub fn run(&self) -> Result<ExitCode> {
        let map = Map::read_beside(&self.image)?;
        let lost = self.look()?;
        let job = Job { image: &self.image, device: &self.device, map: map.as_ref(), cancel: &CANCEL };
        flash::look(&job)?;
        let bytes = match &map {
            Some(map) => map.used(),
            None => flash::length(&self.image)?,
        };
        if !self.yes {
            self.confirm(&lost)?;
        }
        catch()?;
        let progress = if self.json { Progress::quiet() } else { Progress::stderr() };
        let bars = Bars { write: progress.bytes("write", bytes), check: progress.bytes("read back", bytes) };
        let began = Instant::now();
        let done = flash::flash(&job, &bars)?;
        drop(bars);
        let seconds = began.elapsed().as_secs_f64();
        if self.json {
            let report = serde_json::json!({
                "device": self.device, "image_bytes": done.bytes, "written_bytes": done.written, "seconds": seconds,
                "verified": true, "holes_declared": map.is_some(),
            });
            println!("{}", serde_json::to_string_pretty(&report).context("print the report")?);
        } else {
            println!(
                "{}: {} of {} MiB written and read back in {seconds:.1} s{}",
                self.device.display(),
                done.written >> 20,
                done.bytes >> 20,
                if map.is_some() { "" } else { " (no map beside the image: every byte)" }
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What would be lost; refuses a device that this machine uses.
    fn look(&self) -> Result<String> {
        let device = &self.device;
        let Some((name, partition)) = inuse::whole(device) else {
            let meta = std::fs::metadata(device).with_context(|| {
                format!("look at {} (`farhold devices` lists what is there)", device.display())
            })?;
            ensure!(meta.is_file(), "{} is no disk and no file; see farhold devices", device.display());
            return Ok(format!("{} (a file of {} MiB)", device.display(), meta.len() >> 20));
        };
        ensure!(!partition, "{} is a partition; give the whole disk, /dev/{name}", device.display());
        if let Some(what) = inuse::disks().get(&name) {
            bail!(
                "/dev/{name} is {what}: it is not overwritten; if it is the right device, unmount it first \
                 (`farhold devices` lists others)"
            );
        }
        Ok(machine::disk(&name, Arch::host().unwrap_or(Arch::X86_64), None).text())
    }

    fn confirm(&self, lost: &str) -> Result<()> {
        ensure!(
            std::io::stdin().is_terminal(),
            "this overwrites {lost}; nobody can be asked here, so say --yes if it is meant"
        );
        eprint!("This overwrites {lost}\nType yes to go on: ");
        std::io::stderr().flush().context("ask")?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer).context("read the answer")?;
        ensure!(answer.trim() == "yes", "nothing was written to {}", path(&self.device));
        Ok(())
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

/// Ctrl-C ends the work between two pieces, so that the device is left in a known state.
fn catch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(cancel), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        #[expect(
            unsafe_code,
            reason = "the handler stores to one atomic, which is safe in a signal handler"
        )]
        // SAFETY: as the reason says; no handler of a library is replaced.
        unsafe { sigaction(signal, &action) }.context("catch Ctrl-C")?;
    }
    Ok(())
}
