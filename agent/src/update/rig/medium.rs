//! Storage that remembers what was flushed: partitions and staged files as bytes, the ESP as files, the memory as a
//! value. Every change is an operation at which the power can go.

use crate::io::disk::Disk;
use crate::io::disk::fault::FaultDisk;
use crate::update::esp::{Esp, HEAD};
use crate::update::install::{Platform, Volume};
use crate::update::state::Memory;
use anyhow::{Context, Result, bail, ensure};
use formats::hex::Digest;
use formats::layout::Slot;
use formats::status::UpdateCost;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// What becomes of what was not flushed when the power goes.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    writes: Writes,
    /// Of a change of the ESP, or of the memory: which of its outcomes.
    change: u8,
}

impl Fate {
    /// Nothing of it came through.
    pub const LOST: Self = Self { writes: Writes::Lost, change: 0 };
}

#[derive(Clone, Copy, Debug)]
enum Writes {
    Lost,
    Kept,
    /// Every other unit of so many bytes came through, from the first or the second on.
    Torn(usize, usize),
    /// Each write came through or not, by the bits of a number.
    Reordered(u64),
}

/// All fates that differ for what is under way.
pub fn fates(medium: &Medium) -> Vec<Fate> {
    let inner = medium.inner.borrow();
    let writes = if inner.devices.values().any(|device| !device.pending.is_empty()) {
        let mut all = vec![Writes::Lost, Writes::Kept];
        all.extend([512, 4096].into_iter().flat_map(|unit| [Writes::Torn(unit, 0), Writes::Torn(unit, 1)]));
        all.extend([0x5555_5555, 0xaaaa_aaaa, 0x3c5a_96e1, 0xffff_fff0].map(Writes::Reordered));
        all
    } else {
        vec![Writes::Lost]
    };
    let changes = match &inner.change {
        None => 1,
        Some(Change::Rename(..)) => 4,
        Some(
            Change::Begin(_)
            | Change::Fill(_)
            | Change::Commit(_)
            | Change::Blank(_)
            | Change::Unlink(_)
            | Change::Memory(_)
            | Change::Discard
            | Change::Keep(_),
        ) => 2,
    };
    let all = |writes: Writes| (0..changes).map(move |change| Fate { writes, change });
    writes.into_iter().flat_map(all).collect()
}

/// A place for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Root partition of a slot.
    Root(Slot),
    /// Verity partition of a slot.
    Verity(Slot),
    /// A staged file.
    Staged(Digest),
}

#[derive(Clone, Default)]
struct Device {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<(usize, Vec<u8>)>,
}

impl Device {
    fn holding(bytes: Vec<u8>) -> Self {
        Self { live: bytes.clone(), durable: bytes, pending: Vec::new() }
    }
    fn after(&self, writes: Writes) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (n, (at, data)) in self.pending.iter().enumerate() {
            let mut put = |from: usize, to: usize| {
                let (from, to) = (from.max(*at), to.min(at + data.len()));
                if from < to {
                    bytes[from..to].copy_from_slice(&data[from - at..to - at]);
                }
            };
            match writes {
                Writes::Lost => {}
                Writes::Kept => put(0, usize::MAX),
                Writes::Reordered(bits) => {
                    if bits & (1 << (n % 64)) != 0 {
                        put(0, usize::MAX);
                    }
                }
                Writes::Torn(unit, first) => {
                    for page in (at / unit..=(at + data.len()) / unit).filter(|page| page % 2 == first) {
                        put(page * unit, (page + 1) * unit);
                    }
                }
            }
        }
        bytes
    }
}

/// A change that happens at once, or in the ways in which a power cut can halve it.
#[derive(Clone)]
enum Change {
    Rename(String, String),
    /// A blank file.
    Begin(String),
    /// What stands behind its first sector, of which anything may have come through.
    Fill(String),
    /// Its first sector, all at once.
    Commit(String),
    /// First sectors go.
    Blank(Vec<String>),
    Unlink(Vec<String>),
    Memory(Box<Memory>),
    Discard,
    Keep(Vec<Digest>),
}

