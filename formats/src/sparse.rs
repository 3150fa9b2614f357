//! A disk or partition in memory of which only written parts take room. Knows nothing of what the bytes mean.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Granularity of what takes room, bytes. Larger than a file system block, so that a sparse file stays in few pieces.
pub const CHUNK: usize = 64 << 10;

/// A medium of fixed length whose untouched chunks are zeros.
#[derive(Debug)]
pub struct Sparse {
    chunks: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
    position: u64,
}

impl Sparse {
    /// A medium of `bytes` zeros.
    pub fn new(bytes: u64) -> Self {
        Self { chunks: BTreeMap::new(), bytes, position: 0 }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.bytes
    }

    /// Reads exactly `buffer.len()` bytes at `at`; what lies beyond the end is zeros.
    pub fn read_at(&self, at: u64, buffer: &mut [u8]) {
        for (chunk, offset, range) in pieces(at, buffer.len()) {
            let part = &mut buffer[range];
            match self.chunks.get(&chunk) {
                Some(data) => part.copy_from_slice(&data[offset..offset + part.len()]),
                None => part.fill(0),
            }
        }
    }

    /// Writes `data` at `at`. Zeros on untouched chunks take no room.
    ///
    /// # Errors
    /// If `data` reaches beyond the end.
    pub fn write_at(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        if at.checked_add(data.len() as u64).is_none_or(|end| end > self.bytes) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "beyond the end of the partition"));
        }
        for (chunk, offset, range) in pieces(at, data.len()) {
            let part = &data[range];
            if !self.chunks.contains_key(&chunk) && is_zero(part) {
                continue;
            }
            let target = self.chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK]);
            target[offset..offset + part.len()].copy_from_slice(part);
        }
        Ok(())
    }

    /// The parts that are not zeros: where each begins, and its bytes.
    pub fn parts(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let parts = self.chunks.iter().map(|(chunk, data)| {
            let start = chunk * CHUNK as u64;
            (start, &data[..data.len().min((self.bytes - start) as usize)])
        });
        parts.filter(|(_, part)| !is_zero(part))
    }
}

/// Whether all bytes are zeros.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Splits a range into chunk number, offset in the chunk, and range of the buffer.
fn pieces(at: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let position = at + done as u64;
        let offset = (position % CHUNK as u64) as usize;
        let size = (CHUNK - offset).min(length - done);
        let range = done..done + size;
        done += size;
        (size > 0).then_some((position / CHUNK as u64, offset, range))
    })
}

impl Read for Sparse {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = (self.bytes.saturating_sub(self.position)).min(buffer.len() as u64) as usize;
        self.read_at(self.position, &mut buffer[..n]);
        self.position += n as u64;
        Ok(n)
    }
}

impl Write for Sparse {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.write_at(self.position, data)?;
        self.position += data.len() as u64;
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Sparse {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.bytes.checked_add_signed(n),
            SeekFrom::Current(n) => self.position.checked_add_signed(n),
        };
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "seek before the start"))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn behaves_like_flat_memory(writes in prop::collection::vec((0u64..300_000, 0usize..100_000, any::<u8>()), 1..8)) {
            let mut flat = vec![0u8; 400_000];
            let mut sparse = Sparse::new(400_000);
            for (at, length, value) in writes {
                flat[at as usize..at as usize + length].fill(value);
                sparse.write_at(at, &vec![value; length]).unwrap();
            }
            let mut read = vec![1u8; 400_000];
            sparse.read_at(0, &mut read);
            prop_assert!(read == flat);
            let mut copy = vec![0u8; 400_000];
            for (at, part) in sparse.parts() {
                copy[at as usize..at as usize + part.len()].copy_from_slice(part);
            }
            prop_assert!(copy == flat);
        }
    }

    #[test]
    fn writing_beyond_the_end_is_an_error() {
        let mut sparse = Sparse::new(100);
        assert_eq!(sparse.write_at(90, &[1; 11]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(sparse.write_at(u64::MAX, &[1]).is_err());
    }
}
