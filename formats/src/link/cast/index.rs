//! What is on the air: a small cast of its own, so that a receiver knows what it may wait for, and which casts are
//! today's.

use super::packet::Tag;
use crate::hex::Digest;
use crate::link::array;
use crate::link::name::Name;
use sha2::{Digest as _, Sha256};

/// Most casts at a time.
pub const MAX_ENTRIES: usize = 256;
/// Longest index, bytes.
pub const MAX_BYTES: usize = 8 + MAX_ENTRIES * (Name::MAX_BYTES + 12);
const DOMAIN: &[u8; 21] = b"farhold-cast-name-v1\0";

/// Under what a head names a file: an object by its id, everything else by the hash of its name.
pub fn id_of(name: &Name) -> Digest {
    if let Name::Object(id) = name {
        return *id;
    }
    let mut bytes = DOMAIN.to_vec();
    name.encode(&mut bytes);
    Digest(Sha256::digest(&bytes).into())
}

/// Under what heads name an index: no file has this.
pub fn index_id() -> Digest {
    Digest(Sha256::digest(DOMAIN).into())
}

/// A cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is cast.
    pub name: Name,
    /// Its head's tag.
    pub tag: Tag,
    /// Its length in bytes.
    pub length: u32,
}

/// All casts, the most wanted first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Grows: seconds since 1970 at which the sender made it.
    pub made_s: u64,
    /// The casts.
    pub entries: Vec<Entry>,
}

impl Index {
    /// The index as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.made_s.to_le_bytes().to_vec();
        for entry in self.entries.iter().take(MAX_ENTRIES) {
            entry.name.encode(&mut out);
            out.extend_from_slice(&entry.tag);
            out.extend_from_slice(&entry.length.to_le_bytes());
        }
        out
    }

    /// Reads an index.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        let made_s = u64::from_le_bytes(array(&mut rest)?);
        let mut entries = Vec::new();
        while !rest.is_empty() {
            if entries.len() == MAX_ENTRIES {
                return None;
            }
            let (name, tag) = (Name::parse(&mut rest)?, array(&mut rest)?);
            entries.push(Entry { name, tag, length: u32::from_le_bytes(array(&mut rest)?) });
        }
        Some(Self { made_s, entries })
    }
}
