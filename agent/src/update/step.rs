//! The decisions of the update engine: a state and an event give a state and effects. Pure; [`Outcome::persist`] says
//! that the memory changed and must be durable before any effect is performed.
//!
//! `carry` decides which carrier is used, `look` decides about sources, announcements and manifests, `work` about fetching and installing, `boot` what a boot
//! means for the phase it comes in, `trial` about health, commit, and ways back.

mod boot;
mod carry;
mod look;
mod trial;
mod work;

pub use look::words;

use crate::update::carrier::Failure;
use crate::update::entries::Operation;
use crate::update::links::Limits;
use crate::update::plan::Room;
use crate::update::policy;
use crate::update::state::{
    Attempt, Ended, How, Intent, Live, Measured, Memory, Phase, Progress, Release, Verdict,
};
use formats::arch::Arch;
use formats::device::HealthCheck;
use formats::entry::EntryName;
use formats::hex::Digest;
use formats::roles::Root;
use formats::status::UpdateCost;
use formats::tariff::CarrierSettings;
use formats::trust::ChainFetches;
use formats::wave::Wave;

/// What does not change until the next boot.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What runs; `None` if the root is not a Farhold slot.
    pub running: Option<Release>,
    /// Roothash of a complete image in the other slot.
    pub other: Option<Digest>,
    /// Whether the memory is kept; why not.
    pub durable: Result<(), String>,
    /// Whether the boot loader counts this boot.
    pub counted: bool,
    /// Whether the agent has started before in this boot.
    pub restarted: bool,
    /// Signs of a crash before this boot: watchdog, crash records.
    pub evidence: Option<String>,
    /// Why the init came here from another entry.
    pub fallback: Option<String>,
    /// Product that releases must be for.
    pub product: String,
    /// Board that they must be for.
    pub board: String,
    /// Processor that they must be for.
    pub arch: Arch,
    /// Channel that is followed.
    pub channel: u8,
    /// Site that the device belongs to.
    pub site: Option<String>,
    /// Machine id.
    pub id: String,
    /// Root document in the verified root; why it cannot be used.
    pub anchor: Result<Root, String>,
    /// Where to look for releases by itself.
    pub source: Option<String>,
    /// How often, seconds.
    pub poll_s: u32,
    /// Carriers with settings, the most wanted first; where there are some, `source` counts for nothing.
    pub carriers: Vec<CarrierSettings>,
    /// What makes a boot healthy.
    pub checks: Vec<HealthCheck>,
    /// Differs by device.
    pub seed: u64,
}

/// Why a job failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The source does not answer, or is busy; seconds that it asked to wait.
    Unreachable(Option<u32>),
    /// The source lacks an object.
    Absent,
    /// What came is not what was announced, or what was made of it.
    Damaged,
    /// Blocks that were fetched are no longer what they were.
    Incomplete,
    /// This machine: no room, a disk that fails.
    Local,
}

/// Which object failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The slot image.
    Slot,
    /// The UKI.
    Uki,
}

/// What was read of a source and of the device to plan an update.
#[derive(Clone, Debug)]
pub struct Offered {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// A payload catalogue's bytes, if the source has one.
    pub catalogue: Option<Vec<u8>>,
    /// How many devices may take the release by now, if the source says so; why that is not known.
    pub wave: Result<Option<Wave>, Failure>,
    /// The room that there is.
    pub room: Room,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The agent has started.
    Started(Box<Facts>, Box<Memory>),
    /// Time went by.
    Tick,
    /// systemd has settled.
    Settled,
    /// The memory cannot be made durable; why.
    Forgetful(String),
    /// Somebody wants to know about, or to have, what a source announces; without a source, the configured one.
    Check(Option<String>, Intent),
    /// A source announced something by itself.
    Heard(String),
    /// A source's announcements: for everybody, and where there are, for the site and the device.
    Announcements(Vec<Vec<u8>>),
    /// A source's chain of root documents, and the announcements that made it needed.
    Roots(Vec<u8>, Vec<Vec<u8>>),
    /// A source's manifest, and what it takes to plan.
    Manifest(Box<Offered>),
    /// A source could not be read; why, and when it wants to be asked again.
    Unread(String, Fault),
    /// How far job `0` is.
    Progress(u32, Progress),
    /// Bytes that a job has fetched.
    Bytes(u32, u64),
    /// Bytes that a look at a source took.
    Paid(String, u64),
    /// All objects are fetched.
    Fetched(u32),
    /// The other slot was written and verified.
    Installed(u32),
    /// The entry of the verified slot stands; what it took so far.
    Entered(u32, UpdateCost),
    /// A job failed.
    Failed(u32, Part, Fault, String),
    /// Checks that fail on the running system, just before a trial.
    Baseline(Vec<String>),
    /// Checks were attempted: name, and why it did not pass.
    Probed(Vec<(String, Result<(), String>)>),
    /// An entry was looked for, and changed; what it was before.
    Entry(Operation, Result<Option<EntryName>, String>),
    /// The other slot was verified for a return: its release, or why not.
    OtherVerified(u32, Result<Release, String>),
    /// The operator wants the trial kept.
    Commit,
    /// The operator wants the other release back.
    Rollback,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Read a source's announcements for this device.
    ReadAnnouncements(String),
    /// Read its root chain; the announcements are handed back with it.
    ReadRoots(String, Vec<Vec<u8>>),
    /// Read this manifest of so many bytes, and look how much room there is.
    ReadManifest(String, Digest, u32),
    /// The next fetch may take so much.
    Limit(Limits),
    /// Fetch what is missing.
    Fetch(u32, Box<Attempt>),
    /// Rewrite the other slot and verify it.
    Install(u32, Box<Attempt>),
    /// Verify the other slot if that was not just done, put its UKI on the ESP, and its counted entry.
    Enter(u32, Box<Attempt>),
    /// End the job that runs.
    Cancel,
    /// Attempt all checks once, for [`Event::Baseline`].
    Baseline,
    /// Attempt these checks once.
    Probe(Vec<String>),
    /// Look for a release's entry, and change it.
    Entry(Operation, Release),
    /// Verify the other slot and look for its entry.
    VerifyOther(u32),
    /// Restart the machine.
    Restart(String),
    /// Remove what was fetched.
    Discard,
}