#[derive(Clone, Default)]
struct Inner {
    devices: BTreeMap<Place, Device>,
    entries: BTreeMap<String, Vec<u8>>,
    new: Option<(String, Vec<u8>)>,
    memory: Memory,
    change: Option<Change>,
    operations: usize,
    cut_at: Option<usize>,
    other: Option<Slot>,
    var_free: u64,
    state_full: bool,
    slot_bytes: u64,
    staged_bytes: u64,
}

impl Inner {
    fn operate(&mut self) -> Result<()> {
        ensure!(self.cut_at.is_none_or(|at| self.operations < at), "power cut");
        self.operations += 1;
        Ok(())
    }
    fn cut(&self) -> bool {
        self.cut_at.is_some_and(|at| self.operations >= at)
    }
    /// Makes a change, or leaves it to fate.
    fn change(&mut self, change: Change) -> Result<()> {
        if self.cut() {
            self.change.get_or_insert(change);
            bail!("power cut");
        }
        self.operations += 1;
        self.make(&change, 1);
        Ok(())
    }
    /// `outcome` 0: not at all, 1: whole; of renames also 2: both names, 3: neither.
    fn make(&mut self, change: &Change, outcome: u8) {
        match (change, outcome) {
            (_, 0) => {}
            (Change::Rename(from, to), outcome) => {
                let bytes = self.entries.get(from).cloned().unwrap_or_default();
                if outcome != 2 {
                    self.entries.remove(from);
                }
                if outcome != 3 {
                    self.entries.insert(to.clone(), bytes);
                }
            }
            (Change::Begin(name), _) => {
                let blank = |bytes: &Vec<u8>| bytes.iter().take(HEAD).all(|byte| *byte == 0);
                self.entries.retain(|_, bytes| !blank(bytes));
                self.entries.insert(name.clone(), vec![0; 4096]);
            }
            (Change::Fill(name), _) => {
                self.entries.insert(name.clone(), [vec![0; HEAD], vec![0xa5; 777]].concat());
            }
            (Change::Commit(name), _) => {
                let bytes = self.new.as_ref().map(|(_, bytes)| bytes.clone()).unwrap_or_default();
                self.entries.insert(name.clone(), bytes);
            }
            (Change::Blank(names), _) => {
                for (_, bytes) in self.entries.iter_mut().filter(|(name, _)| names.contains(name)) {
                    bytes[..HEAD].fill(0);
                }
            }
            (Change::Unlink(names), _) => self.entries.retain(|name, _| !names.contains(name)),
            (Change::Memory(memory), _) => self.memory = (**memory).clone(),
            (Change::Keep(ids), _) => self.devices.retain(|place, _| match place {
                Place::Staged(id) => ids.contains(id),
                Place::Root(_) | Place::Verity(_) => true,
            }),
            (Change::Discard, _) => self.devices.retain(|place, _| !matches!(place, Place::Staged(_))),
        }
    }
}

/// The storage of a machine.
#[derive(Clone, Default)]
pub struct Medium {
    inner: Rc<RefCell<Inner>>,
}

