//! Tests of objects: trees of hashes, and what is refused.

use super::*;
use proptest::prelude::*;

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 7 + n / 251) as u8).collect()
}

fn split(object: &Object, level: usize, index: u64) -> &[u8] {
    let range = object.geometry.list_range(level, index).unwrap();
    &object.lists[range.start as usize..range.end as usize]
}

#[test]
fn levels_have_the_lengths_that_the_geometry_says() {
    let b256 = BlockSize::from_log2(8).unwrap();
    // 8 hashes fit a list block of 256 bytes: one level up to 8 blocks, two up to 64, three beyond.
    for (length, levels) in [(0, 1), (1, 1), (2048, 1), (2049, 2), (16384, 2), (16385, 3)] {
        let object = of(&bytes(length), b256).unwrap();
        assert_eq!(object.geometry.lists().len(), levels, "{length}");
        assert_eq!(object.lists.len() as u64, object.geometry.list_bytes(), "{length}");
        Verifier::from_lists(object.id, object.geometry, &object.lists).unwrap();
    }
}

#[test]
fn data_lists_and_geometry_cannot_stand_for_one_another() {
    let b256 = BlockSize::from_log2(8).unwrap();
    let data = bytes(300);
    let object = of(&data, b256).unwrap();
    let ids = [
        of(&object.lists, b256).unwrap().id,
        of(&data[..299], b256).unwrap().id,
        of(&data, BlockSize::from_log2(9).unwrap()).unwrap().id,
        of(&[], b256).unwrap().id,
        of(&[], BlockSize::KIB_1).unwrap().id,
        object.id,
    ];
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len());
}

#[test]
fn parts_before_their_list_and_outside_the_object_are_refused() {
    let b256 = BlockSize::from_log2(8).unwrap();
    let data = bytes(5000);
    let object = of(&data, b256).unwrap();
    let (geometry, top) = (object.geometry, split(&object, 1, 0));
    let mut verifier = Verifier::new(object.id, geometry, top).unwrap();
    let missing = ObjectError::ListMissing { what: "block", index: 19 };
    assert_eq!(verifier.block(19, &data[19 * 256..]), Err(missing));
    verifier.list(0, 2, split(&object, 0, 2)).unwrap();
    verifier.block(19, &data[19 * 256..]).unwrap();
    assert_eq!(verifier.block(7, &data[..256]), Err(ObjectError::ListMissing { what: "block", index: 7 }));
    let outside = ObjectError::NoSuchBlock { what: "block", index: 20, count: 20 };
    assert_eq!(verifier.block(20, &[]), Err(outside));
    let outside = ObjectError::NoSuchBlock { what: "list block", index: 3, count: 3 };
    assert_eq!(verifier.list(0, 3, &[]), Err(outside));
    assert!(verifier.list(1, 0, top).is_err() && verifier.list(usize::MAX - 1, 0, top).is_err());
}

#[test]
fn oversized_objects_are_refused_without_allocating() {
    assert!(Geometry::new(MAX_BLOCKS * 4096, BlockSize::KIB_4).is_ok());
    assert!(Geometry::new(MAX_BLOCKS * 4096 + 1, BlockSize::KIB_4).is_err());
    assert!(Geometry::new(u64::MAX, BlockSize::from_log2(22).unwrap()).is_err());
    assert_eq!(BlockSize::from_log2(7), None);
    assert_eq!(BlockSize::from_log2(23), None);
}

#[test]
fn hash_files_are_read_from_the_start_as_far_as_they_are_good() {
    let b256 = BlockSize::from_log2(8).unwrap();
    for length in [0, 1, 256, 2048, 2049, 16384, 16385, 60_000] {
        let object = of(&bytes(length), b256).unwrap();
        let mut reader = ListReader::new(object.id, object.geometry);
        let mut at = 0;
        while let Some(range) = reader.next() {
            assert_eq!(range.start, at, "{length}");
            assert!(reader.done().is_none());
            let mut block = object.lists[range.start as usize..range.end as usize].to_vec();
            assert!(reader.take(&[block.as_slice(), &[0]].concat()).is_err());
            if let Some(first) = block.first_mut() {
                *first ^= 1;
                assert!(reader.take(&block).is_err());
                block[0] ^= 1;
            }
            reader.take(&block).unwrap();
            at = range.end;
        }
        assert_eq!(at, object.lists.len() as u64);
        assert!(reader.done().is_some() && reader.take(&[]).is_err());
    }
}

proptest! {
    #[test]
    fn any_order_verifies_and_any_flip_is_seen(
        length in 1usize..40_000, log2 in 8u8..=13, flip in any::<prop::sample::Index>(),
        order in any::<u64>(), cut in 1usize..5000,
    ) {
        let data = bytes(length);
        let block = BlockSize::from_log2(log2).unwrap();
        let object = of(&data, block).unwrap();
        let mut pieces = Builder::new(block);
        data.chunks(cut).for_each(|piece| pieces.push(piece));
        prop_assert_eq!(&pieces.finish().unwrap(), &object);

        let verifier = Verifier::from_lists(object.id, object.geometry, &object.lists).unwrap();
        let count = object.geometry.blocks();
        for step in 0..count {
            let index = (step + order % count) % count;
            let start = index as usize * block.bytes() as usize;
            let end = start + object.geometry.block_length(index).unwrap();
            let mut part = data[start..end].to_vec();
            prop_assert_eq!(verifier.block(index, &part), Ok(()));
            part[flip.index(end - start)] ^= 1;
            let refused = ObjectError::Hash { what: "block", index };
            prop_assert_eq!(verifier.block(index, &part), Err(refused));
        }
        let mut lists = object.lists.clone();
        lists[flip.index(object.lists.len())] ^= 1;
        prop_assert!(Verifier::from_lists(object.id, object.geometry, &lists).is_err());
    }
}
