//! Payloads: other ways to a target than carrying it as it is. They stand in the manifest and, added later, in
//! catalogues ([`crate::catalogue`]). Layout: `docs/formats.md`, "Payloads". Knows no carriers and does not decode.

use crate::document::{self, DocumentError, Ignored, MapWriter, Reader, need, value};
use crate::hex::Digest;
use crate::manifest::Target;
use crate::object::{BlockSize, Geometry, MAX_BLOCKS, Object, ObjectError};

/// Most payloads of a manifest or a catalogue.
pub const MAX_PAYLOADS: usize = 512;
/// Largest zstd window a full payload may ask for, binary logarithm: 8 MiB, so that applying stays within 64 MiB.
pub const MAX_WINDOW_LOG: u8 = 23;
/// Most sources of a delta's base: the old file, the new slot image, and room for two more.
pub const MAX_SOURCES: usize = 4;
/// Where each source of a base begins is a multiple of this, bytes: the block size of slot images.
pub const SOURCE_ALIGNMENT: u64 = 4096;
const PAYLOAD: &str = "payload";

/// An entry of a list: known, or of a kind that this reader may ignore and keeps as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry<T> {
    /// A kind that this reader knows.
    Known(T),
    /// The CBOR of another kind.
    Ignored(Vec<u8>),
}

impl<T> Entry<T> {
    /// The entry, if its kind is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(entry) => Some(entry),
            Self::Ignored(_) => None,
        }
    }
}

/// An object by id and geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    /// Its id.
    pub id: Digest,
    /// Its length and block size.
    pub geometry: Geometry,
}

impl ObjectRef {
    /// Bytes to fetch for all of it: data and, beyond one block, its hash file.
    pub fn fetch_bytes(&self) -> u64 {
        let lists = if self.geometry.blocks() > 1 { self.geometry.list_bytes() } else { 0 };
        self.geometry.length() + lists
    }
}

impl From<&Object> for ObjectRef {
    fn from(object: &Object) -> Self {
        Self { id: object.id, geometry: object.geometry }
    }
}

/// A way to make a target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Position of the target in the manifest's list.
    pub target: u16,
    /// The bytes to fetch.
    pub object: ObjectRef,
    /// How the target is made from them.
    pub kind: PayloadKind,
    /// Fields of newer writers that may be ignored.
    pub ignored: Ignored,
}

/// How a target is made from a payload. Kinds that a reader does not know are passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PayloadKind {
    /// One zstd frame (RFC 8878) of the whole target; needs no base.
    Full {
        /// Window that the decoder must hold, binary logarithm of bytes.
        window_log: u8,
    },
    /// A delta (`docs/delta.md`) from what the device has.
    Delta {
        /// The old image: these one after the other, each at a multiple of [`SOURCE_ALIGNMENT`], zeros between.
        base: Vec<Source>,
        /// The delta refers back to the target itself, which is written in order.
        history: bool,
    },
    /// Packed units behind an index of pages ([`crate::blocks`]), of which a device fetches what it does not have.
    Adaptive {
        /// Bytes of the index, which is fetched first.
        index_bytes: u64,
    },
}

impl PayloadKind {
    /// Whether what a device fetches of it depends on what it has.
    pub fn is_adaptive(&self) -> bool {
        match self {
            Self::Adaptive { .. } => true,
            Self::Full { .. } | Self::Delta { .. } => false,
        }
    }
    /// Whether all devices fetch the same, whatever they have.
    pub fn needs_no_base(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::Adaptive { .. } | Self::Delta { .. } => false,
        }
    }
    /// Fewest bytes that a device fetches of `object` for a payload of this kind, hash lists counted; all of it but for an
    /// adaptive one.
    pub fn fetch_bytes(&self, object: &ObjectRef) -> u64 {
        match self {
            Self::Full { .. } | Self::Delta { .. } => object.fetch_bytes(),
            Self::Adaptive { index_bytes } => {
                (object.fetch_bytes() - object.geometry.length()).saturating_add(*index_bytes)
            }
        }
    }
}

/// Something that a device has and a delta reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A complete slot image: the running one or, for the other targets of a release, the new one.
    Slot {
        /// Root of its dm-verity tree.
        roothash: Digest,
        /// Its length in bytes, without the tree.
        bytes: u64,
    },
    /// The bytes of a target that the device holds, as the running UKI.
    Object(ObjectRef),
}

impl Source {
    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Slot { bytes, .. } => *bytes,
            Self::Object(object) => object.geometry.length(),
        }
    }
}

