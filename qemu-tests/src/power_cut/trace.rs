//! A recorded life of an ESP: what stood on it before, and per transition every sector written and every flush.
//!
//! Kept as JSON packed with zstd. Of files only the length and the numbers of their sectors' contents are kept
//! ([`crate::power_cut::volume`]): what a power cut does to a file is seen from its folder entry and its chain of
//! clusters. Sectors with bytes are stored as differences of their 32-bit words, which makes FAT chains repeat.

use crate::power_cut::volume::{Content, Contents, FILE_DATA, SECTOR, Sector, Volume};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::Read;

/// Version of this format.
const FORMAT: u32 = 1;
/// zstd's level: a trace is written once.
const LEVEL: i32 = 19;
/// Largest trace, unpacked, bytes.
const UNPACKED_MAX: u64 = 64 << 20;
/// Largest ESP, sectors: 4 GiB.
const SECTORS_MAX: u32 = 8 << 20;

/// A trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    format: u32,
    /// What was recorded with.
    pub key: Key,
    /// Length of the ESP in sectors.
    pub sectors: u32,
    /// Files that may stand on it whole.
    pub sources: Vec<Source>,
    /// Sectors with bytes, hexadecimal.
    blobs: Vec<String>,
    /// The ESP before the first transition, without its zeros.
    base: Vec<Run>,
    /// Transitions in order.
    pub steps: Vec<Step>,
}

/// What a trace depends on. If one differs, the trace says nothing and must be made again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// SHA-256 of the kernel, whose FAT driver writes.
    pub kernel: String,
    /// SHA-256 of systemd-boot, which counts boots.
    pub loader: String,
    /// SHA-256 of the firmware, whose FAT driver systemd-boot uses.
    pub firmware: String,
}

/// A file that may stand on the ESP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name for messages.
    pub name: String,
    /// Length in bytes.
    pub bytes: u64,
    /// What it is.
    pub kind: Kind,
    /// Its sectors; places count from its start.
    runs: Vec<Run>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A UKI.
    Uki(Uki),
    /// systemd-boot.
    Loader,
    /// Settings of systemd-boot.
    Settings,
}

/// What systemd-boot reads of a UKI before it lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uki {
    /// Version in its os-release.
    pub version: String,
    /// First digits of the roothash that it opens.
    pub roothash8: String,
    /// Bytes of its PE headers.
    pub headers: u64,
    /// First byte and number of bytes of its os-release.
    pub os_release: [u64; 2],
}

/// Sectors one after the other. A part of a file is followed by the next part; any other content repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run(pub u32, pub u32, pub Content);

/// A transition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Name.
    pub name: String,
    /// First digits of the roothashes whose slots are complete throughout.
    pub complete: Vec<String>,
    /// Which copies of systemd-boot must be whole throughout.
    pub loaders: Loaders,
    /// What reached the disk, in order.
    pub records: Vec<Record>,
}

/// Copies of systemd-boot that must be whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Loaders {
    /// Both.
    Both,
    /// One of the two: the other is being replaced.
    One,
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Sectors written by one request.
    Write(Vec<Run>),
    /// All that was written before is durable.
    Flush,
}

impl Run {
    /// Its sectors.
    pub fn sectors(self) -> impl Iterator<Item = (u32, Content)> {
        let Self(at, count, first) = self;
        let step = u32::from(first >= FILE_DATA);
        (0..count).map(move |n| (at + n, first + n * step))
    }

    /// Runs of sectors that follow each other.
    pub fn pack(sectors: impl IntoIterator<Item = (u32, Content)>) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::new();
        for (at, content) in sectors {
            if let Some(Self(start, count, first)) = out.last_mut() {
                let step = u32::from(*first >= FILE_DATA);
                if *start + *count == at && *first + *count * step == content {
                    *count += 1;
                    continue;
                }
            }
            out.push(Self(at, 1, content));
        }
        out
    }

    fn fits(self, sectors: u32) -> bool {
        let Self(at, count, first) = self;
        at.checked_add(count).is_some_and(|end| end <= sectors) && first.checked_add(count).is_some()
    }
}

impl Source {
    /// A source of these sectors.
    pub fn new(name: &str, bytes: u64, kind: Kind, contents: &[Content]) -> Self {
        Self { name: name.to_owned(), bytes, kind, runs: Run::pack((0..).zip(contents.iter().copied())) }
    }

    /// The contents of its sectors in order.
    pub fn contents(&self) -> Vec<Content> {
        self.runs.iter().flat_map(|run| run.sectors()).map(|(_, content)| content).collect()
    }
}

impl Trace {
    /// A trace; steps are added.
    pub fn new(key: Key, sources: Vec<Source>, blobs: &[Sector], base: &Volume) -> Result<Self> {
        let filled = (0..).zip(base.sectors().iter().copied()).filter(|(_, content)| *content != 0);
        Ok(Self {
            format: FORMAT,
            key,
            sectors: u32::try_from(base.len()).context("an ESP beyond 2 TiB")?,
            sources,
            blobs: blobs.iter().map(to_text).collect(),
            base: Run::pack(filled),
            steps: Vec::new(),
        })
    }

