//! Reads what stands in the two slots and tells which hold the image that the signed command line names.
//!
//! A slot holds an image only with an intact superblock (a wiped one means retired or damaged) and with the topmost
//! block of its hash tree, which is written last. Salt and block count are compared with the command line's, never
//! taken from the disk.

use anyhow::{Context, Result};
use formats::boot::{Partitions, SlotFacts};
use formats::bootargs::BootArgs;
use formats::hex::Digest;
use formats::layout::Slot;
use formats::verity::{BLOCK, Parameters};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// What was read of one slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotView {
    /// Which slot.
    pub slot: Slot,
    /// Roothash of the image that stands in it; `None` if empty, retired or half-written.
    pub complete: Option<Digest>,
    /// Why it is not what this boot wants; `None` if it is.
    pub misfit: Option<String>,
    /// It was this boot's image once: its superblock is the right one, its hash tree is not.
    pub damaged: bool,
}

impl SlotView {
    /// For the facts handed on.
    pub fn facts(&self) -> SlotFacts {
        SlotFacts { slot: self.slot, complete: self.complete }
    }
}

/// Judges the first two blocks of a verity partition: superblock and topmost hash block.
pub fn judge(slot: Slot, args: &BootArgs, blocks: Result<[u8; 2 * BLOCK]>) -> SlotView {
    let misfit = |complete, why| SlotView { slot, complete, misfit: Some(why), damaged: false };
    let blocks = match blocks {
        Ok(blocks) => blocks,
        Err(error) => return misfit(None, format!("{error:#}")),
    };
    let (superblock, first) = blocks.split_at(BLOCK);
    let found = match Parameters::parse(superblock) {
        Ok(found) => found,
        Err(error) => return misfit(None, error.to_string()),
    };
    if first.iter().all(|byte| *byte == 0) {
        return misfit(None, "half-written: the hash tree has no first block".into());
    }
    let complete = Some(Digest(found.hash(first)));
    if found != args.verity {
        return misfit(complete, "another image: its salt or size differs from the command line's".into());
    }
    if !args.verity.opens(args.roothash, first) {
        // The salt comes from the image's digest, so this is the image, with a damaged tree.
        let why = Some("damaged: its hash tree does not open with the command line's roothash".into());
        return SlotView { slot, complete: None, misfit: why, damaged: true };
    }
    SlotView { slot, complete, misfit: None, damaged: false }
}

/// Reads both slots.
pub fn read(partitions: &Partitions, args: &BootArgs) -> [SlotView; 2] {
    let both = [(Slot::A, &partitions.verity[0]), (Slot::B, &partitions.verity[1])];
    both.map(|(slot, device)| judge(slot, args, first_blocks(device)))
}

fn first_blocks(device: &str) -> Result<[u8; 2 * BLOCK]> {
    let mut blocks = [0u8; 2 * BLOCK];
    let file = File::open(device).with_context(|| format!("open {device}"))?;
    file.read_exact_at(&mut blocks, 0).with_context(|| format!("read the first two blocks of {device}"))?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;
    use formats::verity::Builder;

    fn image(byte: u8) -> (BootArgs, [u8; 2 * BLOCK]) {
        let verity = Parameters { data_blocks: 3, salt: [byte; 32] };
        let mut builder = Builder::new(verity);
        builder.push(&[byte; 3 * BLOCK]);
        let tree = builder.finish();
        let mut blocks = [0u8; 2 * BLOCK];
        blocks[..BLOCK].copy_from_slice(&verity.superblock([1; 16]));
        blocks[BLOCK..].copy_from_slice(&tree.blocks[..BLOCK]);
        (BootArgs { roothash: tree.roothash, verity, version: "1".into(), watchdog_s: None }, blocks)
    }

    #[test]
    fn the_named_image_fits_and_another_one_is_known_by_its_roothash() {
        let (args, blocks) = image(1);
        let (other, _) = image(2);
        let view = judge(Slot::A, &args, Ok(blocks));
        assert_eq!((view.misfit, view.complete), (None, Some(args.roothash)));
        let view = judge(Slot::B, &other, Ok(blocks));
        assert_eq!((view.misfit.is_some(), view.complete), (true, Some(args.roothash)));
    }

    #[test]
    fn any_flipped_byte_that_decides_anything_is_a_misfit() {
        let (args, blocks) = image(1);
        let mut torn = blocks;
        torn[BLOCK + 7] ^= 1;
        let view = judge(Slot::A, &args, Ok(torn));
        assert_eq!((view.damaged, view.complete), (true, None));
        let uuid = 16..32;
        let padding_of_the_block = 512..BLOCK;
        for at in (0..2 * BLOCK).filter(|at| !uuid.contains(at) && !padding_of_the_block.contains(at)) {
            let mut bad = blocks;
            bad[at] ^= 1;
            assert!(judge(Slot::A, &args, Ok(bad)).misfit.is_some(), "byte {at}");
        }
    }

    #[test]
    fn retired_half_written_and_unreadable_slots_are_not_complete() {
        let (args, blocks) = image(1);
        let mut retired = blocks;
        retired[..BLOCK].fill(0);
        let mut half = blocks;
        half[BLOCK..].fill(0);
        for view in [
            judge(Slot::A, &args, Ok(retired)),
            judge(Slot::A, &args, Ok(half)),
            judge(Slot::A, &args, Err(anyhow!("read /dev/vda3: EIO"))),
        ] {
            assert!(view.misfit.is_some());
            assert_eq!(view.complete, None);
        }
    }
}
