//! A file as extents of an image, read as if it were contiguous.
//!
//! Knows offsets only; whole images are a view with one extent.

use super::{DeltaError, ReadAt, Result, malformed};

/// Bytes of an image: where they start and how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the image, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A file in the old image.
pub struct View<'a> {
    image: &'a dyn ReadAt,
    extents: &'a [Extent],
    size: u64,
}

impl<'a> View<'a> {
    /// The file that consists of `extents` of `image`, in order.
    ///
    /// # Errors
    /// When an extent lies outside the image.
    pub fn new(image: &'a dyn ReadAt, extents: &'a [Extent]) -> Result<Self> {
        let mut size = 0u64;
        for extent in extents {
            let inside = extent.offset.checked_add(extent.len).is_some_and(|end| end <= image.size());
            let sum = size.checked_add(extent.len).filter(|_| inside);
            let Some(sum) = sum else {
                return malformed(
                    "object",
                    format!("extent {extent:?} is outside the image of {} bytes", image.size()),
                );
            };
            size = sum;
        }
        Ok(Self { image, extents, size })
    }

    /// Length of the file in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buf` from `offset` of the file.
    ///
    /// # Errors
    /// When the file ends before, or the image cannot be read.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let (mut skip, mut done) = (offset, 0usize);
        for extent in self.extents {
            if skip >= extent.len {
                skip -= extent.len;
                continue;
            }
            let here = usize::try_from(extent.len - skip).unwrap_or(usize::MAX).min(buf.len() - done);
            let at = extent.offset + skip;
            self.image.read_at(at, &mut buf[done..done + here]).map_err(|source| DeltaError::Io {
                verb: "read",
                what: "old image",
                offset: at,
                len: here as u64,
                source,
            })?;
            (skip, done) = (0, done + here);
            if done == buf.len() {
                return Ok(());
            }
        }
        if done == buf.len() {
            return Ok(());
        }
        malformed(
            "object",
            format!("bytes {offset}+{} of an old file of {} bytes are asked for", buf.len(), self.size),
        )
    }

    /// As much of `from..to` as the file has; `to - from` must be small.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn slice(&self, from: u64, to: u64) -> Result<Vec<u8>> {
        let to = to.min(self.size);
        let len = usize::try_from(to.saturating_sub(from)).unwrap_or(0);
        let mut bytes = vec![0; len];
        if len > 0 {
            self.read(from, &mut bytes)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_join_up() {
        let image: Vec<u8> = (0..=99).collect();
        let extents =
            [Extent { offset: 90, len: 10 }, Extent { offset: 5, len: 0 }, Extent { offset: 10, len: 3 }];
        let view = View::new(&image, &extents).unwrap();
        assert_eq!(view.slice(8, 100).unwrap(), [98, 99, 10, 11, 12]);
        assert!(view.read(12, &mut [0; 2]).is_err());
        assert!(View::new(&image, &[Extent { offset: 98, len: 3 }]).is_err());
    }
}