    /// The bytes of a trace file.
    ///
    /// # Errors
    /// If it cannot be packed.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let text = serde_json::to_vec(self).context("encode the trace")?;
        zstd::encode_all(text.as_slice(), LEVEL).context("pack the trace")
    }

    /// Reads a trace file.
    ///
    /// # Errors
    /// If it is damaged, too large, or of another format.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut text = Vec::new();
        let unpacked = zstd::Decoder::new(bytes).context("unpack the trace")?;
        unpacked.take(UNPACKED_MAX + 1).read_to_end(&mut text).context("unpack the trace")?;
        ensure!(text.len() as u64 <= UNPACKED_MAX, "the trace is larger than {} MiB", UNPACKED_MAX >> 20);
        let trace: Self = serde_json::from_slice(&text).context("read the trace")?;
        ensure!(trace.format == FORMAT, "the trace has format {}, but must have {FORMAT}", trace.format);
        trace.check()?;
        Ok(trace)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.sectors <= SECTORS_MAX, "the trace is of an ESP of {} sectors", self.sectors);
        let written = self.steps.iter().flat_map(|step| &step.records).flat_map(|record| match record {
            Record::Write(runs) => runs.as_slice(),
            Record::Flush => &[],
        });
        let files = self.sources.iter().flat_map(|source| &source.runs);
        let last = u32::try_from(self.blobs.len())?;
        for run in self.base.iter().chain(written).chain(files) {
            ensure!(run.fits(self.sectors), "{run:?} of the trace lies outside the ESP");
            ensure!(run.2 <= last || run.2 >= FILE_DATA, "{run:?} of the trace has no bytes");
        }
        for source in &self.sources {
            let sectors = source.runs.iter().map(|run| u64::from(run.1)).sum::<u64>();
            ensure!(sectors == source.bytes.div_ceil(SECTOR as u64), "{} has {sectors} sectors", source.name);
        }
        Ok(())
    }

    /// The bytes of sectors that are no parts of files.
    ///
    /// # Errors
    /// If one is damaged.
    pub fn contents(&self) -> Result<Contents> {
        Ok(Contents::new(self.blobs.iter().map(|text| from_text(text)).collect::<Result<_>>()?))
    }

    /// The ESP before the first transition.
    pub fn base(&self) -> Volume {
        let mut volume = Volume::new(self.sectors as usize);
        for run in &self.base {
            volume.apply(&run.sectors().collect::<Vec<_>>());
        }
        volume
    }
}

fn words(sector: &Sector) -> impl Iterator<Item = u32> {
    sector.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
}

/// Differences of words, eight digits each.
fn to_text(sector: &Sector) -> String {
    let mut before = 0;
    let mut out = String::new();
    for word in words(sector) {
        out.push_str(&format!("{:08x}", word.wrapping_sub(before)));
        before = word;
    }
    out
}

fn from_text(text: &str) -> Result<Sector> {
    let mut sector = [0; SECTOR];
    let mut word = 0u32;
    if text.len() != 2 * SECTOR || !text.is_ascii() {
        bail!("a sector of the trace has {} digits, but must have {}", text.len(), 2 * SECTOR);
    }
    for (n, place) in sector.chunks_exact_mut(4).enumerate() {
        let difference =
            u32::from_str_radix(&text[8 * n..8 * n + 8], 16).context("read a sector of the trace")?;
        word = word.wrapping_add(difference);
        place.copy_from_slice(&word.to_le_bytes());
    }
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let key = Key { kernel: "k".into(), loader: "l".into(), firmware: "f".into() };
        let mut blob = [0; SECTOR];
        blob.iter_mut().enumerate().for_each(|(n, byte)| *byte = n as u8);
        let mut base = Volume::new(100);
        base.apply(&[(3, 1), (4, 1), (9, FILE_DATA), (10, FILE_DATA + 1), (11, FILE_DATA + 7)]);
        let contents = [FILE_DATA, FILE_DATA + 1, ZERO_SECTOR];
        let source = Source::new("a", 1025, Kind::Loader, &contents);
        let mut trace = Trace::new(key, vec![source], &[blob], &base).unwrap();
        let records = vec![Record::Write(vec![Run(5, 2, 1)]), Record::Flush];
        trace.steps.push(Step { name: "s".into(), complete: vec![], loaders: Loaders::Both, records });
        trace
    }

    const ZERO_SECTOR: Content = 0;

    #[test]
    fn a_trace_is_read_back_as_it_was() {
        let trace = trace();
        let read = Trace::decode(&trace.encode().unwrap()).unwrap();
        assert_eq!(read, trace);
        let base = read.base();
        assert_eq!((base.at(3), base.at(4), base.at(10), base.at(11)), (1, 1, FILE_DATA + 1, FILE_DATA + 7));
        assert_eq!(read.contents().unwrap().bytes(1).unwrap()[200], 200);
        assert_eq!(read.sources[0].contents(), [FILE_DATA, FILE_DATA + 1, ZERO_SECTOR]);
        assert_eq!(read.base.len(), 3);
    }

    #[test]
    fn damaged_traces_are_refused() {
        let refused = |change: fn(&mut Trace)| {
            let mut trace = trace();
            change(&mut trace);
            let read = Trace::decode(&trace.encode().unwrap());
            format!("{:#}", read.map(|trace| trace.contents().map(drop)).and_then(|inner| inner).unwrap_err())
        };
        assert!(refused(|trace| trace.format = 2).contains("has format 2, but must have 1"));
        assert!(refused(|trace| trace.base.push(Run(99, 2, 1))).contains("outside the ESP"));
        assert!(refused(|trace| trace.base.push(Run(9, 1, 2))).contains("has no bytes"));
        assert!(refused(|trace| trace.sources[0].bytes = 5).contains("a has 3 sectors"));
        assert!(refused(|trace| trace.sectors = u32::MAX).contains("of an ESP of"));
        assert!(refused(|trace| trace.blobs[0].push('0')).contains("1025 digits"));
        assert!(refused(|trace| trace.blobs[0].replace_range(0..1, "x")).contains("read a sector"));
        let mut bytes = trace().encode().unwrap();
        bytes.truncate(bytes.len() / 2);
        assert!(Trace::decode(&bytes).is_err());
    }
}
