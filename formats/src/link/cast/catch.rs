//! Who takes in: symbols of one object, in any order, from any time on. Memory is bounded by the object and a limit on
//! what is not verified yet; what is forged or damaged is never counted.

use super::Cut;
use super::code::Code;
use super::packet::{Head, Packet, Tag, tag};
use super::tree::Tree;
use crate::hex::Digest;
use ed25519_dalek::VerifyingKey;
use std::collections::BTreeMap;

/// Symbols that wait for their hashes, at most: a forger can displace these, no others.
const WAITING_MAX: usize = 2048;
/// Of one number, so many different ones wait.
const RIVALS: usize = 2;

/// What became of symbols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Symbols of the cast that came, right ones that came before among them.
    pub received: u64,
    /// Symbols that are needed.
    pub needed: u64,
    /// Symbols that were right and new.
    pub kept: u64,
    /// Symbols that were forged or damaged.
    pub wrong: u64,
    /// Symbols for which there was no room before their hashes came.
    pub dropped: u64,
}

/// A reception.
pub struct Catch {
    object: Digest,
    key: VerifyingKey,
    cast: Option<(Tag, Head, Tree)>,
    /// Right symbols of each block by their place; no more than it takes.
    blocks: Vec<BTreeMap<u32, Vec<u8>>>,
    waiting: BTreeMap<u32, Vec<Vec<u8>>>,
    /// What became of symbols.
    pub tally: Tally,
}

impl Catch {
    /// Waits for an object whose casts `key` signs.
    pub fn new(object: Digest, key: VerifyingKey) -> Self {
        Self {
            object,
            key,
            cast: None,
            blocks: Vec::new(),
            waiting: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// Takes a packet; whether the object can be decoded now.
    pub fn take(&mut self, packet: &Packet) -> bool {
        match packet {
            Packet::Head(bytes) => self.head(bytes),
            Packet::Page(tag, level, index, page) => self.page(*tag, usize::from(*level), *index, page),
            Packet::Symbol(tag, index, bytes) => self.symbol(*tag, *index, bytes),
            Packet::File(..) => {}
        }
        self.complete()
    }

    fn head(&mut self, bytes: &[u8]) {
        let tag = tag(bytes);
        if self.cast.as_ref().is_some_and(|(known, ..)| *known == tag) {
            return;
        }
        let Some(head) = Head::open(bytes, &self.key).filter(|head| head.object == self.object) else {
            return;
        };
        // The first good one is kept: whoever holds the key has no reason to sign two at once.
        if self.cast.is_none()
            && let Some(tree) = Tree::new(head.object.0, head.cut.symbols(), &head.top)
        {
            self.blocks = vec![BTreeMap::new(); head.cut.blocks() as usize];
            self.tally.needed = u64::from(head.cut.per_block() * head.cut.blocks());
            self.cast = Some((tag, head, tree));
        }
    }

    fn page(&mut self, of: Tag, level: usize, index: u32, page: &[u8]) {
        let Some((tag, _, tree)) = &mut self.cast else { return };
        if *tag != of || !tree.take(level, index, page) || level > 0 {
            return;
        }
        let numbers = index * super::tree::PAGE..(index + 1) * super::tree::PAGE;
        let ready: Vec<u32> = self.waiting.range(numbers).map(|(number, _)| *number).collect();
        for number in ready {
            for bytes in self.waiting.remove(&number).unwrap_or_default() {
                self.judge(number, &bytes);
            }
        }
    }

    fn symbol(&mut self, of: Tag, index: u32, bytes: &[u8]) {
        let Some((tag, head, _)) = &self.cast else { return };
        if *tag != of || bytes.len() != usize::from(head.cut.symbol) || index >= head.cut.symbols() {
            return;
        }
        self.tally.received += 1;
        self.judge(index, bytes);
    }

    fn judge(&mut self, index: u32, bytes: &[u8]) {
        let Some((_, head, tree)) = &self.cast else { return };
        let (block, place) = head.cut.place(index);
        let block = &mut self.blocks[block as usize];
        if block.contains_key(&place) || block.len() >= head.cut.per_block() as usize {
            return;
        }
        match tree.verify(0, index, bytes) {
            Some(true) => {
                block.insert(place, bytes.to_vec());
                self.tally.kept += 1;
                self.waiting.remove(&index);
            }
            Some(false) => self.tally.wrong += 1,
            None if self.waiting.len() < WAITING_MAX => {
                let rivals = self.waiting.entry(index).or_default();
                if rivals.len() < RIVALS && !rivals.iter().any(|rival| rival == bytes) {
                    rivals.push(bytes.to_vec());
                }
            }
            None => self.tally.dropped += 1,
        }
    }

    /// Symbols that wait for their hashes.
    #[cfg(test)]
    pub fn waiting_symbols(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    fn complete(&self) -> bool {
        let Some((_, head, _)) = &self.cast else { return false };
        self.blocks.iter().all(|block| block.len() >= head.cut.per_block() as usize)
    }

    /// Places of source symbols that are missing, as byte ranges of the object, at most as many as are still needed: what
    /// to ask another carrier for, if there is one.
    pub fn missing(&self) -> Vec<std::ops::Range<u64>> {
        let Some((_, head, _)) = &self.cast else { return Vec::new() };
        let Cut { length, symbol } = head.cut;
        let mut ranges = Vec::new();
        for (number, block) in (0u32..).zip(&self.blocks) {
            let lacks = (head.cut.per_block() as usize).saturating_sub(block.len());
            let places = (0..head.cut.per_block()).filter(|place| !block.contains_key(place)).take(lacks);
            ranges.extend(places.filter_map(|place| {
                let start = u64::from(place * head.cut.blocks() + number) * u64::from(symbol);
                (start < length.into()).then(|| start..(start + u64::from(symbol)).min(length.into()))
            }));
        }
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    }

    /// Takes source bytes that came over another carrier; they are verified like any symbol once their hashes are here.
    pub fn repair(&mut self, start: u64, bytes: &[u8]) {
        let Some((_, head, _)) = &self.cast else { return };
        let symbol = u64::from(head.cut.symbol);
        let mut padded = bytes.to_vec();
        padded.resize(usize::from(head.cut.symbol), 0);
        if let Ok(index) = u32::try_from(start / symbol)
            && start.is_multiple_of(symbol)
        {
            self.judge(index, &padded);
        }
    }

    /// The object, if enough came and the code is this one; whoever takes it verifies it block by block.
    ///
    /// # Errors
    /// In words.
    pub fn decode(&self, code: &dyn Code) -> Result<Vec<u8>, String> {
        let Some((_, head, _)) = &self.cast else { return Err("no head has come".into()) };
        if head.code != code.number() {
            return Err(format!("the cast has the unknown code {}", head.code));
        }
        let (cut, size) = (head.cut, usize::from(head.cut.symbol));
        let mut object = vec![0; (cut.per_block() * cut.blocks()) as usize * size];
        for (number, block) in self.blocks.iter().enumerate() {
            let have: Vec<(u32, &[u8])> =
                block.iter().map(|(place, bytes)| (*place, bytes.as_slice())).collect();
            let source = code.restore(cut.per_block() as usize, size, &have)?;
            for (place, bytes) in source.chunks_exact(size).enumerate() {
                let at = (place * cut.blocks() as usize + number) * size;
                object[at..at + size].copy_from_slice(bytes);
            }
        }
        object.truncate(cut.length as usize);
        Ok(object)
    }
}
