//! A repository on the air: which of its files are broadcast, in which order, and how they leave. Receivers need no way
//! back; what they make of it is decided in `formats::link::cast`.

use super::pace::Pace;
use crate::release::folder::read_limited;
use crate::release::repository::Held;
use anyhow::{Context, Result, anyhow, ensure};
use formats::catalogue::{Catalogue, MAX_CATALOGUE_BYTES};
use formats::frame::{Frame, MAX_FRAME_BYTES};
use formats::hex::Digest;
use formats::keys::SIGNATURE_BYTES;
use formats::link::cast::Cut;
use formats::link::cast::code::ReedSolomon;
use formats::link::cast::index::{Entry, Index, MAX_ENTRIES, id_of, index_id};
use formats::link::cast::packet::{MAX_FILE, Packet};
use formats::link::cast::send::{Cast, pieces, symbol_for};
use formats::link::line::frame;
use formats::link::name::Name;
use formats::manifest::ObjectRef;
use formats::payload;
use formats::repository as names;
use formats::roles::{Chain, MAX_CHAIN_BYTES};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// After so many packets of casts follows one of what every receiver needs first.
const BETWEEN: usize = 8;
/// A cast of so few groups is sent several times a round: a fade must not take all of it.
const FEW_GROUPS: u32 = 4;
const TIMES: u32 = 4;
/// Bytes of IP and UDP before a packet.
const HEADERS: usize = 28;

/// Signs heads.
pub type Sign<'s> = dyn Fn(&[u8]) -> [u8; SIGNATURE_BYTES] + 's;

/// A file of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: Name,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of what changes under its name; `None` where the name says what it holds.
    pub contents: Option<Digest>,
}

/// What of a repository can be broadcast.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Announcements, by name.
    pub frames: BTreeMap<Name, Vec<u8>>,
    /// Root documents.
    pub roots: Vec<u8>,
    /// Casts with their bytes, the most wanted first.
    pub files: Vec<Listed>,
    /// What is too long, or too much.
    pub left_out: Vec<Listed>,
}

impl Inventory {
    /// Looks what a repository holds. Of payloads only those that `objects` names, if it names any.
    ///
    /// # Errors
    /// If a file cannot be read, or a release is damaged.
    pub fn of(repo: &Path, roots: &[u8], objects: &[Digest]) -> Result<Self> {
        let chain = Chain::parse(roots).context("read the root documents")?;
        let mut found = Self { roots: roots.to_vec(), ..Self::default() };
        found.announcements(repo)?;
        let mut small: Vec<Name> = Vec::new();
        let mut payloads: BTreeMap<Digest, ObjectRef> = BTreeMap::new();
        for frame in found.frames.values() {
            let said = Frame::parse(frame).context("read an announcement")?.unverified().clone();
            let wave = Name::from_path(&names::wave(&said.target, said.channel, said.scope));
            small.extend(wave.filter(|wave| repo.join(wave.path()).exists()));
            let held = Held::open(repo, said)?;
            small.push(Name::Object(held.said.manifest));
            let own = held.manifest.payloads.iter().filter_map(payload::Entry::known);
            payloads.extend(own.map(|payload| (payload.object.id, payload.object)));
            for (name, bytes) in catalogues(repo, &held.said.manifest)? {
                // One that is not good is not broadcast: receivers would not take it.
                let opened = Catalogue::open(&bytes, chain.newest(), &held.said.manifest, &held.manifest);
                let Ok(catalogue) = opened else { continue };
                small.push(name);
                let more = catalogue.payloads.iter().filter_map(payload::Entry::known);
                payloads.extend(more.map(|payload| (payload.object.id, payload.object)));
            }
        }
        let chosen: BTreeSet<Digest> = match objects {
            [] => payloads.into_keys().collect(),
            [..] => objects.iter().copied().collect(),
        };
        let lists = chosen.iter().map(|id| Name::Lists(*id)).filter(|name| repo.join(name.path()).exists());
        small.extend(lists);
        let large = chosen.iter().map(|id| listed(repo, Name::Object(*id)));
        let mut large = large.collect::<Result<Vec<_>>>()?;
        large.sort_by_key(|file| (file.bytes, file.name));
        let mut once = BTreeSet::new();
        small.retain(|name| once.insert(*name));
        let small = small.into_iter().map(|name| listed(repo, name)).collect::<Result<Vec<_>>>()?;
        for file in small.into_iter().chain(large) {
            let fits =
                u32::try_from(file.bytes).ok().and_then(|bytes| Cut::new(bytes, symbol_for(bytes as usize)));
            match fits {
                Some(_) if found.files.len() < MAX_ENTRIES => found.files.push(file),
                Some(_) | None => found.left_out.push(file),
            }
        }
        Ok(found)
    }

