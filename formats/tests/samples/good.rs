//! Samples that a device accepts.

use crate::Files;
use crate::fixed::{
    TWO, announcement, chain, first_chain, first_root, manifest, public, release, role, second_root, signed,
    signed_root,
};
use formats::frame::{Extension, Scope};
use formats::manifest::{Entry, Target, TargetKind};
use formats::roles::Root;

pub fn cases() -> Vec<(&'static str, Files)> {
    let bytes = manifest().encode().unwrap();
    let mut cases = vec![
        ("release", release(&bytes, |_| ())),
        ("site", release(&bytes, |said| said.scope = Scope::site("north"))),
        ("device", release(&bytes, |said| said.scope = Scope::device("dev-1"))),
        (
            "stale-release-is-reported",
            release(&bytes, |said| {
                (said.signed_s, said.validity_h) = (said.signed_s - 7200, 1);
            }),
        ),
        ("ignorable-flag", release(&bytes, |said| said.ignored_flags = 0x80)),
        (
            "ignorable-extension",
            release(&bytes, |said| {
                said.extensions = vec![
                    Extension { kind: 0x80, value: vec![1, 2, 3] },
                    Extension { kind: 0x81, value: Vec::new() },
                ];
            }),
        ),
        (
            "longest-extensions",
            release(&bytes, |said| {
                said.extensions = vec![Extension { kind: 0xff, value: vec![7; 29] }];
            }),
        ),
        ("known-release", with_accepted(release(&bytes, |_| ()), 1, 42)),
        ("newer-release", with_accepted(release(&bytes, |_| ()), 1, 41)),
    ];
    let mut three = release(&bytes, |_| ());
    three.insert("announce", signed(announcement(&bytes), &[(0, 11), (1, 12), (2, 13)]));
    cases.push(("three-signatures", three));
    cases.extend(rescues(&bytes));
    cases.extend(manifests());
    cases.extend(chains(&bytes));
    cases
}

pub fn with_accepted(mut files: Files, root_version: u16, sequence: u32) -> Files {
    let bytes = [root_version.to_le_bytes().as_slice(), &sequence.to_le_bytes()].concat();
    files.insert("accepted", bytes);
    files
}

fn rescues(bytes: &[u8]) -> [(&'static str, Files); 1] {
    let mut said = announcement(bytes);
    (said.rescue, said.signed_s, said.validity_h) = (true, said.signed_s - 7200, 1);
    let mut files = release(bytes, |_| ());
    files.insert("announce", signed(said, &[(1, 2), (2, 3)]));
    [("rescue-beyond-its-validity", files)]
}

fn manifests() -> Vec<(&'static str, Files)> {
    let mut content = manifest();
    content.targets = vec![Entry::Known(Target {
        kind: TargetKind::Content { name: "images/pause.tar".into() },
        ..crate::fixed::uki()
    })];
    content.payloads.clear();
    let mut boot = manifest();
    let kind = TargetKind::BootFile { path: "EFI/BOOT/BOOTX64.EFI".into() };
    boot.targets.push(Entry::Known(Target { kind, ..crate::fixed::uki() }));
    let mut newer = manifest();
    // A payload of kind 9 and a target of kind -3, as a newer writer may add.
    newer.payloads.push(Entry::Ignored(vec![0xa2, 0x00, 0x09, 0x20, 0x81, 0x9f, 0x01, 0xff]));
    newer.targets.push(Entry::Ignored(vec![0xa1, 0x00, 0x22]));
    let mut field = newer.encode().unwrap();
    // Field -2 (an array of a text and a map) behind the eleven fields that are there.
    assert_eq!(field[0], 0xab);
    field[0] = 0xac;
    field.extend([0x21, 0x82, 0x61, b'x', 0xa1, 0x01, 0x02]);
    [
        ("content-only", content.encode().unwrap()),
        ("boot-file", boot.encode().unwrap()),
        ("newer-writer", field),
    ]
    .into_iter()
    .map(|(name, bytes)| (name, release(&bytes, |_| ())))
    .collect()
}

fn chains(bytes: &[u8]) -> Vec<(&'static str, Files)> {
    let second = signed_root(second_root(), &[1, 2]);
    let third = Root { version: 3, root: role(1, &[5]), ..second_root() };
    // Signed by two of the old root keys and the one new one.
    let third = signed_root(third, &[2, 4, 5]);
    let first = signed_root(first_root(), &[1, 2]);
    let long = chain(vec![first.clone(), second.clone(), third.clone()]);
    let mut said = announcement(bytes);
    // Rotation outranks every sequence number: even one that was signed too high.
    (said.root_version, said.sequence) = (3, 1);
    let frame = signed(said, &[(0, 11), (2, 14)]);
    let rotated = Files::from([("announce", frame), ("manifest", bytes.to_vec()), ("roots", long)]);
    let suffix = chain(vec![second, third]);
    vec![
        ("rotated-after-the-highest-sequence", with_accepted(rotated, 1, u32::MAX)),
        ("chain-without-the-trusted-document", Files::from([("roots", suffix)])),
        ("chain-of-one", Files::from([("roots", first_chain())])),
        ("eight-keys", eight_keys(bytes)),
    ]
}

/// The largest roles: eight root keys and eight release keys, all of which sign.
fn eight_keys(bytes: &[u8]) -> Files {
    let (roots, releases): (Vec<u8>, Vec<u8>) = ((30..38).collect(), (40..48).collect());
    let root =
        Root { root: role(8, &roots), release: role(8, &releases), catalogue: public(50), ..second_root() };
    let signers: Vec<u8> = [1, 2].into_iter().chain(roots).collect();
    let documents = vec![signed_root(first_root(), &[1, 2]), signed_root(root, &signers)];
    let mut said = announcement(bytes);
    said.root_version = 2;
    let numbered: Vec<(u8, u8)> = (0..8).zip(releases).collect();
    Files::from([
        ("announce", signed(said, &numbered)),
        ("manifest", bytes.to_vec()),
        ("roots", chain(documents)),
    ])
}

#[test]
fn a_frame_with_two_of_three_signatures_fits_a_satellite_message_with_room_for_its_carrier() {
    let bytes = manifest().encode().unwrap();
    let mut said = announcement(&bytes);
    assert_eq!(signed(said.clone(), &TWO).len(), 198);
    said.extensions = vec![Extension { kind: 0xff, value: vec![7; 29] }];
    assert_eq!(signed(said, &TWO).len(), 230);
    let five = announcement(&bytes);
    assert_eq!(signed(five, &[(0, 1), (1, 2), (2, 3)]).len(), 262);
}
