//! Random faults on real Postgres: a seed picks what is killed, cut or stopped, when and for how long; after each round
//! everything is put right, and the proof over all acknowledged writes is made at the end.
//!
//! Replay: `FARHOLD_HA_SEED=<seed> FARHOLD_HA_ROUNDS=<n> cargo test --release -p agent --test ha_site campaign -- --ignored
//! --nocapture`. Times differ from run to run, so a replay repeats the faults, not every order within them.

use super::site::{Node, Site};
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood 2014), as in the schedules of the decisions.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn node(&mut self) -> Node {
        Node::ALL[self.roll(3) as usize]
    }
}

const LONG: Duration = Duration::from_secs(180);

fn number(name: &str, ordinary: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

/// One fault; what has to be started again is returned.
fn fault(site: &mut Site, dice: &mut Dice) -> Option<Node> {
    let (node, other) = (dice.node(), dice.node());
    let fault = dice.roll(9);
    println!("  fault {fault} on {node:?}, {other:?}");
    match fault {
        0 | 1 => {
            site.kill(node);
            return Some(node);
        }
        2 => site.net.isolate(node),
        3 if node != other => site.net.part(node, other),
        4 if node != other => site.net.deafen(node, other),
        // A stopped process: a hung machine, or one that was moved to another host.
        5 | 6 => site.signal(node, nix::sys::signal::Signal::SIGSTOP),
        7 => site.kill_server(node),
        _ => site.try_switch_over(node),
    }
    None
}

pub fn run() {
    let (seed, rounds) = (number("FARHOLD_HA_SEED", 1), number("FARHOLD_HA_ROUNDS", 12));
    println!("seed {seed}, {rounds} rounds");
    let mut dice = Dice(seed);
    let mut site = Site::paired_quickly("campaign");
    let mut clients = site.clients(2);
    let mut faults = 0;
    for round in 0..rounds {
        clients.wait_for_acks(10, LONG);
        println!("round {round}: {} writes acknowledged", clients.acks());
        let mut down = Vec::new();
        for _ in 0..=dice.roll(2) {
            let killed = fault(&mut site, &mut dice);
            down.extend(killed);
            faults += 1;
            let pause = clients.longest_pause(Duration::from_millis(200 + dice.roll(4_000)));
            println!("  no write for {pause:?}");
        }
        site.net.heal();
        Node::ALL.into_iter().for_each(|node| site.signal(node, nix::sys::signal::Signal::SIGCONT));
        down.sort_by_key(|node: &Node| node.number());
        down.dedup();
        if dice.roll(2) == 0 {
            down.reverse();
        }
        down.into_iter().for_each(|node| site.start(node));
        // Now and then the next fault comes before the pair is in sync again.
        if dice.roll(3) != 0 {
            site.wait_paired(LONG);
        }
    }
    site.wait_paired(LONG);
    clients.wait_for_acks(10, LONG);
    println!("seed {seed}: {rounds} rounds, {faults} faults");
    site.prove(clients);
}
