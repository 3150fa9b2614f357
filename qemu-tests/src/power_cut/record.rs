//! Records what reaches the disk while the guest's FAT driver and the firmware change the ESP.
//!
//! A flush counts as the ESP's own only if no other partition was written since the ESP last was: a flush for the sake
//! of another file system may not come the next time. For the same reason the state partition is frozen meanwhile, and
//! flushes between two transitions do not count. FUA is taken for an ordinary write. So more states are gone through
//! than a cut can leave, never fewer.

use crate::blklog::{self, Log};
use crate::disk::{DiskImage, Extent};
use crate::machine::Cache;
use crate::power_cut::fat::Fat;
use crate::power_cut::judge::{LOADERS, SETTINGS};
use crate::power_cut::trace::{Key, Kind, Loaders, Record, Run, Source, Step, Trace, Uki};
use crate::power_cut::volume::{Content, Contents, FILE_DATA, SECTOR, Sector, Volume, ZERO};
use crate::qemu::Qemu;
use crate::vm::Vm;
use anyhow::{Context, Result, bail, ensure};
use formats::layout::LABEL_ESP;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;

/// Read from the ESP at once, bytes.
const CHUNK: usize = 4 << 20;

/// A file that will stand on the ESP, with its bytes.
pub struct Known {
    /// Name for messages.
    pub name: String,
    /// Bytes.
    pub bytes: Vec<u8>,
    /// What it is.
    pub kind: Kind,
}

/// A finished recording.
pub struct Recording {
    /// The trace.
    pub trace: Trace,
    /// The parts of files, in the order of their contents' numbers.
    pub data: Vec<Sector>,
}

/// A recording in progress.
pub struct Recorder {
    disk: DiskImage,
    extent: Extent,
    log: Option<Log>,
    numbers: HashMap<Sector, Content>,
    blobs: Vec<Sector>,
    data: Vec<Sector>,
    trace: Trace,
    /// Writes seen outside of transitions, which belong to the next one.
    left_over: Vec<Record>,
}

impl Key {
    /// What a recording of this image depends on.
    ///
    /// # Errors
    /// If the image or the firmware cannot be read.
    pub fn of(image: &DiskImage) -> Result<Self> {
        let names = image.esp_list(formats::entry::FOLDER)?;
        let name = names.first().context("the image has no UKI")?;
        let uki = image.esp_read(&format!("{}/{name}", formats::entry::FOLDER))?;
        let [start, bytes] = section(&uki, ".linux").context("the image's UKI has no kernel")?;
        let kernel =
            uki.get(start as usize..(start + bytes) as usize).context("the image's UKI is cut off")?;
        let firmware = Qemu::find(image.arch()?)?.firmware.code;
        let firmware = std::fs::read(&firmware).with_context(|| format!("read {}", firmware.display()))?;
        let digest = |bytes: &[u8]| formats::hex::encode(&Sha256::digest(bytes));
        Ok(Self {
            kernel: digest(kernel),
            loader: digest(&image.esp_read(LOADERS[0])?),
            firmware: digest(&firmware),
        })
    }
}

impl Known {
    /// A UKI.
    ///
    /// # Errors
    /// If it is none.
    pub fn uki(bytes: Vec<u8>, version: &str, roothash8: &str) -> Result<Self> {
        let os_release = section(&bytes, ".osrel").context("a UKI has no os-release")?;
        let headers = u64::from(number(&bytes, pe(&bytes).context("a UKI is no PE image")? + 24 + 60, 4));
        let uki = Uki { version: version.to_owned(), roothash8: roothash8.to_owned(), headers, os_release };
        Ok(Self { name: format!("UKI {version}"), bytes, kind: Kind::Uki(uki) })
    }
}

/// First byte and length of a section of a PE image (Microsoft's "PE Format").
pub fn section(image: &[u8], name: &str) -> Option<[u64; 2]> {
    let pe = pe(image)?;
    let count = number(image, pe + 6, 2) as usize;
    let table = pe + 24 + number(image, pe + 20, 2) as usize;
    let headers = (0..count).filter_map(|n| image.get(table + 40 * n..table + 40 * n + 40));
    let mut named =
        headers.filter(|header| header[..8].split(|byte| *byte == 0).next() == Some(name.as_bytes()));
    let header = named.next()?;
    // The virtual size is that of the data, the raw size is padded.
    let bytes = number(header, 8, 4).min(number(header, 16, 4));
    Some([number(header, 20, 4).into(), bytes.into()])
}

