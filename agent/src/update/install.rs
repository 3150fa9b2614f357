//! Acts: fetches what a plan names, makes the other slot from it, and gives it an entry, in the order in which every
//! power cut is survived. Decides nothing: what a failure leads to is `step`'s.

use crate::io::disk::Disk;
use crate::update::adaptive::{self, Pages};
use crate::update::carrier::{Carrier, Failure};
use crate::update::decode::{Target, decode};
use crate::update::entries::{self, Operation};
use crate::update::esp::Esp;
use crate::update::fetch::{self, Control, Interval};
use crate::update::plan::{Method, Place, Room, Way};
use crate::update::slot::{self, Disks, Image, Incomplete, VerifiedSlot};
use crate::update::staging::{self, Staging};
use crate::update::state::{Attempt, Release};
use crate::update::step::{Fault, Part};
use anyhow::{Context, Result, ensure};
use formats::entry::{EntryName, Tries};
use formats::hex::Digest;
use formats::object::{BlockSize, Builder, Geometry};

/// Written data is flushed this often, so that it does not pile up in memory, bytes.
const FLUSH: u64 = 16 << 20;
const CHUNK: usize = 1 << 20;
const PAGE: u64 = 4096;
/// Block size of UKIs as objects, as the builder makes them; with another one a delta for a UKI is not recognised.
const UKI_BLOCK: BlockSize = BlockSize::KIB_64;

/// A part of the machine's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volume {
    /// Root partition of the other slot.
    OtherRoot,
    /// Verity partition of the other slot.
    OtherVerity,
    /// Root partition of the running slot, to be read only.
    RunningRoot,
    /// A file on the state partition that holds an object of so many bytes, staged.
    Staged(Digest, u64),
}

/// The machine's storage; the seam at which tests cut the power.
pub trait Platform {
    /// Opens a volume. Several may be open at once, also of the same one.
    ///
    /// # Errors
    /// The device's.
    fn open(&mut self, volume: Volume) -> Result<Box<dyn Disk>>;
    /// Removes everything that is staged on the state partition.
    ///
    /// # Errors
    /// The file system's.
    fn discard(&mut self) -> Result<()>;
    /// Removes what is staged on the state partition but these objects: a way that was left needs its room no longer.
    ///
    /// # Errors
    /// The file system's.
    fn keep(&mut self, objects: &[Digest]) -> Result<()>;
    /// Opens the ESP for writing.
    ///
    /// # Errors
    /// If it cannot be mounted.
    fn esp(&mut self) -> Result<Box<dyn Esp + '_>>;
    /// Free bytes of the state partition.
    ///
    /// # Errors
    /// The file system's.
    fn var_free(&mut self) -> Result<u64>;
}

/// A job in progress.
pub struct Work<'w> {
    /// Storage.
    pub platform: &'w mut dyn Platform,
    /// Who is told, and may end it.
    pub control: &'w mut dyn Control,
    /// Roothash of the running slot.
    pub running: Digest,
    /// How often fetched blocks are flushed.
    pub interval: Interval,
}

/// A failure with the part that it is about.
pub type Failed = (Part, Failure);

fn local(part: Part) -> impl Fn(anyhow::Error) -> Failed {
    move |error| (part, Failure::local(&error))
}

/// A range of a disk.
struct Window {
    disk: Box<dyn Disk>,
    start: u64,
    bytes: u64,
}

impl Disk for Window {
    fn len(&self) -> u64 {
        self.bytes
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read(self.start + at, into)
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        self.disk.read_back(self.start + at, into)
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        ensure!(at + bytes.len() as u64 <= self.bytes, "a write beyond the staging area");
        self.disk.write(self.start + at, bytes)
    }
    fn sync(&mut self) -> Result<()> {
        self.disk.sync()
    }
}

impl Attempt {
    fn way(&self, part: Part) -> Option<&Way> {
        match part {
            Part::Slot => self.plan.slot.ways.get(self.slot_way),
            Part::Uki => self.plan.uki.ways.get(self.uki_way),
        }
    }
}

