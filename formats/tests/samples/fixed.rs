//! Keys, documents and a release that never change.

use crate::Files;
use ed25519_dalek::{Signer as _, SigningKey};
use formats::arch::Arch;
use formats::frame::{Announcement, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::manifest::{
    Entry, MANIFEST_BLOCK, Manifest, Needs, ObjectRef, Payload, PayloadKind, Target, TargetKind,
};
use formats::object::{self, BlockSize, Geometry};
use formats::roles::{Chain, Root, SignedRoot};

/// 2026-11-21, 00:00 UTC.
pub const SIGNED_S: u32 = 1_795_219_200;
pub const ROOT_SEEDS: [u8; 3] = [1, 2, 3];
pub const RELEASE_SEEDS: [u8; 3] = [11, 12, 13];
pub const STRANGER: u8 = 99;

pub fn private(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn public(seed: u8) -> PublicKey {
    PublicKey::from_bytes(&private(seed).verifying_key().to_bytes()).unwrap()
}

pub fn role(threshold: u8, seeds: &[u8]) -> Role {
    Role::new(threshold, seeds.iter().map(|seed| public(*seed)).collect()).unwrap()
}

pub fn first_root() -> Root {
    Root {
        version: 1,
        signed_s: SIGNED_S,
        root: role(2, &ROOT_SEEDS),
        release: role(2, &RELEASE_SEEDS),
        catalogue: public(21),
        ignored: Default::default(),
    }
}

/// Version 2: one root key and one release key replaced.
pub fn second_root() -> Root {
    Root {
        version: 2,
        signed_s: SIGNED_S + 86_400,
        root: role(2, &[1, 2, 4]),
        release: role(2, &[11, 12, 14]),
        ..first_root()
    }
}

pub fn signed_root(root: Root, seeds: &[u8]) -> SignedRoot {
    let message = root.signed_bytes();
    let mut signed = SignedRoot::unsigned(root);
    for seed in seeds {
        signed.sign(public(*seed), private(*seed).sign(&message).to_bytes());
    }
    signed
}

pub fn chain(documents: Vec<SignedRoot>) -> Vec<u8> {
    Chain::new(documents).unwrap().encode()
}

pub fn first_chain() -> Vec<u8> {
    chain(vec![signed_root(first_root(), &[1, 2])])
}

pub fn object_ref(id: u8, length: u64, block: BlockSize) -> ObjectRef {
    ObjectRef { id: Digest([id; 32]), geometry: Geometry::new(length, block).unwrap() }
}

pub fn slot() -> Target {
    let kind = TargetKind::Slot { roothash: Digest([0x11; 32]), salt: [0x22; 32], uuid: [0x33; 16] };
    Target { object: object_ref(0x44, 256 << 20, BlockSize::KIB_64), kind, ignored: Default::default() }
}

pub fn uki() -> Target {
    let object = object_ref(0x55, 14_000_000, BlockSize::KIB_64);
    Target { object, kind: TargetKind::Uki, ignored: Default::default() }
}

pub fn full() -> Payload {
    Payload {
        target: 0,
        object: object_ref(0x66, 70_000_000, BlockSize::KIB_64),
        kind: PayloadKind::Full { window_log: 21 },
        ignored: Default::default(),
    }
}

pub fn manifest() -> Manifest {
    Manifest {
        product: "edge".into(),
        board: "vm".into(),
        arch: Arch::X86_64,
        version: "1.0.0".into(),
        min_agent_format: 1,
        built_s: SIGNED_S - 3600,
        needs: Needs { slot_bytes: 512 << 20, verity_bytes: 8 << 20, esp_bytes: 32 << 20 },
        targets: vec![Entry::Known(slot()), Entry::Known(uki())],
        payloads: vec![Entry::Known(full())],
        profile: Some("edge-minimal".into()),
        ignored: Default::default(),
    }
}

/// What announces `manifest` to every device of the product.
pub fn announcement(manifest: &[u8]) -> Announcement {
    Announcement {
        target: target_tag("edge", "vm", Arch::X86_64),
        channel: 0,
        scope: Scope::All,
        root_version: 1,
        sequence: 42,
        min_agent_format: 1,
        signed_s: SIGNED_S,
        validity_h: 0,
        rescue: false,
        ignored_flags: 0,
        manifest_bytes: manifest.len() as u32,
        manifest: object::of(manifest, MANIFEST_BLOCK).unwrap().id,
        extensions: Vec::new(),
    }
}

/// A frame signed by keys given as (number, seed).
pub fn signed(announcement: Announcement, signers: &[(u8, u8)]) -> Vec<u8> {
    let mut frame = Frame::unsigned(announcement).unwrap();
    let message = frame.unverified().signed_bytes().unwrap();
    for (number, seed) in signers {
        frame.sign(*number, private(*seed).sign(&message).to_bytes()).unwrap();
    }
    frame.encode().unwrap()
}

pub const TWO: [(u8, u8); 2] = [(0, 11), (1, 12)];

/// A release of this manifest with a change to its announcement.
pub fn release(manifest: &[u8], change: impl FnOnce(&mut Announcement)) -> Files {
    let mut said = announcement(manifest);
    change(&mut said);
    Files::from([("announce", signed(said, &TWO)), ("manifest", manifest.to_vec()), ("roots", first_chain())])
}
