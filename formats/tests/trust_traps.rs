//! One test for each way in which release trust failed elsewhere, named by it: replays, lock-outs, expiry that strands or
//! protects nothing, deltas that change targets, hash lists that are all or nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its input must stop")]

use ed25519_dalek::{Signer as _, SigningKey};
use formats::arch::Arch;
use formats::catalogue::{Catalogue, CatalogueError, ways};
use formats::frame::{Announcement, Extension, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::manifest::{
    Entry, MANIFEST_BLOCK, Manifest, Needs, ObjectRef, Payload, PayloadKind, Source, Target, TargetKind,
};
use formats::object::{self, BlockSize, Geometry, Verifier};
use formats::roles::{Chain, Root, RootError, SignedRoot};
use formats::trust::{
    self, Accepted, CHAIN_FETCHES_A_DAY, ChainFetches, Device, MAX_WATERMARK_LEAD_S, Rank, Refusal,
    TimeWatermark, Verdict,
};

/// 2026-11-21, 00:00 UTC.
const NOW_S: u32 = 1_795_219_200;
const YEAR_S: u32 = 365 * 24 * 3600;
const ROOTS: [u8; 3] = [1, 2, 3];
const RELEASES: [u8; 3] = [11, 12, 13];
const CATALOGUE: u8 = 21;

fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

fn public(seed: u8) -> PublicKey {
    PublicKey::from_bytes(&key(seed).verifying_key().to_bytes()).unwrap()
}

fn role(threshold: u8, seeds: &[u8]) -> Role {
    Role::new(threshold, seeds.iter().map(|seed| public(*seed)).collect()).unwrap()
}

fn root(version: u16, signed_s: u32) -> Root {
    let (root, release) = (role(2, &ROOTS), role(2, &RELEASES));
    Root { version, signed_s, root, release, catalogue: public(CATALOGUE), ignored: Default::default() }
}

fn said(root_version: u16, sequence: u32) -> Announcement {
    Announcement {
        target: target_tag("edge", "nuc", Arch::X86_64),
        channel: 0,
        scope: Scope::All,
        root_version,
        sequence,
        min_agent_format: 1,
        signed_s: NOW_S,
        validity_h: 0,
        rescue: false,
        ignored_flags: 0,
        manifest_bytes: 300,
        manifest: Digest([7; 32]),
        extensions: Vec::new(),
    }
}

/// The frame signed by keys given as (number, seed).
fn signed(said: Announcement, by: &[(u8, u8)]) -> Vec<u8> {
    let mut frame = Frame::unsigned(said).unwrap();
    let message = frame.unverified().signed_bytes().unwrap();
    for (number, seed) in by {
        frame.sign(*number, key(*seed).sign(&message).to_bytes()).unwrap();
    }
    frame.encode().unwrap()
}

const TWO: [(u8, u8); 2] = [(0, 11), (1, 12)];
const TWO_ROOTS: [(u8, u8); 2] = [(0, 1), (1, 2)];

/// A device of channel 0 at site north.
const DEVICE: Device<'_> =
    Device { product: "edge", board: "nuc", arch: Arch::X86_64, channel: 0, site: Some("north"), id: "n-1" };

fn judged(
    frame: &[u8],
    root: &Root,
    accepted: Option<Accepted>,
    watermark: TimeWatermark,
    clock_s: Option<u32>,
) -> Result<Verdict, Refusal> {
    trust::judge(&trust::authenticate(frame, root)?, &DEVICE, accepted, watermark, clock_s)
}

fn plain(frame: &[u8], root: &Root, accepted: Option<Accepted>) -> Result<Verdict, Refusal> {
    judged(frame, root, accepted, TimeWatermark::of_root(root), None)
}

fn accepted(root_version: u16, sequence: u32) -> Option<Accepted> {
    Some(Accepted { rank: Rank { root_version, sequence }, manifest: None })
}

fn refused(verdict: Result<Verdict, Refusal>) -> String {
    verdict.unwrap_err().to_string()
}

#[test]
fn trap_1_the_routine_frame_has_198_bytes_and_leaves_40_for_its_carrier() {
    let frame = signed(said(1, 1), &TWO);
    assert_eq!(frame.len(), 198);
    let mut longest = said(1, 1);
    longest.extensions = vec![Extension { kind: 0xff, value: vec![0; 29] }];
    assert!(signed(longest, &TWO).len() + 40 <= 270);
    // Three of five still fit the message, without extensions.
    let five = Root { release: role(3, &[11, 12, 13, 14, 15]), ..root(1, NOW_S) };
    let frame = signed(said(1, 1), &[(0, 11), (2, 13), (4, 15)]);
    assert_eq!(frame.len(), 262);
    assert_eq!(plain(&frame, &five, None), Ok(Verdict::Newer));
    let mut too_long = said(1, 1);
    too_long.extensions = vec![Extension { kind: 0xff, value: vec![0; 30] }];
    assert!(Frame::unsigned(too_long).and_then(|frame| frame.encode()).is_err());
}

#[test]
fn trap_1_a_canary_s_frame_does_not_replay_to_every_site() {
    let root = root(2, NOW_S);
    let of = |change: &dyn Fn(&mut Announcement)| {
        let mut said = said(2, 5);
        change(&mut said);
        refused(plain(&signed(said, &TWO), &root, None))
    };
    assert!(of(&|said| said.channel = 1).contains("channel 1, but this device follows channel 0"));
    assert!(of(&|said| said.scope = Scope::site("south")).contains("another site"));
    assert!(of(&|said| said.scope = Scope::device("n-2")).contains("another device"));
    assert!(of(&|said| said.target = target_tag("edge", "nuc", Arch::Arm64)).contains("processor x86_64"));
    assert!(of(&|said| said.target = target_tag("edge", "vm", Arch::X86_64)).contains("board nuc"));
    assert!(of(&|said| said.root_version = 1).contains("which version 2 has replaced"));
    // Whoever changes the field breaks the signatures: each byte before them is covered.
    let frame = signed(said(2, 5), &TWO);
    for at in 0..69 {
        let mut changed = frame.clone();
        changed[at] ^= 1;
        assert!(plain(&changed, &root, None).is_err(), "byte {at}");
    }
}

#[test]
fn trap_1_signatures_of_another_domain_mean_nothing_here() {
    let root = root(1, NOW_S);
    let mut frame = Frame::unsigned(said(1, 1)).unwrap();
    let message = frame.unverified().signed_bytes().unwrap();
    assert!(message.starts_with(b"farhold-announce-v1\0"));
    for domain in [&b""[..], b"farhold-root-v1\0", b"farhold-catalogue-v1\0"] {
        let other = [domain, &message[20..]].concat();
        for (number, seed) in TWO {
            frame.sign(number, key(seed).sign(&other).to_bytes()).unwrap();
        }
        assert!(
            refused(plain(&frame.encode().unwrap(), &root, None)).contains("not signed by the release keys")
        );
    }
}

#[test]
fn trap_1_distinct_keys_are_counted_and_signatures_are_strict() {
    let root = root(1, NOW_S);
    let message = Frame::unsigned(said(1, 1)).unwrap().unverified().signed_bytes().unwrap();
    let good = key(11).sign(&message).to_bytes();
    // The first key's signature in the second key's place.
    let mut frame = Frame::unsigned(said(1, 1)).unwrap();
    frame.sign(0, good).unwrap();
    frame.sign(1, good).unwrap();
    assert!(plain(&frame.encode().unwrap(), &root, None).is_err());
    // One key under two numbers cannot be: no document has it twice.
    assert!(Role::new(2, vec![public(11), public(11)]).is_err());
    // S + L verifies in lax implementations; so one signature would have many forms.
    let order: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let (mut lax, mut carry) = (good, 0u16);
    for (byte, add) in lax[32..].iter_mut().zip(order) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry as u8;
        carry >>= 8;
    }
    assert!(public(11).verifies(&message, &good) && !public(11).verifies(&message, &lax));
    // A point of small order signs everything: it is no key.
    assert!(
        PublicKey::from_bytes(&{
            let mut identity = [0; 32];
            identity[0] = 1;
            identity
        })
        .is_none()
    );
}

