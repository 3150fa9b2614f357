//! Deflate (RFC 1951) to the bit as gzip and zlib do it, so that a compressed file can be made again from its text.
//!
//! Only what their levels 4 to 9 do: lazy matching over chains of hashes. Text is pushed in, 64 KiB at a time; bytes are taken out.
//! Work can begin at any [`Restart`], given the 32 KiB of text before it: the chains hold nothing older. Memory is below 2 MiB.

mod bits;
mod huffman;

use bits::Bits;
use huffman::{Code, DISTANCES, END, Head, LITERALS, distance_bits, length_bits};

/// Text that matches may reach back.
pub const WINDOW: usize = 32 << 10;
const MIN_MATCH: usize = 3;
const MAX_MATCH: usize = 258;
/// Text that must lie ahead before a step, unless it ends.
const AHEAD: usize = MAX_MATCH + MIN_MATCH + 1;
const MAX_DISTANCE: usize = WINDOW - AHEAD;
/// Matches of three bytes that lie farther back are not worth it.
const TOO_FAR: usize = 4096;
/// The originals keep a buffer of two windows, and move it on when less than [`AHEAD`] is left of it.
const SLIDE: usize = 2 * WINDOW - AHEAD + 1;
const HASHES: usize = 1 << 15;
/// Symbols of a block, at most.
const GZIP_BLOCK: usize = 0x7fff;
const ZLIB_BLOCK: usize = 0x3fff;

/// Which program, at which level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// zlib with its usual memory, or GNU gzip.
    pub zlib: bool,
    /// 4 to 9.
    pub level: u8,
}

/// How hard to look for matches.
#[derive(Clone, Copy)]
struct Effort {
    good: usize,
    lazy: usize,
    nice: usize,
    chain: usize,
}

impl Style {
    /// From the form in which deltas store it; `None` if it is no such style.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        let style = Self { zlib: byte & 16 != 0, level: byte & 15 };
        (byte < 32 && (4..=9).contains(&style.level)).then_some(style)
    }

    /// The form in which deltas store it.
    #[must_use]
    pub fn byte(self) -> u8 {
        u8::from(self.zlib) << 4 | self.level
    }

    fn effort(self) -> Effort {
        let (good, lazy, nice, chain) = match self.level {
            0..=4 => (4, 4, 16, 16),
            5 => (8, 16, 32, 32),
            6 => (8, 16, 128, 128),
            7 => (8, 32, 128, 256),
            8 => (32, 128, 258, 1024),
            _ => (32, 258, 258, 4096),
        };
        Effort { good, lazy, nice, chain }
    }
}

/// Where work can begin: behind a block, or at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Restart {
    /// Offset in the text of the next byte to look at.
    pub text: u64,
    /// The byte before it waits: it becomes a literal, or a match of this length (0: nothing waits; 2: no match).
    pub waiting: u16,
    /// How far back that match lies, from the byte before [`Restart::text`]; 0 if there is none.
    pub distance: u16,
    /// Bits of the first byte that come from before, 0 to 7.
    pub phase: u8,
}

impl Restart {
    /// True if it can be in a text of `len` bytes.
    #[must_use]
    pub fn fits(&self, len: u64) -> bool {
        let waiting = match self.waiting {
            0 | 2 => self.distance == 0,
            3..=258 => (1..=WINDOW as u64).contains(&self.distance.into()),
            1 | 259.. => false,
        };
        let behind = u64::from(self.distance) + u64::from(self.waiting > 0);
        waiting && behind <= self.text && self.text <= len && self.phase < 8
    }
}

/// The symbols of a block.
struct Block {
    /// Length or literal in the lower half, distance (0: literal) above.
    symbols: Vec<u32>,
    literals: [u32; LITERALS],
    distances: [u32; DISTANCES],
    matches: usize,
    /// Offset of its first byte in the text.
    start: u64,
}

impl Block {
    fn new(start: u64) -> Self {
        let mut literals = [0; LITERALS];
        literals[END] = 1;
        Self { symbols: Vec::new(), literals, distances: [0; DISTANCES], matches: 0, start }
    }
}