    fn announcements(&mut self, repo: &Path) -> Result<()> {
        let single = repo.join(names::ANNOUNCE);
        if single.exists() {
            self.frames.insert(Name::Announce, read_limited(&single, MAX_FRAME_BYTES as u64)?);
        }
        let folder = repo.join(names::ANNOUNCEMENTS);
        for entry in folder.exists().then(|| fs::read_dir(&folder)).into_iter().flatten().flatten() {
            let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
            let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(name) = Name::from_path(&format!("{}/{file}", names::ANNOUNCEMENTS)) {
                self.frames.insert(name, read_limited(&path, MAX_FRAME_BYTES as u64)?);
            }
        }
        Ok(())
    }
}

fn listed(repo: &Path, name: Name) -> Result<Listed> {
    let path = repo.join(name.path());
    let facts = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
    let contents = match name {
        Name::Object(_) | Name::Lists(_) => None,
        Name::Wave(..) | Name::Catalogue(..) | Name::CatalogueAny(_) => Some(MAX_CATALOGUE_BYTES),
        // These are no casts.
        Name::Announce | Name::Roots | Name::Announcement(..) => None,
    };
    let contents = contents.map(|most| read_limited(&path, most as u64)).transpose()?;
    let contents = contents.map(|bytes| Digest(Sha256::digest(bytes).into()));
    Ok(Listed { name, bytes: facts.len(), contents })
}

fn catalogues(repo: &Path, manifest: &Digest) -> Result<Vec<(Name, Vec<u8>)>> {
    let folder = repo.join(names::CATALOGUES).join(manifest.to_string());
    let mut found = Vec::new();
    for entry in folder.exists().then(|| fs::read_dir(&folder)).into_iter().flatten().flatten() {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(name) = Name::from_path(&format!("{}/{manifest}/{file}", names::CATALOGUES)) {
            found.push((name, read_limited(&path, MAX_CATALOGUE_BYTES as u64)?));
        }
    }
    found.sort();
    Ok(found)
}

/// Everything that is on the air at a time, ready to be sent.
pub struct Programme {
    casts: Vec<(Entry, Listed, Rc<Cast>)>,
    /// What every receiver needs first, said again and again.
    first: Vec<Packet>,
    made_s: u64,
}

impl Programme {
    /// Codes, hashes and signs; what an earlier programme has is taken over.
    ///
    /// # Errors
    /// If a file cannot be read or cast.
    pub fn new(repo: &Path, inventory: &Inventory, sign: &Sign<'_>, old: Option<&Self>) -> Result<Self> {
        let before = old.map_or(0, |old| old.made_s);
        let had: &[_] = old.map_or(&[], |old| &old.casts);
        let mut casts = Vec::new();
        for file in &inventory.files {
            casts.push(match had.iter().find(|(_, was, _)| was == file) {
                Some(same) => same.clone(),
                None => cast(repo, *file, sign)?,
            });
        }
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs();
        let made_s = now_s.max(before + 1);
        let index = Index { made_s, entries: casts.iter().map(|(entry, ..)| *entry).collect() }.encode();
        let index = Cast::new(index_id(), &index, symbol_for(index.len()), &ReedSolomon, sign)
            .map_err(|why| anyhow!(why))?;
        let frames = inventory.frames.iter().flat_map(|(name, frame)| pieces(*name, frame));
        ensure!(
            inventory.roots.len() <= (MAX_FILE as usize).min(MAX_CHAIN_BYTES),
            "the root documents are too long"
        );
        let first = frames
            .chain(pieces(Name::Roots, &inventory.roots))
            .chain((0..index.groups()).flat_map(|group| index.group(group)))
            .collect();
        Ok(Self { casts, first, made_s })
    }