impl Medium {
    /// An empty medium with two slots of these sizes.
    pub fn new(root_bytes: usize, verity_bytes: usize, var_free: u64) -> Self {
        let medium = Self::default();
        let mut inner = medium.inner.borrow_mut();
        inner.var_free = var_free;
        for slot in Slot::BOTH {
            inner.devices.insert(Place::Root(slot), Device::holding(vec![0x11; root_bytes]));
            inner.devices.insert(Place::Verity(slot), Device::holding(vec![0x22; verity_bytes]));
        }
        drop(inner);
        medium
    }
    /// As the factory writes it.
    pub fn put(&self, place: Place, bytes: &[u8]) {
        let mut inner = self.inner.borrow_mut();
        let device = inner.devices.get_mut(&place).unwrap();
        device.live[..bytes.len()].copy_from_slice(bytes);
        device.durable = device.live.clone();
    }
    pub fn put_entry(&self, name: &str, bytes: &[u8]) {
        self.inner.borrow_mut().entries.insert(name.to_owned(), bytes.to_vec());
    }
    pub fn operations(&self) -> usize {
        self.inner.borrow().operations
    }
    pub fn cut_at(&self, at: Option<usize>) {
        self.inner.borrow_mut().cut_at = at;
    }
    pub fn set_other(&self, slot: Slot) {
        self.inner.borrow_mut().other = Some(slot);
    }
    /// What the next boot finds.
    pub fn after(&self, fate: Fate) -> Self {
        let mut inner = self.inner.borrow().clone();
        for device in inner.devices.values_mut() {
            *device = Device::holding(device.after(fate.writes));
        }
        if let Some(change) = inner.change.take() {
            inner.make(&change, fate.change);
        }
        (inner.operations, inner.cut_at) = (0, None);
        Self { inner: Rc::new(RefCell::new(inner)) }
    }
    pub fn memory(&self) -> Memory {
        self.inner.borrow().memory.clone()
    }
    pub fn remember(&self, memory: &Memory) -> Result<()> {
        self.inner.borrow_mut().change(Change::Memory(Box::new(memory.clone())))
    }
    /// Files that systemd-boot lists: those with a first sector.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let listed = |bytes: &Vec<u8>| bytes.iter().take(HEAD).any(|byte| *byte != 0);
        let inner = self.inner.borrow();
        let entries = inner.entries.iter().filter(|(_, bytes)| listed(bytes));
        entries.map(|(name, bytes)| (name.clone(), bytes.clone())).collect()
    }
    pub fn bytes(&self, place: Place) -> Vec<u8> {
        self.inner.borrow().devices[&place].durable.clone()
    }
    /// As the boot loader renames.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.inner.borrow_mut().change(Change::Rename(from.to_owned(), to.to_owned()))
    }
    pub fn flip(&self, place: Place, at: usize) {
        let mut byte = [self.bytes(place)[at]];
        byte[0] ^= 1;
        let mut inner = self.inner.borrow_mut();
        let device = inner.devices.get_mut(&place).unwrap();
        device.live[at] = byte[0];
        device.durable[at] = byte[0];
    }
    /// Flips a bit in the last block of everything staged on the state partition.
    pub fn tamper(&self) {
        let staged = |place: &Place| matches!(place, Place::Staged(_));
        let places: Vec<Place> = self.inner.borrow().devices.keys().copied().filter(staged).collect();
        for place in places {
            let bytes = self.bytes(place);
            let last = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            self.flip(place, last);
        }
    }
    /// What was written since the machine is there.
    pub fn cost(&self) -> UpdateCost {
        let inner = self.inner.borrow();
        let (slot_bytes, staged_bytes) = (inner.slot_bytes, inner.staged_bytes);
        UpdateCost { slot_bytes, staged_bytes, ..UpdateCost::default() }
    }
    /// From now on no file can be made on the state partition.
    pub fn fill_state(&self) {
        self.inner.borrow_mut().state_full = true;
    }
    pub fn tear_entry(&self, prefix: &str) {
        let mut inner = self.inner.borrow_mut();
        let (_, bytes) = inner.entries.iter_mut().find(|(name, _)| name.starts_with(prefix)).unwrap();
        bytes.truncate(bytes.len() / 2);
    }
    pub fn remove_entries(&self) {
        self.inner.borrow_mut().entries.clear();
    }
}

struct Handle {
    medium: Medium,
    place: Place,
}

impl Disk for Handle {
    fn len(&self) -> u64 {
        self.medium.inner.borrow().devices[&self.place].live.len() as u64
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let at = at as usize;
        into.copy_from_slice(&self.medium.inner.borrow().devices[&self.place].live[at..at + into.len()]);
        Ok(())
    }
    fn read_back(&self, at: u64, into: &mut [u8]) -> Result<()> {
        let at = at as usize;
        into.copy_from_slice(&self.medium.inner.borrow().devices[&self.place].durable[at..at + into.len()]);
        Ok(())
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut inner = self.medium.inner.borrow_mut();
        let running = inner.other.map(Slot::other);
        let protected = [running.map(Place::Root), running.map(Place::Verity)];
        assert!(!protected.contains(&Some(self.place)), "the running slot was written");
        let cut = inner.operate();
        match self.place {
            Place::Root(_) | Place::Verity(_) => inner.slot_bytes += bytes.len() as u64,
            Place::Staged(_) => inner.staged_bytes += bytes.len() as u64,
        }
        let device = inner.devices.get_mut(&self.place).context("the file is gone")?;
        let at = at as usize;
        device.live[at..at + bytes.len()].copy_from_slice(bytes);
        device.pending.push((at, bytes.to_vec()));
        cut
    }
    fn sync(&mut self) -> Result<()> {
        let mut inner = self.medium.inner.borrow_mut();
        inner.operate()?;
        let device = inner.devices.get_mut(&self.place).context("the file is gone")?;
        device.durable = device.live.clone();
        device.pending.clear();
        Ok(())
    }
}

