//! Objects: byte strings cut into blocks and named by a hash, so that any block from any carrier, in any order, is
//! verified on arrival. Layout: `docs/formats.md`, "Objects".
//!
//! The hashes of the data blocks are the *list* of level 0. A list that is longer than one list block is cut into list
//! blocks, whose hashes are the list of the next level, and so on; the topmost list and the geometry make the id. Three
//! tags keep data, lists and ids apart. Knows nothing of files, carriers or what an object means.

use crate::hex::Digest;
use sha2::{Digest as _, Sha256};

/// Prepended to a data block before it is hashed.
const TAG_LEAF: &[u8; 16] = b"farhold-leaf-v1\0";
/// Prepended to a list block before it is hashed.
const TAG_LIST: &[u8; 16] = b"farhold-list-v1\0";
/// Prepended to length, block size and topmost list before they are hashed into the id.
const TAG_OBJECT: &[u8; 18] = b"farhold-object-v1\0";
/// Bytes of a hash.
pub const HASH_BYTES: usize = 32;
/// Most data blocks of an object: bounds its level-0 list to 32 MiB, half of what an agent may use.
pub const MAX_BLOCKS: u64 = 1 << 20;
/// Longest list block, bytes. Small enough to be worth fetching over a modem, large enough for three levels at most.
const MAX_LIST_BLOCK: u32 = 4096;

/// Bytes of a data block: a power of two from 256 bytes (satellite messages) to 4 MiB (delta groups).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockSize(u8);

impl BlockSize {
    /// 1 KiB: manifests, which may travel by modem.
    pub const KIB_1: Self = Self(10);
    /// 4 KiB: the largest for modem use.
    pub const KIB_4: Self = Self(12);
    /// 64 KiB: what travels by HTTP, MQTT or stick.
    pub const KIB_64: Self = Self(16);

    /// A block of 2^`log2` bytes; `None` outside 8..=22.
    pub fn from_log2(log2: u8) -> Option<Self> {
        (8..=22).contains(&log2).then_some(Self(log2))
    }
    /// The binary logarithm, as it stands in documents.
    pub fn log2(self) -> u8 {
        self.0
    }
    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        1 << self.0
    }
}

/// Length and block size: with the id they fix where every block and list stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Geometry {
    length: u64,
    block: BlockSize,
}

/// Why an object, or a part of it, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// More blocks than [`MAX_BLOCKS`].
    #[error(
        "object of {length} bytes in blocks of {block} has {blocks} blocks, at most {MAX_BLOCKS} are allowed"
    )]
    TooManyBlocks {
        /// Length of the object in bytes.
        length: u64,
        /// Bytes of a block.
        block: u32,
        /// Number of blocks.
        blocks: u64,
    },
    /// A block or list block that the geometry does not have.
    #[error("{what} {index} does not exist, there are {count}")]
    NoSuchBlock {
        /// `block` or `list block`.
        what: &'static str,
        /// Its number.
        index: u64,
        /// How many there are.
        count: u64,
    },
    /// Bytes of the wrong length.
    #[error("{what} {index} has {is} bytes, must have {must}")]
    Length {
        /// `block`, `list block` or `hash file`.
        what: &'static str,
        /// Its number.
        index: u64,
        /// Bytes that came.
        is: u64,
        /// Bytes that the geometry says.
        must: u64,
    },
    /// Bytes that are not the named ones.
    #[error("{what} {index} does not have the expected hash")]
    Hash {
        /// `block`, `list block` or `topmost list`.
        what: &'static str,
        /// Its number.
        index: u64,
    },
    /// The list block that would verify this part is not there yet.
    #[error("{what} {index} came before the list block that verifies it")]
    ListMissing {
        /// `block` or `list block`.
        what: &'static str,
        /// Its number.
        index: u64,
    },
}

