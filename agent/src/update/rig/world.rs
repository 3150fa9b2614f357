//! A machine around the update engine: the boot loader's choice and counting, the init's slot, the agent's loop without
//! threads, and an operator who follows a script.

use super::judge::slot_of;
use super::medium::{Fate, Medium, Place};
use super::release::{BOARD, Built, PRODUCT, Shop};
use crate::update::carrier::{Carrier, Failure, Sink, Stream, Toll, Wanted};
use crate::update::fetch::{Control, Interval};
use crate::update::install::{self, Work};
use crate::update::slot::VerifiedSlot;
use crate::update::state::{Intent, Memory, Phase, Release};
use crate::update::step::{Effect, Event, Facts, Fault, Offered, Part, State};
use anyhow::{Context, Result, bail, ensure};
use formats::arch::Arch;
use formats::device::{HealthCheck, Probe};
use formats::entry::{EntryName, Tries};
use formats::layout::Slot;
use formats::loader;
use formats::repository;
use std::collections::{BTreeMap, VecDeque};

/// Bytes of a payload's block.
pub const BLOCK: u64 = 1024;
/// Four blocks may be lost to a cut.
pub const INTERVAL: Interval = Interval { bytes: 4 * BLOCK, ms: u64::MAX };
/// Turns of a session before it counts as spinning.
const TURNS_MAX: usize = 2000;
/// Boots of a machine before it counts as spinning.
const BOOTS_MAX: usize = 40;

/// What the operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Installs 2.0.
    Update,
    /// The same, with no room on the state partition.
    UpdateWithoutRoom,
    /// Installs 2.0, then 3.0, whose health check never passes.
    SecondFails,
    /// Installs 2.0, then goes back.
    Return,
}

/// The machine.
pub struct World<'s> {
    shop: &'s Shop,
    script: Script,
    pub medium: Medium,
    pub boots: usize,
    fetched: BTreeMap<&'static str, u64>,
    running: Option<(Slot, &'s Built)>,
}

/// How a session ended.
enum End {
    Rest,
    Restart,
}

impl<'s> World<'s> {
    /// A machine as the factory leaves it: 1.0 in slot A.
    pub fn new(shop: &'s Shop, script: Script) -> Self {
        let one = &shop.one;
        let room = if script == Script::UpdateWithoutRoom { 0 } else { 1 << 30 };
        let medium = Medium::new(one.image.len() * 2, one.verity().len() + 8192, room);
        medium.put(Place::Root(Slot::A), &one.image);
        medium.put(Place::Verity(Slot::A), &one.verity());
        medium.put_entry(&one.entry(), &one.uki);
        Self { shop, script, medium, boots: 0, fetched: BTreeMap::new(), running: None }
    }

    /// The machine after a power cut.
    pub fn after(&self, fate: Fate) -> Self {
        let medium = self.medium.after(fate);
        Self { medium, boots: 0, fetched: self.fetched.clone(), running: None, ..*self }
    }

    pub fn memory(&self) -> Memory {
        self.medium.memory()
    }

    pub fn entry_names(&self) -> Vec<String> {
        self.medium.entries().into_keys().collect()
    }

    pub fn running(&self) -> &str {
        self.running.map_or("nothing", |(_, release)| &release.version)
    }

