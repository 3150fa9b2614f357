//! Payload catalogues beside a good release: those that a device uses, and those that it does without.

use crate::Files;
use crate::bad_documents::{Fields, bytes, list, map, uint};
use crate::fixed::{
    announcement, chain, first_root, full, manifest, object_ref, private, public, release, second_root,
    signed, signed_root,
};
use ed25519_dalek::Signer as _;
use formats::catalogue::{Catalogue, DOMAIN};
use formats::hex::Digest;
use formats::manifest::{Entry, MANIFEST_BLOCK, Payload, PayloadKind, Source};
use formats::object::{self, BlockSize};
use formats::roles::Root;

/// The catalogue key of the first root document.
const KEY: u8 = 21;

fn manifest_id(manifest: &[u8]) -> Digest {
    object::of(manifest, MANIFEST_BLOCK).unwrap().id
}

pub fn slot_delta() -> Payload {
    let base = vec![Source::Slot { roothash: Digest([0x10; 32]), bytes: 255 << 20 }];
    let object = object_ref(0x71, 1_200_000, BlockSize::KIB_64);
    Payload {
        target: 0,
        object,
        kind: PayloadKind::Delta { base, history: false },
        ignored: Default::default(),
    }
}

fn uki_delta() -> Payload {
    let old = Source::Object(object_ref(0x57, 13_900_000, BlockSize::KIB_64));
    let new_slot = Source::Slot { roothash: Digest([0x11; 32]), bytes: 256 << 20 };
    let kind = PayloadKind::Delta { base: vec![old, new_slot], history: false };
    Payload {
        target: 1,
        object: object_ref(0x72, 90_000, BlockSize::KIB_4),
        kind,
        ignored: Default::default(),
    }
}

fn adaptive(index_bytes: u64) -> Payload {
    let kind = PayloadKind::Adaptive { index_bytes };
    let object = object_ref(0x75, 80_000_000, BlockSize::KIB_4);
    Payload { target: 0, object, kind, ignored: Default::default() }
}

fn catalogue(payloads: Vec<Entry<Payload>>) -> Catalogue {
    let manifest = manifest_id(&manifest().encode().unwrap());
    Catalogue { root_version: 1, manifest, payloads, ignored: Default::default() }
}

fn by(key: u8, catalogue: &Catalogue) -> Vec<u8> {
    catalogue.encode(&private(key).sign(&catalogue.signed_bytes()).to_bytes())
}

fn with(catalogue: Vec<u8>) -> Files {
    let mut files = release(&manifest().encode().unwrap(), |_| ());
    files.insert("catalogue", catalogue);
    files
}

/// A document as it is, signed by the catalogue key.
fn raw(document: &[u8]) -> Vec<u8> {
    let signature = private(KEY).sign(&[DOMAIN.as_slice(), document].concat()).to_bytes();
    list(&[bytes(document), bytes(&signature)])
}

fn fields(payloads: &[Vec<u8>]) -> Fields {
    let manifest = manifest_id(&manifest().encode().unwrap());
    vec![(0, uint(1)), (1, uint(1)), (2, bytes(&manifest.0)), (3, list(payloads))]
}

/// A delta with these sources and one more field.
fn delta(sources: &[Vec<u8>], more: Option<(i64, Vec<u8>)>) -> Vec<u8> {
    let mut fields = vec![
        (0, uint(2)),
        (1, bytes(&[0x73; 32])),
        (2, uint(1_000_000)),
        (3, uint(16)),
        (4, uint(0)),
        (6, list(sources)),
    ];
    fields.extend(more);
    fields.sort_by_key(|(key, _)| (*key < 0, key.unsigned_abs()));
    map(&fields)
}

fn slot_source() -> Vec<u8> {
    list(&[uint(1), bytes(&[0x10; 32]), uint(255 << 20)])
}

pub fn good() -> Vec<(&'static str, Files)> {
    let both = catalogue(vec![Entry::Known(slot_delta()), Entry::Known(uki_delta())]);
    let smaller = Payload { object: object_ref(0x74, 60_000_000, BlockSize::KIB_64), ..full() };
    let other_base = delta(&[list(&[uint(7), list(&[])]), slot_source()], None);
    let newer = map(&vec![(0, uint(9)), (-1, list(&[uint(1)]))]);
    let mut of_newer_writer = fields(&[newer, other_base, delta(&[slot_source()], Some((-1, uint(5))))]);
    of_newer_writer.push((-1, uint(7)));
    let mut in_manifest = manifest();
    in_manifest.payloads.push(Entry::Known(slot_delta()));
    vec![
        ("catalogue-with-deltas", with(by(KEY, &both))),
        ("catalogue-with-smaller-full-payload", with(by(KEY, &catalogue(vec![Entry::Known(smaller)])))),
        (
            "catalogue-with-adaptive-payload",
            with(by(KEY, &catalogue(vec![Entry::Known(slot_delta()), Entry::Known(adaptive(600_000))]))),
        ),
        ("catalogue-empty", with(by(KEY, &catalogue(Vec::new())))),
        ("catalogue-of-newer-writer", with(raw(&map(&of_newer_writer)))),
        ("delta-in-the-manifest", release(&in_manifest.encode().unwrap(), |_| ())),
    ]
}

