//! Messages of serial lines and satellite modems: small, independent of each other, each of use by itself. Neither end
//! keeps a connection: a request names all that its answer needs, so that ends and line may fail at any time.

use super::name::Name;
use super::{array, put_varint, varint};

/// Most bytes of a chunk.
pub const MAX_CHUNK: usize = 1024;
/// Fewest bytes of a chunk.
pub const MIN_CHUNK: usize = 16;
/// Longest message, bytes.
pub const MAX_MESSAGE: usize = 1100;
/// Most bytes of a request's map.
pub const MAX_MAP: usize = 32;
/// Longest file, bytes: 2^40.
const MAX_FILE: u64 = 1 << 40;

/// First byte: type in the high half, layout version 1 in the low half, as in an announcement.
const WANT: u8 = 0x81;
const CHUNK: u8 = 0x91;
const LAST: u8 = 0xa1;
const NONE: u8 = 0xb1;
const ANNOUNCEMENT: u8 = 0x11;

/// A request for chunks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Want {
    /// Chosen by who asks; answers repeat it.
    pub tag: u16,
    /// Whether requests before this one are void.
    pub anew: bool,
    /// Bytes of a chunk: [`MIN_CHUNK`] to [`MAX_CHUNK`]; the last of a file may be shorter.
    pub chunk: u16,
    /// The file.
    pub name: Name,
    /// Number of the chunk that the first bit stands for.
    pub base: u32,
    /// One bit for each chunk from `base` on, least significant first; 1 to [`MAX_MAP`] bytes.
    pub map: Vec<u8>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for chunks.
    Want(Want),
    /// A chunk of the file that a tag stands for.
    Chunk {
        /// The request's.
        tag: u16,
        /// Which chunk.
        index: u32,
        /// Whether it is the file's last.
        last: bool,
        /// Its bytes.
        bytes: Vec<u8>,
    },
    /// There is no such file, or not now.
    None {
        /// The request's.
        tag: u16,
        /// Seconds after which it may be there; 0: it is not there.
        after_s: u16,
    },
    /// An announcement that nobody asked for.
    Announcement(Vec<u8>),
    /// Another kind of message.
    Other(Vec<u8>),
}

impl Want {
    /// Numbers of the wanted chunks, ascending.
    pub fn chunks(&self) -> impl Iterator<Item = u32> + '_ {
        let bits = (0..self.map.len() * 8).filter(|bit| self.map[bit / 8] & (1 << (bit % 8)) != 0);
        bits.filter_map(|bit| self.base.checked_add(u32::try_from(bit).ok()?))
    }
}

