//! Time since the kernel started. The wall clock decides nothing but what budgets count: devices boot with wrong ones.

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the kernel started, sleep included.
pub fn boot_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}

/// Seconds since 1970 as this machine has them: only for budgets by day and month, which do no harm if it is wrong.
pub fn wall_s() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| u64::try_from(now.tv_sec()).unwrap_or(0))
}

/// Microseconds since the kernel started, sleep included.
pub fn boot_us() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1000
}