pub fn bad() -> Vec<(&'static str, Files)> {
    let good = by(KEY, &catalogue(vec![Entry::Known(slot_delta())]));
    let mut flipped = good.clone();
    flipped[20] ^= 1;
    let one = |payload: Payload| by(KEY, &catalogue(vec![Entry::Known(payload)]));
    let other = Catalogue { manifest: Digest([9; 32]), ..catalogue(Vec::new()) };
    let root_version = Catalogue { root_version: 2, ..catalogue(Vec::new()) };
    let plain = catalogue(Vec::new());
    let document = plain.signed_bytes()[DOMAIN.len()..].to_vec();
    let without_domain = plain.encode(&private(KEY).sign(&document).to_bytes());
    let larger = Payload { object: object_ref(0x71, 70_000_001, BlockSize::KIB_64), ..slot_delta() };
    let mut must_understand = fields(&[]);
    must_understand.push((4, uint(1)));
    let long_form = [vec![0xb8, 4], map(&fields(&[]))[1..].to_vec()].concat();
    let object_of = |id: u8| list(&[uint(2), bytes(&[id; 32]), uint(1), uint(16), uint(0)]);
    let mut cases = vec![
        ("catalogue-by-a-release-key", by(11, &plain)),
        ("catalogue-by-a-root-key", by(1, &plain)),
        ("catalogue-signed-without-domain", without_domain),
        ("catalogue-flipped-byte", flipped),
        ("catalogue-truncated", good[..good.len() - 3].to_vec()),
        ("catalogue-with-bytes-after-it", [good.as_slice(), &[0]].concat()),
        ("catalogue-oversized", vec![0x82; 64 * 1024 + 1]),
        ("catalogue-of-another-release", by(KEY, &other)),
        ("catalogue-for-another-root-version", by(KEY, &root_version)),
        ("catalogue-payload-larger-than-the-full-one", one(larger)),
        ("adaptive-index-larger-than-the-full-payload", one(adaptive(79_000_000))),
        ("adaptive-index-as-long-as-the-payload", one(adaptive(80_000_000))),
        ("adaptive-without-index", one(adaptive(0))),
        ("catalogue-payload-for-no-target", one(Payload { target: 2, ..slot_delta() })),
        ("catalogue-field-that-must-be-understood", raw(&map(&must_understand))),
        ("catalogue-in-long-form", raw(&long_form)),
        ("catalogue-not-cbor", raw(b"\xff")),
        ("delta-without-base", raw(&map(&fields(&[delta(&[], None)])))),
        ("delta-with-five-sources", raw(&map(&fields(&[delta(&vec![slot_source(); 5], None)])))),
        ("delta-with-a-window", raw(&map(&fields(&[delta(&[slot_source()], Some((5, uint(21))))])))),
        ("delta-source-with-too-many-items", raw(&map(&fields(&[delta(&[object_of(1)], None)])))),
        ("delta-source-that-is-no-list", raw(&map(&fields(&[delta(&[uint(1)], None)])))),
    ]
    .into_iter()
    .map(|(name, bytes)| (name, with(bytes)))
    .collect::<Vec<_>>();
    cases.push(("catalogue-by-a-revoked-key", revoked(&plain)));
    cases
}

/// A rotation replaced the catalogue key; what the old one signed for the same release is refused.
fn revoked(plain: &Catalogue) -> Files {
    let root = Root { catalogue: public(22), ..second_root() };
    let documents = vec![signed_root(first_root(), &[1, 2]), signed_root(root, &[1, 2])];
    let bytes = manifest().encode().unwrap();
    let mut said = announcement(&bytes);
    said.root_version = 2;
    let catalogue = Catalogue { root_version: 2, ..plain.clone() };
    Files::from([
        ("announce", signed(said, &[(0, 11), (2, 14)])),
        ("manifest", bytes),
        ("roots", chain(documents)),
        ("catalogue", by(KEY, &catalogue)),
    ])
}

#[test]
fn items_are_written_as_the_format_writes_them() {
    let document = map(&fields(&[delta(&[slot_source()], None)]));
    let payload = Payload { object: object_ref(0x73, 1_000_000, BlockSize::KIB_64), ..slot_delta() };
    assert_eq!(raw(&document), by(KEY, &catalogue(vec![Entry::Known(payload)])));
}
