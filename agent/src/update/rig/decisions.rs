//! Decisions about hostile, stale and misdirected releases, and about trials that go wrong: rows of
//! `docs/failure-modes.md`.

use super::release::{BOARD, PRODUCT, SMALL, Shop, key, public};
use crate::update::carrier::Failure;
use crate::update::entries::Operation;
use crate::update::plan::{self, Room};
use crate::update::policy;
use crate::update::state::{How, Intent, Memory, Phase, Release, Trial};
use crate::update::step::{Effect, Event, Facts, Fault, Offered, Outcome, Part, State};
use ed25519_dalek::Signer;
use formats::arch::Arch;
use formats::device::{HealthCheck, Probe};
use formats::entry::EntryName;
use formats::frame::{Announcement, Frame, Scope, target_tag};
use formats::hex::Digest;
use formats::keys::Role;
use formats::manifest::{Entry, Target, TargetKind};
use formats::repository;
use formats::roles::{Chain, Root, SignedRoot};
use formats::wave::{EVERYBODY, Wave};

pub(in crate::update) const SITE: &str = "north";
pub(in crate::update) const DEVICE: &str = "device";

pub(in crate::update) fn facts(shop: &Shop, version: &str, roothash: Digest) -> Facts {
    let probe = Probe::Unit { unit: "app.service".into() };
    Facts {
        running: Some(Release { version: version.into(), roothash, manifest: None }),
        other: None,
        durable: Ok(()),
        counted: false,
        restarted: false,
        evidence: None,
        fallback: None,
        product: PRODUCT.into(),
        board: BOARD.into(),
        arch: Arch::X86_64,
        channel: 0,
        site: Some(SITE.into()),
        id: DEVICE.into(),
        anchor: Ok(shop.root.clone()),
        source: Some("net".into()),
        poll_s: 3600,
        carriers: Vec::new(),
        checks: vec![HealthCheck { name: "app".into(), deadline_s: 60, probe }],
        seed: 1,
    }
}

fn begin(facts: Facts, memory: Memory) -> State {
    State::default().step(Event::Started(Box::new(facts), Box::new(memory)), 1000).0
}

pub(in crate::update) fn running_one(shop: &Shop) -> State {
    begin(facts(shop, "1.0", shop.one.roothash), Memory::default())
}

pub(in crate::update) fn offered(manifest: &[u8]) -> Event {
    let room =
        Room { root: 1 << 30, verity: 1 << 30, esp: 1 << 30, var: 1 << 30, uki: None, boot_loader: None };
    Event::Manifest(Box::new(Offered { manifest: manifest.to_vec(), catalogue: None, wave: Ok(None), room }))
}

pub(in crate::update) fn manifest_of(built: &super::release::Built) -> Vec<u8> {
    let frame = Frame::parse(&built.files[repository::ANNOUNCE]).unwrap();
    built.files[&repository::object(&frame.unverified().manifest)].clone()
}

/// Asks for an update from a source with these announcements; gives what comes of it.
pub(in crate::update) fn look(state: State, frames: &[&[u8]]) -> (State, Outcome) {
    let (state, _) = state.step(Event::Check(Some("net".into()), Intent::Now), 2000);
    let frames = frames.iter().map(|frame| frame.to_vec()).collect();
    state.step(Event::Announcements(frames), 3000)
}

pub(in crate::update) fn said(out: &Outcome) -> &str {
    out.answer.as_ref().map_or("", |answer| &answer.text)
}

fn fetching(shop: &Shop) -> State {
    let (state, _) = look(running_one(shop), &[&shop.two.files[repository::ANNOUNCE]]);
    state.step(offered(&manifest_of(&shop.two)), 4000).0
}

#[test]
fn a_release_for_another_board_or_processor_is_refused_before_anything_is_fetched() {
    let shop = Shop::new(SMALL);
    let frame: &[u8] = &shop.two.files[repository::ANNOUNCE];
    let here = facts(&shop, "1.0", shop.one.roothash);
    for other in [
        Facts { board: "jetson-orin".into(), ..here.clone() },
        Facts { arch: Arch::Arm64, ..here.clone() },
        Facts { product: "kiosk".into(), ..here },
    ] {
        let (state, out) = look(begin(other, Memory::default()), &[frame]);
        assert!(out.effects.is_empty() && said(&out).contains("refused"), "{out:?}");
        assert_eq!(state.memory.phase, Phase::Idle);
    }
}

