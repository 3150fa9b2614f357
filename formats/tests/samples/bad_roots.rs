//! Chains of root documents that a device does not follow.

use crate::Files;
use crate::fixed::{
    ROOT_SEEDS, STRANGER, announcement, chain, first_root, manifest, private, public, role, second_root,
    signed, signed_root,
};
use ed25519_dalek::Signer as _;
use formats::roles::{DOMAIN, Root};
use minicbor::Encoder;

pub fn cases() -> Vec<(&'static str, Files)> {
    let files = |chain: Vec<u8>| Files::from([("roots", chain)]);
    let mut cases: Vec<_> =
        [chains(), documents()].concat().into_iter().map(|(name, c)| (name, files(c))).collect();
    cases.push(("announcement-of-a-replaced-root", replaced()));
    cases.push(("announcement-by-a-revoked-key", revoked()));
    cases
}

fn chains() -> Vec<(&'static str, Vec<u8>)> {
    let first = || signed_root(first_root(), &[1, 2]);
    let second = |seeds: &[u8]| signed_root(second_root(), seeds);
    let third = || signed_root(Root { version: 3, ..second_root() }, &[1, 2, 4]);
    let other_keys = Root { root: role(2, &[71, 72, 73]), ..first_root() };
    let good = chain(vec![first(), second(&[1, 2])]);
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    vec![
        ("chain-empty", vec![0x80]),
        ("chain-truncated", good[..good.len() - 10].to_vec()),
        ("chain-with-bytes-after-it", [good.as_slice(), &[0]].concat()),
        ("chain-flipped-byte-in-signature", flipped),
        ("chain-of-other-keys", chain(vec![signed_root(other_keys, &[71, 72])])),
        ("chain-starts-too-late", chain(vec![third()])),
        (
            "chain-with-a-gap",
            chain(vec![first(), second(&[1, 2]), {
                signed_root(Root { version: 4, ..second_root() }, &[1, 2, 4])
            }]),
        ),
        ("root-not-signed-by-old-keys", chain(vec![first(), second(&[1, 4])])),
        ("root-not-signed-by-new-keys", {
            let root = Root { root: role(2, &[5, 6]), ..second_root() };
            chain(vec![first(), signed_root(root, &[1, 2])])
        }),
        ("root-signed-by-a-stranger-too", chain(vec![first(), second(&[1, 2, STRANGER])])),
        ("root-signed-by-release-keys", chain(vec![first(), second(&[11, 12])])),
        ("root-signature-of-the-announcement-domain", wrong_domain()),
    ]
}

/// Signatures over the right document with another domain in front.
fn wrong_domain() -> Vec<u8> {
    let root = second_root();
    let message = [formats::frame::DOMAIN.as_slice(), &root.encode()].concat();
    assert_ne!(formats::frame::DOMAIN.as_slice(), DOMAIN.as_slice());
    let mut document = formats::roles::SignedRoot::unsigned(root);
    for seed in [1, 2] {
        document.sign(public(seed), private(seed).sign(&message).to_bytes());
    }
    chain(vec![signed_root(first_root(), &[1, 2]), document])
}

/// A root document written by hand, so that it can be wrong; signed as it is.
struct Raw {
    version: u64,
    threshold: u64,
    roots: Vec<[u8; 32]>,
    releases: Vec<[u8; 32]>,
    extra: Vec<u8>,
}

impl Raw {
    fn new() -> Self {
        let keys = |seeds: &[u8]| seeds.iter().map(|seed| public(*seed).to_bytes()).collect();
        Self {
            version: 2,
            threshold: 2,
            roots: keys(&[1, 2, 4]),
            releases: keys(&[11, 12, 14]),
            extra: Vec::new(),
        }
    }

