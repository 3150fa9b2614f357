//! Root documents: which keys may sign what, and the chain in which they follow one another.
//!
//! A root document appoints root keys, release keys and the catalogue key. Its successor has the next version and is
//! signed by the threshold of both the old and the new root keys, so that a device that was off for years follows the
//! chain from the document it trusts. Layout: `docs/formats.md`, "Root document". Knows no storage and no clock.

use crate::document::{self, DocumentError, Ignored, MapWriter, Reader, need, value};
use crate::keys::{MAX_KEYS, PublicKey, Role, SIGNATURE_BYTES, SignatureError, distinct};

/// Where an image carries the chain that ends in the root document it trusts: on the verified root file system.
pub const TRUST_ANCHOR: &str = "/usr/lib/farhold/roots";
/// In front of the signed bytes.
pub const DOMAIN: &[u8; 16] = b"farhold-root-v1\0";
/// Most bytes of one root document without signatures: three roles of eight keys and room for what may come.
pub const MAX_ROOT_BYTES: usize = 2048;
/// Most documents of a chain: a rotation every other month for ten years.
pub const MAX_CHAIN: usize = 64;
/// Most bytes of a chain.
pub const MAX_CHAIN_BYTES: usize = 256 * 1024;
const FORMAT: u64 = 1;
const ROOT: &str = "root document";
const ROLE: &str = "role of a root document";
const CHAIN: &str = "root chain";

/// Who may sign what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Version, from 1, one more than the predecessor's.
    pub version: u16,
    /// Time of signing, seconds since 1970. A device's time watermark starts from here.
    pub signed_s: u32,
    /// Signs root documents and rescue releases.
    pub root: Role,
    /// Signs announcement frames.
    pub release: Role,
    /// Signs payload catalogues.
    pub catalogue: PublicKey,
    /// Fields of newer writers that may be ignored.
    pub ignored: Ignored,
}

impl Root {
    /// The canonical bytes, without signatures.
    pub fn encode(&self) -> Vec<u8> {
        MapWriter::new()
            .uint(0, FORMAT)
            .uint(1, self.version)
            .uint(2, self.signed_s)
            .raw(3, encode_role(&self.root))
            .raw(4, encode_role(&self.release))
            .bytes(5, &self.catalogue.to_bytes())
            .finish(&self.ignored)
    }