#[test]
fn a_manifest_of_another_release_is_refused() {
    let shop = Shop::new(SMALL);
    let (state, _) = look(running_one(&shop), &[&shop.two.files[repository::ANNOUNCE]]);
    let (state, out) = state.step(offered(&manifest_of(&shop.three)), 4000);
    assert!(said(&out).contains("manifest is not the announced one"), "{out:?}");
    assert_eq!((state.memory.phase, state.memory.accepted), (Phase::Idle, None));
}

#[test]
fn an_older_release_is_refused_from_every_carrier() {
    let shop = Shop::new(SMALL);
    let (state, _) = look(running_one(&shop), &[&shop.three.files[repository::ANNOUNCE]]);
    let (state, _) = state.step(offered(&manifest_of(&shop.three)), 4000);
    assert_eq!(state.memory.accepted.unwrap().sequence, 3);
    // A stick that lay in a drawer.
    let (_, out) = look(state, &[&shop.two.files[repository::ANNOUNCE]]);
    assert!(said(&out).contains("rollback refused"), "{out:?}");
    // Without a memory, the version that runs still says what is older.
    let state = begin(facts(&shop, "3.0", shop.three.roothash), Memory::default());
    let (state, _) = look(state, &[&shop.two.files[repository::ANNOUNCE]]);
    let (state, out) = state.step(offered(&manifest_of(&shop.two)), 4000);
    assert!(said(&out).contains("does not come after the running 3.0"), "{out:?}");
    assert_eq!(state.memory.phase, Phase::Idle);
}

#[test]
fn a_full_esp_is_said_before_any_download() {
    let shop = Shop::new(SMALL);
    let (state, _) = look(running_one(&shop), &[&shop.two.files[repository::ANNOUNCE]]);
    let room = Room { root: 1 << 30, verity: 1 << 30, esp: 1000, var: 1 << 30, uki: None, boot_loader: None };
    let manifest = manifest_of(&shop.two);
    let offered = Event::Manifest(Box::new(Offered { manifest, catalogue: None, wave: Ok(None), room }));
    let (state, out) = state.step(offered, 4000);
    assert!(said(&out).contains("on the ESP") && said(&out).contains("nothing was downloaded"), "{out:?}");
    assert!(out.effects.is_empty() && state.memory.phase == Phase::Idle);
}

#[test]
fn who_is_not_in_the_wave_waits_and_an_operator_does_not() {
    let shop = Shop::new(SMALL);
    let frame = shop.two.files[repository::ANNOUNCE].clone();
    let room =
        Room { root: 1 << 30, verity: 1 << 30, esp: 1 << 30, var: 1 << 30, uki: None, boot_loader: None };
    let wave = |share| {
        let id = Frame::parse(&frame).unwrap().unverified().manifest;
        Ok(Some(Wave { manifest: id, share }))
    };
    let looked = |intent, wave| {
        let offered = Offered { manifest: manifest_of(&shop.two), catalogue: None, wave, room };
        let (state, _) = running_one(&shop).step(Event::Check(None, intent), 2000);
        let (state, _) = state.step(Event::Announcements(vec![frame.clone()]), 3000);
        state.step(Event::Manifest(Box::new(offered)), 4000)
    };
    let asked = |intent, share| looked(intent, wave(share));
    let (state, out) = asked(Intent::Poll, 0);
    assert!(said(&out).contains("waits for its wave") && out.effects.is_empty(), "{out:?}");
    assert_eq!((state.memory.phase, state.memory.accepted), (Phase::Idle, None));
    for (intent, share) in [(Intent::Now, 0), (Intent::Poll, EVERYBODY)] {
        assert!(matches!(asked(intent, share).0.memory.phase, Phase::Fetching(_)));
    }
    // A release that is held back does not get out because the wave did not come.
    let lost = || Err(Failure::new(Fault::Unreachable(Some(7200)), "no answer"));
    let (state, out) = looked(Intent::Poll, lost());
    assert!(
        said(&out).contains("until its wave can be read: no answer") && out.effects.is_empty(),
        "{out:?}"
    );
    assert_eq!((&state.memory.phase, state.memory.accepted), (&Phase::Idle, None));
    assert!(state.wake_ms().unwrap() >= 4000 + 7_200_000, "it is looked at again when the source wants it");
    assert!(matches!(looked(Intent::Now, lost()).0.memory.phase, Phase::Fetching(_)));
}

