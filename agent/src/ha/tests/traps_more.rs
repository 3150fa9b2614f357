//! The interleavings that break simpler schemes, one test each, numbered as in `docs/ha-protocol.md`: 8 to 13, and what
//! is refused.

use super::fair;
use super::play::Play;
use super::world::{A, Act, B, PLATFORM, SYSTEM, W, World, pair, settings};
use crate::ha::message::{Body, Message};
use crate::ha::port::{Port, forward};
use crate::ha::register::{BadSuccessor, Members, Mode, OnPeerLoss, Platform, Register, VoterId};
use crate::ha::settings::Settings;
use crate::ha::state::{Command, Copying, Data, Event, Phase, Refusal, Server};
use crate::ha::step;
use crate::ha::want::{Effect, Postgres, Task};

fn alone() -> Play {
    let mut play = Play::paired();
    play.act(Act::Late(A));
    play.only(A, W, 12);
    assert!(matches!(play.phase(0), Phase::Alone(_)));
    play
}

#[test]
fn trap_08_staleness_closes_a_pair_but_never_the_holder() {
    let mut play = Play::paired();
    for id in [A, B] {
        play.act(Act::Late(id));
    }
    assert_eq!([0, 1].map(|n| play.world.sites[n].database.port), [Port::Closed; 2]);

    let mut play = alone();
    play.act(Act::Late(A));
    play.act(Act::Late(A));
    assert_eq!(play.world.sites[0].database.port, Port::Local);
    // It may restart alone, too.
    play.acts(&[Act::Crash(A), Act::Restart(A)]);
    play.local(0);
    assert_eq!(play.world.sites[0].database.port, Port::Local);
}

/// The port is asked before each chunk with the clock of that moment: a process that was stopped forwards nothing old.
#[test]
fn trap_08_a_continued_process_does_not_release_old_chunks() {
    let play = Play::paired();
    let (node, now) = (play.world.node(0).unwrap(), play.world.sites[0].now);
    assert_eq!(forward(node, now), Port::Local);
    assert_eq!(forward(node, now + node.settings.stale_ms + 1_000), Port::Closed);
}

#[test]
fn trap_08_policy_and_members_are_decided_by_the_old_voters() {
    let base =
        Register { members: pair(OnPeerLoss::Witness(W)), epoch: 2, ..Register::first(A, SYSTEM, PLATFORM) };
    let change = |members| base.check_successor(&Register { members, ..base.next(A) });
    assert_eq!(change(pair(OnPeerLoss::Prefer(A))), Ok(()));
    assert_eq!(change(pair(OnPeerLoss::Prefer(VoterId(9)))), Err(BadSuccessor::Members));
    assert_eq!(change(pair(OnPeerLoss::Witness(B))), Err(BadSuccessor::Members));
    assert_eq!(change(Members::Single(B)), Err(BadSuccessor::Members));
    assert_eq!(change(Members::Single(A)), Ok(()));

    // A alone cannot make itself the preferred node of a pair that has a witness.
    let mut play = alone();
    play.acts(&[Act::Operator(0, Command::Change(pair(OnPeerLoss::Prefer(A)))), Act::Late(A), Act::Late(A)]);
    play.lose();
    assert_eq!(play.epoch(0), 4);
    play.only(A, W, 10);
    assert_eq!(play.world.newest().members, pair(OnPeerLoss::Prefer(A)));
}

#[test]
fn trap_08_every_two_quorums_share_a_voter() {
    let sets =
        (0_u8..8).map(|bits| [A, B, W].into_iter().enumerate().filter(move |(i, _)| bits & (1 << i) != 0));
    let sets: Vec<crate::ha::register::Voters> = sets.map(|set| set.map(|(_, id)| id).collect()).collect();
    for loss in [OnPeerLoss::Witness(W), OnPeerLoss::Hold, OnPeerLoss::Prefer(A), OnPeerLoss::Prefer(B)] {
        let quorums: Vec<_> = sets.iter().filter(|set| pair(loss).is_quorum(set)).collect();
        assert!(!quorums.is_empty());
        for x in &quorums {
            assert!(quorums.iter().all(|y| x.iter().any(|id| y.contains(id))), "{loss:?}");
        }
    }
}

