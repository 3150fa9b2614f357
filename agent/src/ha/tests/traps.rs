//! The interleavings that break simpler schemes, one test each, numbered as in `docs/ha-protocol.md`: 1 to 7.

use super::fair;
use super::play::Play;
use super::world::{A, Act, B, W, World, settings};
use crate::ha::message::{Body, StandbyName};
use crate::ha::port::Port;
use crate::ha::register::Mode;
use crate::ha::settings::{Rule, Settings};
use crate::ha::state::{Command, Event, Join, Phase};
use crate::ha::want::{Effect, Names, Postgres, Tunnel};

fn without(rule: Rule) -> Settings {
    Settings { without: Some(rule), ..settings() }
}

/// A and W choose `Solo(A)`; W comes back from a backup of the epoch before and talks to B only.
fn witness_from_a_backup(settings: Settings) -> Play {
    let mut play = Play::paired_with(settings);
    play.act(Act::Backup(W));
    play.act(Act::Late(A));
    play.only(A, W, 12);
    assert!(matches!(play.phase(0), Phase::Alone(_)), "{:?}", play.phase(0));
    play.acts(&[Act::Crash(W), Act::Restore(W, true)]);
    play.act(Act::Late(B));
    play.only(B, W, 20);
    play
}

#[test]
fn trap_01_a_witness_restored_from_an_old_backup_is_mute() {
    let mut play = witness_from_a_backup(settings());
    assert_eq!((play.epoch(1), play.phase(1)), (3, Phase::Following));
    assert!(play.world.witness.voter.muted);
    // Having heard both, it votes again, and teaches B what it forgot.
    play.only(A, W, 2);
    play.only(B, W, 2);
    assert!(!play.world.witness.voter.muted);
    assert_eq!((play.epoch(1), play.world.violation), (4, None));
    assert!(matches!(play.phase(1), Phase::Outside | Phase::Catching));
}

#[test]
fn trap_01_without_the_silence_there_are_two_primaries() {
    let play = witness_from_a_backup(without(Rule::MuteUntilHeard));
    assert!(play.world.violation.is_some());
}

#[test]
fn trap_01_silence_outlives_a_second_start() {
    let mut play = witness_from_a_backup(settings());
    play.acts(&[Act::Crash(W), Act::Restart(W)]);
    play.only(B, W, 20);
    assert_eq!((play.epoch(1), play.world.violation), (3, None));
}

#[test]
fn trap_01_a_node_with_old_state_neither_votes_nor_leads() {
    let mut play = Play::paired();
    play.act(Act::Backup(A));
    play.acts(&[Act::Write(0), Act::Stream(0), Act::Arrive(0), Act::Acknowledge(0), Act::Crash(A)]);
    play.act(Act::Restore(A, true));
    play.only(A, B, 20);
    assert_eq!((play.phase(0), play.phase(1)), (Phase::Mute, Phase::Following));
    // With everybody there B takes over, and A is copied anew.
    assert!(fair::run(&mut play.world, [true, true, true], 600, World::paired));
    assert_eq!(play.world.violation, None);
    assert_eq!(play.world.newest().mode.primary(), B);
}

#[test]
fn trap_02_nobody_votes_where_no_quorum_would_answer() {
    let mut play = Play::paired();
    play.acts(&[Act::Late(A), Act::Late(B)]);
    for _ in 0..5 {
        play.wait(A, 500);
        play.wait(B, 500);
        play.lose();
    }
    for site in &play.world.sites {
        assert_eq!((site.disk.voter.accepted, site.disk.voter.promised.round), (None, 0));
    }
    assert!(matches!(play.tunnel(1), Tunnel::Follow { .. }), "B alone must not block A");
    assert!(fair::run(&mut play.world, [true, true, false], 100, World::in_service));
}

/// B's request for votes is on its way to W when the link to A heals.
#[test]
fn trap_02_a_delayed_request_cannot_bar_the_other_node_later() {
    let mut play = Play::paired();
    play.act(Act::Late(B));
    for _ in 0..2 {
        play.pass(B, W);
        play.pass(W, B);
    }
    assert!(play.world.node(1).is_some_and(|node| node.voted_alone()));
    let late = play.wire.clone();
    play.lose();
    // A and B talk again. Until B's vote is decided nothing streams, so nothing is acknowledged that W could bar.
    play.wait(A, 100);
    play.wait(B, 100);
    assert_eq!(play.tunnel(1), Tunnel::Closed);
    assert!(fair::run(&mut play.world, [true, true, false], 400, |world| {
        world.in_service() && world.sites[0].disk.voter.register == world.sites[1].disk.voter.register
    }));
    late.into_iter().for_each(|message| play.act(Act::Deliver(message)));
    play.lose();
    assert_eq!(play.world.violation, None);
    assert!(fair::all_recover(&play.world).is_ok());
}

