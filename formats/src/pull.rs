//! Messages by which a device pulls pieces of files over a broker or any other link that carries datagrams: which pieces
//! it wants, as a map, and the pieces, cut to the size of the link's packets. Layout: `docs/formats.md`, "Pulling".
//! Whoever answers remembers nothing: a request says all. Knows no topics, no times and no files.

use crate::hex::Digest;
use crate::object::BlockSize;
use crate::repository;

/// Type 2 (get), layout version 1.
const GET: u8 = 0x21;
/// Type 3 (part), layout version 1.
const PART: u8 = 0x31;
/// Most bytes of a request's map: 32,768 pieces.
pub const MAX_MAP_BYTES: usize = 4096;
/// Bytes of a request before the name of its file.
const GET_FIXED: usize = 17;
/// Longest request.
pub const MAX_GET_BYTES: usize = GET_FIXED + 65 + 5 + MAX_MAP_BYTES;
/// Bytes of a part before its contents.
pub const PART_HEADER: usize = 26;
/// Least bytes of a message that a request may ask for.
pub const MIN_PART_BYTES: u16 = 64;

/// A file of a repository, as requests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// An object.
    Object(Digest),
    /// An object's hash file.
    Lists(Digest),
    /// The chain of root documents.
    Roots,
    /// A catalogue: of a release, for devices that run a slot image.
    Catalogue(Digest, Digest),
    /// A release's catalogue for all others.
    AnyCatalogue(Digest),
}

impl File {
    /// Its name in a repository.
    pub fn path(&self) -> String {
        match self {
            Self::Object(id) => repository::object(id),
            Self::Lists(id) => repository::lists(id),
            Self::Roots => repository::ROOTS.to_owned(),
            Self::Catalogue(manifest, base) => repository::catalogue(manifest, Some(base)),
            Self::AnyCatalogue(manifest) => repository::catalogue(manifest, None),
        }
    }

    /// The file of this name; `None` if requests cannot name it.
    pub fn of_path(path: &str) -> Option<Self> {
        if path == repository::ROOTS {
            return Some(Self::Roots);
        }
        let (folder, rest) = path.split_once('/')?;
        if folder == repository::OBJECTS {
            return match rest.strip_suffix(".lists") {
                Some(id) => Digest::parse(id).map(Self::Lists),
                None => Digest::parse(rest).map(Self::Object),
            };
        }
        let (manifest, base) = rest.split_once('/').filter(|_| folder == repository::CATALOGUES)?;
        let manifest = Digest::parse(manifest)?;
        if base == "any" {
            return Some(Self::AnyCatalogue(manifest));
        }
        Digest::parse(base).map(|base| Self::Catalogue(manifest, base))
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let (kind, names): (u8, Vec<&Digest>) = match self {
            Self::Object(id) => (1, vec![id]),
            Self::Lists(id) => (2, vec![id]),
            Self::Roots => (3, vec![]),
            Self::Catalogue(manifest, base) => (4, vec![manifest, base]),
            Self::AnyCatalogue(manifest) => (5, vec![manifest]),
        };
        out.push(kind);
        names.into_iter().for_each(|name| out.extend(name.0));
    }

    fn parse(bytes: &mut Bytes<'_>) -> Result<Self, PullError> {
        match bytes.u8()? {
            1 => Ok(Self::Object(bytes.digest()?)),
            2 => Ok(Self::Lists(bytes.digest()?)),
            3 => Ok(Self::Roots),
            4 => Ok(Self::Catalogue(bytes.digest()?, bytes.digest()?)),
            5 => Ok(Self::AnyCatalogue(bytes.digest()?)),
            kind => Err(PullError::Field { field: "file kind", is: kind.into() }),
        }
    }
}

/// Why bytes are no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PullError {
    /// Too short, or too long.
    #[error("message of {is} bytes has the wrong length")]
    Length {
        /// Bytes that came.
        is: usize,
    },
    /// A value that version 1 does not have.
    #[error("{field} is {is}, which is not allowed")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        is: u64,
    },
}

struct Bytes<'b> {
    all: usize,
    rest: &'b [u8],
}

impl<'b> Bytes<'b> {
    fn new(bytes: &'b [u8]) -> Self {
        Self { all: bytes.len(), rest: bytes }
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], PullError> {
        let (now, later) = self.rest.split_first_chunk().ok_or(PullError::Length { is: self.all })?;
        self.rest = later;
        Ok(*now)
    }
    fn u8(&mut self) -> Result<u8, PullError> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Result<u16, PullError> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, PullError> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, PullError> {
        self.take().map(u64::from_le_bytes)
    }
    fn digest(&mut self) -> Result<Digest, PullError> {
        self.take().map(Digest)
    }
    fn kind(&mut self, must: u8) -> Result<(), PullError> {
        match self.u8()? {
            is if is == must => Ok(()),
            is => Err(PullError::Field { field: "type and version", is: is.into() }),
        }
    }
}

