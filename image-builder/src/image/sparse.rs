//! Writing media of memory into files, and copying that leaves holes in files.
//!
//! Knows nothing of what the bytes mean.

pub use formats::sparse::Sparse;
use formats::sparse::{CHUNK, is_zero};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Copies what was written on `medium` into `file` at `offset`; the rest of the file must be a hole already.
///
/// # Errors
/// If the file cannot be written.
pub fn write(medium: &Sparse, file: &File, offset: u64) -> io::Result<()> {
    medium.parts().try_for_each(|(start, part)| file.write_all_at(part, offset + start))
}

/// Copies `source` into `file` at `offset`, leaving holes for zeros, and returns the bytes read.
///
/// # Errors
/// If reading or writing fails.
pub fn copy(
    source: &mut impl Read,
    file: &File,
    offset: u64,
    progress: &mut dyn FnMut(u64),
) -> io::Result<u64> {
    let mut buffer = vec![0; 16 * CHUNK];
    let mut done = 0;
    loop {
        let n = read_full(source, &mut buffer)?;
        for (index, part) in buffer[..n].chunks(CHUNK).enumerate() {
            if !is_zero(part) {
                file.write_all_at(part, offset + done + (index * CHUNK) as u64)?;
            }
        }
        done += n as u64;
        progress(n as u64);
        if n < buffer.len() {
            return Ok(done);
        }
    }
}

fn read_full(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn copies_leave_holes() {
        let mut source = vec![0u8; 40 * CHUNK + 5];
        source[20 * CHUNK] = 1;
        *source.last_mut().unwrap() = 2;
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(source.len() as u64).unwrap();
        let mut seen = 0;
        assert_eq!(copy(&mut source.as_slice(), &file, 0, &mut |n| seen += n).unwrap(), source.len() as u64);
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert!(read == source && seen == source.len() as u64);
        assert!(file.metadata().unwrap().blocks() * 512 <= 4 * CHUNK as u64, "no holes");
    }
}
