//! An object while it is fetched: verified blocks and a map of them, on a region of a disk, so that a power cut, a
//! changed address or another carrier costs at most the blocks since the last flush.
//!
//! ```text
//! 4096 bytes   which object: magic, id, length, block size
//! map          one bit a block, set after the block was flushed
//! lists        the object's hash lists
//! data         the blocks, each at its place
//! ```
//! The map only says what need not be fetched: every block is verified again when it is read, so no state of the
//! region can bring in a byte that the object does not have. Knows nothing of carriers and of what an object is for.

use crate::io::disk::Disk;
use crate::update::plan::Object;
use anyhow::{Context, Result, ensure};
use formats::object::{Geometry, Verifier, leaf};
use std::ops::Range;

const PAGE: u64 = 4096;
const MAGIC: &[u8; 18] = b"farhold-staged-v1\n";

/// Bytes of the region for an object of this geometry.
pub fn bytes(geometry: &Geometry) -> u64 {
    Layout::of(geometry).end
}

struct Layout {
    lists: u64,
    data: u64,
    end: u64,
}

impl Layout {
    fn of(geometry: &Geometry) -> Self {
        let up = |bytes: u64| bytes.div_ceil(PAGE) * PAGE;
        let lists = PAGE + up(geometry.blocks().div_ceil(8));
        let data = lists + up(geometry.list_bytes());
        Self { lists, data, end: data + up(geometry.length()) }
    }
}

/// Why a block cannot be read.
#[derive(Debug)]
pub enum Unreadable {
    /// It is missing, or no longer what it was: it must be fetched again.
    Missing(u64),
    /// The disk fails.
    Disk(anyhow::Error),
}

/// An object's region.
pub struct Staging<D> {
    disk: D,
    geometry: Geometry,
    id: formats::hex::Digest,
    layout: Layout,
    verifier: Option<Verifier>,
    map: Vec<u8>,
    /// Blocks written since the last flush.
    pending: Vec<u64>,
    pending_bytes: u64,
}

impl<D: Disk> Staging<D> {
    /// Opens the region; one that holds another object, or nothing, is made empty first.
    ///
    /// # Errors
    /// The disk's, or if the region is too small.
    pub fn open(disk: D, object: &Object) -> Result<Self> {
        let geometry = object.geometry().map_err(anyhow::Error::msg)?;
        let layout = Layout::of(&geometry);
        ensure!(
            disk.len() >= layout.end,
            "the staging area has {} bytes, the object needs {}",
            disk.len(),
            layout.end
        );
        let map = vec![0; usize::try_from(layout.lists - PAGE).context("the object has too many blocks")?];
        let mut staging = Self {
            disk,
            geometry,
            id: object.id,
            layout,
            verifier: None,
            map,
            pending: Vec::new(),
            pending_bytes: 0,
        };
        let header = staging.header();
        let mut found = vec![0; PAGE as usize];
        staging.disk.read(0, &mut found)?;
        if found == header {
            staging.load()?
        } else {
            staging.format(&header)?
        }
        Ok(staging)
    }

    fn header(&self) -> Vec<u8> {
        let mut header = MAGIC.to_vec();
        header.extend(self.id.0);
        header.extend(self.geometry.length().to_le_bytes());
        header.push(self.geometry.block().log2());
        header.resize(PAGE as usize, 0);
        header
    }

    /// The old header goes first and the new one comes last, each flushed: a map is never taken for another object's.
    fn format(&mut self, header: &[u8]) -> Result<()> {
        self.disk.write(0, &[0; PAGE as usize])?;
        self.disk.sync()?;
        self.disk.write(PAGE, &self.map)?;
        self.disk.sync()?;
        self.disk.write(0, header)?;
        self.disk.sync()
    }

    fn load(&mut self) -> Result<()> {
        self.disk.read(PAGE, &mut self.map)?;
        let mut lists = vec![0; usize::try_from(self.geometry.list_bytes())?];
        self.disk.read(self.layout.lists, &mut lists)?;
        // Torn or missing lists are fetched again; the blocks stay.
        self.verifier = Verifier::from_lists(self.id, self.geometry, &lists).ok();
        Ok(())
    }

    /// Whether hash lists must be fetched before blocks can be taken.
    pub fn needs_lists(&self) -> bool {
        self.verifier.is_none() && self.geometry.blocks() > 1
    }