impl Effect {
    /// The source that it looks at, if it does.
    pub fn looks_at(&self) -> Option<&str> {
        match self {
            Self::ReadAnnouncements(source) | Self::ReadRoots(source, _) | Self::ReadManifest(source, ..) => {
                Some(source)
            }
            Self::Limit(_)
            | Self::Fetch(..)
            | Self::Install(..)
            | Self::Enter(..)
            | Self::Cancel
            | Self::Baseline
            | Self::Probe(_)
            | Self::Entry(..)
            | Self::VerifyOther(_)
            | Self::Restart(_)
            | Self::Discard => None,
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether what was asked for is done or under way.
    pub ok: bool,
    /// In words.
    pub text: String,
}

/// What a step leads to. The memory is made durable first, if it changed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Whether the memory changed.
    pub persist: bool,
    /// What happened: code and text.
    pub notes: Vec<(&'static str, String)>,
    /// To be done.
    pub effects: Vec<Effect>,
    /// To be told to whoever asked.
    pub answer: Option<Answer>,
    /// A release was committed: it is what should run from now on.
    pub committed: Option<Release>,
}

impl Outcome {
    fn note(&mut self, code: &'static str, text: impl Into<String>) {
        self.notes.push((code, text.into()));
    }
    fn refuse(&mut self, text: impl Into<String>) {
        self.answer = Some(Answer { ok: false, text: text.into() });
    }
    fn accept(&mut self, text: impl Into<String>) {
        self.answer = Some(Answer { ok: true, text: text.into() });
    }
}

/// The state of the update engine.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Of this boot; `None` before the start.
    pub facts: Option<Facts>,
    /// Durable.
    pub memory: Memory,
    /// For now.
    pub live: Live,
    /// Newest root document that is trusted.
    pub root: Option<Root>,
    /// What is left of this day's fetches of root chains; `None` before the first.
    pub chain_fetches: Option<ChainFetches>,
    /// Number of the job that counts; events of others are stale.
    pub job: u32,
}

impl State {
    /// Takes an event in, at `now_ms` since the kernel started.
    pub fn step(mut self, event: Event, now_ms: u64) -> (Self, Outcome) {
        let mut out = Outcome::default();
        let before = self.memory.clone();
        match event {
            Event::Started(facts, memory) => {
                // What was remembered is not a change.
                let remembered = (*memory).clone();
                self.started(*facts, *memory, now_ms, &mut out);
                out.persist = self.memory != remembered;
                return (self, out);
            }
            Event::Tick => self.tick(now_ms, &mut out),
            Event::Settled => self.live.settled = true,
            Event::Forgetful(why) => self.forgetful(why),
            Event::Check(source, intent) => self.check(source, intent, now_ms, &mut out),
            Event::Heard(source) => self.heard(&source, now_ms),
            Event::Announcements(frames) => self.announcements(frames, now_ms, &mut out),
            Event::Roots(chain, frames) => self.roots(&chain, &frames, &mut out),
            Event::Manifest(offered) => self.manifest(&offered, now_ms, &mut out),
            Event::Unread(why, fault) => self.unread(why, fault, now_ms, &mut out),
            Event::Progress(job, progress) if job == self.job => self.progress(progress, now_ms),
            Event::Bytes(job, bytes) if job == self.job => self.paid(bytes),
            Event::Paid(source, bytes) => self.book(&source, bytes),
            Event::Fetched(job) if job == self.job => self.fetched(&mut out),
            Event::Installed(job) if job == self.job => self.installed(&mut out),
            Event::Entered(job, cost) if job == self.job => self.entered(cost, &mut out),
            Event::Failed(job, part, fault, why) if job == self.job => {
                self.failed((part, fault, why), now_ms, &mut out);
            }
            Event::OtherVerified(job, found) if job == self.job => self.other_verified(found, &mut out),
            Event::Progress(..)
            | Event::Bytes(..)
            | Event::Fetched(_)
            | Event::Installed(_)
            | Event::Entered(..)
            | Event::Failed(..)
            | Event::OtherVerified(..) => {}
            Event::Baseline(failing) => self.baseline(failing, &mut out),
            Event::Probed(results) => self.probed(results, now_ms),
            Event::Entry(operation, found) => self.entry_done(operation, found, now_ms, &mut out),
            Event::Commit => self.commit_asked(&mut out),
            Event::Rollback => self.rollback_asked(&mut out),
        }
        self.judge_trial(now_ms, &mut out);
        out.persist = self.memory != before;
        (self, out)
    }