impl Platform for Medium {
    fn open(&mut self, volume: Volume) -> Result<Box<dyn Disk>> {
        let other = self.inner.borrow().other.context("no slot runs")?;
        let place = match volume {
            Volume::OtherRoot => Place::Root(other),
            Volume::OtherVerity => Place::Verity(other),
            Volume::RunningRoot => Place::Root(other.other()),
            Volume::Staged(id, bytes) => {
                let place = Place::Staged(id);
                ensure!(!self.inner.borrow().state_full, "make a file: No space left on device");
                let empty = || Device::holding(vec![0; bytes as usize]);
                self.inner.borrow_mut().devices.entry(place).or_insert_with(empty);
                place
            }
        };
        Ok(Box::new(Handle { medium: self.clone(), place }))
    }
    fn discard(&mut self) -> Result<()> {
        self.inner.borrow_mut().change(Change::Discard)
    }
    fn keep(&mut self, objects: &[Digest]) -> Result<()> {
        let kept = |place: &Place| match place {
            Place::Staged(id) => objects.contains(id),
            Place::Root(_) | Place::Verity(_) => true,
        };
        if self.inner.borrow().devices.keys().all(kept) {
            return Ok(());
        }
        self.inner.borrow_mut().change(Change::Keep(objects.to_vec()))
    }
    fn esp(&mut self) -> Result<Box<dyn Esp + '_>> {
        Ok(Box::new(self.clone()))
    }
    fn var_free(&mut self) -> Result<u64> {
        Ok(self.inner.borrow().var_free)
    }
}

impl Esp for Medium {
    fn names(&mut self) -> Result<Vec<String>> {
        Ok(self.entries().into_keys().collect())
    }
    fn open(&mut self, name: &str) -> Result<Box<dyn Disk>> {
        let bytes = self.inner.borrow().entries.get(name).cloned();
        Ok(Box::new(FaultDisk::new(bytes.context("no such entry")?)))
    }
    fn boot_loader(&mut self) -> Result<Box<dyn Disk>> {
        bail!("the rig has none")
    }
    fn free(&mut self) -> Result<u64> {
        Ok(1 << 20)
    }
    fn remove(&mut self, names: &[String]) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.change(Change::Blank(names.to_vec()))?;
        inner.change(Change::Unlink(names.to_vec()))
    }
    fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        self.inner.borrow_mut().change(Change::Rename(from.to_owned(), to.to_owned()))
    }
    fn begin(&mut self, name: &str) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.change(Change::Begin(name.to_owned()))?;
        inner.new = Some((name.to_owned(), Vec::new()));
        Ok(())
    }
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        let (name, mut new) = inner.new.clone().context("nothing was begun")?;
        inner.change(Change::Fill(name.clone()))?;
        new.extend(bytes);
        inner.new = Some((name, new));
        Ok(())
    }
    fn seal(&mut self) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        let (name, _) = inner.new.clone().context("nothing was begun")?;
        inner.change(Change::Fill(name))
    }
    fn sealed(&mut self, at: u64, into: &mut [u8]) -> Result<()> {
        let inner = self.inner.borrow();
        let (_, bytes) = inner.new.as_ref().context("nothing was begun")?;
        into.copy_from_slice(&bytes[at as usize..at as usize + into.len()]);
        Ok(())
    }
    fn commit(&mut self) -> Result<()> {
        let mut inner = self.inner.borrow_mut();
        let (name, _) = inner.new.clone().context("nothing was begun")?;
        inner.change(Change::Commit(name))
    }
}