#[test]
fn trap_2_the_highest_sequence_or_the_year_2099_locks_nobody_out() {
    let first = root(1, NOW_S);
    let mut stolen = said(1, u32::MAX);
    stolen.signed_s = u32::MAX;
    let frame = signed(stolen, &TWO);
    assert_eq!(plain(&frame, &first, accepted(1, 41)), Ok(Verdict::Newer));
    let verified = trust::authenticate(&frame, &first).unwrap();
    let watermark = TimeWatermark::of_root(&first).after(&verified, &first);
    assert_eq!(watermark.seconds(), NOW_S + MAX_WATERMARK_LEAD_S);
    let now = accepted(1, u32::MAX);
    assert!(refused(plain(&signed(said(1, 42), &TWO), &first, now)).contains("rollback refused"));
    // The rotation that revokes the thief's keys also brings number 1 and today's time back.
    let second = Root { release: role(2, &[14, 15]), ..root(2, NOW_S + 3600) };
    let honest = Announcement { signed_s: NOW_S + 7200, validity_h: 24, ..said(2, 1) };
    let frame = signed(honest, &[(0, 14), (1, 15)]);
    let watermark = TimeWatermark::restore(watermark.seconds(), &first).seconds();
    assert!(watermark > NOW_S + YEAR_S);
    let reset = TimeWatermark::of_root(&second);
    assert_eq!(judged(&frame, &second, now, reset, None), Ok(Verdict::Newer));
    // And the thief's frame is refused under the new root, whatever its number.
    let again = signed(Announcement { signed_s: u32::MAX, ..said(1, u32::MAX) }, &TWO);
    assert!(refused(plain(&again, &second, accepted(2, 1))).contains("has replaced"));
}

