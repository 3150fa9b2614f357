//! Whole updates through sources, storage and users that fail: rows of `docs/failure-modes.md`.

use super::judge::judge;
use super::medium::{Place, fates};
use super::release::{LARGE, SMALL, Shop};
use super::world::{BLOCK, INTERVAL, Said, Script, Weather, World};
use super::{Fate, committed, rolled_back};
use crate::update::state::Phase;
use crate::update::step::Fault;
use formats::layout::Slot;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// Runs an update through this weather, to its end; gives the machine.
fn weathered<'s>(shop: &'s Shop, weather: &'s Weather) -> World<'s> {
    let mut world = World::new(shop, Script::Update);
    world.weather = Some(weather);
    world.run_to_rest().unwrap();
    judge(&world).unwrap();
    committed(&world);
    world
}

#[test]
fn outages_of_half_a_minute_to_thirty_days_cost_few_requests_and_no_progress() {
    let shop = Shop::new(LARGE);
    let clear = weathered(&shop, &|_, _| Said::Honest).requests;
    for (ms, most) in [(30_000, 10), (HOUR_MS, 20), (DAY_MS, 300), (30 * DAY_MS, 9000)] {
        let weather = move |request: usize, now_ms: u64| match request {
            3 => Said::Cut(7000),
            4.. if now_ms < ms => Said::Fails(Fault::Unreachable(None)),
            _ => Said::Honest,
        };
        let world = weathered(&shop, &weather);
        assert!(world.requests - clear <= most, "{} requests in an outage of {ms} ms", world.requests);
        assert!(world.fetched_twice() <= BLOCK + INTERVAL.bytes);
    }
}

#[test]
fn a_busy_server_is_left_alone_for_as_long_as_it_asks() {
    let shop = Shop::new(SMALL);
    // 429 and 503 come as this, with the seconds of Retry-After.
    let weather = |_: usize, now_ms: u64| match now_ms {
        0..18_000_000 => Said::Fails(Fault::Unreachable(Some(3600))),
        _ => Said::Honest,
    };
    let world = weathered(&shop, &weather);
    assert!(world.requests <= 5 + 8, "{} requests", world.requests);
}

#[test]
fn a_source_that_answers_404_is_asked_once_an_hour_and_what_is_here_stays() {
    let shop = Shop::new(LARGE);
    let clear = weathered(&shop, &|_, _| Said::Honest).requests;
    let weather = |request: usize, now_ms: u64| match request {
        4 => Said::Cut(9000),
        5.. if now_ms < 12 * HOUR_MS => Said::Fails(Fault::Absent),
        _ => Said::Honest,
    };
    let world = weathered(&shop, &weather);
    // Two ways to the image.
    assert!(world.requests - clear <= 2 * 13 + 2, "{} requests", world.requests);
    assert!(world.fetched_twice() <= BLOCK + INTERVAL.bytes);
}

#[test]
fn truncated_answers_are_taken_up_where_they_ended() {
    let shop = Shop::new(LARGE);
    let world = weathered(&shop, &|request, _| if request % 2 == 0 { Said::Honest } else { Said::Cut(3333) });
    assert!(world.requests > 3);
}

#[test]
fn an_object_that_changes_between_two_requests_is_never_mixed() {
    let shop = Shop::new(LARGE);
    weathered(&shop, &|request, _| match request {
        3 => Said::Cut(20 * 1024),
        4 | 5 => Said::Other,
        _ => Said::Honest,
    });
}

#[test]
fn a_payload_with_other_bytes_is_followed_by_the_next_way() {
    let shop = Shop::adaptive(LARGE);
    let honest = weathered(&shop, &|_, _| Said::Honest);
    assert_eq!(honest.fetched_twice(), 0);
    // The UKI comes first; then everything of the adaptive payload is wrong.
    let world =
        weathered(&shop, &|request, _| if (3..=6).contains(&request) { Said::Other } else { Said::Honest });
    assert!(world.fetched_twice() > shop.two.object_bytes, "the full payload was fetched");
}

