//! What predictions miss: an adaptive arithmetic code of new bytes, given what was predicted for them.
//!
//! Most predictions are right, so first a flag tells for 16 bytes at a time that all are; else a flag for each byte, and for
//! wrong ones the difference, bit by bit. Each bit's probability is mixed from several contexts: what was predicted, which byte of
//! which kind of pointer it is, what was wrong lately. Same arithmetic on both sides, in integers only, so that processors agree.
//! After M. Mahoney, "Adaptive weighing of context models for lossless data compression", 2005. Knows no operations.

use super::{Result, malformed};
use std::sync::LazyLock;

/// Bytes that one flag clears.
const BLOCK: usize = 16;
/// log2 of the slots of a context.
const SLOTS: u32 = 16;
/// Contexts of flags and of differences.
const FLAGS: usize = 6;
const VALUES: usize = 6;
const CLEAN: usize = 2;
/// Sets of weights: one per kind of pointer.
const SETS: usize = 32;
/// Highest class of a byte.
pub const MAX_CLASS: u8 = 127;

/// e^(-1/128), times 2^60.
const STEP: u128 = 1_143_949_398_276_903_548;

/// Logistic function and its inverse. Arguments are in units of 1/128, results in units of 1/65536.
struct Tables {
    squash: Vec<u16>,
    stretch: Vec<i16>,
}

static TABLES: LazyLock<Tables> = LazyLock::new(|| {
    let (mut power, mut squash) = (1u128 << 60, vec![0u16; 4096]);
    for distance in 0..2048usize {
        let value = ((1u128 << 76) / ((1u128 << 60) + power)).min(65535) as u16;
        squash[2048 + distance.min(2047)] = value;
        squash[2048 - distance] = u16::MAX - value + 1;
        power = (power * STEP) >> 60;
    }
    squash[0] = 1;
    let mut stretch = Vec::with_capacity(65536);
    let mut at = 0;
    for probability in 0..=u16::MAX {
        while at < 4095 && squash[at] < probability {
            at += 1;
        }
        stretch.push(at as i16 - 2048);
    }
    Tables { squash, stretch }
});

/// A bit's way in or out.
trait Channel {
    /// Codes a bit that is 1 with `probability` of 65536; an encoder is told which it is.
    fn bit(&mut self, probability: u32, known: bool) -> bool;
}

/// Adaptive probabilities in `N` contexts, mixed.
struct Mixed<const N: usize> {
    /// 22 bits of probability, 10 bits of count.
    slots: Vec<u32>,
    weights: Vec<[i32; N]>,
    limit: u32,
}

impl<const N: usize> Mixed<N> {
    fn new(probability: u32, limit: u32) -> Self {
        let weight = 65536 * 2 / (N as i32 + 2);
        Self { slots: vec![probability << 6 << 10; N << SLOTS], weights: vec![[weight; N]; SETS], limit }
    }

    /// Codes one bit in `contexts`, of which 16 bits count, with the weights of `set`.
    fn code(&mut self, channel: &mut impl Channel, contexts: [u32; N], set: usize, known: bool) -> bool {
        let tables = &*TABLES;
        let (mut inputs, mut sum) = ([0i32; N], 0i64);
        for index in 0..N {
            let slot = index << SLOTS | (contexts[index] & 0xffff) as usize;
            inputs[index] = i32::from(tables.stretch[(self.slots[slot] >> 16) as usize]);
            sum += i64::from(inputs[index]) * i64::from(self.weights[set][index]);
        }
        let place = (sum >> 16).clamp(-2047, 2047) + 2048;
        let probability = u32::from(tables.squash[place as usize]).clamp(1, 65535);
        let bit = channel.bit(probability, known);
        let error = (i64::from(bit) << 16) - i64::from(probability);
        for index in 0..N {
            let weight = &mut self.weights[set][index];
            let change = (i64::from(inputs[index]) * error * 5) >> 19;
            *weight = (i64::from(*weight) + change).clamp(-(1 << 20), 1 << 20) as i32;
            let slot = &mut self.slots[index << SLOTS | (contexts[index] & 0xffff) as usize];
            let (value, count) = (i64::from(*slot >> 10), *slot & 1023);
            let target = if bit { (1i64 << 22) - 1 } else { 0 };
            let moved = value + (target - value) * 2 / (2 * i64::from(count) + 3);
            *slot = (moved as u32) << 10 | (count + u32::from(count < self.limit));
        }
        bit
    }
}

