//! A release in a folder: a stick, a share. It may go away while it is read, and a stranger may have filled it.

use super::{Carrier, Failure, Sink, Stream, Toll, Wanted};
use crate::io::beneath;
use crate::update::step::Fault;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Bytes read at once: less than a usual block, so that what a power cut costs beyond a flush is less than one.
const CHUNK: usize = 16 << 10;

/// A folder.
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// Names a folder; it is looked at when something is asked of it.
    pub fn open(source: &str) -> Self {
        Self { root: PathBuf::from(source.strip_prefix("file:").unwrap_or(source)) }
    }

    fn file(&self, path: &str) -> Result<(File, PathBuf), Failure> {
        let full = self.root.join(path);
        match beneath::open(&self.root, path) {
            Ok(file) => Ok((file, full)),
            Err(error) if error.kind() == ErrorKind::NotFound && self.root.is_dir() => {
                Err(Failure::new(Fault::Absent, format!("{} is no file there", full.display())))
            }
            Err(error) => Err(unread(&full, &error)),
        }
    }
}

fn unread(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Fault::Unreachable(None), format!("read {}: {error}", path.display()))
}

impl Folder {
    fn run(&self, path: &str, range: Range<u64>, stream: &mut Stream<'_>) -> Result<(), Failure> {
        let (mut file, full) = self.file(path)?;
        file.seek(SeekFrom::Start(range.start)).map_err(|error| unread(&full, &error))?;
        let mut left = range.end - range.start;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let n = file.read(&mut chunk[..wanted]).map_err(|error| unread(&full, &error))?;
            if n == 0 {
                let why = format!("{} ends {left} bytes too early", full.display());
                return Err(Failure::new(Fault::Damaged, why));
            }
            stream.take(&chunk[..n])?;
            left -= n as u64;
        }
        Ok(())
    }
}

impl Carrier for Folder {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let (file, full) = self.file(path)?;
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| unread(&full, &error))?;
        if bytes.len() as u64 > limit {
            let why = format!("{} has more than {limit} bytes", full.display());
            return Err(Failure::new(Fault::Damaged, why));
        }
        toll.paid(bytes.len() as u64)?;
        Ok(bytes)
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let path = wanted.what.path();
        wanted.missing.iter().try_for_each(|run| {
            self.run(&path, wanted.bytes(run), &mut Stream::new(wanted, run.start, &mut *sink))
        })
    }
}
