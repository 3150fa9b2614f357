//! Writes one group: the operations, residue, literals and frames for its bytes.
//!
//! Knows the pieces and the methods chosen; nothing of how they were found.

use super::choose::{Choice, Method, PREFIX_OUTPUT, Values, prefix_window};
use super::history::Histories;
use super::pack::{ESTIMATE, LEVEL, pack};
use super::plan::{Job, Origin, Plan};
use super::source::Image;
use anyhow::{Context, Result};
use formats::delta::container::{ShortDigest, short_digest};
use formats::delta::history::{self, Window, put_windows};
use formats::delta::object::{Kind, Map, Projector, pieces};
use formats::delta::ops::{self, Op};
use formats::delta::residue::ResidueEncoder;
use formats::delta::stream::{put_residue, put_stream};
use formats::delta::view::View;
use formats::delta::{MAX_OPS, MAX_PREFIX, ReadAt};

/// Zero bytes in a row that are worth an operation.
const ZEROS: usize = 64;

/// Everything that groups are written from.
pub struct Emitter<'a> {
    /// Old image.
    pub old: &'a Image,
    /// New image, texts behind it.
    pub new: &'a Image,
    /// Length of the new image itself.
    pub new_len: u64,
    /// The plan.
    pub plan: &'a Plan,
    /// Per job, what was chosen, and the number of its object.
    pub choices: &'a [(Choice, u64)],
    /// Values that modules share.
    pub values: &'a Values,
    /// Length of a group.
    pub group_len: u64,
    /// What literals may refer back to, if they may.
    pub histories: Option<&'a Histories>,
}

#[derive(Default)]
struct Group {
    ops: Vec<Op>,
    residue: ResidueEncoder,
    extra: Vec<u8>,
    frames: Vec<u8>,
    /// Objects that are open, metadata last: opening one means reading the old file's headers.
    open: [Option<(u64, Projector)>; 2],
}

impl Group {
    fn copy(&mut self, old: u64, len: u64) {
        match self.ops.last_mut() {
            Some(Op::Copy { old: before, len: so_far }) if *before + *so_far == old => *so_far += len,
            Some(_) | None => self.ops.push(Op::Copy { old, len }),
        }
    }

    fn zero(&mut self, len: usize) {
        match self.ops.last_mut() {
            Some(Op::Zero { len: so_far }) => *so_far += len as u64,
            Some(_) | None => self.ops.push(Op::Zero { len: len as u64 }),
        }
    }

    fn extra(&mut self, bytes: &[u8]) {
        self.extra.extend_from_slice(bytes);
        match self.ops.last_mut() {
            Some(Op::Extra { len }) => *len += bytes.len() as u64,
            Some(_) | None => self.ops.push(Op::Extra { len: bytes.len() as u64 }),
        }
    }

    /// Literal bytes; runs of zeros apart.
    fn literal(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
            if zeros >= ZEROS || zeros == bytes.len() {
                self.zero(zeros);
                bytes = &bytes[zeros..];
                continue;
            }
            let mut end = zeros;
            let mut run = 0;
            while end < bytes.len() && run < ZEROS {
                run = if bytes[end] == 0 { run + 1 } else { 0 };
                end += 1;
            }
            let end = if run == ZEROS { end - run } else { end };
            self.extra(&bytes[..end]);
            bytes = &bytes[end..];
        }
    }

    /// Bytes that resemble old ones.
    fn resembling(&mut self, old: &[u8], at: u64, new: &[u8]) {
        if old == new {
            self.copy(at, new.len() as u64);
            return;
        }
        self.residue.add(&mut old.to_vec(), &[], new);
        self.ops.push(Op::Diff { old: at, len: new.len() as u64 });
    }

    fn coded(self, start: u64) -> Result<Coded> {
        let ops = ops::encode(&self.ops, start);
        let mut head = Vec::new();
        put_stream(&mut head, &ops, &pack(&ops, &[], LEVEL)?);
        put_residue(&mut head, &self.residue.finish());
        Ok(Coded { head, literals: self.extra, frames: self.frames })
    }
}

