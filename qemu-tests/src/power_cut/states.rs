//! All states that a power cut can leave of the writes between two flushes.
//!
//! A disk that honours flush keeps, of what was written since, any part in any order; of a sector the whole or nothing.
//! So each sector stands as it was, or as any of the writes of this epoch left it, whatever the other sectors do: that
//! covers writes lost, kept, torn at 512 bytes and reordered. Small epochs are gone through exhaustively. Of large ones:
//! every prefix, every request torn at every sector, every one and two requests lost or kept alone, every combination
//! of what describes files, and a seeded sample of the rest.

use crate::power_cut::volume::{Change, Content, FILE_DATA, Patch, Volume};
use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Most states of an epoch that is gone through exhaustively.
pub const EXHAUSTIVE: u64 = 1 << 13;
/// Most places at which one request is torn.
const TEARS: usize = 16;
/// Most requests of which all pairs are tried.
const PAIRS: usize = 48;
/// States of a large epoch that are drawn.
const DRAWN: u64 = 6000;

/// What was written between two flushes: requests in order, each a list of sectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epoch {
    /// Requests.
    pub requests: Vec<Patch>,
}

/// Whether an epoch was gone through exhaustively.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cover {
    /// Every state was visited.
    Whole,
    /// A part was.
    Sample,
}

/// Visits the states of an epoch that begins with `base`, each once, as differences from `base`.
pub fn visit(epoch: &Epoch, base: &Volume, seed: u64, each: &mut dyn FnMut(&[Change])) -> Cover {
    let mut visitor = Visitor { epoch, base, seen: HashSet::new(), each };
    let choices = choices(epoch, base, |_| true);
    if count(&choices) <= EXHAUSTIVE {
        visitor.combine(&choices, &[]);
        return Cover::Whole;
    }
    visitor.ordered();
    visitor.described();
    visitor.drawn(seed);
    Cover::Sample
}

/// For each sector what may stand on it besides what stands there already.
type Choices = Vec<(u32, Vec<Content>)>;

fn choices(epoch: &Epoch, base: &Volume, wanted: impl Fn(Content) -> bool) -> Choices {
    let mut all: BTreeMap<u32, Vec<Content>> = BTreeMap::new();
    for (sector, content) in epoch.requests.iter().flatten().filter(|(_, content)| wanted(*content)) {
        let versions = all.entry(*sector).or_default();
        if base.at(*sector) != *content && !versions.contains(content) {
            versions.push(*content);
        }
    }
    all.into_iter().filter(|(_, versions)| !versions.is_empty()).collect()
}

fn count(choices: &Choices) -> u64 {
    choices.iter().fold(1, |product: u64, (_, versions)| product.saturating_mul(versions.len() as u64 + 1))
}

struct Visitor<'e> {
    epoch: &'e Epoch,
    base: &'e Volume,
    seen: HashSet<u64>,
    each: &'e mut dyn FnMut(&[Change]),
}