    pub fn release_of(&self, uki: &[u8]) -> Option<&'s Built> {
        [&self.shop.one, &self.shop.two, &self.shop.three].into_iter().find(|release| release.uki == uki)
    }

    /// Bytes of objects that came more than once.
    pub fn fetched_twice(&self) -> u64 {
        let needed = |source: &str| match source {
            "two" => self.shop.two.object_bytes,
            _ => self.shop.three.object_bytes,
        };
        self.fetched.iter().map(|(source, bytes)| bytes.saturating_sub(needed(source))).sum()
    }

    /// Boots and runs until nothing is left to do.
    pub fn run_to_rest(&mut self) -> Result<()> {
        while self.boots < BOOTS_MAX {
            let counted = self.boot()?;
            match self.session(counted)? {
                End::Rest => return Ok(()),
                End::Restart => {}
            }
        }
        bail!("the machine restarts for ever")
    }

    /// systemd-boot and init. Gives whether the boot is counted.
    fn boot(&mut self) -> Result<bool> {
        self.boots += 1;
        let entries = self.medium.entries();
        let parsed: Vec<EntryName> = entries.keys().filter_map(|name| EntryName::parse(name)).collect();
        let entry = loader::first(&parsed).context("no entry")?.clone();
        let uki = &entries[&entry.file_name()];
        if let Some(Tries { left, done }) = entry.tries.filter(|tries| tries.left > 0) {
            let tries = Some(Tries { left: left - 1, done: done + 1 });
            let next = EntryName { tries, ..entry.clone() };
            self.medium.rename(&entry.file_name(), &next.file_name())?;
        }
        let release = self.release_of(uki).context("the chosen UKI is torn")?;
        let (slot, _) = slot_of(self, release).context("no slot opens")?;
        self.running = Some((slot, release));
        self.medium.set_other(slot.other());
        Ok(entry.tries.is_some())
    }

    fn facts(&self, counted: bool) -> Facts {
        let (slot, release) = self.running.unwrap();
        let built = [&self.shop.one, &self.shop.two, &self.shop.three];
        let in_other =
            |release: &&&Built| slot_of(self, release).is_some_and(|(found, _)| found == slot.other());
        Facts {
            running: Some(name(release)),
            other: built.iter().find(in_other).map(|release| release.roothash),
            durable: Ok(()),
            counted,
            restarted: false,
            evidence: None,
            fallback: None,
            product: PRODUCT.into(),
            board: BOARD.into(),
            arch: Arch::X86_64,
            channel: 0,
            id: "device".into(),
            anchor: Ok(self.shop.root.clone()),
            source: None,
            poll_s: 3600,
            checks: vec![HealthCheck {
                name: "app".into(),
                deadline_s: 60,
                probe: Probe::Unit { unit: "app.service".into() },
            }],
            seed: 1,
        }
    }

    fn healthy(&self) -> bool {
        self.running() != "3.0"
    }

    /// What the operator wants next; nothing if all is as it should be.
    fn wish(&self, memory: &Memory) -> Option<Event> {
        let failed = |version: &str| memory.quarantine.iter().any(|failed| failed.version == version);
        let check = |source: &str| Some(Event::Check(Some(source.to_owned()), Intent::Now));
        match (self.script, self.running()) {
            (_, "1.0") if !failed("2.0") => check("two"),
            (Script::SecondFails, "2.0") if !failed("3.0") => check("three"),
            (Script::Return, "2.0") if !failed("2.0") => Some(Event::Rollback),
            _ => None,
        }
    }

    /// The agent from its start to rest or restart.
    fn session(&mut self, counted: bool) -> Result<End> {
        let mut state = State::default();
        let memory = Box::new(self.memory());
        let mut events =
            VecDeque::from([Event::Started(Box::new(self.facts(counted)), memory), Event::Settled]);
        let mut verified = None;
        let mut now_ms = 5_000;
        for _ in 0..TURNS_MAX {
            let event = match events.pop_front() {
                Some(event) => event,
                None if state.memory.phase == Phase::Idle && state.live.checking.is_none() => {
                    match self.wish(&state.memory) {
                        Some(wish) => wish,
                        None => return Ok(End::Rest),
                    }
                }
                None => {
                    now_ms = now_ms.max(state.wake_ms().context("the engine waits for nothing")?);
                    Event::Tick
                }
            };
            now_ms += 1;
            let (next, out) = state.step(event, now_ms);
            state = next;
            if out.persist {
                self.medium.remember(&state.memory)?;
            }
            for effect in out.effects {
                if matches!(effect, Effect::Restart(_)) {
                    return Ok(End::Restart);
                }
                events.extend(self.perform(effect, &mut verified)?);
            }
        }
        bail!("the engine spins: {:?}", state.memory.phase)
    }

    fn perform(&mut self, effect: Effect, verified: &mut Option<VerifiedSlot>) -> Result<Vec<Event>> {
        let mut medium = self.medium.clone();
        let running = self.running.unwrap().1.roothash;
        let mut told = Told::default();
        let mut work = Work { platform: &mut medium, control: &mut told, running, interval: INTERVAL };
        let event = match effect {
            Effect::ReadAnnouncement(source) => {
                Event::Announcement(self.files(&source)[repository::ANNOUNCE].clone())
            }
            Effect::ReadManifest(source, id, _) => Event::Manifest(Box::new(Offered {
                manifest: self.files(&source)[&repository::object(&id)].clone(),
                catalogue: None,
                room: install::room(work.platform, running)?,
            })),
            Effect::Fetch(job, attempt) => {
                let mut carrier = Files(self.files(&attempt.source));
                let done = install::fetch(&mut work, &attempt, &mut carrier);
                let source = if attempt.source == "two" { "two" } else { "three" };
                *self.fetched.entry(source).or_default() += told.0;
                outcome(done.map(|()| Event::Fetched(job)), job)?
            }
            Effect::Install(job, attempt) => {
                let done = install::install(&mut work, &attempt);
                outcome(
                    done.map(|slot| {
                        *verified = Some(slot);
                        Event::Installed(job)
                    }),
                    job,
                )?
            }
            Effect::Enter(job, attempt) => {
                let slot = match verified.take() {
                    Some(slot) => slot,
                    None => install::verify_other(&mut work, attempt.plan.roothash)?,
                };
                outcome(install::enter(&mut work, &attempt, &slot).map(|()| Event::Entered(job)), job)?
            }
            Effect::Baseline => Event::Baseline(Vec::new()),
            Effect::Probe(names) => {
                let result = if self.healthy() { Ok(()) } else { Err("it is inactive".to_owned()) };
                Event::Probed(names.into_iter().map(|name| (name, result.clone())).collect())
            }
            Effect::Entry(operation, release) => {
                Event::Entry(operation, Ok(install::entry(&mut work, operation, &release)?))
            }
            Effect::VerifyOther(job) => Event::OtherVerified(job, self.other(&mut work)),
            Effect::Discard => {
                work.platform.discard()?;
                return Ok(Vec::new());
            }
            Effect::Cancel => return Ok(Vec::new()),
            Effect::ReadRoots(..) | Effect::Restart(_) => bail!("{effect:?} is not expected"),
        };
        Ok(vec![event])
    }

    fn other(&self, work: &mut Work<'_>) -> Result<Release, String> {
        let digest = self.facts(false).other.ok_or("nothing there")?;
        install::other_release(work, digest).map_err(|error| format!("{error:#}"))
    }

    fn files(&self, source: &str) -> &'s BTreeMap<String, Vec<u8>> {
        let release = match source {
            "two" => &self.shop.two,
            _ => &self.shop.three,
        };
        &release.files
    }
}

