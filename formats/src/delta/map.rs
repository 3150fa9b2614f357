//! Where an old address went: a sorted list of old ranges, each with its displacement.
//!
//! Knows addresses only. Ranges may overlap (code copied twice); at each address the longest range wins, the earlier one
//! among equals, so that encoder and decoder agree. An address outside all ranges moves with the nearer one. Values that
//! many objects share (numbers of types, checksums) are addresses too, of a map that the objects share.

use std::collections::BinaryHeap;
use std::sync::Arc;

/// Old addresses `start..end` are at `start + delta` now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First old address.
    pub start: u64,
    /// First old address behind.
    pub end: u64,
    /// New address minus old address, wrapping.
    pub delta: u64,
}

/// Projects old addresses to new ones.
#[derive(Debug, Default)]
pub struct AddressMap {
    ranges: Vec<Range>,
    shared: Option<Arc<AddressMap>>,
}

impl AddressMap {
    /// Builds the map in O(n log n).
    #[must_use]
    pub fn new(mut ranges: Vec<Range>) -> Self {
        ranges.retain(|range| range.start < range.end);
        ranges.sort_by_key(|range| range.start);
        let mut flat: Vec<Range> = Vec::with_capacity(ranges.len());
        // Ranges that have started, longest first; ended ones are dropped when they surface.
        let mut active: BinaryHeap<(u64, std::cmp::Reverse<usize>)> = BinaryHeap::new();
        let (mut next, mut at) = (0, 0u64);
        loop {
            while let Some((_, index)) = active.peek() {
                if ranges[index.0].end > at {
                    break;
                }
                active.pop();
            }
            if active.is_empty() {
                let Some(range) = ranges.get(next) else { break };
                at = at.max(range.start);
            }
            while let Some(range) = ranges.get(next).filter(|range| range.start <= at) {
                active.push((range.end - range.start, std::cmp::Reverse(next)));
                next += 1;
            }
            let Some((_, index)) = active.peek() else { continue };
            let best = ranges[index.0];
            let end = ranges.get(next).map_or(best.end, |range| range.start.min(best.end));
            if end > at {
                append(&mut flat, Range { start: at, end, delta: best.delta });
                at = end;
            }
        }
        flat.shrink_to_fit();
        Self { ranges: flat, shared: None }
    }

    /// The same map, with another for values that objects share.
    #[must_use]
    pub fn with_shared(self, shared: Option<Arc<AddressMap>>) -> Self {
        Self { shared, ..self }
    }

    /// The new value of a shared `value`; without a map for such values it stays.
    #[must_use]
    pub fn value(&self, value: u64) -> u64 {
        self.shared.as_ref().map_or(value, |shared| shared.map(value))
    }

    /// The new address of `address`.
    #[must_use]
    pub fn map(&self, address: u64) -> u64 {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let before = after.checked_sub(1).and_then(|index| self.ranges.get(index));
        let delta = match (before, self.ranges.get(after)) {
            (None, None) => 0,
            (Some(range), None) | (None, Some(range)) => range.delta,
            (Some(left), Some(right)) => {
                let nearer_left = address < left.end || address - left.end < right.start - address;
                if nearer_left { left.delta } else { right.delta }
            }
        };
        address.wrapping_add(delta)
    }
}

fn append(flat: &mut Vec<Range>, range: Range) {
    match flat.last_mut() {
        Some(last) if last.end == range.start && last.delta == range.delta => last.end = range.end,
        Some(_) | None => flat.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, without any index.
    fn slow(ranges: &[Range], address: u64) -> Option<u64> {
        let mut sorted: Vec<Range> = ranges.iter().copied().filter(|range| range.start < range.end).collect();
        sorted.sort_by_key(|range| range.start);
        let mut best: Option<Range> = None;
        for range in sorted.into_iter().filter(|range| range.start <= address && address < range.end) {
            if best.is_none_or(|other| range.end - range.start > other.end - other.start) {
                best = Some(range);
            }
        }
        best.map(|range| address.wrapping_add(range.delta))
    }

    proptest! {
        #[test]
        fn longest_range_wins(parts in prop::collection::vec((0u64..200, 0u64..60, 0u64..1000), 0..30)) {
            let ranges: Vec<Range> =
                parts.iter().map(|(start, len, delta)| Range { start: *start, end: start + len, delta: *delta }).collect();
            let map = AddressMap::new(ranges.clone());
            for address in 0..300 {
                if let Some(expected) = slow(&ranges, address) {
                    prop_assert_eq!(map.map(address), expected, "address {}", address);
                }
            }
        }
    }

    #[test]
    fn gaps_move_with_the_nearer_side() {
        let map = AddressMap::new(vec![
            Range { start: 100, end: 110, delta: 5 },
            Range { start: 120, end: 130, delta: 50 },
        ]);
        assert_eq!([map.map(0), map.map(113), map.map(116), map.map(500)], [5, 118, 166, 550]);
        assert_eq!(AddressMap::default().map(7), 7, "without copies nothing moves");
    }
}