/// Number of the symbol of a match's length, from 0, and what its extra bits begin at.
fn length_symbol(length: usize) -> (usize, u32) {
    let over = length - MIN_MATCH;
    match over {
        0..=7 => (over, 0),
        255.. => (28, 0),
        8..=254 => {
            let bits = over.ilog2() as usize - 2;
            let index = bits * 4 + (over >> bits & 3) + 4;
            (index, (over & ((1 << bits) - 1)) as u32)
        }
    }
}

/// The same of a distance.
fn distance_symbol(distance: usize) -> (usize, u32) {
    let over = distance - 1;
    if over < 4 {
        return (over, 0);
    }
    let bits = over.ilog2() as usize - 1;
    (bits * 2 + (over >> bits & 1) + 2, (over & ((1 << bits) - 1)) as u32)
}

/// A match: length and where it begins in the text.
#[derive(Clone, Copy)]
struct Match {
    len: usize,
    at: u64,
}

const NO_MATCH: Match = Match { len: MIN_MATCH - 1, at: 0 };

/// Deflates.
pub struct Deflate {
    style: Style,
    effort: Effort,
    /// The text from `base` on; what is behind the next byte goes once it is out of reach.
    text: Vec<u8>,
    base: u64,
    /// Offset of the next byte to look at.
    at: u64,
    /// Where the original's buffer begins.
    buffer: u64,
    /// The text before this offset is in the chains.
    entered: u64,
    /// Last place of each hash, plus 1, and the place before it, modulo the window.
    head: Vec<u32>,
    before: Vec<u32>,
    /// What the byte before could begin.
    last: Option<Match>,
    block: Block,
    bits: Bits,
}

impl Deflate {
    /// Begins at `restart`; `history` is the text before it, [`WINDOW`] bytes or all that there is.
    #[must_use]
    pub fn new(style: Style, restart: Restart, history: &[u8]) -> Self {
        let last = (restart.waiting > 0).then(|| Match {
            len: usize::from(restart.waiting),
            at: restart.text.wrapping_sub(1).wrapping_sub(u64::from(restart.distance)),
        });
        let mut deflate = Self {
            style,
            effort: style.effort(),
            text: history.to_vec(),
            base: restart.text.saturating_sub(history.len() as u64),
            at: restart.text,
            buffer: 0,
            entered: restart.text.saturating_sub(history.len().min(WINDOW) as u64),
            head: vec![0; HASHES],
            before: vec![0; WINDOW],
            last,
            block: Block::new(restart.text - u64::from(last.is_some())),
            bits: Bits::at(restart.phase.into()),
        };
        deflate.slide();
        deflate
    }

    /// Offset in the text of what must be pushed next.
    #[must_use]
    pub fn wanted(&self) -> u64 {
        self.base + self.text.len() as u64
    }

    /// Takes the bytes that are done.
    pub fn take(&mut self) -> Vec<u8> {
        self.bits.take()
    }

    /// Goes on with more text; `ended` is told of each block's end: bytes done by then, and how to begin there.
    pub fn push(&mut self, text: &[u8], ended: &mut dyn FnMut(usize, Restart)) {
        self.text.extend_from_slice(text);
        self.enter_history();
        while (self.at - self.base) as usize + AHEAD <= self.text.len() {
            self.step(ended);
            self.entered = self.at;
        }
        let kept = (self.at - self.base).saturating_sub(2 * WINDOW as u64);
        if kept > 2 * WINDOW as u64 {
            self.text.drain(..kept as usize);
            self.base += kept;
        }
    }

    /// The text has ended: writes what is left.
    pub fn finish(&mut self) {
        while self.at < self.wanted() {
            self.step(&mut |_, _| {});
        }
        if self.last.take().is_some() {
            self.literal(self.at - 1);
        }
        self.flush(true);
        self.bits.align();
    }

    /// A hash needs two bytes more, so history cannot be entered before there is text.
    fn enter_history(&mut self) {
        while self.entered < self.at && self.entered + MIN_MATCH as u64 <= self.wanted() {
            self.enter(self.entered);
            self.entered += 1;
        }
    }

    fn byte(&self, at: u64) -> u8 {
        self.text[(at - self.base) as usize]
    }

