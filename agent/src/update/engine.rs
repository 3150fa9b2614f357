//! Performs the effects of `step` on threads of its own and reports back with events. Decides nothing.

use crate::io::clock::boot_ms;
use crate::update::carrier::mqtt::{Broker, Identity};
use crate::update::carrier::{Carrier, Carriers, Failure, Tagged, Tally};
use crate::update::fetch::{Control, Interval};
use crate::update::health::{self, Attempts};
use crate::update::install::{self, Failed, Platform, Work};
use crate::update::links::Limits;
use crate::update::machine::Machine;
use crate::update::slot::VerifiedSlot;
use crate::update::state::{Attempt, Progress};
use crate::update::step::{Effect, Event, Fault, Offered, Part};
use crate::update::waves;
use anyhow::{Context, Result};
use formats::arch::Arch;
use formats::catalogue::MAX_CATALOGUE_BYTES;
use formats::device::HealthCheck;
use formats::frame::{MAX_FRAME_BYTES, Scope, target_tag};
use formats::hex::Digest;
use formats::repository;
use formats::roles::MAX_CHAIN_BYTES;
use formats::tariff::PEER;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::Sender;

/// Longest sleep for a rate: a job that is not wanted any more ends after so long.
const PACE_MS: u64 = 200;
/// Between two reports of progress, ms.
const REPORT_MS: u64 = 500;
/// The decoder's tables live on the heap; TLS needs some of this.
const STACK: usize = 1 << 20;

/// What jobs need to know of the device.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Storage.
    pub machine: Machine,
    /// Roothash of the running slot.
    pub running: Digest,
    /// Product, board, processor.
    pub target: (String, String, Arch),
    /// Whom announcements may be for.
    pub scopes: Vec<Scope>,
    /// Channel that is followed.
    pub channel: u8,
    /// Machine id.
    pub id: String,
    /// Differs by device.
    pub seed: u64,
    /// Where announcements come by themselves.
    pub source: Option<String>,
    /// All sources.
    pub sources: Vec<String>,
    /// Declared checks.
    pub checks: Vec<HealthCheck>,
}

/// The engine's threads, seen from the loop.
pub struct Engine {
    /// Jobs, checks, entries: one after the other.
    jobs: mpsc::Sender<Effect>,
    /// Looks at sources: a fetch that takes days must not keep an operator with a stick waiting.
    looks: mpsc::Sender<Effect>,
    /// The job that is wanted; others end.
    wanted: Arc<AtomicU32>,
    broker: Arc<OnceLock<Arc<Broker>>>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// If there are none to be had.
    pub fn start(surroundings: Surroundings, events: Sender<Event>) -> Result<Self> {
        let wanted = Arc::new(AtomicU32::new(0));
        let heard = events.clone();
        let mut carriers = Carriers::new(surroundings.identity(), move |source: &str| {
            // A loop that is busy looks at the source in its own time.
            drop(heard.try_send(Event::Heard(source.to_owned())));
        });
        carriers.pair(Path::new(crate::pair::CONFIG), surroundings.sources.clone());
        let carriers = Arc::new(Mutex::new(carriers));
        let worker = || Worker {
            surroundings: surroundings.clone(),
            events: events.clone(),
            wanted: wanted.clone(),
            verified: None,
            attempts: Attempts::default(),
            seen: BTreeMap::new(),
            carriers: carriers.clone(),
            limits: Limits::default(),
            looked: Tally::default(),
        };
        let broker = Arc::new(OnceLock::new());
        let opened = broker.clone();
        let jobs = start("update", worker(), |_| {})?;
        let looks = start("look", worker(), move |worker| worker.begin(&opened))?;
        Ok(Self { jobs, looks, wanted, broker })
    }

    /// The broker that the device is connected to all the time, if there is one.
    pub fn broker(&self) -> Option<&Broker> {
        self.broker.get().map(Arc::as_ref)
    }

