//! Deltas between two images or files: the container, the shared models and the decoder.
//!
//! Nothing here opens files, reads clocks or logs: the old image and the delta are [`ReadAt`] values, output goes to a
//! [`Sink`]. The bytes are described in `docs/delta.md`. Data flows top to bottom:
//!
//! - [`wire`]: bounded reading of little-endian numbers and varints
//! - [`stream`]: bounded unpacking
//! - [`container`]: header, index, bundles of maps: what is where, and its digests
//! - [`ops`]: the operations of one group of output
//! - [`history`]: what literals may refer back to
//! - [`object`]: a file whose pointers are projected: where its bytes lie, its copy map
//! - [`map`]: from old addresses to new ones, through the copies
//! - [`refs`], [`elf`], [`module`], [`btf`], [`gotab`], [`x86`], [`a64`], [`erofs`]: pointers found in the OLD bytes only, a block at a time
//! - [`residue`]: what predictions miss, coded
//! - [`deflate`]: compressed files, made again from their texts
//! - [`apply`]: the decoder; one group at a time, in bounded memory
//!
//! The encoder (in the builder) uses the same models, so that a wrongly recognised pointer costs bytes and never
//! correctness: what the models predict is corrected by the residue, and every group is checked by its SHA-256.

pub mod a64;
pub mod apply;
pub mod btf;
pub mod container;
pub mod deflate;
pub mod elf;
pub mod erofs;
pub mod gotab;
pub mod history;
pub mod joined;
pub mod map;
pub mod module;
pub mod object;
pub mod ops;
pub mod refs;
pub mod residue;
pub mod stream;
pub mod view;
pub mod wire;
pub mod x86;

use std::io;
use thiserror::Error;

/// Longest old window of a prefix operation, in bytes.
pub const MAX_PREFIX: u64 = 8 << 20;
/// Longest windows of a group together, in bytes.
pub const MAX_HISTORY: u64 = 8 << 20;
/// Most windows of a group.
pub const MAX_WINDOWS: u64 = 256;
/// Most copies in one object's map; keeps the decoder's tables under 20 MiB.
pub const MAX_COPIES: u64 = 1 << 18;
/// Most objects in one delta.
pub const MAX_OBJECTS: u64 = 1 << 16;
/// Longest unpacked index, in bytes: room for 64 Ki groups and as many objects.
pub const MAX_INDEX: u64 = 8 << 20;
/// Longest packed or unpacked bundle of maps, in bytes.
pub const MAX_MAPS: u64 = 4 << 20;
/// Longest image, in bytes: 64 Ki groups of 1 MiB.
pub const MAX_IMAGE: u64 = 1 << 36;
/// Longest unpacked list of operations of one group, in bytes.
pub const MAX_OPS: u64 = 1 << 20;
/// Most compressed files whose texts a delta has.
pub const MAX_TEXTS: u64 = 64;
/// Longest texts together, in bytes.
pub const MAX_TEXT: u64 = 1 << 30;
/// Most operations of one group that deflate.
pub const MAX_DEFLATED: usize = 16;
/// Most text that one group may deflate, in bytes: 16 times its output where that is 4 MiB. Archives pack to a fourth.
pub const MAX_DEFLATED_TEXT: u64 = 64 << 20;
/// Most bytes that deflating gives before those that are meant: more than a block ever has.
pub const MAX_SKIP: u64 = 1 << 20;
/// Text is deflated in pieces of at most this many bytes.
pub const TEXT_PIECE: u64 = 64 << 10;
/// Longest packed group, in bytes: a group stored raw and its operations, with room to spare.
pub const MAX_GROUP_PACKED: u64 = 6 << 20;

/// Bytes that can be read at any offset: the old image, or the delta itself.
pub trait ReadAt {
    /// Length in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// When the source cannot give all the bytes.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).ok();
        let found = from.and_then(|from| self.get(from..from.checked_add(buf.len())?));
        match found {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

impl ReadAt for &[u8] {
    fn size(&self) -> u64 {
        (**self).size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }
}

/// Where verified groups go; later groups may refer back to them.
pub trait Sink: ReadAt {
    /// Keeps `bytes`, which belong at `offset` of the new image and have passed their digest.
    ///
    /// # Errors
    /// When the bytes cannot be kept.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for Vec<u8> {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let from =
            usize::try_from(offset).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let end = from.checked_add(bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if self.len() < end {
            self.resize(end, 0);
        }
        self[from..end].copy_from_slice(bytes);
        Ok(())
    }
}

/// Why a delta cannot be read or applied. The new image is never partly trusted: a group that fails is not written.
#[derive(Debug, Error)]
pub enum DeltaError {
    /// The old image, the delta or the output failed to read or write.
    #[error("{verb} {what} at byte {offset}, {len} bytes")]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// Which of the three.
        what: &'static str,
        /// Byte offset.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The cause.
        source: io::Error,
    },
    /// The delta breaks a rule of its format; fetch it again.
    #[error("read delta: {part}: {why}; the delta is damaged or hostile, fetch it again")]
    Malformed {
        /// The part of the container.
        part: &'static str,
        /// The fact and the rule.
        why: String,
    },
    /// The delta was made for another old image.
    #[error(
        "apply delta: the old image {fact}, but the delta was made for one {rule}; use the delta for this image, or the full payload"
    )]
    WrongBase {
        /// What the old image is.
        fact: String,
        /// What the delta needs.
        rule: String,
    },
    /// Output does not have the digest that the delta states; nothing of it was written.
    #[error(
        "apply delta: group {group} has SHA-256 {found}, but must have {expected}; the old image or the delta is damaged: nothing of this group was written"
    )]
    GroupDigest {
        /// Number of the group, from 0.
        group: u64,
        /// Digest of the bytes that came out, in hex.
        found: String,
        /// Digest stated by the index, in hex.
        expected: String,
    },
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, DeltaError>;

/// A [`DeltaError::Malformed`] for `part`.
pub(crate) fn malformed<T>(part: &'static str, why: impl Into<String>) -> Result<T> {
    Err(DeltaError::Malformed { part, why: why.into() })
}

/// Reads `len` bytes of `source` at `offset`; `len` must have been checked against a limit by the caller.
pub(crate) fn read_vec(source: &dyn ReadAt, what: &'static str, offset: u64, len: u64) -> Result<Vec<u8>> {
    let fits = offset.checked_add(len).is_some_and(|end| end <= source.size());
    let size = usize::try_from(len).ok().filter(|_| fits);
    let Some(size) = size else {
        return malformed(
            what,
            format!("bytes {offset} to {offset}+{len} are asked for, but there are {}", source.size()),
        );
    };
    let mut bytes = vec![0; size];
    source.read_at(offset, &mut bytes).map_err(|source| DeltaError::Io {
        verb: "read",
        what,
        offset,
        len,
        source,
    })?;
    Ok(bytes)
}