    /// Enters the three bytes at `at`; the last place with their hash.
    fn enter(&mut self, at: u64) -> Option<u64> {
        let from = (at - self.base) as usize;
        // Behind the end the originals find what they find; there, nothing is entered.
        let bytes = self.text.get(from..from + MIN_MATCH)?;
        let hash = usize::from(bytes[0]) << 10 ^ usize::from(bytes[1]) << 5 ^ usize::from(bytes[2]);
        let hash = hash & (HASHES - 1);
        let found = self.head[hash];
        self.before[at as usize & (WINDOW - 1)] = found;
        self.head[hash] = at as u32;
        (found > 0).then_some(u64::from(found))
    }

    fn slide(&mut self) {
        while self.at - self.buffer >= SLIDE as u64 {
            self.buffer += WINDOW as u64;
        }
    }

    /// The longest match, beginning with the one at `found`, that is longer than `least`.
    fn longest(&self, found: u64, least: usize) -> Match {
        let from = (self.at - self.base) as usize;
        let most = MAX_MATCH.min(self.text.len() - from);
        let scan = &self.text[from..from + most];
        let limit = self.at.saturating_sub(MAX_DISTANCE as u64);
        let mut chain = if least >= self.effort.good { self.effort.chain >> 2 } else { self.effort.chain };
        let (mut best, mut candidate) = (Match { len: least, at: 0 }, found);
        while candidate >= self.base {
            let other = &self.text[(candidate - self.base) as usize..];
            if best.len >= most {
                break;
            }
            if other[best.len] == scan[best.len] && other[best.len - 1] == scan[best.len - 1] {
                let len = common(scan, other);
                if len > best.len {
                    best = Match { len, at: candidate };
                    if len >= self.effort.nice {
                        break;
                    }
                }
            }
            candidate = u64::from(self.before[candidate as usize & (WINDOW - 1)]);
            chain -= 1;
            if candidate <= limit || chain == 0 {
                break;
            }
        }
        best
    }

    fn step(&mut self, ended: &mut dyn FnMut(usize, Restart)) {
        let found = self.enter(self.at);
        let last = self.last;
        let mut before = last.unwrap_or(NO_MATCH);
        // Only a hostile restart says more than there is.
        before.len = before.len.min((self.wanted() - self.at) as usize + 1);
        let near = found.filter(|found| self.at - found <= MAX_DISTANCE as u64);
        let mut current = NO_MATCH;
        if let Some(found) = near.filter(|_| before.len < self.effort.lazy) {
            current = self.longest(found, before.len);
            if current.len == MIN_MATCH && self.at - current.at > TOO_FAR as u64 {
                current.len -= 1;
            }
        }
        if before.len >= MIN_MATCH && current.len <= before.len {
            let full = self.matched(before);
            for at in self.at + 1..self.at + before.len as u64 - 1 {
                self.enter(at);
            }
            self.at += before.len as u64 - 1;
            self.last = None;
            if full {
                self.end_block(self.at, ended);
            }
        } else {
            let full = last.is_some() && self.literal(self.at - 1);
            let start = self.at;
            self.at += 1;
            self.last = Some(current);
            if full {
                self.end_block(start, ended);
            }
        }
        self.slide();
    }

    fn end_block(&mut self, start: u64, ended: &mut dyn FnMut(usize, Restart)) {
        self.flush(false);
        self.block = Block::new(start);
        let waiting = self.last.unwrap_or(Match { len: 0, at: 0 });
        let distance = if waiting.len >= MIN_MATCH { self.at - 1 - waiting.at } else { 0 };
        let restart = Restart {
            text: self.at,
            waiting: waiting.len as u16,
            distance: distance as u16,
            phase: self.bits.phase() as u8,
        };
        ended(self.bits.done(), restart);
    }

    /// Counts the byte at `at` as a literal; true if the block is to end.
    fn literal(&mut self, at: u64) -> bool {
        let byte = self.byte(at);
        self.block.literals[usize::from(byte)] += 1;
        self.block.symbols.push(u32::from(byte));
        self.full()
    }