#[test]
fn what_was_staged_and_changed_before_it_was_used_is_fetched_again() {
    let shop = Shop::new(SMALL);
    let mut world = World::new(&shop, Script::Update);
    world.tamper = true;
    world.run_to_rest().unwrap();
    assert!(!world.tamper && world.fetched_twice() > 0, "it was changed, and noticed");
    judge(&world).unwrap();
    committed(&world);
}

#[test]
fn a_page_that_rots_in_the_running_slot_is_fetched() {
    let shop = Shop::adaptive(LARGE);
    let mut world = World::new(&shop, Script::Update);
    world.medium.flip(Place::Root(Slot::A), 50 * 4096 + 17);
    world.run_to_rest().unwrap();
    assert_eq!(world.running(), "2.0", "{:?}", world.memory().last);
}

#[test]
fn without_room_or_inodes_on_var_the_other_slot_keeps_what_comes() {
    let shop = Shop::new(LARGE);
    let mut world = World::new(&shop, Script::Update);
    world.medium.fill_state();
    world.run_to_rest().unwrap();
    judge(&world).unwrap();
    committed(&world);
}

/// A machine that was just restarted into the trial of 2.0.
fn before_the_trial(shop: &Shop) -> World<'_> {
    let mut world = World::new(shop, Script::Update);
    world.run_until_restart().unwrap();
    assert!(matches!(world.memory().phase, Phase::Trial { .. }));
    world
}

#[test]
fn three_quick_power_cycles_do_not_burn_an_honest_trial() {
    let shop = Shop::new(SMALL);
    let mut world = before_the_trial(&shop);
    for _ in 0..3 {
        world.boot().unwrap();
        assert_eq!(world.running(), "2.0");
        world = world.after(Fate::LOST);
    }
    // The tries are spent, so the boot loader takes the old release, whose agent gives them back.
    world.run_to_rest().unwrap();
    judge(&world).unwrap();
    committed(&world);
}

#[test]
fn a_power_cut_in_the_first_boot_of_the_new_slot_costs_nothing() {
    let shop = Shop::new(SMALL);
    let mut world = before_the_trial(&shop);
    world.boot().unwrap();
    for fate in fates(&world.medium) {
        let mut after = world.after(fate);
        after.run_to_rest().unwrap();
        judge(&after).unwrap();
        committed(&after);
    }
}

#[test]
fn a_release_that_fails_everywhere_is_tried_once_and_then_left_alone() {
    let shop = Shop::new(SMALL);
    let mut world = World::new(&shop, Script::SecondFails);
    world.run_to_rest().unwrap();
    rolled_back(&world);
    // The same boot again and again: nothing is tried by itself, whatever its source announces.
    let boots = world.boots;
    for _ in 0..5 {
        world = world.after(Fate::LOST);
        world.run_to_rest().unwrap();
        assert_eq!(world.boots, 1, "{boots}");
        rolled_back(&world);
    }
}

#[test]
fn flash_writes_are_the_slot_once_and_what_was_fetched() {
    let shop = Shop::adaptive(LARGE);
    let mut world = World::new(&shop, Script::Update);
    world.run_to_rest().unwrap();
    let cost = world.memory().last.unwrap().cost.unwrap();
    let two = &shop.two;
    // The superblock and the topmost block of the tree are wiped before.
    let slot = (two.image.len() + two.verity().len() + 2 * 4096) as u64;
    assert!(cost.slot_bytes <= slot, "{cost:?}, {slot} bytes of the slot");
    // The map of blocks is written at each flush, of which the rig has one for every four blocks.
    let flushes = two.object_bytes.div_ceil(INTERVAL.bytes) + 8;
    assert!(cost.staged_bytes <= two.object_bytes + (flushes + 8) * 4096, "{cost:?}");
}