fn region(attempt: &Attempt, part: Part) -> Result<u64> {
    let way = attempt.way(part).context("the plan has no further way")?;
    Ok(staging::bytes(&way.object.geometry().map_err(anyhow::Error::msg)?))
}

/// The staging area of a part: a file on the state partition, or a range at the end of the other root partition, the
/// slot's payload last.
fn staged(platform: &mut dyn Platform, attempt: &Attempt, part: Part) -> Result<Staging<Box<dyn Disk>>> {
    let way = attempt.way(part).context("the plan has no further way")?;
    let bytes = region(attempt, part)?;
    let disk = match attempt.plan.place {
        Place::State => platform.open(Volume::Staged(way.object.id, bytes))?,
        Place::Slot => {
            let disk = platform.open(Volume::OtherRoot)?;
            let end = match part {
                Part::Slot => disk.len() / PAGE * PAGE,
                Part::Uki => disk.len() / PAGE * PAGE - region(attempt, Part::Slot)?,
            };
            let start = end.checked_sub(bytes).filter(|start| *start >= attempt.plan.slot.target.bytes);
            let start = start.context("the other slot has no room to keep what is fetched")?;
            Box::new(Window { disk, start, bytes })
        }
    };
    Staging::open(disk, &way.object)
}

fn disks(platform: &mut dyn Platform) -> Result<Disks> {
    Ok(Disks { root: platform.open(Volume::OtherRoot)?, verity: platform.open(Volume::OtherVerity)? })
}

/// Fetches both objects of an attempt.
///
/// # Errors
/// [`Failed`].
pub fn fetch(work: &mut Work<'_>, attempt: &Attempt, carrier: &mut dyn Carrier) -> Result<(), Failed> {
    let staged_ids: Vec<Digest> = match attempt.plan.place {
        Place::State => attempt.kept(),
        Place::Slot => Vec::new(),
    };
    work.platform.keep(&staged_ids).map_err(local(Part::Slot))?;
    if attempt.plan.place == Place::Slot {
        retire(work).map_err(local(Part::Slot))?;
    }
    for part in [Part::Uki, Part::Slot] {
        if attempt.way(part).is_none() {
            return Err((part, Failure::new(Fault::Absent, "no way to the target is left")));
        }
        let mut staging = staged(work.platform, attempt, part).map_err(local(part))?;
        let fetched = match attempt.way(part).map(|way| &way.method) {
            Some(Method::Adaptive { index_bytes, most }) => {
                let image_bytes = attempt.plan.slot.target.bytes;
                let bounds = Bounds { index_bytes: *index_bytes, image_bytes, most: *most };
                fetch_lacking(work, bounds, &mut staging, carrier)
            }
            Some(Method::Plain | Method::Zstd { .. } | Method::Delta { .. }) | None => {
                fetch::fetch(&mut staging, carrier, work.interval, work.control)
            }
        };
        fetched.map_err(|failure| (part, failure))?;
    }
    Ok(())
}

/// What an adaptive payload may take, bytes.
#[derive(Clone, Copy)]
struct Bounds {
    index_bytes: u64,
    image_bytes: u64,
    most: u64,
}

