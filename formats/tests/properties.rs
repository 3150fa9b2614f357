//! Properties of the release format over random contents: what is written reads back, what is read writes back the same
//! bytes, and no sequence of signed announcements gets a device where it must not be.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its input must stop")]

use ed25519_dalek::{Signer as _, SigningKey};
use formats::arch::Arch;
use formats::catalogue::{Catalogue, ways};
use formats::frame::{Announcement, Extension, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::manifest::{
    Entry, Manifest, Needs, ObjectRef, Payload, PayloadKind, Source, Target, TargetKind,
};
use formats::object::{BlockSize, Geometry};
use formats::roles::{Chain, Root, SignedRoot};
use formats::trust::{self, Accepted, Device, MAX_WATERMARK_LEAD_S, Rank, TimeWatermark, Verdict};
use proptest::prelude::*;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn role(threshold: u8, seeds: &[u8]) -> Role {
    let public = |seed: &u8| PublicKey::from_bytes(&key(*seed).verifying_key().to_bytes()).unwrap();
    Role::new(threshold, seeds.iter().map(public).collect()).unwrap()
}

fn root(version: u16, signed_s: u32) -> Root {
    let catalogue = role(1, &[9]).keys()[0];
    Root {
        version,
        signed_s,
        root: role(1, &[1]),
        release: role(1, &[2]),
        catalogue,
        ignored: Default::default(),
    }
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![
        Just(Scope::All),
        any::<[u8; 7]>().prop_map(Scope::Site),
        any::<[u8; 7]>().prop_map(Scope::Device)
    ]
}

prop_compose! {
    fn announcement()(
        (target, channel, scope) in (any::<[u8; 8]>(), any::<u8>(), scope()),
        (root_version, sequence, min_agent_format) in (1u16.., 1u32.., 1u8..),
        (signed_s, validity_h, rescue) in (any::<u32>(), any::<u16>(), any::<bool>()),
        (high_flags, manifest_bytes, manifest) in (0u8..16, 1u32..=65_536, any::<[u8; 32]>()),
        kinds in prop::collection::btree_map(0x80u8.., prop::collection::vec(any::<u8>(), 0..8), 0..=3),
    ) -> Announcement {
        let extensions = kinds.into_iter().map(|(kind, value)| Extension { kind, value }).collect();
        let (manifest, ignored_flags) = (Digest(manifest), high_flags << 4);
        Announcement { target, channel, scope, root_version, sequence, min_agent_format, signed_s, validity_h,
            rescue, ignored_flags, manifest_bytes, manifest, extensions }
    }
}

prop_compose! {
    fn object()(id in any::<[u8; 32]>(), log2 in 8u8..=22, blocks in 1u64..=1 << 20) -> ObjectRef {
        let block = BlockSize::from_log2(log2).unwrap();
        let geometry = Geometry::new(blocks * u64::from(block.bytes()), block).unwrap();
        ObjectRef { id: Digest(id), geometry }
    }
}

fn payload_kind() -> impl Strategy<Value = PayloadKind> {
    let slot = (any::<[u8; 32]>(), any::<u64>())
        .prop_map(|(roothash, bytes)| Source::Slot { roothash: Digest(roothash), bytes });
    let source = prop_oneof![slot, object().prop_map(Source::Object)];
    prop_oneof![
        (10u8..=23).prop_map(|window_log| PayloadKind::Full { window_log }),
        (prop::collection::vec(source, 1..=4), any::<bool>())
            .prop_map(|(base, history)| PayloadKind::Delta { base, history }),
        (1u64..1 << 40).prop_map(|index_bytes| PayloadKind::Adaptive { index_bytes }),
    ]
}

/// As a document may have it: the index is shorter than the payload.
fn fitting(kind: PayloadKind, object: &ObjectRef) -> PayloadKind {
    match kind {
        PayloadKind::Adaptive { index_bytes } => {
            PayloadKind::Adaptive { index_bytes: 1 + index_bytes % (object.geometry.length() - 1) }
        }
        PayloadKind::Full { .. } | PayloadKind::Delta { .. } => kind,
    }
}

prop_compose! {
    fn manifest()(
        names in ("[a-z][a-z0-9.-]{0,20}", "[a-z]{1,9}", "[0-9]{1,3}(\\.[0-9]{1,3}){0,3}", prop::option::of("[a-z]{1,9}")),
        (slot, uki, uuid) in (object(), object(), any::<[u8; 16]>()),
        (roothash, salt) in (any::<[u8; 32]>(), any::<[u8; 32]>()),
        contents in prop::collection::btree_map("[a-z]{1,8}(/[a-z]{1,8}){0,2}", object(), 0..20),
        payloads in prop::collection::vec((object(), any::<prop::sample::Index>(), payload_kind()), 0..20),
        (arm, built_s, spare) in (any::<bool>(), any::<u32>(), any::<u16>()),
    ) -> Manifest {
        // A slot image has whole verity blocks.
        let length = slot.geometry.length().div_ceil(4096) * 4096;
        let slot = ObjectRef { geometry: Geometry::new(length, slot.geometry.block()).unwrap(), ..slot };
        let known = |object, kind| Entry::Known(Target { object, kind, ignored: Default::default() });
        let kind = TargetKind::Slot { roothash: Digest(roothash), salt, uuid };
        let esp_bytes = uki.geometry.length() + u64::from(spare);
        let mut targets = vec![known(slot, kind), known(uki, TargetKind::Uki)];
        targets.extend(contents.into_iter().map(|(name, object)| known(object, TargetKind::Content { name })));
        let payloads = payloads.into_iter().map(|(object, target, kind)| {
            let target = target.index(targets.len()) as u16;
            let kind = fitting(kind, &object);
            Entry::Known(Payload { target, object, kind, ignored: Default::default() })
        }).collect();
        let (product, board, version, profile) = names;
        Manifest {
            product, board, version, profile, built_s, targets, payloads,
            arch: if arm { Arch::Arm64 } else { Arch::X86_64 },
            min_agent_format: 1,
            needs: Needs { slot_bytes: length, verity_bytes: length + 8192, esp_bytes },
            ignored: Default::default(),
        }
    }
}

proptest! {
    #[test]
    fn frames_read_back(said in announcement(), signers in prop::collection::btree_set(0u8..8, 0..=8)) {
        let mut frame = Frame::unsigned(said).unwrap();
        for number in signers {
            frame.sign(number, [number; 64]).unwrap();
        }
        let bytes = frame.encode().unwrap();
        prop_assert_eq!(Frame::parse(&bytes).unwrap(), frame);
    }

    #[test]
    fn whatever_parses_as_a_frame_writes_back(said in announcement(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut frame = Frame::unsigned(said).unwrap();
        frame.sign(3, [5; 64]).unwrap();
        let mut bytes = frame.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(frame) = Frame::parse(&bytes) {
            prop_assert_eq!(frame.encode().unwrap(), bytes);
        }
    }

    #[test]
    fn any_flipped_bit_of_a_frame_is_refused(said in announcement(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut frame = Frame::unsigned(said).unwrap();
        let signature = key(2).sign(&frame.unverified().signed_bytes().unwrap()).to_bytes();
        frame.sign(0, signature).unwrap();
        let role = role(1, &[2]);
        frame.verify(&role).unwrap();
        let mut bytes = frame.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Frame::parse(&bytes).map_or(true, |frame| frame.verify(&role).is_err()));
    }

    #[test]
    fn manifests_read_back(manifest in manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
    }

    #[test]
    fn whatever_parses_as_a_manifest_writes_back(manifest in manifest(), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = manifest.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(manifest) = Manifest::parse(&bytes) {
            prop_assert_eq!(manifest.encode().unwrap(), bytes);
        }
    }

    /// Whatever a catalogue offers, a device tries the cheapest first and always has a way that needs no base.
    #[test]
    fn ways_are_ordered_and_never_lead_nowhere(
        manifest in manifest(), kinds in prop::collection::vec((object(), payload_kind()), 0..8), has in any::<bool>(),
    ) {
        let added = kinds.into_iter().map(|(object, kind)| {
            let kind = fitting(kind, &object);
            Entry::Known(Payload { target: 0, object, kind, ignored: Default::default() })
        });
        let id = Digest([1; 32]);
        let catalogue =
            Catalogue { root_version: 1, manifest: id, payloads: added.collect(), ignored: Default::default() };
        let bytes = catalogue.encode(&key(9).sign(&catalogue.signed_bytes()).to_bytes());
        let opened = Catalogue::open(&bytes, &root(1, 0), &id, &manifest);
        prop_assert_eq!(opened.is_ok(), catalogue.check(&manifest).is_ok());
        let used = opened.as_ref().ok();
        let found = ways(&manifest, used, 0, &|_| has);
        let adaptive = |way: &formats::catalogue::Way<'_>| way.payload.is_some_and(|p| p.kind.is_adaptive());
        let fixed: Vec<_> = found.iter().filter(|way| !adaptive(way)).collect();
        prop_assert!(fixed.is_sorted_by_key(|way| way.fetch_bytes));
        prop_assert!(!adaptive(found.last().unwrap()), "the last way is certain");
        prop_assert!(found.iter().any(|way| way.payload.is_none()));
        let base = |way: &&formats::catalogue::Way<'_>| {
            matches!(way.payload.map(|payload| &payload.kind), Some(PayloadKind::Delta { .. }))
        };
        prop_assert!(has || found.iter().filter(base).count() == 0);
        // What the catalogue adds is smaller than what the device would have fetched without it.
        let own = ways(&manifest, None, 0, &|_| false);
        let without = own.iter().find(|way| !adaptive(way)).unwrap().fetch_bytes;
        let added = |way: &&formats::catalogue::Way<'_>| {
            used.is_some_and(|used| used.payloads.iter().any(|entry| entry.known() == way.payload))
        };
        prop_assert!(found.iter().filter(added).all(|way| way.fetch_bytes < without));
    }

    #[test]
    fn parsers_stand_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(Frame::parse(&bytes).is_err() || bytes.len() >= 70);
        prop_assert!(Manifest::parse(&bytes).is_err());
        prop_assert!(Chain::parse(&bytes).is_err());
    }

    #[test]
    fn a_chain_is_followed_only_along_signatures(
        keys in prop::collection::vec((1u8..6, prop::bool::weighted(0.8), prop::bool::weighted(0.8)), 1..8),
    ) {
        let first = root(1, 0);
        let (mut documents, mut honest, mut last) = (vec![signed(first.clone(), &[1])], true, 1u8);
        let mut reached = 1;
        for (version, (next, by_old, by_new)) in (2u16..).zip(keys) {
            let seeds: Vec<u8> = [(last, by_old), (next, by_new)].iter().filter(|(_, by)| *by).map(|(s, _)| *s).collect();
            let document = Root { root: role(1, &[next]), release: role(1, &[20 + next]), ..root(version, 0) };
            documents.push(signed(document, &seeds));
            honest &= seeds.contains(&last) && seeds.contains(&next);
            reached = if honest { version } else { reached };
            last = next;
        }
        let bytes = Chain::new(documents).unwrap().encode();
        let followed = Chain::parse(&bytes).unwrap().follow(&first);
        prop_assert_eq!(followed.is_ok(), honest);
        if let Ok(root) = followed {
            prop_assert_eq!(root.version, reached);
        }
    }

    /// A device that follows whatever verdict says may be followed, under any sequence of honestly and wrongly numbered
    /// releases, rotations and clocks.
    #[test]
    fn invariants_hold_after_every_event(
        events in prop::collection::vec((0u8..5, any::<u32>(), any::<u32>(), any::<u16>(), prop::option::of(any::<u32>())), 1..40),
    ) {
        let device = Device { product: "p", board: "b", arch: Arch::Arm64, channel: 0, site: None, id: "d" };
        let mut trusted = root(1, 1_000_000);
        let mut watermark = TimeWatermark::of_root(&trusted);
        let mut accepted: Option<Accepted> = None;
        for (kind, sequence, signed_s, validity_h, clock_s) in events {
            if kind == 0 {
                trusted = root(trusted.version + 1, signed_s);
                watermark = TimeWatermark::of_root(&trusted);
                // An honest release is accepted right after any rotation, whatever was signed before.
                let fresh = verified(&trusted, 1, trusted.signed_s, 1, false);
                let verdict = trust::judge(&fresh, &device, accepted, watermark, None);
                prop_assert_eq!(verdict, Ok(Verdict::Newer));
                continue;
            }
            let said = verified(&trusted, sequence.max(1), signed_s, validity_h, kind == 1);
            let verdict = trust::judge(&said, &device, accepted, watermark, clock_s);
            let rank = Rank::of(said.announcement());
            prop_assert_eq!(verdict.is_err(), accepted.is_some_and(|accepted| rank < accepted.rank));
            if kind == 1 {
                prop_assert!(!matches!(verdict, Ok(Verdict::PossiblyFrozen { .. })), "a rescue was held back");
            }
            if verdict == Ok(Verdict::Newer) {
                prop_assert!(accepted.is_none_or(|accepted| rank > accepted.rank));
                accepted = Some(Accepted { rank, manifest: None });
                let before = watermark;
                watermark = watermark.after(&said, &trusted);
                prop_assert!(watermark >= before);
            }
            let cap = u64::from(trusted.signed_s) + u64::from(MAX_WATERMARK_LEAD_S);
            prop_assert!(u64::from(watermark.seconds()) <= cap);
            prop_assert!(watermark >= TimeWatermark::of_root(&trusted));
        }
    }
}

fn signed(root: Root, seeds: &[u8]) -> SignedRoot {
    let message = root.signed_bytes();
    let mut document = SignedRoot::unsigned(root);
    for seed in seeds {
        let public = PublicKey::from_bytes(&key(*seed).verifying_key().to_bytes()).unwrap();
        document.sign(public, key(*seed).sign(&message).to_bytes());
    }
    document
}

fn verified(
    root: &Root,
    sequence: u32,
    signed_s: u32,
    validity_h: u16,
    rescue: bool,
) -> formats::frame::Verified {
    let mut frame = Frame::unsigned(Announcement {
        target: target_tag("p", "b", Arch::Arm64),
        channel: 0,
        scope: Scope::All,
        root_version: root.version,
        sequence,
        min_agent_format: 1,
        signed_s,
        validity_h,
        rescue,
        ignored_flags: 0,
        manifest_bytes: 1,
        manifest: Digest([0; 32]),
        extensions: Vec::new(),
    })
    .unwrap();
    let message = frame.unverified().signed_bytes().unwrap();
    frame.sign(0, key(if rescue { 1 } else { 2 }).sign(&message).to_bytes()).unwrap();
    trust::authenticate(&frame.encode().unwrap(), root).unwrap()
}