#[test]
fn trap_09_a_node_with_a_hung_disk_gives_its_vote_instead_of_asking() {
    let mut play = Play::paired();
    play.act(Act::Hang(0));
    play.only(A, B, 60);
    let beat = play.world.node(0).unwrap().beat(play.world.sites[0].now);
    assert!(!beat.able && beat.fsync_age_ms > 2_000);
    assert_eq!(play.world.newest().mode, Mode::Solo { holder: B });
    assert_eq!(play.world.violation, None);
}

/// The primary's server hangs, so nobody sees the standby in it: that is no evidence against the standby, and the node that
/// cannot serve must not win the right to serve alone.
#[test]
fn trap_09_a_hung_server_is_no_evidence_against_the_standby() {
    let mut play = Play::paired();
    let step_on = |play: &mut Play, event: Event| {
        let (node, now) = (*play.world.node(0).unwrap(), play.world.sites[0].now);
        step(&node, event, now).0
    };
    let now = play.world.sites[0].now;
    // Beats of the peer come, looks at the own server do not.
    let mut node = step_on(&mut play, Event::Synced);
    let register = node.saved.voter.register;
    let mut beat = play.world.node(1).unwrap().beat(play.world.sites[1].now);
    (beat.able, beat.fsync_age_ms) = (true, 0);
    for at in (now..now + 10_000).step_by(100) {
        let message = Message { from: B, to: A, register, body: Body::Beat(beat) };
        for event in [Event::Message(message), Event::Synced, Event::Tick] {
            node = step(&node, event, at).0;
        }
        assert_eq!((node.run.phase, node.run.proposal), (Phase::Leading, None), "{at}");
    }
    // One that answers and shows no standby is evidence.
    let server = match node.run.server {
        Server::Primary { timeline, lsn, .. } => Server::Primary { timeline, lsn, standby: None },
        other @ (Server::Down { .. } | Server::Standby { .. } | Server::Stuck) => panic!("{other:?}"),
    };
    let at = now + 10_000;
    node = step(&node, Event::Postgres { system_id: SYSTEM, server }, at).0;
    node = step(&node, Event::Tick, at).0;
    assert!(node.run.proposal.is_some());
}

#[test]
fn trap_09_each_failed_rejoin_doubles_the_pause() {
    let mut play = alone();
    let pauses = |play: &Play| play.world.node(0).unwrap().run.pauses;
    assert_eq!(pauses(&play), 1);
    assert!(fair::run(&mut play.world, [true, true, true], 400, World::paired));
    play.act(Act::Late(A));
    play.only(A, W, 12);
    let run = play.world.node(0).unwrap().run;
    assert_eq!(run.pauses, 2);
    assert!(matches!(play.phase(0), Phase::Alone(_)));
}

#[test]
fn trap_10_an_interrupted_rewind_leads_to_a_full_copy() {
    // B goes on alone, A comes back with rows of its own.
    let mut play = Play::paired();
    play.act(Act::Write(0));
    play.act(Act::Crash(A));
    play.act(Act::Late(B));
    play.only(B, W, 12);
    play.act(Act::Restart(A));
    for _ in 0..10 {
        play.wait(A, 100);
        play.wait(B, 100);
        play.talk(A, B);
    }
    // Export comes first; nothing is overwritten until it is done.
    let task = |play: &Play| play.world.sites[0].database.task;
    assert!(matches!(task(&play), Task::Copy { how: Copying::Export, source: B }));
    assert_eq!(play.world.sites[0].disk.data, Data::Led);
    play.act(Act::Copy(0));
    assert!(matches!(task(&play), Task::Copy { how: Copying::Rewind, source: B }));
    assert_eq!(play.world.sites[0].disk.data, Data::Broken);
    play.acts(&[Act::Crash(A), Act::Restart(A)]);
    for _ in 0..3 {
        play.wait(A, 100);
        play.wait(B, 100);
        play.talk(A, B);
    }
    assert!(matches!(task(&play), Task::Copy { how: Copying::Reseed, source: B }));
    assert!(fair::run(&mut play.world, [true, true, true], 400, World::paired));
    assert_eq!(play.world.violation, None);
}