/// Fetches the index of an adaptive payload, then what the running slot lacks.
fn fetch_lacking(
    work: &mut Work<'_>,
    bounds: Bounds,
    staging: &mut Staging<Box<dyn Disk>>,
    carrier: &mut dyn Carrier,
) -> Result<(), Failure> {
    let geometry = staging.geometry();
    let first = adaptive::blocks(&geometry, &(0..bounds.index_bytes));
    staging.want([first.clone()]);
    fetch::fetch(staging, carrier, work.interval, work.control)?;
    let index = adaptive::index(staging, bounds.index_bytes, bounds.image_bytes)?;
    let running = work.platform.open(Volume::RunningRoot).map_err(|error| Failure::local(&error))?;
    let pages = Pages::of(running.as_ref()).map_err(|error| Failure::local(&error))?;
    let missing = index.missing(&|mark| pages.find(mark).is_some());
    staging.want(missing.iter().map(|part| adaptive::blocks(&geometry, part)).chain([first]));
    let takes = staging.total() + geometry.list_bytes();
    if takes > bounds.most {
        let why = format!(
            "the running slot has too little of it: {} KiB would be fetched, another way takes {}",
            takes >> 10,
            bounds.most >> 10
        );
        return Err(Failure::new(Fault::Damaged, why));
    }
    fetch::fetch(staging, carrier, work.interval, work.control)
}

/// Takes the other slot out of use: its entries, then its superblock.
fn retire(work: &mut Work<'_>) -> Result<()> {
    let mut esp = work.platform.esp()?;
    let mut names = entries::to_retire(&esp.names()?, work.running).map_err(anyhow::Error::msg)?;
    // Names of one release may be names of one file, so they go together.
    while let Some(entry) = names.first().and_then(|name| EntryName::parse(name)) {
        let same = |name: &String| EntryName::parse(name).is_some_and(|other| other.id() == entry.id());
        let (now, later): (Vec<String>, Vec<String>) = names.into_iter().partition(same);
        esp.remove(&now)?;
        names = later;
    }
    drop(esp);
    let mut verity = work.platform.open(Volume::OtherVerity)?;
    slot::wipe(verity.as_mut()).context("retire the other slot")
}

/// The other slot while it is written.
struct WrittenSlot<'w> {
    root: &'w mut dyn Disk,
    at: u64,
    flushed: u64,
    total: u64,
    control: &'w mut dyn Control,
}

impl Target for WrittenSlot<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.root.write(self.at, bytes).map_err(|error| Failure::local(&error))?;
        self.at += bytes.len() as u64;
        if self.at - self.flushed >= FLUSH {
            self.root.sync().map_err(|error| Failure::local(&error))?;
            self.flushed = self.at;
        }
        self.control.progress("write", self.at, self.total);
        if self.control.stopped() {
            return Err(Failure::new(Fault::Unreachable(None), "stopped"));
        }
        Ok(())
    }

    fn taken(&self, at: u64, into: &mut [u8]) -> std::io::Result<()> {
        self.root.read(at, into).map_err(std::io::Error::other)
    }
}

/// The new kernel image while it is written.
struct WrittenUki<'w> {
    esp: &'w mut dyn Esp,
    made: &'w mut Builder,
}

