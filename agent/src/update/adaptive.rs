//! Adaptive payloads on the device: which pages the running slot has, which units must be fetched, and the image out of
//! both (`formats::blocks`). What comes out is proved by whoever takes it.

use crate::io::disk::Disk;
use crate::update::carrier::Failure;
use crate::update::staging::{Staging, Unreadable};
use crate::update::step::{Fault, words};
use anyhow::{Context, Result};
use formats::blocks::{Index, mark};
use formats::object::Geometry;
use formats::verity::BLOCK;
use std::ops::Range;

const PAGE: u64 = BLOCK as u64;
/// Bytes read, or handed on, at once.
const CHUNK: usize = 1 << 20;

/// The pages of a partition by their marks, each once. 16 bytes a page.
pub struct Pages(Vec<(u64, u32)>);

impl Pages {
    /// Reads all of a partition.
    ///
    /// # Errors
    /// The disk's, and for one of more than 2^32 pages.
    pub fn of(disk: &dyn Disk) -> Result<Self> {
        let bytes = disk.len() / PAGE * PAGE;
        let mut pages = Vec::with_capacity(usize::try_from(bytes / PAGE)?);
        let mut chunk = vec![0; CHUNK];
        let mut at = 0;
        while at < bytes {
            let part = &mut chunk[..CHUNK.min(usize::try_from(bytes - at)?)];
            disk.read(at, part)?;
            for (n, page) in part.chunks(BLOCK).enumerate() {
                let number = u32::try_from(at / PAGE + n as u64).context("the slot has too many pages")?;
                pages.push((mark(page), number));
            }
            at += part.len() as u64;
        }
        pages.sort_unstable();
        pages.dedup_by_key(|(mark, _)| *mark);
        Ok(Self(pages))
    }

    /// Where a page with this mark stands, bytes from the start.
    pub fn find(&self, mark: u64) -> Option<u64> {
        let at = self.0.binary_search_by_key(&mark, |(mark, _)| *mark).ok()?;
        Some(u64::from(self.0[at].1) * PAGE)
    }
}

/// The blocks of the payload that hold these bytes.
pub fn blocks(geometry: &Geometry, bytes: &Range<u64>) -> Range<u64> {
    let block = u64::from(geometry.block().bytes());
    bytes.start / block..bytes.end.div_ceil(block)
}

/// Staged bytes of a payload.
fn staged<D: Disk>(staging: &mut Staging<D>, bytes: &Range<u64>) -> Result<Vec<u8>, Failure> {
    let geometry = staging.geometry();
    let block = u64::from(geometry.block().bytes());
    let mut out = Vec::new();
    for index in blocks(&geometry, bytes) {
        let read = staging.read(index).map_err(|unreadable| match unreadable {
            Unreadable::Missing(index) => {
                Failure::new(Fault::Incomplete, format!("block {index} of the payload is missing"))
            }
            Unreadable::Disk(error) => Failure::local(&error),
        })?;
        let from = bytes.start.saturating_sub(index * block).min(read.len() as u64);
        let to = bytes.end.saturating_sub(index * block).min(read.len() as u64);
        out.extend_from_slice(&read[from as usize..to as usize]);
    }
    Ok(out)
}

/// Reads the index of a payload whose first blocks are staged.
///
/// # Errors
/// [`Failure`]: [`Fault::Incomplete`] if they are not, [`Fault::Damaged`] if they are no index.
pub fn index<D: Disk>(
    staging: &mut Staging<D>,
    index_bytes: u64,
    image_bytes: u64,
) -> Result<Index, Failure> {
    let payload_bytes = staging.geometry().length();
    let bytes = staged(staging, &(0..index_bytes))?;
    Index::parse(&bytes, payload_bytes, image_bytes)
        .map_err(|error| Failure::new(Fault::Damaged, words(&error)))
}

/// Makes the image: units whose pages are all in `base` from there, the others from the staging area.
///
/// # Errors
/// As [`index`]; and what `out` says.
pub fn decode<D: Disk>(
    index: &Index,
    base: &dyn Disk,
    staging: &mut Staging<D>,
    out: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let pages = Pages::of(base).map_err(|error| Failure::local(&error))?;
    let mut made = Vec::with_capacity(2 * CHUNK);
    for number in 0..index.cut().units() {
        let found: Option<Vec<u64>> = index.marks(number).iter().map(|mark| pages.find(*mark)).collect();
        match found {
            Some(places) => {
                for place in places {
                    let start = made.len();
                    made.resize(start + BLOCK, 0);
                    base.read(place, &mut made[start..]).map_err(|error| Failure::local(&error))?;
                }
            }
            None => unpack(index, number, staging, &mut made)?,
        }
        if made.len() >= CHUNK {
            out(&made)?;
            made.clear();
        }
    }
    if made.is_empty() { Ok(()) } else { out(&made) }
}

