//! Any list blocks and data blocks in any order: nothing but the true parts of an object is ever accepted.
#![no_main]

use formats::object::{self, BlockSize, Verifier};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [log2, length, steps @ ..] = bytes else { return };
    let Some(block) = BlockSize::from_log2(8 + log2 % 4) else { return };
    let data: Vec<u8> = (0..usize::from(*length) * 150).map(|n| (n ^ (n >> 8)) as u8).collect();
    let Ok(object) = object::of(&data, block) else { return };
    let geometry = object.geometry;
    let levels = geometry.lists().len();
    let top = geometry.lists()[levels - 1] as usize;
    let Ok(mut verifier) = Verifier::new(object.id, geometry, &object.lists[..top]) else {
        panic!("the true topmost list was refused");
    };
    for step in steps.chunks(4) {
        let [what, index, at, flip] = step else { return };
        let index = u64::from(*index);
        if what % 2 == 0 {
            let level = usize::from(what / 2) % (levels + 1);
            let range = geometry.list_range(level, index).unwrap_or(0..u64::from(*at));
            let mut part = object.lists.get(range.start as usize..range.end as usize).unwrap_or(&[]).to_vec();
            let damaged = damage(&mut part, *at, *flip);
            let accepted = verifier.list(level, index, &part).is_ok();
            assert!(!(accepted && damaged));
        } else {
            let start = (index as usize).saturating_mul(block.bytes() as usize).min(data.len());
            let end = (start + block.bytes() as usize).min(data.len());
            let mut part = data[start..end].to_vec();
            let damaged = damage(&mut part, *at, *flip);
            let accepted = verifier.block(index, &part).is_ok();
            assert!(!(accepted && damaged));
        }
    }
});

fn damage(part: &mut Vec<u8>, at: u8, flip: u8) -> bool {
    if flip == 0 || part.is_empty() {
        return false;
    }
    if flip == 1 {
        part.pop();
        return true;
    }
    let at = usize::from(at) % part.len();
    part[at] ^= flip;
    true
}