impl Target for WrittenUki<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.made.push(bytes);
        self.esp.append(bytes).map_err(|error| Failure::local(&error))
    }

    /// Kernel images do not refer back to themselves.
    fn taken(&self, _at: u64, _into: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Makes the other slot hold the image, unless it does already.
///
/// # Errors
/// [`Failed`]; the slot is then not complete.
pub fn install(work: &mut Work<'_>, attempt: &Attempt) -> Result<VerifiedSlot, Failed> {
    let plan = &attempt.plan;
    let here = local(Part::Slot);
    let mut disks = disks(work.platform).map_err(&here)?;
    let total = plan.slot.target.bytes;
    if let Ok(verified) =
        slot::verify(&disks, plan.roothash, &mut |done| work.control.progress("verify", done, total))
    {
        return Ok(verified);
    }
    retire(work).map_err(&here)?;
    let way = attempt.way(Part::Slot).ok_or((Part::Slot, Failure::new(Fault::Absent, "no way is left")))?;
    let staging = staged(work.platform, attempt, Part::Slot).map_err(&here)?;
    let base = Some(work.platform.open(Volume::RunningRoot).map_err(&here)?);
    let root = disks.root.as_mut();
    let mut written = WrittenSlot { root, at: 0, flushed: 0, total, control: &mut *work.control };
    decode(way, base, staging, total, &mut written).map_err(|failure| (Part::Slot, failure))?;
    disks.root.sync().map_err(&here)?;
    let image = Image {
        roothash: plan.roothash,
        parameters: plan.verity().map_err(anyhow::Error::msg).map_err(&here)?,
        uuid: formats::hex::decode(&plan.uuid).context("the plan's UUID is damaged").map_err(&here)?,
    };
    slot::complete(&mut disks, &image, &mut |done| work.control.progress("verify", done, total)).map_err(
        |incomplete| match incomplete {
            Incomplete::Disk(error) => here(error),
            Incomplete::Mismatch(found) => {
                let why =
                    format!("the slot has roothash {found} after writing, but must have {}", plan.roothash);
                (Part::Slot, Failure::new(Fault::Damaged, why))
            }
        },
    )
}

/// Verifies the other slot as it stands.
///
/// # Errors
/// Why it is not a whole image of `roothash`.
pub fn verify_other(work: &mut Work<'_>, roothash: Digest) -> Result<VerifiedSlot> {
    let disks = disks(work.platform)?;
    let total = disks.root.len();
    slot::verify(&disks, roothash, &mut |done| work.control.progress("verify", done, total))
}

/// Gives a verified slot its counted entry.
///
/// # Errors
/// [`Failed`]; the ESP then has no new entry.
pub fn enter(work: &mut Work<'_>, attempt: &Attempt, slot: &VerifiedSlot) -> Result<(), Failed> {
    let plan = &attempt.plan;
    let here = local(Part::Uki);
    if slot.roothash() != plan.roothash {
        let why = format!("slot {} was verified, not {}", slot.roothash().short(), plan.roothash.short());
        return Err((Part::Uki, Failure::new(Fault::Local, why)));
    }
    let tries = Some(Tries { left: entries::TRIES, done: 0 });
    let wanted =
        EntryName { tries, ..EntryName::uncounted(&plan.version, &plan.roothash.short()) }.file_name();
    // What is staged is opened first: the ESP is mounted for as short a time as can be.
    let way = attempt.way(Part::Uki).ok_or((Part::Uki, Failure::new(Fault::Absent, "no way is left")))?;
    let staging = staged(work.platform, attempt, Part::Uki).map_err(&here)?;
    let target = &plan.uki.target;
    let geometry = target.geometry().map_err(anyhow::Error::msg).map_err(&here)?;
    let mut esp = work.platform.esp().map_err(&here)?;
    // The safety net: without an uncounted entry of the running release none is made.
    let names = esp.names().map_err(&here)?;
    entries::to_retire(&names, work.running).map_err(anyhow::Error::msg).map_err(&here)?;
    let old: Vec<String> = entries::of(&names, plan.roothash).iter().map(EntryName::file_name).collect();
    if !old.is_empty() {
        esp.remove(&old).map_err(&here)?;
    }
    let base = base_uki(esp.as_mut(), work.running).map_err(&here)?;
    let mut made = Builder::new(geometry.block());
    esp.begin(&wanted).map_err(&here)?;
    let mut written = WrittenUki { esp: esp.as_mut(), made: &mut made };
    decode(way, Some(base), staging, target.bytes, &mut written).map_err(|failure| (Part::Uki, failure))?;
    let made = made.finish().map_err(anyhow::Error::new).map_err(&here)?;
    if made.id != target.id {
        let why = format!("the UKI that came out is object {}, but must be {}", made.id, target.id);
        return Err((Part::Uki, Failure::new(Fault::Damaged, why)));
    }
    esp.seal().map_err(&here)?;
    let found = id_of(geometry, &mut |at, into| esp.sealed(at, into)).map_err(&here)?;
    if found != target.id {
        return Err((
            Part::Uki,
            Failure::new(Fault::Local, "the ESP does not return what was written to it"),
        ));
    }
    esp.commit().map_err(&here)
}

fn id_of(geometry: Geometry, read: &mut dyn FnMut(u64, &mut [u8]) -> Result<()>) -> Result<Digest> {
    let mut builder = Builder::new(geometry.block());
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < geometry.length() {
        let part = &mut chunk[..CHUNK.min(usize::try_from(geometry.length() - at)?)];
        read(at, part)?;
        builder.push(part);
        at += part.len() as u64;
    }
    Ok(builder.finish()?.id)
}

/// The running release's UKI: what deltas for UKIs begin from.
fn base_uki(esp: &mut dyn Esp, running: Digest) -> Result<Box<dyn Disk>> {
    let entries = entries::of(&esp.names()?, running);
    let entry = formats::loader::first(&entries).context("the ESP has no entry of the running release")?;
    esp.open(&entry.file_name())
}

/// Looks for a release's entry and does what is asked to it. Gives the entry as it was.
///
/// # Errors
/// The ESP's; and for [`Operation::Arm`] of the other slot, why that is not whole.
pub fn entry(work: &mut Work<'_>, operation: Operation, release: &Release) -> Result<Option<EntryName>> {
    if operation == Operation::Arm && release.roothash != work.running {
        // It is about to become the first choice again.
        let verified = verify_other(work, release.roothash)?;
        ensure!(verified.roothash() == release.roothash, "another slot was verified");
    }
    let mut esp = work.platform.esp()?;
    let names = esp.names()?;
    let Some(found) = entries::find(&names, release) else { return Ok(None) };
    let becomes = operation.apply(&found);
    // A torn rename may have left two names of one file. Removing one frees the clusters of both, so either both stay,
    // or both go.
    let twins = entries::of(&names, release.roothash);
    if operation == Operation::Spend && twins.len() > 1 {
        let twins: Vec<String> = twins.iter().map(EntryName::file_name).collect();
        esp.remove(&twins)?;
        return Ok(Some(found));
    }
    if let Some(becomes) = becomes.filter(|becomes| !names.contains(&becomes.file_name())) {
        esp.rename(&found.file_name(), &becomes.file_name())?;
    }
    Ok(Some(found))
}

/// The release in the other slot, if it is whole and could be started: it has an entry whose tries are not spent.
///
/// # Errors
/// Why there is nothing to go back to.
pub fn other_release(work: &mut Work<'_>, roothash: Digest) -> Result<Release> {
    let verified = verify_other(work, roothash)?;
    let mut esp = work.platform.esp()?;
    let entries = entries::of(&esp.names()?, verified.roothash());
    let usable = entries.iter().filter(|entry| entry.tries.is_none_or(|tries| tries.left > 0));
    let entry =
        formats::loader::first(usable).context("it has no boot entry with tries left: it failed here")?;
    Ok(Release { version: entry.version.clone(), roothash, manifest: None })
}

/// The room that a release can have.
///
/// # Errors
/// The devices'.
pub fn room(platform: &mut dyn Platform, running: Digest) -> Result<Room> {
    let disks = disks(platform)?;
    let (root, verity) = (disks.root.len(), disks.verity.len());
    drop(disks);
    let var = platform.var_free()?;
    let mut esp = platform.esp()?;
    let mut free = esp.free()?;
    for name in entries::to_retire(&esp.names()?, running).unwrap_or_default() {
        free = free.saturating_add(esp.open(&name)?.len());
    }
    // Without it, UKIs are fetched whole.
    let uki = base_uki(esp.as_mut(), running).and_then(|uki| {
        let geometry = Geometry::new(uki.len(), UKI_BLOCK)?;
        id_of(geometry, &mut |at, into| uki.read(at, into))
    });
    let loader = esp.boot_loader().and_then(|loader| {
        let geometry = Geometry::new(loader.len(), UKI_BLOCK)?;
        id_of(geometry, &mut |at, into| loader.read(at, into))
    });
    Ok(Room { root, verity, esp: free, var, uki: uki.ok(), boot_loader: loader.ok() })
}
