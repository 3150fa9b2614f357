//! An object while it is fetched: verified blocks and a map of them, on a region of a disk, so that a power cut, a
//! changed address or another carrier costs at most the blocks since the last flush.
//!
//! ```text
//! 4096 bytes   which object: magic, id, length, block size
//! map          one bit a block, set after the block was flushed
//! lists        the object's hash lists, from their start as far as they came
//! data         the blocks, each at its place
//! ```
//! The map only says what need not be fetched: every block is verified again when it is read, so no state of the
//! region can bring in a byte that the object does not have. Knows nothing of carriers and of what an object is for.

use crate::io::disk::Disk;
use crate::update::carrier::{Wanted, What, Worth};
use crate::update::plan::Object;
use anyhow::{Context, Result, ensure};
use formats::object::{Geometry, ListReader, Verifier, leaf};
use std::ops::Range;

pub(super) const PAGE: u64 = 4096;
pub(super) const MAGIC: &[u8; 18] = b"farhold-staged-v1\n";

/// Bytes of the region for an object of this geometry.
pub fn bytes(geometry: &Geometry) -> u64 {
    Layout::of(geometry).end
}

pub(super) struct Layout {
    pub(super) lists: u64,
    pub(super) data: u64,
    end: u64,
}

impl Layout {
    pub(super) fn of(geometry: &Geometry) -> Self {
        let up = |bytes: u64| bytes.div_ceil(PAGE) * PAGE;
        let lists = PAGE + up(geometry.blocks().div_ceil(8));
        let data = lists + up(geometry.list_bytes());
        Self { lists, data, end: data + up(geometry.length()) }
    }
}

fn bit(map: &[u8], index: u64) -> bool {
    let byte = usize::try_from(index / 8).ok().and_then(|at| map.get(at));
    byte.is_some_and(|byte| byte & (1 << (index % 8)) != 0)
}

/// The numbers below `count` that `lacks` is true for, as ranges.
fn runs(count: u64, lacks: impl Fn(u64) -> bool) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    for n in (0..count).filter(|n| lacks(*n)) {
        match found.last_mut() {
            Some(last) if last.end == n => last.end += 1,
            Some(_) | None => found.push(n..n + 1),
        }
    }
    found
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
    lists: Option<Lists>,
    map: Vec<u8>,
    /// The map with what was written since the last flush.
    taken: Vec<u8>,
    /// Like the map: blocks that are wanted at all.
    asked: Vec<u8>,
    /// Blocks written since the last flush.
    pending: Vec<u64>,
    pending_bytes: u64,
}

/// Hash lists while they come.
struct Lists {
    bytes: Vec<u8>,
    /// Which pieces are here.
    have: Vec<bool>,
    reader: ListReader,
    /// From where on they are not on the disk.
    unwritten: usize,
}

