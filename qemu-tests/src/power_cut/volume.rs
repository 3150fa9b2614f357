//! An ESP as a table: for each sector the number of its content. Contents are shared by all states of a trace, so a
//! state is made and unmade by a few numbers.
//!
//! What files of megabytes hold is known by number only; what describes them (boot sector, tables, folders) by bytes.

/// Bytes of a sector: what a disk writes whole or not at all.
pub const SECTOR: usize = 512;
/// A sector's bytes.
pub type Sector = [u8; SECTOR];
/// Number of a content.
pub type Content = u32;
/// Content of a sector of zeros.
pub const ZERO: Content = 0;
/// From this number on, contents are parts of files, without bytes.
pub const FILE_DATA: Content = 1 << 24;

/// The bytes behind the numbers from 1 on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    blobs: Vec<Sector>,
}

static ZEROS: Sector = [0; SECTOR];

impl Contents {
    /// Contents 1, 2 and so on.
    pub fn new(blobs: Vec<Sector>) -> Self {
        Self { blobs }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// The bytes of a content; `None` if they are part of a file.
    pub fn bytes(&self, content: Content) -> Option<&Sector> {
        match content {
            ZERO => Some(&ZEROS),
            FILE_DATA.. => None,
            number => self.blobs.get(number as usize - 1),
        }
    }
}

/// A sector and what it holds.
pub type Change = (u32, Content);
/// Sectors and what they hold, as a list of differences.
pub type Patch = Vec<Change>;

/// A state of an ESP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    sectors: Vec<Content>,
}

impl Volume {
    /// A volume of zeros.
    pub fn new(sectors: usize) -> Self {
        Self { sectors: vec![ZERO; sectors] }
    }

    /// What a sector holds; beyond the end, zeros.
    pub fn at(&self, sector: u32) -> Content {
        self.sectors.get(sector as usize).copied().unwrap_or(ZERO)
    }

    /// A range of sectors; `None` if it reaches beyond the end.
    pub fn range(&self, first: u32, count: u32) -> Option<&[Content]> {
        self.sectors.get(first as usize..(first as usize).checked_add(count as usize)?)
    }

    /// Number of sectors.
    pub fn len(&self) -> usize {
        self.sectors.len()
    }

    /// Whether it has no sectors.
    pub fn is_empty(&self) -> bool {
        self.sectors.is_empty()
    }

    /// Writes; gives what stood there, which undoes it. Sectors beyond the end are passed over.
    pub fn apply(&mut self, patch: &[Change]) -> Patch {
        let mut undo: Patch = Vec::with_capacity(patch.len());
        for (sector, content) in patch {
            if let Some(place) = self.sectors.get_mut(*sector as usize) {
                undo.push((*sector, std::mem::replace(place, *content)));
            }
        }
        undo.reverse();
        undo
    }

    /// All sectors in order.
    pub fn sectors(&self) -> &[Content] {
        &self.sectors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_is_undone_even_where_it_writes_a_sector_twice() {
        let mut volume = Volume::new(4);
        let before = volume.clone();
        let undo = volume.apply(&[(1, 5), (1, 6), (3, 7), (9, 1)]);
        assert_eq!((volume.at(1), volume.at(3), volume.at(9)), (6, 7, ZERO));
        volume.apply(&undo);
        assert_eq!(volume, before);
    }

    #[test]
    fn contents_of_files_have_no_bytes() {
        let contents = Contents::new(vec![[7; SECTOR]]);
        assert_eq!(contents.bytes(1), Some(&[7; SECTOR]));
        assert_eq!(contents.bytes(ZERO), Some(&[0; SECTOR]));
        assert_eq!((contents.bytes(2), contents.bytes(FILE_DATA)), (None, None));
    }
}
