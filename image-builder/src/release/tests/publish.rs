//! Repositories: what a device finds there, and what `publish` refuses.

mod reader;
mod run;

use super::{BLOCKS, Desk, SIGNED_S, tree};
use crate::progress::Progress;
use crate::release::folder::ANNOUNCE;
use crate::release::keys::PrivateKey;
use crate::release::repository::Repository;
use crate::release::verify::{Viewpoint, verify_announced};
use formats::arch::Arch;
use formats::catalogue::{Catalogue, ways};
use formats::delta::apply::Decoder;
use formats::frame::{Scope, target_tag};
use formats::manifest::{PayloadKind, Source};
use formats::object;
use formats::repository as names;
use formats::trust::{self, Accepted, Rank};
use reader::Reader;
use run::{PLAIN, Run};
use std::fs;
use std::path::Path;

/// Bytes that do not compress.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..BLOCKS as usize * 4096).map(next).collect()
}

/// The same image with a few bytes changed and two halves exchanged.
fn edited(image: &[u8]) -> Vec<u8> {
    let mut edited = image.to_vec();
    edited[5000..5100].fill(9);
    edited.rotate_left(30 * 4096);
    edited
}

fn reader<'a>(repo: &'a Path, desk: &Desk) -> Reader<'a> {
    Reader { repo, root: desk.keys.chain().documents()[0].root.clone(), fetched: 0 }
}

#[test]
fn a_device_finds_the_new_release_and_takes_the_delta() {
    let mut desk = Desk::new();
    let old = noise(1);
    desk.put_image(&old);
    let old_roothash = desk.roothash;
    desk.make("v1", 1).unwrap();
    let first = desk.publish("v1", &PLAIN).unwrap();
    assert!(first.payloads.is_empty() && first.notes.is_empty());
    let new = edited(&old);
    desk.put_image(&new);
    desk.make("v2", 2).unwrap();
    let second = desk.publish("v2", &PLAIN).unwrap();
    let outcomes: Vec<_> = second.payloads.iter().map(|p| (p.target.as_str(), p.outcome)).collect();
    assert_eq!(outcomes[0], ("slot image", "published"), "{second:?}");

    let repo = desk.at("repo");
    let mut reader = reader(&repo, &desk);
    let accepted = Accepted { rank: Rank { root_version: 1, sequence: 1 }, manifest: None };
    let (id, manifest) = reader.release(Some(accepted));
    let bytes = reader.get(&names::catalogue(&id, Some(&old_roothash))).unwrap();
    let catalogue = Catalogue::open(&bytes, &reader.root, &id, &manifest).unwrap();
    let has = |source: &Source| *source == Source::Slot { roothash: old_roothash, bytes: old.len() as u64 };
    let found = ways(&manifest, Some(&catalogue), 0, &has);
    assert!(matches!(found[0].payload.unwrap().kind, PayloadKind::Delta { .. }));
    let delta = reader.object(&found[0]);
    let mut made = Vec::new();
    Decoder::open(&old, &delta).unwrap().run(&mut |_| true, &mut made).unwrap();
    assert!(made == new);
    assert!(reader.fetched < 8000, "{} bytes for an edit of 100", reader.fetched);
    assert_eq!(object::of(&made, manifest.target(0).unwrap().object.geometry.block()).unwrap().id, {
        manifest.target(0).unwrap().object.id
    });
    // Without the base, or if the delta is of no use, there is the release's own payload.
    let own = ways(&manifest, Some(&catalogue), 0, &|_| false);
    // Noise: the image as it is would be smaller than the full payload, but no folder carries that.
    let full = own.iter().find(|way| way.payload.is_some()).unwrap();
    let unpacked = zstd::decode_all(&reader.object(full)[..]).unwrap();
    assert!(unpacked == new);
    assert_eq!(reader.get(&names::catalogue(&id, None)), None);
}