    /// Hands over an effect.
    pub fn perform(&self, effect: Effect) {
        let mut lane = &self.jobs;
        match &effect {
            Effect::Fetch(job, _)
            | Effect::Install(job, _)
            | Effect::Enter(job, _)
            | Effect::VerifyOther(job) => {
                self.wanted.store(*job, Ordering::Relaxed);
            }
            Effect::Cancel => self.wanted.store(0, Ordering::Relaxed),
            Effect::ReadAnnouncements(_) | Effect::ReadRoots(..) | Effect::ReadManifest(..) => {
                lane = &self.looks;
            }
            Effect::Baseline
            | Effect::Probe(_)
            | Effect::Entry(..)
            | Effect::Restart(_)
            | Effect::Limit(_)
            | Effect::Discard => {}
        }
        if lane.send(effect).is_err() {
            tracing::error!("the update thread has ended; restart the agent");
        }
    }
}

struct Worker {
    surroundings: Surroundings,
    events: Sender<Event>,
    wanted: Arc<AtomicU32>,
    /// Proof from an installation in this boot.
    verified: Option<VerifiedSlot>,
    /// Checks that hang.
    attempts: Attempts,
    /// Announcements as they were when last looked at, by address.
    seen: BTreeMap<String, Tagged>,
    /// Shared: a device has one session with a broker.
    carriers: Arc<Mutex<Carriers>>,
    /// How much the next fetch may take.
    limits: Limits,
    /// What looks took of the source.
    looked: Tally,
}

fn start(
    name: &str,
    mut worker: Worker,
    begin: impl FnOnce(&Worker) + Send + 'static,
) -> Result<mpsc::Sender<Effect>> {
    let (send, effects) = mpsc::channel();
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
    let run = move || {
        begin(&worker);
        for effect in effects {
            worker.perform(effect);
        }
    };
    thread.spawn(run).with_context(|| format!("start the {name} thread"))?;
    Ok(send)
}

impl Surroundings {
    /// Names of announcements, or waves, that may be for this device.
    fn names(&self, name: fn(&[u8; 8], u8, Scope) -> String) -> impl Iterator<Item = String> {
        let (product, board, arch) = &self.target;
        let tag = target_tag(product, board, *arch);
        self.scopes.iter().map(move |scope| name(&tag, self.channel, *scope))
    }

    fn identity(&self) -> Identity {
        let names = self.names(repository::announcement).chain(self.names(repository::wave));
        Identity { device: Identity::device_of(&self.id), retained: names.collect(), seed: self.seed }
    }
}

/// Reports of one job.
struct Reports {
    job: u32,
    events: Sender<Event>,
    wanted: Arc<AtomicU32>,
    reported_ms: u64,
    bytes: u64,
    begun_ms: u64,
    /// Bytes in all.
    taken: u64,
    limits: Limits,
}

impl Reports {
    /// Waits as long as the rate wants it.
    fn pace(&self) {
        let Some(rate) = self.limits.rate_bytes else { return };
        let due_ms = self.begun_ms + self.taken.saturating_mul(1000) / rate.max(1);
        while !self.stopped() {
            let left = due_ms.saturating_sub(boot_ms());
            if left == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(left.min(PACE_MS)));
        }
    }
}

impl Control for Reports {
    fn stopped(&self) -> bool {
        let spent = self.limits.bytes.is_some_and(|most| self.taken >= most);
        spent || (self.job != 0 && self.wanted.load(Ordering::Relaxed) != self.job)
    }
    fn now_ms(&self) -> u64 {
        boot_ms()
    }
    fn progress(&mut self, part: &'static str, done: u64, total: u64) {
        let now_ms = boot_ms();
        if now_ms < self.reported_ms + REPORT_MS {
            return;
        }
        self.reported_ms = now_ms;
        // A loop that is busy hears the next one.
        drop(self.events.try_send(Event::Progress(self.job, Progress { part, done, total })));
        if self.bytes > 0 && self.events.try_send(Event::Bytes(self.job, self.bytes)).is_ok() {
            self.bytes = 0;
        }
    }
    fn fetched(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.taken += bytes;
        self.pace();
    }
}

impl Worker {
    fn carriers(&self) -> MutexGuard<'_, Carriers> {
        self.carriers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Held only to open: transfers of both threads go on side by side.
    fn open(&self, source: &str) -> Result<Box<dyn Carrier>, Failure> {
        self.carriers().open(source)
    }

    /// Opens the session over which announcements come by themselves and reports go.
    fn begin(&self, opened: &OnceLock<Arc<Broker>>) {
        self.carriers().tune(&self.surroundings.sources);
        let source =
            self.surroundings.source.as_ref().filter(|source| formats::mqtt::Address::is_meant(source));
        match source.map(|source| self.carriers().broker(source)) {
            None => {}
            // Set only here.
            Some(Ok(broker)) => drop(opened.set(broker)),
            Some(Err(failure)) => {
                tracing::warn!(why = failure.why, "announcements do not come by themselves")
            }
        }
    }

