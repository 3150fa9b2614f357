//! Reads a FAT32 volume as firmware does: first table, first folder entry of a name, long names where they are whole.
//!
//! Strict: whatever a driver could stumble over is an error of the file or folder that has it. Follows Microsoft's
//! "FAT: General Overview of On-Disk Format" 1.03. Knows nothing of boot entries.

use crate::power_cut::volume::{Contents, SECTOR, Sector, Volume};
use std::fmt;

/// Bytes of an entry of a folder.
const ENTRY: usize = 32;
const LONG_NAME: u8 = 0x0f;
const FOLDER: u8 = 0x10;
const LABEL: u8 = 0x08;
const DELETED: u8 = 0xe5;
/// Links from here on end a chain.
const END: u32 = 0x0fff_fff8;
const LINK: u32 = 0x0fff_ffff;
/// Entries per sector of a table.
const LINKS: u32 = SECTOR as u32 / 4;
/// Most folders of a volume; a damaged one may have folders in circles.
const FOLDERS_MAX: usize = 64;
/// Characters in one part of a long name.
const PART: usize = 13;

/// Where things lie. All of it stands in the boot sector, of which a transition changes only the "dirty" mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Sectors of a cluster.
    pub cluster: u32,
    reserved: u32,
    table: u32,
    tables: u32,
    root: u32,
    /// Number of clusters; the first has number 2.
    pub clusters: u32,
}

/// What is wrong with a file or folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Its chain of clusters ends early, or runs over a free or impossible one.
    Chain {
        /// Clusters that can be read.
        readable: usize,
    },
    /// A folder has a sector that is no folder's.
    Folder,
    /// There is no such file.
    Absent,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain { readable } => write!(f, "its chain breaks after {readable} clusters"),
            Self::Folder => f.write_str("its folder holds something else"),
            Self::Absent => f.write_str("it is not there"),
        }
    }
}

/// A name in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Long name, or the short one where the long one is torn.
    pub name: String,
    /// Whether there is a long name that does not belong to it, or parts of one.
    pub torn: bool,
    /// Whether it is a folder.
    pub folder: bool,
    /// First cluster; 0 for an empty file.
    pub first: u32,
    /// Length in bytes.
    pub bytes: u32,
}

/// A chain of clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Clusters that can be read, in order.
    pub clusters: Vec<u32>,
    /// Whether it ends as it must.
    pub ends: bool,
}

impl Geometry {
    /// Reads a boot sector; `None` if it is not that of a FAT32 volume with sectors of 512 bytes.
    pub fn parse(boot: &Sector) -> Option<Self> {
        let short = |at: usize| u32::from(u16::from_le_bytes([boot[at], boot[at + 1]]));
        let long = |at: usize| u32::from_le_bytes([boot[at], boot[at + 1], boot[at + 2], boot[at + 3]]);
        let geometry = Self {
            cluster: u32::from(boot[13]),
            reserved: short(14),
            table: long(36),
            tables: u32::from(boot[16]),
            root: long(44),
            clusters: 0,
        };
        let sane = short(11) as usize == SECTOR
            && short(22) == 0
            && geometry.cluster > 0
            && geometry.tables > 0
            && boot[510..] == [0x55, 0xaa];
        let before = geometry.tables.checked_mul(geometry.table)?.checked_add(geometry.reserved)?;
        let clusters = long(32).checked_sub(before)?.checked_div(geometry.cluster)?;
        let covered = geometry.table.checked_mul(LINKS)?.checked_sub(2)?;
        sane.then_some(Self { clusters: clusters.min(covered), ..geometry })
    }

    /// First sector of a cluster.
    pub fn sector(&self, cluster: u32) -> u32 {
        self.reserved + self.tables * self.table + (cluster - 2) * self.cluster
    }

    fn holds(&self, cluster: u32) -> bool {
        (2..self.clusters + 2).contains(&cluster)
    }
}