#[test]
fn verify_walks_a_repository_with_its_catalogues() {
    let mut desk = Desk::new();
    let old = noise(9);
    desk.put_image(&old);
    desk.make("v1", 1).unwrap();
    desk.publish("v1", &PLAIN).unwrap();
    desk.put_image(&edited(&old));
    desk.make("v2", 2).unwrap();
    let published = desk.publish("v2", &PLAIN).unwrap();
    let repo = desk.at("repo");
    let check =
        || verify_announced(&repo, &published.announcement, &Viewpoint::default(), &Progress::quiet());
    let report = check().unwrap();
    let deltas: Vec<_> = report.objects.iter().filter(|object| object.what.contains("delta from")).collect();
    assert_eq!(deltas.len(), 2, "{report:?}");
    let path = repo.join(names::object(&deltas[0].id));
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", check().unwrap_err());
    assert!(
        error.contains("slot image, delta from") && error.contains("does not have the expected hash"),
        "{error}"
    );
}

#[test]
fn publishing_again_changes_nothing_and_a_plan_does_nothing() {
    let mut desk = Desk::new();
    let old = noise(2);
    desk.put_image(&old);
    desk.make("v1", 1).unwrap();
    let planned = desk.publish("v1", &Run { plan: true, ..PLAIN }).unwrap();
    assert!(planned.plan && !desk.at("repo").exists());
    desk.publish("v1", &PLAIN).unwrap();
    desk.put_image(&edited(&old));
    desk.make("v2", 2).unwrap();
    let before = tree(&desk.at("repo"));
    let planned = desk.publish("v2", &Run { plan: true, ..PLAIN }).unwrap();
    assert_eq!(planned.payloads[0].outcome, "planned");
    assert_eq!(tree(&desk.at("repo")), before);

    desk.publish("v2", &PLAIN).unwrap();
    let published = tree(&desk.at("repo"));
    let again = desk.publish("v2", &PLAIN).unwrap();
    assert_eq!((again.new_objects, again.payloads[0].outcome), (0, "kept"));
    assert_eq!(tree(&desk.at("repo")), published);
    // Everything that v1 needs is still there, and nothing else was left behind.
    assert!(before.keys().all(|name| published.contains_key(name)));
    let hidden = published.keys().find(|name| name.split('/').any(|part| part.starts_with('.')));
    assert_eq!(hidden, None);
}

#[test]
fn a_delta_that_is_not_smaller_is_not_published() {
    let mut desk = Desk::new();
    desk.put_image(&noise(3));
    desk.make("v1", 1).unwrap();
    desk.publish("v1", &PLAIN).unwrap();
    desk.put_image(&noise(4));
    let facts = desk.make("v2", 2).unwrap();
    let published = desk.publish("v2", &PLAIN).unwrap();
    let outcomes: Vec<_> = published.payloads.iter().map(|payload| payload.outcome).collect();
    assert_eq!(outcomes, ["not smaller", "published"], "{published:?}");
    let repo = desk.at("repo");
    let mut reader = reader(&repo, &desk);
    let (id, manifest) = reader.release(None);
    let catalogue = fs::read_dir(repo.join(names::CATALOGUES).join(id.to_string())).unwrap().next().unwrap();
    let bytes = fs::read(catalogue.unwrap().path()).unwrap();
    let catalogue = Catalogue::open(&bytes, &reader.root, &id, &manifest).unwrap();
    let targets: Vec<_> = catalogue.payloads.iter().map(|entry| entry.known().unwrap().target).collect();
    assert_eq!(targets, [1]);
    assert!(desk.at("repo").join(names::release(&facts.manifest)).exists());
    // What was tried is not tried again: a number that only the note can have comes back.
    let tried = desk.at("repo").join(super::super::repository::TRIED);
    let note = fs::read_dir(fs::read_dir(tried).unwrap().next().unwrap().unwrap().path()).unwrap().next();
    fs::write(note.unwrap().unwrap().path(), "123456789").unwrap();
    let again = desk.publish("v2", &PLAIN).unwrap();
    let kept: Vec<_> = again.payloads.iter().map(|payload| (payload.outcome, payload.bytes)).collect();
    assert_eq!(kept[0], ("not smaller", Some(123_456_789)), "{again:?}");
}

