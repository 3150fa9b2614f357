//! Random schedules: a seed picks faults, delays and orders in a world of two nodes and a witness; the same seed gives the
//! same schedule. After each schedule the faults end, and service must come back wherever it can.
//!
//! Replay: `FARHOLD_HA_SEED=<seed> cargo test --release -p agent --lib ha::tests::random -- --nocapture`.

use super::fair;
use super::world::{A, Act, B, W, World, pair, settings};
use crate::ha::message::Message;
use crate::ha::register::{OnPeerLoss, VoterId};
use crate::ha::settings::Settings;
use crate::ha::state::Command;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to pick schedules, and the same everywhere.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// What a schedule may contain.
#[derive(Clone, Copy)]
pub struct Faults {
    /// Starts from old state, of one party per schedule.
    pub restore: bool,
    pub acts: u32,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub schedules: u64,
    pub acts: u64,
    pub acknowledged: u64,
    pub faults: u64,
    pub recoveries: u64,
    pub epochs: u64,
}

pub struct Schedule {
    pub world: World,
    dice: Dice,
    wire: Vec<Message>,
    /// Which links are cut, by direction.
    cut: [[bool; 3]; 3],
    restored: Option<VoterId>,
    faults: Faults,
    pub tally: Tally,
    pub trace: Option<Vec<Act>>,
}

fn slot(id: VoterId) -> usize {
    if id == W { 2 } else { World::index(id) }
}

impl Schedule {
    pub fn new(seed: u64, start: &World, faults: Faults) -> Self {
        Self {
            world: *start,
            dice: Dice::new(seed),
            wire: Vec::new(),
            cut: [[false; 3]; 3],
            restored: None,
            faults,
            tally: Tally::default(),
            trace: None,
        }
    }

    fn act(&mut self, act: Act) {
        if let Some(trace) = &mut self.trace {
            trace.push(act);
        }
        self.tally.acts += 1;
        for message in self.world.act(act) {
            if self.wire.len() < 64 {
                self.wire.push(message);
            } else {
                let at = self.dice.roll(64) as usize;
                self.wire[at] = message;
            }
        }
    }

    fn ordinary(&mut self) {
        let n = self.dice.roll(2) as usize;
        let id = self.dice.pick(&[A, B, A, B, W]);
        match self.dice.roll(30) {
            0..=9 => self.deliver(),
            10..=14 => {
                if id != W && self.dice.roll(2) == 0 {
                    self.world.sites[slot(id)].now += self.dice.roll(600);
                }
                self.act(Act::Tick(id));
            }
            15..=16 => self.act(Act::Run(n)),
            17..=19 => self.act(Act::Look(n)),
            20 => self.act(Act::ReadNames(n)),
            21 => self.act(Act::Publish(n)),
            22..=23 => self.act(Act::Stream(n)),
            24 => self.act(Act::Arrive(n)),
            25 => self.act(Act::Canary(n)),
            26 if self.dice.roll(6) == 0 => self.act(Act::CopyFail(n)),
            26 => self.act(Act::Copy(n)),
            27 => self.act(Act::Write(n)),
            28 => self.act(Act::Acknowledge(n)),
            _ if fair::stream_is_gone(&self.world, n) => self.act(Act::StreamGone(n)),
            _ => self.act(Act::Look(n)),
        }
    }

    fn deliver(&mut self) {
        if self.wire.is_empty() {
            return;
        }
        let at = self.dice.roll(self.wire.len() as u64) as usize;
        let message = self.wire[at];
        // Now and then a copy stays on the wire and comes again, much later perhaps.
        if self.dice.roll(8) != 0 {
            self.wire.swap_remove(at);
        }
        if self.cut[slot(message.from)][slot(message.to)] {
            return;
        }
        let cut = self.dice.roll(200) == 0 && message.to != W && self.node_up(message.to);
        self.act(if cut { Act::DeliverCut(message) } else { Act::Deliver(message) });
    }

    fn node_up(&self, id: VoterId) -> bool {
        if id == W { self.world.witness_up } else { self.world.sites[slot(id)].node.is_some() }
    }