/// A volume, read.
#[derive(Clone, Copy, Debug)]
pub struct Fat<'v> {
    /// Where things lie.
    pub geometry: Geometry,
    volume: &'v Volume,
    contents: &'v Contents,
}

impl<'v> Fat<'v> {
    /// Opens a volume; `None` if its boot sector is none.
    pub fn open(volume: &'v Volume, contents: &'v Contents) -> Option<Self> {
        let geometry = Geometry::parse(contents.bytes(volume.at(0))?)?;
        Some(Self { geometry, volume, contents })
    }

    /// The chain that starts at a cluster; 0 starts none.
    pub fn chain(&self, first: u32) -> Chain {
        let mut clusters = Vec::new();
        if first == 0 {
            return Chain { clusters, ends: true };
        }
        let mut cluster = first;
        // The sector of the table that was read last.
        let mut held: (u32, Option<&Sector>) = (u32::MAX, None);
        while self.geometry.holds(cluster) && clusters.len() < self.geometry.clusters as usize {
            let sector = self.geometry.reserved + cluster / LINKS;
            if held.0 != sector {
                held = (sector, self.contents.bytes(self.volume.at(sector)));
            }
            let link = held.1.map_or(0, |bytes| {
                let at = (cluster % LINKS) as usize * 4;
                u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) & LINK
            });
            // A driver reads a cluster before it looks for the next; of a free one only if it stands first.
            if link == 0 && !clusters.is_empty() {
                break;
            }
            clusters.push(cluster);
            if link >= END {
                return Chain { clusters, ends: true };
            }
            cluster = link;
        }
        Chain { clusters, ends: false }
    }

    /// The names in a folder.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn list(&self, folder: u32) -> Result<Vec<Found>, Damage> {
        let chain = self.chain(folder);
        let mut names = Names::default();
        for cluster in &chain.clusters {
            let first = self.geometry.sector(*cluster);
            for sector in first..first + self.geometry.cluster {
                let bytes = self.contents.bytes(self.volume.at(sector)).ok_or(Damage::Folder)?;
                for entry in bytes.as_chunks::<ENTRY>().0 {
                    if entry[0] == 0 {
                        return Ok(names.found);
                    }
                    names.add(entry);
                }
            }
        }
        if chain.ends { Ok(names.found) } else { Err(Damage::Chain { readable: chain.clusters.len() }) }
    }

    /// The names in the folder of that path, as `EFI/Linux`; names are compared without case.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn folder(&self, path: &str) -> Result<Vec<Found>, Damage> {
        self.list(self.first_cluster(path)?)
    }

    /// The first cluster of the folder of that path.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn first_cluster(&self, path: &str) -> Result<u32, Damage> {
        let mut cluster = self.geometry.root;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let names = self.list(cluster)?;
            let found = names.iter().find(|found| found.folder && found.name.eq_ignore_ascii_case(part));
            cluster = found.ok_or(Damage::Absent)?.first;
        }
        Ok(cluster)
    }

    /// The file of that path.
    ///
    /// # Errors
    /// [`Damage`].
    pub fn file(&self, path: &str) -> Result<Found, Damage> {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let names = self.folder(folder)?;
        let is = |found: &Found| !found.folder && found.name.eq_ignore_ascii_case(name);
        names.into_iter().find(is).ok_or(Damage::Absent)
    }
}

impl Fat<'_> {
    /// All files with their paths, as far as folders can be read.
    pub fn files(&self) -> Vec<(String, Found)> {
        let mut files = Vec::new();
        let mut folders = vec![(String::new(), self.geometry.root)];
        for _ in 0..FOLDERS_MAX {
            let Some((path, first)) = folders.pop() else { break };
            for found in self.list(first).unwrap_or_default() {
                let below = format!("{path}{}", found.name);
                match found.folder {
                    true if found.name.starts_with('.') => {}
                    true => folders.push((below + "/", found.first)),
                    false => files.push((below, found)),
                }
            }
        }
        files
    }
}

