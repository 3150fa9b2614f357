//! Who takes in: symbols of one object, in any order, from any time on. Memory is bounded by a limit on what is not
//! verified yet, the rest lies in a store; what is forged or damaged is never counted.

use super::code::{Code, Symbols};
use super::packet::{Head, Tag};
use super::store::Store;
use super::tree::Tree;
use std::collections::BTreeMap;
use std::ops::Range;

/// Of one number, so many different symbols wait for their hashes.
const RIVALS: usize = 2;

/// What became of symbols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Symbols of the cast that came until there were enough, right ones that came before among them.
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

/// A block: where its right symbols lie, by their place, no more than it takes.
#[derive(Clone, Debug, Default)]
struct Block {
    slots: BTreeMap<u32, u32>,
    /// Whether all source symbols are there.
    restored: bool,
}

/// A reception.
pub struct Catch<S> {
    tag: Tag,
    head: Head,
    tree: Tree,
    blocks: Vec<Block>,
    waiting: BTreeMap<u32, Vec<Vec<u8>>>,
    store: S,
    failed: Option<String>,
    /// What became of symbols.
    pub tally: Tally,
}

impl<S: Store> Catch<S> {
    /// Begins with a head that was opened; `None` if it contradicts itself.
    pub fn new(tag: Tag, head: Head, store: S) -> Option<Self> {
        let tree = Tree::new(head.object.0, head.cut.symbols(), &head.top)?;
        let blocks = vec![Block::default(); head.cut.blocks() as usize];
        let needed = u64::from(head.cut.per_block() * head.cut.blocks());
        let tally = Tally { needed, ..Tally::default() };
        Some(Self { tag, head, tree, blocks, waiting: BTreeMap::new(), store, failed: None, tally })
    }

    /// To which packets it listens.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// What it catches.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Why nothing is kept, if the store fails.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Takes a page of hashes.
    pub fn page(&mut self, level: usize, index: u32, page: &[u8]) {
        if !self.tree.take(level, index, page) || level > 0 {
            return;
        }
        let numbers = index * super::tree::PAGE..(index + 1) * super::tree::PAGE;
        let ready: Vec<u32> = self.waiting.range(numbers).map(|(number, _)| *number).collect();
        for number in ready {
            for bytes in self.waiting.remove(&number).unwrap_or_default() {
                self.judge(number, &bytes, 0);
            }
        }
    }

    /// Takes a symbol; there is room for so many more that wait for their hashes.
    pub fn symbol(&mut self, index: u32, bytes: &[u8], room: usize) {
        if bytes.len() != usize::from(self.head.cut.symbol) || index >= self.head.cut.symbols() {
            return;
        }
        if !self.whole() {
            self.tally.received += 1;
        }
        self.judge(index, bytes, room);
    }

    fn judge(&mut self, index: u32, bytes: &[u8], room: usize) {
        let (number, place) = self.head.cut.place(index);
        let block = &self.blocks[number as usize];
        if block.restored || block.slots.contains_key(&place) || self.full(block) {
            return;
        }
        match self.tree.verify(0, index, bytes) {
            Some(true) => {
                if self.keep(number, place, bytes) {
                    self.tally.kept += 1;
                }
                self.waiting.remove(&index);
            }
            Some(false) => self.tally.wrong += 1,
            None if room > 0 => {
                let rivals = self.waiting.entry(index).or_default();
                if rivals.len() < RIVALS && !rivals.iter().any(|rival| rival == bytes) {
                    rivals.push(bytes.to_vec());
                }
            }
            None => self.tally.dropped += 1,
        }
    }

    fn at(&self, number: u32, slot: u32) -> u64 {
        u64::from(number * self.head.cut.per_block() + slot) * u64::from(self.head.cut.symbol)
    }

    fn keep(&mut self, number: u32, place: u32, bytes: &[u8]) -> bool {
        let slot = self.blocks[number as usize].slots.len() as u32;
        let put = self.store.put(self.at(number, slot), bytes);
        let kept = put.is_ok();
        self.failed = put.err();
        if kept {
            self.blocks[number as usize].slots.insert(place, slot);
        }
        kept
    }

    fn full(&self, block: &Block) -> bool {
        block.slots.len() >= self.head.cut.per_block() as usize
    }

    /// Symbols that wait for their hashes.
    pub fn waiting(&self) -> usize {
        self.waiting.values().map(Vec::len).sum()
    }

    /// Whether enough came of every block.
    pub fn whole(&self) -> bool {
        self.blocks.iter().all(|block| block.restored || self.full(block))
    }

    /// Whether the whole object can be read.
    pub fn restored(&self) -> bool {
        self.blocks.iter().all(|block| block.restored)
    }

    /// Bytes of the object for which enough came, about.
    pub fn done(&self) -> u64 {
        self.blocks.iter().map(|block| block.slots.len() as u64).sum::<u64>()
            * u64::from(self.head.cut.symbol)
    }

    /// Source symbols of a range of the object's bytes: block and place of each.
    fn sources(&self, range: &Range<u64>) -> impl Iterator<Item = (u32, u32)> {
        let cut = self.head.cut;
        let symbol = u64::from(cut.symbol);
        let end = range.end.min(cut.length.into()).div_ceil(symbol);
        (range.start / symbol..end).map(move |index| cut.place(index as u32))
    }

