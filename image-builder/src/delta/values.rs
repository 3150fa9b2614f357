//! Values that all kernel modules of an image share: numbers of types, offsets of names, checksums of symbols.
//!
//! Each module shows some of them in both images; where modules disagree, the majority counts. Knows modules only.

use super::align::align;
use super::label::{Labelled, pairs};
use super::parallel;
use super::plan::{Job, Plan};
use super::source::Image;
use anyhow::Result;
use formats::delta::btf::CHECKSUMS;
use formats::delta::elf::{Elf, Header, Params};
use formats::delta::map::Range;
use formats::delta::object::{Kind, Map};
use formats::delta::refs::Ref;
use formats::delta::view::{Extent, View};
use formats::delta::wire::le32;
use std::collections::{BTreeMap, HashMap};

/// Most ranges of the table.
const MAX_RANGES: usize = 1 << 16;
/// A range of the table costs about as much as this many wrong values.
const WORTH: u64 = 3;
/// Bytes of an entry of `__versions`.
const VERSION: usize = 64;

/// Old value and new value.
type Pair = (u64, u64);

fn section<'a>(elf: &'a Elf, name: &str) -> Option<&'a Header> {
    elf.headers().iter().find(|header| header.name == name && header.size > 0)
}

/// Numbers of types and offsets of names that meet in the two modules.
fn types(old: (&View, &mut Elf), new: (&View, &mut Elf), found: &mut Vec<Pair>) -> Result<()> {
    let part = |(view, elf): (&View, &mut Elf)| -> Result<Option<(Vec<u8>, Vec<Ref>)>> {
        let Some(header) = section(elf, ".BTF").cloned() else { return Ok(None) };
        let (from, to) = (header.offset, header.offset + header.size);
        let (bytes, mut refs) = (view.slice(from, to)?, Vec::new());
        elf.refs(view, from, to, &mut refs)?;
        refs.retain(|found| found.at + 4 <= from + bytes.len() as u64);
        refs.iter_mut().for_each(|found| found.at -= from);
        Ok(Some((bytes, refs)))
    };
    let (Some(old), Some(new)) = (part(old)?, part(new)?) else { return Ok(()) };
    let (old, new) = (Labelled { bytes: &old.0, refs: &old.1 }, Labelled { bytes: &new.0, refs: &new.1 });
    let copies = align(&old.masked(&|_| 0), &new.masked(&|_| 0));
    found.extend(pairs(&old, &new, &copies).into_iter().map(|(now, was)| (was, now)));
    Ok(())
}

/// Checksums of symbols that both modules import.
fn checksums(old: (&View, &Elf), new: (&View, &Elf), found: &mut Vec<Pair>) -> Result<()> {
    let entries = |(view, elf): (&View, &Elf)| -> Result<Vec<u8>> {
        let header = section(elf, "__versions");
        header.map_or(Ok(Vec::new()), |header| Ok(view.slice(header.offset, header.offset + header.size)?))
    };
    let (old, new) = (entries(old)?, entries(new)?);
    let known: HashMap<&[u8], u32> =
        old.chunks_exact(VERSION).filter_map(|entry| Some((&entry[8..], le32(entry, 0)?))).collect();
    for entry in new.chunks_exact(VERSION) {
        if let (Some(was), Some(now)) = (known.get(&entry[8..]), le32(entry, 0)) {
            found.push((CHECKSUMS + u64::from(*was), CHECKSUMS + u64::from(now)));
        }
    }
    Ok(())
}

/// What the modules of one job show, each pair once.
fn observe(job: &Job, old: &Image, new: &Image) -> Result<Vec<Pair>> {
    let mut found = Vec::new();
    if job.metadata || job.old.is_empty() {
        return Ok(found);
    }
    let views = (View::new(old, &job.old)?, View::new(new, &job.whole)?);
    let blank = Params::default();
    let (Some(mut was), Some(mut now)) = (Elf::open(&views.0, &blank)?, Elf::open(&views.1, &blank)?) else {
        return Ok(found);
    };
    if was.relocatable() && now.relocatable() {
        types((&views.0, &mut was), (&views.1, &mut now), &mut found)?;
        checksums((&views.0, &was), (&views.1, &now), &mut found)?;
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// For each old value the new one that most modules show, and how many do.
fn majority(mut seen: Vec<Pair>) -> BTreeMap<u64, (u64, u64)> {
    seen.sort_unstable();
    let mut winners: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for same in seen.chunk_by(|left, right| left == right) {
        let (was, now) = same[0];
        let entry = winners.entry(was).or_default();
        if same.len() as u64 > entry.1 {
            *entry = (now, same.len() as u64);
        }
    }
    winners
}

/// Neighbours that moved alike as one range, without those that cost more than they save.
fn ranges(winners: &BTreeMap<u64, (u64, u64)>) -> Vec<Range> {
    let join = |parts: &mut dyn Iterator<Item = (Range, u64)>| {
        let mut joined: Vec<(Range, u64)> = Vec::new();
        for (range, votes) in parts {
            match joined.last_mut() {
                Some((last, sum)) if last.delta == range.delta && last.start >> 60 == range.start >> 60 => {
                    last.end = range.end;
                    *sum += votes;
                }
                Some(_) | None => joined.push((range, votes)),
            }
        }
        joined
    };
    let single = |(was, (now, votes)): (&u64, &(u64, u64))| {
        (Range { start: *was, end: was + 1, delta: now.wrapping_sub(*was) }, *votes)
    };
    let all = join(&mut winners.iter().map(single));
    let worth = join(&mut all.into_iter().filter(|(_, votes)| *votes >= WORTH));
    worth.into_iter().map(|(range, _)| range).take(MAX_RANGES).collect()
}

/// The table for all modules of `plan`; `None` if there are no modules.
///
/// # Errors
/// If an image cannot be read.
pub fn table(plan: &Plan, old: &Image, new: &Image, threads: usize) -> Result<Option<Map>> {
    let seen = parallel::run(plan.jobs.len(), threads, |job| observe(&plan.jobs[job], old, new))?;
    let ranges = ranges(&majority(seen.concat()));
    let nothing = Extent { offset: 0, len: 0 };
    let map = Map {
        kind: Kind::Values,
        old: Vec::new(),
        new: nothing,
        segments: Vec::new(),
        ranges,
        copies: Vec::new(),
    };
    Ok(if map.ranges.is_empty() { None } else { Some(map) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majorities_become_ranges_and_strays_are_left_out() {
        let mut seen: Vec<Pair> = (100..200).map(|was| (was, was + 7)).collect();
        seen.extend([(150, 9), (150, 9), (150, 157), (150, 157), (120, 5)]);
        seen.extend((200..300).map(|was| (was, was + 8)));
        let found = ranges(&majority(seen));
        let expected = [Range { start: 100, end: 200, delta: 7 }, Range { start: 200, end: 300, delta: 8 }];
        assert_eq!(found, expected);
    }
}