    fn perform(&mut self, effect: Effect) {
        tracing::debug!(?effect, "update");
        let source = effect.looks_at().map(str::to_owned);
        let event = match effect {
            Effect::ReadAnnouncements(source) => {
                report(self.announcements(&source).map(Event::Announcements))
            }
            Effect::ReadRoots(source, frames) => {
                let read = self
                    .open(&source)
                    .and_then(|mut c| c.whole(repository::ROOTS, MAX_CHAIN_BYTES as u64, &mut self.looked));
                report(read.map(|roots| Event::Roots(roots, frames)))
            }
            Effect::ReadManifest(source, id, bytes) => {
                report(self.offered(&source, id, bytes).map(|offered| Event::Manifest(Box::new(offered))))
            }
            Effect::Fetch(job, attempt) => self.job(job, Part::Slot, |worker, work| {
                let mut carrier = worker.open(&attempt.source).map_err(|failure| (Part::Slot, failure))?;
                worker.verified = None;
                install::fetch(work, &attempt, carrier.as_mut()).map(|()| Event::Fetched(job))
            }),
            Effect::Install(job, attempt) => self.job(job, Part::Slot, |worker, work| {
                worker.verified = Some(install::install(work, &attempt)?);
                Ok(Event::Installed(job))
            }),
            Effect::Enter(job, attempt) => self.job(job, Part::Uki, |worker, work| {
                let slot = worker.proof(work, &attempt)?;
                install::enter(work, &attempt, &slot)?;
                let cost = worker.surroundings.machine.written.cost(crate::observe::peak_rss_bytes());
                Ok(Event::Entered(job, cost))
            }),
            Effect::VerifyOther(job) => self.other(job),
            Effect::Baseline => Event::Baseline(self.failing()),
            Effect::Probe(names) => Event::Probed(self.probe(&names)),
            Effect::Entry(operation, release) => {
                let found = self.work(0, |_, work| install::entry(work, operation, &release));
                Event::Entry(operation, found.map_err(|error| format!("{error:#}")))
            }
            Effect::Discard => {
                if let Err(error) = self.surroundings.machine.discard() {
                    tracing::warn!(error = format!("{error:#}"), "what was fetched stays");
                }
                return;
            }
            Effect::Limit(limits) => {
                self.limits = limits;
                return;
            }
            Effect::Cancel | Effect::Restart(_) => return,
        };
        let brought = self.carriers().peer().map_or(0, |peer| peer.brought());
        if brought > 0 && self.events.blocking_send(Event::Paid(PEER.into(), brought)).is_err() {
            tracing::debug!("the loop has ended");
        }
        let looked = std::mem::take(&mut self.looked).0;
        if let (Some(source), 1..) = (source, looked)
            && self.events.blocking_send(Event::Paid(source, looked)).is_err()
        {
            tracing::debug!("the loop has ended");
        }
        if self.events.blocking_send(event).is_err() {
            tracing::debug!("the loop has ended");
        }
    }