    /// Casts and their groups in the order of a round: each spread over all of it.
    fn order(&self) -> Vec<(usize, u32)> {
        let several = self.casts.iter().any(|(.., cast)| cast.groups() > FEW_GROUPS);
        let mut order: Vec<(f64, usize, u32)> = Vec::new();
        for (number, (.., cast)) in self.casts.iter().enumerate() {
            let groups = cast.groups();
            let times = if several && groups <= FEW_GROUPS { TIMES } else { 1 };
            let all = groups * times;
            order.extend((0..all).map(|n| ((f64::from(n) + 0.5) / f64::from(all), number, n % groups)));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        order.into_iter().map(|(_, number, group)| (number, group)).collect()
    }

    /// Sends a round; `sent` is told how many of its groups are done.
    ///
    /// # Errors
    /// The transmitter's.
    pub fn round(&self, air: &mut Air, sent: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let order = self.order();
        let mut first = self.first.iter().cycle();
        let mut next = |air: &mut Air| first.next().map_or(Ok(()), |packet| air.send(&packet.encode()));
        if order.is_empty() {
            return (0..self.first.len()).try_for_each(|_| next(air));
        }
        // Who has heard nothing yet knows at once what comes.
        (0..self.first.len()).try_for_each(|_| next(air))?;
        for (n, (number, group)) in order.iter().enumerate() {
            for (at, packet) in self.casts[*number].2.group(*group).into_iter().enumerate() {
                if at % BETWEEN == BETWEEN - 1 {
                    next(air)?;
                }
                air.send(&packet.encode())?;
            }
            sent(n as u64 + 1, order.len() as u64);
        }
        Ok(())
    }

    /// Bytes of a round on the air, headers counted.
    pub fn round_bytes(&self, air: &Air) -> u64 {
        let size = |packet: &Packet| air.bytes(packet.encode().len()) as u64;
        let all: u64 = self
            .order()
            .iter()
            .map(|(number, group)| self.casts[*number].2.group(*group).iter().map(size).sum::<u64>())
            .sum();
        let packets: usize = self
            .order()
            .iter()
            .map(|(number, group)| self.casts[*number].2.group(*group).len() / BETWEEN)
            .sum();
        let first: u64 = self.first.iter().map(size).sum();
        all + first + first * packets as u64 / (self.first.len() as u64).max(1)
    }
}

fn cast(repo: &Path, file: Listed, sign: &Sign<'_>) -> Result<(Entry, Listed, Rc<Cast>)> {
    let path = repo.join(file.name.path());
    let bytes = read_limited(&path, file.bytes)?;
    let same = file.contents.is_none_or(|digest| digest.0 == *Sha256::digest(&bytes));
    ensure!(same, "{} has just changed", path.display());
    let cast = Cast::new(id_of(&file.name), &bytes, symbol_for(bytes.len()), &ReedSolomon, sign)
        .map_err(|why| anyhow!(why))
        .with_context(|| format!("broadcast {}", path.display()))?;
    let entry = Entry { name: file.name, tag: cast.tag(), length: bytes.len() as u32 };
    Ok((entry, file, Rc::new(cast)))
}

/// How packets leave.
pub enum Medium {
    /// As datagrams to an address.
    Udp(std::net::UdpSocket, std::net::SocketAddrV4),
    /// As frames on a line.
    Serial(Box<dyn tokio_serial::SerialPort>),
}

/// A transmitter with its rate.
pub struct Air {
    medium: Medium,
    pace: Pace,
    begun: Instant,
    /// Packets that could not be sent.
    pub failed: u64,
}

impl Air {
    /// A transmitter of so many bits a second.
    pub fn new(medium: Medium, bits_per_s: u64) -> Self {
        Self { medium, pace: Pace::new(bits_per_s), begun: Instant::now(), failed: 0 }
    }

    /// What a packet takes. A serial line has a start and a stop bit, which its rate accounts for.
    fn bytes(&self, packet: usize) -> usize {
        match self.medium {
            Medium::Udp(..) => packet + HEADERS,
            Medium::Serial(_) => packet + 4 + packet / 254 + 2,
        }
    }

    fn send(&mut self, packet: &[u8]) -> Result<()> {
        let wait = self.pace.take(self.begun.elapsed(), self.bytes(packet.len()));
        if wait > Duration::ZERO {
            std::thread::sleep(wait);
        }
        match &mut self.medium {
            // A network that is down for a while loses packets, as the air does.
            Medium::Udp(socket, to) => {
                if let Err(error) = socket.send_to(packet, *to) {
                    if self.failed == 0 {
                        eprintln!("farhold: a packet to {to} was not sent: {error}");
                    }
                    self.failed += 1;
                }
                Ok(())
            }
            Medium::Serial(port) => port.write_all(&frame(packet)).context("write to the line"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_under_its_name_is_cast_anew_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: Name, bytes: &[u8]| {
            let path = folder.path().join(name.path());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        let (wave, catalogue) = (Name::Wave([1; 8], 0, [0; 8]), Name::CatalogueAny(Digest([2; 32])));
        let all = [wave, catalogue, Name::Object(Digest([3; 32]))];
        all.iter().for_each(|name| put(*name, &[1; 35]));
        let look = || {
            let files = all.iter().map(|name| listed(folder.path(), *name)).collect::<Result<_>>().unwrap();
            Inventory { files, ..Inventory::default() }
        };
        let sign: &Sign<'_> = &|_| [0; SIGNATURE_BYTES];
        let tags =
            |programme: &Programme| programme.casts.iter().map(|(entry, ..)| entry.tag).collect::<Vec<_>>();
        let first = look();
        let old = Programme::new(folder.path(), &first, sign, None).unwrap();
        assert_eq!(look(), first);
        for (n, name) in [wave, catalogue].into_iter().enumerate() {
            let before = look();
            let old = Programme::new(folder.path(), &before, sign, Some(&old)).unwrap();
            // As long as before.
            put(name, &[7; 35]);
            let now = look();
            assert_ne!(now, before, "{name:?}");
            let new = Programme::new(folder.path(), &now, sign, Some(&old)).unwrap();
            let (old, new) = ((tags(&old), old), (tags(&new), new));
            let changed: Vec<usize> = (0..3).filter(|at| old.0[*at] != new.0[*at]).collect();
            assert_eq!((changed, new.1.made_s > old.1.made_s), (vec![n], true), "{name:?}");
            assert!(Rc::ptr_eq(&old.1.casts[2].2, &new.1.casts[2].2), "the payload is not coded again");
        }
        // Somebody else changes a file between look and cast: neither state is broadcast as the other.
        let seen = look();
        put(wave, &[8; 35]);
        assert!(Programme::new(folder.path(), &seen, sign, Some(&old)).is_err());
    }
}