/// Which request a message belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag {
    /// Drawn by the device for each file; see [`Lane`] and [`Tag::ends`].
    pub session: u32,
    /// Rises within a session.
    pub number: u32,
}

impl Tag {
    /// Whether a request with this tag ends `older`: it is of another session in the same lane.
    pub fn ends(&self, older: &Self) -> bool {
        self.session != older.session && self.session & 1 == older.session & 1
    }
}

/// What a device may have under way side by side: a transfer in each lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Pieces of an object or of its hash file; the session's lowest bit is 0.
    Bulk,
    /// A small file as a whole; the session's lowest bit is 1.
    Small,
}

impl Lane {
    /// A session of this lane, of a number that was drawn.
    pub fn session(self, drawn: u32) -> u32 {
        match self {
            Self::Bulk => drawn & !1,
            Self::Small => drawn | 1,
        }
    }
}

/// A device asks for pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Get {
    /// Which request this is.
    pub tag: Tag,
    /// Seconds after which an answer is of no use.
    pub expiry_s: u16,
    /// Most bytes of a message that carries a part, its header included.
    pub part_bytes: u16,
    /// Most pieces that are to be sent; 0 for all in the map.
    pub count: u32,
    /// The file.
    pub file: File,
    /// Bytes of a piece.
    pub piece: BlockSize,
    /// Number of the piece that the map's first bit stands for.
    pub first: u32,
    /// One bit a piece, lowest first: set if it is wanted. Its last byte is not zero.
    pub map: Vec<u8>,
}

impl Get {
    /// Reads a request.
    ///
    /// # Errors
    /// [`PullError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PullError> {
        if bytes.len() > MAX_GET_BYTES {
            return Err(PullError::Length { is: bytes.len() });
        }
        let mut from = Bytes::new(bytes);
        from.kind(GET)?;
        let tag = Tag { session: from.u32()?, number: from.u32()? };
        let (expiry_s, part_bytes, count) = (from.u16()?, from.u16()?, from.u32()?);
        if part_bytes < MIN_PART_BYTES {
            return Err(PullError::Field { field: "bytes of a part", is: part_bytes.into() });
        }
        let file = File::parse(&mut from)?;
        let log2 = from.u8()?;
        let piece = BlockSize::from_log2(log2)
            .ok_or(PullError::Field { field: "logarithm of the piece", is: log2.into() })?;
        let (first, map) = (from.u32()?, from.rest.to_vec());
        let end = u64::from(first) + map.len() as u64 * 8;
        if map.last().is_none_or(|last| *last == 0) || map.len() > MAX_MAP_BYTES {
            return Err(PullError::Length { is: bytes.len() });
        }
        if end > 1 << 32 {
            return Err(PullError::Field { field: "first piece", is: first.into() });
        }
        Ok(Self { tag, expiry_s, part_bytes, count, file, piece, first, map })
    }

    /// Writes it; [`Get::parse`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![GET];
        out.extend(self.tag.session.to_le_bytes());
        out.extend(self.tag.number.to_le_bytes());
        out.extend(self.expiry_s.to_le_bytes());
        out.extend(self.part_bytes.to_le_bytes());
        out.extend(self.count.to_le_bytes());
        self.file.encode(&mut out);
        out.push(self.piece.log2());
        out.extend(self.first.to_le_bytes());
        out.extend(&self.map);
        out
    }

    /// Sets the map to these pieces, ascending, as many of them as it can hold. Gives how many that are.
    pub fn want(&mut self, pieces: impl Iterator<Item = u64>) -> u32 {
        self.map.clear();
        let mut wanted = 0;
        for piece in pieces {
            let Ok(piece) = u32::try_from(piece) else { break };
            if wanted == 0 {
                self.first = piece;
            }
            let Some(bit) = piece.checked_sub(self.first) else { break };
            let byte = (bit / 8) as usize;
            if byte >= MAX_MAP_BYTES {
                break;
            }
            self.map.resize(self.map.len().max(byte + 1), 0);
            self.map[byte] |= 1 << (bit % 8);
            wanted += 1;
        }
        wanted
    }

    /// The wanted pieces, ascending, at most [`Get::count`].
    pub fn pieces(&self) -> impl Iterator<Item = u32> + '_ {
        let most = if self.count == 0 { usize::MAX } else { self.count as usize };
        let bits = self.map.iter().enumerate().flat_map(|(at, byte)| {
            (0..8u32).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| at as u32 * 8 + bit)
        });
        bits.filter_map(|bit| self.first.checked_add(bit)).take(most)
    }
}