/// A copy that failed is begun again after a pause.
#[test]
fn trap_10_a_failed_copy_is_tried_again() {
    let mut play = Play::paired();
    play.act(Act::Crash(A));
    play.act(Act::Late(B));
    play.only(B, W, 12);
    play.act(Act::Restart(A));
    let copies = |world: &World| matches!(world.sites[0].database.task, Task::Copy { .. });
    assert!(fair::run(&mut play.world, [true, true, true], 100, copies));
    drop(play.world.act(Act::CopyFail(0)));
    assert!(!copies(&play.world));
    assert!(fair::run(&mut play.world, [true, true, true], 400, World::paired));
}

#[test]
fn trap_10_after_a_forced_decision_the_other_node_is_copied_anew() {
    let mut play = Play::paired();
    play.acts(&[Act::Crash(A), Act::Crash(W), Act::Operator(1, Command::ForceSolo)]);
    play.local(1);
    assert!(matches!(play.phase(1), Phase::Alone(_)));
    let register = play.world.sites[1].disk.voter.register;
    assert_eq!((register.forces, register.by), (1, B));
    play.acts(&[Act::Restart(A), Act::Restart(W)]);
    play.wait(A, 100);
    play.wait(B, 100);
    play.talk(A, B);
    assert_eq!(play.world.sites[0].disk.data, Data::Overruled);
    assert_eq!(play.phase(0), Phase::Copying(Copying::Export));
    play.act(Act::Copy(0));
    assert_eq!(play.phase(0), Phase::Copying(Copying::Reseed));
    assert!(fair::run(&mut play.world, [true, true, true], 400, World::paired));
}

#[test]
fn trap_11_unequal_nodes_are_refused() {
    let play = Play::paired();
    let (node, now) = (play.world.node(0).unwrap(), play.world.sites[0].now);
    let register = node.saved.voter.register;
    let other = Register { platform: Platform { postgres_major: 15, ..PLATFORM }, epoch: 9, ..register };
    let message = Message { from: B, to: A, register: other, body: Body::Seen };
    let (after, effects) = step(node, Event::Message(message), now);
    assert_eq!(after.saved, node.saved);
    assert_eq!(effects, [Effect::Rejected(B, Refusal::OtherPlatform)]);

    // The image brought another Postgres, or the disk went into a machine of another architecture: nothing starts on it.
    for platform in [Platform { postgres_major: 18, ..PLATFORM }, Platform { machine: 183, ..PLATFORM }] {
        assert_ne!(platform, PLATFORM);
        let other = Settings { platform, ..settings() };
        let (after, effects) =
            crate::ha::resume::resume(node.saved, crate::ha::resume::Start::Proven, other, now);
        assert_eq!((after.run.phase, after.saved), (Phase::Refused(Refusal::OtherPlatform), node.saved));
        let starts = |effect: &Effect| {
            matches!(effect, Effect::Postgres(Postgres::Primary { .. } | Postgres::Standby { .. }))
        };
        assert!(!effects.iter().any(starts), "{effects:?}");
    }
}

