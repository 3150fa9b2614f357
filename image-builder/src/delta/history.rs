//! Which bytes that a device has already are worth having in sight while a group's literals are unpacked: of the old
//! image, and of the new one before the group. New programs share more with each other than with what they replace.
//!
//! Knows samples of both images; nothing of operations.

use super::parallel;
use super::plan::{Origin, Plan};
use super::source::Image;
use anyhow::Result;
use formats::delta::history::{Side, Window};
use formats::delta::view::Extent;
use formats::delta::{MAX_HISTORY, MAX_WINDOWS, ReadAt};
use std::collections::BinaryHeap;

/// Windows are made of pieces of this length, at multiples of it.
const BUCKET: u64 = 32 << 10;
/// One place in this many is sampled.
const RATE: u64 = 64;
/// Bytes that a sample is made of.
const SAMPLE: usize = 32;
/// A sample that this many buckets have says nothing about any of them.
const COMMON: usize = 64;
/// A bucket is worth its place in the list if it has this many samples that no other one has given.
const WORTH: usize = 4;
/// Bytes that are sampled at once.
const STEP: u64 = 8 << 20;

/// Calls `found` with each sample of `bytes`, a hash of [`SAMPLE`] bytes, and where it ends.
fn samples(bytes: &[u8], mut found: impl FnMut(u32, usize)) {
    let mut hash = 0u64;
    for (at, byte) in bytes.iter().enumerate() {
        let spread = (u64::from(*byte) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash << 2).wrapping_add(spread ^ spread >> 29);
        if hash >> 40 & (RATE - 1) == 0 && at >= SAMPLE {
            found((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32, at);
        }
    }
}

/// Samples of an image, sorted, each with the number of its bucket.
struct Samples(Vec<(u32, u32)>);

impl Samples {
    fn of(image: &Image, parts: &[Extent], threads: usize) -> Result<Self> {
        let steps: Vec<Extent> = parts
            .iter()
            .flat_map(|part| {
                (0..part.len.div_ceil(STEP))
                    .map(|n| Extent { offset: part.offset + n * STEP, len: STEP.min(part.len - n * STEP) })
            })
            .collect();
        let found = parallel::run(steps.len(), threads, |number| {
            let step = steps[number];
            let mut found = Vec::new();
            samples(&image.bytes(step.offset, step.len)?, |hash, at| {
                found.push((hash, ((step.offset + at as u64) / BUCKET) as u32));
            });
            Ok(found)
        })?;
        let mut all = found.concat();
        all.sort_unstable();
        all.dedup();
        Ok(Self(all))
    }

    /// Buckets that have `hash`; none if too many do.
    fn buckets(&self, hash: u32) -> &[(u32, u32)] {
        let from = self.0.partition_point(|(known, _)| *known < hash);
        let len = self.0[from..].iter().take(COMMON + 1).take_while(|(known, _)| *known == hash).count();
        if len > COMMON { &[] } else { &self.0[from..from + len] }
    }
}

/// Both images, sampled.
pub struct Histories {
    old: Samples,
    new: Samples,
    old_len: u64,
}

/// A bucket of either image.
type Key = (Side, u32);

impl Histories {
    /// Samples `old`, and what `plan` does not find in it; that only of file systems, whose parts are written before others
    /// are read.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn new(old: &Image, plan: &Plan, new_len: u64, threads: usize) -> Result<Self> {
        let whole = Extent { offset: 0, len: old.size() };
        let changed = |at: Extent| at.offset + at.len <= new_len;
        let changed: Vec<Extent> = plan
            .pieces
            .iter()
            .filter(|piece| plan.erofs && matches!(piece.origin, Origin::Job(_)) && changed(piece.at))
            .map(|piece| piece.at)
            .collect();
        let new = Samples::of(&plan.new, &changed, threads)?;
        Ok(Self { old: Samples::of(old, &[whole], threads)?, new, old_len: old.size() })
    }

    /// Windows for the `literals` of a group, of which bytes of the new image below `written` are there.
    #[must_use]
    pub fn windows(&self, literals: &[u8], written: u64) -> Vec<Window> {
        let mut wanted = Vec::new();
        samples(literals, |hash, _| wanted.push(hash));
        wanted.sort_unstable();
        wanted.dedup();
        let complete = written / BUCKET;
        let mut holders: Vec<(Key, u32)> = Vec::new();
        for (number, hash) in wanted.iter().enumerate() {
            let new = self.new.buckets(*hash).iter().filter(|(_, bucket)| u64::from(*bucket) < complete);
            holders.extend(new.map(|(_, bucket)| ((Side::New, *bucket), number as u32)));
            let old = self.old.buckets(*hash).iter();
            holders.extend(old.map(|(_, bucket)| ((Side::Old, *bucket), number as u32)));
        }
        holders.sort_unstable();
        self.merged(best(&holders, wanted.len()))
    }

    /// `buckets` as windows, those beside each other joined.
    fn merged(&self, mut buckets: Vec<Key>) -> Vec<Window> {
        buckets.sort_unstable();
        let mut windows: Vec<Window> = Vec::new();
        for (side, bucket) in buckets {
            let offset = u64::from(bucket) * BUCKET;
            let len = if side == Side::Old { BUCKET.min(self.old_len - offset) } else { BUCKET };
            match windows.last_mut() {
                Some(last) if last.side == side && last.at.offset + last.at.len == offset => {
                    last.at.len += len;
                }
                Some(_) | None => windows.push(Window { side, at: Extent { offset, len } }),
            }
        }
        windows
    }
}

/// The buckets that have the most samples that no better one has; `holders` are sorted, samples are below `count`.
fn best(holders: &[(Key, u32)], count: usize) -> Vec<Key> {
    let buckets: Vec<&[(Key, u32)]> = holders.chunk_by(|one, other| one.0 == other.0).collect();
    let mut covered = vec![false; count];
    let mut heap: BinaryHeap<(usize, usize)> =
        buckets.iter().enumerate().map(|(number, held)| (held.len(), number)).collect();
    let mut chosen = Vec::new();
    let most = (MAX_HISTORY / BUCKET).min(MAX_WINDOWS) as usize;
    while let Some((_, number)) = heap.pop().filter(|(gain, _)| *gain >= WORTH && chosen.len() < most) {
        let gain = buckets[number].iter().filter(|(_, sample)| !covered[*sample as usize]).count();
        // What it gives may be less by now than what the next one seems to.
        if heap.peek().is_some_and(|(next, _)| *next > gain) {
            heap.push((gain, number));
            continue;
        }
        if gain < WORTH {
            break;
        }
        buckets[number].iter().for_each(|(_, sample)| covered[*sample as usize] = true);
        chosen.push(buckets[number][0].0);
    }
    chosen
}
