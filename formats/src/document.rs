//! Rules that manifest and root document share: canonical CBOR (RFC 8949, section 4.2.1) maps with integer keys.
//!
//! A key that a reader does not know is ignorable if it is negative and must be understood otherwise. Ignorable fields
//! are kept as they are, so that a document that is read and written again has the same bytes; a document whose bytes
//! differ from what its contents encode to is refused. Knows nothing of what the fields mean.

use crate::keys::RoleError;
use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use std::convert::Infallible;

/// Most fields of one map, and most bytes of one text.
const MAX_FIELDS: u64 = 64;
/// Longest text, bytes: names, versions, paths.
pub const MAX_TEXT: usize = 255;

/// Why a document was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// Longer than any honest document.
    #[error("{document} has {is} bytes, at most {max} are allowed")]
    TooLong {
        /// Kind of document.
        document: &'static str,
        /// Its bytes.
        is: usize,
        /// The limit.
        max: usize,
    },
    /// Ends early, is no CBOR, or has a value of another type.
    #[error("{part} cannot be read at byte {at}: truncated, or not the expected type")]
    Malformed {
        /// What was being read.
        part: &'static str,
        /// Offset in the document.
        at: usize,
    },
    /// Readable, but not the one encoding of its contents.
    #[error(
        "{0} is not in canonical form: keys out of order or repeated, a long form, or bytes after the end"
    )]
    NotCanonical(&'static str),
    /// A field is not there.
    #[error("{part} lacks `{field}`")]
    Missing {
        /// Part of the document.
        part: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// A field that must be understood is unknown: the document is for a newer reader.
    #[error(
        "{part} has field {key}, which this version does not know and must understand; update the reader"
    )]
    MustUnderstand {
        /// Part of the document.
        part: &'static str,
        /// Number of the field or kind.
        key: i64,
    },
    /// Keys that make no role.
    #[error("{part} cannot be used")]
    Role {
        /// Part of the document.
        part: &'static str,
        /// Why.
        #[source]
        source: RoleError,
    },
    /// A value outside its limits.
    #[error("{part}: {field} is `{is}`, but {must}")]
    Value {
        /// Part of the document.
        part: &'static str,
        /// Name of the field.
        field: &'static str,
        /// The value, shortened.
        is: String,
        /// The rule.
        must: String,
    },
}

type Result<T> = std::result::Result<T, DocumentError>;

/// A [`DocumentError::Value`].
pub(crate) fn value<T>(
    part: &'static str,
    field: &'static str,
    is: impl ToString,
    must: impl ToString,
) -> Result<T> {
    let is = is.to_string().chars().take(64).collect();
    Err(DocumentError::Value { part, field, is, must: must.to_string() })
}

/// Ignorable fields that were not known, by key, each as the CBOR that stood there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignored(Vec<(i64, Vec<u8>)>);

impl Ignored {
    /// Number of fields.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Reads CBOR items and says which part of the document could not be read.
pub(crate) struct Reader<'b> {
    decoder: Decoder<'b>,
    part: &'static str,
}

impl<'b> Reader<'b> {
    /// A reader of a whole document of at most `max` bytes.
    pub(crate) fn new(document: &'static str, bytes: &'b [u8], max: usize) -> Result<Self> {
        if bytes.len() > max {
            return Err(DocumentError::TooLong { document, is: bytes.len(), max });
        }
        Ok(Self { decoder: Decoder::new(bytes), part: document })
    }

    fn malformed<T>(&self, result: std::result::Result<T, minicbor::decode::Error>) -> Result<T> {
        // The decoder's own message names its types; the offset is what helps.
        result.or(Err(DocumentError::Malformed { part: self.part, at: self.decoder.position() }))
    }

    /// Reads a map of at most 64 fields. `field` reads the value of a key it knows and says whether it did.
    pub(crate) fn map(
        &mut self,
        part: &'static str,
        mut field: impl FnMut(&mut Self, i64) -> Result<bool>,
    ) -> Result<Ignored> {
        let outer = std::mem::replace(&mut self.part, part);
        let header = self.decoder.map();
        let count = match self.malformed(header)? {
            Some(count) if count <= MAX_FIELDS => count,
            Some(count) => return value(part, "number of fields", count, "at most 64"),
            None => return Err(DocumentError::NotCanonical(part)),
        };
        let mut ignored = Ignored::default();
        for _ in 0..count {
            let key = self.decoder.i64();
            let key = self.malformed(key)?;
            let start = self.decoder.position();
            if !field(self, key)? {
                if key >= 0 {
                    return Err(DocumentError::MustUnderstand { part, key });
                }
                self.decoder.set_position(start);
                ignored.0.push((key, self.raw()?.to_vec()));
            }
        }
        self.part = outer;
        Ok(ignored)
    }

    /// Reads an array of at most `max` items.
    pub(crate) fn list<T>(
        &mut self,
        field: &'static str,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let header = self.decoder.array();
        match self.malformed(header)? {
            None => Err(DocumentError::NotCanonical(self.part)),
            Some(count) if count > max as u64 => {
                value(self.part, field, format!("{count} items"), format!("at most {max} are allowed"))
            }
            Some(count) => (0..count).map(|_| item(self)).collect(),
        }
    }

    /// Reads an array of exactly `count` items.
    pub(crate) fn tuple(&mut self, count: u64) -> Result<()> {
        if self.array_length()? == count {
            return Ok(());
        }
        Err(DocumentError::Malformed { part: self.part, at: self.decoder.position() })
    }