    /// Counts a match that begins at the byte before; true if the block is to end.
    fn matched(&mut self, found: Match) -> bool {
        let distance = (self.at - 1 - found.at) as usize;
        self.block.literals[END + 1 + length_symbol(found.len).0] += 1;
        self.block.distances[distance_symbol(distance).0] += 1;
        self.block.matches += 1;
        self.block.symbols.push((distance as u32) << 16 | found.len as u32);
        self.full()
    }

    /// gzip ends a block early if it packs very well; both end it when their buffer is full.
    fn full(&self) -> bool {
        let count = self.block.symbols.len();
        if self.style.zlib {
            return count == ZLIB_BLOCK;
        }
        if count.is_multiple_of(0x1000) {
            let costs = self.block.distances.iter().enumerate();
            let bits: u64 =
                costs.map(|(symbol, count)| u64::from(*count) * u64::from(5 + distance_bits(symbol))).sum();
            let packed = (count as u64 * 8 + bits) >> 3;
            if self.block.matches < count / 2 && packed < (self.at - self.block.start) / 2 {
                return true;
            }
        }
        count == GZIP_BLOCK
    }

    fn flush(&mut self, end: bool) {
        let block = &self.block;
        let (literals, distances) = (Code::new(&block.literals, 15), Code::new(&block.distances, 15));
        let head = Head::new(&literals, &distances);
        let lengths = block.literals[END + 1..].iter().enumerate();
        let extra: u64 = lengths
            .map(|(index, count)| (length_bits(index), count))
            .chain(block.distances.iter().enumerate().map(|(index, count)| (distance_bits(index), count)))
            .map(|(bits, count)| u64::from(bits) * u64::from(*count))
            .sum();
        let fixed = (Code::fixed_literals(), Code::fixed_distances());
        let own_len = (literals.cost() + distances.cost() + head.cost() + extra + 3 + 7) >> 3;
        let fixed_len =
            (fixed.0.price(&block.literals) + fixed.1.price(&block.distances) + extra + 3 + 7) >> 3;
        let stop = if end { self.text.len() as u64 + self.base } else { self.next_start() };
        let text_len = stop - block.start;
        if text_len + 4 <= own_len.min(fixed_len) && block.start >= self.buffer && block.start >= self.base {
            self.bits.put(u32::from(end), 3);
            self.stored(stop);
            return;
        }
        let codes = if fixed_len <= own_len {
            self.bits.put(2 | u32::from(end), 3);
            fixed
        } else {
            self.bits.put(4 | u32::from(end), 3);
            head.write(&mut self.bits);
            (literals, distances)
        };
        self.symbols(&codes.0.words(), &codes.1.words());
    }

    /// Where the block that is about to end ends: what waits belongs to the next one.
    fn next_start(&self) -> u64 {
        self.at - u64::from(self.last.is_some())
    }

    fn stored(&mut self, stop: u64) {
        self.bits.align();
        let from = (self.block.start - self.base) as usize;
        let text = &self.text[from..(stop - self.base) as usize];
        let len = text.len() as u32 & 0xffff;
        self.bits.put(len, 16);
        self.bits.put(!len & 0xffff, 16);
        self.bits.bytes(text);
    }

    fn symbols(&mut self, literals: &[(u32, u32)], distances: &[(u32, u32)]) {
        for symbol in &self.block.symbols {
            let (distance, low) = ((symbol >> 16) as usize, (symbol & 0xffff) as usize);
            if distance == 0 {
                self.bits.put(literals[low].0, literals[low].1);
                continue;
            }
            let (index, extra) = length_symbol(low);
            let word = literals[END + 1 + index];
            self.bits.put(word.0, word.1);
            self.bits.put(extra, length_bits(index));
            let (index, extra) = distance_symbol(distance);
            self.bits.put(distances[index].0, distances[index].1);
            self.bits.put(extra, distance_bits(index));
        }
        self.bits.put(literals[END].0, literals[END].1);
    }
}

fn common(left: &[u8], right: &[u8]) -> usize {
    let mut at = 0;
    for (a, b) in left.as_chunks::<8>().0.iter().zip(right.as_chunks::<8>().0) {
        let differ = u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if differ != 0 {
            return at + (differ.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    at + left[at..].iter().zip(&right[at..]).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests;
