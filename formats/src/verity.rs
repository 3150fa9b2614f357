//! The dm-verity hash tree, version 1, SHA-256, 4096-byte blocks: geometry, superblock and a streaming builder.
//!
//! Follows the kernel's `Documentation/admin-guide/device-mapper/verity.rst` and cryptsetup's `verity_hash.c`: each
//! hash is SHA-256(salt ‖ block); the topmost level stands first in the tree. Knows nothing of partitions or files.

use crate::hex::Digest;
use sha2::{Digest as _, Sha256};

/// Bytes of a data block and of a hash block.
pub const BLOCK: usize = 4096;
/// Bytes of the salt that Farhold uses.
pub const SALT_BYTES: usize = 32;
const HASH_BYTES: usize = 32;
const HASHES_PER_BLOCK: u64 = (BLOCK / HASH_BYTES) as u64;
const SUPERBLOCK_BYTES: usize = 512;

/// Everything that decides the hash tree of an image but the image itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Number of data blocks.
    pub data_blocks: u64,
    /// Prepended to each hashed block.
    pub salt: [u8; SALT_BYTES],
}

/// Why a superblock was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Fewer than 512 bytes.
    #[error("verity superblock has {0} bytes, must have 512")]
    Short(usize),
    /// No `verity` signature: never written, or wiped because the slot is retired.
    #[error("no verity superblock")]
    Absent,
    /// Written by something else than Farhold.
    #[error("verity superblock: {0} differs from what Farhold writes")]
    Foreign(&'static str),
}

impl Parameters {
    /// Number of blocks of each level of the tree, the one nearest to the data first.
    fn levels(&self) -> Vec<u64> {
        let mut levels = Vec::new();
        let mut blocks = self.data_blocks;
        while blocks > 1 || levels.is_empty() {
            blocks = blocks.div_ceil(HASHES_PER_BLOCK);
            levels.push(blocks);
        }
        levels
    }

    /// Bytes of superblock block and hash tree together.
    pub fn hash_area_bytes(&self) -> u64 {
        (1 + self.levels().iter().sum::<u64>()) * BLOCK as u64
    }

    /// The superblock as `veritysetup format` writes it, padded to a block. `uuid` is written as given.
    pub fn superblock(&self, uuid: [u8; 16]) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        block[..6].copy_from_slice(b"verity");
        block[8..12].copy_from_slice(&1u32.to_le_bytes());
        block[12..16].copy_from_slice(&1u32.to_le_bytes());
        block[16..32].copy_from_slice(&uuid);
        block[32..38].copy_from_slice(b"sha256");
        block[64..68].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        block[68..72].copy_from_slice(&(BLOCK as u32).to_le_bytes());
        block[72..80].copy_from_slice(&self.data_blocks.to_le_bytes());
        block[80..82].copy_from_slice(&(SALT_BYTES as u16).to_le_bytes());
        block[88..88 + SALT_BYTES].copy_from_slice(&self.salt);
        block
    }

    /// Reads a superblock that [`Parameters::superblock`] wrote.
    ///
    /// # Errors
    /// [`SuperblockError`] for anything else, each field compared.
    pub fn parse(block: &[u8]) -> Result<Self, SuperblockError> {
        let bytes = block.get(..SUPERBLOCK_BYTES).ok_or(SuperblockError::Short(block.len()))?;
        if &bytes[..8] != b"verity\0\0" {
            return Err(SuperblockError::Absent);
        }
        let mut data_blocks = [0u8; 8];
        data_blocks.copy_from_slice(&bytes[72..80]);
        let mut salt = [0u8; SALT_BYTES];
        salt.copy_from_slice(&bytes[88..88 + SALT_BYTES]);
        let mut uuid = [0u8; 16];
        uuid.copy_from_slice(&bytes[16..32]);
        let found = Self { data_blocks: u64::from_le_bytes(data_blocks), salt };
        let expected = found.superblock(uuid);
        let fields = [
            ("version or type", 8..16),
            ("algorithm", 32..64),
            ("block size", 64..72),
            ("salt length", 80..88),
            ("padding", 120..512),
        ];
        for (name, range) in fields {
            if bytes[range.clone()] != expected[range] {
                return Err(SuperblockError::Foreign(name));
            }
        }
        Ok(found)
    }

    /// SHA-256(salt ‖ block), the hash of one data or hash block.
    pub fn hash(&self, block: &[u8]) -> [u8; HASH_BYTES] {
        let mut hasher = Sha256::new();
        hasher.update(self.salt);
        hasher.update(block);
        hasher.finalize().into()
    }

    /// Whether `first` is the topmost block of the tree that `roothash` names. The topmost block is written last, so
    /// this shows that a slot was completed.
    pub fn opens(&self, roothash: Digest, first: &[u8]) -> bool {
        first.len() == BLOCK && self.hash(first) == roothash.0
    }
}