    /// Reads the head of an array: its number of items, as the document claims it.
    pub(crate) fn array_length(&mut self) -> Result<u64> {
        let header = self.decoder.array();
        self.malformed(header)?.ok_or(DocumentError::NotCanonical(self.part))
    }

    /// Where the next item begins.
    pub(crate) fn position(&self) -> usize {
        self.decoder.position()
    }

    /// Goes back to where an item began.
    pub(crate) fn rewind(&mut self, position: usize) {
        self.decoder.set_position(position);
    }

    /// Reads an unsigned number that fits `T`.
    pub(crate) fn uint<T: TryFrom<u64>>(&mut self, field: &'static str) -> Result<T> {
        let number = self.decoder.u64();
        let number = self.malformed(number)?;
        T::try_from(number)
            .or_else(|_| value(self.part, field, number, format!("must fit {} bytes", size_of::<T>())))
    }

    /// Reads a signed number.
    pub(crate) fn int(&mut self) -> Result<i64> {
        let number = self.decoder.i64();
        self.malformed(number)
    }

    /// Reads a text of at most [`MAX_TEXT`] bytes.
    pub(crate) fn text(&mut self, field: &'static str) -> Result<String> {
        let text = self.decoder.str();
        let text = self.malformed(text)?;
        if text.len() > MAX_TEXT {
            return value(self.part, field, format!("{} bytes", text.len()), "at most 255 are allowed");
        }
        Ok(text.to_owned())
    }

    /// Reads a byte string.
    pub(crate) fn bytes(&mut self) -> Result<&'b [u8]> {
        let bytes = self.decoder.bytes();
        self.malformed(bytes)
    }

    /// Reads a byte string of exactly `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let bytes = self.bytes()?;
        <[u8; N]>::try_from(bytes)
            .or_else(|_| value(self.part, field, format!("{} bytes", bytes.len()), format!("must be {N}")))
    }

    /// Passes over one item and returns its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'b [u8]> {
        let start = self.decoder.position();
        let skipped = self.decoder.skip();
        self.malformed(skipped)?;
        Ok(&self.decoder.input()[start..self.decoder.position()])
    }

    /// The `kind` (field 0, an integer) of the map that comes next; nothing is consumed.
    pub(crate) fn peek_kind(&mut self, part: &'static str) -> Result<i64> {
        let start = self.decoder.position();
        let outer = std::mem::replace(&mut self.part, part);
        let header = self.decoder.map();
        self.malformed(header)?;
        if self.decoder.datatype().ok() != Some(Type::U8) || self.int()? != 0 {
            return Err(DocumentError::Missing { part, field: "kind" });
        }
        let kind = self.int()?;
        self.part = outer;
        self.decoder.set_position(start);
        Ok(kind)
    }
}

/// Takes a field that must be there.
pub(crate) fn need<T>(field: Option<T>, part: &'static str, name: &'static str) -> Result<T> {
    field.ok_or(DocumentError::Missing { part, field: name })
}

/// Writes one map. Fields must be added in canonical order: 0, 1, 2 … then -1, -2 …
pub(crate) struct MapWriter {
    fields: Vec<(i64, Vec<u8>)>,
}

impl MapWriter {
    pub(crate) fn new() -> Self {
        Self { fields: Vec::new() }
    }
    pub(crate) fn uint(self, key: i64, number: impl Into<u64>) -> Self {
        self.raw(key, unsigned(number))
    }
    pub(crate) fn int(self, key: i64, number: i64) -> Self {
        self.raw(key, item(|e| e.i64(number).map(drop)))
    }
    pub(crate) fn text(self, key: i64, text: &str) -> Self {
        self.raw(key, item(|e| e.str(text).map(drop)))
    }
    pub(crate) fn bytes(self, key: i64, bytes: &[u8]) -> Self {
        self.raw(key, byte_string(bytes))
    }
    pub(crate) fn raw(mut self, key: i64, item: Vec<u8>) -> Self {
        self.fields.push((key, item));
        self
    }
    /// The map with `ignored` put back.
    pub(crate) fn finish(mut self, ignored: &Ignored) -> Vec<u8> {
        self.fields.extend(ignored.0.iter().cloned());
        // Canonical order is that of the encoded keys: 0, 1, … before -1, -2, …
        self.fields.sort_by_key(|(key, _)| (*key < 0, key.unsigned_abs()));
        let count = self.fields.len() as u64;
        let mut out = item(|e| e.map(count).map(drop));
        for (key, value) in self.fields {
            out.extend(item(|e| e.i64(key).map(drop)));
            out.extend(value);
        }
        out
    }
}

/// An array of encoded items.
pub(crate) fn list(items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut count, mut body) = (0u64, Vec::new());
    for encoded in items {
        count += 1;
        body.extend(encoded);
    }
    let mut out = item(|e| e.array(count).map(drop));
    out.extend(body);
    out
}

/// An unsigned number.
pub(crate) fn unsigned(number: impl Into<u64>) -> Vec<u8> {
    let number = number.into();
    item(|e| e.u64(number).map(drop))
}

/// A byte string.
pub(crate) fn byte_string(bytes: &[u8]) -> Vec<u8> {
    item(|e| e.bytes(bytes).map(drop))
}

type Encoded = std::result::Result<(), minicbor::encode::Error<Infallible>>;

fn item(write: impl FnOnce(&mut Encoder<Vec<u8>>) -> Encoded) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder).expect("writing numbers and strings into memory cannot fail");
    encoder.into_writer()
}