fn pe(image: &[u8]) -> Option<usize> {
    let at = number(image, 0x3c, 4) as usize;
    (image.starts_with(b"MZ") && image.get(at..at + 4)? == b"PE\0\0").then_some(at)
}

/// A number of up to four bytes; 0 beyond the end.
fn number(bytes: &[u8], at: usize, length: usize) -> u32 {
    let all = bytes.get(at..at + length).unwrap_or_default();
    all.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

impl Recorder {
    /// Begins, before the machine is started for the first time. All files that ever stand on the ESP must be `known`.
    ///
    /// # Errors
    /// If the disk keeps no log or cannot be read.
    pub fn begin(vm: &Vm, known: &[Known]) -> Result<Self> {
        let machine = vm.machine()?;
        let first = machine.disks.first().context("a machine needs a disk")?;
        ensure!(first.cache == Cache::Logged, "the first disk keeps no log of its writes");
        let disk = vm.disk(0)?;
        let extent = disk.partition(LABEL_ESP)?;
        let key = Key::of(&disk)?;
        let mut recorder = Self {
            extent,
            log: None,
            numbers: HashMap::new(),
            blobs: Vec::new(),
            data: Vec::new(),
            trace: Trace::new(key.clone(), Vec::new(), &[], &Volume::new(0))?,
            left_over: Vec::new(),
            disk,
        };
        let sources = known.iter().map(|known| recorder.source(known)).collect();
        let base = recorder.read_base()?;
        recorder.trace = Trace::new(key, sources, &[], &base)?;
        Ok(recorder)
    }

    fn source(&mut self, known: &Known) -> Source {
        let mut contents = Vec::new();
        for part in known.bytes.chunks(SECTOR) {
            let mut sector = [0; SECTOR];
            sector[..part.len()].copy_from_slice(part);
            contents.push(if sector == [0; SECTOR] {
                ZERO
            } else {
                let next = FILE_DATA + self.data.len() as Content;
                let content = *self.numbers.entry(sector).or_insert(next);
                if content == next {
                    self.data.push(sector);
                }
                content
            });
        }
        Source::new(&known.name, known.bytes.len() as u64, known.kind.clone(), &contents)
    }

    fn content(&mut self, bytes: &[u8]) -> Content {
        let mut sector = [0; SECTOR];
        sector[..bytes.len()].copy_from_slice(bytes);
        if sector == [0; SECTOR] {
            return ZERO;
        }
        let next = self.blobs.len() as Content + 1;
        let content = *self.numbers.entry(sector).or_insert(next);
        if content == next {
            self.blobs.push(sector);
        }
        content
    }

    fn read_base(&mut self) -> Result<Volume> {
        let mut base = Volume::new(usize::try_from(self.extent.bytes)? / SECTOR);
        for at in (0..self.extent.bytes).step_by(CHUNK) {
            let length = CHUNK.min(usize::try_from(self.extent.bytes - at)?);
            let chunk = self.disk.read(LABEL_ESP, at, length)?;
            let first = u32::try_from(at / SECTOR as u64)?;
            let patch: Vec<_> =
                (first..).zip(chunk.chunks(SECTOR)).map(|(n, s)| (n, self.content(s))).collect();
            base.apply(&patch);
        }
        Ok(base)
    }

    /// Records what `action` does as one transition.
    ///
    /// # Errors
    /// If the action fails, or wrote in a way that is not understood.
    pub fn step(&mut self, step: Facts<'_>, vm: &Vm, action: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.drain(vm)?;
        self.left_over.extend(before.into_iter().filter(|record| *record != Record::Flush));
        action().with_context(|| format!("transition `{}`", step.name))?;
        let mut records = std::mem::take(&mut self.left_over);
        records.extend(self.drain(vm)?);
        // A flush with nothing before it says nothing.
        records.dedup_by(|later, earlier| *later == Record::Flush && *earlier == Record::Flush);
        let wrote = records.iter().any(|record| *record != Record::Flush);
        ensure!(wrote, "transition `{}` wrote nothing to the ESP", step.name);
        self.trace.steps.push(Step {
            name: step.name.to_owned(),
            complete: step.complete.iter().map(|digits| (*digits).to_owned()).collect(),
            loaders: step.loaders,
            records,
        });
        Ok(())
    }

    /// What stands in the log by now that concerns the ESP.
    fn drain(&mut self, vm: &Vm) -> Result<Vec<Record>> {
        if self.log.is_none() {
            let file =
                self.disk.path().file_name().context("the disk has no name")?.to_string_lossy().into_owned();
            self.log = Log::open(&vm.folder().join(format!("{file}.log")))?;
        }
        let Some(mut log) = self.log.take() else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        // Whether only the ESP was written since its last write.
        let mut own = false;
        while let Some(request) = log.next_request()? {
            let end = request.start + request.bytes;
            let inside = request.start < self.extent.start + self.extent.bytes && end > self.extent.start;
            match (request.kind, inside) {
                (blklog::Kind::Flush, _) if own => records.push(Record::Flush),
                (blklog::Kind::Flush, _) => {}
                (blklog::Kind::Discard, true) => bail!("the ESP was discarded at byte {}", request.start),
                (blklog::Kind::Write { .. }, true) => {
                    own = true;
                    records.push(Record::Write(self.write(&request, &log.bytes(&request)?)?));
                }
                (blklog::Kind::Discard | blklog::Kind::Write { .. }, false) => own = false,
            }
        }
        self.log = Some(log);
        Ok(records)
    }

    fn write(&mut self, request: &blklog::Request, bytes: &[u8]) -> Result<Vec<Run>> {
        let start = request.start.checked_sub(self.extent.start).context("a write across the ESP's start")?;
        ensure!(start + request.bytes <= self.extent.bytes, "a write across the ESP's end");
        ensure!(start % SECTOR as u64 == 0, "a write of parts of sectors");
        let first = u32::try_from(start / SECTOR as u64)?;
        let sectors: Vec<_> =
            (first..).zip(bytes.chunks(SECTOR)).map(|(n, s)| (n, self.content(s))).collect();
        Ok(Run::pack(sectors))
    }

    /// First sector of a folder's first cluster, counted from the start of the ESP, and how many sectors it has.
    ///
    /// # Errors
    /// If there is no such folder.
    pub fn folder(&self, path: &str) -> Result<[u32; 2]> {
        let mut volume = self.trace.base();
        let records = self.trace.steps.iter().flat_map(|step| &step.records).chain(&self.left_over);
        let runs = records.flat_map(|record| match record {
            Record::Write(runs) => runs.as_slice(),
            Record::Flush => &[],
        });
        for run in runs {
            volume.apply(&run.sectors().collect::<Vec<_>>());
        }
        let contents = Contents::new(self.blobs.clone());
        let fat = Fat::open(&volume, &contents).context("the ESP has no boot sector")?;
        let cluster =
            fat.first_cluster(path).map_err(|damage| anyhow::anyhow!("{path} on the ESP: {damage}"))?;
        Ok([fat.geometry.sector(cluster), fat.geometry.cluster])
    }

    /// Ends.
    ///
    /// # Errors
    /// If the trace is not whole.
    pub fn end(self) -> Result<Recording> {
        let mut trace =
            Trace::new(self.trace.key.clone(), self.trace.sources.clone(), &self.blobs, &self.trace.base())?;
        trace.steps = self.trace.steps;
        let trace = Trace::decode(&trace.encode()?)?;
        Ok(Recording { trace, data: self.data })
    }
}

/// What is true during a transition.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'f> {
    /// Name.
    pub name: &'f str,
    /// First digits of the roothashes whose slots are complete.
    pub complete: &'f [&'f str],
    /// Copies of systemd-boot that must be whole.
    pub loaders: Loaders,
}

/// The files of the factory image that are no UKIs.
///
/// # Errors
/// If they cannot be read.
pub fn factory_files(disk: &DiskImage) -> Result<Vec<Known>> {
    let known = |path: &str, kind| -> Result<Known> {
        Ok(Known { name: path.to_owned(), bytes: disk.esp_read(path)?, kind })
    };
    Ok(vec![known(LOADERS[0], Kind::Loader)?, known(SETTINGS, Kind::Settings)?])
}
