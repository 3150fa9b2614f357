//! What a hostile delta can make the decoder keep in memory: everything at its limit at once, counted by the allocator.
//! One test, so that nothing else allocates meanwhile.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use formats::delta::apply::Decoder;
use formats::delta::container::{Parts, Text, build, put_bundle};
use formats::delta::deflate::{Restart, Style};
use formats::delta::elf::Params;
use formats::delta::map::Range;
use formats::delta::object::{Copy, Kind, Map};
use formats::delta::ops::{self, Op};
use formats::delta::stream::{put_residue, put_stream};
use formats::delta::view::Extent;
use formats::delta::{DeltaError, MAX_COPIES, MAX_PREFIX};
use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What the decoder may have, in bytes; zstd's own tables, some 200 KB, are not counted.
const BOUND: usize = 64 << 20;
const GROUP: u64 = 4 << 20;
const STYLE: Style = Style { zlib: false, level: 9 };
/// Files of the EROFS image, several times those of a system.
const FILES: usize = 60_000;

/// Bytes that do not pack.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 5u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(&mut next).take(len).collect()
}

/// An EROFS image of [`FILES`] files with a block each, 300 a directory, then `behind`.
fn image(behind: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 4096;
    let folders = FILES.div_ceil(300);
    let nid = |number: usize| 64 + number;
    let (root, first) = (folders, folders + 1);
    let data = (64 + first + FILES) * 32 / BLOCK + 1;
    let mut bytes = vec![0u8; data * BLOCK];
    bytes[1024..1028].copy_from_slice(&0xe0f5_e1e2u32.to_le_bytes());
    bytes[1036] = 12;
    bytes[1038..1040].copy_from_slice(&(nid(root) as u16).to_le_bytes());
    let inode = |bytes: &mut Vec<u8>, number: usize, mode: u16, len: usize, block: usize| {
        let at = nid(number) * 32;
        bytes[at + 4..at + 6].copy_from_slice(&mode.to_le_bytes());
        bytes[at + 8..at + 12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[at + 16..at + 20].copy_from_slice(&(block as u32).to_le_bytes());
    };
    let folder = |bytes: &mut Vec<u8>, number: usize, members: std::ops::Range<usize>| {
        let start = bytes.len() / BLOCK;
        let members: Vec<usize> = members.collect();
        for part in members.chunks(BLOCK / 20) {
            let mut block = Vec::new();
            for (index, member) in part.iter().enumerate() {
                block.extend((nid(*member) as u64).to_le_bytes());
                block.extend(((part.len() * 12 + index * 8) as u16).to_le_bytes());
                block.extend([1, 0]);
            }
            part.iter().for_each(|member| block.extend(format!("{member:08}").bytes()));
            block.resize(BLOCK, 0);
            bytes.extend(block);
        }
        let len = bytes.len() - start * BLOCK;
        inode(bytes, number, 0o40755, len, start);
    };
    for number in 0..folders {
        folder(&mut bytes, number, first + number * 300..first + FILES.min((number + 1) * 300));
    }
    folder(&mut bytes, root, 0..folders);
    let block = bytes.len() / BLOCK;
    (0..FILES).for_each(|number| inode(&mut bytes, first + number, 0o100_644, BLOCK, block));
    bytes.extend(noise(BLOCK));
    bytes.extend(behind);
    bytes
}

/// A map with as many copies and ranges as may be, none of which can be joined with its neighbour.
fn map(kind: Kind, old: Extent, copies: u64) -> Vec<u8> {
    let new = Extent { offset: 0, len: 2 * GROUP };
    // Behind what is asked for, so that all of that is literals.
    let copies = (0..copies)
        .map(|n| Copy { new: GROUP + (2 << 20) + n * 4, old: n * 7 % (old.len - 3), len: 3 })
        .collect();
    let ranges =
        (0..1u64 << 16).map(|n| Range { start: (1 << 50) + n * 9, end: (1 << 50) + n * 9 + 5, delta: n * n });
    Map { kind, old: vec![old], new, segments: Vec::new(), ranges: ranges.collect(), copies }.encode()
}

/// A group with these operations and literals; filled up with residue that nobody reads, if it is to fail in the end.
fn group(start: u64, ops: &[Op], literals: u64, frame: &[u8], full: bool) -> Vec<u8> {
    let (ops, literals) = (ops::encode(ops, start), vec![7; literals as usize]);
    let packed = |bytes: &[u8]| zstd::bulk::compress(bytes, 1).unwrap();
    let (packed_ops, packed_literals) = (packed(&ops), packed(&literals));
    let left = (6 << 20) - packed_ops.len() - packed_literals.len() - frame.len() - 100;
    let mut out = Vec::new();
    put_stream(&mut out, &ops, &packed_ops);
    put_residue(&mut out, &noise(if full { left } else { 0 }));
    put_stream(&mut out, &literals, &packed_literals);
    out.extend_from_slice(frame);
    out
}

/// Few bytes of `first`, then a long list of short operations: the whole list, and the literals that it needs.
fn group_ops(first: &[Op]) -> (Vec<Op>, u64) {
    const SHORT: u64 = 480_000;
    let mut ops = first.to_vec();
    ops.extend((0..SHORT).map(|n| if n % 2 == 0 { Op::Extra { len: 1 } } else { Op::Zero { len: 1 } }));
    let left = GROUP - ops.iter().map(Op::len).sum::<u64>();
    ops.push(Op::Extra { len: left });
    // Where an object has no copies, its bytes are literals.
    let objects = first.iter().filter(|op| matches!(op, Op::Object { .. })).map(Op::len).sum::<u64>();
    (ops, SHORT / 2 + left + objects)
}

/// The image that a device has: files, this program, and some more.
fn old_image() -> (Vec<u8>, Extent) {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mut old = image(&program);
    let place = Extent { offset: (old.len() - program.len()) as u64, len: program.len() as u64 };
    old.resize(old.len().max(10 << 20), 0);
    (old, place)
}

/// Maps at their limits: of the program and of the image's metadata, half and whole.
fn bundles(old_len: u64, program: Extent) -> Vec<(Vec<u8>, u64)> {
    let (whole, elf) = (Extent { offset: 0, len: old_len }, Kind::Elf(Params::default()));
    let kinds = [
        (Kind::Erofs, whole, MAX_COPIES / 2),
        (elf, program, MAX_COPIES / 2),
        (elf, program, MAX_COPIES),
        (Kind::Erofs, whole, MAX_COPIES),
    ];
    let stored = |(kind, old, copies)| {
        let maps = [map(kind, old, copies)];
        let pack = |plain: &[u8]| Ok::<_, DeltaError>(zstd::bulk::compress(plain, 1).unwrap());
        (put_bundle(&maps, pack).unwrap(), 1)
    };
    kinds.map(stored).into()
}

#[test]
fn a_hostile_delta_stays_within_the_decoders_bound() {
    let (old, program) = old_image();
    let bundles = bundles(old.len() as u64, program);
    let frame = zstd::bulk::compress(&noise(1 << 20), 1).unwrap();
    let prefix = Op::Prefix { old: 0, window: MAX_PREFIX, packed: frame.len() as u64, len: 1 << 20 };
    let deflate = Op::Deflate { file: 0, restart: Restart::default(), skip: 0, len: 1 << 20 };
    let objects =
        |numbers: &[u64]| numbers.iter().map(|object| Op::Object { object: *object, len: 1000 }).collect();
    let all: Vec<Op> = objects(&[0, 1, 2, 3, 0, 1]);
    let (image_ops, image_literals) = group_ops(&[&[deflate, prefix][..], &all].concat());
    let (text_ops, text_literals) = group_ops(&[&all[..], &[prefix], &all].concat());
    let texts = [Text { len: GROUP, style: STYLE }];
    let delta = |full: bool, digest: [u8; 16]| {
        let groups = [
            (group(0, &image_ops, image_literals, &frame, false), [0; 16]),
            (group(GROUP, &text_ops, text_literals, &frame, full), digest),
        ];
        let parts = Parts { texts: &texts, bundles: &bundles, history: false, groups: &groups };
        build(22, (old.len() as u64, GROUP), &[[0; 32]; 2], &parts).unwrap()
    };
    let run = |delta: Vec<u8>| {
        let before = ALLOCATOR.current_usage();
        ALLOCATOR.reset_peak_usage();
        let mut out = Vec::new();
        let said =
            Decoder::open(&old, &delta).unwrap().group(0, &Vec::new(), &mut out).unwrap_err().to_string();
        let peak = ALLOCATOR.peak_usage() - before;
        println!("{} KiB; {said}", peak >> 10);
        assert!(peak < BOUND, "{peak} bytes at most, but must be below {BOUND}");
        assert!(peak > BOUND / 2, "the sample is to come near the bound: {peak} bytes");
        said
    };
    let said = run(delta(true, [0; 16]));
    assert!(said.contains("bytes are left over"), "{said}");
    let said = run(delta(false, [0; 16]));
    assert!(said.contains("group 1 has SHA-256"), "{said}");
    // What it says is the right digest: with it the text is deflated.
    let digest = said.split("SHA-256 ").nth(1).unwrap();
    let byte = |at: usize| u8::from_str_radix(&digest[at * 2..at * 2 + 2], 16).unwrap();
    let said = run(delta(false, std::array::from_fn(byte)));
    assert!(said.contains("group 0 has SHA-256"), "{said}");
}