/// Entries of a folder being put together.
#[derive(Default)]
struct Names {
    found: Vec<Found>,
    /// Parts of a long name, the last first; checksum; number of the part that must follow.
    parts: Vec<[u16; PART]>,
    checksum: u8,
    next: u8,
    torn: bool,
}

impl Names {
    fn add(&mut self, entry: &[u8; ENTRY]) {
        if entry[0] == DELETED {
            self.torn |= !self.parts.is_empty();
            self.parts.clear();
        } else if entry[11] == LONG_NAME {
            self.part(entry);
        } else {
            let whole = !self.parts.is_empty() && self.next == 0 && self.checksum == checksum(entry);
            let torn = self.torn || (!self.parts.is_empty() && !whole);
            let name = if whole { self.long() } else { short(entry) };
            self.parts.clear();
            self.torn = false;
            if entry[11] & LABEL == 0 {
                let half = |at: usize| u32::from(u16::from_le_bytes([entry[at], entry[at + 1]]));
                let bytes = u32::from_le_bytes([entry[28], entry[29], entry[30], entry[31]]);
                let (folder, first) = (entry[11] & FOLDER != 0, half(20) << 16 | half(26));
                self.found.push(Found { name, torn, folder, first, bytes });
            }
        }
    }

    fn part(&mut self, entry: &[u8; ENTRY]) {
        let number = entry[0] & 0x3f;
        let follows = number > 0 && number == self.next && entry[13] == self.checksum;
        if entry[0] & 0x40 != 0 {
            self.torn |= !self.parts.is_empty();
            self.parts.clear();
            self.checksum = entry[13];
        } else if !follows {
            self.torn = true;
            self.parts.clear();
            return;
        }
        self.next = number.saturating_sub(1);
        let mut part = [0; PART];
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (unit, at) in part.iter_mut().zip(places) {
            *unit = u16::from_le_bytes([entry[at], entry[at + 1]]);
        }
        self.parts.push(part);
    }

    fn long(&self) -> String {
        let units = self.parts.iter().rev().flatten().copied().take_while(|unit| *unit != 0);
        String::from_utf16_lossy(&units.collect::<Vec<_>>())
    }
}

fn checksum(entry: &[u8; ENTRY]) -> u8 {
    entry[..11].iter().fold(0u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte))
}

