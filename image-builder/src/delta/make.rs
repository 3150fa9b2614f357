//! Makes a delta: plan, choose, write groups, put the container together, and prove it by applying it.

use super::choose::{Choice, Method, Values, choose};
use super::emit::{Emitter, Stored};
use super::history::Histories;
use super::pack::{LEVEL, pack};
use super::parallel;
use super::plan::{Plan, plan};
use super::source::Image;
use super::values;
use crate::progress::Progress;
use anyhow::{Context, Result, ensure};
use formats::delta::apply::Decoder;
use formats::delta::container::{Digest, Parts, ShortDigest, build, put_bundle};
use formats::delta::map::AddressMap;
use formats::delta::object::Map;
use formats::delta::{MAX_OBJECTS, ReadAt, Sink};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// log2 of the output bytes of a group.
const GROUP_BITS: u8 = 22;
/// Maps are packed together until they have this many bytes.
const BUNDLE: usize = 256 << 10;

/// Histories are used if they save one part in this many: agents that do not know them pass such a delta over.
const HISTORY_WORTH: usize = 50;

/// A delta, and what it consists of.
pub struct Made {
    /// The container's bytes.
    pub bytes: Vec<u8>,
    /// Literals refer back to the new image, which devices write in order.
    pub history: bool,
    /// Per method: files and their bytes.
    pub methods: BTreeMap<&'static str, (u64, u64)>,
}

fn name(method: &Method) -> &'static str {
    match method {
        Method::Literal => "literal",
        Method::Prefix => "prefix",
        Method::Copies(_) => "copies",
        Method::Object(_) => "projected",
    }
}

/// Numbers the objects from `first` on; those past the limit become literals, which cannot happen with fewer than 64 Ki
/// programs.
fn number(choices: Vec<Choice>, first: u64) -> Vec<(Choice, u64)> {
    let mut next = first;
    let mut numbered = Vec::with_capacity(choices.len());
    for mut choice in choices {
        let own = next;
        if matches!(choice.method, Method::Object(_)) {
            if next == MAX_OBJECTS {
                choice.method = Method::Literal;
            } else {
                next += 1;
            }
        }
        numbered.push((choice, own));
    }
    numbered
}

/// Bundles of maps as stored, with their numbers of objects; the table of values is an object too.
fn bundles(table: Option<&Map>, choices: &[(Choice, u64)]) -> Result<Vec<(Vec<u8>, u64)>> {
    let maps = choices.iter().filter_map(|(choice, _)| match &choice.method {
        Method::Object(map) => Some(map.as_ref()),
        Method::Literal | Method::Prefix | Method::Copies(_) => None,
    });
    let (mut out, mut open, mut len) = (Vec::new(), Vec::new(), 0);
    for map in table.into_iter().chain(maps) {
        let bytes = map.encode();
        if len + bytes.len() > BUNDLE && !open.is_empty() {
            out.push((put_bundle(&open, |plain| pack(plain, &[], LEVEL))?, open.len() as u64));
            (open, len) = (Vec::new(), 0);
        }
        len += bytes.len();
        open.push(bytes);
    }
    if !open.is_empty() {
        out.push((put_bundle(&open, |plain| pack(plain, &[], LEVEL))?, open.len() as u64));
    }
    Ok(out)
}

/// Makes the delta from `old` to `new` with `threads` threads. The same images give the same bytes.
///
/// # Errors
/// If an image cannot be read, or the result does not give `new` back.
pub fn make(old: &Image, new: &Image, threads: usize, progress: &Progress) -> Result<Made> {
    let images = [old, new];
    let busy = progress.busy("compare images");
    let digests = parallel::run(2, threads, |side| images[side].digest(0, images[side].size()))?;
    let group_len = 1u64 << GROUP_BITS;
    let plan = plan(old, new, group_len, threads)?;
    let (new_len, new) = (new.size(), &plan.new);
    let table = values::table(&plan, old, new, threads)?;
    let values: Values = table.as_ref().map(|map| Arc::new(AddressMap::new(map.ranges.clone())));
    drop(busy);
    let bar = progress.items("encode changed files", plan.jobs.len() as u64);
    let choices = parallel::run(plan.jobs.len(), threads, |job| {
        let choice = choose(&plan, &plan.jobs[job], (old, new), &values);
        bar.add(1);
        choice
    })?;
    drop(bar);
    let methods = tally(&plan, &choices);
    let choices = number(choices, u64::from(table.is_some()));
    let histories = if plan.erofs { Some(Histories::new(old, &plan, new_len, threads)?) } else { None };
    let histories = histories.as_ref();
    let emitter =
        Emitter { old, new, new_len, plan: &plan, choices: &choices, values: &values, group_len, histories };
    let count = usize::try_from(new.size().div_ceil(group_len))?;
    let bar = progress.items("write groups", count as u64);
    let groups = parallel::run(count, threads, |group| {
        let stored = emitter.group(group as u64);
        bar.add(1);
        stored
    })?;
    drop(bar);
    let (groups, history) = with_histories(groups);
    let digests = [digests[0], digests[1]];
    let texts: Vec<_> = plan.packed.iter().map(|packed| packed.text).collect();
    let bundles = bundles(table.as_ref(), &choices)?;
    let parts = Parts { texts: &texts, bundles: &bundles, history, groups: &groups };
    let bytes = build(GROUP_BITS, (old.size(), new_len), &digests, &parts)?;
    let busy = progress.busy("apply the delta once");
    check((old, &plan.new), &bytes, &digests[1]).context("prove the delta by applying it")?;
    drop(busy);
    Ok(Made { bytes, history, methods })
}

fn tally(plan: &Plan, choices: &[Choice]) -> BTreeMap<&'static str, (u64, u64)> {
    let mut methods: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for (job, choice) in plan.jobs.iter().zip(choices) {
        let entry = methods.entry(name(&choice.method)).or_default();
        entry.0 += 1;
        entry.1 += job.new.iter().map(|extent| extent.len).sum::<u64>();
    }
    methods
}

/// The groups with histories, or without if those save little.
fn with_histories(groups: Vec<Stored>) -> (Vec<(Vec<u8>, ShortDigest)>, bool) {
    let plain: usize = groups.iter().map(|group| group.plain.len()).sum();
    let with: Option<usize> = groups.iter().map(|group| group.history.as_ref().map(Vec::len)).sum();
    let used = with.is_some_and(|with| plain.saturating_sub(with) * HISTORY_WORTH > plain);
    let choose = |group: Stored| {
        let stored = group.history.filter(|_| used).unwrap_or(group.plain);
        (stored, group.digest)
    };
    (groups.into_iter().map(choose).collect(), used)
}

/// Output that is only hashed; groups come in order. What passed its digest is the new image, which is read instead.
struct Hash<'n> {
    hash: Sha256,
    new: &'n Image,
}

impl ReadAt for Hash<'_> {
    fn size(&self) -> u64 {
        self.new.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.new.read_at(offset, buf)
    }
}

impl Sink for Hash<'_> {
    fn write_at(&mut self, _offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        Ok(())
    }
}

fn check((old, new): (&Image, &Image), delta: &dyn ReadAt, expected: &Digest) -> Result<()> {
    let mut sink = Hash { hash: Sha256::new(), new };
    Decoder::open(old, delta)?.run(&mut |_| true, &mut sink)?;
    let found: Digest = sink.hash.finalize().into();
    ensure!(
        found == *expected,
        "the result differs from the new image: this is a fault of farhold, report it"
    );
    Ok(())
}
