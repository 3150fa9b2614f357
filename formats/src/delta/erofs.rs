//! EROFS on disk, as far as deltas need it: where files' bytes lie and where metadata points (kernel
//! `fs/erofs/erofs_fs.h`).
//!
//! Read-only and bounded. Reads flat files (plain and with an inline tail); the bytes of files stored in other ways
//! count as metadata. Does not know ownership, times or extended attributes.

use super::refs::{Ref, RefKind};
use super::view::Extent;
use super::wire::{le16, le32, le64};
use super::{ReadAt, Result, malformed, read_vec};
use std::collections::HashSet;

/// Most inodes that are read.
pub const MAX_INODES: usize = 1 << 20;
/// Most pointers (block addresses and inode numbers) that are kept; 8 bytes each.
const MAX_POINTERS: usize = 1 << 20;
/// Longest directory, in bytes.
const MAX_DIRECTORY: u64 = 16 << 20;
/// Deepest path.
const MAX_DEPTH: usize = 256;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;

/// The superblock's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// log2 of the block size.
    pub block_bits: u8,
    /// Where inode 0 would lie, in bytes.
    pub metadata: u64,
    /// Inode number of the root directory.
    pub root: u64,
}

/// An inode's facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// Offset in the image, in bytes.
    pub offset: u64,
    /// Type and permissions, as `st_mode`.
    pub mode: u16,
    /// Length in bytes.
    pub size: u64,
    /// Whole blocks in the data area, if any.
    pub data: Option<Extent>,
    /// Rest of the file behind the inode, if any.
    pub tail: Option<Extent>,
}

/// A file with its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Path without a leading slash; bytes that are no UTF-8 are replaced.
    pub path: String,
    /// Its inode.
    pub inode: Inode,
}

/// What a walk over the directories found.
#[derive(Debug)]
pub struct Tree {
    /// The superblock.
    pub superblock: Superblock,
    /// Files that have blocks in the data area, in the order of the walk; hard links once.
    pub files: Vec<File>,
    pointers: Vec<u64>,
}

/// Reads the superblock; `None` if `image` is no EROFS image.
///
/// # Errors
/// When the image cannot be read.
pub fn superblock(image: &dyn ReadAt) -> Result<Option<Superblock>> {
    if image.size() < SUPERBLOCK + 128 {
        return Ok(None);
    }
    let bytes = read_vec(image, "old image", SUPERBLOCK, 128)?;
    let (magic, bits, root, metadata) = (le32(&bytes, 0), bytes[12], le16(&bytes, 14), le32(&bytes, 40));
    let (Some(MAGIC), 9..=16, Some(root), Some(metadata)) = (magic, bits, root, metadata) else {
        return Ok(None);
    };
    Ok(Some(Superblock { block_bits: bits, metadata: u64::from(metadata) << bits, root: u64::from(root) }))
}

fn damaged<T>(offset: u64, why: &str) -> Result<T> {
    malformed("EROFS image", format!("inode at byte {offset} {why}"))
}

impl Superblock {
    fn block(&self) -> u64 {
        1 << self.block_bits
    }

    fn position(&self, nid: u64) -> Option<u64> {
        nid.checked_mul(32)?.checked_add(self.metadata)
    }

    fn inode(&self, image: &dyn ReadAt, nid: u64) -> Result<Inode> {
        let Some(offset) = self.position(nid) else { return damaged(nid, "is outside the image") };
        let bytes = read_vec(image, "EROFS image", offset, 64.min(image.size().saturating_sub(offset)))?;
        let fields = (le16(&bytes, 0), le16(&bytes, 2), le16(&bytes, 4), le64(&bytes, 8), le32(&bytes, 16));
        let (Some(format), Some(attributes), Some(mode), Some(size), Some(address)) = fields else {
            return damaged(offset, "is cut off");
        };
        let extended = format & 1 == 1;
        let size = if extended { size } else { size & 0xffff_ffff };
        let xattrs = if attributes == 0 { 0 } else { 12 + 4 * (u64::from(attributes) - 1) };
        let behind = offset + if extended { 64 } else { 32 } + xattrs;
        let (flat, inline) = match format >> 1 & 7 {
            0 => (true, false),
            2 => (true, true),
            _ => (false, false),
        };
        let has_bytes = matches!(mode & 0xf000, 0x4000 | 0x8000 | 0xa000);
        if !flat || !has_bytes {
            return Ok(Inode { offset, mode, size, data: None, tail: None });
        }
        let kept = if inline { size / self.block() * self.block() } else { size };
        let data = Extent { offset: u64::from(address) << self.block_bits, len: kept };
        let tail = Extent { offset: behind, len: size - kept };
        for extent in [data, tail] {
            if extent.len > 0 && extent.offset.checked_add(extent.len).is_none_or(|end| end > image.size()) {
                return damaged(offset, "has bytes outside the image");
            }
        }
        let some = |extent: Extent| (extent.len > 0).then_some(extent);
        Ok(Inode { offset, mode, size, data: some(data), tail: some(tail) })
    }
}