impl Geometry {
    /// The geometry of an object of `length` bytes.
    ///
    /// # Errors
    /// [`ObjectError::TooManyBlocks`].
    pub fn new(length: u64, block: BlockSize) -> Result<Self, ObjectError> {
        let blocks = length.div_ceil(u64::from(block.bytes()));
        if blocks > MAX_BLOCKS {
            return Err(ObjectError::TooManyBlocks { length, block: block.bytes(), blocks });
        }
        Ok(Self { length, block })
    }
    /// Length of the object in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }
    /// Size of its data blocks.
    pub fn block(&self) -> BlockSize {
        self.block
    }
    /// Number of data blocks; 0 for an empty object.
    pub fn blocks(&self) -> u64 {
        self.length.div_ceil(u64::from(self.block.bytes()))
    }
    /// Bytes of data block `index`: the last one may be short.
    pub fn block_length(&self, index: u64) -> Option<usize> {
        part_length(self.length, u64::from(self.block.bytes()), index)
    }
    /// Bytes of a list block that is not the last of its level.
    pub fn list_block(&self) -> usize {
        self.block.bytes().min(MAX_LIST_BLOCK) as usize
    }
    /// Bytes of the list of each level, level 0 (hashes of data blocks) first, the topmost last.
    pub fn lists(&self) -> Vec<u64> {
        let mut lists = vec![self.blocks() * HASH_BYTES as u64];
        let block = self.list_block() as u64;
        while let Some(&last) = lists.last().filter(|last| **last > block) {
            lists.push(last.div_ceil(block) * HASH_BYTES as u64);
        }
        lists
    }
    /// Bytes of all lists together: the length of a hash file.
    pub fn list_bytes(&self) -> u64 {
        self.lists().iter().sum()
    }
    /// Where list block `index` of `level` stands in a hash file (topmost list first, level 0 last) and its length.
    pub fn list_range(&self, level: usize, index: u64) -> Option<std::ops::Range<u64>> {
        let lists = self.lists();
        let length = part_length(*lists.get(level)?, self.list_block() as u64, index)?;
        let start = lists[level + 1..].iter().sum::<u64>() + index * self.list_block() as u64;
        Some(start..start + length as u64)
    }
    fn id(&self, top: &[u8]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(TAG_OBJECT);
        hasher.update(self.length.to_le_bytes());
        hasher.update(self.block.bytes().to_le_bytes());
        hasher.update(top);
        Digest(hasher.finalize().into())
    }
}

fn part_length(total: u64, part: u64, index: u64) -> Option<usize> {
    let start = index.checked_mul(part).filter(|start| *start < total)?;
    usize::try_from((total - start).min(part)).ok()
}

fn tagged(tag: &[u8], bytes: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update(tag);
    hasher.update(bytes);
    hasher.finalize().into()
}

/// The hash of a data block, as it stands in the list of level 0.
pub fn leaf(block: &[u8]) -> [u8; HASH_BYTES] {
    tagged(TAG_LEAF, block)
}

/// A complete object: its id, geometry and lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// The id.
    pub id: Digest,
    /// Length and block size.
    pub geometry: Geometry,
    /// All lists as a hash file: topmost first, level 0 last.
    pub lists: Vec<u8>,
}

/// Makes the id of bytes that come in order, in pieces of any size. Memory: 32 bytes per block.
pub struct Builder {
    block: BlockSize,
    length: u64,
    current: Sha256,
    leaves: Vec<u8>,
}

impl Builder {
    /// A builder for blocks of `block` bytes.
    pub fn new(block: BlockSize) -> Self {
        Self { block, length: 0, current: Sha256::new_with_prefix(TAG_LEAF), leaves: Vec::new() }
    }

