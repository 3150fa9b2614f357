//! Cuts a new image into pieces: bytes that the old image has, and jobs for those that changed.
//!
//! Knows where files lie in EROFS images; kernel images are cut up in `uki`; any other file is one job. Does not encode anything.

use super::matching::{Matcher, extents};
use super::parallel;
use super::source::Image;
use super::uki;
use super::unpack::{Packed, Unpacker};
use anyhow::{Context, Result};
use formats::delta::ReadAt;
use formats::delta::container::Digest;
use formats::delta::erofs::{self, File, Inode, Tree};
use formats::delta::map::Range;
use formats::delta::view::Extent;
use std::collections::HashMap;

/// Where a piece of the new image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The same bytes lie at this offset of the old image.
    Same(u64),
    /// The job with this number says.
    Job(usize),
    /// Zeros: padding behind a file.
    Zero,
    /// The text of the packed file with this number, deflated.
    Deflated(usize),
}

/// A piece of the new image.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Where it lies in the new image.
    pub at: Extent,
    /// Where it comes from.
    pub origin: Origin,
}

/// Bytes to encode against old ones.
#[derive(Debug)]
pub struct Job {
    /// What lies in the new image and is to be produced.
    pub new: Vec<Extent>,
    /// The same file with the parts that others produce (its tail among the metadata).
    pub whole: Vec<Extent>,
    /// The old file; empty if none is like it.
    pub old: Vec<Extent>,
    /// Metadata of EROFS images: pointers are block addresses and inode numbers.
    pub metadata: bool,
}

/// All pieces in the order of the new image, without gaps.
pub struct Plan {
    /// Pieces.
    pub pieces: Vec<Piece>,
    /// Jobs.
    pub jobs: Vec<Job>,
    /// How files' bytes moved, for pointers in metadata.
    pub moves: Vec<Range>,
    /// Both images are EROFS.
    pub erofs: bool,
    /// Compressed files that are made again from their texts.
    pub packed: Vec<Packed>,
    /// The new image with these texts behind it.
    pub new: Image,
}

/// A plan under construction.
struct Parts {
    pieces: Vec<Piece>,
    jobs: Vec<Job>,
    moves: Vec<Range>,
}

/// Files' data is taken to be padded to this.
const PAGE: u64 = 4096;

fn whole(len: u64) -> Extent {
    Extent { offset: 0, len }
}

/// Makes the plan for `new` against `old`; texts of compressed files will lie from a multiple of `group` on.
///
/// # Errors
/// If an image cannot be read, or is damaged.
pub fn plan(old: &Image, new: &Image, group: u64, threads: usize) -> Result<Plan> {
    let trees =
        (erofs::walk(old).context("walk the old image")?, erofs::walk(new).context("walk the new image")?);
    if let (Some(old_tree), Some(new_tree)) = &trees {
        let unpacker = Unpacker::new(new.size(), group)?;
        return plan_trees((old, old_tree), (new, new_tree), unpacker, threads);
    }
    let (at, from) = (whole(new.size()), whole(old.size()));
    let (pieces, jobs) = uki::plan(old, new)?.unwrap_or_else(|| {
        let job = Job { new: vec![at], whole: vec![at], old: vec![from], metadata: false };
        let piece = Piece { at, origin: Origin::Job(0) };
        (if at.len == 0 { Vec::new() } else { vec![piece] }, vec![job])
    });
    let (new, packed) = Unpacker::new(new.size(), group)?.behind(new)?;
    Ok(Plan { pieces, jobs, moves: Vec::new(), erofs: false, packed, new })
}

/// Files with data blocks in the order of the image; the first of those that share blocks, and none that overlap.
fn by_place(tree: &Tree) -> Vec<(Extent, &File)> {
    let mut files: Vec<_> = tree.files.iter().filter_map(|file| Some((file.inode.data?, file))).collect();
    files.sort_by_key(|(data, _)| data.offset);
    let mut end = 0;
    files.retain(|(data, _)| {
        let apart = data.offset >= end;
        if apart {
            end = data.offset + data.len;
        }
        apart
    });
    files
}

fn digests(image: &Image, files: &[(Extent, &File)], threads: usize) -> Result<Vec<Digest>> {
    parallel::run(files.len(), threads, |number| image.digest(files[number].0.offset, files[number].0.len))
}

