//! Logs of a disk's writes and flushes, as QEMU's `blklogwrites` driver keeps them for [`crate::machine::Cache::Logged`].
//!
//! The format is the kernel's `dm-log-writes` (Documentation/admin-guide/device-mapper/log-writes.rst): a superblock in
//! the first sector, then for each request a sector with its description and after it its data. Reads only, also while
//! QEMU writes: the superblock's count lags behind, so requests are read up to the end of the file. Knows nothing of
//! what the bytes mean.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// First eight bytes of a log.
const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
/// Bytes of the superblock's fields and of a request's description; the rest of their sectors is unused.
const FIELDS: usize = 32;
/// Largest request, bytes: QEMU limits requests to 2 GiB, guests to a few MiB.
const REQUEST_MAX: u64 = 64 << 20;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
const METADATA: u64 = 1 << 4;

/// A log that is read from front to back.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    /// Bytes of a sector in this log.
    sector: u64,
    /// Where the next request is described.
    at: u64,
}

/// What a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Wrote bytes. `durable` if it was to be on the medium when it ended (FUA).
    Write {
        /// Force unit access.
        durable: bool,
    },
    /// Made all that was written before durable.
    Flush,
    /// Gave bytes up.
    Discard,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What it did.
    pub kind: Kind,
    /// First byte on the disk.
    pub start: u64,
    /// Number of bytes; 0 for a flush.
    pub bytes: u64,
    /// Where the bytes stand in the log.
    data: u64,
}

impl Log {
    /// Opens a log. `None` if nothing was logged yet.
    ///
    /// # Errors
    /// If it cannot be read or is no such log.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let what = || format!("read the log of writes {}", path.display());
        let file = File::open(path).with_context(what)?;
        if file.metadata().with_context(what)?.len() == 0 {
            return Ok(None);
        }
        let mut fields = [0; FIELDS];
        file.read_exact_at(&mut fields, 0).with_context(what)?;
        let [magic, version, _, size] = numbers(&fields);
        ensure!(magic == MAGIC, "{}: magic is {magic:#x}, but must be {MAGIC:#x}", what());
        ensure!(version == VERSION, "{}: version is {version}, but must be {VERSION}", what());
        // The size of sectors is the low half; the high half is unused.
        let sector = size & u64::from(u32::MAX);
        let plausible = sector.is_power_of_two() && (512..=1 << 20).contains(&sector);
        ensure!(plausible, "{}: sectors of {sector} bytes", what());
        Ok(Some(Self { file, path: path.to_owned(), sector, at: sector }))
    }

    /// The next request that stands whole in the log; `None` at its end, which may grow.
    ///
    /// # Errors
    /// If the log cannot be read, or a request in it is impossible.
    pub fn next_request(&mut self) -> Result<Option<Request>> {
        let what = || format!("read the log of writes {} at byte {}", self.path.display(), self.at);
        let length = self.file.metadata().with_context(what)?.len();
        let data = self.at + self.sector;
        if data > length {
            return Ok(None);
        }
        let mut fields = [0; FIELDS];
        self.file.read_exact_at(&mut fields, self.at).with_context(what)?;
        let [first, sectors, flags, inline] = numbers(&fields);
        let known = FLUSH | FUA | DISCARD | MARK | METADATA;
        ensure!(flags & !known == 0, "{}: unknown flags {flags:#x}", what());
        if flags & MARK != 0 || inline != 0 {
            bail!("{}: a mark, which QEMU does not write", what());
        }
        let (start, bytes) = (first.checked_mul(self.sector), sectors.checked_mul(self.sector));
        let (Some(start), Some(bytes)) = (start, bytes) else { bail!("{}: beyond any disk", what()) };
        let kind = match (flags & DISCARD != 0, bytes, flags & FLUSH != 0) {
            (true, ..) => Kind::Discard,
            (false, 0, true) => Kind::Flush,
            (false, 0, false) => bail!("{}: a request without bytes", what()),
            (false, ..) => Kind::Write { durable: flags & FUA != 0 },
        };
        let stored = if matches!(kind, Kind::Write { .. }) { bytes } else { 0 };
        ensure!(stored <= REQUEST_MAX, "{}: a write of {stored} bytes", what());
        if data + stored > length {
            return Ok(None);
        }
        self.at = data + stored;
        Ok(Some(Request { kind, start, bytes, data }))
    }

    /// The bytes that a write wrote.
    ///
    /// # Errors
    /// If the log cannot be read, or it was no write.
    pub fn bytes(&self, request: &Request) -> Result<Vec<u8>> {
        ensure!(matches!(request.kind, Kind::Write { .. }), "{:?} has no bytes", request.kind);
        let mut bytes = vec![0; usize::try_from(request.bytes)?];
        let what = || format!("read the log of writes {} at byte {}", self.path.display(), request.data);
        self.file.read_exact_at(&mut bytes, request.data).with_context(what)?;
        Ok(bytes)
    }
}

