//! Fetches an object into its staging area: only what is missing, each block verified before it is kept, flushed often
//! enough that a power cut costs little.

use crate::io::disk::Disk;
use crate::update::carrier::{Carrier, Failure};
use crate::update::plan::Object;
use crate::update::staging::Staging;
use crate::update::step::Fault;
use anyhow::Result;
use formats::object::Geometry;
use formats::repository;
use std::ops::Range;

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

/// Blocks of a source that are not the object's before the source is given up.
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
    object: &Object,
    carrier: &mut dyn Carrier,
    interval: Interval,
    control: &mut dyn Control,
) -> Result<(), Failure> {
    let geometry = staging.geometry();
    if staging.needs_lists() {
        let lists = carrier.whole(&repository::lists(&object.id), geometry.list_bytes())?;
        control.fetched(lists.len() as u64);
        if let Err(error) = staging.put_lists(&lists).map_err(|error| Failure::local(&error))? {
            return Err(Failure::new(Fault::Damaged, format!("hash lists of object {}: {error}", object.id)));
        }
    }
    let mut damaged = 0;
    while let Some(run) = staging.missing(0) {
        let flushed_ms = control.now_ms();
        let mut blocks = Blocks { geometry, next: run.start, buffer: Vec::new(), interval, flushed_ms };
        let bytes = byte_range(&geometry, &run);
        let came = carrier.range(&repository::object(&object.id), bytes, &mut |bytes| {
            control.fetched(bytes.len() as u64);
            blocks.take(bytes, staging, control.now_ms())?;
            control.progress("fetch", staging.done(), geometry.length());
            if control.stopped() { Err(Failure::new(Fault::Unreachable(None), "stopped")) } else { Ok(()) }
        });
        // What came before a failure is kept.
        staging.flush().map_err(|error| Failure::local(&error))?;
        match came {
            Ok(()) => {}
            Err(failure) if failure.fault == Fault::Damaged && damaged < DAMAGED_MAX => damaged += 1,
            Err(failure) => return Err(failure),
        }
    }
    control.progress("fetch", staging.done(), geometry.length());
    Ok(())
}

fn byte_range(geometry: &Geometry, run: &Range<u64>) -> Range<u64> {
    let block = u64::from(geometry.block().bytes());
    run.start * block..(run.end * block).min(geometry.length())
}

/// Cuts a stream into blocks, and flushes them in time.
struct Blocks {
    geometry: Geometry,
    next: u64,
    buffer: Vec<u8>,
    interval: Interval,
    flushed_ms: u64,
}

impl Blocks {
    fn take<D: Disk>(
        &mut self,
        mut bytes: &[u8],
        staging: &mut Staging<D>,
        now_ms: u64,
    ) -> Result<(), Failure> {
        while !bytes.is_empty() {
            let Some(length) = self.geometry.block_length(self.next) else {
                return Err(Failure::new(Fault::Damaged, "the source sends more than it was asked for"));
            };
            let (now, later) = bytes.split_at(bytes.len().min(length - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == length {
                let put = staging.put(self.next, &self.buffer).map_err(|error| Failure::local(&error))?;
                put.map_err(|error| {
                    Failure::new(Fault::Damaged, format!("what the source sends is not the object: {error}"))
                })?;
                self.buffer.clear();
                self.next += 1;
                let late = now_ms.saturating_sub(self.flushed_ms) >= self.interval.ms;
                if staging.unflushed() >= self.interval.bytes || late {
                    staging.flush().map_err(|error| Failure::local(&error))?;
                    self.flushed_ms = now_ms;
                }
            }
        }
        Ok(())
    }
}