    fn work<T>(&mut self, job: u32, act: impl FnOnce(&mut Self, &mut Work<'_>) -> T) -> T {
        let mut machine = self.surroundings.machine.clone();
        let (events, wanted) = (self.events.clone(), self.wanted.clone());
        let limits = std::mem::take(&mut self.limits);
        let begun_ms = boot_ms();
        let mut control =
            Reports { job, events, wanted, reported_ms: 0, bytes: 0, begun_ms, taken: 0, limits };
        let running = self.surroundings.running;
        let mut work =
            Work { platform: &mut machine, control: &mut control, running, interval: Interval::USUAL };
        let done = act(self, &mut work);
        if control.bytes > 0 {
            drop(self.events.try_send(Event::Bytes(job, control.bytes)));
        }
        done
    }

    fn job(
        &mut self,
        job: u32,
        part: Part,
        act: impl FnOnce(&mut Self, &mut Work<'_>) -> Result<Event, Failed>,
    ) -> Event {
        tracing::info!(job, ?part, "update job");
        match self.work(job, act) {
            Ok(event) => event,
            Err((part, failure)) => Event::Failed(job, part, failure.fault, failure.why),
        }
    }

    /// The proof of this boot's installation, or a new one.
    fn proof(&mut self, work: &mut Work<'_>, attempt: &Attempt) -> Result<VerifiedSlot, Failed> {
        let roothash = attempt.plan.roothash;
        if let Some(slot) = self.verified.take().filter(|slot| slot.roothash() == roothash) {
            return Ok(slot);
        }
        install::verify_other(work, roothash)
            .map_err(|error| (Part::Slot, Failure::new(Fault::Incomplete, format!("{error:#}"))))
    }

    /// What the source announces to everybody, to this site and to this device; for a folder of one release, that.
    fn announcements(&mut self, source: &str) -> Result<Vec<Vec<u8>>, Failure> {
        let mut carrier = self.open(source)?;
        let mut names: Vec<String> = self.surroundings.names(repository::announcement).collect();
        names.push(repository::ANNOUNCE.to_owned());
        let (mut found, mut absent) = (Vec::new(), None);
        for name in names {
            if name == repository::ANNOUNCE && !found.is_empty() {
                break;
            }
            let address = format!("{source} {name}");
            let known = self.seen.get(&address);
            match carrier.changed(&name, MAX_FRAME_BYTES as u64, known, &mut self.looked) {
                Ok(tagged) => {
                    found.push(tagged.bytes.clone());
                    self.seen.insert(address, tagged);
                }
                Err(failure) if failure.fault == Fault::Absent => {
                    self.seen.remove(&address);
                    absent = Some(failure);
                }
                Err(failure) => return Err(failure),
            }
        }
        match absent {
            Some(failure) if found.is_empty() => Err(failure),
            Some(_) | None => Ok(found),
        }
    }

    fn offered(&mut self, source: &str, id: Digest, bytes: u32) -> Result<Offered, Failure> {
        let mut carrier = self.open(source)?;
        let tally = &mut self.looked;
        let manifest = carrier.whole(&repository::object(&id), bytes.into(), tally)?;
        let running = self.surroundings.running;
        let mut catalogue = None;
        for base in [Some(&running), None] {
            match carrier.whole(&repository::catalogue(&id, base), MAX_CATALOGUE_BYTES as u64, tally) {
                Ok(bytes) => {
                    catalogue = Some(bytes);
                    break;
                }
                // Without a catalogue the release's own payloads do.
                Err(failure) => tracing::debug!(why = failure.why, "no catalogue"),
            }
        }
        let wave = waves::read(carrier.as_mut(), self.surroundings.names(repository::wave), id, tally);
        let room = install::room(&mut self.surroundings.machine, running)
            .map_err(|error| Failure::local(&error.context("look how much room there is")))?;
        Ok(Offered { manifest, catalogue, wave, room })
    }

    fn other(&mut self, job: u32) -> Event {
        let complete = |worker: &mut Self, work: &mut Work<'_>| -> Result<_> {
            let mut first = [0; 2 * formats::verity::BLOCK];
            work.platform.open(install::Volume::OtherVerity)?.read(0, &mut first)?;
            let (superblock, top) = first.split_at(formats::verity::BLOCK);
            let parameters = formats::verity::Parameters::parse(superblock)?;
            tracing::info!(slot = %worker.surroundings.machine.other, "verifying the other slot");
            install::other_release(work, Digest(parameters.hash(top)))
        };
        let found = self.work(job, complete).map_err(|error| format!("{error:#}"));
        Event::OtherVerified(job, found)
    }

    fn probe(&mut self, names: &[String]) -> Vec<(String, Result<(), String>)> {
        let named = self.surroundings.checks.iter().filter(|check| names.contains(&check.name));
        let results = self.attempts.all(named, health::HANGS).into_iter();
        results.map(|(name, result)| (name, result.map_err(|error| format!("{error:#}")))).collect()
    }

    fn failing(&mut self) -> Vec<String> {
        let names: Vec<String> = self.surroundings.checks.iter().map(|check| check.name.clone()).collect();
        let failed = self.probe(&names).into_iter().filter(|(_, result)| result.is_err());
        failed.map(|(name, _)| name).collect()
    }
}

fn report(read: Result<Event, Failure>) -> Event {
    read.unwrap_or_else(|failure| Event::Unread(failure.why, failure.fault))
}
