//! Every cut, every unsynced fate: what was flushed is there, and nothing else is ever read.

use super::*;
use crate::io::disk::fault::{FaultDisk, Unsynced};
use formats::object::{self, BlockSize};

const BLOCK: usize = 256;

fn sample(length: usize) -> (Vec<u8>, Object, object::Object) {
    let data: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
    let made = object::of(&data, BlockSize::from_log2(8).unwrap()).unwrap();
    let object = Object { id: made.id, bytes: length as u64, block_log2: 8 };
    (data, object, made)
}

fn region(object: &Object) -> FaultDisk {
    FaultDisk::new(vec![0x5a; bytes(&object.geometry().unwrap()) as usize])
}

fn fill(
    disk: FaultDisk,
    object: &Object,
    data: &[u8],
    lists: &[u8],
    every: usize,
) -> Result<FaultDisk, FaultDisk> {
    let mut disk = disk;
    let run = |disk: &mut FaultDisk| -> Result<()> {
        let mut staging = Staging::open(disk, object)?;
        while let Some(wanted) = staging.wanted().filter(|wanted| matches!(wanted.what, What::Lists(_))) {
            // The last piece first: what waits for others is kept, too.
            for index in wanted.missing.into_iter().flatten().rev().collect::<Vec<_>>() {
                let at = index as usize * BLOCK;
                let worth = staging.put_lists(index, &lists[at..lists.len().min(at + BLOCK)])?;
                assert_eq!(worth, Worth::New);
                staging.flush()?;
            }
        }
        let mut next = 0;
        while let Some(run) = staging.missing(next) {
            for index in run.clone() {
                let at = index as usize * BLOCK;
                assert_eq!(staging.put(index, &data[at..data.len().min(at + BLOCK)])?, Worth::New);
                if staging.unflushed() >= (every * BLOCK) as u64 {
                    staging.flush()?;
                }
            }
            next = run.end;
        }
        staging.flush()
    };
    match run(&mut disk) {
        Ok(()) => Ok(disk),
        Err(_) => Err(disk),
    }
}

#[test]
fn what_was_flushed_survives_every_cut_and_nothing_else_is_ever_read() {
    let (data, object, made) = sample(20 * BLOCK + 17);
    let mut whole = region(&object);
    whole = fill(whole, &object, &data, &made.lists, 4).ok().unwrap();
    let mut states = 0;
    for cut in 0..whole.mutations {
        let mut disk = region(&object);
        disk.cut_at = Some(cut);
        let cut_disk = fill(disk, &object, &data, &made.lists, 4).err().unwrap();
        for unsynced in [Unsynced::Lost, Unsynced::Kept, Unsynced::Torn(0), Unsynced::Torn(1)] {
            states += 1;
            let mut after = cut_disk.clone().after_cut(unsynced);
            let mut staging = Staging::open(&mut after, &object).unwrap();
            for index in 0..staging.geometry().blocks() {
                let at = index as usize * BLOCK;
                match staging.read(index) {
                    Ok(block) => assert_eq!(block, data[at..data.len().min(at + BLOCK)]),
                    Err(Unreadable::Missing(_)) => {}
                    Err(Unreadable::Disk(error)) => panic!("{error:#}"),
                }
            }
            drop(staging);
            let done = fill(after, &object, &data, &made.lists, 4).ok().unwrap();
            let mut done = done;
            assert!(Staging::open(&mut done, &object).unwrap().complete());
        }
    }
    assert!(states > 60, "{states}");
}

#[test]
fn single_blocks_and_empty_objects_need_no_lists() {
    for length in [0, 1, BLOCK] {
        let (data, object, _) = sample(length);
        let mut disk = fill(region(&object), &object, &data, &[], 1).ok().unwrap();
        let mut staging = Staging::open(&mut disk, &object).unwrap();
        assert!(staging.complete(), "{length}");
        if length > 0 {
            assert_eq!(staging.read(0).unwrap(), data);
        }
    }
}

#[test]
fn a_block_that_rots_is_forgotten_and_foreign_ones_are_refused() {
    let (data, object, made) = sample(5 * BLOCK);
    let mut disk = fill(region(&object), &object, &data, &made.lists, 2).ok().unwrap();
    let at = Layout::of(&object.geometry().unwrap()).data + 3 * BLOCK as u64;
    disk.write(at, &[!data[3 * BLOCK]]).unwrap();
    let mut staging = Staging::open(&mut disk, &object).unwrap();
    assert!(matches!(staging.read(3), Err(Unreadable::Missing(3))));
    assert_eq!(staging.missing(0), Some(3..4));
    assert!(matches!(staging.put(3, &data[..BLOCK]).unwrap(), Worth::Wrong(_)));
    assert_eq!(staging.put(2, &data[..BLOCK]).unwrap(), Worth::Known);
    assert_eq!(staging.put_lists(0, &made.lists).unwrap(), Worth::Known);
    drop(staging);
    let (_, other, _) = sample(5 * BLOCK - 1);
    assert_eq!(Staging::open(&mut disk, &other).unwrap().done(), 0);
}

#[test]
fn lists_that_came_in_part_are_taken_up_and_wrong_ones_are_refused() {
    let (_, object, made) = sample(600 * BLOCK);
    let (lists, mut disk) = (&made.lists, region(&object));
    let piece = |n: usize| &lists[n * BLOCK..lists.len().min((n + 1) * BLOCK)];
    let mut staging = Staging::open(&mut disk, &object).unwrap();
    let count = staging.wanted().unwrap().missing[0].end;
    for n in 0..5 {
        assert_eq!(staging.put_lists(n as u64, piece(n)).unwrap(), Worth::New);
    }
    assert!(matches!(staging.put_lists(5, piece(9)).unwrap(), Worth::Wrong(_)));
    assert!(matches!(staging.put_lists(6, &piece(6)[1..]).unwrap(), Worth::Wrong(_)));
    assert!(matches!(staging.put_lists(count, piece(0)).unwrap(), Worth::Wrong(_)));
    staging.flush().unwrap();
    drop(staging);
    let mut staging = Staging::open(&mut disk, &object).unwrap();
    let wanted = staging.wanted().unwrap();
    assert_eq!(wanted.missing, vec![4..count]);
    for n in wanted.missing.into_iter().flatten() {
        assert_eq!(staging.put_lists(n, piece(n as usize)).unwrap(), Worth::New);
    }
    assert_eq!(staging.wanted().unwrap().what, What::Object(object.id));
}
