//! Power cuts inside SQLite's own writes: for each transaction and checkpoint, the files between two states, with the
//! sectors that differ written in part, torn, reordered, or in a file that grew before its contents came. Each such state
//! opens, and gives the memory from before or after.
//!
//! It rests on what SQLite promises of its order in WAL mode with `synchronous=FULL`: the log is flushed before a commit
//! returns, and before a checkpoint touches the database. So a transaction leaves the log in doubt, a checkpoint the
//! database.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const SECTOR: usize = 512;
type Files = BTreeMap<String, Vec<u8>>;

/// The database and its log as they are on the disk now.
fn files(folder: &Path) -> Files {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let names = names.filter(|entry| entry.metadata().unwrap().is_file());
    names
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| !name.ends_with("-shm"))
        .collect()
}

fn marked(n: u32) -> Record {
    // Long enough for several pages.
    let chain = format!("{n:08x}").repeat(700);
    Record::Update(Box::new(Memory { watermark_s: n, chain, ..Memory::default() }))
}

/// What a cut between `old` and `new` can leave of one file.
fn states(old: &[u8], new: &[u8]) -> Vec<Vec<u8>> {
    let sector =
        |bytes: &[u8], n: usize| bytes.get(n * SECTOR..).map(|rest| rest[..rest.len().min(SECTOR)].to_vec());
    let count = old.len().max(new.len()).div_ceil(SECTOR);
    let differ: Vec<usize> = (0..count).filter(|n| sector(old, *n) != sector(new, *n)).collect();
    let put = |chosen: &dyn Fn(usize) -> bool, length: usize| {
        let mut bytes = old.to_vec();
        bytes.resize(length.max(old.len()), 0);
        for (_, at) in differ.iter().enumerate().filter(|(n, _)| chosen(*n)) {
            let Some(data) = sector(new, *at) else { continue };
            let end = at * SECTOR + data.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at * SECTOR..end].copy_from_slice(&data);
        }
        bytes
    };
    let mut all = Vec::new();
    for cut in 0..=differ.len() {
        all.push(put(&|n| n < cut, 0));
        // The file grew, its contents did not all come.
        all.push(put(&|n| n < cut, new.len()));
        // The last come first.
        all.push(put(&|n| n >= cut, new.len()));
    }
    for first in 0..2 {
        all.push(put(&|n| n % 2 == first, new.len()));
        all.push(put(&|n| n / 8 % 2 == first, new.len()));
    }
    all
}

/// Opens every state between `old` and `new`; the memory must be one of `marks`.
fn campaign(old: &Files, new: &Files, marks: [u32; 2]) -> usize {
    let mut tried = 0;
    let empty = Vec::new();
    let changed: Vec<&String> =
        new.iter().filter(|(name, bytes)| old.get(*name) != Some(bytes)).map(|(n, _)| n).collect();
    assert_eq!(changed.len(), 1, "one file is in doubt at a time: {changed:?}");
    for name in changed {
        for state in states(old.get(name).unwrap_or(&empty), &new[name]) {
            tried += 1;
            let folder = tempfile::tempdir().unwrap();
            for (other, bytes) in old {
                fs::write(folder.path().join(other), bytes).unwrap();
            }
            fs::write(folder.path().join(name), &state).unwrap();
            let (store, condition) = open(folder.path());
            assert_eq!(condition, Condition::Ready, "{name}, state {tried} between {marks:?}");
            let found = store.unwrap().load().unwrap().update;
            assert!(marks.contains(&found.watermark_s), "{} between {marks:?}", found.watermark_s);
            assert_eq!(found.chain, format!("{:08x}", found.watermark_s).repeat(700));
        }
    }
    tried
}

#[test]
fn a_cut_at_any_sector_of_the_database_leaves_the_old_or_the_new_memory() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).0.unwrap();
    store.record(&[marked(1)]).unwrap();
    let (mut last, mut tried, mut mark) = (files(folder.path()), 0, 1);
    for round in 0..3 {
        for _ in 0..2 {
            store.record(&[marked(mark + 1)]).unwrap();
            let now = files(folder.path());
            tried += campaign(&last, &now, [mark, mark + 1]);
            (last, mark) = (now, mark + 1);
        }
        // The log is copied into the database; the next transaction begins it anew.
        let log: i64 =
            store.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(0)).unwrap();
        assert_eq!(log, 0, "round {round}");
        let now = files(folder.path());
        tried += campaign(&last, &now, [mark, mark]);
        last = now;
    }
    eprintln!("power cuts, database: {tried} states: each opens with the memory from before or after");
    assert!(tried > 500, "{tried}");
}