#[test]
fn a_second_release_of_one_epoch_gets_the_next_number() {
    let mut desk = Desk::new();
    desk.make("v1", 7).unwrap();
    desk.publish("v1", &PLAIN).unwrap();
    desk.put_image(&noise(6));
    desk.make("v2", 7).unwrap();
    let refused = desk.failure("v2", &PLAIN);
    assert!(refused.contains("announces another release as 1.7"), "{refused}");
    let signing = Run { renumber: true, ..PLAIN };
    let published = desk.publish("v2", &signing).unwrap();
    assert_eq!(published.rank, "1.8");
    assert!(published.notes[0].contains("announced as 1.8, since 1.7"), "{published:?}");
    desk.put_image(&noise(7));
    let newest = desk.make("v3", 7).unwrap();
    assert_eq!(desk.publish("v3", &signing).unwrap().rank, "1.9");
    // The number is the repository's: publishing again changes nothing, and an older release stays one.
    assert_eq!(desk.publish("v3", &signing).unwrap().rank, "1.9");
    assert!(desk.failure("v1", &signing).contains("is older than 1.9"));
    let wanted = Run { sequence: Some(40), ..PLAIN };
    assert!(desk.failure("v3", &wanted).contains("release keys"));
    assert_eq!(desk.publish("v3", &Run { renumber: true, ..wanted }).unwrap().rank, "1.40");
    let repo = desk.at("repo");
    let (id, _) = reader(&repo, &desk).release(None);
    assert_eq!(id, newest.manifest);
}

#[test]
fn an_adaptive_payload_gives_the_image_from_what_a_stranger_has() {
    use formats::blocks::{Index, mark};
    let mut desk = Desk::new();
    let words: Vec<u8> = noise(5).iter().map(|b| b % 8).collect();
    desk.put_image(&words[..BLOCKS as usize * 4096]);
    desk.make("v1", 1).unwrap();
    let run = Run { adaptive: true, ..PLAIN };
    let published = desk.publish("v1", &run).unwrap();
    assert_eq!((published.payloads[0].kind, published.payloads[0].outcome), ("adaptive", "published"));
    assert_eq!(desk.publish("v1", &run).unwrap().payloads[0].outcome, "kept");
    let repo = desk.at("repo");
    let mut reader = reader(&repo, &desk);
    let (id, manifest) = reader.release(None);
    let bytes = reader.get(&names::catalogue(&id, None)).unwrap();
    let catalogue = Catalogue::open(&bytes, &reader.root, &id, &manifest).unwrap();
    let found = ways(&manifest, Some(&catalogue), 0, &|_| false);
    let PayloadKind::Adaptive { index_bytes } = found[0].payload.unwrap().kind else { panic!("{found:?}") };
    let payload = reader.object(&found[0]);
    let image = fs::read(desk.at("image")).unwrap();
    let index =
        Index::parse(&payload[..index_bytes as usize], payload.len() as u64, image.len() as u64).unwrap();
    let mut made = Vec::new();
    for number in 0..index.cut().units() {
        let unit = index.unit(number).unwrap();
        let packed = &payload[unit.packed.start as usize..unit.packed.end as usize];
        let bytes = (unit.image.end - unit.image.start) as usize;
        made.extend(if packed.len() == bytes {
            packed.to_vec()
        } else {
            zstd::bulk::decompress(packed, bytes).unwrap()
        });
    }
    assert!(made == image);
    let first = mark(&image[..4096]);
    assert!(index.missing(&|mark| mark == first).len() < 2 && index.missing(&|_| true).is_empty());
}

