//! For one job: tries what can describe its bytes and keeps what costs least.
//!
//! Knows one job at a time. Costs are estimated with each candidate's streams packed alone.

use super::align::align;
use super::label::{Labelled, align_labelled};
use super::pack::{ESTIMATE, cost, pack};
use super::plan::{Job, Plan};
use super::source::Image;
use anyhow::Result;
use formats::delta::elf::{Elf, Params};
use formats::delta::map::AddressMap;
use formats::delta::object::{Copy, Kind, Map, Model, Projector, addresses, pieces};
use formats::delta::refs::Ref;
use formats::delta::view::{Extent, View};
use formats::delta::{MAX_COPIES, MAX_PREFIX, ReadAt};
use std::sync::Arc;

/// New bytes that are aligned at once, and the old window for them, in bytes, when a file is too long for one index.
const LONG: usize = 256 << 20;
const NEW_WINDOW: usize = 32 << 20;
const OLD_WINDOW: usize = 128 << 20;
/// Output of one prefix operation is at most this.
pub const PREFIX_OUTPUT: u64 = 4 << 20;
/// Prefixes are tried if the best so far costs more than one part in this many.
const PREFIX_WORTH: u64 = 25;
/// Plain copies are tried too if projection costs more than one part in this many.
const PLAIN_WORTH: u64 = 40;
/// What a map costs besides its copies, in bytes.
const MAP_COST: u64 = 16;
/// Most pointers of one program that projection is tried with, 40 bytes each while encoding: those of programs of about
/// 150 MB. The decoder keeps none.
const MAX_REFS: usize = 12 << 20;
/// Pointers are collected from this many bytes at a time.
const REFS_STEP: u64 = 1 << 20;
/// Number of the object that is the table of values, if there is one.
pub const VALUES: u64 = 0;

/// How a job's bytes are described.
#[derive(Debug)]
pub enum Method {
    /// By themselves.
    Literal,
    /// Each part as a frame with old bytes as its prefix.
    Prefix,
    /// Copies with residue, in offsets of the images.
    Copies(Vec<Copy>),
    /// Copies with residue and projected pointers.
    Object(Box<Map>),
}

/// A method and its estimated cost.
#[derive(Debug)]
pub struct Choice {
    /// The method.
    pub method: Method,
    /// Estimated bytes.
    pub cost: u64,
}

/// A job's bytes in memory.
struct Bytes {
    old: Vec<u8>,
    /// The whole new file; the job produces the first `produced` bytes of it.
    new: Vec<u8>,
    produced: u64,
}

fn total(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| extent.len).sum()
}

/// Offset in the image of byte `at` of the file that `extents` make, and how many bytes follow there.
#[must_use]
pub fn locate(extents: &[Extent], at: u64) -> Option<(u64, u64)> {
    let mut skip = at;
    for extent in extents {
        if skip < extent.len {
            return Some((extent.offset + skip, extent.len - skip));
        }
        skip -= extent.len;
    }
    None
}

/// Copies between files as copies between images, cut where either file's extents end.
fn in_images(copies: &[Copy], new: &[Extent], old: &[Extent]) -> Vec<Copy> {
    let mut out: Vec<Copy> = Vec::new();
    for copy in copies {
        let mut done = 0;
        while done < copy.len {
            let (Some(to), Some(from)) = (locate(new, copy.new + done), locate(old, copy.old + done)) else {
                break;
            };
            let len = to.1.min(from.1).min(copy.len - done);
            out.push(Copy { new: to.0, old: from.0, len });
            done += len;
        }
    }
    out
}

/// Aligns files of any length; long ones in windows at the same relative place.
fn align_any(old: &[u8], new: &[u8]) -> Vec<Copy> {
    if old.len() <= LONG {
        return align(old, new);
    }
    let mut copies = Vec::new();
    for start in (0..new.len()).step_by(NEW_WINDOW) {
        let end = new.len().min(start + NEW_WINDOW);
        let middle = (start as u128 * old.len() as u128 / new.len() as u128) as usize;
        let from = middle.saturating_sub((OLD_WINDOW - NEW_WINDOW) / 2).min(old.len() - OLD_WINDOW);
        let found = align(&old[from..from + OLD_WINDOW], &new[start..end]);
        let place =
            |copy: Copy| Copy { new: copy.new + start as u64, old: copy.old + from as u64, len: copy.len };
        copies.extend(found.into_iter().map(place));
    }
    copies
}