#[test]
fn trap_2_no_clock_moves_the_watermark_and_a_stored_one_is_capped() {
    let root = root(1, NOW_S);
    let watermark = TimeWatermark::of_root(&root);
    let fresh = signed(Announcement { validity_h: 24, ..said(1, 1) }, &TWO);
    for clock_s in [None, Some(0), Some(NOW_S)] {
        assert_eq!(judged(&fresh, &root, None, watermark, clock_s), Ok(Verdict::Newer), "{clock_s:?}");
    }
    // A clock twenty years ahead can hold an ordinary release; it is not remembered.
    let ahead = judged(&fresh, &root, None, watermark, Some(NOW_S + 20 * YEAR_S));
    assert_eq!(ahead, Ok(Verdict::PossiblyFrozen { since_s: NOW_S + 24 * 3600 }));
    assert_eq!(judged(&fresh, &root, None, watermark, None), Ok(Verdict::Newer));
    // A damaged store cannot lift it beyond the cap either, nor lower it below the root's own time.
    assert_eq!(TimeWatermark::restore(u32::MAX, &root).seconds(), NOW_S + MAX_WATERMARK_LEAD_S);
    assert_eq!(TimeWatermark::restore(0, &root).seconds(), NOW_S);
}

#[test]
fn trap_2_wiping_the_state_partition_does_not_lower_the_floor() {
    let (root, running) = (root(1, NOW_S), accepted(1, 40));
    let old = signed(said(1, 39), &TWO);
    for stored in [None, accepted(1, 1), accepted(1, 40)] {
        let floor = Accepted::floor(stored, running);
        assert!(refused(plain(&old, &root, floor)).contains("rollback refused"), "{stored:?}");
    }
    let floor = Accepted::floor(accepted(1, 45), running);
    assert!(
        refused(plain(&signed(said(1, 44), &TWO), &root, floor)).contains("older than the accepted 1.45")
    );
}

#[test]
fn trap_3_expiry_holds_ordinary_releases_and_never_a_rescue() {
    let root = root(1, NOW_S);
    let later = TimeWatermark::restore(NOW_S + YEAR_S, &root);
    let old = Announcement { validity_h: 48, ..said(1, 9) };
    let verdict = judged(&signed(old.clone(), &TWO), &root, None, later, None);
    assert_eq!(verdict, Ok(Verdict::PossiblyFrozen { since_s: NOW_S + 48 * 3600 }));
    let rescue = Announcement { rescue: true, ..old };
    assert_eq!(
        judged(&signed(rescue.clone(), &TWO_ROOTS), &root, None, later, Some(u32::MAX)),
        Ok(Verdict::Newer)
    );
    // If release keys could sign a rescue, expiry would protect nothing.
    assert!(
        refused(plain(&signed(rescue.clone(), &TWO), &root, None)).contains("not signed by the root keys")
    );
    assert!(refused(plain(&signed(rescue, &TWO_ROOTS[..1]), &root, None)).contains("root keys"));
    // And root keys do not sign ordinary releases: they stay offline.
    assert!(refused(plain(&signed(said(1, 9), &TWO_ROOTS), &root, None)).contains("release keys"));
    // What runs is known, whatever the time.
    let known = accepted(1, 9);
    let stale = signed(Announcement { validity_h: 1, ..said(1, 9) }, &TWO);
    assert_eq!(judged(&stale, &root, known, later, Some(u32::MAX)), Ok(Verdict::Known));
}

#[test]
fn trap_3_a_release_without_validity_is_never_held_by_any_clock() {
    let root = root(1, NOW_S);
    let frame = signed(said(1, 2), &TWO);
    for clock_s in [0, 1, NOW_S, NOW_S + 20 * YEAR_S, u32::MAX] {
        let late = TimeWatermark::restore(u32::MAX, &root);
        assert_eq!(judged(&frame, &root, accepted(1, 1), late, Some(clock_s)), Ok(Verdict::Newer));
    }
}