    /// The bytes that are signed: [`DOMAIN`], then the document.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [DOMAIN.as_slice(), &self.encode()].concat()
    }

    /// Parses a document without signatures.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let mut reader = Reader::new(ROOT, bytes, MAX_ROOT_BYTES)?;
        let (mut format, mut version, mut signed_s) = (None, None, None);
        let (mut root, mut release, mut catalogue) = (None, None, None);
        let ignored = reader.map(ROOT, |reader, key| {
            match key {
                0 => format = Some(reader.uint::<u64>("format")?),
                1 => version = Some(reader.uint("version")?),
                2 => signed_s = Some(reader.uint("time of signing")?),
                3 => root = Some(parse_role(reader)?),
                4 => release = Some(parse_role(reader)?),
                5 => catalogue = Some(parse_key(reader)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let format = need(format, ROOT, "format")?;
        if format != FORMAT {
            return value(ROOT, "format", format, format!("must be {FORMAT}"));
        }
        let found = Self {
            version: need(version, ROOT, "version")?,
            signed_s: need(signed_s, ROOT, "time of signing")?,
            root: need(root, ROOT, "root role")?,
            release: need(release, ROOT, "release role")?,
            catalogue: need(catalogue, ROOT, "catalogue key")?,
            ignored,
        };
        found.check()?;
        if found.encode() == bytes { Ok(found) } else { Err(DocumentError::NotCanonical(ROOT)) }
    }

    /// What a document must keep beyond its types: a version, and no key in two roles.
    ///
    /// # Errors
    /// [`DocumentError::Value`].
    pub fn check(&self) -> Result<(), DocumentError> {
        if self.version == 0 {
            return value(ROOT, "version", 0, "must be 1 or more");
        }
        let all = self.root.keys().iter().chain(self.release.keys()).chain([&self.catalogue]);
        distinct(all).map_err(|source| DocumentError::Role { part: ROOT, source })
    }
}

fn encode_role(role: &Role) -> Vec<u8> {
    let keys = role.keys().iter().map(|key| document::byte_string(&key.to_bytes()));
    MapWriter::new().uint(0, role.threshold()).raw(1, document::list(keys)).finish(&Ignored::default())
}

fn parse_role(reader: &mut Reader<'_>) -> Result<Role, DocumentError> {
    let (mut threshold, mut keys) = (None, None);
    reader.map(ROLE, |reader, key| {
        match key {
            0 => threshold = Some(reader.uint("threshold")?),
            1 => keys = Some(reader.list("keys", MAX_KEYS, parse_key)?),
            _ => return Err(DocumentError::MustUnderstand { part: ROLE, key }),
        }
        Ok(true)
    })?;
    let (threshold, keys) = (need(threshold, ROLE, "threshold")?, need(keys, ROLE, "keys")?);
    Role::new(threshold, keys).map_err(|source| DocumentError::Role { part: ROLE, source })
}

fn parse_key(reader: &mut Reader<'_>) -> Result<PublicKey, DocumentError> {
    let bytes = reader.array("public key")?;
    PublicKey::from_bytes(&bytes)
        .map_or_else(|| value(ROLE, "public key", crate::hex::encode(&bytes), "must be a strong point"), Ok)
}

/// A signature in a root document, with the [`PublicKey::hint`] of its key.
type Signed = ([u8; 4], [u8; SIGNATURE_BYTES]);

/// A root document with signatures, not yet verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedRoot {
    /// The document.
    pub root: Root,
    /// By hint, ascending.
    signatures: Vec<Signed>,
}

/// Why a root document, or a chain, is not trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// It cannot be read.
    #[error("read root chain")]
    Document(#[source] DocumentError),
    /// A signature by a key of neither the old nor the new document.
    #[error("root version {version} is signed by a key {hint} that neither it nor its predecessor names")]
    UnknownKey {
        /// Version of the document.
        version: u16,
        /// Hint of the key, hexadecimal.
        hint: String,
    },
    /// Not signed as it must be.
    #[error("root version {version} is not signed by the root keys of version {by}")]
    Signatures {
        /// Version of the document.
        version: u16,
        /// Version whose root keys must have signed.
        by: u16,
        /// What is wrong.
        #[source]
        source: SignatureError,
    },
    /// A version is missing, repeated, or out of order.
    #[error("root version {next} follows version {last}, but must be {}", u32::from(*last) + 1)]
    Gap {
        /// Version that is trusted.
        last: u16,
        /// Version that came.
        next: u16,
    },
    /// The chain has no document that the trusted one leads to.
    #[error(
        "root chain starts at version {first}, but version {trusted} is trusted: versions between are missing"
    )]
    Unreachable {
        /// Version that is trusted.
        trusted: u16,
        /// First version of the chain.
        first: u16,
    },
    /// The chain has another document of the version that is trusted.
    #[error("root chain has another version {0} than the trusted one: it belongs to other keys")]
    Fork(u16),
    /// The chain is empty.
    #[error("root chain is empty")]
    Empty,
}

impl SignedRoot {
    /// A document without signatures.
    pub fn unsigned(root: Root) -> Self {
        Self { root, signatures: Vec::new() }
    }

    /// Adds or replaces the signature of `key` over [`Root::signed_bytes`].
    pub fn sign(&mut self, key: PublicKey, signature: [u8; SIGNATURE_BYTES]) {
        self.signatures.retain(|(hint, _)| *hint != key.hint());
        self.signatures.push((key.hint(), signature));
        self.signatures.sort_unstable();
    }

    /// Checks that the threshold of its own root keys and, if there is one, of its predecessor's signed it.
    ///
    /// # Errors
    /// [`RootError::Gap`], [`RootError::UnknownKey`], [`RootError::Signatures`].
    pub fn verify(&self, predecessor: Option<&Root>) -> Result<(), RootError> {
        let version = self.root.version;
        if let Some(last) =
            predecessor.map(|old| old.version).filter(|old| old.checked_add(1) != Some(version))
        {
            return Err(RootError::Gap { last, next: version });
        }
        let roots = || predecessor.into_iter().chain([&self.root]);
        let known =
            |hint: &[u8; 4]| roots().any(|root| root.root.keys().iter().any(|key| key.hint() == *hint));
        if let Some((hint, _)) = self.signatures.iter().find(|(hint, _)| !known(hint)) {
            return Err(RootError::UnknownKey { version, hint: crate::hex::encode(hint) });
        }
        let message = self.root.signed_bytes();
        for by in roots() {
            let number = |hint: &[u8; 4]| by.root.keys().iter().position(|key| key.hint() == *hint);
            let signatures =
                self.signatures.iter().filter_map(|(hint, bytes)| Some((number(hint)? as u8, bytes)));
            by.root.verify(&message, signatures).map_err(|source| RootError::Signatures {
                version,
                by: by.version,
                source,
            })?;
        }
        Ok(())
    }

