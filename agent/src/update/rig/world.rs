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
const TURNS_MAX: usize = 20_000;
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
    /// What sources do instead of what they should.
    pub weather: Option<&'s Weather>,
    /// Requests for objects and lists so far.
    pub requests: usize,
    /// Kernel time of the session, ms.
    pub now_ms: u64,
    /// Whether what is staged is changed behind the agent's back, once.
    pub tamper: bool,
}

/// Number of the request and kernel time, ms, in; what happens out.
pub type Weather = dyn Fn(usize, u64) -> Said;

/// What a source says to a request.
pub enum Said {
    /// What is asked for.
    Honest,
    /// Nothing.
    Fails(Fault),
    /// So many bytes of it; then the connection ends.
    Cut(usize),
    /// Other bytes.
    Other,
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
        Self {
            shop,
            script,
            medium,
            boots: 0,
            fetched: BTreeMap::new(),
            running: None,
            weather: None,
            requests: 0,
            now_ms: 0,
            tamper: false,
        }
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

    /// Boots and runs until the agent restarts the machine.
    pub fn run_until_restart(&mut self) -> Result<()> {
        let counted = self.boot()?;
        match self.session(counted)? {
            End::Restart => Ok(()),
            End::Rest => bail!("nothing is left to do"),
        }
    }

    /// systemd-boot and init. Gives whether the boot is counted.
    pub fn boot(&mut self) -> Result<bool> {
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
            site: None,
            id: "device".into(),
            anchor: Ok(self.shop.root.clone()),
            source: None,
            poll_s: 3600,
            carriers: Vec::new(),
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
        self.now_ms = now_ms;
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
            self.now_ms = now_ms;
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
            Effect::ReadAnnouncements(source) => {
                Event::Announcements(vec![self.files(&source)[repository::ANNOUNCE].clone()])
            }
            Effect::ReadManifest(source, id, _) => Event::Manifest(Box::new(Offered {
                manifest: self.files(&source)[&repository::object(&id)].clone(),
                catalogue: None,
                wave: Ok(None),
                room: install::room(work.platform, running)?,
            })),
            Effect::Fetch(job, attempt) => {
                let (weather, now_ms) = (self.weather, self.now_ms);
                let files = self.files(&attempt.source);
                let mut carrier = Files { files, weather, now_ms, requests: &mut self.requests };
                let done = install::fetch(&mut work, &attempt, &mut carrier);
                let source = if attempt.source == "two" { "two" } else { "three" };
                *self.fetched.entry(source).or_default() += told.0;
                outcome(done.map(|()| Event::Fetched(job)), job)?
            }
            Effect::Install(job, attempt) => {
                if std::mem::take(&mut self.tamper) {
                    self.medium.tamper();
                }
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
                let entered = install::enter(&mut work, &attempt, &slot);
                let cost = self.medium.cost();
                outcome(entered.map(|()| Event::Entered(job, cost)), job)?
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
            Effect::Cancel | Effect::Limit(_) => return Ok(Vec::new()),
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
            ensure!(failure.fault != Fault::Local || failure.why.contains("No space"), "{}", failure.why);
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

struct Files<'f> {
    files: &'f BTreeMap<String, Vec<u8>>,
    weather: Option<&'f Weather>,
    now_ms: u64,
    requests: &'f mut usize,
}

impl Carrier for Files<'_> {
    fn whole(&mut self, path: &str, _: u64, _: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        self.files.get(path).cloned().ok_or_else(|| Failure::new(Fault::Absent, path))
    }
    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let path = wanted.what.path();
        let bytes = self.files.get(&path).ok_or_else(|| Failure::new(Fault::Absent, path))?;
        for run in &wanted.missing {
            *self.requests += 1;
            let said = self.weather.map_or(Said::Honest, |weather| weather(*self.requests, self.now_ms));
            let range = wanted.bytes(run);
            let mut part = bytes[range.start as usize..range.end as usize].to_vec();
            let ends = match said {
                Said::Fails(fault) => return Err(Failure::new(fault, "the source fails")),
                Said::Cut(after) => {
                    after < part.len() && {
                        part.truncate(after);
                        true
                    }
                }
                Said::Other => {
                    part.iter_mut().for_each(|byte| *byte ^= 1);
                    false
                }
                Said::Honest => false,
            };
            let mut stream = Stream::new(wanted, run.start, &mut *sink);
            // Pieces that do not end where blocks do, as a network has them.
            part.chunks(700).try_for_each(|chunk| stream.take(chunk))?;
            if ends {
                return Err(Failure::new(Fault::Unreachable(None), "the answer ended too early"));
            }
        }
        Ok(())
    }
}
