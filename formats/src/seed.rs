//! What an installer leaves for a device's first boot: a few small files, in the part of the state partition that its
//! file system leaves free, because the file system itself is made by the device.
//!
//! The area begins [`STATE_TAIL_BYTES`](crate::layout::STATE_TAIL_BYTES) before the partition's end, in front of the
//! state mark. Layout: magic (32 bytes), length of the text (4 bytes, little-endian), its SHA-256, JSON. Knows nothing of
//! what the files mean.

use crate::layout::{STATE_MARK_BYTES, STATE_TAIL_BYTES};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 32] = b"farhold-seed-v1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const HEAD: usize = 32 + 4 + 32;
/// Most bytes of an area, whole blocks of 4096 so that it can be read past caches.
pub const AREA_BYTES: usize = STATE_TAIL_BYTES as usize - STATE_MARK_BYTES;
/// Most files.
pub const FILES_MAX: usize = 64;

/// Files for the state store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seed {
    /// GUID of the state partition that it is for: what an earlier life of the disk left here is not taken.
    pub partition: String,
    /// In order.
    pub files: Vec<SeedFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedFile {
    /// Path below `/var/lib/farhold`.
    pub path: String,
    /// Mode bits.
    pub mode: u32,
    /// Contents.
    pub text: String,
}

/// Why an area holds no seed that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// It begins as a seed does, but its checksum or length is wrong.
    #[error("the installer's seed is damaged")]
    Damaged,
    /// The text is not what it must be.
    #[error("the installer's seed cannot be read: {0}")]
    Text(String),
    /// More than an area holds.
    #[error("the seed has {0} bytes, the area holds {AREA_BYTES}")]
    TooLong(usize),
}

impl Seed {
    /// The bytes of the area, padded to whole blocks.
    ///
    /// # Errors
    /// [`SeedError::TooLong`].
    pub fn encode(&self) -> Result<Vec<u8>, SeedError> {
        let text = serde_json::to_vec(self).map_err(|error| SeedError::Text(error.to_string()))?;
        let bytes = HEAD + text.len();
        if bytes > AREA_BYTES {
            return Err(SeedError::TooLong(bytes));
        }
        let length = u32::try_from(text.len()).map_err(|_too_long| SeedError::TooLong(bytes))?;
        let mut area = MAGIC.to_vec();
        area.extend(length.to_le_bytes());
        area.extend(Sha256::digest(&text));
        area.extend(text);
        area.resize(bytes.next_multiple_of(STATE_MARK_BYTES), 0);
        Ok(area)
    }

    /// Reads an area; `None` if no seed begins there.
    ///
    /// # Errors
    /// [`SeedError`] if one begins there and cannot be used.
    pub fn parse(area: &[u8]) -> Result<Option<Self>, SeedError> {
        if !area.starts_with(MAGIC) {
            return Ok(None);
        }
        let head = area.get(..HEAD).ok_or(SeedError::Damaged)?;
        let mut length = [0; 4];
        length.copy_from_slice(&head[32..36]);
        let end = HEAD.saturating_add(u32::from_le_bytes(length) as usize);
        let text = area.get(HEAD..end.min(AREA_BYTES)).ok_or(SeedError::Damaged)?;
        if Sha256::digest(text)[..] != head[36..] {
            return Err(SeedError::Damaged);
        }
        let seed: Self = serde_json::from_slice(text).map_err(|error| SeedError::Text(error.to_string()))?;
        if seed.files.len() > FILES_MAX {
            return Err(SeedError::Text(format!("it has more than {FILES_MAX} files")));
        }
        Ok(Some(seed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Seed {
        Seed {
            partition: "p".into(),
            files: vec![SeedFile { path: "etc/hostname".into(), mode: 0o644, text: "pump-1\n".into() }],
        }
    }

    #[test]
    fn round_trips_and_any_flipped_byte_is_seen() {
        let area = sample().encode().unwrap();
        assert_eq!(area.len(), 4096);
        assert_eq!(Seed::parse(&area), Ok(Some(sample())));
        let used = HEAD + serde_json::to_vec(&sample()).unwrap().len();
        for at in 0..used {
            let mut bad = area.clone();
            bad[at] ^= 1;
            assert_ne!(Seed::parse(&bad), Ok(Some(sample())), "byte {at}");
        }
        assert_eq!(Seed::parse(&[0; 4096]), Ok(None));
        assert_eq!(Seed::parse(&area[..40]), Err(SeedError::Damaged));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut seed = sample();
        seed.files[0].text = "x".repeat(AREA_BYTES);
        assert!(matches!(seed.encode(), Err(SeedError::TooLong(_))));
    }
}
