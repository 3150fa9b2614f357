//! The container: a header of fixed size, an index, then maps and groups in order. Byte by byte in `docs/delta.md`.
//!
//! Knows where things are and their digests, not what they mean. The header is what a release signs: it names the index
//! by digest, the index names every map and group.

use super::object::Map;
use super::wire::{Reader, put_varint};
use super::{
    DeltaError, MAX_GROUP_PACKED, MAX_IMAGE, MAX_INDEX, MAX_MAP, MAX_OBJECTS, ReadAt, Result, malformed,
    read_vec,
};
use sha2::{Digest as _, Sha256};

/// First bytes of a delta.
pub const MAGIC: [u8; 8] = *b"FHDELTA\0";
/// Version of this format.
pub const VERSION: u16 = 1;
/// Length of the header in bytes.
pub const HEADER: u64 = 144;
/// The only codec so far: zstd frames (RFC 8878).
pub const CODEC_ZSTD: u8 = 1;
/// log2 of the smallest and largest group, in bytes of output.
pub const GROUP_BITS: std::ops::RangeInclusive<u8> = 20..=22;
/// SHA-256.
pub type Digest = [u8; 32];

/// The fixed first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// log2 of a group's length.
    pub group_bits: u8,
    /// Length of the old image.
    pub old_len: u64,
    /// Length of the new image.
    pub new_len: u64,
    /// Digest of the old image.
    pub old_digest: Digest,
    /// Digest of the new image.
    pub new_digest: Digest,
    /// Length of the whole delta.
    pub total: u64,
    /// Length of the index as stored.
    pub index_packed: u32,
    /// Length of the index unpacked; equal if it is stored raw.
    pub index_len: u32,
    /// Digest of the index as stored.
    pub index_digest: Digest,
}

/// A part of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Offset in the delta.
    pub offset: u64,
    /// Length in bytes.
    pub packed: u64,
    /// Of a map: of its stored bytes. Of a group: of its output.
    pub digest: Digest,
}

/// The index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Maps of objects.
    pub objects: Vec<Part>,
    /// Groups of output.
    pub groups: Vec<Part>,
}

impl Header {
    /// Bytes of output of one group; the last may be shorter.
    #[must_use]
    pub fn group_len(&self) -> u64 {
        1 << self.group_bits
    }

    /// Number of groups.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.new_len.div_ceil(self.group_len())
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::from(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([self.group_bits, CODEC_ZSTD, 0, 0, 0, 0]);
        out.extend(self.old_len.to_le_bytes());
        out.extend(self.new_len.to_le_bytes());
        out.extend(self.old_digest);
        out.extend(self.new_digest);
        out.extend(self.total.to_le_bytes());
        out.extend(self.index_packed.to_le_bytes());
        out.extend(self.index_len.to_le_bytes());
        out.extend(self.index_digest);
        out
    }

    /// Parses a header.
    ///
    /// # Errors
    /// When it is not a delta, of another version, or above a limit.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut reader = Reader::new("header", bytes);
        if reader.array::<8>()? != MAGIC {
            return malformed("header", "it does not start with FHDELTA; this is no delta");
        }
        let version = u16::from_le_bytes(reader.array()?);
        let [group_bits, codec] = reader.array()?;
        let flags = u32::from_le_bytes(reader.array()?);
        if version != VERSION || codec != CODEC_ZSTD || flags != 0 {
            return malformed(
                "header",
                format!(
                    "version {version}, codec {codec}, flags {flags}, but this program knows 1, 1, 0; update it first"
                ),
            );
        }
        let header = Self {
            group_bits,
            old_len: u64::from_le_bytes(reader.array()?),
            new_len: u64::from_le_bytes(reader.array()?),
            old_digest: reader.array()?,
            new_digest: reader.array()?,
            total: u64::from_le_bytes(reader.array()?),
            index_packed: u32::from_le_bytes(reader.array()?),
            index_len: u32::from_le_bytes(reader.array()?),
            index_digest: reader.array()?,
        };
        reader.end()?;
        let lens = header.old_len.max(header.new_len);
        let index = u64::from(header.index_len.max(header.index_packed));
        if !GROUP_BITS.contains(&group_bits) || lens > MAX_IMAGE || index > MAX_INDEX {
            return malformed(
                "header",
                format!(
                    "group 2^{group_bits}, image {lens}, index {index}; limits are 20 to 22, {MAX_IMAGE}, {MAX_INDEX}"
                ),
            );
        }
        Ok(header)
    }
}