impl Lists {
    /// Reads on as far as pieces are here without a gap. Gives the bytes that are good.
    fn read(&mut self, piece: usize) -> Result<usize, formats::object::ObjectError> {
        let whole = self.have.iter().take_while(|have| **have).count() * piece;
        while let Some(range) = self.reader.next() {
            let (start, end) = (range.start as usize, range.end as usize);
            if end > whole.min(self.bytes.len()) {
                return Ok(start);
            }
            if let Err(error) = self.reader.take(&self.bytes[start..end]) {
                // A piece on the edge may be good; it is fetched again all the same.
                self.have[start / piece..=(end - 1) / piece].fill(false);
                return Err(error);
            }
        }
        Ok(self.bytes.len())
    }
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
            lists: None,
            taken: map.clone(),
            asked: vec![0xff; map.len()],
            map,
            pending: Vec::new(),
            pending_bytes: 0,
        };
        let header = staging.header();
        let mut found = vec![0; PAGE as usize];
        staging.disk.read(0, &mut found)?;
        if found != header {
            staging.format(&header)?;
        }
        staging.load(found == header)?;
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

    /// Takes up what an earlier run left: torn or missing lists are fetched again; the blocks stay.
    fn load(&mut self, same: bool) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(self.geometry.list_bytes())?];
        if same {
            self.disk.read(PAGE, &mut self.map)?;
            self.disk.read(self.layout.lists, &mut bytes)?;
            self.taken.clone_from(&self.map);
        }
        let piece = self.geometry.list_block();
        let have = vec![same; bytes.len().div_ceil(piece)];
        let reader = ListReader::new(self.id, self.geometry);
        let mut lists = Lists { bytes, have, reader, unwritten: 0 };
        // What is not good is not there.
        let good = lists.read(piece).unwrap_or_else(|_| lists.reader.next().map_or(0, |r| r.start as usize));
        lists.unwritten = good;
        if good < lists.bytes.len() {
            lists.have[good / piece..].fill(false);
        }
        match lists.reader.done() {
            Some(verifier) => self.verifier = Some(verifier.clone()),
            None => self.lists = Some(lists),
        }
        Ok(())
    }

    /// Whether hash lists must be fetched before blocks can be taken.
    pub fn needs_lists(&self) -> bool {
        self.verifier.is_none() && self.geometry.blocks() > 1
    }

    /// Takes a piece of the hash lists.
    ///
    /// # Errors
    /// The disk's.
    pub fn put_lists(&mut self, index: u64, bytes: &[u8]) -> Result<Worth> {
        let (piece, needed) = (self.geometry.list_block(), self.needs_lists());
        let Some(lists) = self.lists.as_mut().filter(|_| needed) else { return Ok(Worth::Known) };
        let at = usize::try_from(index)?;
        match lists.have.get_mut(at) {
            Some(have @ false) => *have = true,
            Some(true) => return Ok(Worth::Known),
            None => return Ok(Worth::Wrong(format!("the hash lists have no piece {index}"))),
        }
        let (start, end) = (at * piece, lists.bytes.len().min((at + 1) * piece));
        if bytes.len() != end - start {
            lists.have[at] = false;
            return Ok(Worth::Wrong(format!("piece {index} of the hash lists has {} bytes", bytes.len())));
        }
        lists.bytes[start..end].copy_from_slice(bytes);
        if let Err(error) = lists.read(piece) {
            return Ok(Worth::Wrong(error.to_string()));
        }
        if let Some(verifier) = lists.reader.done() {
            let verifier = verifier.clone();
            self.write_lists()?;
            self.disk.sync()?;
            self.verifier = Some(verifier);
            self.lists = None;
        }
        Ok(Worth::New)
    }

    /// Writes the hash lists as far as they are good. Gives whether there was anything to write.
    fn write_lists(&mut self) -> Result<bool> {
        let Some(lists) = &mut self.lists else { return Ok(false) };
        let good = lists.reader.next().map_or(lists.bytes.len(), |range| range.start as usize);
        let from = std::mem::replace(&mut lists.unwritten, good);
        if good > from {
            // Whole pages: what comes after them in the same page is written anew later.
            let from = from / PAGE as usize * PAGE as usize;
            self.disk.write(self.layout.lists + from as u64, &lists.bytes[from..good])?;
        }
        Ok(good > from)
    }

    /// The object's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Bytes of the blocks that need not be fetched.
    pub fn done(&self) -> u64 {
        let both = self.map.iter().zip(&self.asked).map(|(has, wanted)| has & wanted);
        let blocks: u64 = both.map(|byte| u64::from(byte.count_ones())).sum();
        let bytes = blocks * u64::from(self.geometry.block().bytes());
        (bytes + self.pending_bytes).min(self.total())
    }

    /// Bytes of all blocks that are wanted.
    pub fn total(&self) -> u64 {
        let blocks: u64 = self.asked.iter().map(|byte| u64::from(byte.count_ones())).sum();
        (blocks * u64::from(self.geometry.block().bytes())).min(self.geometry.length())
    }

    /// From now on only these blocks are missing if they are not here.
    pub fn want(&mut self, blocks: impl IntoIterator<Item = Range<u64>>) {
        self.asked.fill(0);
        for index in blocks.into_iter().flatten() {
            if let Some(byte) = usize::try_from(index / 8).ok().and_then(|at| self.asked.get_mut(at)) {
                *byte |= 1 << (index % 8);
            }
        }
    }

    fn lacks(&self, index: u64) -> bool {
        bit(&self.asked, index) && !bit(&self.taken, index)
    }

    /// The next blocks in a row, from `from` on, that must be fetched.
    #[cfg(test)]
    pub fn missing(&self, from: u64) -> Option<Range<u64>> {
        let lacks = |index: &u64| self.lacks(*index);
        let start = (from..self.geometry.blocks()).find(lacks)?;
        let end = (start..self.geometry.blocks()).find(|index| !lacks(index));
        Some(start..end.unwrap_or(self.geometry.blocks()))
    }

    /// What must be fetched next: hash lists first, since without them nothing can be verified. `None` if all is here.
    pub fn wanted(&self) -> Option<Wanted> {
        let (what, length, piece, missing) = match &self.lists {
            Some(lists) if self.needs_lists() => {
                let missing = runs(lists.have.len() as u64, |n| !lists.have[n as usize]);
                let piece = u32::try_from(self.geometry.list_block()).unwrap_or(u32::MAX);
                (What::Lists(self.id), self.geometry.list_bytes(), piece, missing)
            }
            Some(_) | None => {
                let missing = runs(self.geometry.blocks(), |n| self.lacks(n));
                (What::Object(self.id), self.geometry.length(), self.geometry.block().bytes(), missing)
            }
        };
        (!missing.is_empty()).then_some(Wanted { what, length, piece, missing })
    }

    /// Takes a block, if it is the object's.
    ///
    /// # Errors
    /// The disk's, or that hash lists are missing.
    pub fn put(&mut self, index: u64, block: &[u8]) -> Result<Worth> {
        if bit(&self.taken, index) {
            return Ok(Worth::Known);
        }
        if self.geometry.blocks() == 1 && self.verifier.is_none() {
            // The list of a single block is its own hash.
            match Verifier::from_lists(self.id, self.geometry, &leaf(block)) {
                Ok(verifier) => {
                    self.disk.write(self.layout.lists, &leaf(block))?;
                    self.verifier = Some(verifier);
                }
                Err(error) => return Ok(Worth::Wrong(error.to_string())),
            }
        }
        let verifier = self.verifier.as_ref().context("blocks came before their hash lists")?;
        if let Err(error) = verifier.block(index, block) {
            return Ok(Worth::Wrong(error.to_string()));
        }
        self.disk.write(self.at(index), block)?;
        self.taken[usize::try_from(index / 8)?] |= 1 << (index % 8);
        self.pending.push(index);
        self.pending_bytes += block.len() as u64;
        Ok(Worth::New)
    }

    fn at(&self, index: u64) -> u64 {
        self.layout.data + index * u64::from(self.geometry.block().bytes())
    }

    /// Bytes taken since the last flush.
    pub fn unflushed(&self) -> u64 {
        let lists = self.lists.as_ref();
        let good = lists.and_then(|lists| Some(lists.reader.next()?.start - lists.unwritten as u64));
        self.pending_bytes + good.unwrap_or(0)
    }

    /// Makes the taken blocks durable, then the map that names them.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&mut self) -> Result<()> {
        let lists = self.write_lists()?;
        if self.pending.is_empty() {
            return if lists { self.disk.sync() } else { Ok(()) };
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
        let length = self.geometry.block_length(index).filter(|_| bit(&self.map, index));
        let mut block = vec![0; length.ok_or(Unreadable::Missing(index))?];
        self.disk.read(self.at(index), &mut block).map_err(Unreadable::Disk)?;
        if self.verifier.as_ref().is_some_and(|verifier| verifier.block(index, &block).is_ok()) {
            return Ok(block);
        }
        let byte = (index / 8) as usize;
        self.map[byte] &= !(1 << (index % 8));
        self.taken[byte] &= !(1 << (index % 8));
        self.write_map(&[byte / PAGE as usize].into()).map_err(Unreadable::Disk)?;
        Err(Unreadable::Missing(index))
    }
}

#[cfg(test)]
mod tests;
