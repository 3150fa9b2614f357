//! Growth cut at every sector, with lost, kept and mixed sectors, and refusals of damaged tables.

use super::*;
use proptest::prelude::*;

const SECTORS: u64 = 6 * 2048;

fn entry(kind: u8, first: u64, last: u64, label: &str) -> Vec<u8> {
    let mut entry = vec![0u8; ENTRY_BYTES];
    entry[..16].fill(kind);
    entry[16..32].fill(kind + 100);
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&last.to_le_bytes());
    for (n, unit) in label.encode_utf16().enumerate() {
        entry[56 + 2 * n..58 + 2 * n].copy_from_slice(&unit.to_le_bytes());
    }
    entry
}

/// A disk as a builder leaves it: made for `built` sectors, then put on one of [`SECTORS`].
fn disk(built: u64) -> Vec<u8> {
    let mut entries = [entry(1, 2048, 4095, "esp"), entry(2, 4096, built - 2049, "state")].concat();
    entries.resize(128 * ENTRY_BYTES, 0);
    let header = Header {
        at: 1,
        alternate: built - 1,
        first_usable: 34,
        last_usable: built - 34,
        disk: Guid::parse("c12a7328-f81f-11d2-ba4b-00a0c93ec93b").unwrap(),
        entries_at: 2,
        entry_count: 128,
        entries_crc: crc32(&entries),
    };
    let backup = Header { at: built - 1, alternate: 1, entries_at: built - 33, ..header };
    let mut disk = vec![0u8; SECTORS as usize * SECTOR];
    for (at, bytes) in
        [(1, header.encode()), (2, entries.clone()), (built - 33, entries), (built - 1, backup.encode())]
    {
        put(&mut disk, at, &bytes);
    }
    disk
}

fn put(disk: &mut [u8], at: u64, bytes: &[u8]) {
    disk[at as usize * SECTOR..][..bytes.len()].copy_from_slice(bytes);
}

fn table(disk: &[u8], at: u64) -> Result<Table, GptError> {
    let header = Header::parse(&disk[at as usize * SECTOR..], at)?;
    Table::new(header, &disk[header.entries_at as usize * SECTOR..])
}

fn growth(disk: &[u8]) -> Growth {
    let table = table(disk, 1).unwrap();
    let tail = &disk[Growth::tail_at(&table, SECTORS) as usize * SECTOR..];
    plan(&Want { table: &table, partition: 2, disk_sectors: SECTORS, tail }).unwrap()
}

fn run(mut disk: Vec<u8>) -> Vec<u8> {
    for (at, bytes) in growth(&disk).stages.into_iter().flatten() {
        put(&mut disk, at, &bytes);
    }
    disk
}

/// The sectors of a stage, each of which a power cut may keep or lose.
fn sectors(stage: &[(u64, Vec<u8>)]) -> Vec<(u64, Vec<u8>)> {
    let split = |(at, bytes): &(u64, Vec<u8>)| {
        let at = *at;
        bytes.chunks(SECTOR).enumerate().map(move |(n, s)| (at + n as u64, s.to_vec())).collect::<Vec<_>>()
    };
    stage.iter().flat_map(split).collect()
}

fn assert_recovers(cut: &[u8], old: &Table, finished: &[u8]) {
    let now = table(cut, 1).expect("the primary table is whole at every instant");
    let new = table(finished, 1).unwrap();
    assert!([old.partitions(), new.partitions()].contains(&now.partitions()));
    assert_eq!(run(cut.to_vec()), finished, "the next boot ends where this one would have");
}

#[test]
fn grows_to_the_last_whole_mebibyte_and_then_has_nothing_to_do() {
    let grown = run(disk(4 * 2048));
    let partitions = table(&grown, 1).unwrap().partitions();
    assert_eq!(partitions[1].last + 1, 5 * 2048);
    assert_eq!(partitions[1].label, "state");
    assert_eq!(partitions[0].last, 4095);
    assert_eq!(table(&grown, SECTORS - 1).unwrap().partitions(), partitions);
    assert_eq!(growth(&grown).stages, Vec::<Vec<_>>::new());
}

#[test]
fn every_prefix_and_every_single_lost_or_kept_sector_recovers() {
    let before = disk(4 * 2048);
    let old = table(&before, 1).unwrap();
    let finished = run(before.clone());
    let mut durable = before;
    for stage in growth(&durable).stages {
        let sectors = sectors(&stage);
        for n in 0..sectors.len() {
            for keep in [&|i| i < n, &|i| i >= n, &|i| i == n, &|i| i != n] as [&dyn Fn(usize) -> bool; 4] {
                let mut cut = durable.clone();
                for (_, (at, bytes)) in sectors.iter().enumerate().filter(|(i, _)| keep(*i)) {
                    put(&mut cut, *at, bytes);
                }
                assert_recovers(&cut, &old, &finished);
            }
        }
        for (at, bytes) in &stage {
            put(&mut durable, *at, bytes);
        }
    }
}

#[test]
fn damaged_fields_are_refused_by_name() {
    let good = disk(4 * 2048);
    for at in 0..HEADER_BYTES {
        let mut bad = good.clone();
        bad[SECTOR + at] ^= 1;
        assert!(table(&bad, 1).is_err(), "header byte {at}");
    }
    let mut bad = good.clone();
    bad[2 * SECTOR + 5] ^= 1;
    assert_eq!(table(&bad, 1), Err(GptError::Checksum("entries")));
    assert_eq!(Header::parse(&good[..100], 0), Err(GptError::Short));
    assert_eq!(Header::parse(&good[..SECTOR], 0), Err(GptError::Absent));
    assert_eq!(Header::parse(&good[SECTOR..], 7), Err(GptError::Unsupported("header's own place")));
}

#[test]
fn a_disk_smaller_than_its_table_is_refused() {
    let disk = disk(4 * 2048);
    let table = table(&disk, 1).unwrap();
    let want = Want { table: &table, partition: 2, disk_sectors: 3 * 2048, tail: &[] };
    assert!(matches!(plan(&want), Err(GptError::Unsupported(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_mix_of_sectors_of_a_stage_recovers(stage in 0usize..5, keep: [bool; 40]) {
        let before = disk(4 * 2048);
        let old = table(&before, 1).unwrap();
        let finished = run(before.clone());
        let stages = growth(&before).stages;
        let mut cut = before;
        for (at, bytes) in stages[..stage].iter().flatten() {
            put(&mut cut, *at, bytes);
        }
        for ((at, bytes), _) in sectors(&stages[stage]).iter().zip(keep).filter(|(_, keep)| *keep) {
            put(&mut cut, *at, bytes);
        }
        assert_recovers(&cut, &old, &finished);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut sector: Vec<u8>, entries: Vec<u8>, signed: bool) {
        sector.resize(SECTOR, 0);
        if signed {
            sector[..8].copy_from_slice(b"EFI PART");
            sector[12..16].copy_from_slice(&92u32.to_le_bytes());
            sector[16..20].fill(0);
            let crc = crc32(&sector[..HEADER_BYTES]);
            sector[16..20].copy_from_slice(&crc.to_le_bytes());
        }
        if let Ok(table) = Header::parse(&sector, 1).and_then(|h| Table::new(h, &entries)) {
            table.partitions();
        }
    }
}