    /// Source symbols of a range of the object's bytes that are not here.
    pub fn lacks(&self, range: &Range<u64>) -> usize {
        self.sources(range).filter(|source| !self.here(source)).count()
    }

    fn here(&self, (number, place): &(u32, u32)) -> bool {
        self.blocks[*number as usize].slots.contains_key(place)
    }

    /// Symbols that are still needed.
    pub fn needs(&self) -> usize {
        let per_block = self.head.cut.per_block() as usize;
        let blocks = self.blocks.iter().filter(|block| !block.restored);
        blocks.map(|block| per_block.saturating_sub(block.slots.len())).sum()
    }

    /// Takes bytes of the object that came over another carrier and were verified as its own.
    pub fn repair(&mut self, start: u64, bytes: &[u8]) {
        let size = usize::from(self.head.cut.symbol);
        for (offset, part) in (0u64..).step_by(size).zip(bytes.chunks(size)) {
            let at = start + offset;
            let whole = part.len() == size || at + part.len() as u64 == u64::from(self.head.cut.length);
            let mut padded = part.to_vec();
            padded.resize(size, 0);
            if let (Ok(index), true, true) =
                (u32::try_from(at / size as u64), at.is_multiple_of(size as u64), whole)
                && index < self.head.cut.sources()
            {
                self.repair_symbol(index, &padded);
            }
        }
    }

    fn repair_symbol(&mut self, index: u32, bytes: &[u8]) {
        let (number, place) = self.head.cut.place(index);
        let block = &self.blocks[number as usize];
        let known = block.restored || block.slots.contains_key(&place) || self.full(block);
        if !known && self.tree.verify(0, index, bytes) != Some(false) {
            self.keep(number, place, bytes);
            self.waiting.remove(&index);
        }
    }

    /// Makes the source symbols of every block of which enough came. The head's code must be this one.
    ///
    /// # Errors
    /// In words.
    pub fn restore(&mut self, code: &dyn Code) -> Result<(), String> {
        if self.head.code != code.number() {
            return Err(format!("the cast has the unknown code {}", self.head.code));
        }
        for number in 0..self.head.cut.blocks() {
            let block = &self.blocks[number as usize];
            if !block.restored && self.full(block) {
                self.restore_block(number, code)?;
            }
        }
        Ok(())
    }

    fn restore_block(&mut self, number: u32, code: &dyn Code) -> Result<(), String> {
        let (size, sources) = (usize::from(self.head.cut.symbol), self.head.cut.per_block());
        let first = self.at(number, 0);
        let block = &mut self.blocks[number as usize];
        // What is made goes where the repair symbols lie that it is made of: the code has read them by then.
        let repair = block.slots.split_off(&sources);
        let free = repair.values().copied().collect();
        let lack = block.slots.len() < sources as usize;
        let mut symbols =
            Restored { slots: &mut block.slots, repair: &repair, free, first, size, store: &mut self.store };
        let restored = if lack { code.restore(sources as usize, size, &mut symbols) } else { Ok(()) };
        block.restored = restored.is_ok();
        if restored.is_err() {
            // It is received anew.
            block.slots.clear();
        }
        restored
    }

    /// Bytes of the object, if their source symbols are here; whoever takes them verifies them as ever.
    ///
    /// # Errors
    /// The store's, in words.
    pub fn read(&self, range: &Range<u64>) -> Option<Result<Vec<u8>, String>> {
        let cut = self.head.cut;
        if range.end > cut.length.into()
            || range.start > range.end
            || !self.sources(range).all(|source| self.here(&source))
        {
            return None;
        }
        let size = u64::from(cut.symbol);
        let mut bytes = Vec::new();
        let mut part = vec![0; usize::from(cut.symbol)];
        for (number, place) in self.sources(range) {
            let slot = self.blocks[number as usize].slots.get(&place)?;
            if let Err(error) = self.store.get(self.at(number, *slot), &mut part) {
                return Some(Err(error));
            }
            bytes.extend_from_slice(&part);
        }
        let skip = (range.start % size) as usize;
        bytes.drain(..skip.min(bytes.len()));
        bytes.truncate((range.end - range.start) as usize);
        Some(Ok(bytes))
    }
}

/// A block while its source symbols are made.
struct Restored<'b, S> {
    slots: &'b mut BTreeMap<u32, u32>,
    repair: &'b BTreeMap<u32, u32>,
    free: Vec<u32>,
    first: u64,
    size: usize,
    store: &'b mut S,
}

impl<S: Store> Restored<'_, S> {
    fn at(&self, slot: u32) -> u64 {
        self.first + u64::from(slot) * self.size as u64
    }
}

impl<S: Store> Symbols for Restored<'_, S> {
    fn have(&self) -> Vec<u32> {
        self.slots.keys().chain(self.repair.keys()).copied().collect()
    }
    fn get(&mut self, place: u32, into: &mut [u8]) -> Result<(), String> {
        let slot = self.slots.get(&place).or_else(|| self.repair.get(&place)).ok_or("a symbol is missing")?;
        self.store.get(self.at(*slot), into)
    }
    fn put(&mut self, place: u32, bytes: &[u8]) -> Result<(), String> {
        let slot = self.free.pop().ok_or("more symbols were made than are missing")?;
        self.store.put(self.at(slot), bytes)?;
        self.slots.insert(place, slot);
        Ok(())
    }
}
