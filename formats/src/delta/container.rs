//! The container: a header of fixed size, an index, then bundles of maps and groups in order. Byte by byte in `docs/delta.md`.
//!
//! Knows where things are and their digests, not what they mean. The header is what a release signs: it names the index
//! by digest, the index names every bundle and group.

use super::deflate::Style;
use super::object::Map;
use super::stream::{get_stream, put_stream, unpack};
use super::wire::{Reader, put_varint};
use super::{
    DeltaError, MAX_GROUP_PACKED, MAX_IMAGE, MAX_INDEX, MAX_MAPS, MAX_OBJECTS, MAX_TEXT, MAX_TEXTS, ReadAt,
    Result, malformed, read_vec,
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
/// Flag: the index begins with texts.
const FLAG_TEXTS: u32 = 1;
/// Flag: literals have a history.
const FLAG_HISTORY: u32 = 2;
/// SHA-256.
pub type Digest = [u8; 32];

/// The fixed first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// log2 of a group's length.
    pub group_bits: u8,
    /// The delta has texts: groups behind those of the image that are not written, but deflated.
    pub texts: bool,
    /// Groups say which bytes their literals refer back to, some of them of groups before them.
    pub history: bool,
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

/// First bytes of a SHA-256, which name the output of a group. They find damage early; the whole image has its own digest.
pub type ShortDigest = [u8; 16];

/// Maps of objects, packed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bundle {
    /// Offset in the delta.
    pub offset: u64,
    /// Length in bytes.
    pub packed: u64,
    /// Number of its first object.
    pub first: u64,
    /// Number of objects.
    pub objects: u64,
    /// Of the stored bytes.
    pub digest: Digest,
}

/// What produces a group of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Offset in the delta.
    pub offset: u64,
    /// Length in bytes.
    pub packed: u64,
    /// Of the output.
    pub digest: ShortDigest,
}

/// The text of a compressed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text {
    /// Length in bytes.
    pub len: u64,
    /// How it is deflated.
    pub style: Style,
}

/// The index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Texts, one after the other from the first byte behind the image's last group on.
    pub texts: Vec<Text>,
    /// Maps of objects.
    pub bundles: Vec<Bundle>,
    /// Groups of output, then those of the texts.
    pub groups: Vec<Group>,
}

/// Length of all texts.
fn texts_len(texts: &[Text]) -> u64 {
    texts.iter().map(|text| text.len).sum()
}

impl Header {
    /// Bytes of output of one group; the last may be shorter.
    #[must_use]
    pub fn group_len(&self) -> u64 {
        1 << self.group_bits
    }