fn numbers(fields: &[u8; FIELDS]) -> [u64; 4] {
    let number = |n: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&fields[n * 8..n * 8 + 8]);
        u64::from_le_bytes(bytes)
    };
    [number(0), number(1), number(2), number(3)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SECTOR: usize = 512;

    fn sector(numbers: [u64; 4]) -> Vec<u8> {
        let mut out: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
        out.resize(SECTOR, 0);
        out
    }

    fn log(parts: &[Vec<u8>]) -> (tempfile::NamedTempFile, Result<Option<Log>>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&parts.concat()).unwrap();
        let log = Log::open(file.path());
        (file, log)
    }

    fn superblock() -> Vec<u8> {
        sector([MAGIC, VERSION, 0, SECTOR as u64])
    }

    #[test]
    fn requests_come_in_order_with_their_bytes() {
        let parts = [
            superblock(),
            sector([8, 2, 0, 0]),
            vec![7; 2 * SECTOR],
            sector([0, 0, FLUSH, 0]),
            sector([100, 50, DISCARD, 0]),
            sector([9, 1, FUA, 0]),
            vec![8; SECTOR],
        ];
        let (_file, log) = log(&parts);
        let mut log = log.unwrap().unwrap();
        let mut all = Vec::new();
        while let Some(request) = log.next_request().unwrap() {
            all.push(request);
        }
        let kinds: Vec<Kind> = all.iter().map(|request| request.kind).collect();
        let write = |durable| Kind::Write { durable };
        assert_eq!(kinds, [write(false), Kind::Flush, Kind::Discard, write(true)]);
        assert_eq!((all[0].start, all[0].bytes), (8 * 512, 1024));
        assert_eq!(log.bytes(&all[0]).unwrap(), vec![7; 1024]);
        assert_eq!(log.bytes(&all[3]).unwrap(), vec![8; 512]);
        assert!(log.bytes(&all[1]).is_err());
    }

    #[test]
    fn a_request_that_is_being_written_is_read_when_it_is_whole() {
        let (mut file, log) = log(&[superblock(), sector([8, 2, 0, 0]), vec![7; SECTOR]]);
        let mut log = log.unwrap().unwrap();
        assert_eq!(log.next_request().unwrap(), None);
        file.write_all(&[7; SECTOR]).unwrap();
        assert_eq!(log.next_request().unwrap().unwrap().bytes, 1024);
        assert_eq!(log.next_request().unwrap(), None);
    }

    #[test]
    fn an_empty_log_is_no_error_and_other_files_are() {
        assert!(log(&[]).1.unwrap().is_none());
        let refused = |first: [u64; 4]| log(&[sector(first)]).1.unwrap_err().to_string();
        assert!(refused([1, VERSION, 0, 512]).contains("magic is 0x1"));
        assert!(refused([MAGIC, 2, 0, 512]).contains("version is 2, but must be 1"));
        assert!(refused([MAGIC, VERSION, 0, 500]).contains("sectors of 500 bytes"));
        assert!(log(&[vec![0; 8]]).1.is_err());
    }

    #[test]
    fn impossible_requests_are_refused() {
        for (request, why) in [
            ([8, 1, 1 << 9, 0], "unknown flags"),
            ([8, 1, MARK, 4], "a mark"),
            ([u64::MAX, 1, 0, 0], "beyond any disk"),
            ([8, 0, 0, 0], "without bytes"),
            ([8, 1 << 30, 0, 0], "a write of"),
        ] {
            let (_file, log) = log(&[superblock(), sector(request)]);
            let error = log.unwrap().unwrap().next_request().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
