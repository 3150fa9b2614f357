//! What a device decides about an announcement: is it for this device, is it newer, may it be applied now.
//!
//! Pure functions of verified facts; the answers carry the reason. Follows design section 5 and I9: nothing that one
//! wrong signature or clock could do may lock honest releases out for ever. Knows no storage, clock or carrier.

use crate::arch::Arch;
use crate::document::DocumentError;
use crate::frame::{Announcement, Frame, FrameError, Scope, Verified, target_tag};
use crate::hex::Digest;
use crate::keys::SignatureError;
use crate::manifest::{MANIFEST_BLOCK, Manifest};
use crate::object;
use crate::roles::Root;

/// Format of releases that this version of Farhold reads and writes.
pub const AGENT_FORMAT: u8 = 1;
/// Seconds that the time watermark may be ahead of the root document in force: five years of 365 days. A frame signed
/// by a wrong clock can then not move the watermark beyond what the next rotation puts right.
pub const MAX_WATERMARK_LEAD_S: u32 = 5 * 365 * 24 * 3600;

/// Fetches of the root chain that frames of unknown root versions may cause in a day.
pub const CHAIN_FETCHES_A_DAY: u8 = 4;
const DAY_S: u64 = 24 * 3600;

/// What a device is, from its verified root file system and its configuration.
#[derive(Clone, Copy, Debug)]
pub struct Device<'a> {
    /// Product.
    pub product: &'a str,
    /// Board.
    pub board: &'a str,
    /// Processor.
    pub arch: Arch,
    /// Channel that it follows.
    pub channel: u8,
    /// Site that it belongs to, if any.
    pub site: Option<&'a str>,
    /// Its own id.
    pub id: &'a str,
}

/// Order of releases: a rotation of the root outranks every sequence number, so it also repairs a wrong one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Version of the root document under which the release was signed.
    pub root_version: u16,
    /// Its sequence number.
    pub sequence: u32,
}

impl Rank {
    /// The rank of an announcement.
    pub fn of(announcement: &Announcement) -> Self {
        Self { root_version: announcement.root_version, sequence: announcement.sequence }
    }
}

/// The newest release that a device knows it accepted: the higher of what it stored and what runs, so that wiping the
/// state partition does not lower it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its rank.
    pub rank: Rank,
    /// Its manifest, if known.
    pub manifest: Option<Digest>,
}

impl Accepted {
    /// The floor from stored and running release.
    pub fn floor(stored: Option<Self>, running: Option<Self>) -> Option<Self> {
        match (stored, running) {
            (Some(stored), Some(running)) if running.rank > stored.rank => Some(running),
            (None, running) => running,
            (stored, _) => stored,
        }
    }
}

/// The latest time that was learned from signatures, seconds since 1970. Never from a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TimeWatermark(u32);

impl TimeWatermark {
    /// The watermark that a root document sets: rotation resets it, downwards too.
    pub fn of_root(root: &Root) -> Self {
        Self(root.signed_s)
    }
    /// Takes a stored watermark back, within what `root` allows.
    pub fn restore(stored_s: u32, root: &Root) -> Self {
        Self::of_root(root).raised(stored_s, root)
    }
    /// The watermark after an accepted announcement: never lower, at most [`MAX_WATERMARK_LEAD_S`] ahead of `root`.
    pub fn after(self, verified: &Verified, root: &Root) -> Self {
        self.raised(verified.announcement().signed_s, root)
    }
    fn raised(self, to_s: u32, root: &Root) -> Self {
        Self(self.0.max(to_s.min(root.signed_s.saturating_add(MAX_WATERMARK_LEAD_S))))
    }
    /// Seconds since 1970.
    pub fn seconds(self) -> u32 {
        self.0
    }
}

/// The budget for fetching the root chain. Anybody can send a frame that names an unknown root version; it must not make
/// a device spend its link on chains. Counted in time since the start of the system, which nobody sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChainFetches {
    /// Seconds since the start when the day began.
    since_s: u64,
    /// Fetches of this day.
    used: u8,
}

impl ChainFetches {
    /// Takes one fetch at `uptime_s` seconds since the start, if the day has one left.
    pub fn take(&mut self, uptime_s: u64) -> bool {
        if uptime_s.saturating_sub(self.since_s) >= DAY_S {
            *self = Self { since_s: uptime_s, used: 0 };
        }
        if self.used >= CHAIN_FETCHES_A_DAY {
            return false;
        }
        self.used += 1;
        true
    }

    /// The budget after a restart: the day begins anew with what was left, and at least one fetch, so that a device that
    /// restarts often still learns of a rotation.
    pub fn restarted(self) -> Self {
        Self { since_s: 0, used: self.used.min(CHAIN_FETCHES_A_DAY - 1) }
    }

