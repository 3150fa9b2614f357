//! Which ranges of an image mean anything, as its builder declares them, with a digest for each piece. Everything else
//! is a hole: no reader of the device ever looks at it. Zeros inside a declared range are written like anything else.

use anyhow::{Context, Result, bail, ensure};
use formats::hex::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a piece at most: what is written, hashed and read back at once.
pub const PIECE: u64 = 4 << 20;
/// Places and lengths are multiples of this, so that they can be written past caches.
pub const ALIGNMENT: u64 = 4096;
/// At both ends of a disk, where its tables are.
const EDGE: u64 = 1 << 20;
/// Longest map that is read, bytes: of an image of about a terabyte.
const MAP_MAX: u64 = 64 << 20;

/// The map of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Format, 1.
    pub format: u32,
    /// Length of the image.
    pub bytes: u64,
    /// In order, without overlaps.
    pub pieces: Vec<Piece>,
}

/// A range that means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// Length, at most [`PIECE`].
    pub bytes: u64,
    /// SHA-256.
    pub sha256: Digest,
}

/// Where the map of an image is looked for: `disk.img` and `disk.img.zst` have the same.
pub fn beside(image: &Path) -> PathBuf {
    let plain = if image.extension().is_some_and(|e| e == "zst") {
        image.with_extension("")
    } else {
        image.to_owned()
    };
    let mut name = OsString::from(plain);
    name.push(".map.json");
    PathBuf::from(name)
}

impl Map {
    /// Declares ranges (start, length) of an image of `bytes` bytes, and its edges, as used; reads them for their digests.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn declare(image: &File, bytes: u64, used: &[(u64, u64)]) -> Result<Self> {
        let mut ranges = vec![(0, EDGE), (bytes.saturating_sub(EDGE), EDGE)];
        ranges.extend(used);
        ranges.retain(|(_, length)| *length > 0);
        ranges.sort_unstable();
        let mut pieces = Vec::new();
        let mut done = 0;
        let mut buffer = vec![0; PIECE as usize];
        for (start, length) in ranges {
            let end = (start + length).next_multiple_of(ALIGNMENT).min(bytes);
            let mut at = (start / ALIGNMENT * ALIGNMENT).max(done);
            while at < end {
                let part = &mut buffer[..(end - at).min(PIECE) as usize];
                image.read_exact_at(part, at).context("read the image for its map")?;
                pieces.push(Piece { start: at, bytes: part.len() as u64, sha256: digest(part) });
                at += part.len() as u64;
            }
            done = done.max(end);
        }
        Ok(Self { format: 1, bytes, pieces })
    }

    /// As it stands in a file.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).context("encode the image's map")
    }

    /// The map beside an image; `None` if there is none.
    ///
    /// # Errors
    /// If it is there and no map.
    pub fn read_beside(image: &Path) -> Result<Option<Self>> {
        let path = beside(image);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let what = || format!("{} is no map of an image; remove it to write every byte", path.display());
        let length = file.metadata().with_context(what)?.len();
        ensure!(length <= MAP_MAX, "{} has {length} bytes", path.display());
        let map: Self = serde_json::from_reader(std::io::BufReader::new(file)).with_context(what)?;
        map.check().with_context(what)?;
        Ok(Some(map))
    }

    fn check(&self) -> Result<()> {
        let mut end = 0;
        for piece in &self.pieces {
            let next = piece.start.checked_add(piece.bytes);
            let aligned = piece.start.is_multiple_of(ALIGNMENT) && piece.bytes > 0 && piece.bytes <= PIECE;
            match next {
                Some(next) if aligned && piece.start >= end && next <= self.bytes => end = next,
                Some(_) | None => bail!("the piece at {} is out of place", piece.start),
            }
        }
        ensure!(self.format == 1, "format {}", self.format);
        Ok(())
    }

    /// Bytes that mean something.
    pub fn used(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.bytes).sum()
    }
}

/// SHA-256 of a piece.
pub fn digest(bytes: &[u8]) -> Digest {
    Digest(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_become_pieces_without_overlaps_and_zeros_in_them_count() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 64 << 20;
        file.set_len(bytes).unwrap();
        let map = Map::declare(&file, bytes, &[(2 << 20, (9 << 20) + 1), (512 << 10, 1 << 20)]).unwrap();
        map.check().unwrap();
        let places: Vec<(u64, u64)> = map.pieces.iter().map(|p| (p.start, p.bytes)).collect();
        let mib = 1 << 20;
        let wanted = [
            (0, mib),
            (mib, mib / 2),
            (2 * mib, 4 * mib),
            (6 * mib, 4 * mib),
            (10 * mib, mib + 4096),
            (63 * mib, mib),
        ];
        assert_eq!(places, wanted);
        assert_eq!(map.used(), wanted.iter().map(|(_, bytes)| bytes).sum::<u64>());
    }

    #[test]
    fn a_map_that_points_elsewhere_is_refused() {
        let piece = |start, bytes| Piece { start, bytes, sha256: digest(b"") };
        for pieces in [
            vec![piece(0, 8192)],
            vec![piece(4096, 4096), piece(0, 4096)],
            vec![piece(1, 4096)],
            vec![piece(u64::MAX - 4095, 4096)],
            vec![piece(0, 0)],
        ] {
            assert!(Map { format: 1, bytes: 4096, pieces }.check().is_err());
        }
    }

    #[test]
    fn packed_and_plain_images_share_their_map() {
        assert_eq!(beside(Path::new("a/disk.img.zst")), Path::new("a/disk.img.map.json"));
        assert_eq!(beside(Path::new("disk.img")), Path::new("disk.img.map.json"));
    }
}
