//! Payload catalogues: payloads that were added to a release after it was signed, above all deltas. Layout:
//! `docs/formats.md`, "Payload catalogue".
//!
//! One delegated key signs them. That is enough, because a catalogue is bound to a manifest and cannot change a target:
//! whatever a payload gives is checked against the target. What the key's thief can do is waste bytes, and no more of
//! them than the manifest's own payload takes. Here too: in which order a device tries what it is offered.

use crate::document::{self, DocumentError, Ignored, MapWriter, Reader, need, value};
use crate::hex::Digest;
use crate::keys::{PublicKey, SIGNATURE_BYTES};
use crate::manifest::Manifest;
use crate::payload::{
    Entry, MAX_PAYLOADS, ObjectRef, Payload, PayloadKind, Source, check_all, write_entries,
};
use crate::roles::Root;

/// In front of the signed bytes.
pub const DOMAIN: &[u8; 21] = b"farhold-catalogue-v1\0";
/// Most bytes of a catalogue with its signature.
pub const MAX_CATALOGUE_BYTES: usize = 64 * 1024;
const FORMAT: u64 = 1;
const CATALOGUE: &str = "payload catalogue";

/// Further payloads of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalogue {
    /// Version of the root document that names the key it is signed by.
    pub root_version: u16,
    /// Manifest of the release.
    pub manifest: Digest,
    /// The payloads; their targets are positions in the manifest's list.
    pub payloads: Vec<Entry<Payload>>,
    /// Fields of newer writers that may be ignored.
    pub ignored: Ignored,
}

/// Why a catalogue is not used. The release can be had without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CatalogueError {
    /// It cannot be read, or breaks a rule.
    #[error("read payload catalogue")]
    Document(#[source] DocumentError),
    /// Not signed by the catalogue key in force.
    #[error("payload catalogue is not signed by the catalogue key {key} of root version {root_version}")]
    Signature {
        /// Version of the trusted root document.
        root_version: u16,
        /// Its catalogue key.
        key: PublicKey,
    },
    /// Written for another root version: the key may be the same, the writer was not told.
    #[error(
        "payload catalogue is for root version {is}, but {trusted} is trusted: publish the release again"
    )]
    RootVersion {
        /// Version that it names.
        is: u16,
        /// Version of the trusted root document.
        trusted: u16,
    },
    /// For another release.
    #[error("payload catalogue is for the manifest {is}, but the release has {must}")]
    OtherRelease {
        /// Manifest that it names.
        is: Digest,
        /// Manifest of the release.
        must: Digest,
    },
    /// A payload that takes at least as many bytes as the release's own way.
    #[error(
        "payload {object} of the catalogue takes {is} bytes, but must take fewer than the release's own way, {own}"
    )]
    NotSmaller {
        /// The payload's object.
        object: Digest,
        /// Bytes to fetch for it.
        is: u64,
        /// Bytes to fetch without catalogue.
        own: u64,
    },
}

impl Catalogue {
    /// The canonical bytes, without signature.
    fn document(&self) -> Vec<u8> {
        MapWriter::new()
            .uint(0, FORMAT)
            .uint(1, self.root_version)
            .bytes(2, &self.manifest.0)
            .raw(3, write_entries(&self.payloads, Payload::write))
            .finish(&self.ignored)
    }

    /// The bytes that are signed: [`DOMAIN`], then the document.
    pub fn signed_bytes(&self) -> Vec<u8> {
        [DOMAIN.as_slice(), &self.document()].concat()
    }

    /// The catalogue with its signature over [`Catalogue::signed_bytes`], as it is stored and sent.
    pub fn encode(&self, signature: &[u8; SIGNATURE_BYTES]) -> Vec<u8> {
        document::list([document::byte_string(&self.document()), document::byte_string(signature)])
    }

    /// Verifies the signature with the catalogue key of `root`, then reads the catalogue and compares it with the release.
    ///
    /// # Errors
    /// [`CatalogueError`]; the release can then be had by its own payloads.
    pub fn open(
        bytes: &[u8],
        root: &Root,
        manifest_id: &Digest,
        manifest: &Manifest,
    ) -> Result<Self, CatalogueError> {
        let (document, signature) = split(bytes).map_err(CatalogueError::Document)?;
        let message = [DOMAIN.as_slice(), document].concat();
        if !root.catalogue.verifies(&message, &signature) {
            return Err(CatalogueError::Signature { root_version: root.version, key: root.catalogue });
        }
        let found = Self::parse(document).map_err(CatalogueError::Document)?;
        if found.root_version != root.version {
            return Err(CatalogueError::RootVersion { is: found.root_version, trusted: root.version });
        }
        if found.manifest != *manifest_id {
            return Err(CatalogueError::OtherRelease { is: found.manifest, must: *manifest_id });
        }
        found.check(manifest)?;
        Ok(found)
    }

