//! Deltas whose maps and groups are damaged behind right digests, the same way in every run: an error or other output, never
//! a panic, and never output that passes for the right one.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use formats::delta::DeltaError;
use formats::delta::apply::Decoder;
use formats::delta::container::{Parts as Stored, build, put_bundle, short_digest};
use formats::delta::elf::Params;
use formats::delta::map::Range;
use formats::delta::object::{Copy, Kind, Map};
use formats::delta::ops::{self, Op};
use formats::delta::stream::{put_residue, put_stream};
use formats::delta::view::Extent;

/// Output of the one group.
const SIZE: u64 = 40_000;

/// A delta in parts that can be damaged one by one.
struct Parts {
    old: Vec<u8>,
    maps: Vec<Vec<u8>>,
    ops: Vec<u8>,
    residue: Vec<u8>,
    literals: Vec<u8>,
}

/// A delta of this test program, which is real code: two copies of an object with literals between, then plain operations.
fn sample() -> Parts {
    let old = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let copies = vec![Copy { new: 0, old: 0, len: 10_000 }, Copy { new: 10_100, old: 60_000, len: 19_900 }];
    let map = Map {
        kind: Kind::Elf(Params::default()),
        old: vec![Extent { offset: 0, len: old.len() as u64 }],
        new: Extent { offset: 0, len: 30_000 },
        segments: Vec::new(),
        ranges: vec![Range { start: 1 << 40, end: 1 << 41, delta: 16 }],
        copies,
    };
    let ops = [
        Op::Object { object: 0, len: 30_000 },
        Op::Copy { old: 1000, len: 4000 },
        Op::Diff { old: 5000, len: 2000 },
        Op::Zero { len: 3000 },
        Op::Extra { len: 1000 },
    ];
    Parts {
        maps: vec![map.encode()],
        ops: ops::encode(&ops, 0),
        residue: (0..20u32).map(|at| ((at * 77) >> 2) as u8 | 1).collect(),
        literals: vec![0x5a; 1100],
        old,
    }
}

/// Applies the parts; the group's stated digest is `expected`.
fn apply(parts: &Parts, expected: [u8; 16]) -> Result<Vec<u8>, DeltaError> {
    let mut group = Vec::new();
    put_stream(&mut group, &parts.ops, &parts.ops);
    put_residue(&mut group, &parts.residue);
    put_stream(&mut group, &parts.literals, &parts.literals);
    let bundle = put_bundle(&parts.maps, |plain| Ok::<_, DeltaError>(plain.to_vec()))?;
    let lens = (parts.old.len() as u64, SIZE);
    let stored = Stored { texts: &[], bundles: &[(bundle, 1)], history: false, groups: &[(group, expected)] };
    let delta = build(20, lens, &[[0; 32]; 2], &stored)?;
    let mut out = Vec::new();
    Decoder::open(&parts.old, &delta)?.group(0, &Vec::new(), &mut out)?;
    Ok(out)
}

/// The digest that the undamaged parts give, taken from the error of a wrong one.
fn right_digest(parts: &Parts) -> [u8; 16] {
    let Err(DeltaError::GroupDigest { found, .. }) = apply(parts, [0; 16]) else {
        panic!("a digest is wrong")
    };
    let mut digest = [0; 16];
    for (byte, pair) in digest.iter_mut().zip(found.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    }
    digest
}

#[test]
fn the_sample_is_a_good_delta() {
    let parts = sample();
    let digest = right_digest(&parts);
    let out = apply(&parts, digest).unwrap();
    assert_eq!((out.len() as u64, short_digest(&out)), (SIZE, digest));
    assert!(out[36_000..39_000].iter().all(|byte| *byte == 0));
}

/// The part with this number.
fn part(parts: &mut Parts, number: usize) -> &mut Vec<u8> {
    match number {
        0 => &mut parts.maps[0],
        1 => &mut parts.ops,
        2 => &mut parts.residue,
        _ => &mut parts.literals,
    }
}

#[test]
fn every_damaged_byte_of_maps_and_operations_is_noticed() {
    let good = sample();
    let (digest, right) = (right_digest(&good), apply(&good, right_digest(&good)).unwrap());
    let mut noticed = 0;
    for number in 0..2 {
        for at in 0..part(&mut sample(), number).len() {
            for bit in [0, 3, 7] {
                let mut bad = sample();
                part(&mut bad, number)[at] ^= 1 << bit;
                match apply(&bad, digest) {
                    // Another extent or range may predict the same bytes.
                    Ok(out) => assert!(out == right, "part {number}, byte {at}, bit {bit}"),
                    Err(_) => noticed += 1,
                }
            }
        }
    }
    assert!(noticed > 60, "{noticed} noticed");
}

#[test]
fn cut_and_random_damage_is_an_error() {
    let good = sample();
    let digest = right_digest(&good);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..200 {
        let mut bad = sample();
        let bytes = part(&mut bad, round % 4);
        match next(3) {
            0 => bytes.truncate(next(bytes.len())),
            1 => bytes.insert(next(bytes.len()), next(256) as u8),
            _ => {
                let (at, change) = (next(bytes.len()), 1 + next(255));
                bytes[at] = bytes[at].wrapping_add(change as u8);
            }
        }
        if let Ok(out) = apply(&bad, digest) {
            assert_eq!(short_digest(&out), digest, "round {round}");
        }
    }
}
