//! What must hold of deflating: unpacked it is the text again, and work may begin behind any block. That the bytes are those of
//! gzip and zlib is tested where these can be run (the builder's tests); here, digests of samples are pinned.

use super::*;
use crate::delta::container::digest;
use crate::hex;

/// Words that repeat, noise, zeros, noise that does not pack.
fn sample() -> Vec<u8> {
    let mut state = 7u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    let mut text = Vec::new();
    while text.len() < 400_000 {
        let word = next() % 700;
        text.extend(format!("{word:x} {} ", word * 7919 % 65_521).bytes());
        if next() % 50 == 0 {
            text.extend((0..next() % 300).map(|at| (at * 37) as u8));
        }
    }
    text.resize(text.len() + 300_000, 0);
    text.extend(std::iter::repeat_with(|| next() as u8).take(120_000));
    text.extend_from_within(1000..90_000);
    text
}

fn deflate(style: Style, text: &[u8]) -> (Vec<u8>, Vec<(usize, Restart)>) {
    let mut deflate = Deflate::new(style, Restart::default(), &[]);
    let (mut out, mut restarts) = (Vec::new(), Vec::new());
    for piece in text.chunks(10_007) {
        let before = out.len();
        deflate.push(piece, &mut |done, restart| restarts.push((before + done, restart)));
        out.extend(deflate.take());
    }
    deflate.finish();
    out.extend(deflate.take());
    (out, restarts)
}

#[test]
fn bytes_are_pinned() {
    let pinned = [
        (4, "4948057387ad2ed3", "8f70721424088ba9"),
        (6, "04539d108ddf09dd", "7f87384aa86ce67a"),
        (9, "7fb8dae1ed31d860", "7d49f96b321ac824"),
    ];
    for (level, gzip, zlib) in pinned {
        for (zlib, expected) in [(false, gzip), (true, zlib)] {
            let out = deflate(Style { zlib, level }, &sample()).0;
            assert_eq!(hex::encode(&digest(&out)[..8]), expected, "zlib {zlib}, level {level}");
        }
    }
}

#[test]
fn work_may_begin_behind_any_block() {
    let text = sample();
    for style in [Style { zlib: false, level: 6 }, Style { zlib: true, level: 9 }] {
        let (out, restarts) = deflate(style, &text);
        assert!(restarts.len() > 5, "{} blocks", restarts.len());
        for (done, restart) in restarts {
            assert!(restart.fits(text.len() as u64), "{restart:?}");
            let at = restart.text as usize;
            let mut rest = Deflate::new(style, restart, &text[at.saturating_sub(WINDOW)..at]);
            rest.push(&text[at..], &mut |_, _| {});
            rest.finish();
            let cut = usize::from(restart.phase > 0);
            assert!(rest.take()[cut..] == out[done + cut..], "{restart:?}");
        }
    }
}

#[test]
fn short_texts_have_an_end() {
    for len in 0..300 {
        let text = vec![b'a'; len];
        let (out, _) = deflate(Style { zlib: false, level: 6 }, &text);
        assert!(!out.is_empty() && out.len() < 20, "{len}: {} bytes", out.len());
    }
}

#[test]
fn restarts_that_cannot_be_do_no_harm() {
    let text = sample();
    let restart = |text, waiting, distance, phase| Restart { text, waiting, distance, phase };
    for bad in [
        restart(10, 3, 0, 0),
        restart(10, 258, 10, 0),
        restart(0, 2, 0, 0),
        restart(10, 1, 0, 0),
        restart(10, 0, 3, 0),
        restart(10, 300, 3, 0),
        restart(11, 0, 0, 0),
        restart(5, 0, 0, 8),
    ] {
        assert!(!bad.fits(10), "{bad:?}");
    }
    // Matches that are none, and longer than the text.
    for at in [1usize, 3, 40_000, text.len() - 1, text.len()] {
        for waiting in [0, 2, 3, 258] {
            let distance = if waiting > 2 { (at as u16 - 1).clamp(1, 500) } else { 0 };
            let restart = restart(at as u64, waiting, distance, 5);
            if restart.fits(text.len() as u64) {
                let mut rest = Deflate::new(
                    Style { zlib: false, level: 9 },
                    restart,
                    &text[at.saturating_sub(WINDOW)..at],
                );
                rest.push(&text[at..], &mut |_, _| {});
                rest.finish();
                assert!(!rest.take().is_empty());
            }
        }
    }
}