/// With `hold` and a dead peer no vote can come: a change of members waits, and a forced decision carries it along.
#[test]
fn a_change_of_members_that_cannot_be_decided_is_carried_by_force() {
    let mut world = fair::paired(OnPeerLoss::Hold, settings());
    for act in [Act::Crash(B), Act::Operator(0, Command::ForceSolo)] {
        drop(world.act(act));
    }
    assert!(fair::run(&mut world, [true, false, false], 200, World::in_service));
    let members = Members::Pair { nodes: [A, VoterId(20)], loss: OnPeerLoss::Hold };
    drop(world.act(Act::Operator(0, Command::Change(members))));
    fair::run(&mut world, [true, false, false], 50, |_| false);
    assert_ne!(world.newest().members, members, "nobody voted for it");
    drop(world.act(Act::Operator(0, Command::ForceSolo)));
    assert_eq!((world.newest().members, world.newest().forces, world.violation), (members, 2, None));
    assert!(fair::run(&mut world, [true, false, false], 200, World::in_service));
}

/// Half a second on each way is longer than the first pause between two attempts: they grow until answers arrive in time.
#[test]
fn trap_02_votes_are_waited_for_on_a_slow_link() {
    let mut play = Play::paired();
    play.acts(&[Act::Crash(B), Act::Late(A)]);
    play.lose();
    let mut waiting: Vec<(u64, Message)> = Vec::new();
    for now in (0..30_000).step_by(100) {
        if matches!(play.phase(0), Phase::Alone(_)) {
            return;
        }
        play.wait(A, 100);
        play.local(0);
        let (due, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|(at, _)| *at <= now);
        waiting = later;
        due.into_iter().for_each(|(_, message)| play.act(Act::Deliver(message)));
        waiting.extend(play.wire.drain(..).map(|message| (now + 500, message)));
    }
    panic!("no decision in 30 s: {:?}", play.phase(0));
}

#[test]
fn trap_12_a_planned_loser_lets_go_first() {
    let mut play = Play::paired();
    play.wait(B, 10);
    play.pass(B, A);
    let node = play.world.node(0).unwrap();
    let (_, effects) = step(node, Event::Operator(Command::Switchover), play.world.sites[0].now);
    assert_eq!(effects[0], Effect::Port(Port::Closed), "{effects:?}");
    play.act(Act::Operator(0, Command::Switchover));
    let switched = |world: &World| world.paired() && world.newest().mode.primary() == B;
    assert!(fair::run(&mut play.world, [true, true, false], 200, switched), "{:?}", play.world.newest());
    assert_eq!(play.world.violation, None);
}

#[test]
fn trap_13_two_voters_outside_the_in_sync_set_wait() {
    let mut play = alone();
    play.act(Act::Crash(A));
    play.act(Act::Late(B));
    play.only(B, W, 40);
    assert_eq!(play.world.newest().mode, Mode::Solo { holder: A });
    assert_eq!(play.phase(1), Phase::Outside);
    assert!(!play.world.must_recover([false, true, true]));
}

#[test]
fn a_node_that_leaves_grants_solo_without_a_witness() {
    for leaves in [0, 1] {
        let mut play = Play::paired();
        play.act(Act::Crash(W));
        play.only(A, B, 2);
        play.act(Act::Operator(leaves, Command::Leave));
        let done =
            |world: &World| world.newest().mode == Mode::Solo { holder: if leaves == 0 { B } else { A } };
        assert!(
            fair::run(&mut play.world, [true, true, false], 200, |world| done(world) && world.in_service())
        );
        assert_eq!((play.phase(leaves), play.world.violation), (Phase::Outside, None));
    }
}

/// B was asked to leave, and a hand-over that was under way made it primary: when A then dies, B must serve.
#[test]
fn a_standby_that_asked_to_leave_stays_when_it_becomes_primary() {
    let mut play = Play::paired();
    play.only(A, B, 1);
    play.acts(&[Act::Operator(1, Command::Leave), Act::Operator(0, Command::Switchover)]);
    let switched = |world: &World| world.newest().mode.primary() == B;
    assert!(fair::run(&mut play.world, [true, true, true], 200, switched), "{:?}", play.world.newest());
    play.act(Act::Crash(A));
    assert!(fair::run(&mut play.world, [false, true, true], 200, World::in_service), "{:?}", play.phase(1));
    assert_eq!(play.world.violation, None);
}

