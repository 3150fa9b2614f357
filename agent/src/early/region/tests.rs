//! First boots cut at every write and flush, in four ways, then booted again; checked with another GPT implementation.

use super::*;
use crate::io::disk::fault::{FaultDisk, Unsynced};
use std::io::Cursor;
use std::sync::OnceLock;

const MIB: u64 = 1 << 20;
const WAYS: [Unsynced; 4] = [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(0), Unsynced::Torn(1)];
/// Stands for the file system that `mke2fs` writes, marker overwritten first.
const FILE_SYSTEM: u8 = 0xfd;

/// A disk as built: ESP and a state partition with the marker, 10 MiB.
fn built() -> Vec<u8> {
    let mut image = Cursor::new(vec![0u8; (10 * MIB) as usize]);
    gpt::write(&mut image, LABEL_STATE);
    let mut bytes = image.into_inner();
    let start = gpt::read(&bytes)[1].1 as usize * SECTOR;
    bytes[start..start + STATE_MARK_BYTES].copy_from_slice(&StateMark::Empty.encode());
    bytes
}

mod gpt {
    //! Tables made and read by the `gpt` crate, so that writer and reader are not the same code.
    use ::gpt::disk::LogicalBlockSize;
    use ::gpt::{GptConfig, partition_types};
    use std::io::Cursor;

    pub fn write(image: &mut Cursor<Vec<u8>>, state: &str) {
        let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
        let mut disk = config.create_from_device(image, None).unwrap();
        disk.add_partition("farhold-esp", 1 << 20, partition_types::EFI, 0, Some(2048)).unwrap();
        disk.add_partition(state, 7 << 20, partition_types::LINUX_FS, 0, Some(2048)).unwrap();
        disk.write().unwrap();
    }

    /// Name, first and last sector of each partition; both headers must be valid.
    pub fn read(bytes: &[u8]) -> Vec<(String, u64, u64)> {
        let config = GptConfig::new().logical_block_size(LogicalBlockSize::Lb512);
        let disk = config.open_from_device(Cursor::new(bytes.to_vec())).unwrap();
        assert!(disk.primary_header().is_ok() && disk.backup_header().is_ok());
        disk.partitions().values().map(|p| (p.name.clone(), p.first_lba, p.last_lba)).collect()
    }
}

/// Every test disk is the same: the other implementation gives random GUIDs.
fn fresh(mib: u64) -> FaultDisk {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    let mut bytes = BUILT.get_or_init(built).clone();
    bytes.resize((mib * MIB) as usize, 0xee);
    FaultDisk::new(bytes)
}

/// What a first boot writes, `mke2fs` reduced to three writes. Returns whether a file system was made.
fn boot(disk: &mut FaultDisk) -> Result<bool> {
    let [_, region] = grow(disk)?;
    match region.verdict(disk)? {
        Verdict::Use => Ok(false),
        Verdict::Refuse(why) => panic!("refused: {why}"),
        Verdict::Make => {
            region.mark(disk, StateMark::Making)?;
            let mut first = vec![FILE_SYSTEM; STATE_MARK_BYTES];
            first[1080..1082].copy_from_slice(&[0x53, 0xef]);
            disk.write(region.start, &[0; STATE_MARK_BYTES])?;
            disk.write(region.start + 64 * 4096, &[FILE_SYSTEM; 8192])?;
            disk.write(region.start, &first)?;
            disk.sync()?;
            region.mark(disk, StateMark::Made)?;
            Ok(true)
        }
    }
}

#[test]
fn grows_and_makes_once_and_another_implementation_agrees() {
    let mut disk = fresh(14);
    assert!(boot(&mut disk).unwrap());
    let table = gpt::read(disk.bytes());
    assert_eq!((table[1].2 + 1) * SECTOR_BYTES, 13 * MIB);
    let done = disk.mutations;
    assert!(!boot(&mut disk).unwrap());
    assert_eq!(disk.mutations, done, "a second boot writes nothing");
}

#[test]
fn a_first_boot_cut_anywhere_ends_as_an_uncut_one() {
    let mut whole = fresh(14);
    boot(&mut whole).unwrap();
    for cut in 0..whole.mutations {
        for way in WAYS {
            let mut disk = fresh(14);
            disk.cut_at = Some(cut);
            boot(&mut disk).unwrap_err();
            let mut next = disk.after_cut(way);
            boot(&mut next).unwrap();
            assert!(next.bytes() == whole.bytes(), "cut at {cut}, {way:?}");
        }
    }
}

#[test]
fn a_disk_enlarged_later_keeps_its_file_system_at_every_cut() {
    let mut small = fresh(14);
    boot(&mut small).unwrap();
    let enlarged = || {
        let mut bytes = small.bytes().to_vec();
        bytes.resize((18 * MIB) as usize, 0);
        // An earlier installation on the larger disk was cut while it made its file system.
        let stale = (17 * MIB) as usize - STATE_MARK_BYTES;
        bytes[stale..stale + STATE_MARK_BYTES].copy_from_slice(&StateMark::Making.encode());
        FaultDisk::new(bytes)
    };
    let mut whole = enlarged();
    assert!(!boot(&mut whole).unwrap(), "never made anew");
    for cut in 0..whole.mutations {
        for way in WAYS {
            let mut disk = enlarged();
            disk.cut_at = Some(cut);
            boot(&mut disk).unwrap_err();
            let mut next = disk.after_cut(way);
            assert!(!boot(&mut next).unwrap(), "cut at {cut}, {way:?}");
            assert!(next.bytes() == whole.bytes(), "cut at {cut}, {way:?}");
        }
    }
}

#[test]
fn a_lost_end_mark_does_not_let_a_stale_one_permit_a_make() {
    let mut small = fresh(14);
    boot(&mut small).unwrap();
    let mut bytes = small.bytes().to_vec();
    let lost = (13 * MIB) as usize - STATE_MARK_BYTES;
    bytes[lost..lost + 512].fill(0x55);
    bytes.resize((18 * MIB) as usize, 0);
    let stale = (17 * MIB) as usize - STATE_MARK_BYTES;
    bytes[stale..stale + STATE_MARK_BYTES].copy_from_slice(&StateMark::Making.encode());
    assert!(!boot(&mut FaultDisk::new(bytes)).unwrap());
}

#[test]
fn a_disk_without_a_state_partition_or_table_is_left_alone() {
    let mut image = Cursor::new(vec![0u8; (10 * MIB) as usize]);
    gpt::write(&mut image, "something else");
    for (bytes, expected) in [
        (image.into_inner(), "the disk has no state partition"),
        (vec![0u8; (10 * MIB) as usize], "no GUID partition table"),
    ] {
        let mut disk = FaultDisk::new(bytes);
        assert_eq!(grow(&mut disk).unwrap_err().to_string(), expected);
        assert_eq!(disk.mutations, 0);
    }
}