#[test]
fn a_payload_packed_harder_is_offered_to_all() {
    let mut desk = Desk::new();
    // Text-like: higher levels find more.
    let words = ["valve ", "pump ", "pressure ", "flow ", "alarm ", "level ", "site ", "north "];
    let text: String = noise(5).iter().map(|b| words[usize::from(b % 8)]).collect();
    desk.put_image(&text.as_bytes()[..BLOCKS as usize * 4096]);
    desk.make("v1", 1).unwrap();
    let published = desk.publish("v1", &Run { level: Some(19), ..PLAIN }).unwrap();
    assert_eq!(published.payloads[0].outcome, "published", "{published:?}");
    let repo = desk.at("repo");
    let mut reader = reader(&repo, &desk);
    let (id, manifest) = reader.release(None);
    let bytes = reader.get(&names::catalogue(&id, None)).unwrap();
    let catalogue = Catalogue::open(&bytes, &reader.root, &id, &manifest).unwrap();
    let found = ways(&manifest, Some(&catalogue), 0, &|_| false);
    assert_eq!(found.len(), 3);
    assert!(zstd::decode_all(&reader.object(&found[0])[..]).unwrap() == fs::read(desk.at("image")).unwrap());
    // Publishing again without asking for it does not take it away.
    let again = tree(&desk.at("repo"));
    desk.publish("v1", &PLAIN).unwrap();
    assert_eq!(tree(&desk.at("repo")), again);
    let error = desk.failure("v1", &Run { level: Some(99), ..PLAIN });
    assert!(error.ends_with("zstd level is 99, but must be -131072 to 22"), "{error}");
}

#[test]
fn what_devices_would_refuse_is_not_published() {
    let mut desk = Desk::new();
    desk.make("v5", 5).unwrap();
    desk.put_image(&noise(5));
    desk.make("v6", 6).unwrap();
    desk.publish("v6", &PLAIN).unwrap();
    let before = tree(&desk.at("repo"));
    assert_eq!(
        desk.failure("v5", &PLAIN),
        "release 1.5 is older than 1.6, which repo announces (root version, sequence): devices would refuse it; \
         publish it with a higher --sequence, or build it again"
    );
    desk.put_image(&noise(6));
    desk.make("twin", 6).unwrap();
    assert_eq!(
        desk.failure("twin", &PLAIN),
        "repo announces another release as 1.6 (root version, sequence): a number is used once; publish this one with a \
         higher --sequence"
    );
    desk.make("unsigned", 7).unwrap();
    desk.resign("unsigned", |_| (), &[0]);
    assert_eq!(
        desk.failure("unsigned", &PLAIN),
        "release unsigned is not good: refuse the announcement: announcement is not signed by the release keys of root \
         version 1: signed by 1 distinct keys, but the threshold is 2"
    );
    desk.make("damaged", 8).unwrap();
    let objects = desk.at("damaged").join("objects");
    let largest = fs::read_dir(&objects).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[100_000] ^= 1;
    fs::write(&largest, bytes).unwrap();
    assert!(
        desk.failure("damaged", &PLAIN)
            .starts_with("release damaged is not good: slot image, full payload: ")
    );
    assert_eq!(tree(&desk.at("repo")), before);
}

