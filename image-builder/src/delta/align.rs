//! Which parts of new bytes resemble which parts of old ones (C. Percival, "Naive differences of executable code", 2003).
//!
//! Knows bytes only. Copies are found through a suffix array of the old bytes and grown over sparse differences; they do
//! not overlap in the new bytes and come in their order.

use formats::delta::object::Copy;

/// A match must explain this many bytes more than the last displacement does.
const WORTH: usize = 8;
/// Shorter matches are not looked for: they cannot be worth it.
const SHORT_GRAM: usize = WORTH + 1;
/// The same for old files of at least [`BIG`] bytes, where shorter matches are mostly chance: measured on PostgreSQL 15 and
/// 17, OpenSSL 3.0 and 3.5, it gives smaller results than 9, 12 and 24 bytes do.
const LONG_GRAM: usize = 16;
const BIG: usize = 1 << 20;

/// A match found in the suffix array: length and old offset.
#[derive(Clone, Copy, Default)]
struct Match {
    len: usize,
    old: usize,
}

fn common(a: &[u8], b: &[u8]) -> usize {
    let mut at = 0;
    for (left, right) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        let differ = u64::from_le_bytes(*left) ^ u64::from_le_bytes(*right);
        if differ != 0 {
            return at + (differ.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + a[at..].iter().zip(&b[at..]).take_while(|(left, right)| left == right).count()
}

/// Longest prefix of `new` in `old`, by binary search that skips what both bounds share with `new`.
fn search(suffixes: &[i32], old: &[u8], new: &[u8]) -> Match {
    let suffix = |index: usize| &old[suffixes[index] as usize..];
    let (mut low, mut high) = (0, suffixes.len() - 1);
    let (mut low_len, mut high_len) = (common(suffix(low), new), common(suffix(high), new));
    while high - low >= 2 {
        let middle = low + (high - low) / 2;
        let skip = low_len.min(high_len);
        let text = suffix(middle);
        let len = skip + common(&text[skip..], &new[skip..]);
        let less = len < new.len() && (len == text.len() || text[len] < new[len]);
        if less {
            (low, low_len) = (middle, len);
        } else {
            (high, high_len) = (middle, len);
        }
    }
    let best = if low_len > high_len { (low_len, low) } else { (high_len, high) };
    Match { len: best.0, old: suffixes[best.1] as usize }
}

/// Which sequences of `len` bytes the old bytes have: a bit each, by hash. May say yes wrongly, never no.
struct Grams {
    len: usize,
    shift: u32,
    bits: Vec<u64>,
}

impl Grams {
    fn new(old: &[u8], len: usize) -> Self {
        let size = (old.len() * 8).next_power_of_two().max(64);
        let mut grams = Self { len, shift: 64 - size.ilog2(), bits: vec![0; size / 64] };
        for gram in old.windows(len) {
            let (word, bit) = grams.place(gram);
            grams.bits[word] |= bit;
        }
        grams
    }

    /// Word and bit of a gram of 8 to 16 bytes.
    fn place(&self, gram: &[u8]) -> (usize, u64) {
        let half = |bytes: Option<&[u8; 8]>| u64::from_le_bytes(bytes.copied().unwrap_or_default());
        let (head, tail) = (half(gram.first_chunk()), half(gram.last_chunk()));
        let mixed = (head ^ tail.rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let place = mixed >> self.shift;
        ((place / 64) as usize, 1 << (place % 64))
    }

    fn may_have(&self, new: &[u8]) -> bool {
        new.get(..self.len).is_some_and(|gram| {
            let (word, bit) = self.place(gram);
            self.bits[word] & bit != 0
        })
    }
}

/// The walk over the new bytes; offsets are signed because the candidate displacement may lead outside.
struct Walk<'a> {
    old: &'a [u8],
    new: &'a [u8],
    last_new: usize,
    last_old: usize,
    copies: Vec<Copy>,
}

impl Walk<'_> {
    /// How far the last match grows forward, up to `scan`, while at least half of the bytes agree.
    fn forward(&self, scan: usize) -> usize {
        let (mut score, mut best, mut len) = (0i64, 0i64, 0usize);
        let pairs = self.old[self.last_old..].iter().zip(&self.new[self.last_new..scan]);
        for (index, (left, right)) in pairs.enumerate() {
            score += i64::from(left == right);
            let value = score * 2 - (index as i64 + 1);
            if value > best {
                (best, len) = (value, index + 1);
            }
        }
        len
    }

    /// How far the match at `scan` grows backward, down to the last one.
    fn backward(&self, scan: usize, old: usize) -> usize {
        let (mut score, mut best, mut len) = (0i64, 0i64, 0usize);
        let limit = (scan - self.last_new).min(old);
        for index in 1..=limit {
            score += i64::from(self.old[old - index] == self.new[scan - index]);
            let value = score * 2 - index as i64;
            if value > best {
                (best, len) = (value, index);
            }
        }
        len
    }

    /// Where in an overlap of `overlap` bytes the earlier match should end.
    fn split(&self, forward: usize, scan: usize, back: (usize, usize)) -> usize {
        let overlap = self.last_new + forward - (scan - back.0);
        let (mut score, mut best, mut len) = (0i64, 0i64, 0usize);
        for index in 0..overlap {
            let ahead = forward - overlap + index;
            score += i64::from(self.new[self.last_new + ahead] == self.old[self.last_old + ahead]);
            let (new, old) = (scan - back.0 + index, back.1 - back.0 + index);
            score -= i64::from(self.new[new] == self.old[old]);
            if score > best {
                (best, len) = (score, index + 1);
            }
        }
        len
    }

    /// Ends the last match where the one at `scan` (old offset `old`) begins.
    fn turn(&mut self, scan: usize, old: usize) {
        let mut forward = self.forward(scan);
        let mut back = if scan < self.new.len() { self.backward(scan, old) } else { 0 };
        if self.last_new + forward > scan - back {
            let overlap = self.last_new + forward - (scan - back);
            let split = self.split(forward, scan, (back, old));
            forward = forward + split - overlap;
            back -= split;
        }
        if forward > 0 {
            self.copies.push(Copy {
                new: self.last_new as u64,
                old: self.last_old as u64,
                len: forward as u64,
            });
        }
        (self.last_new, self.last_old) = (scan - back, old - back);
    }
}

/// Copies that explain `new` by `old`.
#[must_use]
pub fn align(old: &[u8], new: &[u8]) -> Vec<Copy> {
    if old.is_empty() || new.is_empty() {
        return Vec::new();
    }
    let (_, suffixes) = divsufsort::sort(old).into_parts();
    let grams = Grams::new(old, if old.len() < BIG { SHORT_GRAM } else { LONG_GRAM });
    let mut walk = Walk { old, new, last_new: 0, last_old: 0, copies: Vec::new() };
    let (mut scan, mut displacement) = (0usize, 0isize);
    let mut found = Match::default();
    let agrees = |displacement: isize, at: usize| {
        at.checked_add_signed(displacement).and_then(|from| old.get(from)) == Some(&new[at])
    };
    while scan < new.len() {
        scan += found.len;
        // Bytes from `scan` to `counted` that the last displacement explains as well.
        let (mut score, mut counted) = (0usize, scan);
        while scan < new.len() {
            found = if grams.may_have(&new[scan..]) {
                search(&suffixes, old, &new[scan..])
            } else {
                Match::default()
            };
            while counted < scan + found.len {
                score += usize::from(agrees(displacement, counted));
                counted += 1;
            }
            if (found.len == score && found.len != 0) || found.len > score + WORTH {
                break;
            }
            score -= usize::from(counted > scan && agrees(displacement, scan));
            scan += 1;
            counted = counted.max(scan);
        }
        if found.len != score || scan >= new.len() {
            walk.turn(scan.min(new.len()), found.old);
            displacement = found.old as isize - scan as isize;
        }
    }
    walk.copies
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// New bytes rebuilt from copies, residue and literals.
    fn rebuild(old: &[u8], new: &[u8], copies: &[Copy]) -> usize {
        let (mut end, mut equal) = (0, 0);
        for copy in copies {
            assert!(copy.new >= end && copy.len > 0, "{copies:?}");
            end = copy.new + copy.len;
            let (from, to) = (&old[copy.old as usize..], &new[copy.new as usize..end as usize]);
            assert!(from.len() >= to.len(), "{copies:?}");
            equal += to.iter().zip(from).filter(|(left, right)| left == right).count();
        }
        equal
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn an_insertion_and_sparse_changes_cost_little() {
        let old = noise(1, 20_000);
        let mut new = old.clone();
        for at in (0..new.len()).step_by(97) {
            new[at] ^= 0x55;
        }
        new.splice(7000..7000, noise(2, 300));
        let copies = align(&old, &new);
        assert!(rebuild(&old, &new, &copies) > 19_700, "{copies:?}");
        assert!(copies.len() < 6, "{copies:?}");
    }

    proptest! {
        #[test]
        fn copies_lie_inside_and_in_order(old in prop::collection::vec(0u8..4, 0..300), new in prop::collection::vec(0u8..4, 0..300)) {
            rebuild(&old, &new, &align(&old, &new));
        }
    }
}