    /// Takes the hash lists.
    ///
    /// # Errors
    /// [`Ok`] of an error: they are not the object's. [`Err`]: the disk's.
    pub fn put_lists(&mut self, lists: &[u8]) -> Result<Result<(), formats::object::ObjectError>> {
        let verifier = match Verifier::from_lists(self.id, self.geometry, lists) {
            Ok(verifier) => verifier,
            Err(error) => return Ok(Err(error)),
        };
        self.disk.write(self.layout.lists, lists)?;
        self.disk.sync()?;
        self.verifier = Some(verifier);
        Ok(Ok(()))
    }

    /// The object's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn has(&self, index: u64) -> bool {
        let byte = usize::try_from(index / 8).ok().and_then(|at| self.map.get(at));
        byte.is_some_and(|byte| byte & (1 << (index % 8)) != 0)
    }

    /// Bytes of the blocks that need not be fetched.
    pub fn done(&self) -> u64 {
        let blocks: u64 = self.map.iter().map(|byte| u64::from(byte.count_ones())).sum();
        let bytes = blocks * u64::from(self.geometry.block().bytes());
        (bytes + self.pending_bytes).min(self.geometry.length())
    }

    /// The next blocks in a row, from `from` on, that must be fetched.
    pub fn missing(&self, from: u64) -> Option<Range<u64>> {
        let lacks = |index: &u64| !self.has(*index) && !self.pending.contains(index);
        let start = (from..self.geometry.blocks()).find(lacks)?;
        let end = (start..self.geometry.blocks()).find(|index| !lacks(index));
        Some(start..end.unwrap_or(self.geometry.blocks()))
    }

    /// Takes a block, if it is the object's.
    ///
    /// # Errors
    /// [`Ok`] of an error: it is not. [`Err`]: the disk's.
    pub fn put(&mut self, index: u64, block: &[u8]) -> Result<Result<(), formats::object::ObjectError>> {
        if self.geometry.blocks() == 1 && self.verifier.is_none() {
            // The list of a single block is its own hash.
            match Verifier::from_lists(self.id, self.geometry, &leaf(block)) {
                Ok(verifier) => {
                    self.disk.write(self.layout.lists, &leaf(block))?;
                    self.verifier = Some(verifier);
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        let verifier = self.verifier.as_ref().context("blocks came before their hash lists")?;
        if let Err(error) = verifier.block(index, block) {
            return Ok(Err(error));
        }
        self.disk.write(self.at(index), block)?;
        self.pending.push(index);
        self.pending_bytes += block.len() as u64;
        Ok(Ok(()))
    }

    fn at(&self, index: u64) -> u64 {
        self.layout.data + index * u64::from(self.geometry.block().bytes())
    }

    /// Bytes taken since the last flush.
    pub fn unflushed(&self) -> u64 {
        self.pending_bytes
    }

    /// Makes the taken blocks durable, then the map that names them.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.disk.sync()?;
        let mut pages = std::collections::BTreeSet::new();
        for index in std::mem::take(&mut self.pending) {
            let byte = usize::try_from(index / 8)?;
            self.map[byte] |= 1 << (index % 8);
            pages.insert(byte / PAGE as usize);
        }
        self.pending_bytes = 0;
        self.write_map(&pages)
    }

    fn write_map(&mut self, pages: &std::collections::BTreeSet<usize>) -> Result<()> {
        for page in pages {
            let range = page * PAGE as usize..(page + 1) * PAGE as usize;
            self.disk.write(PAGE + range.start as u64, &self.map[range])?;
        }
        self.disk.sync()
    }

    /// Whether all of the object is here.
    #[cfg(test)]
    pub fn complete(&self) -> bool {
        self.pending.is_empty()
            && self.missing(0).is_none()
            && (!self.needs_lists() || self.geometry.blocks() == 0)
    }

    /// Reads a block and verifies it. One that is not what it was is forgotten, durably.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn read(&mut self, index: u64) -> Result<Vec<u8>, Unreadable> {
        let length = self.geometry.block_length(index).filter(|_| self.has(index));
        let mut block = vec![0; length.ok_or(Unreadable::Missing(index))?];
        self.disk.read(self.at(index), &mut block).map_err(Unreadable::Disk)?;
        if self.verifier.as_ref().is_some_and(|verifier| verifier.block(index, &block).is_ok()) {
            return Ok(block);
        }
        let byte = (index / 8) as usize;
        self.map[byte] &= !(1 << (index % 8));
        self.write_map(&[byte / PAGE as usize].into()).map_err(Unreadable::Disk)?;
        Err(Unreadable::Missing(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::fault::{FaultDisk, Unsynced};
    use formats::object::{self, BlockSize};

    const BLOCK: usize = 256;

    fn sample(length: usize) -> (Vec<u8>, Object, object::Object) {
        let data: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
        let made = object::of(&data, BlockSize::from_log2(8).unwrap()).unwrap();
        let object = Object { id: made.id, bytes: length as u64, block_log2: 8 };
        (data, object, made)
    }

    fn region(object: &Object) -> FaultDisk {
        FaultDisk::new(vec![0x5a; bytes(&object.geometry().unwrap()) as usize])
    }

    fn fill(
        disk: FaultDisk,
        object: &Object,
        data: &[u8],
        lists: &[u8],
        every: usize,
    ) -> Result<FaultDisk, FaultDisk> {
        let mut disk = disk;
        let run = |disk: &mut FaultDisk| -> Result<()> {
            let mut staging = Staging::open(disk, object)?;
            if staging.needs_lists() {
                staging.put_lists(lists)?.unwrap();
            }
            let mut next = 0;
            while let Some(run) = staging.missing(next) {
                for index in run.clone() {
                    let at = index as usize * BLOCK;
                    staging.put(index, &data[at..data.len().min(at + BLOCK)])?.unwrap();
                    if staging.unflushed() >= (every * BLOCK) as u64 {
                        staging.flush()?;
                    }
                }
                next = run.end;
            }
            staging.flush()
        };
        match run(&mut disk) {
            Ok(()) => Ok(disk),
            Err(_) => Err(disk),
        }
    }

    #[test]
    fn what_was_flushed_survives_every_cut_and_nothing_else_is_ever_read() {
        let (data, object, made) = sample(20 * BLOCK + 17);
        let mut whole = region(&object);
        whole = fill(whole, &object, &data, &made.lists, 4).ok().unwrap();
        let mut states = 0;
        for cut in 0..whole.mutations {
            let mut disk = region(&object);
            disk.cut_at = Some(cut);
            let cut_disk = fill(disk, &object, &data, &made.lists, 4).err().unwrap();
            for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(0), Unsynced::Torn(1)] {
                states += 1;
                let mut after = cut_disk.clone().after_cut(unsynced);
                let mut staging = Staging::open(&mut after, &object).unwrap();
                for index in 0..staging.geometry().blocks() {
                    let at = index as usize * BLOCK;
                    match staging.read(index) {
                        Ok(block) => assert_eq!(block, data[at..data.len().min(at + BLOCK)]),
                        Err(Unreadable::Missing(_)) => {}
                        Err(Unreadable::Disk(error)) => panic!("{error:#}"),
                    }
                }
                drop(staging);
                let done = fill(after, &object, &data, &made.lists, 4).ok().unwrap();
                let mut done = done;
                assert!(Staging::open(&mut done, &object).unwrap().complete());
            }
        }
        assert!(states > 60, "{states}");
    }

    #[test]
    fn single_blocks_and_empty_objects_need_no_lists() {
        for length in [0, 1, BLOCK] {
            let (data, object, _) = sample(length);
            let mut disk = fill(region(&object), &object, &data, &[], 1).ok().unwrap();
            let mut staging = Staging::open(&mut disk, &object).unwrap();
            assert!(staging.complete(), "{length}");
            if length > 0 {
                assert_eq!(staging.read(0).unwrap(), data);
            }
        }
    }

    #[test]
    fn a_block_that_rots_is_forgotten_and_foreign_ones_are_refused() {
        let (data, object, made) = sample(5 * BLOCK);
        let mut disk = fill(region(&object), &object, &data, &made.lists, 2).ok().unwrap();
        let at = Layout::of(&object.geometry().unwrap()).data + 3 * BLOCK as u64;
        disk.write(at, &[!data[3 * BLOCK]]).unwrap();
        let mut staging = Staging::open(&mut disk, &object).unwrap();
        assert!(matches!(staging.read(3), Err(Unreadable::Missing(3))));
        assert_eq!(staging.missing(0), Some(3..4));
        assert!(staging.put(3, &data[..BLOCK]).unwrap().is_err());
        assert!(staging.put_lists(&made.lists[1..]).unwrap().is_err());
        drop(staging);
        let (_, other, _) = sample(5 * BLOCK - 1);
        assert_eq!(Staging::open(&mut disk, &other).unwrap().done(), 0);
    }
}
