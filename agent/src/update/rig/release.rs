//! Signed releases of a few kilobytes, and the factory's image.

use crate::update::adaptive::{self, blocks};
use ed25519_dalek::{Signer, SigningKey};
use formats::arch::Arch;
use formats::blocks::{Index, mark};
use formats::frame::{Announcement, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::manifest::{
    Entry, MANIFEST_BLOCK, Manifest, Needs, ObjectRef, Payload, PayloadKind, Target, TargetKind,
};
use formats::object::{self, BlockSize, Object};
use formats::repository;
use formats::roles::Root;
use formats::verity::{BLOCK, Builder, Parameters, Tree};
use std::collections::{BTreeMap, BTreeSet};

/// Data blocks of a slot image: one level of hashes, or two.
pub const SMALL: usize = 9;
pub const LARGE: usize = 130;
/// Small, so that a payload has many blocks.
const PAYLOAD_BLOCK: BlockSize = BlockSize::KIB_1;
pub const PRODUCT: &str = "edge";
pub const BOARD: &str = "vm";

/// One release.
pub struct Built {
    pub version: String,
    pub image: Vec<u8>,
    pub parameters: Parameters,
    pub tree: Tree,
    pub roothash: Digest,
    pub uki: Vec<u8>,
    pub files: BTreeMap<String, Vec<u8>>,
    /// Bytes that a device fetches of its objects, lists included.
    pub object_bytes: u64,
    /// Image that an adaptive payload is offered for.
    base: Option<Vec<u8>>,
}

/// A root document and three releases.
pub struct Shop {
    pub root: Root,
    pub one: Built,
    pub two: Built,
    pub three: Built,
}

pub fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub fn public(seed: u8) -> PublicKey {
    PublicKey::from_bytes(&key(seed).verifying_key().to_bytes()).unwrap()
}

impl Shop {
    pub fn new(blocks: usize) -> Self {
        let role = |seed| Role::new(1, vec![public(seed)]).unwrap();
        let root = Root {
            version: 1,
            signed_s: 1_000_000,
            root: role(1),
            release: role(2),
            catalogue: public(3),
            ignored: Default::default(),
        };
        let built = |version, seed| Built::new(version, seed, blocks, None);
        Self { root, one: built("1.0", 1), two: built("2.0", 2), three: built("3.0", 3) }
    }

    /// The same, with a second release that has most of the first one's pages, elsewhere, and an adaptive payload.
    pub fn adaptive(blocks: usize) -> Self {
        let shop = Self::new(blocks);
        let two = Built::new("2.0", 2, blocks, Some(&shop.one));
        Self { two, ..shop }
    }
}

impl Built {
    fn new(version: &str, seed: u64, blocks: usize, base: Option<&Built>) -> Self {
        // Half noise, half text: compresses, but not to nothing.
        let mut state = seed;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let mut image: Vec<u8> = (0..blocks * BLOCK)
            .map(|n| if n % 4096 < 1000 { noise() } else { b'a' + (seed as u8) })
            .collect();
        if let Some(base) = base {
            // All but the first two pages, the other way round.
            for (n, page) in base.image.chunks(BLOCK).rev().enumerate().skip(2) {
                image[n * BLOCK..(n + 1) * BLOCK].copy_from_slice(page);
            }
        }
        let base = base.map(|base| base.image.clone());
        let uki: Vec<u8> = (0..3000).map(|_| noise()).collect();
        let parameters = Parameters { data_blocks: blocks as u64, salt: [seed as u8; 32] };
        let mut builder = Builder::new(parameters);
        builder.push(&image);
        let tree = builder.finish();
        let mut built = Self {
            version: version.to_owned(),
            roothash: tree.roothash,
            image,
            parameters,
            tree,
            uki,
            files: BTreeMap::new(),
            object_bytes: 0,
            base,
        };
        built.publish(seed as u32);
        built
    }

    fn add(&mut self, bytes: &[u8], block: BlockSize, counted: bool) -> Object {
        let object = object::of(bytes, block).unwrap();
        self.files.insert(repository::object(&object.id), bytes.to_vec());
        if object.geometry.blocks() > 1 {
            self.files.insert(repository::lists(&object.id), object.lists.clone());
        }
        if counted {
            self.object_bytes += ObjectRef::from(&object).fetch_bytes();
        }
        object
    }

    /// A payload of which a device that runs `base` fetches the pages that this image has and that one lacks.
    fn adaptive(&mut self, base: &[u8]) -> Payload {
        let (payload, index_bytes) = adaptive::pack(&self.image);
        let object = self.add(&payload, PAYLOAD_BLOCK, false);
        let index =
            Index::parse(&payload[..index_bytes as usize], payload.len() as u64, self.image.len() as u64);
        let known: Vec<u64> = base.chunks(BLOCK).map(mark).collect();
        let missing = index.unwrap().missing(&|mark| known.contains(&mark));
        let geometry = object.geometry;
        let needed: BTreeSet<u64> =
            missing.iter().chain([&(0..index_bytes)]).flat_map(|part| blocks(&geometry, part)).collect();
        let bytes: usize = needed.iter().filter_map(|index| geometry.block_length(*index)).sum();
        self.object_bytes += bytes as u64 + geometry.list_bytes();
        let kind = PayloadKind::Adaptive { index_bytes };
        Payload { target: 0, object: ObjectRef::from(&object), kind, ignored: Default::default() }
    }

    fn publish(&mut self, sequence: u32) {
        let image = object::of(&self.image, BlockSize::KIB_4).unwrap();
        let packed = zstd::encode_all(self.image.as_slice(), 3).unwrap();
        let packed = self.add(&packed, PAYLOAD_BLOCK, self.base.is_none());
        let mut payloads = vec![Payload {
            target: 0,
            object: ObjectRef::from(&packed),
            kind: PayloadKind::Full { window_log: 21 },
            ignored: Default::default(),
        }];
        payloads.extend(self.base.take().map(|base| self.adaptive(&base)));
        let payloads = payloads.into_iter().map(Entry::Known).collect();
        let uki = self.add(&self.uki.clone(), BlockSize::KIB_1, true);
        let (roothash, salt) = (self.roothash, self.parameters.salt);
        let target = |object: &Object, kind| {
            Entry::Known(Target { object: ObjectRef::from(object), kind, ignored: Default::default() })
        };
        let manifest = Manifest {
            product: PRODUCT.into(),
            board: BOARD.into(),
            arch: Arch::X86_64,
            version: self.version.clone(),
            min_agent_format: 1,
            built_s: 1_000_000,
            needs: Needs {
                slot_bytes: self.image.len() as u64,
                verity_bytes: self.parameters.hash_area_bytes(),
                esp_bytes: self.uki.len() as u64,
            },
            targets: vec![
                target(&image, TargetKind::Slot { roothash, salt, uuid: [9; 16] }),
                target(&uki, TargetKind::Uki),
            ],
            payloads,
            profile: None,
            ignored: Default::default(),
        };
        let bytes = manifest.encode().unwrap();
        let object = self.add(&bytes, MANIFEST_BLOCK, false);
        let mut frame = Frame::unsigned(Announcement {
            target: target_tag(PRODUCT, BOARD, Arch::X86_64),
            channel: 0,
            scope: Scope::All,
            root_version: 1,
            sequence,
            min_agent_format: 1,
            signed_s: 1_000_000 + sequence,
            validity_h: 0,
            rescue: false,
            ignored_flags: 0,
            manifest_bytes: bytes.len() as u32,
            manifest: object.id,
            extensions: Vec::new(),
        })
        .unwrap();
        let message = frame.unverified().signed_bytes().unwrap();
        frame.sign(0, key(2).sign(&message).to_bytes()).unwrap();
        self.files.insert(repository::ANNOUNCE.to_owned(), frame.encode().unwrap());
    }

    /// Superblock and hash tree.
    pub fn verity(&self) -> Vec<u8> {
        [self.parameters.superblock([9; 16]).as_slice(), &self.tree.blocks].concat()
    }

    pub fn entry(&self) -> String {
        formats::entry::EntryName::uncounted(&self.version, &self.roothash.short()).file_name()
    }
}