fn unpack<D: Disk>(
    index: &Index,
    number: u64,
    staging: &mut Staging<D>,
    made: &mut Vec<u8>,
) -> Result<(), Failure> {
    let damaged = |why: String| Failure::new(Fault::Damaged, format!("unit {number} of the payload: {why}"));
    let unit = index.unit(number).ok_or_else(|| damaged("there is none".to_owned()))?;
    let packed = staged(staging, &unit.packed)?;
    let wanted = (unit.image.end - unit.image.start) as usize;
    if packed.len() == wanted {
        made.extend_from_slice(&packed);
        return Ok(());
    }
    let bytes = zstd::bulk::decompress(&packed, wanted).map_err(|error| damaged(error.to_string()))?;
    if bytes.len() != wanted {
        return Err(damaged(format!("it gives {} bytes, but must give {wanted}", bytes.len())));
    }
    made.extend_from_slice(&bytes);
    Ok(())
}

/// A payload of an image in units of four pages, and the bytes of its index.
#[cfg(test)]
pub fn pack(image: &[u8]) -> (Vec<u8>, u64) {
    let cut = formats::blocks::Cut::new(image.len() as u64, 14).unwrap();
    let (mut lengths, mut data) = (Vec::new(), Vec::new());
    for unit in image.chunks(1 << 14) {
        let packed = zstd::bulk::compress(unit, 3).unwrap();
        let packed = if packed.len() < unit.len() { packed } else { unit.to_vec() };
        lengths.push(packed.len() as u32);
        data.extend(packed);
    }
    let marks: Vec<u64> = image.chunks(BLOCK).map(mark).collect();
    ([cut.write(&lengths, &marks), data].concat(), cut.index_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::fault::FaultDisk;
    use crate::update::carrier::Worth;
    use crate::update::plan::Object;
    use crate::update::staging;
    use formats::object::{self, BlockSize};

    fn noise(seed: u64, pages: usize) -> Vec<u8> {
        let mut state = seed;
        let step = |state: &mut u64| {
            *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (*state >> 56) as u8
        };
        (0..pages * BLOCK).map(|_| step(&mut state)).collect()
    }

    #[test]
    fn an_image_comes_out_of_what_the_slot_has_and_the_units_that_it_lacks() {
        let old = noise(1, 40);
        let page = |n: usize| &old[n * BLOCK..(n + 1) * BLOCK];
        // Moved, doubled and new pages; text that packs.
        let text = [vec![b'x'; BLOCK / 2], vec![b'y'; BLOCK / 2]].concat();
        let mut image = Vec::new();
        for n in (8..40).chain(0..9) {
            image.extend_from_slice(page(n));
        }
        image.extend(noise(2, 2));
        image.extend(text);
        image.extend_from_slice(page(3));
        let (payload, index_bytes) = pack(&image);
        let made = object::of(&payload, BlockSize::KIB_1).unwrap();
        let object = Object { id: made.id, bytes: payload.len() as u64, block_log2: 10 };
        let geometry = object.geometry().unwrap();
        let region = FaultDisk::new(vec![0; staging::bytes(&geometry) as usize]);
        let mut staging = Staging::open(region, &object).unwrap();
        for (n, piece) in made.lists.chunks(geometry.list_block()).enumerate() {
            assert_eq!(staging.put_lists(n as u64, piece).unwrap(), Worth::New);
        }
        let put = |staging: &mut Staging<FaultDisk>, range: Range<u64>| {
            for n in range {
                let at = n as usize * 1024;
                staging.put(n, &payload[at..payload.len().min(at + 1024)]).unwrap();
            }
            staging.flush().unwrap();
        };
        assert_eq!(
            index(&mut staging, index_bytes, image.len() as u64).unwrap_err().fault,
            Fault::Incomplete
        );
        put(&mut staging, 0..index_bytes.div_ceil(1024));
        let index = index(&mut staging, index_bytes, image.len() as u64).unwrap();
        let base = FaultDisk::new(old.clone());
        let pages = Pages::of(&base).unwrap();
        let missing = index.missing(&|mark| pages.find(mark).is_some());
        let bytes: u64 = missing.iter().map(|part| part.end - part.start).sum();
        assert!((2 * PAGE..=4 * PAGE).contains(&bytes), "{missing:?}");
        for part in &missing {
            put(&mut staging, blocks(&geometry, part));
        }
        let mut out = Vec::new();
        let decoded = decode(&index, &base, &mut staging, &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        });
        decoded.unwrap();
        assert!(out == image);
        // A page that rotted in the running slot is one that it does not have.
        let mut rotten = FaultDisk::new(old);
        rotten.write(20 * PAGE, b"rot").unwrap();
        let failed = decode(&index, &rotten, &mut staging, &mut |_| Ok(())).unwrap_err();
        assert_eq!(failed.fault, Fault::Incomplete);
    }
}