    fn chain(self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::new());
        let root = second_root();
        e.map(6 + u64::from(!self.extra.is_empty())).unwrap();
        e.u8(0).unwrap().u8(1).unwrap();
        e.u8(1).unwrap().u64(self.version).unwrap();
        e.u8(2).unwrap().u32(root.signed_s).unwrap();
        for (field, keys) in [(3, &self.roots), (4, &self.releases)] {
            e.u8(field).unwrap().map(2).unwrap().u8(0).unwrap();
            e.u64(if field == 3 { self.threshold } else { 2 }).unwrap();
            e.u8(1).unwrap().array(keys.len() as u64).unwrap();
            for key in keys {
                e.bytes(key).unwrap();
            }
        }
        e.u8(5).unwrap().bytes(&root.catalogue.to_bytes()).unwrap();
        let document = [e.into_writer(), self.extra].concat();
        let message = [DOMAIN.as_slice(), &document].concat();
        let mut signatures: Vec<_> =
            [1, 2].map(|seed| (public(seed).hint(), private(seed).sign(&message))).into();
        signatures.sort_by_key(|(hint, _)| *hint);
        let mut e = Encoder::new(Vec::new());
        e.array(1).unwrap().array(2).unwrap().bytes(&document).unwrap().array(2).unwrap();
        for (hint, signature) in signatures {
            e.array(2).unwrap().bytes(&hint).unwrap().bytes(&signature.to_bytes()).unwrap();
        }
        e.into_writer()
    }
}

fn documents() -> Vec<(&'static str, Vec<u8>)> {
    let with = |change: &dyn Fn(&mut Raw)| {
        let mut raw = Raw::new();
        change(&mut raw);
        raw.chain()
    };
    let good = Raw::new().chain();
    assert_eq!(
        good,
        chain(vec![signed_root(second_root(), &[1, 2])]),
        "the writer here must write as the real one"
    );
    let neutral: [u8; 32] = std::array::from_fn(|n| u8::from(n == 0));
    let many = |count: u8| (100..100 + count).map(|seed| public(seed).to_bytes()).collect::<Vec<_>>();
    vec![
        ("root-version-zero-in-document", with(&|raw| raw.version = 0)),
        ("root-version-beyond-16-bits", with(&|raw| raw.version = 65_536)),
        ("root-threshold-0", with(&|raw| raw.threshold = 0)),
        ("root-threshold-above-its-keys", with(&|raw| raw.threshold = 4)),
        ("root-same-key-twice", with(&|raw| raw.roots[1] = raw.roots[0])),
        ("root-key-in-two-roles", with(&|raw| raw.releases[0] = raw.roots[0])),
        ("root-weak-key", with(&|raw| raw.roots[2] = neutral)),
        ("root-key-not-on-the-curve", with(&|raw| raw.roots[2] = [2; 32])),
        ("root-without-keys", with(&|raw| raw.roots.clear())),
        ("root-with-nine-keys", with(&|raw| raw.roots = many(9))),
        ("root-field-that-must-be-understood", with(&|raw| raw.extra = vec![0x06, 0x00])),
        ("root-oversized", with(&|raw| raw.extra = [&[0x20, 0x59, 0x10, 0x00][..], &[0; 0x1000]].concat())),
    ]
}

fn replaced() -> Files {
    let bytes = manifest().encode().unwrap();
    let documents = vec![signed_root(first_root(), &[1, 2]), signed_root(second_root(), &[1, 2])];
    let frame = signed(announcement(&bytes), &[(0, 11), (1, 12)]);
    Files::from([("announce", frame), ("manifest", bytes), ("roots", chain(documents))])
}

/// Signed under the new version, but by the release key that it took away.
fn revoked() -> Files {
    let bytes = manifest().encode().unwrap();
    let documents = vec![signed_root(first_root(), &ROOT_SEEDS), signed_root(second_root(), &[1, 2])];
    let mut said = announcement(&bytes);
    said.root_version = 2;
    let frame = signed(said, &[(0, 11), (2, 13)]);
    Files::from([("announce", frame), ("manifest", bytes), ("roots", chain(documents))])
}
