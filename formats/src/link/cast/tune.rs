//! Who takes in all that is on the air: announcements, root documents, the index, and what that lists. Memory and room are
//! bounded whatever comes: only what the catalogue key signed gets a place, and signatures are checked so often a second
//! at most.
//!
//! What names no cast of the index costs a hash and is forgotten; so do old casts that somebody replays, once today's
//! index is known.

use super::catch::Catch;
use super::code::ReedSolomon;
use super::index::{Entry, Index, MAX_BYTES, id_of, index_id};
use super::packet::{Head, Packet, Tag, tag};
use super::store::{Memory, Store};
use crate::frame::{Frame, MAX_FRAME_BYTES};
use crate::link::name::Name;
use crate::roles::{Chain, MAX_CHAIN_BYTES, Root};
use crate::trust::{self, Rank};
use std::collections::BTreeMap;
use std::ops::Range;

/// Symbols that wait for their hashes, of all casts together: a forger can displace these, no others.
const WAITING_MAX: usize = 2048;
/// Signatures of a kind that are checked in a second.
const CHECKS: u32 = 20;
/// Indexes that are taken in at once: today's, and the one that takes its place.
const INDEXES: usize = 4;
/// Announcements that are kept.
const FRAMES: usize = 8;
/// Today's index, once nothing of it was heard for so long, gives way to an older one: a sender's clock was put right.
const STALE_MS: u64 = 600_000;
const PIECE: usize = 1024;

/// Gives a place for so many bytes; none if there is no room.
pub trait Room {
    /// What it gives.
    type Place: Store;
    /// A place for a cast of so many bytes.
    ///
    /// # Errors
    /// In words.
    fn place(&mut self, bytes: u64) -> Result<Self::Place, String>;
}

/// What a packet brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing, or some of what is not complete.
    Little,
    /// An announcement that was not known.
    Announced,
    /// A cast is complete.
    Complete(Name),
}

/// Lets through so many a second.
#[derive(Clone, Copy, Debug, Default)]
struct Gate {
    second: u64,
    let_through: u32,
}

impl Gate {
    fn open(&mut self, now_ms: u64) -> bool {
        if self.second != now_ms / 1000 {
            *self = Self { second: now_ms / 1000, let_through: 0 };
        }
        self.let_through += 1;
        self.let_through <= CHECKS
    }
}

/// Root documents, piece by piece. Not verified until they are whole.
#[derive(Clone, Debug, Default)]
struct Roots {
    bytes: Vec<u8>,
    has: Vec<bool>,
}

/// A receiver.
pub struct Tuner<R: Room> {
    root: Root,
    chain: Option<Vec<u8>>,
    roots: Roots,
    frames: BTreeMap<Name, (Rank, Vec<u8>)>,
    /// Whose announcements are kept.
    names: Vec<Name>,
    indexes: Vec<Catch<Memory>>,
    index: Option<(Tag, Index)>,
    heard_ms: u64,
    room: R,
    most: u64,
    catches: BTreeMap<Tag, (Name, Catch<R::Place>)>,
    wanted: Option<Name>,
    gates: [Gate; 3],
    /// Why a cast that is on the air is not taken in.
    pub full: Option<String>,
}

impl<R: Room> Tuner<R> {
    /// Trusts a root document and what it leads to; keeps announcements with these names, and casts of at most `most`
    /// bytes together.
    pub fn new(root: Root, names: Vec<Name>, room: R, most: u64) -> Self {
        Self {
            root,
            chain: None,
            roots: Roots::default(),
            frames: BTreeMap::new(),
            names,
            indexes: Vec::new(),
            index: None,
            heard_ms: 0,
            room,
            most,
            catches: BTreeMap::new(),
            wanted: None,
            gates: Default::default(),
            full: None,
        }
    }

    /// Takes what came over the air.
    pub fn take(&mut self, bytes: &[u8], now_ms: u64) -> News {
        match Packet::parse(bytes) {
            None => News::Little,
            Some(Packet::Head(head)) => {
                self.head(&head, now_ms);
                News::Little
            }
            Some(Packet::Page(tag, level, index, page)) => {
                if let Some((_, catch)) = self.catches.get_mut(&tag) {
                    catch.page(level.into(), index, &page);
                } else if let Some(catch) = self.indexes.iter_mut().find(|catch| catch.tag() == tag) {
                    catch.page(level.into(), index, &page);
                }
                self.settle(tag, now_ms)
            }
            Some(Packet::Symbol(tag, index, symbol)) => {
                let waiting: usize = self.catches.values().map(|(_, catch)| catch.waiting()).sum();
                let room = WAITING_MAX.saturating_sub(waiting);
                if let Some((_, catch)) = self.catches.get_mut(&tag) {
                    catch.symbol(index, &symbol, room);
                } else if let Some(catch) = self.indexes.iter_mut().find(|catch| catch.tag() == tag) {
                    catch.symbol(index, &symbol, 0);
                }
                self.settle(tag, now_ms)
            }
            Some(Packet::File(Name::Roots, length, at, part)) => {
                self.roots(length as usize, at as usize, &part, now_ms);
                News::Little
            }
            Some(Packet::File(name, length, 0, frame)) if length as usize == frame.len() => {
                self.frame(name, &frame, now_ms)
            }
            Some(Packet::File(..)) => News::Little,
        }
    }

