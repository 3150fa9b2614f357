//! The announcement frame: "there is a new release", signed, 198 bytes with two of three signatures, so that it fits one
//! satellite message. Byte layout: `docs/formats.md`, "Announcement frame". It names the manifest and nothing else of
//! what it announces; who may act on it is decided in [`crate::trust`].

use crate::arch::Arch;
use crate::hex::Digest;
use crate::keys::{MAX_KEYS, Role, SIGNATURE_BYTES, SignatureError};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

/// In front of the signed bytes, so that a signature made for a frame means nothing elsewhere.
pub const DOMAIN: &[u8; 20] = b"farhold-announce-v1\0";
/// Type 1 (announcement) in the high half, layout version 1 in the low half.
const TYPE_AND_VERSION: u8 = 0x11;
/// SHA-256 object ids and Ed25519 signatures.
const ALGORITHM: u8 = 1;
/// Bytes before extensions and signatures.
pub const FIXED_BYTES: usize = 69;
/// Most bytes of extensions, their length byte included.
pub const MAX_EXTENSION_BYTES: usize = 32;
/// Longest frame: every extension byte and eight signatures.
pub const MAX_FRAME_BYTES: usize = FIXED_BYTES + MAX_EXTENSION_BYTES + 1 + MAX_KEYS * SIGNATURE_BYTES;
/// Longest manifest that a frame may name, bytes.
pub const MAX_MANIFEST_BYTES: u32 = 64 * 1024;

const FLAG_EXTENSIONS: u8 = 1;
const FLAG_RESCUE: u8 = 2;
/// Flags that a reader must understand; those above may be ignored.
const FLAGS_MUST_UNDERSTAND: u8 = 0x0f;
/// Extension types below this one must be understood.
const IGNORABLE_EXTENSION: u8 = 0x80;

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every device of product and board.
    All,
    /// The devices of one site, by the name's [`Scope::site`] hash.
    Site([u8; 7]),
    /// One device, by its id's [`Scope::device`] hash.
    Device([u8; 7]),
}

impl Scope {
    /// The scope of the site `name`.
    pub fn site(name: &str) -> Self {
        Self::Site(short_hash(b"farhold-site-v1\0", &[name]))
    }
    /// The scope of the device `id`.
    pub fn device(id: &str) -> Self {
        Self::Device(short_hash(b"farhold-device-v1\0", &[id]))
    }
    fn encode(self) -> [u8; 8] {
        let (kind, name) = match self {
            Self::All => (0, [0; 7]),
            Self::Site(name) => (1, name),
            Self::Device(name) => (2, name),
        };
        let mut out = [kind; 8];
        out[1..].copy_from_slice(&name);
        out
    }
    fn parse(bytes: [u8; 8]) -> Result<Self, FrameError> {
        let [kind, name @ ..] = bytes;
        match (kind, name) {
            (0, [0, 0, 0, 0, 0, 0, 0]) => Ok(Self::All),
            (1, name) => Ok(Self::Site(name)),
            (2, name) => Ok(Self::Device(name)),
            (kind, _) => Err(FrameError::Field { field: "scope", is: kind.into() }),
        }
    }
}

/// The tag of product, board and processor: a frame for another machine is refused before anything is fetched.
pub fn target_tag(product: &str, board: &str, arch: Arch) -> [u8; 8] {
    short_hash(b"farhold-target-v1\0", &[product, board, arch.name()])
}

fn short_hash<const N: usize>(domain: &[u8], names: &[&str]) -> [u8; N] {
    let mut hasher = Sha256::new_with_prefix(domain);
    for name in names {
        hasher.update(name.as_bytes());
        hasher.update([0]);
    }
    let digest = hasher.finalize();
    std::array::from_fn(|n| digest[n])
}

/// An extension: its type and value. All that v1 knows of is that types from 0x80 may be ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Type; in a frame they ascend.
    pub kind: u8,
    /// Value.
    pub value: Vec<u8>,
}