impl Index {
    /// The index unpacked.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_varint(&mut out, self.objects.len() as u64);
        for part in self.objects.iter().chain(&self.groups) {
            put_varint(&mut out, part.packed);
        }
        for part in self.objects.iter().chain(&self.groups) {
            out.extend(part.digest);
        }
        out
    }

    /// Parses the unpacked index of a delta with `header`.
    ///
    /// # Errors
    /// When it is damaged, above a limit, or does not add up to the length that the header states.
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self> {
        let mut reader = Reader::new("index", bytes);
        let objects = reader.varint("number of objects", MAX_OBJECTS)?;
        let count = objects + header.groups();
        if count > reader.left() as u64 {
            return malformed("index", format!("{count} parts cannot fit {} bytes", reader.left()));
        }
        let mut parts = Vec::with_capacity(count as usize);
        let mut offset = HEADER + u64::from(header.index_packed);
        for number in 0..count {
            let limit = if number < objects { MAX_MAP } else { MAX_GROUP_PACKED };
            let packed = reader.varint("length of a part", limit)?;
            parts.push(Part { offset, packed, digest: [0; 32] });
            offset += packed;
        }
        for part in &mut parts {
            part.digest = reader.array()?;
        }
        reader.end()?;
        if offset != header.total {
            return malformed(
                "index",
                format!("its parts end at byte {offset}, but the header says {}", header.total),
            );
        }
        let groups = parts.split_off(objects as usize);
        Ok(Self { objects: parts, groups })
    }
}

/// Puts a delta together from its `maps` and `groups` as stored, the latter with the digests of their output; `digests` are
/// those of the old and the new image.
///
/// # Errors
/// When there is too much for the format.
pub fn build(
    group_bits: u8,
    (old_len, new_len): (u64, u64),
    digests: &[Digest; 2],
    maps: &[Vec<u8>],
    groups: &[(Vec<u8>, Digest)],
) -> Result<Vec<u8>> {
    let part = |packed: &[u8], digest| Part { offset: 0, packed: packed.len() as u64, digest };
    let index = Index {
        objects: maps.iter().map(|map| part(map, digest(map))).collect(),
        groups: groups.iter().map(|(group, digest)| part(group, *digest)).collect(),
    };
    let stored = index.encode();
    let body: usize = maps.iter().chain(groups.iter().map(|(group, _)| group)).map(Vec::len).sum();
    let Some(index_len) = u32::try_from(stored.len()).ok().filter(|len| u64::from(*len) <= MAX_INDEX) else {
        return malformed(
            "index",
            format!("it needs {} bytes, but must have at most {MAX_INDEX}", stored.len()),
        );
    };
    let header = Header {
        group_bits,
        old_len,
        new_len,
        old_digest: digests[0],
        new_digest: digests[1],
        total: HEADER + (stored.len() + body) as u64,
        index_packed: index_len,
        index_len,
        index_digest: digest(&stored),
    };
    let mut bytes = header.encode();
    bytes.extend_from_slice(&stored);
    maps.iter().chain(groups.iter().map(|(group, _)| group)).for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes)
}

/// Appends `bytes` as a stream: a varint `length << 1 | packed?`, for packed ones the packed length, then the bytes.
pub fn put_stream(out: &mut Vec<u8>, bytes: &[u8], packed: &[u8]) {
    if packed.len() < bytes.len() {
        put_varint(out, (bytes.len() as u64) << 1 | 1);
        put_varint(out, packed.len() as u64);
        out.extend(packed);
    } else {
        put_varint(out, (bytes.len() as u64) << 1);
        out.extend(bytes);
    }
}

/// Reads a stream of at most `max` bytes.
///
/// # Errors
/// When it is damaged or longer.
pub fn get_stream(reader: &mut Reader, what: &'static str, max: u64) -> Result<Vec<u8>> {
    let head = reader.varint(what, u64::MAX)?;
    let len = head >> 1;
    if len > max {
        return malformed(what, format!("it has {len} bytes, but must have at most {max}"));
    }
    if head & 1 == 0 {
        return Ok(reader.bytes(len)?.to_vec());
    }
    let packed = reader.varint(what, u64::MAX)?;
    unpack(reader.bytes(packed)?, len, &[], what)
}

/// Unpacks one zstd frame into exactly `len` bytes, which the caller has checked; `prefix` is what it refers back to.
///
/// # Errors
/// When the frame is damaged or has another length.
pub fn unpack(frame: &[u8], len: u64, prefix: &[u8], what: &'static str) -> Result<Vec<u8>> {
    let mut out = vec![0u8; usize::try_from(len).unwrap_or(0)];
    let damaged = |code| -> Result<usize> {
        malformed(
            what,
            format!("zstd frame of {} bytes: {}", frame.len(), zstd::zstd_safe::get_error_name(code)),
        )
    };
    let mut context = zstd::zstd_safe::DCtx::create();
    if !prefix.is_empty() {
        context.ref_prefix(prefix).or_else(damaged)?;
    }
    let found = context.decompress(&mut out[..], frame).or_else(damaged)?;
    if found == out.len() {
        Ok(out)
    } else {
        malformed(what, format!("it has {found} bytes, but must have {len}"))
    }
}