/// `Paired` is chosen by B and W, the replies are lost, B drops, and A only hears W much later.
fn paired_behind_the_holder(settings: Settings) -> Play {
    let mut play = Play::joining(settings);
    play.vote_for_pair();
    play.pass(A, B);
    play.pass(A, W);
    play.lose();
    for _ in 0..4 {
        play.act(Act::Late(A));
        play.lose();
        play.local(0);
    }
    play.acts(&[Act::Write(0), Act::Acknowledge(0)]);
    play
}

#[test]
fn trap_03_the_holder_keeps_the_names_after_its_vote() {
    let mut play = paired_behind_the_holder(settings());
    assert_eq!(play.phase(0), Phase::Alone(Join::Proposing));
    assert_eq!(play.world.acknowledged, 0, "acknowledged alone although `Paired` is decided");
    // With W alone A learns the decision, and then goes on alone by another one.
    play.only(A, W, 60);
    assert_eq!((play.phase(0), play.epoch(0)), (Phase::Alone(Join::Apart), 4));
    play.act(Act::Acknowledge(0));
    assert_ne!(play.world.acknowledged, 0);
    assert_eq!(play.world.violation, None);
}

#[test]
fn trap_03_without_the_rule_a_write_is_lost() {
    let play = paired_behind_the_holder(without(Rule::KeepNamesAfterVote));
    assert!(play.world.violation.is_some());
}

/// `Paired` is chosen by A and W alone, and A dies before B hears of it: B holds everything and must be able to serve.
#[test]
fn trap_03_a_pair_that_its_standby_never_heard_of_is_found_again() {
    let mut play = Play::joining(settings());
    play.vote_for_pair();
    play.pass(A, W);
    play.lose();
    play.act(Act::Crash(A));
    assert!(fair::run(&mut play.world, [false, true, true], 200, World::in_service), "{:?}", play.phase(1));
    assert_eq!((play.world.newest().mode, play.world.violation), (Mode::Solo { holder: B }, None));
}

#[test]
fn trap_04_names_that_are_set_are_not_in_force() {
    let mut play = Play::joining(settings());
    play.until(Join::Naming);
    let attempt = play.world.node(0).unwrap().run.attempt;
    let database = play.world.sites[0].database;
    assert_eq!((database.force, play.phase(0)), (Names::Off, Phase::Alone(Join::Naming)));
    assert_ne!(database.file, Names::Off);
    // The checkpointer sleeps: the canary goes through, and a report about an earlier one counts for nothing.
    play.act(Act::Canary(0));
    drop(play.world.feed(0, Event::CanaryWaits { attempt, lsn: 0 }));
    assert_eq!(play.phase(0), Phase::Alone(Join::Naming));
    play.acts(&[Act::ReadNames(0), Act::Publish(0), Act::Canary(0)]);
    assert!(matches!(play.phase(0), Phase::Alone(Join::Flushing { .. } | Join::Proposing)));
}

/// The names that a start begins with make a canary wait too: only names that were seen off can be seen on.
#[test]
fn trap_04_a_wait_for_the_names_of_the_start_is_no_proof() {
    let mut play = Play::joining(settings());
    play.acts(&[
        Act::Crash(A),
        Act::Restart(A),
        Act::Run(0),
        Act::ReadNames(0),
        Act::Publish(0),
        Act::Look(0),
    ]);
    assert_eq!(play.phase(0), Phase::Alone(Join::Held));
    for _ in 0..30 {
        play.wait(A, 100);
        play.wait(B, 100);
        play.talk(A, B);
        play.lose();
        play.local(1);
        play.acts(&[Act::Stream(0), Act::Arrive(0), Act::Look(0), Act::Canary(0)]);
    }
    assert_eq!(
        play.phase(0),
        Phase::Alone(Join::Freeing),
        "names that were never seen off were taken for the pair's"
    );
}

/// A starts again as holder, and its server is slow: it reads the names of the start, sleeps, publishes them while A
/// already wants none, reads that, and sleeps again until the pair is decided.
fn names_read_early_and_published_late(settings: Settings) -> Play {
    let mut play = Play::joining(settings);
    play.acts(&[
        Act::Crash(A),
        Act::Restart(A),
        Act::Run(0),
        Act::ReadNames(0),
        Act::Look(0),
        Act::Canary(0),
    ]);
    play.acts(&[Act::Publish(0), Act::ReadNames(0)]);
    for _ in 0..30 {
        play.wait(A, 100);
        play.wait(B, 100);
        play.talk(A, B);
        play.lose();
        play.acts(&[Act::Run(1), Act::Look(1), Act::Stream(0), Act::Arrive(0), Act::Look(0), Act::Canary(0)]);
    }
    play.acts(&[Act::Publish(0), Act::Write(0), Act::Acknowledge(0)]);
    play
}

#[test]
fn trap_04_an_old_value_that_comes_late_is_not_taken_for_the_new_one() {
    let play = names_read_early_and_published_late(settings());
    assert_eq!((play.phase(0), play.world.violation), (Phase::Alone(Join::Freeing), None));
    let play = names_read_early_and_published_late(without(Rule::SeenOnFirst));
    assert!(play.world.violation.is_some(), "{:?}", play.phase(0));
}

