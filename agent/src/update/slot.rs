//! The other slot: made unbootable, filled, and verified from what the medium returns. [`VerifiedSlot`] is the proof;
//! only verification makes one, and only with one can an entry be written.
//!
//! Order (design section 6), each step flushed and read back: superblock and topmost hash block are wiped; data; the
//! hash tree below its top; superblock; the topmost block last. Until then the init sees a slot that is not complete.

use crate::io::disk::Disk;
use anyhow::{Context, Result, bail, ensure};
use formats::hex::Digest;
use formats::verity::{BLOCK, Builder, Parameters, Tree};

/// Bytes read at once.
const CHUNK: usize = 1 << 20;
const PAGE: u64 = BLOCK as u64;

/// Proof that a slot holds the whole image of a roothash: all of its data and its hash tree were read from the medium
/// after the flush, and hashed to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedSlot {
    roothash: Digest,
}

impl VerifiedSlot {
    /// The roothash that it opens with.
    pub fn roothash(&self) -> Digest {
        self.roothash
    }
}

/// What an image is.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// Root of its hash tree.
    pub roothash: Digest,
    /// Salt and block count.
    pub parameters: Parameters,
    /// UUID in the superblock.
    pub uuid: [u8; 16],
}

/// The two partitions of a slot.
pub struct Disks {
    /// Root image.
    pub root: Box<dyn Disk>,
    /// Superblock and hash tree.
    pub verity: Box<dyn Disk>,
}

/// Makes the slot one that is not complete, whatever it held.
///
/// # Errors
/// The disk's.
pub fn wipe(verity: &mut dyn Disk) -> Result<()> {
    let mut found = [0u8; 2 * BLOCK];
    verity.read_back(0, &mut found)?;
    if found.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    put(verity, 0, &[0; 2 * BLOCK])
}

/// Writes, flushes, and compares with what the medium returns.
fn put(disk: &mut dyn Disk, at: u64, bytes: &[u8]) -> Result<()> {
    disk.write(at, bytes)?;
    disk.sync()?;
    let mut found = vec![0; bytes.len()];
    disk.read_back(at, &mut found)?;
    ensure!(found == bytes, "the disk does not return what was written at {at}: it is failing");
    Ok(())
}

/// The hash tree of what the medium holds.
fn tree(root: &dyn Disk, parameters: Parameters, told: &mut dyn FnMut(u64)) -> Result<Tree> {
    let bytes = parameters.data_blocks.checked_mul(PAGE).context("the image is too large")?;
    ensure!(bytes <= root.len(), "the root partition has {} bytes, the image {bytes}", root.len());
    let mut builder = Builder::new(parameters);
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < bytes {
        let part = &mut chunk[..CHUNK.min(usize::try_from(bytes - at)?)];
        root.read_back(at, part)?;
        builder.push(part);
        at += part.len() as u64;
        told(at);
    }
    Ok(builder.finish())
}

/// Verifies the data that was written and flushed, completes the slot with its hash tree, and reads that back too.
///
/// # Errors
/// [`Incomplete::Mismatch`] if the data is not the image; the slot then stays incomplete.
pub fn complete(
    disks: &mut Disks,
    image: &Image,
    told: &mut dyn FnMut(u64),
) -> Result<VerifiedSlot, Incomplete> {
    let tree = tree(disks.root.as_ref(), image.parameters, told).map_err(Incomplete::Disk)?;
    if tree.roothash != image.roothash {
        return Err(Incomplete::Mismatch(tree.roothash));
    }
    write_tree(disks.verity.as_mut(), image, &tree).map_err(Incomplete::Disk)?;
    Ok(VerifiedSlot { roothash: image.roothash })
}

/// Why a slot was not completed.
#[derive(Debug)]
pub enum Incomplete {
    /// The data has another roothash.
    Mismatch(Digest),
    /// The disk fails or is too small.
    Disk(anyhow::Error),
}

fn write_tree(verity: &mut dyn Disk, image: &Image, tree: &Tree) -> Result<()> {
    let needed = image.parameters.hash_area_bytes();
    ensure!(
        needed <= verity.len(),
        "the verity partition has {} bytes, the hash tree takes {needed}",
        verity.len()
    );
    let (top, lower) = tree.blocks.split_at(BLOCK);
    if !lower.is_empty() {
        put(verity, 2 * PAGE, lower)?;
    }
    put(verity, 0, &image.parameters.superblock(image.uuid))?;
    put(verity, PAGE, top)
}