    /// Whether the release may have these payloads: known targets, and each smaller than what the release has itself.
    ///
    /// # Errors
    /// [`CatalogueError::Document`], [`CatalogueError::NotSmaller`].
    pub fn check(&self, manifest: &Manifest) -> Result<(), CatalogueError> {
        check_all(&self.payloads, &manifest.targets).map_err(CatalogueError::Document)?;
        for payload in self.payloads.iter().filter_map(Entry::known) {
            let is = payload.kind.fetch_bytes(&payload.object);
            let own = own_bytes(manifest, payload.target);
            if is >= own {
                return Err(CatalogueError::NotSmaller { object: payload.object.id, is, own });
            }
        }
        Ok(())
    }

    fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let mut reader = Reader::new(CATALOGUE, bytes, MAX_CATALOGUE_BYTES)?;
        let (mut format, mut root_version, mut manifest, mut payloads) = (None, None, None, None);
        let ignored = reader.map(CATALOGUE, |reader, key| {
            match key {
                0 => format = Some(reader.uint::<u64>("format")?),
                1 => root_version = Some(reader.uint("root version")?),
                2 => manifest = Some(Digest(reader.array("manifest")?)),
                3 => payloads = Some(reader.list("payloads", MAX_PAYLOADS, Payload::parse)?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let format = need(format, CATALOGUE, "format")?;
        if format != FORMAT {
            return value(CATALOGUE, "format", format, format!("must be {FORMAT}"));
        }
        let found = Self {
            root_version: need(root_version, CATALOGUE, "root version")?,
            manifest: need(manifest, CATALOGUE, "manifest")?,
            payloads: need(payloads, CATALOGUE, "payloads")?,
            ignored,
        };
        if found.document() == bytes { Ok(found) } else { Err(DocumentError::NotCanonical(CATALOGUE)) }
    }
}

/// The document and the signature of a catalogue; nothing of the document is looked at.
fn split(bytes: &[u8]) -> Result<(&[u8], [u8; SIGNATURE_BYTES]), DocumentError> {
    let mut reader = Reader::new(CATALOGUE, bytes, MAX_CATALOGUE_BYTES)?;
    reader.tuple(2)?;
    let (document, signature) = (reader.bytes()?, reader.array("signature")?);
    let canonical = document::list([document::byte_string(document), document::byte_string(&signature)]);
    if canonical == bytes { Ok((document, signature)) } else { Err(DocumentError::NotCanonical(CATALOGUE)) }
}

/// Bytes to fetch for a target by the cheapest way of the manifest that needs no base.
fn own_bytes(manifest: &Manifest, target: u16) -> u64 {
    let carried = manifest.target(target).map(|target| target.object.fetch_bytes());
    let payloads = manifest.payloads.iter().filter_map(Entry::known);
    let full = payloads
        .filter(|payload| payload.target == target && matches!(payload.kind, PayloadKind::Full { .. }))
        .map(|payload| payload.object.fetch_bytes());
    carried.into_iter().chain(full).min().unwrap_or(0)
}

/// A way to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way<'a> {
    /// The payload that makes it; none if the target's own object is taken as it is.
    pub payload: Option<&'a Payload>,
    /// The object to fetch.
    pub object: ObjectRef,
    /// Its bytes, hash file included; of an adaptive payload the fewest.
    pub fetch_bytes: u64,
}

/// The ways to the target at `position` that a device can go, fewest bytes first, adaptive payloads before the first way
/// that needs no base. `has` says whether it has a source of a
/// delta. When one fails (base differs, object is not there, payload is damaged), the next one is tried; the last needs
/// nothing but the release itself.
pub fn ways<'a>(
    manifest: &'a Manifest,
    catalogue: Option<&'a Catalogue>,
    position: u16,
    has: &dyn Fn(&Source) -> bool,
) -> Vec<Way<'a>> {
    let Some(target) = manifest.target(position) else { return Vec::new() };
    let added = catalogue.map_or(&[][..], |catalogue| &catalogue.payloads);
    let payloads = manifest.payloads.iter().chain(added).filter_map(Entry::known);
    let can = |payload: &&Payload| match &payload.kind {
        PayloadKind::Full { .. } | PayloadKind::Adaptive { .. } => true,
        PayloadKind::Delta { base, .. } => base.iter().all(has),
    };
    let way = |payload: Option<&'a Payload>, object: ObjectRef| {
        let fewest = payload.map(|payload| payload.kind.fetch_bytes(&object));
        Way { payload, object, fetch_bytes: fewest.unwrap_or_else(|| object.fetch_bytes()) }
    };
    let mut found: Vec<Way<'_>> = payloads
        .filter(|payload| payload.target == position)
        .filter(can)
        .map(|payload| way(Some(payload), payload.object))
        .chain([way(None, target.object)])
        .collect();
    // Stable: of equal ones the manifest's come first.
    found.sort_by_key(|way| way.fetch_bytes);
    found.dedup_by_key(|way| way.object.id);
    // What an adaptive payload takes shows only when its index is there: less than without a base, more than a delta.
    let adaptive = |way: &Way<'_>| way.payload.is_some_and(|payload| payload.kind.is_adaptive());
    let (adaptive, mut rest): (Vec<_>, Vec<_>) = found.into_iter().partition(adaptive);
    let without_base = |way: &Way<'_>| way.payload.is_none_or(|payload| payload.kind.needs_no_base());
    let at = rest.iter().position(without_base).unwrap_or(rest.len());
    rest.splice(at..at, adaptive);
    rest
}
