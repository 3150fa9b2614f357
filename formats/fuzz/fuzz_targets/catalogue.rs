//! Any document, signed by the catalogue key: what is accepted keeps the rules that a device relies on, and the choice
//! among what it offers never panics and never lacks the way that needs no base.
#![no_main]

use ed25519_dalek::{Signer as _, SigningKey};
use formats::arch::Arch;
use formats::catalogue::{Catalogue, DOMAIN, ways};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::manifest::{Entry, Manifest, Needs, ObjectRef, Target, TargetKind};
use formats::object::{BlockSize, Geometry};
use formats::roles::Root;
use std::sync::LazyLock;

static RELEASE: LazyLock<(Manifest, Root, SigningKey)> = LazyLock::new(|| {
    let public = |seed: u8| {
        let bytes = SigningKey::from_bytes(&[seed; 32]).verifying_key().to_bytes();
        PublicKey::from_bytes(&bytes).expect("seeds give good keys")
    };
    let role = |seed| Role::new(1, vec![public(seed)]).expect("one key of one");
    let (root, release, catalogue, ignored) = (role(1), role(2), public(3), Default::default());
    let root = Root { version: 1, signed_s: 0, root, release, catalogue, ignored };
    let geometry = Geometry::new(1 << 20, BlockSize::KIB_4).expect("256 blocks");
    let object = ObjectRef { id: Digest([4; 32]), geometry };
    let content = |name: &str| Target {
        object,
        kind: TargetKind::Content { name: name.to_owned() },
        ignored: Default::default(),
    };
    let manifest = Manifest {
        product: "p".into(),
        board: "b".into(),
        arch: Arch::Arm64,
        version: "1".into(),
        min_agent_format: 1,
        built_s: 0,
        needs: Needs { slot_bytes: 0, verity_bytes: 0, esp_bytes: 0 },
        targets: vec![Entry::Known(content("a")), Entry::Known(content("b"))],
        payloads: Vec::new(),
        profile: None,
        ignored: Default::default(),
    };
    (manifest, root, SigningKey::from_bytes(&[3; 32]))
});

libfuzzer_sys::fuzz_target!(|document: &[u8]| {
    let (manifest, root, key) = &*RELEASE;
    let id = Digest([5; 32]);
    // A stranger's bytes: never accepted.
    assert!(Catalogue::open(document, root, &id, manifest).is_err());
    let signature = key.sign(&[DOMAIN.as_slice(), document].concat()).to_bytes();
    // Head of an array of two, head of a byte string of any length, as CBOR writes them.
    let mut signed = vec![0x82, 0x5a];
    match u16::try_from(document.len()) {
        Ok(length) if length < 24 => signed = vec![0x82, 0x40 | length as u8],
        Ok(length) if length < 256 => signed = vec![0x82, 0x58, length as u8],
        Ok(length) => signed = [&[0x82, 0x59], length.to_be_bytes().as_slice()].concat(),
        Err(_) => signed.extend((document.len() as u32).to_be_bytes()),
    }
    signed.extend_from_slice(document);
    signed.extend([0x58, 64]);
    signed.extend(signature);
    if let Ok(catalogue) = Catalogue::open(&signed, root, &id, manifest) {
        assert_eq!(catalogue.encode(&signature), signed);
        for position in 0..3 {
            let found = ways(manifest, Some(&catalogue), position, &|source| source.bytes() % 2 == 0);
            assert_eq!(found.iter().any(|way| way.payload.is_none()), position < 2);
            let fixed = found.iter().filter(|way| way.payload.is_none_or(|payload| !payload.kind.is_adaptive()));
            assert!(fixed.is_sorted_by_key(|way| way.fetch_bytes));
        }
    }
});
