//! How long to wait, how often to try: numbers and small pure functions. Times are milliseconds since the kernel
//! started; no clock can be wrong here.

/// First wait after a failure.
const BACKOFF_FIRST_MS: u64 = 5_000;
/// Longest wait by ourselves: an outage of weeks costs a request every ten minutes.
const BACKOFF_MAX_MS: u64 = 600_000;
/// Longest wait that a server may ask for.
const RETRY_AFTER_MAX_MS: u64 = 24 * 3600 * 1000;
/// From the start of the agent to the first look at the source, at least: a start has better things to do.
const FIRST_CHECK_MS: u64 = 60_000;
/// An announcement that reaches all devices at once is followed within this time.
const HEARD_SPREAD_MS: u64 = 30_000;
/// Carriers whose budget or hours begin anew are used within this time, by device.
const REOPENED_SPREAD_MS: u64 = 1_800_000;
/// Between two attempts of checks that have not passed.
pub const PROBE_MS: u64 = 2_000;
/// A check whose deadline passes on a slow machine before its first attempt has ended gets this much longer: a command
/// may take 30 s ([`super::health`]).
pub const FIRST_ATTEMPT_MS: u64 = 60_000;
/// Boots of a trial before it counts as failed, whatever the boot loader counts: on an ESP that cannot be written its
/// counters never run out.
pub const STARTS_MAX: u32 = 8;
/// Times that a trial's tries are given back after power cycles (design section 6).
pub const REARMS_MAX: u32 = 5;
/// Restarts that one decision may ask for.
pub const RESTARTS_MAX: u32 = 3;
/// Times that installing may fail for reasons of this machine.
pub const INSTALLS_MAX: u32 = 3;
/// A source that lacks an object is asked for all ways again after so long, seconds: a mirror may be behind.
pub const ROUND_S: u32 = 3600;
/// Rounds over all ways before a release is given up; the next look at the source may take it up again.
pub const ROUNDS_MAX: u32 = 24;

/// A number that differs by device and occasion, so that a fleet does not come all at once.
fn scatter(seed: u64, occasion: u64) -> u64 {
    // SplitMix64's finaliser.
    let mut x = seed.wrapping_add(occasion.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// How long to wait after failure number `failures` (from 1), at least what the server asked for.
pub fn backoff_ms(failures: u32, retry_after_s: Option<u32>, seed: u64) -> u64 {
    let doubled = BACKOFF_FIRST_MS.saturating_mul(1 << failures.saturating_sub(1).min(16));
    let own = doubled.min(BACKOFF_MAX_MS);
    let own = own / 2 + scatter(seed, failures.into()) % (own / 2 + 1);
    let asked = retry_after_s.map_or(0, |seconds| u64::from(seconds) * 1000).min(RETRY_AFTER_MAX_MS);
    own.max(asked)
}

/// When to look at the source for the first time.
pub fn first_check_ms(now_ms: u64, poll_s: u32, seed: u64) -> u64 {
    let spread = (u64::from(poll_s) * 1000 / 10).max(1);
    now_ms + FIRST_CHECK_MS.min(u64::from(poll_s) * 1000) + scatter(seed, 1) % spread
}

/// When to look at a source that announced something by itself.
pub fn heard_ms(now_ms: u64, seed: u64) -> u64 {
    now_ms + scatter(seed, now_ms) % HEARD_SPREAD_MS
}

/// When carriers that may be used again after so many seconds are: budgets of a whole fleet come back at one midnight.
pub fn reopened_ms(now_ms: u64, seconds: u64, seed: u64) -> u64 {
    let spread = REOPENED_SPREAD_MS.min(seconds.saturating_mul(1000) / 10).max(1);
    now_ms + seconds.saturating_mul(1000) + scatter(seed, seconds) % spread
}

/// When to look again: the interval, a tenth more or less.
pub fn next_check_ms(now_ms: u64, poll_s: u32, seed: u64) -> u64 {
    let interval = u64::from(poll_s) * 1000;
    now_ms + interval - interval / 10 + scatter(seed, now_ms) % (interval / 5).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn waits_grow_to_a_limit_and_respect_the_server(failures in 1u32..1000, seed: u64, asked in 0u32..200_000) {
            let wait = backoff_ms(failures, None, seed);
            prop_assert!((BACKOFF_FIRST_MS / 2..=BACKOFF_MAX_MS).contains(&wait));
            let told = backoff_ms(failures, Some(asked), seed);
            prop_assert!(told >= (u64::from(asked) * 1000).min(RETRY_AFTER_MAX_MS) && told <= RETRY_AFTER_MAX_MS);
        }

        #[test]
        fn looks_come_about_every_interval(now in 0u64..1 << 50, poll in 10u32..1_000_000, seed: u64) {
            let interval = u64::from(poll) * 1000;
            let next = next_check_ms(now, poll, seed) - now;
            prop_assert!(next >= interval / 10 * 9 && next <= interval / 10 * 11 + 10);
            prop_assert!(first_check_ms(now, poll, seed) - now <= FIRST_CHECK_MS + interval);
        }
    }

    #[test]
    fn devices_differ() {
        let waits: std::collections::BTreeSet<u64> = (0..100).map(|seed| backoff_ms(8, None, seed)).collect();
        assert!(waits.len() > 90);
    }
}