    fn fault(&mut self) {
        self.tally.faults += 1;
        let n = self.dice.roll(2) as usize;
        let id = self.dice.pick(&[A, B, W]);
        match self.dice.roll(16) {
            0..=2 if self.node_up(id) => self.act(Act::Crash(id)),
            0..=3 if !self.node_up(id) => self.start(id),
            4 => self.act(Act::Kill(n)),
            5 => self.act(Act::Hang(n)),
            6..=7 => self.act(Act::Late(id)),
            8..=9 => {
                let (x, y) = (self.dice.roll(3) as usize, self.dice.roll(3) as usize);
                self.cut[x][y] = !self.cut[x][y];
            }
            10 => self.cut = [[false; 3]; 3],
            11 => self.wire.clear(),
            12 => self.act(Act::Backup(id)),
            13 => {
                let command = self.dice.pick(&[Command::Switchover, Command::Leave, Command::Stay]);
                self.act(Act::Operator(n, command));
            }
            14 if self.node_up(id) && id != W => self.act(Act::TickCut(id)),
            _ => {
                let members = [pair(OnPeerLoss::Witness(W)), pair(OnPeerLoss::Hold)];
                if self.dice.roll(4) == 0 {
                    let members = self.dice.pick(&members);
                    self.act(Act::Operator(n, Command::Change(members)));
                }
            }
        }
    }

    fn start(&mut self, id: VoterId) {
        let doubtful = self.faults.restore && self.restored.is_none_or(|restored| restored == id);
        if doubtful && self.dice.roll(3) == 0 {
            self.restored = Some(id);
            let old = self.dice.roll(2) == 0;
            self.act(Act::Restore(id, old));
        } else {
            self.act(Act::Restart(id));
        }
    }

    /// Runs the schedule, then ends the faults; `Err` names what went wrong.
    pub fn run(&mut self) -> Result<(), String> {
        for _ in 0..self.faults.acts {
            if self.dice.roll(24) == 0 {
                self.fault()
            } else {
                self.ordinary()
            }
            if let Some(violation) = self.world.violation {
                return Err(violation.to_owned());
            }
        }
        self.tally.schedules += 1;
        self.tally.acknowledged += u64::from(self.world.acknowledged.count_ones());
        self.tally.epochs += self.world.newest().epoch;
        self.end()
    }

    fn end(&mut self) -> Result<(), String> {
        let sets = [[true, true, false], [true, false, true], [false, true, true], [true, true, true]];
        let up = sets[self.dice.roll(4) as usize];
        if self.world.must_recover(up) {
            self.tally.recoveries += 1;
            if !fair::recovers(&self.world, up) {
                self.world = fair::recovered(&self.world, up);
                return Err(format!("service did not come back with A, B, W up: {up:?}"));
            }
        }
        Ok(())
    }
}

pub fn campaign(
    seeds: std::ops::Range<u64>,
    settings: Settings,
    faults: Faults,
) -> Result<Tally, (u64, String)> {
    let starts = [OnPeerLoss::Witness(W), OnPeerLoss::Hold, OnPeerLoss::Prefer(A)]
        .map(|loss| fair::paired(loss, settings));
    let mut total = Tally::default();
    for seed in seeds {
        // Most sites have a witness.
        let start = &starts[[0, 0, 0, 0, 0, 0, 1, 2][(seed % 8) as usize]];
        let mut schedule = Schedule::new(seed, start, faults);
        schedule.run().map_err(|violation| (seed, violation))?;
        let tally = schedule.tally;
        total.schedules += tally.schedules;
        total.acts += tally.acts;
        total.acknowledged += tally.acknowledged;
        total.faults += tally.faults;
        total.recoveries += tally.recoveries;
        total.epochs += tally.epochs;
    }
    Ok(total)
}

fn seeds(count: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("FARHOLD_HA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("FARHOLD_HA_SCHEDULES").unwrap_or(count),
    }
}

fn report(seed: u64, violation: &str, faults: Faults) {
    let start = [OnPeerLoss::Witness(W), OnPeerLoss::Hold, OnPeerLoss::Prefer(A)]
        [[0, 0, 0, 0, 0, 0, 1, 2][(seed % 8) as usize]];
    let mut again = Schedule::new(seed, &fair::paired(start, settings()), faults);
    again.trace = Some(Vec::new());
    let repeated = again.run();
    let trace = again.trace.unwrap_or_default();
    for act in &trace[trace.len().saturating_sub(60)..] {
        println!("{act:?}");
    }
    again.world.sites.iter().for_each(|site| println!("{site:?}"));
    println!("{:?}", again.world.witness);
    panic!(
        "{violation} ({repeated:?}); replay: FARHOLD_HA_SEED={seed} cargo test --release -p agent --lib ha::tests::random"
    );
}

#[test]
fn random_schedules_lose_nothing() {
    let faults = Faults { restore: true, acts: 600 };
    match campaign(seeds(100_000), settings(), faults) {
        Ok(tally) => println!("{tally:?}"),
        Err((seed, violation)) => report(seed, &violation, faults),
    }
}
