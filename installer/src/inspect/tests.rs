//! Files stand for disks: what stands on them is seen, and nothing of value is taken unasked.

use super::*;
use crate::choose::{Existing, choose};
use crate::disk::BlockDevice;
use formats::gpt::{self, NewPartition, NewTable};
use formats::stick::Rules;
use std::fs::File;
use std::os::unix::fs::FileExt;

const BYTES: u64 = 64 << 20;
const WINDOWS: [&str; 3] = [
    "e3c9e316-0b5c-4db8-817d-f92df00215ae",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac",
];

/// A disk of zeros on which `fill` writes.
fn disk(bytes: u64, fill: impl FnOnce(&File)) -> (tempfile::NamedTempFile, BlockDevice) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    fill(file.as_file());
    let disk = BlockDevice::open(file.path(), false).unwrap();
    (file, disk)
}

fn seen(fill: impl FnOnce(&File)) -> Contents {
    inspect(&disk(BYTES, fill).1, Arch::X86_64)
}

fn table(kinds: &[(&str, &str)]) -> NewTable {
    let partition = |(n, (kind, label)): (usize, &(&str, &str))| NewPartition {
        kind: Guid::parse(kind).unwrap(),
        guid: Guid::from_disk(&[n as u8 + 1; 16]),
        first: 2048 * (n as u64 + 1),
        last: 2048 * (n as u64 + 2) - 1,
        attributes: 0,
        label: (*label).to_owned(),
    };
    let partitions: Vec<NewPartition> = kinds.iter().enumerate().map(partition).collect();
    gpt::make(Guid::from_disk(&[9; 16]), BYTES / SECTOR_BYTES, &partitions).unwrap()
}

fn write_table(file: &File, table: &NewTable, primary: bool) {
    let last = BYTES / SECTOR_BYTES - 1;
    let backup = [(table.backup_entries_at, &table.entries), (last, &table.backup)];
    let first = [(0, &table.mbr), (1, &table.primary), (2, &table.entries)];
    for (at, bytes) in backup.into_iter().chain(first.into_iter().filter(|_| primary)) {
        file.write_all_at(bytes, at * SECTOR_BYTES).unwrap();
    }
}

/// What the installer says to a machine whose only disk holds this; nothing is told in site.yaml.
fn refusal(contents: Contents) -> String {
    let disk = crate::samples::disk("/dev/sda", "ata", 100, contents);
    choose(&[disk], &Rules::default(), Existing::Refuse, 1 << 30).unwrap_err().to_string()
}

#[test]
fn zeros_are_empty_and_one_byte_at_either_end_is_not() {
    assert_eq!(seen(|_| {}), Contents::Empty);
    for at in [4096, (1 << 20) - 1, BYTES - (1 << 20), BYTES - 1] {
        let contents = seen(|file| file.write_all_at(&[1], at).unwrap());
        assert_eq!(contents, Contents::Foreign("data of an unknown kind".into()), "byte {at}");
        assert!(refusal(contents).starts_with("data would be lost"));
    }
}

#[test]
fn systems_of_others_are_named_and_refused() {
    let found: [(u64, &[u8], &str); 9] = [
        (3, b"NTFS    ", "NTFS"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (0, b"XFSB", "XFS"),
        (0x438, b"\x53\xef", "ext"),
        (0x1_0040, b"_BHRfS_M", "btrfs"),
        (512, b"LABELONE", "LVM"),
        (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        (0x8001, b"CD001", "ISO"),
        (510, b"\x55\xaa", "MBR"),
    ];
    for (at, magic, name) in found {
        let said = refusal(seen(|file| file.write_all_at(magic, at).unwrap()));
        assert!(said.contains(name) && said.starts_with("data would be lost: /dev/sda"), "{name}: {said}");
        assert!(said.contains("Nothing was changed.") && said.contains("existing: erase"), "{said}");
    }
}

#[test]
fn a_foreign_table_is_seen_also_where_only_its_backup_is_left() {
    let windows = table(&WINDOWS.map(|kind| (kind, "")));
    for primary in [true, false] {
        let said = refusal(seen(|file| write_table(file, &windows, primary)));
        assert!(said.contains("another system: 3 partitions (Windows"), "primary {primary}: {said}");
    }
}

#[test]
fn the_mark_of_an_installation_frees_no_disk_that_has_a_foreign_table() {
    let windows = table(&WINDOWS.map(|kind| (kind, "")));
    let marked = |file: &File| {
        write_table(file, &windows, true);
        file.write_all_at(&stick::mark(), stick::MARK_SECTOR * SECTOR_BYTES).unwrap();
    };
    assert!(matches!(seen(marked), Contents::Foreign(_)));
    let mark = |file: &File| file.write_all_at(&stick::mark(), stick::MARK_SECTOR * SECTOR_BYTES).unwrap();
    assert_eq!(seen(mark), Contents::Begun);
}

#[test]
fn another_stick_is_never_a_target() {
    let stick = table(&[(stick::TYPE_DATA, stick::LABEL_DATA), (layout::TYPE_ESP, stick::LABEL_BOOT)]);
    assert_eq!(seen(|file| write_table(file, &stick, true)), Contents::Stick);
}

#[test]
fn a_system_for_another_processor_is_foreign() {
    let arm = [
        (layout::TYPE_ESP, LABEL_ESP),
        (layout::type_root(Arch::Arm64), Slot::A.root_label()),
        (layout::type_verity(Arch::Arm64), Slot::A.verity_label()),
        (layout::type_root(Arch::Arm64), Slot::B.root_label()),
        (layout::type_verity(Arch::Arm64), Slot::B.verity_label()),
        (layout::TYPE_STATE, LABEL_STATE),
    ];
    assert!(matches!(seen(|file| write_table(file, &table(&arm), true)), Contents::Foreign(_)));
}

#[test]
fn a_disk_of_a_few_sectors_and_one_that_fails_are_not_empty_disks_to_write_on() {
    let (_file, tiny) = disk(16 << 10, |file| file.write_all_at(&[1], 5000).unwrap());
    assert!(matches!(inspect(&tiny, Arch::X86_64), Contents::Foreign(_)));
    let (file, shrunk) = disk(BYTES, |_| {});
    file.as_file().set_len(BYTES / 2).unwrap();
    let contents = inspect(&shrunk, Arch::X86_64);
    assert!(matches!(contents, Contents::Unreadable(_)), "{contents:?}");
    assert!(refusal(contents).contains("not readable"));
}