impl Inode {
    fn read(&self, image: &dyn ReadAt) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for extent in self.data.iter().chain(&self.tail) {
            bytes.extend(read_vec(image, "EROFS image", extent.offset, extent.len)?);
        }
        Ok(bytes)
    }

    /// Offset in the image of byte `at` of the file, which must be inside.
    fn place(&self, at: u64) -> u64 {
        let blocks = self.data.map_or(0, |extent| extent.len);
        let extent = if at < blocks { self.data } else { self.tail };
        extent.map_or(0, |extent| extent.offset) + if at < blocks { at } else { at - blocks }
    }
}

/// One entry of a directory.
struct Entry {
    nid: u64,
    /// Where the inode number is stored, in the directory's bytes.
    at: u64,
    name: String,
}

/// The entries of a directory's `bytes`.
fn entries(bytes: &[u8], block: usize) -> Option<Vec<Entry>> {
    let mut found = Vec::new();
    for (index, part) in bytes.chunks(block).enumerate() {
        let names = usize::from(le16(part, 8)?);
        let count = names / 12;
        if count == 0 || names % 12 != 0 {
            return None;
        }
        for entry in 0..count {
            let start = usize::from(le16(part, entry * 12 + 8)?);
            let end = if entry + 1 < count { usize::from(le16(part, entry * 12 + 20)?) } else { part.len() };
            let name = part.get(start..end)?.split(|byte| *byte == 0).next().unwrap_or_default();
            found.push(Entry {
                nid: le64(part, entry * 12)?,
                at: (index * block + entry * 12) as u64,
                name: String::from_utf8_lossy(name).into_owned(),
            });
        }
    }
    Some(found)
}

/// Walks all directories of `image`; `None` if it is no EROFS image.
///
/// # Errors
/// When the image is damaged, above a limit of this module, or cannot be read.
pub fn walk(image: &dyn ReadAt) -> Result<Option<Tree>> {
    tree(image, true)
}

/// The same without files, of which the decoder has no use: only pointers are kept.
///
/// # Errors
/// As for [`walk`].
pub fn pointers(image: &dyn ReadAt) -> Result<Option<Tree>> {
    tree(image, false)
}

fn tree(image: &dyn ReadAt, names: bool) -> Result<Option<Tree>> {
    let Some(superblock) = superblock(image)? else { return Ok(None) };
    let mut tree = Tree { superblock, files: Vec::new(), pointers: Vec::new() };
    let mut seen = HashSet::new();
    let mut open = vec![(superblock.root, String::new(), 0usize)];
    while let Some((nid, path, depth)) = open.pop() {
        if !seen.insert(nid) {
            continue;
        }
        if seen.len() > MAX_INODES || tree.pointers.len() > MAX_POINTERS || depth > MAX_DEPTH {
            return malformed(
                "EROFS image",
                format!("it has more than {MAX_INODES} inodes or {MAX_DEPTH} levels"),
            );
        }
        let inode = superblock.inode(image, nid)?;
        if inode.data.is_some() {
            tree.pointers.push((inode.offset + 16) << 1);
        }
        match inode.mode & 0xf000 {
            0x4000 if inode.size <= MAX_DIRECTORY => {
                let bytes = inode.read(image)?;
                let block = superblock.block() as usize;
                let Some(found) = entries(&bytes, block) else {
                    return damaged(inode.offset, "is no directory");
                };
                for entry in found.into_iter().rev() {
                    tree.pointers.push(inode.place(entry.at) << 1 | 1);
                    if entry.name != "." && entry.name != ".." {
                        let slash = if path.is_empty() { "" } else { "/" };
                        let path = if names { format!("{path}{slash}{}", entry.name) } else { String::new() };
                        open.push((entry.nid, path, depth + 1));
                    }
                }
            }
            0x4000 => return damaged(inode.offset, "is a directory of more than 16 MiB"),
            0x8000 if names && inode.data.is_some() => tree.files.push(File { path, inode }),
            _ => {}
        }
    }
    tree.pointers.sort_unstable();
    tree.pointers.dedup();
    Ok(Some(tree))
}

