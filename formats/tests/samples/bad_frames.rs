//! Announcements that a device refuses, and manifests that are not the announced ones.

use crate::Files;
use crate::fixed::{STRANGER, TWO, announcement, manifest, release, signed};
use crate::good::with_accepted;
use formats::frame::{Announcement, Extension, Scope, target_tag};

/// Offsets in a frame, as `docs/formats.md` gives them.
const ALGORITHM: usize = 1;
const SCOPE: usize = 11;
const FLAGS: usize = 32;
const MANIFEST_LENGTH: usize = 33;
const BITMAP: usize = 69;

pub fn cases() -> Vec<(&'static str, Files)> {
    let bytes = manifest().encode().unwrap();
    [signatures(&bytes), addressed(&bytes), order(&bytes), layout(&bytes), contents(&bytes)].concat()
}

type Cases = Vec<(&'static str, Files)>;

fn with_frame(bytes: &[u8], frame: Vec<u8>) -> Files {
    let mut files = release(bytes, |_| ());
    files.insert("announce", frame);
    files
}

fn signatures(bytes: &[u8]) -> Cases {
    let said = || announcement(bytes);
    let by = |signers: &[(u8, u8)]| with_frame(bytes, signed(said(), signers));
    let mut twice = signed(said(), &[(0, 11)]);
    // The one signature once more, claimed for the second key.
    let copy = twice[BITMAP + 1..].to_vec();
    twice.extend(copy);
    twice[BITMAP] = 0b11;
    let mut altered = signed(said(), &TWO);
    altered[22] ^= 1;
    let mut bad_signature = signed(said(), &TWO);
    bad_signature[BITMAP + 1] ^= 1;
    // Good as a signature over the frame alone, without the domain in front.
    let mut no_domain = signed(said(), &TWO);
    for (at, seed) in [(BITMAP + 1, 11), (BITMAP + 65, 12)] {
        use ed25519_dalek::Signer as _;
        let signature = crate::fixed::private(seed).sign(&no_domain[..BITMAP]).to_bytes();
        no_domain[at..at + 64].copy_from_slice(&signature);
    }
    vec![
        ("no-signature", by(&[])),
        ("too-few-signatures", by(&[(2, 13)])),
        ("wrong-key", by(&[(0, 11), (1, STRANGER)])),
        ("key-outside-the-role", by(&[(0, 11), (1, 12), (3, STRANGER)])),
        ("keys-in-each-others-place", by(&[(0, 12), (1, 11)])),
        ("same-signature-twice", with_frame(bytes, twice)),
        ("one-bad-signature-of-three", {
            let mut three = signed(said(), &[(0, 11), (1, 12), (2, 13)]);
            *three.last_mut().unwrap() ^= 1;
            with_frame(bytes, three)
        }),
        ("flipped-byte-in-sequence", with_frame(bytes, altered)),
        ("flipped-byte-in-signature", with_frame(bytes, bad_signature)),
        ("signed-without-domain", with_frame(bytes, no_domain)),
        ("rescue-by-release-keys", release(bytes, |said| said.rescue = true)),
        ("release-by-root-keys", by(&[(0, 1), (1, 2)])),
    ]
}

fn addressed(bytes: &[u8]) -> Cases {
    let tag = |product, board, arch| release(bytes, |said| said.target = target_tag(product, board, arch));
    use formats::arch::Arch::{Arm64, X86_64};
    vec![
        ("wrong-board", tag("edge", "jetson-orin", X86_64)),
        ("wrong-product", tag("other", "vm", X86_64)),
        ("wrong-processor", tag("edge", "vm", Arm64)),
        ("wrong-channel", release(bytes, |said| said.channel = 1)),
        ("wrong-site", release(bytes, |said| said.scope = Scope::site("south"))),
        ("wrong-device", release(bytes, |said| said.scope = Scope::device("dev-2"))),
        ("site-named-as-the-device", release(bytes, |said| said.scope = Scope::site("dev-1"))),
        ("needs-newer-agent", release(bytes, |said| said.min_agent_format = 2)),
    ]
}

fn order(bytes: &[u8]) -> Cases {
    let mut twin = with_accepted(release(bytes, |_| ()), 1, 42);
    twin.get_mut("accepted").unwrap().extend([0xee; 32]);
    vec![
        ("sequence-rollback", with_accepted(release(bytes, |_| ()), 1, 43)),
        ("rollback-from-the-highest-sequence", with_accepted(release(bytes, |_| ()), 1, u32::MAX)),
        ("two-releases-with-one-sequence", twin),
        ("root-version-unknown", release(bytes, |said| said.root_version = 2)),
    ]
}

fn layout(bytes: &[u8]) -> Cases {
    let good = signed(announcement(bytes), &TWO);
    let patched = |at: usize, with: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + with.len()].copy_from_slice(with);
        with_frame(bytes, frame)
    };
    let extended = |extensions: &[u8]| {
        let mut frame = good[..BITMAP].to_vec();
        frame[FLAGS] |= 1;
        frame.extend(extensions);
        frame.extend(&good[BITMAP..]);
        with_frame(bytes, frame)
    };
    let kind = |kind| Extension { kind, value: Vec::new() };
    assert!(
        formats::frame::Frame::unsigned(Announcement {
            extensions: vec![kind(0x90), kind(0x80)],
            ..announcement(bytes)
        })
        .is_err()
    );
    vec![
        ("empty-frame", with_frame(bytes, Vec::new())),
        ("truncated-frame", with_frame(bytes, good[..40].to_vec())),
        ("frame-without-bitmap", with_frame(bytes, good[..BITMAP].to_vec())),
        ("truncated-signature", with_frame(bytes, good[..197].to_vec())),
        ("bytes-after-the-frame", with_frame(bytes, [good.as_slice(), &[0]].concat())),
        ("oversized-frame", with_frame(bytes, [good.as_slice(), &[0; 1000]].concat())),
        ("layout-version-2", patched(0, &[0x12])),
        ("type-2", patched(0, &[0x21])),
        ("unknown-algorithm", patched(ALGORITHM, &[2])),
        ("unknown-scope", patched(SCOPE, &[3])),
        ("scope-all-with-a-name", patched(SCOPE + 7, &[1])),
        ("flag-that-must-be-understood", patched(FLAGS, &[4])),
        ("root-version-0", patched(19, &[0, 0])),
        ("sequence-0", patched(21, &[0; 4])),
        ("agent-format-0", patched(25, &[0])),
        ("manifest-length-0", patched(MANIFEST_LENGTH, &[0; 4])),
        ("manifest-longer-than-allowed", patched(MANIFEST_LENGTH, &65_537u32.to_le_bytes())),
        ("extension-that-must-be-understood", extended(&[2, 0x7f, 0])),
        ("extensions-out-of-order", extended(&[4, 0x81, 0, 0x80, 0])),
        ("extension-twice", extended(&[4, 0x80, 0, 0x80, 0])),
        ("extension-longer-than-its-room", extended(&[3, 0x80, 2, 0])),
        ("extensions-empty", extended(&[0])),
        ("extensions-too-long", extended(&[&[32, 0x80, 30][..], &[0; 30]].concat())),
    ]
}

fn contents(bytes: &[u8]) -> Cases {
    let with_manifest = |manifest: Vec<u8>| {
        let mut files = release(bytes, |_| ());
        files.insert("manifest", manifest);
        files
    };
    let mut flipped = bytes.to_vec();
    flipped[100] ^= 1;
    let mut other = manifest();
    other.version = "1.0.1".into();
    let mut elsewhere = manifest();
    elsewhere.board = "nuc".into();
    let mut newer = manifest();
    newer.min_agent_format = 2;
    vec![
        ("truncated-manifest", with_manifest(bytes[..bytes.len() - 1].to_vec())),
        ("flipped-byte-in-manifest", with_manifest(flipped)),
        ("manifest-of-another-release", with_manifest(other.encode().unwrap())),
        ("empty-manifest", with_manifest(Vec::new())),
        ("manifest-for-another-board-than-its-frame", release(&elsewhere.encode().unwrap(), |_| ())),
        ("manifest-for-a-newer-agent-than-its-frame", release(&newer.encode().unwrap(), |_| ())),
    ]
}
