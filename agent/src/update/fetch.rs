//! Fetches an object into its staging area: only what is missing, each block verified before it is kept, flushed often
//! enough that a power cut costs little.

use crate::io::disk::Disk;
use crate::update::carrier::{Carrier, Failure, Sink, Toll, What, Worth};
use crate::update::staging::Staging;
use crate::update::step::Fault;
use anyhow::Result;

/// How much may be lost to a power cut.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// Bytes between two flushes.
    pub bytes: u64,
    /// Milliseconds between two flushes while bytes come.
    pub ms: u64,
}

impl Interval {
    /// A flush every 4 MiB or 2 s: little to lose on a slow link, few flushes on a fast one.
    pub const USUAL: Self = Self { bytes: 4 << 20, ms: 2_000 };
}

/// Times that a source may send what is not the object's before it is given up.
const DAMAGED_MAX: u32 = 3;

/// What a job is told and tells.
pub trait Control {
    /// Whether to end.
    fn stopped(&self) -> bool;
    /// Milliseconds since the kernel started.
    fn now_ms(&self) -> u64;
    /// Says how far this part of the job is: done and total bytes.
    fn progress(&mut self, part: &'static str, done: u64, total: u64);
    /// Says that so many bytes came over a carrier.
    fn fetched(&mut self, bytes: u64);
}

/// Fetches what is missing of an object.
///
/// # Errors
/// [`Failure`]; what was verified before stays.
pub fn fetch<D: Disk>(
    staging: &mut Staging<D>,
    carrier: &mut dyn Carrier,
    interval: Interval,
    control: &mut dyn Control,
) -> Result<(), Failure> {
    let mut damaged = 0;
    while let Some(wanted) = staging.wanted() {
        let flushed_ms = control.now_ms();
        let mut intake = Intake { staging, what: wanted.what, interval, control, flushed_ms, new: 0 };
        let came = carrier.pieces(&wanted, &mut intake);
        let new = intake.new;
        // What came before a failure is kept.
        staging.flush().map_err(|error| Failure::local(&error))?;
        match came {
            Ok(()) if new > 0 => {}
            Ok(()) => return Err(Failure::new(Fault::Unreachable(None), "the source sends nothing of use")),
            Err(failure) if failure.fault == Fault::Damaged && damaged < DAMAGED_MAX => damaged += 1,
            Err(failure) => return Err(failure),
        }
    }
    control.progress("fetch", staging.done(), staging.total());
    Ok(())
}

/// Takes pieces into the staging area, and flushes them in time.
struct Intake<'i, D> {
    staging: &'i mut Staging<D>,
    what: What,
    interval: Interval,
    control: &'i mut dyn Control,
    flushed_ms: u64,
    new: u64,
}

impl<D: Disk> Toll for Intake<'_, D> {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.control.fetched(bytes);
        if self.control.stopped() { Err(Failure::new(Fault::Unreachable(None), "stopped")) } else { Ok(()) }
    }
}

impl<D: Disk> Sink for Intake<'_, D> {
    fn piece(&mut self, index: u64, bytes: &[u8]) -> Result<Worth, Failure> {
        let put = match self.what {
            What::Object(_) => self.staging.put(index, bytes),
            What::Lists(_) => self.staging.put_lists(index, bytes),
        };
        let worth = put.map_err(|error| Failure::local(&error))?;
        if worth == Worth::New {
            self.new += 1;
            let now_ms = self.control.now_ms();
            let late = now_ms.saturating_sub(self.flushed_ms) >= self.interval.ms;
            if self.staging.unflushed() >= self.interval.bytes || late {
                self.staging.flush().map_err(|error| Failure::local(&error))?;
                self.flushed_ms = now_ms;
            }
            self.control.progress("fetch", self.staging.done(), self.staging.total());
        }
        Ok(worth)
    }
}
