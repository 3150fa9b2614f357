//! Whether a file system may be made on the state partition. Pure: two blocks in, verdict out.

use formats::layout::{STATE_TAIL_BYTES, StateMark};

/// Bytes of a block of the state file system.
pub const BLOCK: u64 = 4096;
/// Smallest partition on which a file system is made.
const SMALLEST: u64 = 16 << 20;
/// Where an ext4 superblock has its magic number, from the start of the partition.
const EXT4_MAGIC_AT: usize = 1024 + 56;

/// What to do with the state partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Make a file system: nothing of value is there.
    Make,
    /// Check and mount the one that is there.
    Use,
    /// Touch nothing; why.
    Refuse(String),
}

/// Judges the first and the last 4096 bytes of the partition.
///
/// The marker at the start cannot stand beside an ext4 superblock, which lies within it; so where it is intact nothing
/// was ever made, whatever an earlier installation left at the end.
pub fn judge(start: &[u8], end: &[u8]) -> Verdict {
    let made = start.get(EXT4_MAGIC_AT..EXT4_MAGIC_AT + 2) == Some(&[0x53, 0xef]);
    match (StateMark::parse(start), StateMark::parse(end)) {
        (Some(StateMark::Empty), _) | (_, Some(StateMark::Making)) => Verdict::Make,
        (_, Some(StateMark::Made)) => Verdict::Use,
        (_, _) if made => Verdict::Use,
        (_, _) => Verdict::Refuse(
            "the state partition has neither the builder's marker nor a file system; nothing was made on it"
                .into(),
        ),
    }
}

/// Blocks of the file system on a partition of `bytes`; the tail stays free for the mark. `None` if it is too small.
pub fn blocks(bytes: u64) -> Option<u64> {
    (bytes >= SMALLEST).then(|| (bytes - STATE_TAIL_BYTES) / BLOCK)
}

/// Arguments of `mke2fs`.
///
/// The journal gets 64 MiB where that is at most a quarter of the file system: small journals stall SQLite and
/// Kubernetes. Inode tables are zeroed later by the kernel, in the background, since 2 TB have 32 GB of them; the
/// journal at once, since a stale one could be replayed. Old contents are not discarded: eMMC takes minutes for it.
pub fn make_args(device: &str, blocks: u64) -> Vec<String> {
    let mut args = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "farhold-state"]
        .map(str::to_owned)
        .to_vec();
    args.extend(["-E".into(), "nodiscard,lazy_itable_init=1,lazy_journal_init=0".into()]);
    if blocks * BLOCK >= 256 << 20 {
        args.extend(["-J".into(), "size=64".into()]);
    }
    args.extend([device.to_owned(), blocks.to_string()]);
    args
}

/// Blocks of the ext4 file system whose first 4096 bytes these are.
pub fn ext4_blocks(start: &[u8]) -> Option<u64> {
    let word = |at: usize| {
        let bytes = start.get(1024 + at..1024 + at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    let magic = start.get(EXT4_MAGIC_AT..EXT4_MAGIC_AT + 2)? == [0x53, 0xef];
    let plain = magic && word(0x18)? == 2;
    let high = if word(0x60)? & 0x80 == 0 { 0 } else { u64::from(word(0x150)?) };
    plain.then_some(u64::from(word(4)?) | high << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::layout::STATE_MARK_BYTES;
    use proptest::prelude::*;

    fn ext4() -> Vec<u8> {
        let mut block = vec![0u8; STATE_MARK_BYTES];
        block[EXT4_MAGIC_AT..EXT4_MAGIC_AT + 2].copy_from_slice(&[0x53, 0xef]);
        block
    }

    #[test]
    fn a_file_system_is_made_only_on_the_marker_or_after_an_interrupted_make() {
        let zeros = vec![0u8; STATE_MARK_BYTES];
        let starts =
            [StateMark::Empty.encode().to_vec(), ext4(), zeros.clone(), StateMark::Made.encode().to_vec()];
        let ends = [zeros, StateMark::Making.encode().to_vec(), StateMark::Made.encode().to_vec()];
        let verdicts: Vec<Verdict> =
            starts.iter().flat_map(|start| ends.iter().map(|end| judge(start, end))).collect();
        use Verdict::{Make, Use};
        assert_eq!(verdicts[..3], [Make, Make, Make]);
        assert_eq!(verdicts[3..6], [Use, Make, Use]);
        assert!(matches!(verdicts[6], Verdict::Refuse(_)));
        assert_eq!(verdicts[7..9], [Make, Use]);
        assert!(matches!(verdicts[9], Verdict::Refuse(_)));
    }

    #[test]
    fn the_tail_stays_free_and_the_journal_fits() {
        assert_eq!(blocks(64 << 20), Some((63 << 20) / 4096));
        assert_eq!(blocks(1 << 20), None);
        assert!(!make_args("/dev/vda6", blocks(64 << 20).unwrap()).contains(&"-J".to_owned()));
        assert!(make_args("/dev/vda6", blocks(1 << 30).unwrap()).contains(&"size=64".to_owned()));
    }

    proptest! {
        #[test]
        fn a_damaged_marker_never_permits_a_make(at in 0usize..STATE_MARK_BYTES, bit in 0u8..8, end: Vec<u8>) {
            let mut start = StateMark::Empty.encode();
            start[at] ^= 1 << bit;
            prop_assert_ne!(judge(&start, &end), Verdict::Make);
            ext4_blocks(&end);
        }
    }
}
