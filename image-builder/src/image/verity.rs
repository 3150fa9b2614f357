//! The dm-verity area of a slot image: superblock and hash tree in one file, as the verity partition holds them.
//!
//! The tree itself is `formats::verity`. Salt and UUID follow from the image, so the same image gives the same area.

use anyhow::{Context, Result, bail};
use formats::hex::Digest;
use formats::verity::{BLOCK, Builder, Parameters};
use sha2::{Digest as _, Sha256};
use std::io::{Read, Write};

/// Bytes read at a time; a multiple of the block.
const CHUNK: usize = 256 * BLOCK;

/// What was computed for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Root of the tree.
    pub roothash: Digest,
    /// Salt and block count, for the kernel command line.
    pub parameters: Parameters,
    /// UUID in the superblock.
    pub uuid: [u8; 16],
}

/// Salt and block count for an image of `bytes` bytes whose SHA-256 is `digest`.
///
/// # Errors
/// If the length is not a whole number of blocks, or less than two.
pub fn parameters(digest: Digest, bytes: u64) -> Result<Parameters> {
    // The kernel's tree of a single block has no level at all; an image is never that small.
    if bytes < 2 * BLOCK as u64 || !bytes.is_multiple_of(BLOCK as u64) {
        bail!("slot image has {bytes} bytes, must be a multiple of {BLOCK} and two blocks or more");
    }
    Ok(Parameters { data_blocks: bytes / BLOCK as u64, salt: derive(b"farhold verity salt v1", digest) })
}

/// Reads the image once and writes superblock and tree.
///
/// # Errors
/// If the image cannot be read to its announced length, or the area cannot be written.
pub fn write(
    image: &mut impl Read,
    digest: Digest,
    parameters: Parameters,
    out: &mut impl Write,
    progress: &mut dyn FnMut(u64),
) -> Result<Area> {
    let mut builder = Builder::new(parameters);
    let mut left = parameters.data_blocks * BLOCK as u64;
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let part = &mut chunk[..left.min(CHUNK as u64) as usize];
        image.read_exact(part).context("read slot image for its hash tree")?;
        builder.push(part);
        left -= part.len() as u64;
        progress(part.len() as u64);
    }
    let tree = builder.finish();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&derive(b"farhold verity uuid v1", digest)[..16]);
    let uuid = as_uuid(uuid);
    out.write_all(&parameters.superblock(uuid)).context("write verity superblock")?;
    out.write_all(&tree.blocks).context("write verity hash tree")?;
    Ok(Area { roothash: tree.roothash, parameters, uuid })
}

/// SHA-256 over a purpose and a digest: independent values for each purpose.
pub fn derive(purpose: &[u8], digest: Digest) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(purpose);
    hasher.update(digest.0);
    hasher.finalize().into()
}

/// Sets version 8 (custom) and the variant of RFC 9562 in 16 derived bytes.
pub fn as_uuid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    bytes
}

/// A UUID made of derived bytes, as text.
pub fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = formats::hex::encode(&as_uuid(bytes));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_area_parses_and_its_first_block_opens() {
        let image = vec![5u8; 300 * BLOCK];
        let digest = Digest([1; 32]);
        let parameters = parameters(digest, image.len() as u64).unwrap();
        let (mut area, mut seen) = (Vec::new(), 0);
        let made = write(&mut image.as_slice(), digest, parameters, &mut area, &mut |n| seen += n).unwrap();
        assert_eq!(area.len() as u64, parameters.hash_area_bytes());
        assert_eq!(seen, image.len() as u64);
        assert_eq!(Parameters::parse(&area), Ok(parameters));
        assert!(parameters.opens(made.roothash, &area[BLOCK..2 * BLOCK]));
    }

    #[test]
    fn a_short_image_is_an_error() {
        let digest = Digest([1; 32]);
        let parameters = parameters(digest, 8192).unwrap();
        let error = write(&mut [0u8; 5000].as_slice(), digest, parameters, &mut Vec::new(), &mut |_| ());
        assert_eq!(error.unwrap_err().to_string(), "read slot image for its hash tree");
        assert_eq!(
            super::parameters(digest, 5000).unwrap_err().to_string(),
            "slot image has 5000 bytes, must be a multiple of 4096 and two blocks or more"
        );
    }
}