#[test]
fn trap_05_a_restarted_primary_serves_nothing_before_the_standby_has_it_all() {
    let mut play = Play::paired();
    // A write that no standby has, and a server that dies: the row is visible when it comes back.
    play.acts(&[Act::Write(0), Act::Kill(0), Act::Look(0)]);
    assert_eq!(play.phase(0), Phase::Taking);
    play.local(0);
    assert!(matches!(play.phase(0), Phase::Proving { lsn: Some(2) }), "{:?}", play.phase(0));
    assert_eq!(play.world.sites[0].database.port, Port::Closed);
    assert_eq!(play.world.exposed, 1);
    play.acts(&[Act::Stream(0), Act::Arrive(0), Act::Look(0)]);
    assert_eq!((play.phase(0), play.world.sites[0].database.port), (Phase::Leading, Port::Local));
    assert_eq!(play.world.violation, None);
}

#[test]
fn trap_05_or_before_its_own_solo() {
    let mut play = Play::paired();
    play.acts(&[Act::Write(0), Act::Kill(0), Act::Look(0)]);
    play.local(0);
    assert_eq!(play.world.sites[0].database.port, Port::Closed);
    play.act(Act::Late(A));
    play.only(A, W, 12);
    assert!(matches!(play.phase(0), Phase::Alone(_)));
    assert_eq!(play.world.violation, None);
}

/// A switchover is cut after A's vote and before anybody else's; both restart.
#[test]
fn trap_06_the_register_says_who_is_primary() {
    let mut play = Play::paired();
    play.wait(B, 10);
    play.pass(B, A);
    play.acts(&[Act::Operator(0, Command::Switchover), Act::Run(0), Act::Look(0)]);
    assert_eq!(play.world.sites[0].database.port, Port::Closed);
    play.act(Act::Look(1));
    play.wait(B, 10);
    play.pass(B, A);
    play.wait(A, 500);
    for _ in 0..2 {
        play.pass(A, B);
        play.pass(B, A);
    }
    assert!(play.world.node(0).is_some_and(|node| node.voted_hand_over()));
    play.lose();
    play.acts(&[Act::Crash(A), Act::Crash(B), Act::Restart(A), Act::Restart(B)]);
    assert_eq!(
        play.world.sites[0].database.want,
        Postgres::Stopped,
        "A started although it voted to hand over"
    );
    play.wait(A, 100);
    play.wait(B, 100);
    play.talk(A, B);
    play.lose();
    let want = play.world.sites[0].database.want;
    assert!(!matches!(want, Postgres::Primary { .. }), "A leads although it voted to hand over: {want:?}");
    assert!(fair::run(&mut play.world, [true, true, false], 400, World::paired));
    assert_eq!((play.world.newest().mode.primary(), play.world.violation), (B, None));
}

#[test]
fn trap_06_names_at_a_start_are_never_empty() {
    let mut play = Play::paired();
    play.act(Act::Late(A));
    play.only(A, W, 12);
    assert_eq!(play.world.sites[0].database.file, Names::Off);
    play.acts(&[Act::Crash(A), Act::Restart(A), Act::Run(0)]);
    assert_ne!(play.world.sites[0].database.file, Names::Off);
}

/// The order within one step: nothing streams any more when the request for a vote leaves.
#[test]
fn trap_07_the_tunnel_is_closed_before_the_vote_is_asked_for() {
    let mut play = Play::paired();
    play.act(Act::Late(B));
    play.pass(B, W);
    assert!(matches!(play.tunnel(1), Tunnel::Follow { .. }));
    let would = *play.wire.iter().find(|m| matches!(m.body, Body::Would(..))).unwrap();
    let node = play.world.node(1).unwrap();
    let (_, effects) = crate::ha::step(node, Event::Message(would), play.world.sites[1].now);
    let at = |kind: fn(&Effect) -> bool| effects.iter().position(kind).unwrap();
    let closed = at(|effect| *effect == Effect::Tunnel(Tunnel::Closed));
    let saved = at(|effect| matches!(effect, Effect::Save(_)));
    let asked = at(|effect| matches!(effect, Effect::Send(m) if matches!(m.body, Body::Prepare(_))));
    assert!(closed < saved && saved < asked, "{effects:?}");
}

#[test]
fn trap_07_a_standby_of_another_epoch_or_a_clone_counts_for_nothing() {
    let play = Play::paired();
    let [a, mut b] = [play.world.sites[0].database, play.world.sites[1].database];
    assert!(a.connection(&b).is_some());
    let Mode::Paired { pairing, .. } = play.world.newest().mode else { panic!("not paired") };
    for name in [StandbyName { node: B, pairing: pairing - 1 }, StandbyName { node: A, pairing }] {
        b.tunnel = Tunnel::Follow { name };
        assert_eq!(a.connection(&b), None);
    }
}