/// Cost of describing `new` by `copies` whose predictions `predict` gives.
fn cost_of_copies(
    new: &[u8],
    copies: &[Copy],
    predict: &mut dyn FnMut(Copy, &mut [u8]) -> Result<()>,
) -> Result<u64> {
    let (mut diff, mut extra, mut control) = (Vec::new(), Vec::new(), Vec::new());
    let (mut end, mut cursor) = (0u64, 0u64);
    for copy in pieces(copies, 0, new.len() as u64) {
        extra.extend_from_slice(&new[end as usize..copy.new as usize]);
        formats::delta::wire::put_varint(&mut control, copy.new - end);
        formats::delta::wire::put_varint(&mut control, copy.len);
        formats::delta::wire::put_signed(&mut control, copy.old.wrapping_sub(cursor).cast_signed());
        (end, cursor) = (copy.new + copy.len, copy.old + copy.len);
        let from = diff.len();
        diff.resize(from + copy.len as usize, 0);
        predict(copy, &mut diff[from..])?;
        for (byte, wanted) in diff[from..].iter_mut().zip(&new[copy.new as usize..end as usize]) {
            *byte = wanted.wrapping_sub(*byte);
        }
    }
    extra.extend_from_slice(&new[end as usize..]);
    Ok(cost(&diff)? + cost(&extra)? + cost(&control)?)
}

fn consider(best: &mut Choice, method: Method, cost: u64) {
    if cost < best.cost {
        *best = Choice { method, cost };
    }
}

/// Every pointer of a file; `None` if there are more than [`MAX_REFS`].
fn all_refs(
    model: &mut Model,
    image: &dyn ReadAt,
    view: &View,
    extents: &[Extent],
) -> Result<Option<Vec<Ref>>> {
    let (size, mut out, mut at) = (total(extents), Vec::new(), 0);
    while at < size && out.len() <= MAX_REFS {
        let to = size.min(at + REFS_STEP);
        model.refs(image, view, (at, to), &mut out)?;
        at = to;
    }
    if out.len() > MAX_REFS {
        return Ok(None);
    }
    let mut end = 0;
    out.retain(|found| {
        let apart = found.at >= end && found.at + found.width() as u64 <= size;
        if apart {
            end = found.at + found.width() as u64;
        }
        apart
    });
    Ok(Some(out))
}

/// Values that kernel modules share.
pub type Values = Option<Arc<AddressMap>>;

/// Chooses for `job` of `plan`.
///
/// # Errors
/// If an image cannot be read.
pub fn choose(plan: &Plan, job: &Job, (old, new): (&Image, &Image), values: &Values) -> Result<Choice> {
    let produced = total(&job.new);
    let bytes = Bytes {
        old: View::new(old, &job.old)?.slice(0, u64::MAX)?,
        new: View::new(new, &job.whole)?.slice(0, u64::MAX)?,
        produced,
    };
    let mut best = Choice { method: Method::Literal, cost: u64::MAX };
    if !bytes.old.is_empty() {
        if job.metadata {
            metadata(plan, job, (old, new), &mut best)?;
        } else {
            program(job, &bytes, (old, new), values, &mut best)?;
        }
        if best.cost > produced / PLAIN_WORTH {
            plain(job, &bytes, &mut best)?;
        }
        if best.cost > produced / PREFIX_WORTH {
            let cost = prefix_cost(job, &bytes, best.cost)?;
            consider(&mut best, Method::Prefix, cost);
        }
    }
    if best.cost > produced / 4 {
        // A literal is packed together with its neighbours and needs no operations.
        consider(&mut best, Method::Literal, cost(&bytes.new[..produced as usize])?);
    }
    Ok(best)
}

fn plain(job: &Job, bytes: &Bytes, best: &mut Choice) -> Result<()> {
    let copies = align_any(&bytes.old, &bytes.new[..bytes.produced as usize]);
    let mut predict = |copy: Copy, out: &mut [u8]| {
        out.copy_from_slice(&bytes.old[copy.old as usize..(copy.old + copy.len) as usize]);
        Ok(())
    };
    let cost = cost_of_copies(&bytes.new[..bytes.produced as usize], &copies, &mut predict)?;
    consider(best, Method::Copies(in_images(&copies, &job.new, &job.old)), cost);
    Ok(())
}