#[test]
fn a_source_that_announces_by_itself_is_looked_at_soon() {
    let shop = Shop::new(SMALL);
    // Long before the next look that is due anyway.
    let (quiet, now_ms) = (running_one(&shop).wake_ms().unwrap(), 5_000);
    let heard =
        |source: &str| running_one(&shop).step(Event::Heard(source.into()), now_ms).0.wake_ms().unwrap();
    assert!(quiet > now_ms + 30_000, "{quiet}");
    assert!(heard("net") < now_ms + 30_000, "{}", heard("net"));
    assert_eq!(heard("elsewhere"), quiet);
}

#[test]
fn an_esp_that_cannot_be_written_is_said_before_any_download() {
    let shop = Shop::new(SMALL);
    let (state, _) = look(running_one(&shop), &[&shop.two.files[repository::ANNOUNCE]]);
    let why = "look how much room there is: mount the ESP /dev/vda1: EROFS: Read-only file system";
    let (state, out) = state.step(Event::Unread(why.into(), Fault::Local), 4000);
    assert!(said(&out).contains("Read-only") && state.memory.phase == Phase::Idle, "{out:?}");
}

#[test]
fn payloads_that_do_not_fit_the_base_are_followed_by_all_others() {
    let shop = Shop::adaptive(SMALL);
    let mut state = fetching(&shop);
    let ways = |state: &State| {
        let Phase::Fetching(attempt) = &state.memory.phase else { panic!("{:?}", state.memory.phase) };
        attempt.plan.slot.ways.len()
    };
    let all = ways(&state);
    assert_eq!(all, 3, "adaptive, full, as it is");
    for left in (1..all).rev() {
        let why = "decode the delta: its base differs".to_owned();
        let (next, out) = state.step(Event::Failed(1, Part::Slot, Fault::Damaged, why), 5000);
        assert!(matches!(out.effects.as_slice(), [Effect::Fetch(..)]), "{out:?}");
        assert_eq!(ways(&next), left);
        state = State { job: 1, ..next };
    }
    let (state, _) = state.step(Event::Failed(1, Part::Slot, Fault::Damaged, "damaged".into()), 6000);
    assert_eq!(state.memory.last.unwrap().how, How::GivenUp);
    assert!(state.memory.quarantine.is_empty(), "a better repository may offer it again");
}

#[test]
fn of_two_transports_the_later_goes_on_with_what_the_first_brought() {
    let shop = Shop::new(SMALL);
    let slow = fetching(&shop);
    let job = slow.job;
    let (state, _) = slow.step(Event::Check(Some("/media/stick".into()), Intent::Now), 5000);
    let (state, _) =
        state.step(Event::Announcements(vec![shop.two.files[repository::ANNOUNCE].clone()]), 5001);
    let (state, out) = state.step(offered(&manifest_of(&shop.two)), 5002);
    let [Effect::Cancel, Effect::Fetch(now, attempt)] = out.effects.as_slice() else { panic!("{out:?}") };
    assert_eq!((attempt.source.as_str(), *now), ("/media/stick", job + 1));
    // The first may still say something; it no longer counts.
    let (state, out) = state.step(Event::Failed(job, Part::Slot, Fault::Damaged, "late".into()), 5003);
    assert!(out.effects.is_empty() && matches!(state.memory.phase, Phase::Fetching(_)));
    let (state, _) = state.step(Event::Fetched(job), 5004);
    assert!(matches!(state.memory.phase, Phase::Fetching(_)));
    let (state, _) = state.step(Event::Fetched(job + 1), 5005);
    assert!(matches!(state.memory.phase, Phase::Installing(_)));
}

