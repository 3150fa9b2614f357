//! A world without further faults: messages arrive, clocks go on, every server does what is wanted. Used to build the
//! worlds from which exploration begins, and to ask whether service comes back.

use super::world::{A, Act, B, W, World};
use crate::ha::message::Message;
use crate::ha::register::{OnPeerLoss, VoterId};
use crate::ha::settings::Settings;

fn slot(id: VoterId) -> usize {
    if id == W { 2 } else { World::index(id) }
}

/// Delivers everything, and what it causes, to those that are up.
fn deliver(world: &mut World, mut queue: Vec<Message>, up: [bool; 3]) {
    for _ in 0..50 {
        let batch = std::mem::take(&mut queue);
        for message in batch {
            if up[slot(message.to)] && up[slot(message.from)] {
                queue.extend(world.act(Act::Deliver(message)));
            }
        }
        if queue.is_empty() {
            return;
        }
    }
}

/// Whether a returning standby asks for log that the primary cannot give.
pub fn stream_is_gone(world: &World, n: usize) -> bool {
    let (primary, standby) = (&world.sites[n].database, &world.sites[1 - n].database);
    primary.connection(standby).is_some() && !standby.log.starts(&primary.log)
}

/// Every server does what is wanted, until `done`.
fn databases(world: &mut World, up: [bool; 3], done: &impl Fn(&World) -> bool) -> Vec<Message> {
    let mut sent = Vec::new();
    for _ in 0..6 {
        for n in (0..2).filter(|n| up[*n]) {
            let acts = [Act::Run(n), Act::ReadNames(n), Act::Publish(n), Act::Stream(n), Act::Arrive(n)];
            let reports =
                [Act::StreamGone(n), Act::Look(n), Act::Canary(n), Act::Copy(n), Act::Acknowledge(n)];
            for act in acts.into_iter().chain(reports) {
                if done(world) {
                    return sent;
                }
                if act != Act::StreamGone(n) || stream_is_gone(world, n) {
                    sent.extend(world.act(act));
                }
            }
        }
    }
    sent
}

/// Runs without faults until `done`, at most for so many rounds of 100 ms; says whether it was reached.
pub fn run(world: &mut World, up: [bool; 3], rounds: usize, done: impl Fn(&World) -> bool) -> bool {
    world.coarse = false;
    for _ in 0..rounds {
        if done(world) {
            return true;
        }
        let mut queue = Vec::new();
        for id in [A, B, W] {
            if up[slot(id)] {
                if id != W {
                    world.sites[slot(id)].now += 100;
                }
                queue.extend(world.act(Act::Tick(id)));
            }
        }
        deliver(world, queue, up);
        let sent = databases(world, up, &done);
        deliver(world, sent, up);
    }
    done(world)
}

/// Powers exactly these parties and asks whether service comes back.
pub fn recovers(world: &World, up: [bool; 3]) -> bool {
    recovered(world, up).in_service()
}

/// The world after these parties had time to recover.
pub fn recovered(world: &World, up: [bool; 3]) -> World {
    let mut world = *world;
    for (n, id) in [A, B].into_iter().enumerate() {
        world.sites[n].hung = false;
        match (up[n], world.sites[n].node.is_some()) {
            (true, false) => drop(world.act(Act::Restart(id))),
            (false, true) => drop(world.act(Act::Crash(id))),
            (true, true) | (false, false) => {}
        }
    }
    world.witness_up = up[2];
    run(&mut world, up, 400, World::in_service);
    world
}

/// Checks service for every set of parties that must be able to bring it back.
pub fn all_recover(world: &World) -> Result<(), [bool; 3]> {
    for up in [[true, true, false], [true, false, true], [false, true, true], [true, true, true]] {
        if world.must_recover(up) && !recovers(world, up) {
            return Err(up);
        }
    }
    Ok(())
}

/// A pair in sync, with A as primary and one write acknowledged.
pub fn paired(loss: OnPeerLoss, settings: Settings) -> World {
    let mut world = World::new(loss, settings);
    let up = [true, true, world.witness_up];
    assert!(run(&mut world, up, 300, World::paired), "never in sync: {world:#?}");
    drop(world.act(Act::Write(0)));
    assert!(run(&mut world, up, 20, |world| world.acknowledged != 0));
    world
}