/// What a frame says, and its signatures cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Product, board and processor, see [`target_tag`].
    pub target: [u8; 8],
    /// Channel; 0 is `stable`, others are the operator's.
    pub channel: u8,
    /// Whom it is for.
    pub scope: Scope,
    /// Version of the root document that names the signers.
    pub root_version: u16,
    /// Sequence number of the release under that root version.
    pub sequence: u32,
    /// Oldest agent format that can read the release.
    pub min_agent_format: u8,
    /// Time of signing, seconds since 1970.
    pub signed_s: u32,
    /// Hours from signing after which the frame counts as possibly frozen; 0 for never.
    pub validity_h: u16,
    /// Signed by the root threshold instead of the release threshold; expiry does not hold it back.
    pub rescue: bool,
    /// Flags of the upper half, which v1 ignores and keeps.
    pub ignored_flags: u8,
    /// Length of the manifest in bytes.
    pub manifest_bytes: u32,
    /// Object id of the manifest, in blocks of 1 KiB.
    pub manifest: Digest,
    /// Ignorable extensions.
    pub extensions: Vec<Extension>,
}

/// Why bytes are no frame, or one for a newer reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another length than contents and signer bitmap say.
    #[error("frame has {is} bytes, but must have {must}")]
    Length {
        /// Bytes that came.
        is: usize,
        /// Bytes that are needed, or allowed at most.
        must: usize,
    },
    /// Not an announcement of layout version 1.
    #[error("frame has type and version {0:#04x}, but this reader knows {TYPE_AND_VERSION:#04x} only")]
    Version(u8),
    /// Other algorithms.
    #[error("frame has algorithm {0}, but this reader knows {ALGORITHM} only (SHA-256, Ed25519)")]
    Algorithm(u8),
    /// A flag or extension that must be understood.
    #[error("frame has {what} {number:#04x}, which this reader does not know and must understand")]
    MustUnderstand {
        /// `flag` or `extension`.
        what: &'static str,
        /// Its number.
        number: u8,
    },
    /// A value outside its limits.
    #[error("frame: {field} is {is}, which is outside its limits")]
    Field {
        /// Name of the field.
        field: &'static str,
        /// Its value.
        is: u64,
    },
}

impl Announcement {
    /// The bytes that are signed: [`DOMAIN`], then the frame up to its signer bitmap.
    ///
    /// # Errors
    /// [`FrameError::Field`] for contents that no frame may have, [`FrameError::MustUnderstand`] for extensions that
    /// version 1 does not have.
    pub fn signed_bytes(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = DOMAIN.to_vec();
        out.extend(self.encode()?);
        Ok(out)
    }

    fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut flags = self.ignored_flags;
        if flags & FLAGS_MUST_UNDERSTAND != 0 {
            return Err(FrameError::Field { field: "ignored flags", is: flags.into() });
        }
        flags |= if self.rescue { FLAG_RESCUE } else { 0 };
        flags |= if self.extensions.is_empty() { 0 } else { FLAG_EXTENSIONS };
        let mut out = vec![TYPE_AND_VERSION, ALGORITHM];
        out.extend(self.target);
        out.push(self.channel);
        out.extend(self.scope.encode());
        out.extend(self.root_version.to_le_bytes());
        out.extend(self.sequence.to_le_bytes());
        out.push(self.min_agent_format);
        out.extend(self.signed_s.to_le_bytes());
        out.extend(self.validity_h.to_le_bytes());
        out.push(flags);
        out.extend(self.manifest_bytes.to_le_bytes());
        out.extend(self.manifest.0);
        out.extend(encode_extensions(&self.extensions)?);
        // What is written must read back the same: limits stand in one place, the parser.
        let (read, rest) = Self::parse(&out)?;
        debug_assert!(read == *self && rest.is_empty());
        Ok(out)
    }

    /// Parses the part before the signer bitmap and returns what follows.
    fn parse(bytes: &[u8]) -> Result<(Self, &[u8]), FrameError> {
        let mut reader = Bytes(bytes, bytes.len());
        let [version, algorithm] = reader.take()?;
        if version != TYPE_AND_VERSION {
            return Err(FrameError::Version(version));
        }
        if algorithm != ALGORITHM {
            return Err(FrameError::Algorithm(algorithm));
        }
        let mut found = Self {
            target: reader.take()?,
            channel: reader.byte()?,
            scope: Scope::parse(reader.take()?)?,
            root_version: u16::from_le_bytes(reader.take()?),
            sequence: u32::from_le_bytes(reader.take()?),
            min_agent_format: reader.byte()?,
            signed_s: u32::from_le_bytes(reader.take()?),
            validity_h: u16::from_le_bytes(reader.take()?),
            rescue: false,
            ignored_flags: reader.byte()?,
            manifest_bytes: u32::from_le_bytes(reader.take()?),
            manifest: Digest(reader.take()?),
            extensions: Vec::new(),
        };
        let flags = std::mem::replace(&mut found.ignored_flags, 0);
        found.ignored_flags = flags & !FLAGS_MUST_UNDERSTAND;
        found.rescue = flags & FLAG_RESCUE != 0;
        let unknown = flags & FLAGS_MUST_UNDERSTAND & !(FLAG_EXTENSIONS | FLAG_RESCUE);
        if unknown != 0 {
            return Err(FrameError::MustUnderstand { what: "flag", number: unknown });
        }
        found.limits()?;
        if flags & FLAG_EXTENSIONS != 0 {
            found.extensions = parse_extensions(&mut reader)?;
        }
        Ok((found, reader.0))
    }

    fn limits(&self) -> Result<(), FrameError> {
        let fields = [
            ("root version", u64::from(self.root_version), 1),
            ("sequence", self.sequence.into(), 1),
            ("minimum agent format", self.min_agent_format.into(), 1),
            ("manifest length", self.manifest_bytes.into(), 1),
        ];
        for (field, is, least) in fields {
            if is < least {
                return Err(FrameError::Field { field, is });
            }
        }
        if self.manifest_bytes > MAX_MANIFEST_BYTES {
            return Err(FrameError::Field { field: "manifest length", is: self.manifest_bytes.into() });
        }
        Ok(())
    }
}

fn encode_extensions(extensions: &[Extension]) -> Result<Vec<u8>, FrameError> {
    let mut out = Vec::new();
    for extension in extensions {
        let length = extension.value.len();
        out.push(extension.kind);
        out.push(u8::try_from(length).or(Err(FrameError::Field { field: "extension", is: length as u64 }))?);
        out.extend(&extension.value);
    }
    if out.len() + 1 > MAX_EXTENSION_BYTES {
        return Err(FrameError::Field { field: "extension bytes", is: out.len() as u64 + 1 });
    }
    if !out.is_empty() {
        out.insert(0, out.len() as u8);
    }
    Ok(out)
}

fn parse_extensions(reader: &mut Bytes<'_>) -> Result<Vec<Extension>, FrameError> {
    let length = usize::from(reader.byte()?);
    if length == 0 || length + 1 > MAX_EXTENSION_BYTES {
        return Err(FrameError::Field { field: "extension bytes", is: length as u64 + 1 });
    }
    let mut inner = Bytes(reader.slice(length)?, reader.1);
    let mut found: Vec<Extension> = Vec::new();
    while !inner.0.is_empty() {
        let (kind, length) = (inner.byte()?, inner.byte()?);
        if kind < IGNORABLE_EXTENSION {
            return Err(FrameError::MustUnderstand { what: "extension", number: kind });
        }
        if found.last().is_some_and(|last| last.kind >= kind) {
            return Err(FrameError::Field { field: "order of extensions", is: kind.into() });
        }
        found.push(Extension { kind, value: inner.slice(length.into())?.to_vec() });
    }
    Ok(found)
}

