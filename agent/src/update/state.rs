//! What the update engine remembers, and what it knows for now. Plain values; durable ones are one JSON document.
//!
//! ```text
//! Idle → Fetching → Installing → Trial → Committing → Idle
//!          ↑  └──────────┘ │       └──→ Leaving ──────→ Idle      (rolled back, with a reason)
//!          └───────────────┘ next payload
//! Idle → Returning → Idle                                         (the operator goes back to the other slot)
//! ```

use crate::update::plan::Plan;
use formats::hex::Digest;
use formats::status::UpdateCost;
use formats::tariff::Used;
use formats::trust::{Accepted, Rank};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of [`Memory`]'s JSON.
pub const SCHEMA: u32 = 1;
/// Failed releases that are remembered.
pub const QUARANTINE_MAX: usize = 32;

/// What identifies a release once the device has decided about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Version, as in entry names.
    pub version: String,
    /// Roothash of its slot image.
    pub roothash: Digest,
    /// Its manifest; `None` for what the factory installed.
    pub manifest: Option<Digest>,
}

/// Where a release stands. Each variant says what is true on disk, and what a reboot in it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing is under way. The running slot's entry is not counted.
    #[default]
    Idle,
    /// Accepted; its objects are being fetched into the staging area. The other slot is as it was, unless the staging
    /// area lies in it. A reboot goes on here.
    Fetching(Box<Attempt>),
    /// All is fetched and the other slot is being rewritten: its entry goes first, its superblock next. A reboot
    /// begins the rewriting again, from the staging area, and skips it if the slot verifies.
    Installing(Box<Attempt>),
    /// The other slot is verified and has a counted entry. A reboot starts it; one that comes back to the old slot
    /// ends here with a reason.
    Trial {
        /// On trial.
        release: Release,
        /// How far it is.
        trial: Trial,
    },
    /// Healthy; its entry is being made uncounted. A reboot does that again.
    Committing {
        /// To be kept.
        release: Release,
        /// How its trial went.
        trial: Trial,
    },
    /// Failed; its entry is being marked as spent, then the machine restarts into the old slot.
    Leaving {
        /// To be left.
        release: Release,
        /// Why.
        why: String,
        /// Restarts asked for so far.
        restarts: u32,
    },
    /// The operator goes back: the other slot was verified, the running one's entry is being marked as spent.
    Returning {
        /// To be run.
        to: Release,
        /// Runs, and failed in the operator's eyes.
        from: Release,
        /// Why.
        why: String,
        /// Restarts asked for so far.
        restarts: u32,
    },
}

impl Phase {
    /// What it took to install the release on trial.
    pub fn cost(&self) -> Option<UpdateCost> {
        match self {
            Self::Trial { trial, .. } | Self::Committing { trial, .. } => trial.cost,
            Self::Idle
            | Self::Fetching(_)
            | Self::Installing(_)
            | Self::Leaving { .. }
            | Self::Returning { .. } => None,
        }
    }
}

/// A release being fetched and installed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// What is to be made, and from what.
    pub plan: Plan,
    /// Where the objects come from.
    pub source: String,
    /// Position of the way to the slot image that is being tried.
    pub slot_way: usize,
    /// The same for the UKI.
    pub uki_way: usize,
    /// Times that installing failed for reasons of this machine.
    pub failures: u32,
    /// Times that all ways were tried and the source lacked something of each.
    #[serde(default)]
    pub rounds: u32,
}

/// A trial's history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Boots in which the agent of the release started.
    pub starts: u32,
    /// Times that its tries were given back after a power cycle.
    pub rearms: u32,
    /// Restarts that the old slot asked for.
    pub restarts: u32,
    /// Checks that the old release failed too, just before the trial: they are no evidence against the new one.
    pub excused: Vec<String>,
    /// What its entry is made from, should it be lost.
    pub attempt: Option<Box<Attempt>>,
    /// What it took to install.
    #[serde(default)]
    pub cost: Option<UpdateCost>,
}

/// What became of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Version.
    pub version: String,
    /// How it ended.
    pub how: How,
    /// Why, in words.
    pub why: String,
    /// What it took to install.
    #[serde(default)]
    pub cost: Option<UpdateCost>,
}

/// How an update ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// It runs and stays.
    Committed,
    /// The old release runs again.
    RolledBack,
    /// It was never started.
    GivenUp,
}

/// A release that failed here and is not tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Roothash of its slot image.
    pub roothash: Digest,
    /// Version.
    pub version: String,
    /// Why.
    pub why: String,
}