#[test]
fn trap_3_unknown_root_versions_cause_few_chain_fetches() {
    let known = root(1, NOW_S);
    let forged = signed(said(65_535, 1), &[(0, 77), (1, 78)]);
    assert!(matches!(
        trust::authenticate(&forged, &known),
        Err(Refusal::RootUnknown { has: 1, needs: 65_535 })
    ));
    // One such frame a minute, for ten days.
    let (mut fetches, mut fetched) = (ChainFetches::default(), 0);
    for minute in 0..10 * 24 * 60u64 {
        fetched += u32::from(fetches.take(minute * 60));
    }
    assert_eq!(fetched, 10 * u32::from(CHAIN_FETCHES_A_DAY));
    // Switching off and on gives one more, not all of them: or power cycles would be a way to make it talk.
    let mut fetches = ChainFetches::default();
    while fetches.take(5) {}
    let mut after_boot = fetches.restarted();
    assert!(after_boot.take(0) && !after_boot.take(1));
    // A device that was off keeps a budget that it did not use.
    assert_eq!(ChainFetches::default().restarted(), ChainFetches::default());
}

#[test]
fn trap_3_every_carrier_brings_the_whole_chain_to_a_device_that_was_off_for_years() {
    let document = |root: Root, by: &[u8]| {
        let message = root.signed_bytes();
        let mut document = SignedRoot::unsigned(root);
        for seed in by {
            document.sign(public(*seed), key(*seed).sign(&message).to_bytes());
        }
        document
    };
    let first = root(1, NOW_S);
    // Every root key is replaced, one a version.
    let mut documents = vec![document(first.clone(), &[1, 2])];
    for (version, (keys, by)) in
        (2u16..).zip([([4, 2, 3], [2, 3, 4]), ([4, 5, 3], [4, 3, 5]), ([4, 5, 6], [4, 5, 6])])
    {
        documents.push(document(Root { root: role(2, &keys), ..root(version, NOW_S) }, &by));
    }
    let chain = Chain::parse(&Chain::new(documents.clone()).unwrap().encode()).unwrap();
    assert_eq!(chain.follow(&first).unwrap().version, 4);
    // With one version left out there is no way, and the old root stays trusted.
    documents.remove(1);
    assert!(matches!(
        Chain::new(documents).unwrap().follow(&first),
        Err(RootError::Unreachable { trusted: 1, first: 3 })
    ));
}

fn target() -> Target {
    let kind = TargetKind::Content { name: "images/app.tar".into() };
    let object = ObjectRef::from(&object::of(&[5; 100_000], BlockSize::KIB_4).unwrap());
    Target { object, kind, ignored: Default::default() }
}

fn manifest() -> Manifest {
    Manifest {
        product: "edge".into(),
        board: "nuc".into(),
        arch: Arch::X86_64,
        version: "2.0.0".into(),
        min_agent_format: 1,
        built_s: NOW_S,
        needs: Needs { slot_bytes: 0, verity_bytes: 0, esp_bytes: 0 },
        targets: vec![Entry::Known(target())],
        payloads: Vec::new(),
        profile: None,
        ignored: Default::default(),
    }
}

fn catalogue(payloads: Vec<Payload>) -> (Digest, Catalogue) {
    let manifest = object::of(&manifest().encode().unwrap(), MANIFEST_BLOCK).unwrap().id;
    let payloads = payloads.into_iter().map(Entry::Known).collect();
    (manifest, Catalogue { root_version: 1, manifest, payloads, ignored: Default::default() })
}

fn delta(bytes: &[u8]) -> Payload {
    let base = vec![Source::Slot { roothash: Digest([3; 32]), bytes: 4096 }];
    let object = ObjectRef::from(&object::of(bytes, BlockSize::KIB_4).unwrap());
    Payload {
        target: 0,
        object,
        kind: PayloadKind::Delta { base, history: false },
        ignored: Default::default(),
    }
}