/// Verifies a slot as it stands: superblock, hash tree and data.
///
/// # Errors
/// Why it is not a whole image of `roothash`.
pub fn verify(disks: &Disks, roothash: Digest, told: &mut dyn FnMut(u64)) -> Result<VerifiedSlot> {
    let mut first = [0u8; 2 * BLOCK];
    disks.verity.read_back(0, &mut first)?;
    let parameters = Parameters::parse(&first[..BLOCK])?;
    ensure!(parameters.opens(roothash, &first[BLOCK..]), "the slot holds another image, or is incomplete");
    let tree = tree(disks.root.as_ref(), parameters, told)?;
    ensure!(tree.roothash == roothash, "the slot's data is damaged");
    let mut found = vec![0; CHUNK.min(tree.blocks.len())];
    for (n, part) in tree.blocks.chunks(CHUNK).enumerate() {
        let found = &mut found[..part.len()];
        disks.verity.read_back(PAGE + (n * CHUNK) as u64, found)?;
        if found != part {
            bail!("the slot's hash tree is damaged");
        }
    }
    Ok(VerifiedSlot { roothash })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::disk::fault::FaultDisk;

    fn image(blocks: u64) -> (Vec<u8>, Image) {
        let data: Vec<u8> = (0..blocks as usize * BLOCK).map(|n| (n / 7) as u8).collect();
        let parameters = Parameters { data_blocks: blocks, salt: [7; 32] };
        let mut builder = Builder::new(parameters);
        builder.push(&data);
        (data, Image { roothash: builder.finish().roothash, parameters, uuid: [1; 16] })
    }

    fn disks(data: &[u8], image: &Image) -> Disks {
        let verity = vec![0xee; image.parameters.hash_area_bytes() as usize];
        Disks { root: Box::new(FaultDisk::new(data.to_vec())), verity: Box::new(FaultDisk::new(verity)) }
    }

    #[test]
    fn a_whole_image_verifies_and_any_flip_is_seen() {
        let (data, image) = image(300);
        let mut whole = disks(&data, &image);
        wipe(whole.verity.as_mut()).unwrap();
        assert!(verify(&whole, image.roothash, &mut |_| {}).is_err());
        complete(&mut whole, &image, &mut |_| {}).unwrap();
        assert_eq!(verify(&whole, image.roothash, &mut |_| {}).unwrap().roothash(), image.roothash);
        for at in [0, 5 * BLOCK as u64 + 3, data.len() as u64 - 1] {
            whole.root.write(at, &[!data[at as usize]]).unwrap();
            whole.root.sync().unwrap();
            assert!(verify(&whole, image.roothash, &mut |_| {}).is_err());
            whole.root.write(at, &data[at as usize..=at as usize]).unwrap();
            whole.root.sync().unwrap();
        }
        for at in [40, PAGE + 1, 2 * PAGE + 77, 3 * PAGE + 5] {
            let mut byte = [0];
            whole.verity.read(at, &mut byte).unwrap();
            whole.verity.write(at, &[!byte[0]]).unwrap();
            whole.verity.sync().unwrap();
            assert!(verify(&whole, image.roothash, &mut |_| {}).is_err(), "{at}");
            whole.verity.write(at, &byte).unwrap();
            whole.verity.sync().unwrap();
        }
    }

    #[test]
    fn another_image_is_never_completed() {
        let (mut data, image) = image(3);
        data[100] ^= 1;
        let mut slot = disks(&data, &image);
        wipe(slot.verity.as_mut()).unwrap();
        assert!(matches!(complete(&mut slot, &image, &mut |_| {}), Err(Incomplete::Mismatch(_))));
        assert!(verify(&slot, image.roothash, &mut |_| {}).is_err());
    }

    #[test]
    fn data_that_was_not_flushed_does_not_count() {
        let (data, image) = image(3);
        let mut slot = disks(&vec![0; data.len()], &image);
        wipe(slot.verity.as_mut()).unwrap();
        slot.root.write(0, &data).unwrap();
        assert!(matches!(complete(&mut slot, &image, &mut |_| {}), Err(Incomplete::Mismatch(_))));
        slot.root.sync().unwrap();
        complete(&mut slot, &image, &mut |_| {}).unwrap();
    }
}