/// Spreads a context over 16 bits.
fn spread(value: u32) -> u32 {
    value.wrapping_mul(0x9e37_79b1) >> 13
}

/// Everything that is learnt about a group's bytes.
struct Model {
    clean: Mixed<CLEAN>,
    flags: Mixed<FLAGS>,
    values: Mixed<VALUES>,
    /// One bit per block and per byte, the latest lowest; 1: was wrong.
    blocks: u32,
    bytes: u32,
    /// The same per class.
    classes: [u8; 128],
    /// Last difference, and last per class.
    last: u8,
    lasts: [u8; 128],
}

/// A byte's surroundings.
struct Place {
    class: u8,
    predicted: u8,
    /// The predicted byte before, and the new byte before.
    before: u8,
    new_before: u8,
    /// Difference of the byte before, 0 if it was right.
    missed: u8,
    in_block: u32,
}

impl Model {
    fn new() -> Self {
        Self {
            clean: Mixed::new(3000, 250),
            flags: Mixed::new(6000, 250),
            values: Mixed::new(32768, 120),
            blocks: 0,
            bytes: 0,
            classes: [0; 128],
            last: 0,
            lasts: [0; 128],
        }
    }

    /// Turns predicted `bytes` into new ones; an encoder gives them as `wanted`, a decoder none.
    fn code(&mut self, channel: &mut impl Channel, bytes: &mut [u8], classes: &[u8], wanted: &[u8]) {
        let (mut at, mut before, mut new_before, mut missed) = (0usize, 0u8, 0u8, 0u8);
        for block in bytes.chunks_mut(BLOCK) {
            let kinds = classes.get(at..at + block.len()).unwrap_or_default();
            let wrong = wanted.get(at..at + block.len()).is_some_and(|wanted| wanted != block);
            let pointers = kinds.iter().filter(|class| **class >= 8 && **class & 7 == 0).count() as u32;
            let first = u32::from(kinds.iter().copied().find(|class| *class != 0).unwrap_or(0));
            let contexts = [
                self.blocks & 0xfff | (pointers.min(3) << 12),
                spread(self.blocks & 7 | first << 3 | pointers << 12),
            ];
            let wrong = self.clean.code(channel, contexts, 0, wrong);
            self.blocks = self.blocks << 1 | u32::from(wrong);
            if !wrong {
                self.bytes <<= block.len().min(31);
                self.pass(kinds);
                (before, new_before, missed) = (block[block.len() - 1], block[block.len() - 1], 0);
                at += block.len();
                continue;
            }
            let start = at;
            for byte in block {
                let class = classes.get(at).copied().unwrap_or(0).min(MAX_CLASS);
                let in_block = (at - start) as u32;
                let place = Place { class, predicted: *byte, before, new_before, missed, in_block };
                let known = wanted.get(at).map_or(0, |wanted| wanted.wrapping_sub(*byte));
                missed = self.byte(channel, &place, known);
                before = *byte;
                *byte = byte.wrapping_add(missed);
                new_before = *byte;
                at += 1;
            }
        }
    }

    /// Notes that bytes of these classes were right.
    fn pass(&mut self, classes: &[u8]) {
        for class in classes.iter().filter(|class| **class != 0) {
            let history = &mut self.classes[usize::from(*class & MAX_CLASS)];
            *history <<= 1;
        }
    }