/// Rank and manifest of the newest accepted release, see [`Accepted`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// Root version.
    pub root_version: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Manifest.
    pub manifest: Digest,
}

impl Floor {
    /// As the trust rules take it.
    pub fn accepted(self) -> Accepted {
        let rank = Rank { root_version: self.root_version, sequence: self.sequence };
        Accepted { rank, manifest: Some(self.manifest) }
    }
}

/// What outlives power cuts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where the release under way stands.
    pub phase: Phase,
    /// Newest release that was accepted; it never goes down under one root version.
    pub accepted: Option<Floor>,
    /// Manifest of the release that runs, if it came as an update or was compared.
    pub current: Option<Digest>,
    /// Latest signed time, seconds since 1970.
    pub watermark_s: u32,
    /// Newest root chain that was followed, hexadecimal; empty if the image's own is the newest.
    pub chain: String,
    /// Releases that failed here, latest last.
    pub quarantine: Vec<Failed>,
    /// What became of the last update.
    pub last: Option<Ended>,
    /// Times that the root chain was fetched for an unknown root version on this day of uptime.
    #[serde(default)]
    pub chain_fetches: u8,
    /// What carriers with settings have carried, by name.
    #[serde(default)]
    pub used: BTreeMap<String, Used>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            phase: Phase::Idle,
            accepted: None,
            current: None,
            watermark_s: 0,
            chain: String::new(),
            quarantine: Vec::new(),
            last: None,
            chain_fetches: 0,
            used: BTreeMap::new(),
        }
    }
}

impl Memory {
    /// Why a release is not to be tried again.
    pub fn quarantined(&self, roothash: Digest) -> Option<&Failed> {
        self.quarantine.iter().find(|failed| failed.roothash == roothash)
    }

    /// Remembers a failed release; the oldest is forgotten for it.
    pub fn put_in_quarantine(&mut self, release: &Release, why: &str) {
        self.quarantine.retain(|failed| failed.roothash != release.roothash);
        let (roothash, version) = (release.roothash, release.version.clone());
        self.quarantine.push(Failed { roothash, version, why: why.to_owned() });
        let excess = self.quarantine.len().saturating_sub(QUARANTINE_MAX);
        self.quarantine.drain(..excess);
    }
}

/// What is asked of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Say what would be done.
    Plan,
    /// Do it: the operator asked.
    Now,
    /// Do it: it was time to look.
    Poll,
}

/// A look at a source that is under way.
#[derive(Clone, Debug)]
pub struct Checking {
    /// The source.
    pub source: String,
    /// What for.
    pub intent: Intent,
    /// Its announcement, once it was verified.
    pub verified: Option<formats::frame::Verified>,
}

/// How far a transfer or a decoding is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What is measured.
    pub part: &'static str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Measured progress: the rate is that since `since_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Latest.
    pub now: Progress,
    /// When it was reported, ms since the kernel started.
    pub at_ms: u64,
    /// When the part began.
    pub since_ms: u64,
    /// Bytes that were done then.
    pub since_done: u64,
}

/// What an attempt of a health check gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The first attempt has not ended.
    Untried,
    /// Not passed yet; what it last said.
    Waiting(String),
    /// Passed.
    Passed,
}

/// What is known for now; a restart of the agent begins anew.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// A look at a source that is under way.
    pub checking: Option<Checking>,
    /// Whether a job of the current phase is under way.
    pub working: bool,
    /// When to try the current phase again.
    pub retry_ms: Option<u64>,
    /// Failures in a row.
    pub failures: u32,
    /// When to look at the source again.
    pub next_check_ms: Option<u64>,
    /// Progress of the job.
    pub measured: Option<Measured>,
    /// Bytes fetched for the release.
    pub fetched: u64,
    /// Of those, what is not in [`Memory::used`] yet.
    pub unbooked: u64,
    /// Seconds since 1970 and milliseconds since the kernel started, as last told.
    pub clock: (u64, u64),
    /// Until when carriers that could not be reached are left alone, ms since the kernel started, by name.
    pub down: BTreeMap<String, u64>,
    /// Checks of a trial.
    pub checks: BTreeMap<String, Verdict>,
    /// Whether systemd has settled.
    pub settled: bool,
    /// What the last look at a source came to.
    pub said: Option<String>,
    /// Why the phase does not go on.
    pub stuck: Option<String>,
    /// Whether a restart was asked for in this boot.
    pub restarting: bool,
    /// The boot loader of the last release that was looked at, and the device's, where they differ.
    pub boot_loader: Option<(Digest, Digest)>,
    /// What the release that is being left took.
    pub cost: Option<UpdateCost>,
}