    fn encode(&self) -> Vec<u8> {
        let signatures = self
            .signatures
            .iter()
            .map(|(hint, bytes)| document::list([document::byte_string(hint), document::byte_string(bytes)]));
        document::list([document::byte_string(&self.root.encode()), document::list(signatures)])
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Self, DocumentError> {
        reader.tuple(2)?;
        let root = Root::parse(reader.bytes()?)?;
        let signatures: Vec<Signed> = reader.list("signatures", 2 * MAX_KEYS, |reader| {
            reader.tuple(2)?;
            Ok((reader.array("key hint")?, reader.array("signature")?))
        })?;
        if signatures.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Ok(Self { root, signatures });
        }
        value(CHAIN, "signatures", "repeated or out of order", "each key signs once, ascending by hint")
    }
}

/// Root documents of consecutive versions, as every repository and stick carries them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain(Vec<SignedRoot>);

impl Chain {
    /// A chain of at least one document; [`Chain::verify`] judges it.
    ///
    /// # Errors
    /// [`RootError::Empty`].
    pub fn new(documents: Vec<SignedRoot>) -> Result<Self, RootError> {
        if documents.is_empty() { Err(RootError::Empty) } else { Ok(Self(documents)) }
    }

    /// Parses a chain.
    ///
    /// # Errors
    /// [`RootError::Document`], [`RootError::Empty`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RootError> {
        let read = || {
            let mut reader = Reader::new(CHAIN, bytes, MAX_CHAIN_BYTES)?;
            let found = reader.list("documents", MAX_CHAIN, SignedRoot::parse)?;
            let canonical = document::list(found.iter().map(SignedRoot::encode)) == bytes;
            if canonical { Ok(found) } else { Err(DocumentError::NotCanonical(CHAIN)) }
        };
        Self::new(read().map_err(RootError::Document)?)
    }

    /// The chain as it is stored and sent.
    pub fn encode(&self) -> Vec<u8> {
        document::list(self.0.iter().map(SignedRoot::encode))
    }

    /// The documents, oldest first.
    pub fn documents(&self) -> &[SignedRoot] {
        &self.0
    }

    /// The newest document, not verified.
    pub fn newest(&self) -> &Root {
        // A chain has at least one document: both constructors see to it.
        &self.0[self.0.len() - 1].root
    }

    /// Verifies the chain by itself and returns the newest document. For a chain that is trusted as it is, as the one
    /// on a verified root file system; the first document is signed by its own keys only.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn verify(&self) -> Result<&Root, RootError> {
        let mut last = None;
        for document in &self.0 {
            document.verify(last)?;
            last = Some(&document.root);
        }
        last.ok_or(RootError::Empty)
    }

    /// Follows the chain from a trusted document to the newest. A chain that ends before it leaves it trusted.
    ///
    /// # Errors
    /// [`RootError`]; the trusted document stays trusted then.
    pub fn follow(&self, trusted: &Root) -> Result<Root, RootError> {
        let mut current = trusted;
        for document in &self.0 {
            let version = document.root.version;
            if version < trusted.version {
                continue;
            }
            if version == trusted.version {
                if document.root != *trusted {
                    return Err(RootError::Fork(version));
                }
                continue;
            }
            if current == trusted && u32::from(version) > u32::from(trusted.version) + 1 {
                return Err(RootError::Unreachable { trusted: trusted.version, first: version });
            }
            document.verify(Some(current))?;
            current = &document.root;
        }
        Ok(current.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_oversized_chain_is_refused_before_it_is_read() {
        let bytes = vec![0x80; MAX_CHAIN_BYTES + 1];
        let refused = DocumentError::TooLong { document: CHAIN, is: bytes.len(), max: MAX_CHAIN_BYTES };
        assert_eq!(Chain::parse(&bytes), Err(RootError::Document(refused)));
    }
}