impl Message {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Want(want) => {
                out.push(WANT);
                out.extend_from_slice(&want.tag.to_le_bytes());
                out.push(u8::from(want.anew));
                put_varint(&mut out, want.chunk.into());
                want.name.encode(&mut out);
                put_varint(&mut out, want.base.into());
                out.extend_from_slice(&want.map);
            }
            Self::Chunk { tag, index, last, bytes } => {
                out.push(if *last { LAST } else { CHUNK });
                out.extend_from_slice(&tag.to_le_bytes());
                put_varint(&mut out, (*index).into());
                out.extend_from_slice(bytes);
            }
            Self::None { tag, after_s } => {
                out.push(NONE);
                out.extend_from_slice(&tag.to_le_bytes());
                out.extend_from_slice(&after_s.to_le_bytes());
            }
            Self::Announcement(bytes) | Self::Other(bytes) => out.extend_from_slice(bytes),
        }
        out
    }

    /// Reads a message of at most [`MAX_MESSAGE`] bytes; `None` if it breaks a rule.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_MESSAGE {
            return None;
        }
        let (kind, mut rest) = bytes.split_first()?;
        let rest = &mut rest;
        Some(match *kind {
            WANT => {
                let (tag, [flags]) = (u16::from_le_bytes(array(rest)?), array(rest)?);
                let chunk = varint(rest, MAX_CHUNK as u64).filter(|chunk| *chunk >= MIN_CHUNK as u64)?;
                let name = Name::parse(rest)?;
                let base = varint(rest, MAX_FILE / chunk)?;
                let map = rest.to_vec();
                if flags > 1 || map.is_empty() || map.len() > MAX_MAP {
                    return None;
                }
                let (chunk, base) = (u16::try_from(chunk).ok()?, u32::try_from(base).ok()?);
                Self::Want(Want { tag, anew: flags == 1, chunk, name, base, map })
            }
            CHUNK | LAST => {
                let tag = u16::from_le_bytes(array(rest)?);
                let index = u32::try_from(varint(rest, u32::MAX.into())?).ok()?;
                if rest.len() > MAX_CHUNK || (rest.is_empty() && *kind == CHUNK) {
                    return None;
                }
                Self::Chunk { tag, index, last: *kind == LAST, bytes: rest.to_vec() }
            }
            NONE => {
                let (tag, after) = (array(rest)?, array(rest)?);
                if !rest.is_empty() {
                    return None;
                }
                Self::None { tag: u16::from_le_bytes(tag), after_s: u16::from_le_bytes(after) }
            }
            ANNOUNCEMENT => Self::Announcement(bytes.to_vec()),
            _ => Self::Other(bytes.to_vec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hex::Digest;
    use proptest::prelude::*;

    fn want() -> Want {
        let name = Name::Object(Digest([0xaa; 32]));
        Want { tag: 0x1234, anew: true, chunk: 256, name, base: 300, map: vec![0b101, 0, 0, 0x80] }
    }

    #[test]
    fn a_request_for_a_window_of_an_object_costs_one_credit_of_50_bytes() {
        let message = Message::Want(want());
        assert!(message.encode().len() <= 50, "{}", message.encode().len());
        assert_eq!(Message::parse(&message.encode()), Some(message));
        assert_eq!(want().chunks().collect::<Vec<u32>>(), [300, 302, 331]);
    }

    #[test]
    fn messages_come_back_and_fit_a_satellite_message() {
        let chunk = Message::Chunk { tag: 7, index: 70_000, last: false, bytes: vec![9; 256] };
        assert!(chunk.encode().len() <= 270);
        let last = Message::Chunk { tag: 7, index: 0, last: true, bytes: vec![] };
        let announcement = Message::Announcement([&[0x11], [3; 197].as_slice()].concat());
        for message in [chunk, last, Message::None { tag: 9, after_s: 30 }, announcement] {
            assert_eq!(Message::parse(&message.encode()), Some(message));
        }
        assert_eq!(Message::parse(&[0x41, 1, 2]), Some(Message::Other(vec![0x41, 1, 2])));
    }

    #[test]
    fn what_breaks_a_rule_is_no_message() {
        let encoded = Message::Want(want()).encode();
        for end in 0..encoded.len() - 3 {
            assert_eq!(Message::parse(&encoded[..end]), None, "{end}");
        }
        let change = |with: fn(&mut Want)| {
            let mut want = want();
            with(&mut want);
            Message::parse(&Message::Want(want).encode())
        };
        assert_eq!(change(|want| want.map = vec![]), None);
        assert_eq!(change(|want| want.map = vec![1; 33]), None);
        assert_eq!(change(|want| want.chunk = 8), None);
        assert_eq!(change(|want| want.chunk = 1025), None);
        assert_eq!(Message::parse(&[0x91, 0, 0, 0]), None);
        assert_eq!(Message::parse(&[0x91, 0, 0, 0x80, 0, 1]), None, "not the shortest form");
        assert_eq!(Message::parse(&vec![0x41; MAX_MESSAGE + 1]), None);
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(bytes in prop::collection::vec(any::<u8>(), 0..100), kind in 0usize..6) {
            let kind = [WANT, CHUNK, LAST, NONE, ANNOUNCEMENT, 0][kind];
            let bytes = [&[kind], bytes.as_slice()].concat();
            if let Some(message) = Message::parse(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