/// The old window for output `at..at + len` of a file of `new` bytes: at the same relative place, and around it.
#[must_use]
pub fn prefix_window(at: u64, len: u64, new: u64, old: u64) -> (u64, u64) {
    if old <= MAX_PREFIX {
        return (0, old);
    }
    let middle = (u128::from(at) * u128::from(old) / u128::from(new.max(1))) as u64;
    let from = middle.saturating_sub((MAX_PREFIX - len.min(PREFIX_OUTPUT)) / 2).min(old - MAX_PREFIX);
    (from, MAX_PREFIX)
}

fn prefix_cost(job: &Job, bytes: &Bytes, limit: u64) -> Result<u64> {
    if job.metadata {
        return Ok(u64::MAX);
    }
    let (mut at, mut sum) = (0, 0);
    while at < bytes.produced && sum < limit {
        let len = PREFIX_OUTPUT.min(bytes.produced - at);
        let (from, window) =
            prefix_window(at, len, bytes.produced, job.old.first().map_or(0, |extent| extent.len));
        let prefix = &bytes.old[from as usize..(from + window) as usize];
        sum += pack(&bytes.new[at as usize..(at + len) as usize], prefix, ESTIMATE)?.len() as u64 + 8;
        at += len;
    }
    Ok(if at < bytes.produced { u64::MAX } else { sum })
}

/// Memory without bytes in the file: sections of one name in both.
fn memory_ranges(old: &Elf, new: &Elf) -> Vec<formats::delta::map::Range> {
    let named = |elf: &Elf, name: &str| {
        elf.headers().iter().find(|header| header.name == name && header.kind == 8).cloned()
    };
    let mut ranges = Vec::new();
    for name in [".bss", ".noptrbss", ".tbss"] {
        if let (Some(from), Some(to)) = (named(old, name), named(new, name)) {
            let end = from.va + from.size.max(1);
            ranges.push(formats::delta::map::Range {
                start: from.va,
                end,
                delta: to.va.wrapping_sub(from.va),
            });
        }
    }
    ranges
}

/// Projects an ELF program, if it is one in both images.
fn program(
    job: &Job,
    bytes: &Bytes,
    images: (&Image, &Image),
    values: &Values,
    best: &mut Choice,
) -> Result<()> {
    if bytes.old.len().max(bytes.new.len()) > LONG {
        return Ok(());
    }
    let views = (View::new(images.0, &job.old)?, View::new(images.1, &job.whole)?);
    let blank = Params::default();
    let (Some(old), Some(new)) = (Elf::open(&views.0, &blank)?, Elf::open(&views.1, &blank)?) else {
        return Ok(());
    };
    let kinds = match (old.relocatable(), new.relocatable()) {
        (true, true) => {
            let kind = Kind::Module(values.as_ref().map(|_| VALUES));
            (kind, kind)
        }
        (false, false) => {
            let params = |elf: &Elf, bytes: &[u8]| Kind::Elf(super::golang::params(elf, bytes));
            (params(&old, &bytes.old), params(&new, &bytes.new))
        }
        (true, false) | (false, true) => return Ok(()),
    };
    let mut map = Map {
        kind: kinds.0,
        old: job.old.clone(),
        new: job.new.first().copied().unwrap_or(Extent { offset: 0, len: 0 }),
        segments: new.segments().to_vec(),
        ranges: if old.relocatable() { Vec::new() } else { memory_ranges(&old, &new) },
        copies: Vec::new(),
    };
    let old_segments = old.segments().to_vec();
    drop((old, new));
    let mut models = (Model::open(&kinds.0, images.0, &views.0)?, Model::open(&kinds.1, images.1, &views.1)?);
    let (Some(old_refs), Some(new_refs)) = (
        all_refs(&mut models.0, images.0, &views.0, &job.old)?,
        all_refs(&mut models.1, images.1, &views.1, &job.whole)?,
    ) else {
        return Ok(());
    };
    let refs = (old_refs, new_refs);
    drop(models);
    let blueprint = map.clone();
    let derive = |copies: &[Copy]| {
        let map = Map { copies: copies.to_vec(), ..blueprint.clone() };
        addresses(&old_segments, &map).with_shared(values.clone())
    };
    let sides =
        (Labelled { bytes: &bytes.old, refs: &refs.0 }, Labelled { bytes: &bytes.new, refs: &refs.1 });
    let copies = align_labelled(&sides.0, &sides.1, &derive);
    map.copies = pieces(&copies, 0, bytes.produced).collect();
    if map.copies.len() as u64 > MAX_COPIES {
        return Ok(());
    }
    let mut projector = Projector::open(&map, images.0, &views.0, values.clone())?;
    let mut predict = |copy: Copy, out: &mut [u8]| Ok(projector.predict(&map, images.0, copy, out)?);
    let cost = cost_of_copies(&bytes.new[..bytes.produced as usize], &map.copies, &mut predict)?;
    consider(best, Method::Object(Box::new(map)), cost + MAP_COST);
    Ok(())
}