    fn head(&mut self, bytes: &[u8], now_ms: u64) {
        let tag = tag(bytes);
        self.heard(tag, now_ms);
        if self.catches.contains_key(&tag) || self.indexes.iter().any(|catch| catch.tag() == tag) {
            return;
        }
        if Head::claims(bytes) == Some(index_id()) {
            if self.gates[0].open(now_ms)
                && let Some(head) = Head::open(bytes, self.root.catalogue)
                && head.cut.length as usize <= MAX_BYTES
            {
                if self.indexes.len() == INDEXES {
                    // Today's stays: it says what is old.
                    let today = self.index.as_ref().map(|(tag, _)| *tag);
                    let oldest = self.indexes.iter().position(|catch| Some(catch.tag()) != today);
                    self.indexes.remove(oldest.unwrap_or(0));
                }
                self.indexes.extend(Catch::new(tag, head, Memory::default()));
            }
            return;
        }
        let listed = self.entries().iter().find(|entry| entry.tag == tag).copied();
        let Some(entry) = listed else { return };
        let head = Head::open(bytes, self.root.catalogue);
        let head = head.filter(|head| head.object == id_of(&entry.name) && head.cut.length == entry.length);
        if let Some(head) = head
            && self.make_room(&entry)
        {
            match self.room.place(entry.length.into()) {
                Ok(place) => {
                    let catch = Catch::new(tag, head, place);
                    self.catches.extend(catch.map(|catch| (tag, (entry.name, catch))));
                }
                Err(why) => self.full = Some(why),
            }
        }
    }

    fn heard(&mut self, tag: Tag, now_ms: u64) {
        if self.index.as_ref().is_some_and(|(today, _)| *today == tag) {
            self.heard_ms = now_ms;
        }
    }

    fn entries(&self) -> &[Entry] {
        self.index.as_ref().map_or(&[], |(_, index)| &index.entries)
    }

    /// Whether there is room for a cast; what is wanted displaces others.
    fn make_room(&mut self, entry: &Entry) -> bool {
        let needs = u64::from(entry.length);
        let wanted = self.wanted == Some(entry.name);
        loop {
            let taken: u64 = self.catches.values().map(|(_, catch)| u64::from(catch.head().cut.length)).sum();
            if taken + needs <= self.most {
                return true;
            }
            let others = self.catches.iter().filter(|(_, (name, _))| Some(*name) != self.wanted);
            let largest = others.max_by_key(|(_, (_, catch))| catch.head().cut.length).map(|(tag, _)| *tag);
            match largest.filter(|_| wanted && needs <= self.most) {
                Some(tag) => drop(self.catches.remove(&tag)),
                None => {
                    self.full = Some(format!("{} takes more room than there is", entry.name.path()));
                    return false;
                }
            }
        }
    }

    /// What a packet of this cast may have completed.
    fn settle(&mut self, tag: Tag, now_ms: u64) -> News {
        self.heard(tag, now_ms);
        if let Some((name, catch)) = self.catches.get_mut(&tag) {
            let before = catch.restored();
            if let Err(why) = catch.restore(&ReedSolomon) {
                self.full = Some(why);
            }
            return if catch.restored() && !before { News::Complete(*name) } else { News::Little };
        }
        let Some(catch) = self.indexes.iter_mut().find(|catch| catch.tag() == tag && !catch.restored())
        else {
            return News::Little;
        };
        if catch.restore(&ReedSolomon).is_err() || !catch.restored() {
            return News::Little;
        }
        let length = catch.head().cut.length;
        let Some(Ok(bytes)) = catch.read(&(0..length.into())) else { return News::Little };
        if let Some(index) = Index::parse(&bytes) {
            self.adopt(tag, index, now_ms);
        }
        News::Little
    }