/// Where each source of a base begins in the old image that the delta reads; one entry more than `base`: the length of
/// the whole.
pub fn source_offsets(base: &[Source]) -> Vec<u64> {
    let mut offsets = vec![0];
    let mut end = 0u64;
    for (n, source) in base.iter().enumerate() {
        end = end.saturating_add(source.bytes());
        let last = n + 1 == base.len();
        let next = if last { Some(end) } else { end.checked_next_multiple_of(SOURCE_ALIGNMENT) };
        end = next.unwrap_or(u64::MAX);
        offsets.push(end);
    }
    offsets
}

const KIND_FULL: i64 = 1;
const KIND_DELTA: i64 = 2;
const KIND_ADAPTIVE: i64 = 3;
const KIND_DELTA_HISTORY: i64 = 4;
const SOURCE_SLOT: u64 = 1;
const SOURCE_OBJECT: u64 = 2;

/// The rules of a list of payloads for `targets`.
pub(crate) fn check_all(payloads: &[Entry<Payload>], targets: &[Entry<Target>]) -> Result<(), DocumentError> {
    for payload in payloads.iter().filter_map(Entry::known) {
        if targets.get(usize::from(payload.target)).and_then(Entry::known).is_none() {
            return value(PAYLOAD, "target", payload.target, "must be the position of a known target");
        }
        match &payload.kind {
            PayloadKind::Full { window_log } => {
                if !(10..=MAX_WINDOW_LOG).contains(window_log) {
                    return value(PAYLOAD, "window", window_log, format!("must be 10 to {MAX_WINDOW_LOG}"));
                }
            }
            PayloadKind::Delta { base, .. } => {
                if base.is_empty() || base.len() > MAX_SOURCES {
                    let must = format!("must have 1 to {MAX_SOURCES} sources");
                    return value(PAYLOAD, "base", format!("{} sources", base.len()), must);
                }
            }
            PayloadKind::Adaptive { index_bytes } => {
                let bytes = payload.object.geometry.length();
                if *index_bytes == 0 || *index_bytes >= bytes {
                    return value(
                        PAYLOAD,
                        "index",
                        index_bytes,
                        format!("must be 1 to {}", bytes.saturating_sub(1)),
                    );
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn write_entries<T>(entries: &[Entry<T>], write: impl Fn(&T) -> Vec<u8>) -> Vec<u8> {
    document::list(entries.iter().map(|entry| match entry {
        Entry::Known(known) => write(known),
        Entry::Ignored(raw) => raw.clone(),
    }))
}

/// Fields 1 to 3 of a target or payload: an object.
#[derive(Default)]
pub(crate) struct ObjectFields {
    id: Option<Digest>,
    length: Option<u64>,
    block: Option<BlockSize>,
}

impl ObjectFields {
    pub(crate) fn field(
        &mut self,
        reader: &mut Reader<'_>,
        part: &'static str,
        key: i64,
    ) -> Result<bool, DocumentError> {
        match key {
            1 => self.id = Some(Digest(reader.array("object id")?)),
            2 => self.length = Some(reader.uint("length")?),
            3 => self.block = Some(block_size(reader, part)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
    pub(crate) fn finish(self, part: &'static str) -> Result<ObjectRef, DocumentError> {
        let id = need(self.id, part, "object id")?;
        let (length, block) = (need(self.length, part, "length")?, need(self.block, part, "block size")?);
        object_ref(id, length, block, part)
    }
}

fn block_size(reader: &mut Reader<'_>, part: &'static str) -> Result<BlockSize, DocumentError> {
    let log2 = reader.uint("block size")?;
    BlockSize::from_log2(log2).map_or_else(|| value(part, "block size", log2, "must be 8 to 22"), Ok)
}

fn object_ref(
    id: Digest,
    length: u64,
    block: BlockSize,
    part: &'static str,
) -> Result<ObjectRef, DocumentError> {
    let geometry = Geometry::new(length, block).or_else(|error| match error {
        ObjectError::TooManyBlocks { blocks, .. } => {
            value(part, "number of blocks", blocks, format!("at most {MAX_BLOCKS} are allowed"))
        }
        ObjectError::NoSuchBlock { .. }
        | ObjectError::Length { .. }
        | ObjectError::Hash { .. }
        | ObjectError::ListMissing { .. } => value(part, "length", length, error),
    })?;
    Ok(ObjectRef { id, geometry })
}

pub(crate) fn write_object(kind: i64, object: &ObjectRef) -> MapWriter {
    MapWriter::new()
        .int(0, kind)
        .bytes(1, &object.id.0)
        .uint(2, object.geometry.length())
        .uint(3, object.geometry.block().log2())
}

impl Source {
    fn write(&self) -> Vec<u8> {
        match self {
            Self::Slot { roothash, bytes } => document::list([
                document::unsigned(SOURCE_SLOT),
                document::byte_string(&roothash.0),
                document::unsigned(*bytes),
            ]),
            Self::Object(object) => document::list([
                document::unsigned(SOURCE_OBJECT),
                document::byte_string(&object.id.0),
                document::unsigned(object.geometry.length()),
                document::unsigned(object.geometry.block().log2()),
            ]),
        }
    }

    /// Reads a source; `None` for a kind that is not known.
    fn parse(reader: &mut Reader<'_>) -> Result<Option<Self>, DocumentError> {
        let start = reader.position();
        let count = reader.array_length()?;
        let kind: u64 = reader.uint("kind of source")?;
        let expected = match kind {
            SOURCE_SLOT => 3,
            SOURCE_OBJECT => 4,
            _ => {
                reader.rewind(start);
                reader.raw()?;
                return Ok(None);
            }
        };
        if count != expected {
            return value(PAYLOAD, "source", format!("{count} items"), format!("must be {expected}"));
        }
        let id = Digest(reader.array("source")?);
        let bytes = reader.uint("length")?;
        if kind == SOURCE_SLOT {
            return Ok(Some(Self::Slot { roothash: id, bytes }));
        }
        let block = block_size(reader, PAYLOAD)?;
        object_ref(id, bytes, block, PAYLOAD).map(|object| Some(Self::Object(object)))
    }
}

impl Payload {
    pub(crate) fn write(&self) -> Vec<u8> {
        match &self.kind {
            PayloadKind::Full { window_log } => {
                write_object(KIND_FULL, &self.object).uint(4, self.target).uint(5, *window_log)
            }
            PayloadKind::Delta { base, history } => {
                write_object(if *history { KIND_DELTA_HISTORY } else { KIND_DELTA }, &self.object)
                    .uint(4, self.target)
                    .raw(6, document::list(base.iter().map(Source::write)))
            }
            PayloadKind::Adaptive { index_bytes } => {
                write_object(KIND_ADAPTIVE, &self.object).uint(4, self.target).uint(7, *index_bytes)
            }
        }
        .finish(&self.ignored)
    }

    pub(crate) fn parse(reader: &mut Reader<'_>) -> Result<Entry<Self>, DocumentError> {
        let start = reader.position();
        let kind = reader.peek_kind(PAYLOAD)?;
        if ![KIND_FULL, KIND_DELTA, KIND_ADAPTIVE, KIND_DELTA_HISTORY].contains(&kind) {
            return Ok(Entry::Ignored(reader.raw()?.to_vec()));
        }
        let mut object = ObjectFields::default();
        let (mut target, mut window_log, mut base, mut index) = (None, None, None, None);
        let ignored = reader.map(PAYLOAD, |reader, key| {
            match (kind, key) {
                (_, 0) => {
                    reader.int()?;
                }
                (_, 4) => target = Some(reader.uint("target")?),
                (KIND_FULL, 5) => window_log = Some(reader.uint("window")?),
                (KIND_ADAPTIVE, 7) => index = Some(reader.uint("index")?),
                (KIND_DELTA | KIND_DELTA_HISTORY, 6) => {
                    base = Some(reader.list("base", MAX_SOURCES, Source::parse)?)
                }
                _ => return object.field(reader, PAYLOAD, key),
            }
            Ok(true)
        })?;
        let history = kind == KIND_DELTA_HISTORY;
        let kind = if kind == KIND_FULL {
            PayloadKind::Full { window_log: need(window_log, PAYLOAD, "window")? }
        } else if kind == KIND_ADAPTIVE {
            PayloadKind::Adaptive { index_bytes: need(index, PAYLOAD, "index")? }
        } else {
            // A base that this reader cannot find: as if the kind of payload were unknown.
            let Some(base) = need(base, PAYLOAD, "base")?.into_iter().collect() else {
                reader.rewind(start);
                return Ok(Entry::Ignored(reader.raw()?.to_vec()));
            };
            PayloadKind::Delta { base, history }
        };
        let target = need(target, PAYLOAD, "target")?;
        Ok(Entry::Known(Self { target, object: object.finish(PAYLOAD)?, kind, ignored }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_begin_at_whole_blocks_and_the_last_ends_as_it_is() {
        let slot = |bytes| Source::Slot { roothash: Digest([1; 32]), bytes };
        assert_eq!(source_offsets(&[slot(5000), slot(8192), slot(10)]), [0, 8192, 16384, 16394]);
        assert_eq!(source_offsets(&[slot(5000)]), [0, 5000]);
        // Nonsense lengths give nonsense, which a decoder refuses, but no panic.
        assert_eq!(source_offsets(&[slot(u64::MAX), slot(u64::MAX)]), [0, u64::MAX, u64::MAX]);
    }
}