    /// The difference of one byte.
    fn byte(&mut self, channel: &mut impl Channel, place: &Place, known: u8) -> u8 {
        let own = usize::from(place.class);
        let (class, predicted) = (u32::from(place.class), u32::from(place.predicted));
        let history = u32::from(self.classes[own]);
        let seen = u32::from(self.bytes & ((1 << place.in_block) - 1) != 0);
        let contexts = [
            self.bytes & 0xff | place.in_block << 8 | seen << 12,
            spread(class | (self.bytes & 7) << 7 | 1 << 20),
            spread(predicted | u32::from(place.before) << 8),
            spread(predicted | (self.bytes & 3) << 8 | u32::from(place.missed) << 10),
            spread(class | (history & 15) << 7 | (self.bytes & 1) << 11),
            spread(class | predicted << 7 | 1 << 21),
        ];
        let set = own >> 3 & (SETS - 1);
        let wrong = self.flags.code(channel, contexts, set, known != 0);
        self.bytes = self.bytes << 1 | u32::from(wrong);
        self.classes[own] = self.classes[own] << 1 | u8::from(wrong);
        if !wrong {
            return 0;
        }
        let bases = [
            class,
            predicted | 1 << 8,
            u32::from(self.last) | class << 8,
            u32::from(self.lasts[own]) | class << 8 | 1 << 16,
            predicted | u32::from(place.new_before) << 8 | 1 << 17,
            u32::from(place.missed) | (class >> 3) << 8 | 1 << 18,
        ];
        let mut node = 1u32;
        for shift in (0..8).rev() {
            let contexts = bases.map(|base| spread(base << 8 | node));
            let bit = self.values.code(channel, contexts, set, known >> shift & 1 == 1);
            node = node << 1 | u32::from(bit);
        }
        self.last = node as u8;
        self.lasts[own] = self.last;
        self.last
    }
}

/// Range of 32 bits, carry-less.
struct Encoding {
    low: u32,
    high: u32,
    out: Vec<u8>,
}

impl Channel for Encoding {
    fn bit(&mut self, probability: u32, known: bool) -> bool {
        let middle = split(self.low, self.high, probability);
        if known {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.out.push((self.high >> 24) as u8);
            self.low <<= 8;
            self.high = self.high << 8 | 255;
        }
        known
    }
}

fn split(low: u32, high: u32, probability: u32) -> u32 {
    low + ((u64::from(high - low) * u64::from(probability)) >> 16) as u32
}

impl Default for Encoding {
    fn default() -> Self {
        Self { low: 0, high: u32::MAX, out: Vec::new() }
    }
}

struct Decoding {
    low: u32,
    high: u32,
    value: u32,
    bytes: Vec<u8>,
    at: usize,
}

impl Decoding {
    fn pull(&mut self) -> u32 {
        self.at += 1;
        u32::from(self.bytes.get(self.at - 1).copied().unwrap_or(0))
    }
}

impl Channel for Decoding {
    fn bit(&mut self, probability: u32, _known: bool) -> bool {
        let middle = split(self.low, self.high, probability);
        let bit = self.value <= middle;
        if bit {
            self.high = middle;
        } else {
            self.low = middle + 1;
        }
        while (self.low ^ self.high) >> 24 == 0 {
            self.low <<= 8;
            self.high = self.high << 8 | 255;
            self.value = self.value << 8 | self.pull();
        }
        bit
    }
}

/// Codes what a group's predictions miss.
#[derive(Default)]
pub struct ResidueEncoder {
    /// Made when it is first needed: most groups have no residue.
    model: Option<Box<Model>>,
    channel: Encoding,
}

impl ResidueEncoder {
    /// Adds `wanted`, for which `predicted` was foretold; `classes` is empty or tells what each byte is.
    pub fn add(&mut self, predicted: &mut [u8], classes: &[u8], wanted: &[u8]) {
        let model = self.model.get_or_insert_with(|| Box::new(Model::new()));
        model.code(&mut self.channel, predicted, classes, wanted);
    }