#[test]
fn trap_4_deltas_are_added_after_signing_and_cannot_change_a_target() {
    let root = root(1, NOW_S);
    let manifest = manifest();
    let (id, offered) = catalogue(vec![delta(&[1; 900])]);
    let sign = |catalogue: &Catalogue, seed: u8| {
        catalogue.encode(&key(seed).sign(&catalogue.signed_bytes()).to_bytes())
    };
    let opened = Catalogue::open(&sign(&offered, CATALOGUE), &root, &id, &manifest).unwrap();
    let found = ways(&manifest, Some(&opened), 0, &|_| true);
    assert_eq!(found.len(), 2);
    // Whatever the delta's bytes are, what must come out stands in the manifest alone.
    assert_eq!(manifest.target(0).unwrap().object, target().object);
    // Keys of other roles do not sign catalogues, and the catalogue key signs nothing else.
    for seed in ROOTS.into_iter().chain(RELEASES) {
        let refused = Catalogue::open(&sign(&offered, seed), &root, &id, &manifest);
        assert!(matches!(refused, Err(CatalogueError::Signature { .. })));
    }
    let by_catalogue = signed(said(1, 1), &[(0, CATALOGUE), (1, CATALOGUE)]);
    assert!(plain(&by_catalogue, &root, None).is_err());
    // It is bound to one release: the one before or after does not take it.
    let next = Manifest { version: "3.0.0".into(), ..manifest.clone() };
    let next_id = object::of(&next.encode().unwrap(), MANIFEST_BLOCK).unwrap().id;
    let refused = Catalogue::open(&sign(&offered, CATALOGUE), &root, &next_id, &next);
    assert!(matches!(refused, Err(CatalogueError::OtherRelease { .. })));
    // The worst its thief can do is waste as many bytes as the release itself takes.
    let (_, wasteful) = catalogue(vec![delta(&[1; 100_000])]);
    let refused = Catalogue::open(&sign(&wasteful, CATALOGUE), &root, &id, &manifest);
    assert!(matches!(refused, Err(CatalogueError::NotSmaller { .. })));
}

#[test]
fn trap_5_no_long_list_stands_before_the_first_block() {
    // 600 MB in blocks of 64 KiB: a flat list would be 293 KB, all or nothing.
    let geometry = Geometry::new(600_000_000, BlockSize::KIB_64).unwrap();
    let before = |geometry: &Geometry| -> u64 {
        let levels = geometry.lists().len();
        (0..levels)
            .map(|level| geometry.list_range(level, 0).unwrap())
            .map(|range| range.end - range.start)
            .sum()
    };
    assert!(geometry.list_bytes() > 290_000);
    assert!(before(&geometry) <= 2 * 4096 + 4096, "{}", before(&geometry));
    // The longest object for a modem: three list blocks, none longer than a block of data.
    let modem = Geometry::new(1 << 32, BlockSize::KIB_4).unwrap();
    assert_eq!(modem.lists().len(), 3);
    assert!(before(&modem) <= 3 * 4096 && modem.list_block() <= 4096);
}

#[test]
fn trap_5_a_block_is_kept_as_soon_as_its_own_lists_are_there() {
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n ^ (n >> 9)) as u8).collect();
    let made = object::of(&data, BlockSize::from_log2(8).unwrap()).unwrap();
    let geometry = made.geometry;
    let part = |level, index| {
        let range = geometry.list_range(level, index).unwrap();
        &made.lists[range.start as usize..range.end as usize]
    };
    let top = geometry.lists().len() - 1;
    let mut verifier = Verifier::new(made.id, geometry, part(top, 0)).unwrap();
    let block = 9_000u64;
    let (mut taken, fan) = (part(top, 0).len(), 256 / 32);
    for level in (0..top).rev() {
        let index = block / fan_of(fan, level + 1);
        verifier.list(level, index, part(level, index)).unwrap();
        taken += part(level, index).len();
    }
    verifier.block(block, &data[9_000 * 256..9_001 * 256]).unwrap();
    assert!(taken <= 6 * 256, "{taken} bytes of lists for one block");
}

fn fan_of(fan: u64, levels: usize) -> u64 {
    (0..levels).fold(1, |product, _| product * fan)
}

#[test]
fn lengths_beyond_32_bits_are_kept_and_covered() {
    // A signature that covered only the low 32 bits of a length let more be appended (CVE-2026-34155 in another updater).
    let block = BlockSize::from_log2(22).unwrap();
    let long = Geometry::new((1 << 32) + 4096, block).unwrap();
    assert_eq!((long.length(), long.blocks()), ((1 << 32) + 4096, 1025));
    let short = Geometry::new(4096, block).unwrap();
    let one = object::of(&[0; 4096], block).unwrap();
    Verifier::new(one.id, short, &one.lists).unwrap();
    assert!(Verifier::new(one.id, long, &one.lists).is_err());
    let mut manifest = manifest();
    manifest.targets =
        vec![Entry::Known(Target { object: ObjectRef { id: Digest([1; 32]), geometry: long }, ..target() })];
    let read = Manifest::parse(&manifest.encode().unwrap()).unwrap();
    assert_eq!(read.target(0).unwrap().object.geometry.length(), (1 << 32) + 4096);
}