/// SHA-256 of `bytes`.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Reads header and index of `delta`.
///
/// # Errors
/// When it is cut off, damaged, or above a limit.
pub fn open(delta: &dyn ReadAt) -> Result<(Header, Index)> {
    let header = Header::decode(&read_vec(delta, "header", 0, HEADER)?)?;
    if header.total != delta.size() {
        return malformed(
            "header",
            format!("it says {} bytes, but there are {}", header.total, delta.size()),
        );
    }
    let stored = read_vec(delta, "index", HEADER, u64::from(header.index_packed))?;
    if digest(&stored) != header.index_digest {
        return malformed("index", "its SHA-256 is not the one in the header");
    }
    let index = if header.index_packed == header.index_len {
        Index::decode(&stored, &header)?
    } else {
        Index::decode(&unpack(&stored, u64::from(header.index_len), &[], "index")?, &header)?
    };
    Ok((header, index))
}

/// Reads the stored bytes of a group.
///
/// # Errors
/// When they cannot be read.
pub fn read_group(delta: &dyn ReadAt, part: &Part) -> Result<Vec<u8>> {
    read_vec(delta, "group", part.offset, part.packed)
}

/// Reads the map of an object and checks its digest.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn read_map(delta: &dyn ReadAt, part: &Part, header: &Header) -> Result<Map> {
    let stored = read_vec(delta, "object", part.offset, part.packed)?;
    if digest(&stored) != part.digest {
        return malformed(
            "object",
            format!("SHA-256 of the map at byte {} is not the one in the index", part.offset),
        );
    }
    let mut reader = Reader::new("object", &stored);
    let bytes = get_stream(&mut reader, "object", MAX_MAP)?;
    reader.end()?;
    Map::decode(&bytes, header.old_len, header.new_len)
}

/// Compares an old image's length with the header's.
///
/// # Errors
/// When they differ.
pub fn check_old_len(header: &Header, old: &dyn ReadAt) -> Result<()> {
    if header.old_len == old.size() {
        return Ok(());
    }
    Err(DeltaError::WrongBase {
        fact: format!("has {} bytes", old.size()),
        rule: format!("of {} bytes", header.old_len),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            group_bits: 20,
            old_len: 1,
            new_len: (1 << 20) + 1,
            old_digest: [1; 32],
            new_digest: [2; 32],
            total: HEADER + 200 + 60,
            index_packed: 200,
            index_len: 300,
            index_digest: [3; 32],
        }
    }

    #[test]
    fn header_and_index_come_back() {
        let header = header();
        assert_eq!(header.encode().len() as u64, HEADER);
        assert_eq!(Header::decode(&header.encode()).unwrap(), header);
        let part = |offset, packed, byte| Part { offset, packed, digest: [byte; 32] };
        let at = HEADER + 200;
        let index = Index {
            objects: vec![part(at, 10, 4)],
            groups: vec![part(at + 10, 20, 5), part(at + 30, 30, 6)],
        };
        assert_eq!(Index::decode(&index.encode(), &header).unwrap(), index);
        let longer = Header { total: header.total + 1, ..header };
        assert!(
            Index::decode(&index.encode(), &longer)
                .unwrap_err()
                .to_string()
                .contains("its parts end at byte")
        );
    }

    #[test]
    fn foreign_versions_and_large_images_are_refused() {
        let good = header().encode();
        let refuse = |at: usize, value: u8, words: &str| {
            let mut bad = good.clone();
            bad[at] = value;
            let error = Header::decode(&bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refuse(0, b'X', "this is no delta");
        refuse(8, 2, "version 2");
        refuse(11, 9, "codec 9");
        refuse(12, 1, "flags 1");
        refuse(10, 23, "group 2^23");
        refuse(31, 1, "limits are");
        assert!(Header::decode(&good[..143]).is_err());
    }

    #[test]
    fn streams_come_back_and_lengths_are_checked() {
        let bytes = vec![7u8; 5000];
        let packed = zstd::bulk::compress(&bytes, 3).unwrap();
        for stored in [&packed, &bytes] {
            let mut out = Vec::new();
            put_stream(&mut out, &bytes, stored);
            assert_eq!(get_stream(&mut Reader::new("t", &out), "t", 5000).unwrap(), bytes);
            assert!(get_stream(&mut Reader::new("t", &out), "t", 4999).is_err());
            assert!(get_stream(&mut Reader::new("t", &out[..out.len() - 1]), "t", 5000).is_err());
        }
        assert!(unpack(&packed, 4999, &[], "t").is_err());
        assert!(unpack(&packed, 5001, &[], "t").is_err());
    }
}
