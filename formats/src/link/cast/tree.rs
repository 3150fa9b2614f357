//! Hashes of symbols, 64 to a page, hashes of pages on pages again, until at most 16 are left, which the head carries. 16
//! bytes of SHA-256: an attacker would need a second preimage, which takes 2^112 tries or more; collisions do not help, as
//! the signer alone chooses symbols.

use sha2::{Digest, Sha256};

/// Bytes of a hash.
pub const HASH: usize = 16;
/// Hashes of a page.
pub const PAGE: u32 = 64;
/// Hashes in a head, at most.
pub const TOP: usize = 16;
/// Domain of the hashes.
const DOMAIN: &[u8; 16] = b"farhold-cast-v1\0";

/// Hash number `index` of a level: of symbols at level 0, of pages of the level below above it.
pub fn hash(object: &[u8; 32], level: u8, index: u32, bytes: &[u8]) -> [u8; HASH] {
    let mut hasher = Sha256::new_with_prefix(DOMAIN);
    hasher.update(object);
    hasher.update([level]);
    hasher.update(index.to_le_bytes());
    hasher.update(bytes);
    let digest = hasher.finalize();
    std::array::from_fn(|n| digest[n])
}

/// Hashes of each level, for so many symbols: level 0 first; the last are the head's.
pub fn levels(symbols: u32) -> Vec<u32> {
    let mut levels = vec![symbols];
    while let Some(last) = levels.last().copied().filter(|last| *last as usize > TOP) {
        levels.push(last.div_ceil(PAGE));
    }
    levels
}

/// All hashes: level after level, one after the other.
pub fn grow(object: &[u8; 32], symbols: impl Iterator<Item = impl AsRef<[u8]>>) -> Vec<Vec<u8>> {
    let numbered = (0u32..).zip(symbols);
    let mut levels: Vec<Vec<u8>> =
        vec![numbered.flat_map(|(index, bytes)| hash(object, 0, index, bytes.as_ref())).collect()];
    while let Some(last) = levels.last().filter(|last| last.len() > TOP * HASH) {
        let level = levels.len() as u8;
        let pages = (0u32..).zip(last.chunks(PAGE as usize * HASH));
        let next = pages.flat_map(|(index, page)| hash(object, level, index, page)).collect();
        levels.push(next);
    }
    levels
}

/// The hashes that a receiver has, each verified by the page above it.
#[derive(Debug)]
pub struct Tree {
    object: [u8; 32],
    counts: Vec<u32>,
    /// By level and page; the last level is one page, the head's.
    pages: Vec<Vec<Option<Vec<u8>>>>,
}

impl Tree {
    /// A tree of which the top is known; `None` if that has another length than the symbols' number says.
    pub fn new(object: [u8; 32], symbols: u32, top: &[u8]) -> Option<Self> {
        let counts = levels(symbols);
        let last = counts.len() - 1;
        if top.len() != counts[last] as usize * HASH {
            return None;
        }
        let mut pages: Vec<Vec<Option<Vec<u8>>>> =
            counts.iter().map(|count| vec![None; count.div_ceil(PAGE) as usize]).collect();
        pages[last] = vec![Some(top.to_vec())];
        Some(Self { object, counts, pages })
    }

    /// Whether bytes are what hash number `index` of a level says; `None` if that hash is not here yet.
    pub fn verify(&self, level: usize, index: u32, bytes: &[u8]) -> Option<bool> {
        if self.counts.get(level).is_none_or(|count| index >= *count) {
            return Some(false);
        }
        let page = self.pages[level].get((index / PAGE) as usize)?.as_ref()?;
        let at = (index % PAGE) as usize * HASH;
        Some(page.get(at..at + HASH)? == hash(&self.object, level as u8, index, bytes))
    }

    /// Takes a page of a level; whether it is new and right.
    pub fn take(&mut self, level: usize, index: u32, page: &[u8]) -> bool {
        let known = self.pages.get(level).and_then(|pages| pages.get(index as usize));
        if known.is_none_or(Option::is_some) || self.verify(level + 1, index, page) != Some(true) {
            return false;
        }
        self.pages[level][index as usize] = Some(page.to_vec());
        true
    }
}