    /// Takes an index for today's, if it is newer: old ones may be replays.
    fn adopt(&mut self, tag: Tag, index: Index, now_ms: u64) {
        let stale = now_ms.saturating_sub(self.heard_ms) >= STALE_MS;
        if self.index.as_ref().is_some_and(|(_, today)| index.made_s <= today.made_s && !stale) {
            return;
        }
        self.catches.retain(|tag, _| index.entries.iter().any(|entry| entry.tag == *tag));
        self.index = Some((tag, index));
        self.heard_ms = now_ms;
    }

    fn frame(&mut self, name: Name, frame: &[u8], now_ms: u64) -> News {
        let known = self.frames.get(&name);
        let wanted = match name {
            Name::Announce | Name::Announcement(..) => self.names.contains(&name),
            Name::Roots | Name::Object(_) | Name::Lists(_) => false,
            // Waves are casts, which the catalogue key signs: only so can the air say that there is none.
            Name::Catalogue(..) | Name::CatalogueAny(_) | Name::Wave(..) => false,
        };
        if !wanted || frame.len() > MAX_FRAME_BYTES || known.is_some_and(|(_, known)| known == frame) {
            return News::Little;
        }
        let Ok(parsed) = Frame::parse(frame) else { return News::Little };
        let rank = Rank::of(parsed.unverified());
        let newer = known.is_none_or(|(known, _)| rank >= *known);
        let room = known.is_some() || self.frames.len() < FRAMES;
        if !newer || !room || !self.gates[1].open(now_ms) || trust::authenticate(frame, &self.root).is_err() {
            return News::Little;
        }
        self.frames.insert(name, (rank, frame.to_vec()));
        News::Announced
    }

    fn roots(&mut self, length: usize, at: usize, part: &[u8], now_ms: u64) {
        let fits = length <= MAX_CHAIN_BYTES && at.is_multiple_of(PIECE) && at + part.len() <= length;
        if !fits || (part.len() != PIECE && at + part.len() != length) {
            return;
        }
        if self.roots.bytes.len() != length {
            self.roots = Roots { bytes: vec![0; length], has: vec![false; length.div_ceil(PIECE)] };
        }
        self.roots.bytes[at..at + part.len()].copy_from_slice(part);
        self.roots.has[at / PIECE] = true;
        if !self.roots.has.iter().all(|has| *has) {
            return;
        }
        let whole = std::mem::take(&mut self.roots).bytes;
        if self.chain.as_ref() == Some(&whole) || !self.gates[2].open(now_ms) {
            return;
        }
        let newest = Chain::parse(&whole).and_then(|chain| chain.follow(&self.root));
        if let Ok(newest) = newest {
            if newest.version > self.root.version {
                self.indexes.clear();
                self.root = newest;
            }
            self.chain = Some(whole);
        }
    }

    /// The chain of root documents, if it came.
    pub fn chain(&self) -> Option<&[u8]> {
        self.chain.as_deref()
    }

    /// The newest announcement under a name, if one came.
    pub fn announcement(&self, name: &Name) -> Option<&[u8]> {
        self.frames.get(name).map(|(_, frame)| frame.as_slice())
    }

    /// Whether something is on the air; `None` as long as no index came.
    pub fn on_air(&self, name: &Name) -> Option<bool> {
        self.index.as_ref().map(|(_, index)| index.entries.iter().any(|entry| entry.name == *name))
    }

    /// Casts that are on the air.
    pub fn casts(&self) -> usize {
        self.entries().len()
    }

    /// Right symbols so far: grows as long as something of use comes.
    pub fn kept(&self) -> u64 {
        let casts = self.catches.values().map(|(_, catch)| catch.tally.kept);
        casts.chain(self.indexes.iter().map(|catch| catch.tally.kept)).sum()
    }

    /// Takes this in before anything else.
    pub fn want(&mut self, name: Name) {
        self.wanted = Some(name);
    }

    /// What came of a cast so far.
    pub fn catch(&self, name: &Name) -> Option<&Catch<R::Place>> {
        self.catches.values().find(|(of, _)| of == name).map(|(_, catch)| catch)
    }

    /// Bytes of a file, if they are here.
    ///
    /// # Errors
    /// The store's, in words.
    pub fn read(&self, name: &Name, range: &Range<u64>) -> Option<Result<Vec<u8>, String>> {
        self.catch(name)?.read(range)
    }

    /// Takes bytes of an object that came over another carrier, verified there.
    pub fn repair(&mut self, name: &Name, start: u64, bytes: &[u8]) -> bool {
        let Some((_, catch)) = self.catches.values_mut().find(|(of, _)| of == name) else { return false };
        catch.repair(start, bytes);
        if let Err(why) = catch.restore(&ReedSolomon) {
            self.full = Some(why);
        }
        catch.restored()
    }
}
