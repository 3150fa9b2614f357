//! What the journal holds, for others to read: a staged object as the disk has it, each block verified before it is
//! handed on. It never writes, and knows nothing of who fills the region.

use crate::update::carrier::What;
use crate::update::staging::{Layout, MAGIC, PAGE};
use formats::hex::Digest;
use formats::object::{BlockSize, Geometry, ListReader, Verifier, leaf};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Longest hash lists that are held in memory for somebody else, bytes: those of 256 GiB in blocks of 1 MiB.
const LISTS_MAX: u64 = 8 << 20;

/// A staged object.
pub struct Shelf {
    file: File,
    id: Digest,
    geometry: Geometry,
    layout: Layout,
    /// Complete lists, and what they verify; none for an object of one block.
    lists: Option<(Vec<u8>, Verifier)>,
}

impl Shelf {
    /// Opens what is staged in a folder under an object's id; none if that is nothing that can be handed on.
    pub fn open(folder: &Path, id: Digest) -> Option<Self> {
        let file = File::open(folder.join(id.to_string())).ok()?;
        let mut header = [0; MAGIC.len() + 41];
        file.read_exact_at(&mut header, 0).ok()?;
        let (magic, rest) = header.split_first_chunk::<{ MAGIC.len() }>()?;
        let (named, rest) = rest.split_first_chunk::<32>()?;
        let (length, log2) = rest.split_first_chunk::<8>()?;
        if magic != MAGIC || *named != id.0 {
            return None;
        }
        let geometry = Geometry::new(u64::from_le_bytes(*length), BlockSize::from_log2(log2[0])?).ok()?;
        let layout = Layout::of(&geometry);
        let mut shelf = Self { file, id, geometry, layout, lists: None };
        if geometry.blocks() > 1 {
            shelf.lists = Some(shelf.read_lists()?);
        }
        Some(shelf)
    }

    fn read_lists(&self) -> Option<(Vec<u8>, Verifier)> {
        let bytes = self.geometry.list_bytes();
        let mut lists = vec![0; usize::try_from(bytes).ok().filter(|_| bytes <= LISTS_MAX)?];
        self.file.read_exact_at(&mut lists, self.layout.lists).ok()?;
        let mut reader = ListReader::new(self.id, self.geometry);
        while let Some(range) = reader.next() {
            let range = usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?;
            reader.take(lists.get(range)?).ok()?;
        }
        let verifier = reader.done()?.clone();
        Some((lists, verifier))
    }

    /// Whether it holds this object.
    pub fn is(&self, id: Digest) -> bool {
        self.id == id
    }

    /// Bytes of the file and of its pieces.
    pub fn shape(&self, what: What) -> (u64, u32) {
        match what {
            What::Object(_) => (self.geometry.length(), self.geometry.block().bytes()),
            What::Lists(_) => (self.geometry.list_bytes(), self.geometry.list_block() as u32),
        }
    }

    /// Numbers of the pieces that are here, ascending.
    pub fn has(&self, what: What) -> Vec<u64> {
        if let What::Lists(_) = what {
            let (bytes, piece) = self.shape(what);
            return self.lists.iter().flat_map(|_| 0..bytes.div_ceil(piece.into())).collect();
        }
        let blocks = self.geometry.blocks();
        let mut map = vec![0; blocks.div_ceil(8) as usize];
        if self.file.read_exact_at(&mut map, PAGE).is_err() {
            return Vec::new();
        }
        (0..blocks).filter(|n| map[(n / 8) as usize] & (1 << (n % 8)) != 0).collect()
    }

    /// A piece, if it is here and what it should be.
    pub fn read(&self, what: What, index: u64) -> Option<Vec<u8>> {
        if let What::Lists(_) = what {
            let (lists, _) = self.lists.as_ref()?;
            let piece = self.geometry.list_block();
            let start = usize::try_from(index).ok()?.checked_mul(piece)?;
            return lists.get(start..lists.len().min(start.checked_add(piece)?)).map(<[u8]>::to_vec);
        }
        let mut block = vec![0; self.geometry.block_length(index)?];
        let at = self.layout.data + index * u64::from(self.geometry.block().bytes());
        self.file.read_exact_at(&mut block, at).ok()?;
        let good = match &self.lists {
            Some((_, verifier)) => verifier.block(index, &block).is_ok(),
            None => Verifier::from_lists(self.id, self.geometry, &leaf(&block)).is_ok(),
        };
        good.then_some(block)
    }
}
