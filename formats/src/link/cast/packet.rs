//! What goes over the air, one packet in a datagram or a frame.

use super::tree::{HASH, TOP};
use super::{Cut, tree};
use crate::hex::Digest;
use crate::keys::{PublicKey, SIGNATURE_BYTES};
use crate::link::array;
use crate::link::name::Name;
use sha2::{Digest as _, Sha256};

const HEAD: u8 = 0xc1;
const SYMBOL: u8 = 0xd1;
const PAGE: u8 = 0xe1;
const FILE: u8 = 0xf1;
/// In front of the signed bytes.
const DOMAIN: &[u8; 21] = b"farhold-cast-head-v1\0";
/// Longest packet, bytes: a piece of a file, or a symbol.
pub const MAX_PACKET: usize = 1024 + 1 + Name::MAX_BYTES + 8;
/// Most bytes of a file that is sent as it is.
pub const MAX_FILE: u32 = 256 << 10;

/// First bytes of a head's hash: to which cast a packet belongs.
pub type Tag = [u8; 8];

/// Describes a cast; signed by the catalogue key, which can waste a receiver's time and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Erasure code, see [`super::code::Code::number`].
    pub code: u8,
    /// The object.
    pub object: Digest,
    /// How it is cut.
    pub cut: Cut,
    /// The topmost hashes.
    pub top: Vec<u8>,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    /// A head with its signature.
    Head(Vec<u8>),
    /// A symbol.
    Symbol(Tag, u32, Vec<u8>),
    /// A page of hashes: level, number.
    Page(Tag, u8, u32, Vec<u8>),
    /// A piece of a small file: its length, where the piece begins.
    File(Name, u32, u32, Vec<u8>),
}

impl Head {
    fn unsigned(&self) -> Vec<u8> {
        let mut out = vec![HEAD, self.code];
        out.extend_from_slice(&self.object.0);
        out.extend_from_slice(&self.cut.length.to_le_bytes());
        out.extend_from_slice(&self.cut.symbol.to_le_bytes());
        out.extend_from_slice(&self.top);
        out
    }

    /// The head, signed by the holder of the catalogue key.
    pub fn sign(&self, sign: &dyn Fn(&[u8]) -> [u8; SIGNATURE_BYTES]) -> Vec<u8> {
        let mut out = self.unsigned();
        let signature = sign(&[DOMAIN.as_slice(), &out].concat());
        out.extend_from_slice(&signature);
        out
    }

    /// The object that a head names; nothing is verified.
    pub fn claims(bytes: &[u8]) -> Option<Digest> {
        let mut rest = bytes;
        let [HEAD, _] = array(&mut rest)? else { return None };
        Some(Digest(array(&mut rest)?))
    }

    /// Opens a head that `key` signed.
    pub fn open(bytes: &[u8], key: PublicKey) -> Option<Self> {
        let (said, signature) = bytes.split_last_chunk::<SIGNATURE_BYTES>()?;
        if !key.verifies(&[DOMAIN.as_slice(), said].concat(), signature) {
            return None;
        }
        let mut rest = said;
        let [HEAD, code] = array(&mut rest)? else { return None };
        let object = Digest(array(&mut rest)?);
        let (length, symbol) = (u32::from_le_bytes(array(&mut rest)?), u16::from_le_bytes(array(&mut rest)?));
        let cut = Cut::new(length, symbol)?;
        let top = tree::levels(cut.symbols()).last().copied()? as usize * HASH;
        (rest.len() == top && top <= TOP * HASH).then(|| Self { code, object, cut, top: rest.to_vec() })
    }
}

/// The tag of a signed head.
pub fn tag(head: &[u8]) -> Tag {
    let digest = Sha256::digest(head);
    std::array::from_fn(|n| digest[n])
}

impl Packet {
    /// The packet as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Head(bytes) => out.extend_from_slice(bytes),
            Self::Symbol(tag, index, bytes) => {
                out.push(SYMBOL);
                out.extend_from_slice(tag);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::Page(tag, level, index, bytes) => {
                out.push(PAGE);
                out.extend_from_slice(tag);
                out.push(*level);
                out.extend_from_slice(&index.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Self::File(name, length, at, bytes) => {
                out.push(FILE);
                name.encode(&mut out);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&at.to_le_bytes());
                out.extend_from_slice(bytes);
            }
        }
        out
    }

    /// Reads a packet; nothing in it is verified yet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_PACKET {
            return None;
        }
        let (kind, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        let packet = match *kind {
            HEAD => Self::Head(bytes.to_vec()),
            SYMBOL => {
                let (tag, index) = (array(rest)?, u32::from_le_bytes(array(rest)?));
                Self::Symbol(tag, index, rest.to_vec())
            }
            PAGE => {
                let (tag, [level]) = (array(rest)?, array(rest)?);
                let index = u32::from_le_bytes(array(rest)?);
                Self::Page(tag, level, index, rest.to_vec())
            }
            FILE => {
                let name = Name::parse(rest)?;
                let (length, at) = (u32::from_le_bytes(array(rest)?), u32::from_le_bytes(array(rest)?));
                let end = at.checked_add(u32::try_from(rest.len()).ok()?)?;
                if length > MAX_FILE || end > length || rest.is_empty() {
                    return None;
                }
                Self::File(name, length, at, rest.to_vec())
            }
            _ => return None,
        };
        Some(packet)
    }
}
