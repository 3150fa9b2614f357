//! Times and the node's own platform: inputs of the decisions that do not change while the agent runs.
//!
//! None of the times is part of safety: with any clock at all the pair loses availability, never a write.

use super::register::Platform;

/// Settings of a data node. Times in milliseconds of a clock that counts through suspend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    /// What this node runs on.
    pub platform: Platform,
    /// A peer not known to be able for this long is lost: the detection part of an outage.
    pub peer_lost_ms: u64,
    /// A disk whose last successful flush is older than this makes the node give its vote instead of asking.
    pub fsync_recent_ms: u64,
    /// Pause before an undecided attempt is repeated; the standby waits half as long again, so that they alternate.
    pub retry_ms: u64,
    /// Bound on the age of reads: without word from peer or witness for this long, `Paired` stops forwarding.
    pub stale_ms: u64,
    /// A returning standby that is not in sync this long after its names were set is given up for now.
    pub join_ms: u64,
    /// First pause after a failed rejoin; doubles up to 2^5 times.
    pub rejoin_pause_ms: u64,
    /// A returning standby is named only when it is at most this many bytes behind.
    pub join_lag_bytes: u64,
    /// A planned hand-over that has not begun its vote after this long is taken back.
    pub hand_over_ms: u64,
    /// Tests of the checker leave out one rule and expect it to notice.
    #[cfg(test)]
    pub without: Option<Rule>,
}

impl Settings {
    /// The shipped times on this platform.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            peer_lost_ms: 3_000,
            fsync_recent_ms: 2_000,
            retry_ms: 400,
            stale_ms: 5_000,
            join_ms: 10_000,
            rejoin_pause_ms: 1_000,
            join_lag_bytes: 1 << 20,
            hand_over_ms: 10_000,
            #[cfg(test)]
            without: None,
        }
    }

    #[cfg(test)]
    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "tests leave rules out through a field that only they have")]
    pub(super) fn keeps(&self, _rule: Rule) -> bool {
        true
    }
}

/// The rules that a test can leave out, each named after what it demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A voter that may be out of date casts no vote until it has heard all others (trap 1).
    MuteUntilHeard,
    /// A proposer gives up its ballot when a voter starts a new life (trap 1).
    HelloVoidsBallot,
    /// A vote found among the promises is carried on (trap 2).
    CarryVotes,
    /// The standby closes its tunnel before it asks for votes (trap 2, 7).
    CloseTunnelFirst,
    /// A quorum must say that it would answer before the tunnel is closed (trap 2).
    AskFirst,
    /// The holder never clears the names after its own vote for `Paired` (trap 3).
    KeepNamesAfterVote,
    /// The canary must be seen to wait (trap 4).
    CanaryMustWait,
    /// The names must have been seen off before they are set (trap 4).
    SeenOffFirst,
    /// The names of a start must have been seen in force before they are cleared (trap 4).
    SeenOnFirst,
    /// The standby must have flushed the position taken after the canary waited (trap 4).
    FlushedAfterCanary,
    /// A restarted primary serves only after the standby has flushed its end of recovery (trap 5).
    ServeAfterFlush,
    /// A node asks for `Solo` only with complete data (traps 8, 10).
    OnlyCompleteData,
    /// A node with a hung disk does not ask (trap 9).
    RecentFsync,
    /// A hand-over waits for the successor to have everything (trap 6).
    HandOverComplete,
    /// The primary stays down once it has voted to hand over (trap 6).
    StayDownAfterHandOver,
}
