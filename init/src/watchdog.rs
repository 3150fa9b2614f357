//! The hardware watchdog: armed before anything can hang, fed while the init waits, left running for systemd.
//!
//! It is never closed with the magic `V`, so it goes on through the start of systemd, which then feeds it.

use crate::ioctl;
use anyhow::{Context, Result};
use formats::boot;
use std::fs::{File, OpenOptions};
use std::io::Write;

const DEVICE: &str = "/dev/watchdog0";

/// An armed watchdog.
pub struct Watchdog {
    file: File,
    /// Device and timeout as set.
    pub facts: boot::Watchdog,
}

impl Watchdog {
    /// Whether there is a watchdog to arm.
    pub fn present() -> bool {
        std::path::Path::new(DEVICE).exists()
    }

    /// Arms it. Opening starts the timer.
    ///
    /// # Errors
    /// If the device cannot be opened. A timeout that the hardware refuses leaves its own one.
    pub fn arm(seconds: u32) -> Result<Self> {
        let file = OpenOptions::new().write(true).open(DEVICE).with_context(|| format!("open {DEVICE}"))?;
        let wanted = i32::try_from(seconds).unwrap_or(i32::MAX);
        let set =
            ioctl::set_timeout(&file, wanted).with_context(|| format!("set {DEVICE} to {seconds} s"))?;
        let timeout_s = u32::try_from(set).unwrap_or(seconds);
        Ok(Self { file, facts: boot::Watchdog { device: DEVICE.into(), timeout_s } })
    }

    /// Starts the countdown anew.
    ///
    /// # Errors
    /// The kernel's.
    pub fn feed(&mut self) -> std::io::Result<()> {
        self.file.write_all(b"\0")
    }
}