#[test]
fn errors_of_publishing_say_what_to_do() {
    let mut desk = Desk::new();
    desk.make("v1", 1).unwrap();
    let key = desk.keys.root().catalogue;
    let other = PrivateKey::read(&desk.at("keys").join("dev-root-1.pem")).unwrap().public().unwrap();
    assert_eq!(
        desk.failure("v1", &Run { key: Some("dev-root-1.pem"), ..PLAIN }),
        format!("key {other} is not the catalogue key of root version 1, {key}: it may not sign catalogues")
    );
    assert_eq!(
        desk.failure("v1", &Run { from: vec![desk.at("keys")], ..PLAIN }),
        "keys is no release: name the folder `release` of a build"
    );
    let error = Repository::at(&desk.at("v1")).unwrap_err().to_string();
    assert!(error.ends_with(
        "is a release, not a repository: name a folder that `farhold publish` made, or a new one"
    ));
    let error = Repository::at(&desk.at("uki")).unwrap_err().to_string();
    assert!(error.ends_with("is no folder: name a repository or a new folder"));
    desk.publish("v1", &PLAIN).unwrap();
    desk.make("arm", 2).unwrap();
    desk.remanifest("arm", |manifest| manifest.arch = Arch::Arm64);
    desk.resign("arm", |said| said.target = target_tag("edge", "vm", Arch::Arm64), &[0, 1]);
    desk.put_image(&noise(8));
    desk.make("v2", 3).unwrap();
    assert_eq!(
        desk.failure("v2", &Run { from: vec![desk.at("arm")], ..PLAIN }),
        "arm is a release for edge vm (arm64), but this one is for edge vm (x86_64): no device could use that delta"
    );
    let unkeyed = desk.publish("v2", &Run { key: None, ..PLAIN }).unwrap();
    assert_eq!(
        unkeyed.notes,
        ["no deltas: 1 earlier releases could be bases, but catalogues need their key (--key)"]
    );
}

#[test]
fn a_rotation_is_carried_whole_and_old_catalogues_are_made_anew() {
    let mut desk = Desk::new();
    let old = noise(7);
    desk.put_image(&old);
    desk.make("v1", u32::MAX).unwrap();
    desk.publish("v1", &PLAIN).unwrap();
    let first = desk.keys.root().clone();
    desk.keys.rotate(&["release-1".into(), "catalogue".into()], SIGNED_S + 1).unwrap();
    desk.put_image(&edited(&old));
    desk.make("v2", 1).unwrap();
    let error = desk.failure("v2", &PLAIN);
    assert!(error.contains("is not the catalogue key of root version 2"), "{error}");
    desk.publish("v2", &Run { key: Some("dev-catalogue.v2.pem"), ..PLAIN }).unwrap();
    // A device that trusts version 1 and accepted the highest number under it.
    let repo = desk.at("repo");
    let mut reader = reader(&repo, &desk);
    assert_eq!(reader.root, first);
    let tag = target_tag("edge", "vm", Arch::X86_64);
    let frame = reader.get(&names::announcement(&tag, 0, Scope::All)).unwrap();
    assert!(matches!(
        trust::authenticate(&frame, &first),
        Err(trust::Refusal::RootUnknown { has: 1, needs: 2 })
    ));
    reader.fetched = 0;
    let accepted = Accepted { rank: Rank { root_version: 1, sequence: u32::MAX }, manifest: None };
    let (id, manifest) = reader.release(Some(accepted));
    assert_eq!(reader.root.version, 2);
    let slot = manifest.slot().unwrap().1;
    assert_eq!(slot, desk.roothash);
    let catalogues = fs::read_dir(repo.join(names::CATALOGUES).join(id.to_string())).unwrap();
    assert_eq!(catalogues.count(), 1);
    // What is signed under a replaced root is not published any more.
    let unkeyed = Run { key: None, ..PLAIN };
    let error = desk.failure("v1", &unkeyed);
    assert!(error.contains("signed under root version 1, which version 2 has replaced"), "{error}");

    // The release again under a third root version: the old catalogue is refused by devices, so it is made anew.
    desk.keys.rotate(&[], SIGNED_S + 2).unwrap();
    let before = fs::read(repo.join(names::catalogue(&id, Some(&oldest_slot(&repo))))).unwrap();
    desk.make("v3", 1).unwrap();
    desk.publish("v3", &Run { key: Some("dev-catalogue.v2.pem"), ..PLAIN }).unwrap();
    let after = fs::read(repo.join(names::catalogue(&id, Some(&oldest_slot(&repo))))).unwrap();
    assert_ne!(before, after);
    Catalogue::open(&after, desk.keys.root(), &id, &manifest).unwrap();
    assert!(Catalogue::open(&before, desk.keys.root(), &id, &manifest).is_err());
    assert!(repo.join(ANNOUNCE).metadata().is_err());
}

