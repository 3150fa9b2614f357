//! Groups put together by hand: what they give, and what is refused.

use super::*;
use crate::delta::container::{Parts, build, put_bundle};
use crate::delta::elf::Params;
use crate::delta::object::Copy;
use crate::delta::stream::{put_residue, put_stream};
use crate::delta::view::Extent;
use proptest::prelude::*;
use std::sync::OnceLock;

/// This test program: real code, tables and headers.
fn program() -> &'static Vec<u8> {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    PROGRAM.get_or_init(|| std::fs::read(std::env::current_exe().unwrap()).unwrap())
}

fn group(ops: &[Op], residue: &[u8], extra: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let ops = crate::delta::ops::encode(ops, 0);
    put_stream(&mut out, &ops, &ops);
    put_residue(&mut out, residue);
    put_stream(&mut out, extra, extra);
    out
}

fn map(copies: Vec<Copy>, new_len: u64) -> Map {
    let old = vec![Extent { offset: 0, len: program().len() as u64 }];
    let kind = Kind::Elf(Params::default());
    Map {
        kind,
        old,
        new: Extent { offset: 0, len: new_len },
        segments: Vec::new(),
        ranges: Vec::new(),
        copies,
    }
}

fn decode(maps: &[Vec<u8>], group: Vec<u8>, size: u64) -> Result<Vec<u8>> {
    let bundle = put_bundle(maps, |plain| Ok::<_, DeltaError>(plain.to_vec())).unwrap();
    let bundles = [(bundle, maps.len() as u64)];
    let lens = (program().len() as u64, size);
    let parts = Parts { texts: &[], bundles: &bundles, history: false, groups: &[(group, [0; 16])] };
    let delta = build(20, lens, &[[0; 32]; 2], &parts).unwrap();
    let mut out = Vec::new();
    Decoder::open(program(), &delta)?.group(0, &NOTHING, &mut out).map(|()| out)
}

#[test]
fn output_without_the_stated_digest_is_refused() {
    let error = decode(&[], group(&[Op::Zero { len: 5 }], &[], &[]), 5).unwrap_err();
    assert!(matches!(error, DeltaError::GroupDigest { group: 0, .. }), "{error}");
}

#[test]
fn streams_must_be_used_up_and_suffice() {
    let refuse = |ops: &[Op], diff: &[u8], extra: &[u8], words: &str| {
        let error = decode(&[], group(ops, diff, extra), 5).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refuse(&[Op::Zero { len: 5 }], &[1], &[], "1 bytes are left over");
    refuse(&[Op::Extra { len: 5 }], &[], &[1; 4], "5 bytes are needed, but only 4 are left");
    refuse(&[Op::Object { object: 0, len: 5 }], &[], &[], "object 0 of 0");
}

#[test]
fn objects_may_not_be_opened_without_end() {
    let maps = [map(Vec::new(), 3000).encode(), map(Vec::new(), 3000).encode()];
    let ops: Vec<Op> = (0..3000).map(|number| Op::Object { object: number % 2, len: 1 }).collect();
    let error = decode(&maps, group(&ops, &[], &[0; 3000]), 3000).unwrap_err().to_string();
    assert!(error.contains("more than 2048 objects in turn"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn hostile_maps_are_errors(
        parts in prop::collection::vec((0u64..200, 1u64..3000, 0u64..1 << 22), 1..20),
        damage in prop::collection::vec((any::<u16>(), any::<u8>()), 0..3),
    ) {
        let (mut copies, mut end) = (Vec::new(), 0);
        for (gap, len, old) in parts {
            copies.push(Copy { new: end + gap, old: old % (program().len() as u64 - len), len });
            end += gap + len;
        }
        let mut bytes = map(copies, end).encode();
        for (at, value) in damage {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        let ops = [Op::Object { object: 0, len: end }];
        let found = decode(&[bytes], group(&ops, &vec![0; end as usize], &vec![0; 4000]), end);
        prop_assert!(found.is_err(), "the digest is wrong at least");
    }
}