    /// Adds bytes.
    pub fn push(&mut self, mut bytes: &[u8]) {
        let size = u64::from(self.block.bytes());
        while !bytes.is_empty() {
            let room = size - self.length % size;
            let (now, later) = bytes.split_at(bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.current.update(now);
            self.length += now.len() as u64;
            if self.length.is_multiple_of(size) {
                self.close_block();
            }
            bytes = later;
        }
    }

    fn close_block(&mut self) {
        let done = std::mem::replace(&mut self.current, Sha256::new_with_prefix(TAG_LEAF));
        self.leaves.extend_from_slice(&done.finalize());
    }

    /// Ends the object.
    ///
    /// # Errors
    /// [`ObjectError::TooManyBlocks`].
    pub fn finish(mut self) -> Result<Object, ObjectError> {
        if !self.length.is_multiple_of(u64::from(self.block.bytes())) {
            self.close_block();
        }
        let geometry = Geometry::new(self.length, self.block)?;
        let mut levels = vec![self.leaves];
        while let Some(last) = levels.last().filter(|last| last.len() > geometry.list_block()) {
            levels.push(last.chunks(geometry.list_block()).flat_map(|b| tagged(TAG_LIST, b)).collect());
        }
        let id = geometry.id(levels.last().map_or(&[][..], Vec::as_slice));
        Ok(Object { id, geometry, lists: levels.into_iter().rev().flatten().collect() })
    }
}

/// The object that `bytes` are.
///
/// # Errors
/// [`ObjectError::TooManyBlocks`].
pub fn of(bytes: &[u8], block: BlockSize) -> Result<Object, ObjectError> {
    let mut builder = Builder::new(block);
    builder.push(bytes);
    builder.finish()
}

/// The lists of an object as far as they are verified, and the check of its blocks.
///
/// Memory grows with what was verified, never with what a document claims: a level is held once its first list block
/// was accepted.
#[derive(Clone, Debug)]
pub struct Verifier {
    geometry: Geometry,
    /// By level: the list, and which of its list blocks are verified.
    levels: Vec<(Vec<u8>, Vec<bool>)>,
}

impl Verifier {
    /// Begins with the topmost list, which the id verifies.
    ///
    /// # Errors
    /// [`ObjectError::Length`] and [`ObjectError::Hash`].
    pub fn new(id: Digest, geometry: Geometry, top: &[u8]) -> Result<Self, ObjectError> {
        let lists = geometry.lists();
        let must = lists.last().copied().unwrap_or(0);
        let what = "topmost list";
        if top.len() as u64 != must {
            return Err(ObjectError::Length { what, index: 0, is: top.len() as u64, must });
        }
        if geometry.id(top) != id {
            return Err(ObjectError::Hash { what, index: 0 });
        }
        let mut levels = vec![(Vec::new(), Vec::new()); lists.len()];
        if let Some(last) = levels.last_mut() {
            *last = (top.to_vec(), vec![true]);
        }
        Ok(Self { geometry, levels })
    }

    /// Takes a whole hash file, as [`Object::lists`] is.
    ///
    /// # Errors
    /// As [`Verifier::new`] and [`Verifier::list`]; a wrong length of the whole as well.
    pub fn from_lists(id: Digest, geometry: Geometry, lists: &[u8]) -> Result<Self, ObjectError> {
        let (is, must) = (lists.len() as u64, geometry.list_bytes());
        if is != must {
            return Err(ObjectError::Length { what: "hash file", index: 0, is, must });
        }
        let lengths = geometry.lists();
        let top = lengths.last().map_or(0, |length| *length as usize);
        let mut verifier = Self::new(id, geometry, &lists[..top])?;
        let mut rest = &lists[top..];
        for level in (0..lengths.len() - 1).rev() {
            let (list, lower) = rest.split_at(lengths[level] as usize);
            for (index, block) in list.chunks(geometry.list_block()).enumerate() {
                verifier.list(level, index as u64, block)?;
            }
            rest = lower;
        }
        Ok(verifier)
    }

    /// Accepts list block `index` of `level`, if the level above has its hash.
    ///
    /// # Errors
    /// Every variant but [`ObjectError::TooManyBlocks`]; nothing is kept then.
    pub fn list(&mut self, level: usize, index: u64, bytes: &[u8]) -> Result<(), ObjectError> {
        let what = "list block";
        let size = self.geometry.list_block();
        let lists = self.geometry.lists();
        let length = lists.get(level).filter(|_| level + 1 < lists.len()).copied().unwrap_or(0);
        let count = length.div_ceil(size as u64);
        let must =
            part_length(length, size as u64, index).ok_or(ObjectError::NoSuchBlock { what, index, count })?;
        if bytes.len() != must {
            return Err(ObjectError::Length { what, index, is: bytes.len() as u64, must: must as u64 });
        }
        if tagged(TAG_LIST, bytes) != self.expected(level + 1, index, what)? {
            return Err(ObjectError::Hash { what, index });
        }
        let (list, verified) = &mut self.levels[level];
        list.resize(length as usize, 0);
        verified.resize(count as usize, false);
        let start = index as usize * size;
        list[start..start + must].copy_from_slice(bytes);
        verified[index as usize] = true;
        Ok(())
    }