/// Pointers of the metadata, as offsets in the concatenation of `extents`.
fn metadata_refs(image: &Image, extents: &[Extent]) -> Result<Vec<Ref>> {
    let whole = [Extent { offset: 0, len: image.size() }];
    let view = View::new(image, &whole)?;
    let mut model = Model::open(&Kind::Erofs, image, &view)?;
    let (mut out, mut done) = (Vec::new(), 0u64);
    for extent in extents {
        let from = out.len();
        let end = extent.offset + extent.len;
        model.refs(image, &view, (extent.offset, end), &mut out)?;
        while out.len() > from && out.last().is_some_and(|last: &Ref| last.at + last.width() as u64 > end) {
            out.pop();
        }
        for found in &mut out[from..] {
            found.at = found.at - extent.offset + done;
        }
        done += extent.len;
    }
    Ok(out)
}

/// Projects the metadata of EROFS images: addresses are offsets in the image.
fn metadata(plan: &Plan, job: &Job, images: (&Image, &Image), best: &mut Choice) -> Result<()> {
    let bytes = (
        View::new(images.0, &job.old)?.slice(0, u64::MAX)?,
        View::new(images.1, &job.new)?.slice(0, u64::MAX)?,
    );
    if !plan.erofs || plan.moves.len() > 1 << 16 || bytes.0.len() > LONG {
        return Ok(());
    }
    let whole = |image: &Image| Extent { offset: 0, len: image.size() };
    let mut map = Map {
        kind: Kind::Erofs,
        old: vec![whole(images.0)],
        new: whole(images.1),
        segments: Vec::new(),
        ranges: plan.moves.clone(),
        copies: Vec::new(),
    };
    let refs = (metadata_refs(images.0, &job.old)?, metadata_refs(images.1, &job.new)?);
    let blueprint = map.clone();
    let derive = |copies: &[Copy]| {
        addresses(&[], &Map { copies: in_images(copies, &job.new, &job.old), ..blueprint.clone() })
    };
    let sides = (Labelled { bytes: &bytes.0, refs: &refs.0 }, Labelled { bytes: &bytes.1, refs: &refs.1 });
    let copies = align_labelled(&sides.0, &sides.1, &derive);
    map.copies = in_images(&copies, &job.new, &job.old);
    if map.copies.len() as u64 > MAX_COPIES {
        return Ok(());
    }
    let view = View::new(images.0, &map.old)?;
    let mut projector = Projector::open(&map, images.0, &view, None)?;
    let mut predict = |copy: Copy, out: &mut [u8]| {
        let mut done = 0;
        while done < copy.len {
            let at = (locate(&job.new, copy.new + done), locate(&job.old, copy.old + done));
            let (Some(to), Some(from)) = at else { break };
            let len = to.1.min(from.1).min(copy.len - done);
            let part = Copy { new: to.0, old: from.0, len };
            projector.predict(&map, images.0, part, &mut out[done as usize..(done + len) as usize])?;
            done += len;
        }
        Ok(())
    };
    let cost = cost_of_copies(&bytes.1, &copies, &mut predict)?;
    consider(best, Method::Object(Box::new(map)), cost + MAP_COST);
    Ok(())
}