/// Whoever decides alone can forget a decision that nobody else knows: only an operator may vouch for it.
#[test]
fn a_preferred_node_with_old_state_waits_for_the_operator() {
    let mut world = fair::paired(OnPeerLoss::Prefer(A), settings());
    drop(world.act(Act::Backup(A)));
    drop(world.act(Act::Crash(B)));
    assert!(fair::run(&mut world, [true, false, false], 200, World::in_service));
    drop(world.act(Act::Write(0)));
    drop(world.act(Act::Acknowledge(0)));
    for act in [Act::Crash(A), Act::Restore(A, true), Act::Restart(B)] {
        drop(world.act(act));
    }
    assert!(!fair::run(&mut world, [true, true, false], 400, World::in_service));
    assert_eq!(
        ([0, 1].map(|n| world.phase(n)), world.violation),
        ([Some(Phase::Mute), Some(Phase::Following)], None)
    );
}

#[test]
fn without_a_witness_hold_waits_for_the_operator_and_prefer_goes_on() {
    for (loss, goes_on) in
        [(OnPeerLoss::Hold, false), (OnPeerLoss::Prefer(A), true), (OnPeerLoss::Prefer(B), false)]
    {
        let mut world = fair::paired(loss, settings());
        drop(world.act(Act::Crash(B)));
        assert_eq!(fair::run(&mut world, [true, false, false], 200, World::in_service), goes_on, "{loss:?}");
        drop(world.act(Act::Operator(0, Command::ForceSolo)));
        assert!(fair::run(&mut world, [true, false, false], 50, World::in_service));
        drop(world.act(Act::Restart(B)));
        assert!(fair::run(&mut world, [true, true, false], 400, World::paired), "{loss:?}");
        assert_eq!(world.violation, None);
    }
}

#[test]
fn another_database_a_clone_and_a_stranger_are_refused() {
    let play = Play::paired();
    let (node, now) = (play.world.node(0).unwrap(), play.world.sites[0].now);
    let register = node.saved.voter.register;
    let say = |from, register| Event::Message(Message { from, to: A, register, body: Body::Seen });

    let (after, effects) = step(node, say(B, Register { system_id: 5, epoch: 99, ..register }), now);
    assert_eq!((after.saved, effects), (node.saved, vec![Effect::Rejected(B, Refusal::OtherDatabase)]));
    let (after, effects) = step(node, say(VoterId(8), register), now);
    assert_eq!((after.saved, effects), (node.saved, vec![Effect::Rejected(VoterId(8), Refusal::NotMember)]));
    let (after, _) = step(node, say(A, register), now);
    assert_eq!(after.run.phase, Phase::Refused(Refusal::Clone));
    let event = Event::Postgres { system_id: 5, server: Server::Down { end: None } };
    assert_eq!(step(node, event, now).0.run.phase, Phase::Refused(Refusal::OtherDatabase));
}

#[test]
fn a_replaced_node_has_no_say() {
    let mut play = alone();
    let fresh = VoterId(20);
    let members = Members::Pair { nodes: [A, fresh], loss: OnPeerLoss::Witness(W) };
    play.act(Act::Operator(0, Command::Change(members)));
    play.only(A, W, 20);
    assert_eq!(play.world.newest().members, members);
    play.only(B, W, 5);
    assert_eq!(play.phase(1), Phase::Refused(Refusal::NotMember));
}

#[test]
fn effects_are_repeated_by_a_boot_and_save_comes_before_every_send() {
    let play = Play::paired();
    let node = play.world.node(0).unwrap();
    let (again, effects) =
        crate::ha::resume::resume(node.saved, crate::ha::resume::Start::Proven, settings(), 0);
    assert_eq!(again.saved, node.saved);
    assert_eq!(effects[0], Effect::Save(node.saved));
}
