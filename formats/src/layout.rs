//! Partitions of a Farhold disk: labels, types, and the marker that permits making the state file system.
//!
//! Types follow the UAPI group's Discoverable Partitions Specification; labels are Farhold's own so that nothing
//! else on a machine claims them.

use crate::arch::Arch;
use serde::{Deserialize, Serialize};

/// EFI system partition.
pub const LABEL_ESP: &str = "farhold-esp";
/// State partition, `/var` on the device.
pub const LABEL_STATE: &str = "farhold-state";
/// Partition type of the ESP.
pub const TYPE_ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// Partition type of the state partition: Linux file system data.
pub const TYPE_STATE: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
/// GPT attribute bit 60: read-only (Discoverable Partitions Specification).
pub const ATTRIBUTE_READ_ONLY: u64 = 1 << 60;
/// Bytes at the end of the state partition that the file system leaves free for [`StateMark`].
pub const STATE_TAIL_BYTES: u64 = 1 << 20;
/// Length of the marker at the start, and of the mark at the end, of the state partition.
pub const STATE_MARK_BYTES: usize = 4096;

/// One of the two places for a system image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// First slot, filled by the builder.
    A,
    /// Second slot, empty until the first update.
    B,
}

impl Slot {
    /// Both slots, in the order in which the init tries them.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];
    /// The other slot.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
    /// Label of the partition that holds the EROFS image.
    pub const fn root_label(self) -> &'static str {
        match self {
            Self::A => "farhold-root-a",
            Self::B => "farhold-root-b",
        }
    }
    /// Label of the partition that holds the dm-verity superblock and hash tree.
    pub const fn verity_label(self) -> &'static str {
        match self {
            Self::A => "farhold-verity-a",
            Self::B => "farhold-verity-b",
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// Partition type of a slot's root image.
pub const fn type_root(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
        Arch::Arm64 => "b921b045-1df0-41c3-af44-4c6f280d3fae",
    }
}

/// Partition type of a slot's verity data.
pub const fn type_verity(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
        Arch::Arm64 => "df3300ce-d69f-4c92-978c-9bfb0f38d820",
    }
}

/// What the builder writes into the first [`STATE_MARK_BYTES`] of an empty state partition.
///
/// Only where these bytes stand unchanged may the device make a file system unasked. `mke2fs` destroys them first, so
/// before it starts the device writes [`StateMark::Making`] into the last bytes of the partition, which the file
/// system leaves alone, and [`StateMark::Made`] after the flush: an interrupted make is then known for what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateMark {
    /// At the start: written by the builder or installer, nothing made yet.
    Empty,
    /// At the end: a file system is being made; nothing of value is here.
    Making,
    /// At the end: the file system was made and flushed; never make another unasked.
    Made,
}

impl StateMark {
    const fn text(self) -> &'static [u8] {
        match self {
            Self::Empty => b"farhold-state-v1 empty: the device may make a file system here\n",
            Self::Making => b"farhold-state-v1 making: interrupted, make it again\n",
            Self::Made => b"farhold-state-v1 made\n",
        }
    }
    /// The block as it stands on disk: the text, then zeros.
    pub fn encode(self) -> [u8; STATE_MARK_BYTES] {
        let mut block = [0u8; STATE_MARK_BYTES];
        block[..self.text().len()].copy_from_slice(self.text());
        block
    }
    /// Recognises a block only if every byte is as [`StateMark::encode`] writes it.
    pub fn parse(block: &[u8]) -> Option<Self> {
        [Self::Empty, Self::Making, Self::Made].into_iter().find(|mark| mark.encode().as_slice() == block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_with_any_flipped_byte_is_no_mark() {
        for mark in [StateMark::Empty, StateMark::Making, StateMark::Made] {
            let block = mark.encode();
            assert_eq!(StateMark::parse(&block), Some(mark));
            for at in [0, 20, 100, 4095] {
                let mut damaged = block;
                damaged[at] ^= 1;
                assert_eq!(StateMark::parse(&damaged), None);
            }
            assert_eq!(StateMark::parse(&block[..512]), None);
        }
    }
}