    /// When to step with [`Event::Tick`], ms since the kernel started.
    pub fn wake_ms(&self) -> Option<u64> {
        [self.live.retry_ms, self.live.next_check_ms, self.next_deadline_ms()].into_iter().flatten().min()
    }

    /// A check that hangs does not hold up the verdict.
    fn next_deadline_ms(&self) -> Option<u64> {
        let Phase::Trial { release, .. } = &self.memory.phase else { return None };
        let facts = self.facts.as_ref().filter(|_| self.runs(release))?;
        let passed = |name: &str| matches!(self.live.checks.get(name), Some(Verdict::Passed));
        let waiting = facts.checks.iter().filter(|check| !passed(&check.name));
        waiting.map(|check| self.due_ms(check) + 1).min()
    }

    fn tick(&mut self, now_ms: u64, out: &mut Outcome) {
        if self.live.retry_ms.is_some_and(|at| now_ms >= at) {
            self.live.retry_ms = None;
            self.go_on(now_ms, out);
        }
        if self.live.next_check_ms.is_some_and(|at| now_ms >= at) {
            let poll_s = self.facts.as_ref().map_or(3600, |facts| facts.poll_s);
            self.live.next_check_ms = Some(policy::next_check_ms(now_ms, poll_s, self.seed()));
            if matches!(self.memory.phase, Phase::Idle | Phase::Fetching(_)) {
                self.check(None, Intent::Poll, now_ms, out);
                // Nobody waits for the answer to a look of our own.
                out.answer = None;
            }
        }
    }

    fn progress(&mut self, now: Progress, now_ms: u64) {
        let same = self.live.measured.filter(|last| last.now.part == now.part && last.now.done <= now.done);
        let (since_ms, since_done) = same.map_or((now_ms, now.done), |last| (last.since_ms, last.since_done));
        self.live.measured = Some(Measured { now, at_ms: now_ms, since_ms, since_done });
        // Something moves, so what failed before has passed.
        self.live.failures = 0;
        self.live.stuck = None;
    }

    fn forgetful(&mut self, why: String) {
        if let Some(facts) = &mut self.facts {
            facts.durable = Err(why);
        }
        self.live.working = false;
    }

    fn seed(&self) -> u64 {
        self.facts.as_ref().map_or(0, |facts| facts.seed)
    }

    /// Whether this release is the one that runs.
    pub fn runs(&self, release: &Release) -> bool {
        self.running().is_some_and(|running| running.roothash == release.roothash)
    }

    fn running(&self) -> Option<&Release> {
        self.facts.as_ref().and_then(|facts| facts.running.as_ref())
    }

    fn next_job(&mut self) -> u32 {
        self.job += 1;
        self.live.working = true;
        self.live.measured = None;
        self.job
    }

    /// Back to rest.
    fn end(&mut self, release: &Release, how: How, why: &str, out: &mut Outcome) {
        let (code, words) = match how {
            How::Committed => ("update-committed", "is kept"),
            How::RolledBack => ("update-rolled-back", "was rolled back"),
            How::GivenUp => ("update-given-up", "was given up"),
        };
        out.note(code, format!("version {} {words}: {why}", release.version));
        let cost = self.memory.phase.cost().or(self.live.cost);
        let version = release.version.clone();
        self.memory.last = Some(Ended { version, how, why: why.to_owned(), cost });
        self.memory.phase = Phase::Idle;
        self.live.working = false;
        self.live.measured = None;
        self.live.retry_ms = None;
        self.live.failures = 0;
        self.live.stuck = None;
        self.live.checks.clear();
        self.job += 1;
        out.effects.push(Effect::Discard);
    }

    /// Tries the current phase again later.
    fn later(&mut self, why: String, retry_after_s: Option<u32>, now_ms: u64) {
        self.live.failures += 1;
        self.live.working = false;
        self.live.retry_ms =
            Some(now_ms + policy::backoff_ms(self.live.failures, retry_after_s, self.seed()));
        self.live.stuck = Some(why);
    }
}