/// A group but for the coding of its literals.
struct Coded {
    /// Operations and residue.
    head: Vec<u8>,
    literals: Vec<u8>,
    frames: Vec<u8>,
}

/// Bytes that literals refer back to.
#[derive(Default)]
struct History {
    windows: Vec<Window>,
    bytes: Vec<u8>,
}

impl Coded {
    /// The group as stored in a delta without histories, or in one with them.
    fn stored(&self, start: u64, history: Option<&History>, level: i32) -> Result<Vec<u8>> {
        let mut out = self.head.clone();
        if let Some(history) = history {
            put_windows(&mut out, &history.windows, start);
        }
        let prefix = history.map_or(&[][..], |history| &history.bytes);
        put_stream(&mut out, &self.literals, &pack(&self.literals, prefix, level)?);
        out.extend_from_slice(&self.frames);
        Ok(out)
    }
}

/// A group as stored.
pub struct Stored {
    /// In a delta without histories.
    pub plain: Vec<u8>,
    /// In one with them, if there may be one.
    pub history: Option<Vec<u8>>,
    /// Of the output.
    pub digest: ShortDigest,
}

impl Emitter<'_> {
    /// Group `number` as stored.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn group(&self, number: u64) -> Result<Stored> {
        let start = number * self.group_len;
        let all = if start < self.new_len { self.new_len } else { self.new.size() };
        let bytes = self.new.bytes(start, self.group_len.min(all - start))?;
        let digest = short_digest(&bytes);
        let group = self.described(start, &bytes)?;
        let long = ops::encode(&group.ops, start).len() as u64 > MAX_OPS;
        let described = if long { None } else { Some(group.coded(start)?) };
        let plain = described.as_ref().map(|coded| coded.stored(start, None, LEVEL)).transpose()?;
        let bad = plain.as_ref().is_none_or(|stored| stored.len() * 4 > bytes.len());
        let alone = if bad {
            let mut group = Group::default();
            group.literal(&bytes);
            Some(group.coded(start)?)
        } else {
            None
        };
        let candidates: Vec<&Coded> = described.iter().chain(&alone).collect();
        let history = self.with_history(start, &candidates, plain.as_deref())?;
        let alone = alone.map(|coded| coded.stored(start, None, LEVEL)).transpose()?;
        let plain = plain.into_iter().chain(alone).min_by_key(Vec::len).context("a group has no form")?;
        Ok(Stored { plain, history, digest })
    }

    /// The smallest of `candidates` with a history each; `plain` is the first without one.
    fn with_history(
        &self,
        start: u64,
        candidates: &[&Coded],
        plain: Option<&[u8]>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(histories) = self.histories else { return Ok(None) };
        let written = if start < self.new_len { start } else { 0 };
        let mut best: Option<(usize, &Coded, History)> = None;
        for coded in candidates {
            let windows = histories.windows(&coded.literals, written);
            let bytes = history::read(&windows, self.old, self.new)?;
            let history = History { windows, bytes };
            let len = match candidates {
                [_] => 0,
                _ => coded.stored(start, Some(&history), ESTIMATE)?.len(),
            };
            if best.as_ref().is_none_or(|(least, ..)| len < *least) {
                best = Some((len, coded, history));
            }
        }
        let Some((_, coded, history)) = best else { return Ok(None) };
        let stored = coded.stored(start, Some(&history), LEVEL)?;
        if plain.is_some_and(|plain| plain.len() < stored.len()) {
            // Packed anew without windows, it has one byte more.
            return candidates[0].stored(start, Some(&History::default()), LEVEL).map(Some);
        }
        Ok(Some(stored))
    }

    /// The operations for `bytes`, the group at `start`.
    fn described(&self, start: u64, bytes: &[u8]) -> Result<Group> {
        let end = start + bytes.len() as u64;
        let mut group = Group::default();
        let first = self.plan.pieces.partition_point(|piece| piece.at.offset + piece.at.len <= start);
        for piece in self.plan.pieces[first..].iter().take_while(|piece| piece.at.offset < end) {
            let from = piece.at.offset.max(start);
            let to = (piece.at.offset + piece.at.len).min(end);
            let part = &bytes[(from - start) as usize..(to - start) as usize];
            match piece.origin {
                Origin::Zero => group.zero(part.len()),
                Origin::Same(old) => group.copy(old + (from - piece.at.offset), to - from),
                Origin::Job(job) => self.part(&mut group, job, from, part)?,
                Origin::Deflated(number) => {
                    let (restart, skip) = self.plan.packed[number].restart(from);
                    group.ops.push(Op::Deflate { file: number as u64, restart, skip, len: to - from });
                }
            }
        }
        Ok(group)
    }

    /// `bytes` of the new image from `at` on, all of one job.
    fn part(&self, group: &mut Group, job: usize, at: u64, bytes: &[u8]) -> Result<()> {
        let (choice, object) = &self.choices[job];
        match &choice.method {
            Method::Literal => group.literal(bytes),
            Method::Prefix => self.prefix(group, &self.plan.jobs[job], at, bytes)?,
            Method::Copies(copies) => {
                let mut done = 0usize;
                for copy in pieces(copies, at, bytes.len() as u64) {
                    let (from, to) = ((copy.new - at) as usize, (copy.new + copy.len - at) as usize);
                    group.literal(&bytes[done..from]);
                    group.resembling(&self.old.bytes(copy.old, copy.len)?, copy.old, &bytes[from..to]);
                    done = to;
                }
                group.literal(&bytes[done..]);
            }
            Method::Object(map) => {
                self.object(group, (*object, map), at, bytes)?;
                let len = bytes.len() as u64;
                group.ops.push(Op::Object { object: *object, len });
            }
        }
        Ok(())
    }

    /// Parts of a file, each with old bytes as the prefix of its frame.
    fn prefix(&self, group: &mut Group, job: &Job, at: u64, bytes: &[u8]) -> Result<()> {
        let (Some(new), Some(old)) = (job.new.first(), job.old.first()) else {
            group.literal(bytes);
            return Ok(());
        };
        for (index, part) in bytes.chunks(PREFIX_OUTPUT as usize).enumerate() {
            let place = at - new.offset + index as u64 * PREFIX_OUTPUT;
            let (from, window) = prefix_window(place, part.len() as u64, new.len, old.len);
            let prefix = self.old.bytes(old.offset + from, window.min(MAX_PREFIX))?;
            let frame = pack(part, &prefix, LEVEL)?;
            let (packed, len) = (frame.len() as u64, part.len() as u64);
            group.ops.push(Op::Prefix { old: old.offset + from, window, packed, len });
            group.frames.extend(frame);
        }
        Ok(())
    }

    /// Residue and literals of a part of an object.
    fn object(&self, group: &mut Group, object: (u64, &Map), at: u64, bytes: &[u8]) -> Result<()> {
        let (number, map) = object;
        let slot = usize::from(map.kind == Kind::Erofs);
        let mut projector = match group.open[slot].take() {
            Some((open, projector)) if open == number => projector,
            Some(_) | None => {
                Projector::open(map, self.old, &View::new(self.old, &map.old)?, self.values.clone())?
            }
        };
        let start = at - map.new.offset;
        let mut done = 0usize;
        for copy in pieces(&map.copies, start, bytes.len() as u64) {
            let (from, to) = ((copy.new - start) as usize, (copy.new + copy.len - start) as usize);
            group.extra.extend_from_slice(&bytes[done..from]);
            let mut predicted = vec![0; to - from];
            projector.predict(map, self.old, copy, &mut predicted)?;
            group.residue.add(&mut predicted, projector.classes(), &bytes[from..to]);
            done = to;
        }
        group.extra.extend_from_slice(&bytes[done..]);
        group.open[slot] = Some((number, projector));
        Ok(())
    }
}
