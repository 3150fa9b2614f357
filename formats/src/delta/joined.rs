//! Several sources as one old image: each starts at a multiple of 4096, with zeros between.
//!
//! This is how a boot image is made from the one that runs and from files of the slot image. Knows offsets only.

use super::ReadAt;
use std::io;

/// Sources start at multiples of this many bytes.
pub const ALIGN: u64 = 4096;

/// Sources, one after the other.
pub struct Joined<'a> {
    parts: Vec<(u64, &'a dyn ReadAt)>,
    size: u64,
}

impl<'a> Joined<'a> {
    /// Joins `sources` in this order.
    #[must_use]
    pub fn new(sources: &[&'a dyn ReadAt]) -> Self {
        let (mut parts, mut size) = (Vec::new(), 0u64);
        for source in sources {
            let start = size.next_multiple_of(ALIGN);
            parts.push((start, *source));
            size = start.saturating_add(source.size());
        }
        Self { parts, size }
    }
}

impl ReadAt for Joined<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        buf.fill(0);
        for (start, source) in &self.parts {
            let from = offset.max(*start);
            let to = end.min(start + source.size());
            if from < to {
                source.read_at(from - start, &mut buf[(from - offset) as usize..(to - offset) as usize])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_across_their_borders() {
        let (first, second) = (vec![1u8; 4097], vec![2u8; 10]);
        let joined = Joined::new(&[&first, &second]);
        assert_eq!(joined.size(), 8192 + 10);
        let mut all = vec![9; 8202];
        joined.read_at(0, &mut all).unwrap();
        let expected: Vec<u8> = [vec![1; 4097], vec![0; 4095], vec![2; 10]].concat();
        assert_eq!(all, expected);
        assert!(joined.read_at(8200, &mut [0; 3]).is_err());
    }
}