/// What is left of a frame, and how long it was.
struct Bytes<'b>(&'b [u8], usize);

impl<'b> Bytes<'b> {
    fn slice(&mut self, length: usize) -> Result<&'b [u8], FrameError> {
        let must = self.1 - self.0.len() + length;
        let (now, later) = self.0.split_at_checked(length).ok_or(FrameError::Length { is: self.1, must })?;
        self.0 = later;
        Ok(now)
    }
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(N)?);
        Ok(out)
    }
    fn byte(&mut self) -> Result<u8, FrameError> {
        self.take::<1>().map(|[byte]| byte)
    }
}

/// A frame with its signatures, not yet verified. What it says is handed out only by [`Frame::verify`] or, for display
/// and for the choice of a root document, by [`Frame::unverified`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    announcement: Announcement,
    /// By number of the key in its role.
    signatures: BTreeMap<u8, [u8; SIGNATURE_BYTES]>,
}

/// An announcement whose signatures were verified; made by [`Frame::verify`] only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified(Announcement);

impl Verified {
    /// What was signed.
    pub fn announcement(&self) -> &Announcement {
        &self.0
    }
}

impl Frame {
    /// A frame without signatures.
    ///
    /// # Errors
    /// [`FrameError`] for contents that no frame may have.
    pub fn unsigned(announcement: Announcement) -> Result<Self, FrameError> {
        announcement.encode()?;
        Ok(Self { announcement, signatures: BTreeMap::new() })
    }

    /// Adds or replaces the signature of key `number` over [`Announcement::signed_bytes`].
    ///
    /// # Errors
    /// [`FrameError::Field`] if the bitmap has no such bit.
    pub fn sign(&mut self, number: u8, signature: [u8; SIGNATURE_BYTES]) -> Result<(), FrameError> {
        if usize::from(number) >= MAX_KEYS {
            return Err(FrameError::Field { field: "key number", is: number.into() });
        }
        self.signatures.insert(number, signature);
        Ok(())
    }

    /// Parses a whole frame: nothing may be missing or follow.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(FrameError::Length { is: bytes.len(), must: MAX_FRAME_BYTES });
        }
        let (announcement, rest) = Announcement::parse(bytes)?;
        let mut reader = Bytes(rest, bytes.len());
        let bitmap = reader.byte()?;
        let mut signatures = BTreeMap::new();
        for number in (0..8).filter(|number| bitmap & (1 << number) != 0) {
            signatures.insert(number, reader.take()?);
        }
        if !reader.0.is_empty() {
            return Err(FrameError::Length { is: bytes.len(), must: bytes.len() - reader.0.len() });
        }
        Ok(Self { announcement, signatures })
    }

    /// The frame as it is sent.
    ///
    /// # Errors
    /// As [`Announcement::signed_bytes`].
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let mut out = self.announcement.encode()?;
        out.push(self.signatures.keys().fold(0, |bitmap, number| bitmap | 1 << number));
        out.extend(self.signatures.values().flatten());
        Ok(out)
    }

    /// Checks every signature against the keys of `role` and that enough distinct keys signed.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(&self, role: &Role) -> Result<Verified, SignatureError> {
        let too_few = SignatureError::TooFew { is: 0, must: role.threshold() };
        let message = self.announcement.signed_bytes().or(Err(too_few))?;
        role.verify(&message, self.signatures.iter().map(|(number, bytes)| (*number, bytes)))?;
        Ok(Verified(self.announcement.clone()))
    }

    /// What the frame claims; anybody can have written it.
    pub fn unverified(&self) -> &Announcement {
        &self.announcement
    }
    /// Numbers of the keys whose signatures are there.
    pub fn signers(&self) -> Vec<u8> {
        self.signatures.keys().copied().collect()
    }
}