    /// Fetches of this day, to be stored; [`ChainFetches::stored`] takes them back after a restart.
    pub fn used(self) -> u8 {
        self.used
    }

    /// The budget after a restart from a stored number.
    pub fn stored(used: u8) -> Self {
        Self { since_s: 0, used }.restarted()
    }
}

/// Why an announcement is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Bytes that are no frame.
    #[error("read announcement frame")]
    Frame(#[source] FrameError),
    /// Signed under a root document that is not known yet; the chain must be fetched, within a daily budget.
    #[error(
        "announcement is signed under root version {needs}, but version {has} is known; fetch the root chain"
    )]
    RootUnknown {
        /// Version that is known.
        has: u16,
        /// Version that is needed.
        needs: u16,
    },
    /// Signed under a root document that was replaced: its keys may be revoked.
    #[error("announcement is signed under root version {is}, which version {trusted} has replaced")]
    RootReplaced {
        /// Version that is trusted.
        trusted: u16,
        /// Version of the announcement.
        is: u16,
    },
    /// Not signed as it must be.
    #[error("announcement is not signed by the {role} keys of root version {root_version}")]
    Signatures {
        /// `release` or `root`.
        role: &'static str,
        /// Version of the root document.
        root_version: u16,
        /// What is wrong.
        #[source]
        source: SignatureError,
    },
    /// For another product, board or processor.
    #[error("announcement is not for product {product}, board {board}, processor {arch}")]
    WrongTarget {
        /// This device's product.
        product: String,
        /// This device's board.
        board: String,
        /// This device's processor.
        arch: Arch,
    },
    /// For another channel.
    #[error("announcement is for channel {is}, but this device follows channel {follows}")]
    WrongChannel {
        /// Channel of the announcement.
        is: u8,
        /// Channel of the device.
        follows: u8,
    },
    /// For another site or device.
    #[error("announcement is for another {0}")]
    WrongScope(&'static str),
    /// Needs a newer agent.
    #[error(
        "release needs agent format {needs}, but this agent has {AGENT_FORMAT}: update to a release between first"
    )]
    AgentTooOld {
        /// Format that is needed.
        needs: u8,
    },
    /// Older than what was accepted.
    #[error(
        "release {}.{} is older than the accepted {}.{} (root version, sequence): rollback refused",
        is.root_version, is.sequence, accepted.rank.root_version, accepted.rank.sequence
    )]
    Rollback {
        /// Rank of the announcement.
        is: Rank,
        /// What was accepted.
        accepted: Accepted,
    },
    /// The rank of the accepted release, but another manifest: two releases were signed with one number.
    #[error("two releases are signed as {}.{}: {is} and the accepted {accepted}", rank.root_version, rank.sequence)]
    Twin {
        /// Rank of both.
        rank: Rank,
        /// Manifest of the announcement.
        is: Digest,
        /// Manifest that was accepted.
        accepted: Digest,
    },
    /// The manifest is not the announced one.
    #[error("manifest is not the announced one: {0}")]
    NotTheManifest(String),
    /// The manifest cannot be read.
    #[error("read manifest")]
    Manifest(#[source] DocumentError),
    /// The manifest says something else than the frame.
    #[error("manifest has {field} {is}, but the announcement says {must}")]
    Mismatch {
        /// Name of the field.
        field: &'static str,
        /// What the manifest says.
        is: String,
        /// What the frame says.
        must: String,
    },
}

/// What may be done with an announcement that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The release that was accepted already.
    Known,
    /// A newer release, to be fetched and applied.
    Newer,
    /// A newer release whose announcement outlived its validity: somebody may be holding back later ones. Report it and
    /// wait for an operator or for a fresh announcement; a freeze without signed time cannot be seen at all.
    PossiblyFrozen {
        /// Seconds since 1970 at which it went stale.
        since_s: u32,
    },
}

/// Parses a frame and verifies its signatures under the trusted root document.
///
/// # Errors
/// [`Refusal`] of the kinds up to [`Refusal::Signatures`].
pub fn authenticate(frame: &[u8], root: &Root) -> Result<Verified, Refusal> {
    let frame = Frame::parse(frame).map_err(Refusal::Frame)?;
    let needs = frame.unverified().root_version;
    if needs > root.version {
        return Err(Refusal::RootUnknown { has: root.version, needs });
    }
    if needs < root.version {
        return Err(Refusal::RootReplaced { trusted: root.version, is: needs });
    }
    let (role, keys) =
        if frame.unverified().rescue { ("root", &root.root) } else { ("release", &root.release) };
    frame.verify(keys).map_err(|source| Refusal::Signatures { role, root_version: root.version, source })
}

/// Refuses an announcement for another product, board or processor.
///
/// # Errors
/// [`Refusal::WrongTarget`].
pub fn check_target(verified: &Verified, product: &str, board: &str, arch: Arch) -> Result<(), Refusal> {
    if verified.announcement().target == target_tag(product, board, arch) {
        return Ok(());
    }
    Err(Refusal::WrongTarget { product: product.to_owned(), board: board.to_owned(), arch })
}