impl Tree {
    /// Appends the metadata's pointers whose first byte lies in `start..end` of the image, in order.
    ///
    /// # Errors
    /// When the image cannot be read.
    pub fn refs(&self, image: &dyn ReadAt, start: u64, end: u64, out: &mut Vec<Ref>) -> Result<()> {
        let first = self.pointers.partition_point(|packed| packed >> 1 < start);
        let mut window = (0, Vec::new());
        for packed in &self.pointers[first..] {
            let at = packed >> 1;
            if at >= end {
                break;
            }
            if at < window.0 || at + 8 > window.0 + window.1.len() as u64 {
                let len = image.size().saturating_sub(at).min((end + 8 - at).min(4096));
                window = (at, read_vec(image, "old image", at, len)?);
            }
            let Superblock { block_bits, metadata, .. } = self.superblock;
            let place = (at - window.0) as usize;
            if packed & 1 == 0 {
                let Some(block) = le32(&window.1, place).filter(|block| *block != u32::MAX) else { continue };
                let target = u64::from(block) << block_bits;
                out.push(Ref { at, kind: RefKind::Block32, shift: block_bits, base: 0, target });
            } else if let Some(target) = le64(&window.1, place).and_then(|nid| self.superblock.position(nid))
            {
                out.push(Ref { at, kind: RefKind::Nid64, shift: 0, base: metadata, target });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An image made by hand: root directory (inline) with one file of one block and a tail of 5 bytes.
    pub fn sample() -> Vec<u8> {
        let mut image = vec![0u8; 3 * 4096];
        image[1024..1028].copy_from_slice(&MAGIC.to_le_bytes());
        image[1024 + 12] = 12;
        image[1024 + 14] = 36;
        let root = 36 * 32;
        let names = b"....file";
        image[root] = 2 << 1;
        image[root + 4..root + 6].copy_from_slice(&0x41edu16.to_le_bytes());
        image[root + 8..root + 12].copy_from_slice(&44u32.to_le_bytes());
        for (index, (nid, start)) in [(36u64, 36u16), (36, 37), (50, 40)].into_iter().enumerate() {
            let at = root + 32 + index * 12;
            image[at..at + 8].copy_from_slice(&nid.to_le_bytes());
            image[at + 8..at + 10].copy_from_slice(&start.to_le_bytes());
        }
        image[root + 32 + 36..root + 32 + 44].copy_from_slice(names);
        image[root + 32 + 37] = b'.';
        let file = 50 * 32;
        image[file] = 2 << 1;
        image[file + 4..file + 6].copy_from_slice(&0x81a4u16.to_le_bytes());
        image[file + 8..file + 12].copy_from_slice(&4101u32.to_le_bytes());
        image[file + 16] = 2;
        image
    }

    #[test]
    fn files_and_pointers_are_found() {
        let image = sample();
        let tree = walk(&image).unwrap().unwrap();
        let file = &tree.files[0];
        assert_eq!((tree.files.len(), file.path.as_str(), file.inode.size), (1, "file", 4101));
        assert_eq!(file.inode.data, Some(Extent { offset: 8192, len: 4096 }));
        assert_eq!(file.inode.tail, Some(Extent { offset: 1632, len: 5 }));
        let mut refs = Vec::new();
        tree.refs(&image, 0, image.len() as u64, &mut refs).unwrap();
        let block = Ref { at: 1616, kind: RefKind::Block32, shift: 12, base: 0, target: 8192 };
        assert!(refs.contains(&block), "{refs:?}");
        assert_eq!(refs.iter().filter(|found| found.kind == RefKind::Nid64).count(), 3);
    }

    #[test]
    fn other_bytes_are_no_image() {
        assert!(walk(&vec![7u8; 8192]).unwrap().is_none());
        assert!(walk(&vec![7u8; 10]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_another_tree(changes in prop::collection::vec((1024usize..1700, any::<u8>()), 1..20)) {
            let mut image = sample();
            for (at, value) in changes { image[at] = value; }
            if let Ok(Some(tree)) = walk(&image) {
                let mut refs = Vec::new();
                if let Err(error) = tree.refs(&image, 0, image.len() as u64, &mut refs) {
                    prop_assert!(error.to_string().contains("asked for"), "{}", error);
                }
            }
        }
    }
}