/// `data` and the padding behind it, as far as the padding is equal in both images.
fn padded(sides: (&Image, &Image), data: Extent, from: u64, block: u64) -> Result<u64> {
    let padding = data.len.next_multiple_of(block) - data.len;
    let fits = |image: &Image, at: u64| at + data.len + padding <= image.size();
    if padding == 0 || !fits(sides.0, from) || !fits(sides.1, data.offset) {
        return Ok(data.len);
    }
    let equal = sides.0.bytes(from + data.len, padding)? == sides.1.bytes(data.offset + data.len, padding)?;
    Ok(data.len + if equal { padding } else { 0 })
}

/// Bytes that are like no others.
fn alone(new: Extent) -> Job {
    Job { new: vec![new], whole: vec![new], old: Vec::new(), metadata: false }
}

impl Parts {
    fn job(&mut self, at: Extent, job: Job) {
        self.pieces.push(Piece { at, origin: Origin::Job(self.jobs.len()) });
        self.jobs.push(job);
    }

    /// The file at `data`, whose text was unpacked last: what deflating gives, and what stands around it.
    fn deflated(&mut self, data: Extent, (number, deflated): (usize, Extent)) {
        let head = Extent { offset: data.offset, len: deflated.offset - data.offset };
        let behind = deflated.offset + deflated.len;
        let tail = Extent { offset: behind, len: data.offset + data.len - behind };
        self.job(head, alone(head));
        self.pieces.push(Piece { at: deflated, origin: Origin::Deflated(number) });
        if tail.len > 0 {
            self.job(tail, alone(tail));
        }
    }
}

fn plan_trees(
    old: (&Image, &Tree),
    new: (&Image, &Tree),
    mut unpacker: Unpacker,
    threads: usize,
) -> Result<Plan> {
    let (old_files, new_files) = (by_place(old.1), by_place(new.1));
    let (old_digests, new_digests) =
        (digests(old.0, &old_files, threads)?, digests(new.0, &new_files, threads)?);
    let mut known: HashMap<(Digest, u64), u64> = HashMap::new();
    for ((data, _), digest) in old_files.iter().zip(&old_digests) {
        known.entry((*digest, data.len)).or_insert(data.offset);
    }
    let mut matcher = Matcher::new(old.0, &old.1.files);
    let block = 1 << new.1.superblock.block_bits;
    let mut plan = Parts { pieces: Vec::new(), jobs: Vec::new(), moves: Vec::new() };
    for ((data, file), digest) in new_files.iter().zip(&new_digests) {
        let like = matcher.find(new.0, file)?;
        let same_place = like.and_then(|like| like.inode.data).filter(|from| {
            let number = old_files.partition_point(|(data, _)| data.offset < from.offset);
            old_digests.get(number) == Some(digest)
                && old_files[number].0 == Extent { offset: from.offset, ..*data }
        });
        let same = same_place.map(|from| from.offset).or_else(|| known.get(&(*digest, data.len)).copied());
        let from = same.or(like.and_then(|like| like.inode.data).map(|from| from.offset));
        if let Some(from) = from {
            let delta = data.offset.wrapping_sub(from);
            plan.moves.push(Range { start: from, end: from + data.len.next_multiple_of(block), delta });
        }
        let len = match same {
            Some(from) => {
                let len = padded((old.0, new.0), *data, from, block)?;
                let at = Extent { offset: data.offset, len };
                plan.pieces.push(Piece { at, origin: Origin::Same(from) });
                len
            }
            None if unpacker.unpack(new.0, &extents(&file.inode))? => {
                let last = unpacker.packed.len() - 1;
                plan.deflated(*data, (last, unpacker.packed[last].deflated));
                data.len
            }
            None => {
                let old = like.map(|like| extents(&like.inode)).unwrap_or_default();
                let whole = extents(&file.inode);
                plan.job(*data, Job { new: vec![*data], whole, old, metadata: false });
                data.len
            }
        };
        pad(&mut plan, new.0, Extent { offset: data.offset, len }, block)?;
    }
    add_metadata(&mut plan, &old_files, (old.0.size(), new.0.size()));
    merge_moves(&mut plan.moves);
    let (space, packed) = unpacker.behind(new.0)?;
    add_texts(&mut plan, &mut matcher, (&space, &packed), &known)?;
    let Parts { pieces, jobs, moves } = plan;
    Ok(Plan { pieces, jobs, moves, erofs: true, packed, new: space })
}

