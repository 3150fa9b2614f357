//! Huffman codes of a deflate block as zlib and gzip build them (RFC 1951 leaves the choice to the compressor): which of
//! several optimal codes it is depends on how ties are broken, so the heap here breaks them in the same way.
//!
//! Knows frequencies and lengths, no text.

use super::bits::Bits;

/// Literals, end of block and lengths.
pub const LITERALS: usize = 286;
/// Distances.
pub const DISTANCES: usize = 30;
/// Lengths of codes.
const LENGTHS: usize = 19;
/// The symbol that ends a block.
pub const END: usize = 256;
/// Lengths of codes are sent in this order, so that the rare ones can be left out.
const ORDER: [usize; LENGTHS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// Extra bits of length symbol 257 + `index`.
#[must_use]
pub fn length_bits(index: usize) -> u32 {
    if index < 8 || index == 28 { 0 } else { (index as u32 - 4) / 4 }
}

/// Extra bits of distance symbol `index`.
#[must_use]
pub fn distance_bits(index: usize) -> u32 {
    (index as u32 / 2).saturating_sub(1)
}

/// A code: a length in bits per symbol.
pub struct Code {
    lengths: Vec<u8>,
    /// Highest symbol that has a code.
    last: usize,
    /// Bits of the block's symbols, extra bits left out.
    cost: u64,
}

/// A node of the tree under construction: symbols first, then what joins two of them.
#[derive(Clone, Copy, Default)]
struct Node {
    count: u32,
    depth: u32,
    parent: usize,
    bits: u8,
}

struct Heap {
    nodes: Vec<Node>,
    /// Numbers of nodes; place 0 is not used.
    places: Vec<usize>,
}

impl Heap {
    fn before(&self, left: usize, right: usize) -> bool {
        let (left, right) = (self.nodes[left], self.nodes[right]);
        left.count < right.count || left.count == right.count && left.depth <= right.depth
    }

    fn sift(&mut self, mut place: usize) {
        let node = self.places[place];
        let mut child = place * 2;
        while child < self.places.len() {
            if child + 1 < self.places.len() && self.before(self.places[child + 1], self.places[child]) {
                child += 1;
            }
            if self.before(node, self.places[child]) {
                break;
            }
            self.places[place] = self.places[child];
            place = child;
            child *= 2;
        }
        self.places[place] = node;
    }
}

impl Code {
    /// The code for symbols that occur `counts` times each, with at most `limit` bits.
    #[must_use]
    pub fn new(counts: &[u32], limit: u8) -> Self {
        let mut heap = Heap { nodes: vec![Node::default(); counts.len() * 2], places: vec![0] };
        let mut last = None;
        for (symbol, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            heap.nodes[symbol].count = *count;
            heap.places.push(symbol);
            last = Some(symbol);
        }
        // There are always two codes, of one bit at least; those that are made up cost nothing.
        while heap.places.len() < 3 {
            let symbol = last.filter(|last| *last < 2).map_or(0, |last| last + 1);
            last = last.max(Some(symbol));
            heap.nodes[symbol].count = 1;
            heap.places.push(symbol);
        }
        let last = last.unwrap_or(0);
        let order = join(&mut heap, counts.len());
        let cut = cut(&mut heap, &order, limit);
        if cut > 0 {
            rebalance(&mut heap, &order, (counts.len(), limit), cut);
        }
        let lengths: Vec<u8> = heap.nodes[..counts.len()].iter().map(|node| node.bits).collect();
        let cost =
            counts.iter().zip(&lengths).map(|(count, bits)| u64::from(*count) * u64::from(*bits)).sum();
        Self { lengths, last, cost }
    }

    /// The fixed code of literals (RFC 1951, 3.2.6).
    #[must_use]
    pub fn fixed_literals() -> Self {
        let bits = |symbol: usize| match symbol {
            0..=143 => 8,
            144..=255 => 9,
            256..=279 => 7,
            _ => 8,
        };
        Self { lengths: (0..288).map(bits).collect(), last: 287, cost: 0 }
    }

    /// The fixed code of distances.
    #[must_use]
    pub fn fixed_distances() -> Self {
        Self { lengths: vec![5; DISTANCES], last: DISTANCES - 1, cost: 0 }
    }

    /// Bits that `counts` take in this code.
    #[must_use]
    pub fn price(&self, counts: &[u32]) -> u64 {
        counts.iter().zip(&self.lengths).map(|(count, bits)| u64::from(*count) * u64::from(*bits)).sum()
    }

    /// Bits of the symbols that the code was made for.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// What is written for each symbol: the bits, first one lowest, and their number.
    #[must_use]
    pub fn words(&self) -> Vec<(u32, u32)> {
        let mut starts = [0u32; 17];
        for bits in &self.lengths {
            starts[usize::from(*bits) + 1] += u32::from(*bits > 0);
        }
        for bits in 1..16 {
            starts[bits + 1] = (starts[bits] + starts[bits + 1]) << 1;
        }
        let word = |bits: &u8| {
            if *bits == 0 {
                return (0, 0);
            }
            let next = &mut starts[usize::from(*bits)];
            let code = *next;
            *next += 1;
            (code.reverse_bits() >> (32 - u32::from(*bits)), u32::from(*bits))
        };
        self.lengths.iter().map(word).collect()
    }

    fn used(&self) -> &[u8] {
        &self.lengths[..=self.last]
    }
}

/// Joins the two rarest nodes until one is left. The order in which they were taken, the last first.
fn join(heap: &mut Heap, symbols: usize) -> Vec<usize> {
    for place in (1..=(heap.places.len() - 1) / 2).rev() {
        heap.sift(place);
    }
    let (mut order, mut next) = (Vec::new(), symbols);
    while heap.places.len() > 2 {
        let left = heap.places[1];
        let end = heap.places.pop().unwrap_or(left);
        heap.places[1] = end;
        heap.sift(1);
        let right = heap.places[1];
        order.extend([left, right]);
        let (a, b) = (heap.nodes[left], heap.nodes[right]);
        heap.nodes[next] =
            Node { count: a.count + b.count, depth: a.depth.max(b.depth) + 1, parent: 0, bits: 0 };
        (heap.nodes[left].parent, heap.nodes[right].parent) = (next, next);
        heap.places[1] = next;
        heap.sift(1);
        next += 1;
    }
    order.push(heap.places[1]);
    order.reverse();
    order
}

/// Gives each node its depth, but at most `limit`; how many were cut.
fn cut(heap: &mut Heap, order: &[usize], limit: u8) -> usize {
    let mut cut = 0;
    for number in &order[1..] {
        let bits = heap.nodes[heap.nodes[*number].parent].bits + 1;
        cut += usize::from(bits > limit);
        heap.nodes[*number].bits = bits.min(limit);
    }
    cut
}

/// Lengthens other codes to make room for those that were cut.
fn rebalance(heap: &mut Heap, order: &[usize], (symbols, limit): (usize, u8), mut cut: usize) {
    let mut counts = [0usize; 17];
    for number in order[1..].iter().filter(|number| **number < symbols) {
        counts[usize::from(heap.nodes[*number].bits)] += 1;
    }
    loop {
        let mut bits = usize::from(limit) - 1;
        while counts[bits] == 0 {
            bits -= 1;
        }
        counts[bits] -= 1;
        counts[bits + 1] += 2;
        counts[usize::from(limit)] -= 1;
        if cut <= 2 {
            break;
        }
        cut -= 2;
    }
    let mut rarest = order.iter().rev().filter(|number| **number < symbols);
    for bits in (1..=limit).rev() {
        for number in rarest.by_ref().take(counts[usize::from(bits)]) {
            heap.nodes[*number].bits = bits;
        }
    }
}

/// Runs of equal lengths: symbol of the code of lengths, value of its extra bits, their number.
fn runs(lengths: &[u8], out: &mut Vec<(usize, u32, u32)>) {
    let mut rest = lengths;
    let mut before = None;
    while let Some(length) = rest.first() {
        let most = match (length, before == Some(length)) {
            (0, _) => 138,
            (_, true) => 6,
            (_, false) => 7,
        };
        let run = rest.iter().take(most).take_while(|other| *other == length).count();
        let symbol = usize::from(*length);
        let fresh = usize::from(symbol > 0 && before != Some(length));
        match (symbol, run) {
            (0, 3..=10) => out.push((17, run as u32 - 3, 3)),
            (0, 11..) => out.push((18, run as u32 - 11, 7)),
            (1.., _) if run >= 3 + fresh => {
                out.extend(std::iter::repeat_n((symbol, 0, 0), fresh));
                out.push((16, (run - fresh) as u32 - 3, 2));
            }
            _ => out.extend(std::iter::repeat_n((symbol, 0, 0), run)),
        }
        before = Some(length);
        rest = &rest[run..];
    }
}

/// The head of a block with codes of its own: how long each symbol's code is.
pub struct Head {
    runs: Vec<(usize, u32, u32)>,
    code: Code,
    kept: usize,
    sizes: (usize, usize),
}

impl Head {
    /// The head for these codes of literals and distances.
    #[must_use]
    pub fn new(literals: &Code, distances: &Code) -> Self {
        let mut found = Vec::new();
        runs(literals.used(), &mut found);
        runs(distances.used(), &mut found);
        let mut counts = [0u32; LENGTHS];
        found.iter().for_each(|(symbol, _, _)| counts[*symbol] += 1);
        let code = Code::new(&counts, 7);
        let kept = ORDER.iter().rposition(|symbol| code.lengths[*symbol] > 0).map_or(4, |at| (at + 1).max(4));
        Self { runs: found, code, kept, sizes: (literals.used().len(), distances.used().len()) }
    }

    /// Its length in bits.
    #[must_use]
    pub fn cost(&self) -> u64 {
        let extra: u64 = self.runs.iter().map(|(_, _, bits)| u64::from(*bits)).sum();
        self.code.cost() + extra + 3 * self.kept as u64 + 14
    }

    /// Writes it.
    pub fn write(&self, bits: &mut Bits) {
        bits.put(self.sizes.0 as u32 - 257, 5);
        bits.put(self.sizes.1 as u32 - 1, 5);
        bits.put(self.kept as u32 - 4, 4);
        for symbol in &ORDER[..self.kept] {
            bits.put(u32::from(self.code.lengths[*symbol]), 3);
        }
        let words = self.code.words();
        for (symbol, value, extra) in &self.runs {
            bits.put(words[*symbol].0, words[*symbol].1);
            bits.put(*value, *extra);
        }
    }
}
