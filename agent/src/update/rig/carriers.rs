//! Decisions with several carriers: which one is used, when another takes over, when none may be.

use super::decisions::{facts, look, manifest_of, offered, said};
use super::release::{SMALL, Shop};
use crate::update::links::Limits;
use crate::update::state::{Intent, Phase};
use crate::update::step::{Effect, Event, Fault, Outcome, Part, State};
use formats::repository;
use formats::tariff::CarrierSettings;

/// Noon of a day in 2026.
const NOON: u64 = 20_500 * 86_400 + 43_200;
const LAN: &str = "http://lan/";
const SAT: &str = "serial:/dev/sat";

/// A device with two carriers, the second with 100 KiB a day at 8 kbit/s.
fn with_carriers(shop: &Shop) -> State {
    let carrier = |name: &str, source: &str| CarrierSettings {
        name: name.into(),
        source: source.into(),
        day_kib: None,
        month_kib: None,
        rate_kbit: None,
        hours: None,
        price: None,
    };
    let sat = CarrierSettings { day_kib: Some(100), rate_kbit: Some(8), ..carrier("sat", SAT) };
    let mut here = facts(shop, "1.0", shop.one.roothash);
    here.carriers = vec![carrier("lan", LAN), sat];
    let mut state = State::default();
    state.told(NOON, 1000);
    state.step(Event::Started(Box::new(here), Box::default()), 1000).0
}

fn fetching(shop: &Shop) -> (State, Outcome) {
    let (state, out) = with_carriers(shop).step(Event::Check(None, Intent::Now), 2000);
    assert_eq!(out.effects, [Effect::ReadAnnouncements(LAN.into())]);
    let frames = vec![shop.two.files[repository::ANNOUNCE].to_vec()];
    let (state, _) = state.step(Event::Announcements(frames), 3000);
    state.step(offered(&manifest_of(&shop.two)), 4000)
}

/// Source and limits of the fetch that is asked for.
fn asked(out: &Outcome) -> Option<(Limits, String)> {
    let limits = out
        .effects
        .iter()
        .find_map(|effect| if let Effect::Limit(limits) = effect { Some(*limits) } else { None });
    let fetch = out
        .effects
        .iter()
        .find_map(|effect| if let Effect::Fetch(_, attempt) = effect { Some(attempt) } else { None });
    Some((limits?, fetch?.source.clone()))
}

fn lost(state: State, after_s: Option<u32>, now_ms: u64) -> (State, Outcome) {
    let job = state.job;
    state.step(Event::Failed(job, Part::Slot, Fault::Unreachable(after_s), "no answer".into()), now_ms)
}

#[test]
fn when_a_carrier_fails_the_next_goes_on_within_its_budget_and_the_first_is_taken_again() {
    let shop = Shop::new(SMALL);
    let (state, out) = fetching(&shop);
    assert_eq!(asked(&out), Some((Limits::default(), LAN.into())));
    let (state, out) = lost(state, Some(600), 10_000);
    let sat = |left| Limits { bytes: Some(left), rate_bytes: Some(1000) };
    assert_eq!(asked(&out), Some((sat(102_400), SAT.into())));
    // What it takes is counted, and remembered long before the budget is spent.
    let job = state.job;
    let (state, out) = state.step(Event::Bytes(job, 60_000), 11_000);
    assert!(out.persist && state.memory.used["sat"].day_bytes == 60_000);
    let (state, _) = state.step(Event::Paid(SAT.into(), 400), 12_000);
    let (state, _) = state.step(Event::Bytes(job, 42_000), 13_000);
    // The budget ends the job; the first carrier is still left alone, so it waits.
    let (state, out) = lost(state, None, 13_500);
    assert_eq!((asked(&out), state.memory.used["sat"].day_bytes), (None, 102_400));
    let stuck = state.live.stuck.clone().unwrap();
    assert!(stuck.contains("sat: this day's budget is spent"), "{stuck}");
    let retry_ms = state.live.retry_ms.unwrap();
    assert!(retry_ms < 13_500 + 700_000, "the first is tried again in {retry_ms} ms");
    let (state, out) = state.step(Event::Tick, retry_ms);
    assert_eq!(asked(&out), Some((Limits::default(), LAN.into())));
    assert!(matches!(state.memory.phase, Phase::Fetching(_)));
}

#[test]
fn a_look_goes_to_the_next_carrier_and_to_none_whose_budget_is_spent() {
    let shop = Shop::new(SMALL);
    let (state, _) = with_carriers(&shop).step(Event::Check(None, Intent::Poll), 2000);
    let (state, _) = state.step(Event::Unread("no answer".into(), Fault::Unreachable(None)), 3000);
    let next_ms = state.wake_ms().unwrap();
    assert!(next_ms < 3000 + 10_000, "another carrier is asked soon: {next_ms}");
    let (state, out) = state.step(Event::Check(None, Intent::Poll), 4000);
    assert_eq!(out.effects, [Effect::ReadAnnouncements(SAT.into())]);
    let (state, _) = state.step(Event::Paid(SAT.into(), 200_000), 5000);
    let (state, _) = state.step(Event::Unread("no answer".into(), Fault::Unreachable(None)), 5000);
    let (_, out) = state.step(Event::Check(None, Intent::Now), 5500);
    assert!(out.effects.is_empty() && said(&out).contains("no carrier may be used now"), "{out:?}");
}

#[test]
fn a_stick_is_bound_by_no_budget() {
    let shop = Shop::new(SMALL);
    let (state, out) = look(with_carriers(&shop), &[&shop.two.files[repository::ANNOUNCE]]);
    assert!(!out.effects.is_empty());
    let (_, out) = state.step(offered(&manifest_of(&shop.two)), 4000);
    assert_eq!(asked(&out), Some((Limits::default(), "net".into())));
}
