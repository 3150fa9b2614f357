//! Alignment of files whose pointers moved: bytes of pointers are replaced by labels before they are aligned.
//!
//! First all pointers look alike; where they then meet, an old target and a new one vote for each other, and in the second
//! pass a pointer shows the label of what it leads to. Knows pointers, not file formats.

use super::align::align;
use formats::delta::a64;
use formats::delta::map::AddressMap;
use formats::delta::object::Copy;
use formats::delta::refs::{Ref, RefKind};
use std::collections::HashMap;

/// A file with its pointers.
pub struct Labelled<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// Pointers in the order of their offsets, without overlaps.
    pub refs: &'a [Ref],
}

/// Spreads an address over 64 bits (the finalizer of SplitMix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value ^ value >> 32
}

impl Labelled<'_> {
    /// The bytes with each pointer's operand replaced by `label(target)`.
    #[must_use]
    pub fn masked(&self, label: &dyn Fn(u64) -> u64) -> Vec<u8> {
        let mut out = self.bytes.to_vec();
        for found in self.refs {
            let from = found.at as usize;
            let place = &mut out[from..from + found.width()];
            let label = label(found.target);
            match found.kind {
                RefKind::Rel32
                | RefKind::Abs64
                | RefKind::Off32
                | RefKind::Block32
                | RefKind::Nid64
                | RefKind::Off64
                | RefKind::Symbol32
                | RefKind::Value32 => {
                    place.copy_from_slice(&label.to_le_bytes()[..found.width()]);
                }
                RefKind::Branch26 | RefKind::Branch19 | RefKind::Branch14 => code(found, place, label),
                RefKind::Adr | RefKind::Adrp | RefKind::Low12 => code(found, place, label),
            }
        }
        out
    }
}

/// Replaces the operand of an AArch64 instruction and leaves its opcode.
fn code(found: &Ref, place: &mut [u8], label: u64) {
    if let Some(word) = place.first_chunk_mut::<4>() {
        a64::write(found, word, 0, label);
    }
}

/// Pointers that meet in `copies`: new target and old target.
#[must_use]
pub fn pairs(old: &Labelled, new: &Labelled, copies: &[Copy]) -> Vec<(u64, u64)> {
    let mut pairs: Vec<(u64, u64)> = Vec::new();
    for copy in copies {
        let mut left = old.refs.partition_point(|found| found.at < copy.old);
        let mut right = new.refs.partition_point(|found| found.at < copy.new);
        while let (Some(from), Some(to)) = (old.refs.get(left), new.refs.get(right)) {
            let (a, b) = (from.at - copy.old, to.at - copy.new);
            if a >= copy.len || b >= copy.len {
                break;
            }
            if a == b && from.kind == to.kind {
                pairs.push((to.target, from.target));
            }
            left += usize::from(a <= b);
            right += usize::from(b <= a);
        }
    }
    pairs
}

/// For each new target that meets old ones: the old target that most of its pointers meet, if it is the majority.
fn votes(mut pairs: Vec<(u64, u64)>) -> HashMap<u64, u64> {
    pairs.sort_unstable();
    let mut winners = HashMap::new();
    for ballots in pairs.chunk_by(|left, right| left.0 == right.0) {
        let most = ballots.chunk_by(|left, right| left == right).max_by_key(|same| same.len());
        if let Some(same) = most.filter(|same| same.len() * 2 > ballots.len()) {
            winners.insert(same[0].0, same[0].1);
        }
    }
    winners
}

/// Copies that explain `new` by `old`; `addresses` gives the map that follows from given copies.
#[must_use]
pub fn align_labelled(
    old: &Labelled,
    new: &Labelled,
    addresses: &dyn Fn(&[Copy]) -> AddressMap,
) -> Vec<Copy> {
    let first = align(&old.masked(&|_| 0), &new.masked(&|_| 0));
    let winners = votes(pairs(old, new, &first));
    let map = addresses(&first);
    let mut inverse: HashMap<u64, u64> = HashMap::new();
    for found in old.refs {
        let shared = found.kind == RefKind::Value32;
        let now = if shared { map.value(found.target) } else { map.map(found.target) };
        inverse.entry(now).or_insert(found.target);
    }
    let of_new = |target: u64| {
        let old_target = winners.get(&target).or_else(|| inverse.get(&target));
        mix(old_target.copied().unwrap_or(target ^ 0x5555_0000_0000))
    };
    align(&old.masked(&mix), &new.masked(&of_new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::delta::map::Range;

    /// Code-like bytes: every 16 bytes a pointer to one of 64 places, which all moved by 8.
    fn file(moved: u64) -> (Vec<u8>, Vec<Ref>) {
        let (mut bytes, mut refs) = (Vec::new(), Vec::new());
        for index in 0..2000u64 {
            let target = 0x1000 + mix(index) % 64 * 32 + moved;
            refs.push(Ref { at: bytes.len() as u64, kind: RefKind::Abs64, shift: 0, base: 0, target });
            bytes.extend(target.to_le_bytes());
            bytes.extend((mix(index / 7) as u32).to_le_bytes());
            bytes.extend([0x90; 4]);
        }
        (bytes, refs)
    }

    #[test]
    fn moved_pointers_do_not_hide_an_equal_file() {
        let ((old, old_refs), (new, new_refs)) = (file(0), file(8));
        let copies = align_labelled(
            &Labelled { bytes: &old, refs: &old_refs },
            &Labelled { bytes: &new, refs: &new_refs },
            &|_| AddressMap::new(vec![Range { start: 0x1000, end: 0x2000, delta: 8 }]),
        );
        assert_eq!(copies, [Copy { new: 0, old: 0, len: old.len() as u64 }]);
    }
}