    /// Number of groups of the image.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.new_len.div_ceil(self.group_len())
    }

    /// Where texts begin: behind the image's last group, as if that were full.
    #[must_use]
    pub fn texts_start(&self) -> u64 {
        self.groups() * self.group_len()
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::from(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend([self.group_bits, CODEC_ZSTD]);
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        out.extend((flag(self.texts, FLAG_TEXTS) | flag(self.history, FLAG_HISTORY)).to_le_bytes());
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
        if version != VERSION || codec != CODEC_ZSTD || flags & !(FLAG_TEXTS | FLAG_HISTORY) != 0 {
            return malformed(
                "header",
                format!(
                    "version {version}, codec {codec}, flags {flags}, but this program knows 1, 1, 0 to 3; update it first"
                ),
            );
        }
        let header = Self {
            group_bits,
            texts: flags & FLAG_TEXTS != 0,
            history: flags & FLAG_HISTORY != 0,
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
        if !self.texts.is_empty() {
            put_varint(&mut out, self.texts.len() as u64);
            for text in &self.texts {
                put_varint(&mut out, text.len);
                out.push(text.style.byte());
            }
        }
        put_varint(&mut out, self.bundles.len() as u64);
        for bundle in &self.bundles {
            put_varint(&mut out, bundle.packed);
            put_varint(&mut out, bundle.objects);
        }
        self.groups.iter().for_each(|group| put_varint(&mut out, group.packed));
        self.bundles.iter().for_each(|bundle| out.extend(bundle.digest));
        self.groups.iter().for_each(|group| out.extend(group.digest));
        out
    }

    /// Parses the unpacked index of a delta with `header`.
    ///
    /// # Errors
    /// When it is damaged, above a limit, or does not add up to the length that the header states.
    pub fn decode(bytes: &[u8], header: &Header) -> Result<Self> {
        let mut reader = Reader::new("index", bytes);
        let texts = if header.texts { get_texts(&mut reader)? } else { Vec::new() };
        let count = reader.varint("number of bundles", MAX_OBJECTS)?;
        let all = header.groups() + texts_len(&texts).div_ceil(header.group_len());
        if (count * 2 + all) > reader.left() as u64 {
            return malformed(
                "index",
                format!("{count} bundles and the groups cannot fit {} bytes", bytes.len()),
            );
        }
        let (mut offset, mut first) = (HEADER + u64::from(header.index_packed), 0);
        let (mut bundles, mut groups) = (Vec::with_capacity(count as usize), Vec::new());
        for _ in 0..count {
            let packed = reader.varint("length of a bundle", MAX_MAPS)?;
            let objects = reader.varint("number of objects", MAX_OBJECTS - first)?;
            bundles.push(Bundle { offset, packed, first, objects, digest: [0; 32] });
            offset += packed;
            first += objects;
        }
        for _ in 0..all {
            let packed = reader.varint("length of a group", MAX_GROUP_PACKED)?;
            groups.push(Group { offset, packed, digest: [0; 16] });
            offset += packed;
        }
        for bundle in &mut bundles {
            bundle.digest = reader.array()?;
        }
        for group in &mut groups {
            group.digest = reader.array()?;
        }
        reader.end()?;
        if offset != header.total {
            return malformed(
                "index",
                format!("its parts end at byte {offset}, but the header says {}", header.total),
            );
        }
        Ok(Self { texts, bundles, groups })
    }

    /// Length of the new image, or where its texts end: positions of groups and objects are below.
    #[must_use]
    pub fn space(&self, header: &Header) -> u64 {
        if self.texts.is_empty() { header.new_len } else { header.texts_start() + texts_len(&self.texts) }
    }

    /// Number of objects.
    #[must_use]
    pub fn objects(&self) -> u64 {
        self.bundles.last().map_or(0, |bundle| bundle.first + bundle.objects)
    }

    /// The bundle that has the map of object `number`.
    #[must_use]
    pub fn bundle_of(&self, number: u64) -> Option<&Bundle> {
        let behind = self.bundles.partition_point(|bundle| bundle.first <= number);
        let bundle = self.bundles.get(behind.checked_sub(1)?)?;
        (number - bundle.first < bundle.objects).then_some(bundle)
    }
}

fn get_texts(reader: &mut Reader) -> Result<Vec<Text>> {
    let count = reader.varint("number of texts", MAX_TEXTS)?;
    let (mut texts, mut left) = (Vec::new(), MAX_TEXT);
    for _ in 0..count {
        let len = reader.varint("length of a text", left)?;
        let [style] = reader.array()?;
        let Some(style) = Style::from_byte(style) else {
            return malformed("index", format!("style {style} of a text is unknown to this version"));
        };
        texts.push(Text { len, style });
        left -= len;
    }
    Ok(texts)
}

/// What a delta consists of, as stored.
pub struct Parts<'a> {
    /// Texts of compressed files.
    pub texts: &'a [Text],
    /// Bundles with their numbers of objects.
    pub bundles: &'a [(Vec<u8>, u64)],
    /// Literals have a history.
    pub history: bool,
    /// Groups, those of texts last, with the digests of their output.
    pub groups: &'a [(Vec<u8>, ShortDigest)],
}