/// A finished hash tree.
pub struct Tree {
    /// The roothash.
    pub roothash: Digest,
    /// The levels as they stand on disk after the superblock's block, topmost first.
    pub blocks: Vec<u8>,
}

/// Builds a tree from data blocks in order. Holds the tree in memory: 1/127 of the image.
pub struct Builder {
    parameters: Parameters,
    seen: u64,
    hashes: Vec<u8>,
}

impl Builder {
    /// A builder for `parameters.data_blocks` blocks.
    pub fn new(parameters: Parameters) -> Self {
        Self { parameters, seen: 0, hashes: Vec::new() }
    }

    /// Adds whole blocks.
    ///
    /// # Panics
    /// If `data` is not a multiple of [`BLOCK`] or there are more blocks than announced: errors of the caller.
    pub fn push(&mut self, data: &[u8]) {
        assert!(data.len().is_multiple_of(BLOCK), "verity data must come in whole blocks");
        for block in data.chunks_exact(BLOCK) {
            self.hashes.extend_from_slice(&self.parameters.hash(block));
            self.seen += 1;
        }
        assert!(self.seen <= self.parameters.data_blocks, "more verity data than announced");
    }

    /// Computes the upper levels.
    ///
    /// # Panics
    /// If fewer blocks came than announced: an error of the caller.
    pub fn finish(self) -> Tree {
        assert_eq!(self.seen, self.parameters.data_blocks, "less verity data than announced");
        let mut levels = Vec::new();
        let mut hashes = self.hashes;
        loop {
            let blocks = (hashes.len() / HASH_BYTES).div_ceil(HASHES_PER_BLOCK as usize).max(1);
            hashes.resize(blocks * BLOCK, 0);
            let upper: Vec<u8> = hashes.chunks_exact(BLOCK).flat_map(|b| self.parameters.hash(b)).collect();
            levels.push(std::mem::replace(&mut hashes, upper));
            if blocks == 1 {
                break;
            }
        }
        let mut roothash = [0u8; HASH_BYTES];
        roothash.copy_from_slice(&hashes);
        Tree { roothash: Digest(roothash), blocks: levels.into_iter().rev().flatten().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(blocks: u64) -> (Parameters, Tree) {
        let parameters = Parameters { data_blocks: blocks, salt: [7; SALT_BYTES] };
        let mut builder = Builder::new(parameters);
        for n in 0..blocks {
            builder.push(&[n as u8; BLOCK]);
        }
        (parameters, builder.finish())
    }

    #[test]
    fn area_matches_the_tree_and_the_first_block_opens_it() {
        for blocks in [1, 2, 128, 129, 128 * 128, 128 * 128 + 1] {
            let (parameters, tree) = tree(blocks);
            assert_eq!(parameters.hash_area_bytes(), (tree.blocks.len() + BLOCK) as u64, "{blocks}");
            assert!(parameters.opens(tree.roothash, &tree.blocks[..BLOCK]));
            assert!(!parameters.opens(tree.roothash, &[0; BLOCK]));
        }
    }

    #[test]
    fn superblock_round_trips_and_any_flip_in_it_is_seen() {
        let parameters = Parameters { data_blocks: 41, salt: [9; SALT_BYTES] };
        let block = parameters.superblock([3; 16]);
        assert_eq!(Parameters::parse(&block), Ok(parameters));
        for at in (0..512).filter(|at| !(16..32).contains(at)) {
            let mut damaged = block;
            damaged[at] ^= 1;
            assert_ne!(Parameters::parse(&damaged), Ok(parameters), "byte {at}");
        }
        assert_eq!(Parameters::parse(&[0; BLOCK]), Err(SuperblockError::Absent));
    }
}