/// The roothash of the oldest release in the repository.
fn oldest_slot(repo: &Path) -> formats::hex::Digest {
    let repository = Repository::at(repo).unwrap();
    let releases = repository.releases(&target_tag("edge", "vm", Arch::X86_64)).unwrap();
    releases.last().unwrap().manifest.slot().unwrap().1
}

#[test]
fn old_releases_are_taken_out_with_what_only_they_need() {
    let mut desk = Desk::new();
    let mut image = noise(11);
    for sequence in 1..=4 {
        desk.put_image(&image);
        desk.make(&format!("v{sequence}"), sequence).unwrap();
        desk.publish(&format!("v{sequence}"), &PLAIN).unwrap();
        image = edited(&image);
    }
    let repo = desk.at("repo");
    let before = tree(&repo);
    // A damaged catalogue of a release that stays: nothing is deleted.
    let tag = target_tag("edge", "vm", Arch::X86_64);
    let newest = Repository::at(&repo).unwrap().releases(&tag).unwrap().remove(0);
    let catalogues = repo.join(names::CATALOGUES).join(newest.said.manifest.to_string());
    let path = catalogues.join("any");
    fs::write(&path, b"damaged").unwrap();
    let error = desk.failure("v4", &Run { keep: Some(2), ..PLAIN });
    assert!(error.contains("/any: publish that release again: read payload catalogue"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(tree(&repo), before);

    let published = desk.publish("v4", &Run { keep: Some(2), ..PLAIN }).unwrap();
    assert!(published.notes[0].starts_with("2 old releases taken out: "), "{:?}", published.notes);
    let after = tree(&repo);
    assert!(after.keys().all(|name| before.contains_key(name)) && after.len() < before.len());
    let left = Repository::at(&repo).unwrap().releases(&tag).unwrap();
    assert_eq!(left.iter().map(|held| held.said.sequence).collect::<Vec<_>>(), [4, 3]);
    // What stays is complete: the newest with deltas from releases that are gone, and the one before it.
    let check = |name: &str| verify_announced(&repo, name, &Viewpoint::default(), &Progress::quiet());
    let report = check(&published.announcement).unwrap();
    assert_eq!(report.objects.iter().filter(|object| object.what.contains("delta from")).count(), 6);
    check(&names::release(&left[1].said.manifest)).unwrap();
    // Nothing more to take out.
    let again = desk.publish("v4", &Run { keep: Some(2), ..PLAIN }).unwrap();
    assert_eq!(again.notes, ["0 old releases taken out: 0 files, 0 bytes"]);
}

#[test]
fn one_publishes_at_a_time_and_cleans_up_after_a_power_cut() {
    let desk = Desk::new();
    desk.make("v1", 1).unwrap();
    desk.publish("v1", &PLAIN).unwrap();
    let (repo, before) = (desk.at("repo"), tree(&desk.at("repo")));
    fs::create_dir(repo.join(".publish-cut")).unwrap();
    fs::write(repo.join(".publish-cut/image"), b"half").unwrap();
    fs::write(repo.join("objects/.partial-cut"), b"half").unwrap();
    let lock = Repository::at(&repo).unwrap().lock().unwrap();
    assert_eq!(tree(&repo), before);
    assert_eq!(
        desk.failure("v1", &PLAIN),
        "another publication to repo is going on: try again when it has ended"
    );
    desk.publish("v1", &Run { plan: true, ..PLAIN }).unwrap();
    drop(lock);
    desk.publish("v1", &PLAIN).unwrap();
    assert_eq!(tree(&repo), before);
}