fn on_trial(shop: &Shop, trial: Trial, change: impl FnOnce(&mut Facts)) -> (State, Outcome) {
    let release = Release { version: "2.0".into(), roothash: shop.two.roothash, manifest: None };
    let memory = Memory { phase: Phase::Trial { release, trial }, ..Memory::default() };
    let mut facts = Facts { counted: true, ..facts(shop, "2.0", shop.two.roothash) };
    change(&mut facts);
    State::default().step(Event::Started(Box::new(facts), Box::new(memory)), 1000)
}

#[test]
fn a_trial_that_the_boot_loader_cannot_count_ends_without_spinning() {
    let shop = Shop::new(SMALL);
    let mut trial = Trial::default();
    let mut boots = 0;
    // Nothing on the ESP can be renamed: every restart leads back here.
    let (mut state, _) = on_trial(&shop, trial.clone(), |_| ());
    while let Phase::Trial { trial: now, .. } = &state.memory.phase {
        boots += 1;
        assert!(boots <= policy::STARTS_MAX + 1);
        trial = now.clone();
        state = on_trial(&shop, trial.clone(), |_| ()).0;
    }
    let mut memory = state.memory.clone();
    for _ in 0..policy::RESTARTS_MAX + 2 {
        let state = begin(facts(&shop, "2.0", shop.two.roothash), memory.clone());
        memory = state.memory.clone();
        let failed = Event::Entry(Operation::Spend, Err("Read-only file system".into()));
        let (state, out) = state.step(failed, 2000);
        if state.live.stuck.is_some() {
            assert!(state.live.stuck.as_ref().is_some_and(|why| why.contains("restarts led back here")));
            return;
        }
        assert!(out.effects.iter().any(|effect| matches!(effect, Effect::Restart(_))));
    }
    panic!("it restarts for ever: {memory:?}");
}

#[test]
fn a_trial_without_any_network_is_judged_by_its_checks_alone() {
    let shop = Shop::new(SMALL);
    let (state, _) = on_trial(&shop, Trial::default(), |facts| facts.source = None);
    let (state, _) = state.step(Event::Settled, 2000);
    let (state, out) = state.step(Event::Probed(vec![("app".into(), Ok(()))]), 3000);
    assert!(matches!(state.memory.phase, Phase::Committing { .. }));
    assert!(matches!(out.effects.as_slice(), [Effect::Entry(Operation::Bless, _)]), "{out:?}");
}

#[test]
fn a_check_that_failed_before_the_update_too_does_not_fail_it() {
    let shop = Shop::new(SMALL);
    let trial = Trial { excused: vec!["app".into()], ..Trial::default() };
    // What is in /var, or a network that is down, fails in both slots.
    let (state, _) = on_trial(&shop, trial, |_| ());
    let (state, _) = state.step(Event::Probed(vec![("app".into(), Err("no database".into()))]), 3000);
    let (state, _) = state.step(Event::Settled, 100_000);
    assert!(matches!(state.memory.phase, Phase::Committing { .. }), "{:?}", state.memory.phase);
}

#[test]
fn a_release_that_failed_here_is_not_taken_again_by_itself() {
    let shop = Shop::new(SMALL);
    let mut memory = Memory::default();
    let release = Release { version: "2.0".into(), roothash: shop.two.roothash, manifest: None };
    memory.put_in_quarantine(&release, "health check `app` did not pass");
    let state = begin(facts(&shop, "1.0", shop.one.roothash), memory);
    let (state, _) = state.step(Event::Check(None, Intent::Poll), 2000);
    let (state, _) =
        state.step(Event::Announcements(vec![shop.two.files[repository::ANNOUNCE].clone()]), 3000);
    let (state, out) = state.step(offered(&manifest_of(&shop.two)), 4000);
    assert!(said(&out).contains("failed here") && out.effects.is_empty(), "{out:?}");
    assert_eq!(state.memory.phase, Phase::Idle);
}