fn name(release: &Built) -> Release {
    Release { version: release.version.clone(), roothash: release.roothash, manifest: None }
}

/// A power cut ends the session; nothing else fails in these scripts.
fn outcome(done: Result<Event, (Part, Failure)>, job: u32) -> Result<Event> {
    match done {
        Ok(event) => Ok(event),
        Err((_, failure)) if failure.why.contains("power cut") => bail!("power cut"),
        Err((part, failure)) => {
            ensure!(failure.fault != Fault::Local, "{}", failure.why);
            Ok(Event::Failed(job, part, failure.fault, failure.why))
        }
    }
}

#[derive(Default)]
struct Told(u64);

impl Control for Told {
    fn stopped(&self) -> bool {
        false
    }
    fn now_ms(&self) -> u64 {
        0
    }
    fn progress(&mut self, _: &'static str, _: u64, _: u64) {}
    fn fetched(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

struct Files<'f>(&'f BTreeMap<String, Vec<u8>>);

impl Carrier for Files<'_> {
    fn whole(&mut self, path: &str, _: u64, _: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        self.0.get(path).cloned().ok_or_else(|| Failure::new(Fault::Absent, path))
    }
    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let path = wanted.what.path();
        let bytes = self.0.get(&path).ok_or_else(|| Failure::new(Fault::Absent, path))?;
        for run in &wanted.missing {
            let range = wanted.bytes(run);
            let mut stream = Stream::new(wanted, run.start, &mut *sink);
            // Pieces that do not end where blocks do, as a network has them.
            bytes[range.start as usize..range.end as usize]
                .chunks(700)
                .try_for_each(|chunk| stream.take(chunk))?;
        }
        Ok(())
    }
}
