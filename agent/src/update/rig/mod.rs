//! The power-cut rig: whole updates on a medium that keeps live and durable bytes apart, cut after every operation.
//!
//! `medium` is the storage with its faults, `release` a signed release, `world` the machine: boot loader, init, agent,
//! operator. `judge` says of any state of the medium whether it boots, and whether only verified bytes could. The
//! campaigns are here; `failures` has machines and sources that fail in other ways.
//!
//! A cut leaves what was written since the last flush lost, kept, torn in sectors of 512 bytes or pages of 4 KiB, or
//! reordered; of a rename on the ESP the old name, the new, both or neither; of the memory's transaction all or
//! nothing. From each such state the machine goes on by itself, and must come to the same end, having fetched at most
//! one block and one flush interval twice.

mod carriers;
pub(super) mod decisions;
mod failures;
mod judge;
pub(super) mod medium;
pub(super) mod release;
mod waves;
mod world;

use judge::judge;
use medium::{Fate, fates};
use release::{Built, LARGE, SMALL, Shop};
use world::{Script, World};

/// What a campaign found.
#[derive(Default, Debug)]
struct Tally {
    cuts: usize,
    states: usize,
    boots: usize,
    twice: u64,
}

/// Runs `script`, cut at every operation in every way; `end` judges where it came to.
fn campaign(shop: &Shop, script: Script, end: fn(&World<'_>)) -> Tally {
    let mut whole = World::new(shop, script);
    whole.run_to_rest().unwrap();
    end(&whole);
    let operations = whole.medium.operations();
    let mut tally = Tally { cuts: operations, ..Tally::default() };
    for cut in 0..operations {
        let mut interrupted = World::new(shop, script);
        interrupted.medium.cut_at(Some(cut));
        assert!(interrupted.run_to_rest().is_err(), "operation {cut} is never reached");
        for fate in fates(&interrupted.medium) {
            tally.states += 1;
            let mut world = interrupted.after(fate);
            judge(&world).unwrap_or_else(|why| panic!("cut at {cut} of {operations}, {fate:?}: {why}"));
            world.run_to_rest().unwrap_or_else(|error| panic!("cut at {cut}, {fate:?}: {error:#}"));
            judge(&world).unwrap();
            end(&world);
            tally.boots += world.boots;
            tally.twice = tally.twice.max(world.fetched_twice());
        }
    }
    tally
}

/// As [`campaign`], with a second cut at a place that differs from state to state.
fn twice_cut(shop: &Shop, script: Script, end: fn(&World<'_>)) -> Tally {
    let mut whole = World::new(shop, script);
    whole.run_to_rest().unwrap();
    let operations = whole.medium.operations();
    let mut tally = Tally { cuts: operations, ..Tally::default() };
    for cut in 0..operations {
        let mut interrupted = World::new(shop, script);
        interrupted.medium.cut_at(Some(cut));
        assert!(interrupted.run_to_rest().is_err());
        for (n, fate) in fates(&interrupted.medium).into_iter().enumerate() {
            let mut again = interrupted.after(fate);
            again.medium.cut_at(Some((cut * 7 + n * 13) % operations.max(1)));
            if again.run_to_rest().is_ok() {
                continue;
            }
            for second in fates(&again.medium).into_iter().skip(n % 4).step_by(4) {
                tally.states += 1;
                let mut world = again.after(second);
                judge(&world).unwrap_or_else(|why| panic!("cuts at {cut} {fate:?}, then {second:?}: {why}"));
                world
                    .run_to_rest()
                    .unwrap_or_else(|error| panic!("cut {cut} {fate:?} {second:?}: {error:#}"));
                judge(&world).unwrap();
                end(&world);
                tally.boots += world.boots;
                tally.twice = tally.twice.max(world.fetched_twice());
            }
        }
    }
    tally
}

fn committed(world: &World<'_>) {
    assert_eq!(world.running(), "2.0", "{:?}", world.memory().last);
    let names = world.entry_names();
    assert!(names.iter().any(|name| name.starts_with("2.0_") && !name.contains('+')), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("1.0_") && !name.contains('+')), "{names:?}");
}

fn rolled_back(world: &World<'_>) {
    assert_eq!(world.running(), "2.0");
    let last = world.memory().last.clone().unwrap();
    assert_eq!((last.version.as_str(), last.how), ("3.0", crate::update::state::How::RolledBack));
    assert!(world.memory().quarantine.iter().any(|failed| failed.version == "3.0"));
}

fn returned(world: &World<'_>) {
    assert_eq!(world.running(), "1.0", "{:?}", world.memory().last);
    assert!(world.memory().quarantine.iter().any(|failed| failed.version == "2.0"));
}

fn report(what: &str, tally: &Tally) {
    eprintln!(
        "power cuts, {what}: {} operations, {} states, {} boots: 0 unbootable, 0 unverified bootable, at most {} bytes \
         fetched twice",
        tally.cuts, tally.states, tally.boots, tally.twice
    );
}

#[test]
fn an_update_survives_every_power_cut() {
    let shop = Shop::new(SMALL);
    let tally = campaign(&shop, Script::Update, committed);
    report("update", &tally);
    assert!(tally.states > 500, "{tally:?}");
    assert!(tally.twice <= world::BLOCK + world::INTERVAL.bytes, "{tally:?}");
}

#[test]
fn an_update_staged_in_the_other_slot_survives_every_power_cut() {
    let shop = Shop::new(LARGE);
    let tally = campaign(&shop, Script::UpdateWithoutRoom, committed);
    report("update staged in the other slot", &tally);
    assert!(tally.states > 500, "{tally:?}");
    assert!(tally.twice <= world::BLOCK + world::INTERVAL.bytes, "{tally:?}");
}

#[test]
fn an_update_from_an_adaptive_payload_survives_every_power_cut() {
    let shop = Shop::adaptive(LARGE);
    assert!(shop.two.object_bytes < shop.one.object_bytes / 2, "{}", shop.two.object_bytes);
    let tally = campaign(&shop, Script::Update, committed);
    report("update from an adaptive payload", &tally);
    assert!(tally.twice <= world::BLOCK + world::INTERVAL.bytes, "{tally:?}");
}

#[test]
fn a_second_update_that_fails_its_health_check_rolls_back_through_every_power_cut() {
    let shop = Shop::new(SMALL);
    let tally = campaign(&shop, Script::SecondFails, rolled_back);
    report("second update with rollback", &tally);
    assert!(tally.states > 500, "{tally:?}");
    assert!(tally.twice <= world::BLOCK + world::INTERVAL.bytes, "{tally:?}");
}

#[test]
fn a_return_to_the_other_release_survives_every_power_cut() {
    let shop = Shop::new(SMALL);
    let tally = campaign(&shop, Script::Return, returned);
    report("operator's return", &tally);
    assert!(tally.states > 0, "{tally:?}");
}

#[test]
fn two_power_cuts_are_survived_too() {
    let shop = Shop::new(SMALL);
    let most = 2 * (world::BLOCK + world::INTERVAL.bytes);
    for (what, script, end) in [
        ("update, two cuts", Script::Update, committed as fn(&World<'_>)),
        ("rollback, two cuts", Script::SecondFails, rolled_back),
    ] {
        let tally = twice_cut(&shop, script, end);
        report(what, &tally);
        assert!(tally.states > 0 && tally.twice > 0 && tally.twice <= most, "{tally:?}");
    }
}

/// The rig itself sees what it is there for: with the flush left out, or the entry made first, it complains.
#[test]
fn the_judge_sees_a_torn_entry_and_an_unverified_slot() {
    let shop = Shop::new(SMALL);
    let mut world = World::new(&shop, Script::Update);
    world.run_to_rest().unwrap();
    judge(&world).unwrap();
    let rotten = world.after(Fate::LOST);
    rotten.medium.flip(medium::Place::Root(formats::layout::Slot::B), 100);
    assert!(judge(&rotten).unwrap_err().contains("unverified"));
    let torn = world.after(Fate::LOST);
    torn.medium.tear_entry("2.0_");
    assert!(judge(&torn).unwrap_err().contains("unbootable"));
    let bare = world.after(Fate::LOST);
    bare.medium.remove_entries();
    assert!(judge(&bare).unwrap_err().contains("unbootable"));
    let kinds: Vec<&Built> = [&shop.one, &shop.two, &shop.three].to_vec();
    assert!(kinds.windows(2).all(|pair| pair[0].roothash != pair[1].roothash));
}