/// Puts a delta together from its parts; `digests` are those of the old and the new image.
///
/// # Errors
/// When there is too much for the format.
pub fn build(
    group_bits: u8,
    (old_len, new_len): (u64, u64),
    digests: &[Digest; 2],
    Parts { texts, bundles, history, groups }: &Parts,
) -> Result<Vec<u8>> {
    let bundle = |(bytes, objects): &(Vec<u8>, u64)| Bundle {
        offset: 0,
        packed: bytes.len() as u64,
        first: 0,
        objects: *objects,
        digest: digest(bytes),
    };
    let group =
        |(bytes, digest): &(Vec<u8>, _)| Group { offset: 0, packed: bytes.len() as u64, digest: *digest };
    let index = Index {
        texts: texts.to_vec(),
        bundles: bundles.iter().map(bundle).collect(),
        groups: groups.iter().map(group).collect(),
    };
    let stored = index.encode();
    let parts = || bundles.iter().map(|(bytes, _)| bytes).chain(groups.iter().map(|(bytes, _)| bytes));
    let body: usize = parts().map(Vec::len).sum();
    let Some(index_len) = u32::try_from(stored.len()).ok().filter(|len| u64::from(*len) <= MAX_INDEX) else {
        return malformed(
            "index",
            format!("it needs {} bytes, but must have at most {MAX_INDEX}", stored.len()),
        );
    };
    let header = Header {
        group_bits,
        texts: !texts.is_empty(),
        history: *history,
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
    parts().for_each(|part| bytes.extend_from_slice(part));
    Ok(bytes)
}

/// Packs the bundle of `maps` with `pack`.
///
/// # Errors
/// What `pack` fails with.
pub fn put_bundle<E>(
    maps: &[Vec<u8>],
    pack: impl Fn(&[u8]) -> std::result::Result<Vec<u8>, E>,
) -> std::result::Result<Vec<u8>, E> {
    let mut plain = Vec::new();
    maps.iter().for_each(|map| put_varint(&mut plain, map.len() as u64));
    maps.iter().for_each(|map| plain.extend_from_slice(map));
    let mut out = Vec::new();
    put_stream(&mut out, &plain, &pack(&plain)?);
    Ok(out)
}

/// Reads `bundle` of `delta`, checks its digest and unpacks it.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn read_bundle(delta: &dyn ReadAt, bundle: &Bundle) -> Result<Vec<u8>> {
    let stored = read_vec(delta, "maps", bundle.offset, bundle.packed)?;
    if digest(&stored) != bundle.digest {
        return malformed("maps", format!("SHA-256 at byte {} is not the one in the index", bundle.offset));
    }
    let mut reader = Reader::new("maps", &stored);
    let plain = get_stream(&mut reader, "maps", MAX_MAPS)?;
    reader.end()?;
    Ok(plain)
}

/// The map of object `number` in the unpacked `bytes` of its `bundle`; `lens` are those of the old image and of what
/// [`Index::space`] says.
///
/// # Errors
/// When the bundle or the map is damaged.
pub fn map_in(bytes: &[u8], bundle: &Bundle, number: u64, lens: (u64, u64)) -> Result<Map> {
    let mut reader = Reader::new("maps", bytes);
    let (mut before, mut own, mut sum) = (0, 0, 0u64);
    for at in bundle.first..bundle.first + bundle.objects {
        let len = reader.varint("length of a map", MAX_MAPS)?;
        (before, own) = if at < number {
            (before + len, own)
        } else if at == number {
            (before, len)
        } else {
            (before, own)
        };
        sum += len;
    }
    if sum != reader.left() as u64 {
        return malformed("maps", format!("they have {} bytes, but should have {sum}", reader.left()));
    }
    reader.bytes(before)?;
    Map::decode(reader.bytes(own)?, lens.0, lens.1)
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

/// The first bytes of the SHA-256 of `bytes`.
#[must_use]
pub fn short_digest(bytes: &[u8]) -> ShortDigest {
    let mut short = [0; 16];
    short.copy_from_slice(&digest(bytes)[..16]);
    short
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
mod tests;
