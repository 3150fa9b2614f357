//! Random faults on real Postgres, in shards: each shard is one site that is used again and again, each schedule has its own
//! seed, which picks what is killed, cut, stopped, made lossy or without power, when and for how long. After each schedule everything is
//! put right and the pair is in sync again; every few schedules all acknowledged writes are looked for on both ports.
//!
//! Replay: `FARHOLD_HA_SEED=<seed> FARHOLD_HA_SCHEDULES=1 cargo test --release -p agent --test ha_site campaign -- --ignored
//! --nocapture`. Times differ from run to run, so a replay repeats the faults, not every order within them.

use super::client::{self, Ack, Clients};
use super::disks::Disks;
use super::site::{Node, Plan, Site};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

const LONG: Duration = Duration::from_secs(300);
/// Schedules between two looks for every acknowledged write.
const LOOK: u64 = 10;

fn number(name: &str, ordinary: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(ordinary)
}

/// One fault, and what it is called; what has to be started again is noted.
fn fault(site: &mut Site, dice: &mut Dice, down: &mut Vec<Node>) -> String {
    let (node, other) = (dice.node(), dice.node());
    let fault = dice.roll(12);
    match fault {
        0 | 1 => {
            let power = fault == 1 && site.plan.own_disks;
            if power {
                site.cut_power(&[node])
            } else {
                site.kill(node)
            }
            down.push(node);
            return format!("{} {node:?}", if power { "power of" } else { "kill" });
        }
        2 => {
            site.kill(node);
            // The power comes back at once, before anybody noticed or just then.
            site.start(node);
            return format!("restart {node:?}");
        }
        3 => site.net.isolate(node),
        4 if node != other => site.net.part(node, other),
        5 if node != other => site.net.deafen(node, other),
        // A stopped process: a hung machine, a disk that answers nothing, one that was moved to another host.
        6 => site.signal(node, Signal::SIGSTOP),
        7 => site.signal_server(node, Signal::SIGSTOP),
        8 => site.signal_agent(node, Signal::SIGSTOP),
        9 => site.kill_server(node),
        10 => site.net.lose(30),
        _ => {
            site.try_switch_over(node);
            return format!("hand over from {node:?}");
        }
    }
    format!("fault {fault} on {node:?}, {other:?}")
}

/// One schedule from a pair in sync to a pair in sync; how many faults it had.
fn schedule(site: &mut Site, clients: &mut Clients, seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let (mut down, mut faults) = (Vec::new(), Vec::new());
    for _ in 0..=dice.roll(3) {
        faults.push(fault(site, &mut dice, &mut down));
        clients.longest_pause(Duration::from_millis(100 + dice.roll(2_500)));
    }
    let before = clients.acks();
    site.net.heal();
    site.net.lose_nothing();
    Node::ALL.into_iter().for_each(|node| site.signal(node, Signal::SIGCONT));
    down.sort();
    down.dedup();
    if dice.roll(2) == 0 {
        down.reverse();
    }
    down.into_iter().for_each(|node| site.start(node));
    site.wait_paired(LONG);
    clients.wait_for_more(5, LONG);
    println!("seed {seed}: {}; {} writes so far", faults.join(", "), before);
    faults.len() as u64
}

/// What all shards share.
struct Tally {
    next: AtomicU64,
    end: u64,
    until: Instant,
    schedules: AtomicU64,
    faults: AtomicU64,
    writes: AtomicU64,
}

fn look(site: &Site, acks: &[Ack], seed: u64) {
    for node in [Node::A, Node::B] {
        if let Err(violation) = client::check(acks, &site.rows(node)) {
            panic!("VIOLATION at or within {LOOK} schedules before seed {seed}: {node:?}: {violation}");
        }
    }
}

fn shard(number: u64, tally: &Tally) {
    // Each new primary begins a segment of the log: a site of hundreds of schedules must let go of them.
    let settings = &[("max_wal_size", "128MB"), ("min_wal_size", "64MB")];
    let plan = Plan { own_disks: Disks::possible(), ..Plan::quick().with_settings(settings) };
    let mut site = Site::with(&format!("campaign{number}"), plan);
    let mut acks: Vec<Ack> = Vec::new();
    let mut last = 0;
    loop {
        let mut clients = site.clients(2);
        let mut over = false;
        for _ in 0..LOOK {
            let seed = tally.next.fetch_add(1, Ordering::Relaxed);
            over = seed >= tally.end || Instant::now() > tally.until;
            if over {
                break;
            }
            let faults = schedule(&mut site, &mut clients, seed);
            last = seed;
            tally.schedules.fetch_add(1, Ordering::Relaxed);
            tally.faults.fetch_add(faults, Ordering::Relaxed);
        }
        let new = clients.end();
        tally.writes.fetch_add(new.len() as u64, Ordering::Relaxed);
        acks.extend(new);
        look(&site, &acks, last);
        if over {
            return;
        }
    }
}

/// `FARHOLD_HA_SCHEDULES` schedules from `FARHOLD_HA_SEED` on, in `FARHOLD_HA_SHARDS` shards at once, at most
/// `FARHOLD_HA_MINUTES`.
pub fn run() {
    let (seed, schedules) = (number("FARHOLD_HA_SEED", 1), number("FARHOLD_HA_SCHEDULES", 1000));
    let shards = number("FARHOLD_HA_SHARDS", 4).min(schedules);
    let minutes = number("FARHOLD_HA_MINUTES", 24 * 60);
    println!("schedules {seed} to {} in {shards} shards", seed + schedules - 1);
    let tally = Tally {
        next: AtomicU64::new(seed),
        end: seed + schedules,
        until: Instant::now() + Duration::from_secs(60 * minutes),
        schedules: AtomicU64::new(0),
        faults: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..shards)
            .map(|number| {
                scope.spawn({
                    let tally = &tally;
                    move || shard(number, tally)
                })
            })
            .collect();
        for shard in running {
            shard.join().expect("a shard failed: its seed is above");
        }
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{} schedules, {} faults, {} acknowledged writes, 0 violations",
        count(&tally.schedules),
        count(&tally.faults),
        count(&tally.writes)
    );
}