impl Visitor<'_> {
    /// Visits the state in which these sectors were written in this order.
    fn state(&mut self, written: impl IntoIterator<Item = (u32, Content)>) {
        let last: BTreeMap<u32, Content> = written.into_iter().collect();
        let changed: Patch = last.into_iter().filter(|(at, content)| self.base.at(*at) != *content).collect();
        let mut hasher = DefaultHasher::new();
        changed.hash(&mut hasher);
        if self.seen.insert(hasher.finish()) {
            (self.each)(&changed);
        }
    }

    /// Every combination of choices, after what is written in any case.
    fn combine(&mut self, choices: &Choices, always: &[Change]) {
        for number in 0..count(choices) {
            let mut rest = number;
            let mut written = always.to_vec();
            for (sector, versions) in choices {
                let options = versions.len() as u64 + 1;
                if let Some(content) = (rest % options).checked_sub(1).and_then(|n| versions.get(n as usize))
                {
                    written.push((*sector, *content));
                }
                rest /= options;
            }
            self.state(written);
        }
    }

    /// The states of a disk that keeps order, torn ones, and those in which one or two requests stand out.
    fn ordered(&mut self) {
        let requests = &self.epoch.requests;
        let kept = |keep: &dyn Fn(usize) -> bool| -> Patch {
            let chosen = requests.iter().enumerate().filter(|(n, _)| keep(*n));
            chosen.flat_map(|(_, request)| request.iter().copied()).collect()
        };
        for n in 0..=requests.len() {
            self.state(kept(&|m| m < n));
            let Some(request) = requests.get(n) else { continue };
            let places = request.len().min(TEARS);
            for cut in (1..places).map(|place| place * request.len() / places) {
                let (front, back) = request.split_at(cut);
                for part in [front, back] {
                    self.state(kept(&|m| m < n).into_iter().chain(part.iter().copied()));
                    self.state(kept(&|m| m != n).into_iter().chain(part.iter().copied()));
                }
            }
            self.state(kept(&|m| m == n));
            self.state(kept(&|m| m != n));
        }
        if requests.len() <= PAIRS {
            for (a, b) in (0..requests.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                self.state(kept(&|m| m == a || m == b));
                self.state(kept(&|m| m != a && m != b));
            }
        }
    }

    /// Every combination of the sectors that describe files, with all parts of files lost and with all kept.
    fn described(&mut self) {
        let all: Patch = self.epoch.requests.iter().flatten().copied().collect();
        let data: Patch = all.into_iter().filter(|(_, content)| *content >= FILE_DATA).collect();
        let choices = choices(self.epoch, self.base, |content| content < FILE_DATA);
        if count(&choices) <= EXHAUSTIVE {
            self.combine(&choices, &[]);
            self.combine(&choices, &data);
        }
    }

    /// Requests lost with three densities, and every third one of those kept torn in two.
    fn drawn(&mut self, seed: u64) {
        let mut random = Random(seed);
        for n in 0..DRAWN {
            let lost_in_8 = [1, 4, 7][(n % 3) as usize];
            let mut written = Patch::new();
            for request in &self.epoch.requests {
                if random.below(8) < lost_in_8 {
                    continue;
                }
                let cut = random.below(request.len() as u64 + 1) as usize;
                match random.below(6) {
                    0 => written.extend_from_slice(&request[..cut]),
                    1 => written.extend_from_slice(&request[cut..]),
                    _ => written.extend_from_slice(request),
                }
            }
            self.state(written);
        }
    }
}

/// Numbers that are the same in every run (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number below a bound, which must not be 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(epoch: &Epoch, base: &Volume) -> (Vec<Patch>, Cover) {
        let mut states = Vec::new();
        let cover = visit(epoch, base, 1, &mut |state| states.push(state.to_vec()));
        (states, cover)
    }

    #[test]
    fn small_epochs_are_gone_through_exhaustively_and_each_state_once() {
        let base = Volume::new(8);
        let epoch = Epoch { requests: vec![vec![(1, 5), (2, 6)], vec![(1, 7)], vec![(3, 0)]] };
        let (mut states, cover) = all(&epoch, &base);
        states.sort();
        let wanted: Vec<Patch> = vec![
            vec![],
            vec![(1, 5)],
            vec![(1, 5), (2, 6)],
            vec![(1, 7)],
            vec![(1, 7), (2, 6)],
            vec![(2, 6)],
        ];
        assert_eq!((states, cover), (wanted, Cover::Whole));
    }

    #[test]
    fn a_sector_written_back_to_what_it_was_may_stand_at_any_of_its_versions() {
        let base = Volume::new(8);
        let epoch = Epoch { requests: vec![vec![(1, 5)], vec![(1, 0)]] };
        assert_eq!(all(&epoch, &base).0.len(), 2);
    }

    #[test]
    fn large_epochs_keep_the_order_the_tears_and_all_that_describes_files() {
        let base = Volume::new(4000);
        let data = |at: u32| (at, FILE_DATA + at);
        let file: Patch = (100..1100).map(data).collect();
        let epoch = Epoch { requests: vec![vec![(1, 1)], file.clone(), vec![(2, 2)], vec![(3, 3)]] };
        let (states, cover) = all(&epoch, &base);
        assert_eq!(cover, Cover::Sample);
        let has = |wanted: &[&[Change]]| states.contains(&wanted.concat());
        assert!(has(&[]) && has(&[&[(1, 1)]]) && has(&[&[(1, 1)], &file[..500]]));
        assert!(has(&[&[(1, 1), (2, 2), (3, 3)], &file]) && has(&[&[(2, 2)]]), "all and one alone");
        assert!(has(&[&[(1, 1), (3, 3)], &file]) && has(&[&[(1, 1), (3, 3)]]), "described");
        let distinct: HashSet<&Patch> = states.iter().collect();
        assert_eq!(distinct.len(), states.len());
        assert_eq!(all(&epoch, &base).0, states, "the sample is the same in every run");
    }
}