    /// The verified hash of data block `index`.
    ///
    /// # Errors
    /// [`ObjectError::NoSuchBlock`], [`ObjectError::ListMissing`].
    pub fn leaf(&self, index: u64) -> Result<[u8; HASH_BYTES], ObjectError> {
        let count = self.geometry.blocks();
        if index >= count {
            return Err(ObjectError::NoSuchBlock { what: "block", index, count });
        }
        self.expected(0, index, "block")
    }

    /// Checks data block `index`.
    ///
    /// # Errors
    /// As [`Verifier::leaf`], and [`ObjectError::Length`], [`ObjectError::Hash`].
    pub fn block(&self, index: u64, bytes: &[u8]) -> Result<(), ObjectError> {
        let what = "block";
        let expected = self.leaf(index)?;
        let must = self.geometry.block_length(index).unwrap_or(0);
        if bytes.len() != must {
            return Err(ObjectError::Length { what, index, is: bytes.len() as u64, must: must as u64 });
        }
        if leaf(bytes) == expected { Ok(()) } else { Err(ObjectError::Hash { what, index }) }
    }

    /// The geometry it was made for.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The hash at `index` in the list of `level`, if that part of the list is verified.
    fn expected(
        &self,
        level: usize,
        index: u64,
        what: &'static str,
    ) -> Result<[u8; HASH_BYTES], ObjectError> {
        let missing = ObjectError::ListMissing { what, index };
        let (list, verified) = self.levels.get(level).ok_or(missing)?;
        let start = index as usize * HASH_BYTES;
        if !verified.get(start / self.geometry.list_block()).copied().unwrap_or(false) {
            return Err(missing);
        }
        list.get(start..).and_then(|rest| rest.first_chunk()).copied().ok_or(missing)
    }
}

/// Reads a hash file from its start, list block by list block, so that what came of one that is cut off is of use.
#[derive(Clone, Debug)]
pub struct ListReader {
    id: Digest,
    geometry: Geometry,
    verifier: Option<Verifier>,
    /// Level and number of the next list block.
    next: Option<(usize, u64)>,
}

impl ListReader {
    /// A reader at the start of an object's hash file.
    pub fn new(id: Digest, geometry: Geometry) -> Self {
        Self { id, geometry, verifier: None, next: Some((geometry.lists().len() - 1, 0)) }
    }

    /// Where the next list block stands in the hash file; `None` at its end.
    pub fn next(&self) -> Option<std::ops::Range<u64>> {
        let (level, index) = self.next?;
        match &self.verifier {
            // The topmost list counts as one block, however short.
            None => Some(0..self.geometry.lists().last().copied().unwrap_or(0)),
            Some(_) => self.geometry.list_range(level, index),
        }
    }

    /// Takes the list block that stands at [`ListReader::next`].
    ///
    /// # Errors
    /// As [`Verifier::new`] and [`Verifier::list`]; the reader stays where it is.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        let Some((level, index)) = self.next else {
            return Err(ObjectError::NoSuchBlock { what: "list block", index: 0, count: 0 });
        };
        let end = match &mut self.verifier {
            None => {
                self.verifier = Some(Verifier::new(self.id, self.geometry, bytes)?);
                true
            }
            Some(verifier) => {
                verifier.list(level, index, bytes)?;
                self.geometry.list_range(level, index + 1).is_none()
            }
        };
        self.next = match (end, level) {
            (false, _) => Some((level, index + 1)),
            (true, 0) => None,
            (true, _) => Some((level - 1, 0)),
        };
        Ok(())
    }

    /// The verifier, once the whole file was read.
    pub fn done(&self) -> Option<&Verifier> {
        self.verifier.as_ref().filter(|_| self.next.is_none())
    }
}

#[cfg(test)]
mod tests;