/// Members of unpacked archives come from old files like others do; what stands between them is one job each.
fn add_texts(
    plan: &mut Parts,
    matcher: &mut Matcher,
    (space, packed): (&Image, &[Packed]),
    known: &HashMap<(Digest, u64), u64>,
) -> Result<()> {
    for archive in packed {
        let end = archive.at.offset + archive.at.len;
        let mut at = archive.at.offset;
        let mut between = Vec::new();
        for (name, data) in &archive.members {
            between.push(Extent { offset: at, len: data.offset - at });
            at = data.offset + data.len;
            let digest = space.digest(data.offset, data.len)?;
            if let Some(from) = known.get(&(digest, data.len)) {
                plan.pieces.push(Piece { at: *data, origin: Origin::Same(*from) });
                continue;
            }
            let inode = Inode { offset: 0, mode: 0o100_644, size: data.len, data: Some(*data), tail: None };
            let like = matcher.find(space, &File { path: name.clone(), inode })?;
            let old = like.map(|like| extents(&like.inode)).unwrap_or_default();
            plan.job(*data, Job { old, ..alone(*data) });
        }
        between.push(Extent { offset: at, len: end - at });
        between.retain(|extent| extent.len > 0);
        let number = plan.jobs.len();
        plan.pieces.extend(between.iter().map(|at| Piece { at: *at, origin: Origin::Job(number) }));
        plan.jobs.push(Job { new: between.clone(), whole: between, old: Vec::new(), metadata: false });
    }
    plan.pieces.sort_by_key(|piece| piece.at.offset);
    Ok(())
}

/// The padding behind a file's data, if it is all zeros.
fn pad(plan: &mut Parts, new: &Image, data: Extent, block: u64) -> Result<()> {
    let at = Extent { offset: data.offset + data.len, len: data.len.next_multiple_of(block) - data.len };
    let inside = at.len > 0 && at.offset + at.len <= new.size();
    if inside && new.bytes(at.offset, at.len)?.iter().all(|byte| *byte == 0) {
        plan.pieces.push(Piece { at, origin: Origin::Zero });
    }
    Ok(())
}

/// What no extent of `taken` (sorted) covers of `len` bytes.
fn gaps(taken: impl Iterator<Item = Extent>, len: u64) -> Vec<Extent> {
    let (mut at, mut found) = (0, Vec::new());
    for extent in taken.chain([Extent { offset: len, len: 0 }]) {
        if extent.offset > at {
            found.push(Extent { offset: at, len: extent.offset - at });
        }
        at = at.max(extent.offset + extent.len);
    }
    found
}

/// One job for everything that is no file's data.
fn add_metadata(plan: &mut Parts, old_files: &[(Extent, &File)], lens: (u64, u64)) {
    let block = |data: Extent| Extent { offset: data.offset, len: data.len.next_multiple_of(PAGE) };
    let old = gaps(old_files.iter().map(|(data, _)| block(*data)), lens.0);
    let new = gaps(plan.pieces.iter().map(|piece| piece.at), lens.1);
    let number = plan.jobs.len();
    plan.pieces.extend(new.iter().map(|at| Piece { at: *at, origin: Origin::Job(number) }));
    plan.pieces.sort_by_key(|piece| piece.at.offset);
    plan.jobs.push(Job { new: new.clone(), whole: new, old, metadata: true });
}

/// Joins neighbours that moved alike, in the order of old offsets; what lies between them is taken to move with them.
fn merge_moves(moves: &mut Vec<Range>) {
    moves.sort_by_key(|range| (range.start, range.end));
    let mut merged: Vec<Range> = Vec::new();
    for range in moves.iter() {
        match merged.last_mut() {
            Some(last) if last.delta == range.delta => last.end = last.end.max(range.end),
            Some(_) | None => merged.push(*range),
        }
    }
    *moves = merged;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_what_is_left() {
        let taken =
            [Extent { offset: 10, len: 5 }, Extent { offset: 15, len: 5 }, Extent { offset: 30, len: 70 }];
        let found = gaps(taken.into_iter(), 100);
        assert_eq!(found, [Extent { offset: 0, len: 10 }, Extent { offset: 20, len: 10 }]);
        assert_eq!(gaps([].into_iter(), 7), [whole(7)]);
    }

    #[test]
    fn moves_that_agree_are_one() {
        let range = |start, end, delta| Range { start, end, delta };
        let mut moves = vec![range(12, 20, 5), range(0, 10, 5), range(20, 30, 6), range(20, 30, 6)];
        merge_moves(&mut moves);
        assert_eq!(moves, [range(0, 20, 5), range(20, 30, 6)]);
    }
}