/// Refuses an announcement for another channel.
///
/// # Errors
/// [`Refusal::WrongChannel`].
pub fn check_channel(verified: &Verified, follows: u8) -> Result<(), Refusal> {
    let is = verified.announcement().channel;
    if is == follows { Ok(()) } else { Err(Refusal::WrongChannel { is, follows }) }
}

/// Refuses an announcement for another site or device.
///
/// # Errors
/// [`Refusal::WrongScope`].
pub fn check_scope(verified: &Verified, site: Option<&str>, id: &str) -> Result<(), Refusal> {
    let scope = verified.announcement().scope;
    match scope {
        Scope::All => Ok(()),
        Scope::Site(_) if site.map(Scope::site) == Some(scope) => Ok(()),
        Scope::Device(_) if Scope::device(id) == scope => Ok(()),
        Scope::Site(_) => Err(Refusal::WrongScope("site")),
        Scope::Device(_) => Err(Refusal::WrongScope("device")),
    }
}

/// Decides about a verified announcement: is it for `device`, and what [`assess`] says.
///
/// # Errors
/// [`Refusal`].
pub fn judge(
    verified: &Verified,
    device: &Device<'_>,
    accepted: Option<Accepted>,
    watermark: TimeWatermark,
    clock_s: Option<u32>,
) -> Result<Verdict, Refusal> {
    check_target(verified, device.product, device.board, device.arch)?;
    check_channel(verified, device.channel)?;
    check_scope(verified, device.site, device.id)?;
    assess(verified, accepted, watermark, clock_s)
}

/// Decides whether an announcement is newer and fresh. `clock_s` is a time that the operator's configuration trusts (a
/// synchronised clock), if there is one; it can hold an ordinary release back, never a rescue, and changes nothing that
/// is stored.
///
/// # Errors
/// [`Refusal::AgentTooOld`], [`Refusal::Rollback`], [`Refusal::Twin`].
pub fn assess(
    verified: &Verified,
    accepted: Option<Accepted>,
    watermark: TimeWatermark,
    clock_s: Option<u32>,
) -> Result<Verdict, Refusal> {
    let said = verified.announcement();
    if said.min_agent_format > AGENT_FORMAT {
        return Err(Refusal::AgentTooOld { needs: said.min_agent_format });
    }
    let rank = Rank::of(said);
    if let Some(accepted) = accepted.filter(|accepted| rank <= accepted.rank) {
        return match accepted.manifest {
            _ if rank < accepted.rank => Err(Refusal::Rollback { is: rank, accepted }),
            Some(known) if known != said.manifest => {
                Err(Refusal::Twin { rank, is: said.manifest, accepted: known })
            }
            Some(_) | None => Ok(Verdict::Known),
        };
    }
    let now_s = watermark.seconds().max(clock_s.unwrap_or(0));
    let since_s = said.signed_s.saturating_add(u32::from(said.validity_h) * 3600);
    if said.validity_h != 0 && !said.rescue && now_s > since_s {
        return Ok(Verdict::PossiblyFrozen { since_s });
    }
    Ok(Verdict::Newer)
}

/// Checks that `bytes` are the announced manifest, reads it, and compares what both say.
///
/// # Errors
/// [`Refusal`] of the manifest kinds.
pub fn open_manifest(verified: &Verified, bytes: &[u8]) -> Result<Manifest, Refusal> {
    let said = verified.announcement();
    if bytes.len() as u64 != u64::from(said.manifest_bytes) {
        let why = format!("it has {} bytes, {} were announced", bytes.len(), said.manifest_bytes);
        return Err(Refusal::NotTheManifest(why));
    }
    let object =
        object::of(bytes, MANIFEST_BLOCK).map_err(|error| Refusal::NotTheManifest(error.to_string()))?;
    if object.id != said.manifest {
        let why = format!("its object id is {}, {} was announced", object.id, said.manifest);
        return Err(Refusal::NotTheManifest(why));
    }
    let manifest = Manifest::parse(bytes).map_err(Refusal::Manifest)?;
    if target_tag(&manifest.product, &manifest.board, manifest.arch) != said.target {
        let is = format!("{}, {}, {}", manifest.product, manifest.board, manifest.arch);
        let must = crate::hex::encode(&said.target);
        return Err(Refusal::Mismatch { field: "product, board, processor", is, must });
    }
    if manifest.min_agent_format != said.min_agent_format {
        return Err(Refusal::Mismatch {
            field: "minimum agent format",
            is: manifest.min_agent_format.to_string(),
            must: said.min_agent_format.to_string(),
        });
    }
    Ok(manifest)
}