#[test]
fn an_application_that_fails_after_the_commit_restarts_nothing() {
    let shop = Shop::new(SMALL);
    let (state, _) = on_trial(&shop, Trial::default(), |facts| facts.other = Some(shop.one.roothash));
    let (state, _) = state.step(Event::Commit, 2000);
    let entry = EntryName::uncounted("2.0", &shop.two.roothash.short());
    let (state, _) = state.step(Event::Entry(Operation::Bless, Ok(Some(entry))), 3000);
    assert_eq!(state.memory.last.as_ref().unwrap().how, How::Committed);
    let failed = Event::Probed(vec![("app".into(), Err("it crashed".into()))]);
    let (state, out) = state.step(failed, 4000);
    assert!(out.effects.is_empty() && state.memory.phase == Phase::Idle);
    // The operator may go back at any time.
    let (_, out) = state.step(Event::Rollback, 5000);
    assert!(matches!(out.effects.as_slice(), [Effect::VerifyOther(_)]), "{out:?}");
}

/// Root document `version`, with release key 10 + version.
fn root(shop: &Shop, version: u16) -> Root {
    let release = Role::new(1, vec![public(10 + version as u8)]).unwrap();
    if version == 1 { shop.root.clone() } else { Root { version, release, ..shop.root.clone() } }
}

pub(in crate::update) fn chain(shop: &Shop, versions: impl Iterator<Item = u16>) -> Vec<u8> {
    let documents = versions.map(|version| {
        let mut document = SignedRoot::unsigned(root(shop, version));
        let message = document.root.signed_bytes();
        document.sign(public(1), key(1).sign(&message).to_bytes());
        document
    });
    Chain::new(documents.collect()).unwrap().encode()
}

fn announced(shop: &Shop, root_version: u16, sequence: u32, scope: Scope) -> Vec<u8> {
    let old = Frame::parse(&shop.two.files[repository::ANNOUNCE]).unwrap();
    let said = Announcement { root_version, sequence, scope, ..old.unverified().clone() };
    assert_eq!(said.target, target_tag(PRODUCT, BOARD, Arch::X86_64));
    let mut frame = Frame::unsigned(said).unwrap();
    let signer = if root_version == 1 { 2 } else { 10 + root_version as u8 };
    let message = frame.unverified().signed_bytes().unwrap();
    frame.sign(0, key(signer).sign(&message).to_bytes()).unwrap();
    frame.encode().unwrap()
}

#[test]
fn keys_rotate_over_several_root_versions_and_stay_rotated() {
    let shop = Shop::new(SMALL);
    let follow = |state: State, frame: &[u8], chain: Vec<u8>| {
        let (state, out) = look(state, &[frame]);
        assert!(matches!(out.effects.as_slice(), [Effect::ReadRoots(..)]), "{out:?}");
        state.step(Event::Roots(chain, vec![frame.to_vec()]), 3500)
    };
    let fourth = announced(&shop, 4, 1, Scope::All);
    let (state, out) = follow(running_one(&shop), &fourth, chain(&shop, 1..=4));
    assert!(out.persist && matches!(out.effects.as_slice(), [Effect::ReadManifest(..)]), "{out:?}");
    // After a restart the image still has the first document only.
    let restart = |state: &State| begin(facts(&shop, "1.0", shop.one.roothash), state.memory.clone());
    let again = restart(&state);
    assert_eq!(again.root.as_ref().unwrap().version, 4);
    // A source that no longer carries what is long replaced.
    let sixth = announced(&shop, 6, 1, Scope::All);
    let (state, out) = follow(again, &sixth, chain(&shop, 4..=6));
    assert!(matches!(out.effects.as_slice(), [Effect::ReadManifest(..)]), "{out:?}");
    let again = restart(&state);
    assert_eq!(again.root.as_ref().unwrap().version, 6, "{:?}", again.memory.chain.len());
    // What was replaced no longer signs; a chain with a gap leads nowhere.
    let (again, out) = look(again, &[&fourth]);
    assert!(said(&out).contains("has replaced"), "{out:?}");
    let ninth = announced(&shop, 9, 1, Scope::All);
    let (state, out) = follow(again, &ninth, chain(&shop, 8..=9));
    assert!(out.answer.as_ref().is_some_and(|answer| !answer.ok), "{out:?}");
    assert_eq!(restart(&state).root.unwrap().version, 6);
}