fn short(entry: &[u8; ENTRY]) -> String {
    let text = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if lower { text.to_lowercase() } else { text }
    };
    let (base, extension) = (text(&entry[..8], entry[12] & 8 != 0), text(&entry[8..11], entry[12] & 16 != 0));
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::power_cut::volume::ZERO;
    use std::io::{Cursor, Write};

    /// A volume that the `fatfs` crate made, every sector with its bytes.
    pub fn made(files: &[(&str, usize)]) -> (Volume, Contents) {
        let mut disk = Cursor::new(vec![0u8; 40 << 20]);
        let options =
            fatfs::FormatVolumeOptions::new().fat_type(fatfs::FatType::Fat32).bytes_per_cluster(512);
        fatfs::format_volume(&mut disk, options).unwrap();
        disk.set_position(0);
        {
            let fs = fatfs::FileSystem::new(&mut disk, fatfs::FsOptions::new()).unwrap();
            fs.root_dir().create_dir("EFI").unwrap();
            fs.root_dir().create_dir("EFI/Linux").unwrap();
            for (name, bytes) in files {
                fs.root_dir().create_file(name).unwrap().write_all(&vec![1; *bytes]).unwrap();
            }
        }
        let (mut blobs, mut volume) = (Vec::new(), Volume::new(disk.get_ref().len() / SECTOR));
        for (n, sector) in disk.get_ref().as_chunks::<SECTOR>().0.iter().enumerate() {
            if sector.iter().any(|byte| *byte != 0) {
                blobs.push(*sector);
                volume.apply(&[(n as u32, blobs.len() as u32)]);
            }
        }
        (volume, Contents::new(blobs))
    }

    #[test]
    fn files_of_another_implementation_are_read() {
        let (volume, contents) =
            made(&[("EFI/Linux/1.0.0_0123abcd+3.efi", 5000), ("EFI/Linux/SHORT.EFI", 10), ("empty", 0)]);
        let fat = Fat::open(&volume, &contents).unwrap();
        let file = fat.file("efi/LINUX/1.0.0_0123ABCD+3.efi").unwrap();
        assert_eq!((file.name.as_str(), file.bytes, file.torn), ("1.0.0_0123abcd+3.efi", 5000, false));
        let chain = fat.chain(file.first);
        assert_eq!((chain.clusters.len(), chain.ends), (10, true));
        assert_eq!(fat.file("EFI/Linux/short.efi").unwrap().bytes, 10);
        assert_eq!(fat.file("empty").unwrap().first, 0);
        assert_eq!(fat.file("EFI/Linux"), Err(Damage::Absent));
        assert_eq!(fat.folder("EFI/nothing"), Err(Damage::Absent));
        let paths: Vec<String> = fat.files().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["empty", "EFI/Linux/1.0.0_0123abcd+3.efi", "EFI/Linux/SHORT.EFI"]);
    }

    #[test]
    fn a_torn_long_name_shows_the_short_one() {
        let (mut volume, contents) = made(&[("EFI/Linux/1.0.0_0123abcd+3.efi", 5000)]);
        let fat = Fat::open(&volume, &contents).unwrap();
        let folder = fat.folder("EFI").unwrap().iter().find(|found| found.name == "Linux").unwrap().first;
        let place = fat.geometry.sector(folder);
        let bytes = *contents.bytes(volume.at(place)).unwrap();
        let at = bytes.as_chunks::<ENTRY>().0.iter().position(|entry| entry[0] == 0x42).unwrap() * ENTRY;
        for (offset, value) in [(at, DELETED), (at + 13, !bytes[at + 13]), (at + ENTRY, DELETED)] {
            let mut torn = bytes;
            torn[offset] = value;
            let contents = Contents::new(vec![torn]);
            // The only sector with bytes is the folder's; tables are not needed for its first one.
            let mut names = Names::default();
            contents
                .bytes(1)
                .unwrap()
                .as_chunks::<ENTRY>()
                .0
                .iter()
                .take_while(|e| e[0] != 0)
                .for_each(|e| names.add(e));
            let found = names.found.iter().find(|found| !found.folder).unwrap();
            assert!(found.torn && found.name.contains('~'), "{found:?}");
        }
        volume.apply(&[(0, ZERO)]);
        assert!(Fat::open(&volume, &contents).is_none());
    }

    #[test]
    fn chains_that_break_or_loop_say_so() {
        let (mut volume, contents) = made(&[("EFI/Linux/a.efi", 512 * 400)]);
        let (first, table) = {
            let fat = Fat::open(&volume, &contents).unwrap();
            (fat.file("EFI/Linux/a.efi").unwrap().first, fat.geometry.reserved)
        };
        let sector = table + first / LINKS + 1;
        volume.apply(&[(sector, ZERO)]);
        let fat = Fat::open(&volume, &contents).unwrap();
        let chain = fat.chain(first);
        assert_eq!((chain.clusters.len() as u32, chain.ends), (LINKS - first % LINKS, false));
        // A loop: the second sector of the chain's table repeats the first's links.
        let mut looped = [0; SECTOR];
        looped.chunks_exact_mut(4).for_each(|link| link.copy_from_slice(&first.to_le_bytes()));
        let blobs =
            (1..=contents.len() as u32).map(|n| *contents.bytes(n).unwrap()).chain([looped]).collect();
        let contents = Contents::new(blobs);
        volume.apply(&[(sector, contents.len() as u32)]);
        let fat = Fat::open(&volume, &contents).unwrap();
        assert!(!fat.chain(first).ends);
    }
}
