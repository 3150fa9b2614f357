//! A delta whose digests are right and whose maps, group, text and old image are any bytes: the decoder gives an error or output of
//! the stated length, and never reads or writes elsewhere.
#![no_main]

use formats::delta::DeltaError;
use formats::delta::apply::Decoder;
use formats::delta::container::{Parts, Text, build, put_bundle, short_digest};
use formats::delta::deflate::Style;
use formats::delta::ops::{self, Op};
use formats::delta::stream::{put_residue, put_stream};
use libfuzzer_sys::fuzz_target;

/// The next piece of `data`: its length stands before it.
fn piece<'a>(data: &mut &'a [u8]) -> &'a [u8] {
    let Some((head, rest)) = data.split_first_chunk::<2>() else { return std::mem::take(data) };
    let (piece, rest) = rest.split_at(usize::from(u16::from_le_bytes(*head)).min(rest.len()));
    *data = rest;
    piece
}

/// A group of these bytes.
fn literal(text: &[u8], history: bool) -> Vec<u8> {
    let ops = ops::encode(&[Op::Extra { len: text.len() as u64 }], 1 << 20);
    let mut out = Vec::new();
    put_stream(&mut out, &ops, &ops);
    put_residue(&mut out, &[]);
    out.extend(history.then_some(0));
    put_stream(&mut out, text, text);
    out
}

fuzz_target!(|data: &[u8]| {
    let mut data = data;
    let (maps, group) = ([piece(&mut data).to_vec(), piece(&mut data).to_vec()], piece(&mut data).to_vec());
    let size = piece(&mut data).iter().fold(0u64, |size, byte| size << 8 | u64::from(*byte)) % (1 << 20) + 1;
    let style = piece(&mut data);
    let history = style.first().is_some_and(|byte| byte & 128 != 0);
    let style = style.first().and_then(|byte| Style::from_byte(byte & 31));
    let (text, old) = (piece(&mut data), data);
    let Ok(bundle) = put_bundle(&maps, |plain| Ok::<_, DeltaError>(plain.to_vec())) else { return };
    let lens = (old.len() as u64, size);
    let bundles = [(bundle, maps.len() as u64)];
    let groups = [(group, [0; 16]), (literal(text, history), short_digest(text))];
    let texts = style.filter(|_| !text.is_empty()).map(|style| Text { len: text.len() as u64, style });
    let texts = texts.as_slice();
    let parts = Parts { texts, bundles: &bundles, history, groups: &groups[..1 + texts.len()] };
    let Ok(delta) = build(20, lens, &[[0; 32]; 2], &parts) else { return };
    let mut out = Vec::new();
    let delta = delta.as_slice();
    if let Ok(mut decoder) = Decoder::open(&old, &delta)
        && decoder.group(0, &Vec::new(), &mut out).is_ok()
    {
        assert_eq!(out.len() as u64, size);
    }
});