/// An answer, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<'p> {
    /// The request that it answers.
    pub tag: Tag,
    /// What it says.
    pub body: Body<'p>,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body<'p> {
    /// Bytes of a piece.
    Data {
        /// Length of the whole file.
        length: u64,
        /// Number of the piece.
        index: u32,
        /// Where in the piece the bytes stand.
        offset: u32,
        /// The bytes; not empty unless the file is.
        bytes: &'p [u8],
    },
    /// There is no such file.
    Absent,
    /// Ask again after so many seconds.
    Busy(u32),
    /// The request cannot be answered as it is.
    Refused,
}

impl<'p> Part<'p> {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`PullError`].
    pub fn parse(bytes: &'p [u8]) -> Result<Self, PullError> {
        let mut from = Bytes::new(bytes);
        from.kind(PART)?;
        let tag = Tag { session: from.u32()?, number: from.u32()? };
        let body = match from.u8()? {
            0 => {
                let (length, index, offset) = (from.u64()?, from.u32()?, from.u32()?);
                if from.rest.is_empty() && (length, index, offset) != (0, 0, 0) {
                    return Err(PullError::Length { is: bytes.len() });
                }
                return Ok(Self { tag, body: Body::Data { length, index, offset, bytes: from.rest } });
            }
            1 => Body::Absent,
            2 => Body::Busy(from.u32()?),
            3 => Body::Refused,
            status => return Err(PullError::Field { field: "status", is: status.into() }),
        };
        if !from.rest.is_empty() {
            return Err(PullError::Length { is: bytes.len() });
        }
        Ok(Self { tag, body })
    }

    /// Writes it; [`Part::parse`] gives it back.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![PART];
        out.extend(self.tag.session.to_le_bytes());
        out.extend(self.tag.number.to_le_bytes());
        match &self.body {
            Body::Data { length, index, offset, bytes } => {
                out.push(0);
                out.extend(length.to_le_bytes());
                out.extend(index.to_le_bytes());
                out.extend(offset.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Body::Absent => out.push(1),
            Body::Busy(seconds) => {
                out.push(2);
                out.extend(seconds.to_le_bytes());
            }
            Body::Refused => out.push(3),
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(file: File) -> Get {
        let tag = Tag { session: 7, number: 1 };
        let (piece, map) = (BlockSize::KIB_64, vec![1]);
        Get { tag, expiry_s: 60, part_bytes: 1024, count: 0, file, piece, first: 0, map }
    }

    #[test]
    fn files_have_the_names_of_the_repository() {
        let (a, b) = (Digest([0xaa; 32]), Digest([0xbb; 32]));
        let all =
            [File::Object(a), File::Lists(a), File::Roots, File::Catalogue(a, b), File::AnyCatalogue(a)];
        for file in all {
            assert_eq!(File::of_path(&file.path()), Some(file));
            let get = get(file);
            assert_eq!(Get::parse(&get.encode()), Ok(get));
        }
        for other in ["", "announce", "objects/../x", "objects/aa", "releases/x", "catalogues/x/any"] {
            assert_eq!(File::of_path(other), None, "{other}");
        }
    }

    #[test]
    fn a_map_takes_what_it_can_hold() {
        let mut get = get(File::Roots);
        assert_eq!(get.want([5, 6, 9, 5 + 8 * MAX_MAP_BYTES as u64].into_iter()), 3);
        assert_eq!(get.pieces().collect::<Vec<_>>(), [5, 6, 9]);
        get.count = 2;
        assert_eq!(get.pieces().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(get.want((0..1 << 20).chain([1 << 40])), 8 * MAX_MAP_BYTES as u32);
        assert!(get.encode().len() <= MAX_GET_BYTES);
    }

    proptest! {
        #[test]
        fn whatever_parses_is_what_it_encodes_to(bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0usize..3) {
            let mut bytes = bytes;
            if let (Some(first), Some(byte)) = (bytes.first_mut(), [GET, PART].get(kind)) {
                *first = *byte;
            }
            if let Ok(get) = Get::parse(&bytes) {
                prop_assert_eq!(&get.encode(), &bytes);
                prop_assert!(get.pieces().count() <= get.map.len() * 8);
            }
            if let Ok(part) = Part::parse(&bytes) {
                prop_assert_eq!(part.encode(), bytes);
            }
        }
    }
}
