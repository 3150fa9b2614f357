//! Groups that deflate texts, and hostile ones: more text, more parts, or bytes further on than there may be.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic")]

use formats::delta::apply::Decoder;
use formats::delta::container::{Parts, Text, build, short_digest};
use formats::delta::deflate::{Deflate, Restart, Style};
use formats::delta::ops::{self, Op};
use formats::delta::stream::{put_residue, put_stream};
use formats::delta::{MAX_DEFLATED, MAX_DEFLATED_TEXT, MAX_SKIP};

const STYLE: Style = Style { zlib: false, level: 6 };
const GROUP: u64 = 1 << 20;

/// The stored form of a group with these operations and literals; `start` is where it begins.
fn group(start: u64, ops: &[Op], literals: &[u8]) -> Vec<u8> {
    let ops = ops::encode(ops, start);
    let mut out = Vec::new();
    put_stream(&mut out, &ops, &ops);
    put_residue(&mut out, &[]);
    put_stream(&mut out, literals, literals);
    out
}

/// Lines that pack well.
fn text(len: usize) -> Vec<u8> {
    let mut text: Vec<u8> = (0u32..)
        .flat_map(|n| format!("{} line {}\n", n * 7919 % 997, n % 13).into_bytes())
        .take(len)
        .collect();
    text.truncate(len);
    text
}

fn deflated(text: &[u8]) -> Vec<u8> {
    let mut deflate = Deflate::new(STYLE, Restart::default(), &[]);
    deflate.push(text, &mut |_, _| {});
    deflate.finish();
    deflate.take()
}

/// What group 0 gives, of an image that is `image` deflated by `ops` from `text`, sent as literals unless it is zeros.
fn decode(ops: &[Op], image: &[u8], text: &[u8]) -> Result<Vec<u8>, String> {
    let zeros = text.iter().all(|byte| *byte == 0);
    let mut groups = vec![(group(0, ops, &[]), short_digest(image))];
    for (part, bytes) in text.chunks(GROUP as usize).enumerate() {
        let len = bytes.len() as u64;
        let (op, literals) = if zeros { (Op::Zero { len }, &[][..]) } else { (Op::Extra { len }, bytes) };
        groups.push((group((part as u64 + 1) * GROUP, &[op], literals), short_digest(bytes)));
    }
    let texts = [Text { len: text.len() as u64, style: STYLE }];
    let parts = Parts { texts: &texts, bundles: &[], history: false, groups: &groups };
    let delta = build(20, (0, image.len() as u64), &[[0; 32]; 2], &parts).unwrap();
    let old: &[u8] = &[];
    let mut out = Vec::new();
    let mut decoder = Decoder::open(&old, &delta).map_err(|error| error.to_string())?;
    decoder.group(0, &Vec::new(), &mut out).map_err(|error| error.to_string())?;
    Ok(out)
}

fn op(skip: u64, len: u64) -> Op {
    Op::Deflate { file: 0, restart: Restart::default(), skip, len }
}

#[test]
fn a_text_over_several_groups_is_deflated() {
    let text = text(3 << 20);
    let image = deflated(&text);
    let len = image.len() as u64;
    assert!(len < GROUP, "{len} bytes");
    assert!(decode(&[op(0, len)], &image, &text).unwrap() == image);
    let halves = [op(0, len / 2), op(len / 2, len - len / 2)];
    assert!(decode(&halves, &image, &text).unwrap() == image, "in two parts");
}

#[test]
fn hostile_operations_are_refused() {
    let text = text(1 << 20);
    let image = deflated(&text);
    let len = image.len() as u64;
    let refuse = |ops: &[Op], size: u64, words: &str| {
        let error = decode(ops, &vec![1; size as usize], &text).unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    refuse(&[op(0, len + 1)], len + 1, "a text ends before");
    refuse(&[op(MAX_SKIP, 1)], 1, "a text ends before");
    refuse(&[op(MAX_SKIP + 1, 1)], 1, "skip is");
    let many = vec![op(0, 1); MAX_DEFLATED + 1];
    refuse(&many, many.len() as u64, "more than 16 deflate");
    let restart = Restart { text: text.len() as u64 + 1, ..Restart::default() };
    refuse(&[Op::Deflate { file: 0, restart, skip: 0, len: 1 }], 1, "begins where it cannot");
    refuse(&[Op::Deflate { file: 1, restart: Restart::default(), skip: 0, len: 1 }], 1, "text 1 of 1");
    // All digests but the output's are right.
    refuse(&[op(1, 5)], 5, "group 0 has SHA-256");
}

/// Zeros pack to a thousandth: few bytes of output could ask for a gigabyte of text.
#[test]
fn text_is_bounded_by_a_budget() {
    let zeros = vec![0; MAX_DEFLATED_TEXT as usize / 8 + (1 << 20)];
    let image = deflated(&zeros);
    let len = image.len() as u64;
    assert!(decode(&[op(0, len)], &image, &zeros).unwrap() == image, "within the budget");
    let ops = vec![op(0, len); 8];
    let error = decode(&ops, &image.repeat(8), &zeros).unwrap_err();
    assert!(error.contains("deflate more than 67108864 bytes of text"), "{error}");
}

#[test]
fn a_text_is_not_deflated_from_a_text() {
    let text = text(1000);
    let image = deflated(&text);
    let len = text.len() as u64;
    let stored = [
        (group(0, &[op(0, image.len() as u64)], &[]), short_digest(&image)),
        (group(GROUP, &[op(0, len)], &[]), short_digest(&text)),
    ];
    let texts = [Text { len, style: STYLE }];
    let parts = Parts { texts: &texts, bundles: &[], history: false, groups: &stored };
    let delta = build(20, (0, image.len() as u64), &[[0; 32]; 2], &parts).unwrap();
    let old: &[u8] = &[];
    let mut out = Vec::new();
    let error = Decoder::open(&old, &delta).unwrap().group(0, &Vec::new(), &mut out).unwrap_err().to_string();
    assert!(error.contains("a text is deflated from a text"), "{error}");
}