    /// The code.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let Encoding { low, high, mut out } = self.channel;
        // A decoder reads zeros behind the end: as few bytes as name a number between `low` and `high`.
        // Their highest bytes differ, or they would have been written.
        if low > 0 {
            out.push((high >> 24) as u8);
        }
        while out.last() == Some(&0) {
            out.pop();
        }
        out
    }
}

/// Decodes what a group's predictions miss.
pub struct ResidueDecoder {
    model: Option<Box<Model>>,
    channel: Decoding,
}

impl ResidueDecoder {
    /// Decodes `bytes`.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut channel = Decoding { low: 0, high: u32::MAX, value: 0, bytes, at: 0 };
        for _ in 0..4 {
            channel.value = channel.value << 8 | channel.pull();
        }
        Self { model: None, channel }
    }

    /// Turns predicted `bytes` into new ones; `classes` is empty or tells what each byte is.
    pub fn add(&mut self, bytes: &mut [u8], classes: &[u8]) {
        let model = self.model.get_or_insert_with(|| Box::new(Model::new()));
        model.code(&mut self.channel, bytes, classes, &[]);
    }

    /// Asserts that the code was used up.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(&self) -> Result<()> {
        let len = self.channel.bytes.len();
        let at = if self.model.is_some() { self.channel.at } else { 0 };
        if at < len {
            return malformed("group residue", format!("{} bytes are left over", len - at));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn coded(pieces: &[(Vec<u8>, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut encoder = ResidueEncoder::default();
        for (predicted, classes, wanted) in pieces {
            encoder.add(&mut predicted.clone(), classes, wanted);
        }
        encoder.finish()
    }

    #[test]
    fn right_predictions_cost_nothing_and_few_wrong_ones_little() {
        let predicted: Vec<u8> = (0..100_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
        assert!(coded(&[(predicted.clone(), Vec::new(), predicted.clone())]).len() < 60);
        let mut wanted = predicted.clone();
        (0..1000).for_each(|at| wanted[at * 100] ^= 1);
        let len = coded(&[(predicted, Vec::new(), wanted)]).len();
        assert!(len < 1100, "{len} bytes for 1000 changes");
    }

    #[test]
    fn the_code_is_the_same_everywhere() {
        let predicted: Vec<u8> = (0..400u32).map(|at| ((at * at) >> 4) as u8).collect();
        let wanted: Vec<u8> =
            predicted.iter().map(|byte| if byte % 5 == 0 { byte ^ 3 } else { *byte }).collect();
        let code = coded(&[(predicted, vec![9; 400], wanted)]);
        let sum = code.iter().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        assert_eq!((code.len(), sum), (62, 2_873_230_646));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn bytes_come_back(
            pieces in prop::collection::vec((prop::collection::vec((any::<u8>(), 0u8..9, 0u8..128), 0..200), any::<bool>()), 0..8),
        ) {
            let pieces: Vec<(Vec<u8>, Vec<u8>, Vec<u8>)> = pieces.into_iter().map(|(bytes, classed)| {
                let predicted: Vec<u8> = bytes.iter().map(|byte| byte.0).collect();
                let wanted = bytes.iter().map(|byte| byte.0.wrapping_add(byte.1.saturating_sub(6))).collect();
                let classes = if classed { bytes.iter().map(|byte| byte.2).collect() } else { Vec::new() };
                (predicted, classes, wanted)
            }).collect();
            let code = coded(&pieces);
            let mut decoder = ResidueDecoder::new(code.clone());
            for (predicted, classes, wanted) in &pieces {
                let mut bytes = predicted.clone();
                decoder.add(&mut bytes, classes);
                prop_assert_eq!(&bytes, wanted);
            }
            decoder.end().unwrap();
            let mut longer = code;
            longer.extend([1; 8]);
            let mut decoder = ResidueDecoder::new(longer);
            for (predicted, classes, _) in &pieces {
                decoder.add(&mut predicted.clone(), classes);
            }
            prop_assert!(decoder.end().is_err());
        }
    }
}