#[test]
fn unknown_root_versions_cause_few_chain_fetches_a_day() {
    let shop = Shop::new(SMALL);
    let frame = announced(&shop, 9, 1, Scope::All);
    let mut state = running_one(&shop);
    let mut fetches = 0;
    for hour in 0..48u64 {
        let (next, _) = state.step(Event::Check(None, Intent::Poll), hour * 3_600_000);
        let (next, out) = next.step(Event::Announcements(vec![frame.clone()]), hour * 3_600_000 + 1);
        if out.effects.is_empty() {
            state = next;
            continue;
        }
        fetches += 1;
        state = next.step(Event::Roots(chain(&shop, 1..=2), vec![frame.clone()]), hour * 3_600_000 + 2).0;
        // A restart gives one more at most, so that a device which restarts often still learns of a rotation.
        assert!(state.memory.chain_fetches > 0);
    }
    assert_eq!(fetches, 2 * u32::from(formats::trust::CHAIN_FETCHES_A_DAY));
}

#[test]
fn the_newest_announcement_for_all_the_site_or_the_device_is_followed() {
    let shop = Shop::new(SMALL);
    let taken = |frames: &[Vec<u8>]| {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let (state, out) = look(running_one(&shop), &frames);
        let verified = state.live.checking.and_then(|checking| checking.verified);
        verified.map(|verified| verified.announcement().sequence).ok_or(said(&out).to_owned())
    };
    let all = announced(&shop, 1, 5, Scope::All);
    let site = announced(&shop, 1, 6, Scope::site(SITE));
    let device = announced(&shop, 1, 7, Scope::device(DEVICE));
    assert_eq!(taken(std::slice::from_ref(&all)), Ok(5));
    assert_eq!(taken(&[all.clone(), site.clone()]), Ok(6));
    assert_eq!(taken(&[all.clone(), site, device]), Ok(7));
    // A canary that is over, and what is for others, stand in nobody's way.
    let old_canary = announced(&shop, 1, 3, Scope::device(DEVICE));
    assert_eq!(taken(&[all.clone(), old_canary]), Ok(5));
    let others = announced(&shop, 1, 9, Scope::site("south"));
    assert_eq!(taken(&[all.clone(), others.clone(), b"junk".to_vec()]), Ok(5));
    assert!(taken(&[others]).unwrap_err().contains("refused"));
    // Nor does one that needs a newer root document which cannot be had.
    let unknown = announced(&shop, 9, 1, Scope::device(DEVICE));
    let (state, _) = look(running_one(&shop), &[&all, &unknown]);
    let (state, _) = state.step(Event::Roots(b"junk".to_vec(), vec![all, unknown]), 3500);
    assert!(state.live.checking.is_some_and(|checking| checking.verified.is_some()));
}

#[test]
fn nothing_of_a_release_is_written_to_the_esp_but_its_uki() {
    let shop = Shop::new(SMALL);
    let bytes = manifest_of(&shop.two);
    let mut manifest = formats::manifest::Manifest::parse(&bytes).unwrap();
    let object = manifest.target(1).unwrap().object;
    let kind = TargetKind::BootFile { path: "EFI/BOOT/BOOTX64.EFI".into() };
    manifest.targets.push(Entry::Known(Target { object, kind, ignored: Default::default() }));
    let other = Some(Digest([7; 32]));
    assert_eq!(plan::other_boot_loader(&manifest, other), Some(object.id));
    assert_eq!(plan::other_boot_loader(&manifest, Some(object.id)), None);
    let room =
        Room { root: 1 << 30, verity: 1 << 30, esp: 1 << 30, var: 1 << 30, uki: None, boot_loader: other };
    let offer = plan::Offer { manifest: &manifest, id: Digest([1; 32]), catalogue: None };
    let made =
        plan::make(&offer, plan::Running { version: "1.0", roothash: shop.one.roothash }, &room).unwrap();
    // A plan has a slot image and a UKI, and what is done follows from the plan alone.
    assert_eq!((made.slot.target.bytes, made.uki.target.id), (shop.two.image.len() as u64, object.id));
    let mut state = running_one(&shop);
    state.live.boot_loader = Some((object.id, Digest([7; 32])));
    let findings = crate::update::view::of(&state).findings;
    assert!(findings.iter().any(|finding| finding.code == "boot-loader-differs"), "{findings:?}");
}
