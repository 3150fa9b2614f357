//! The stage between init and systemd: grows and makes the state partition, mounts `/var`, builds the overlay on `/etc`.
//!
//! Data flows `region` (partition table and marks, through the `Disk` seam) → `decide` (pure) → `var` (file system) →
//! `installed` (what an installer left) → `identity` and `allow` (what `/etc` takes from the state store) → `etc` (the overlay) → `EarlyFacts`.
//! Nothing here stops the boot: what cannot be done is a reason in the facts, and `/var` in memory.

mod allow;
mod decide;
mod etc;
mod folders;
mod identity;
mod installed;
mod region;
mod var;

use crate::io::clock::boot_ms;
use anyhow::{Context, Result};
use formats::boot::{BOOT_FACTS, BootFacts, EARLY_FACTS, EarlyFacts};
use std::fs;

pub use allow::STORE as ETC_STORE;
pub use etc::put as put_in_store;

/// Runs the stage.
///
/// # Errors
/// Only if the init's facts are unreadable or the facts of this stage cannot be written; the init then stands in.
pub fn run() -> Result<()> {
    let began = boot_ms();
    let text = fs::read(BOOT_FACTS).with_context(|| format!("read {BOOT_FACTS}"))?;
    let boot: BootFacts = serde_json::from_slice(&text).with_context(|| format!("parse {BOOT_FACTS}"))?;
    let mut notes = Vec::new();
    let state = var::prepare(&boot, &mut notes);
    let etc = etc::prepare(&mut notes)?;
    let facts = EarlyFacts {
        state,
        identity_made: etc.identity_made,
        etc: etc.files,
        early_ms: [began, boot_ms()],
        notes,
    };
    let text = serde_json::to_vec_pretty(&facts).context("encode the early facts")?;
    fs::write(EARLY_FACTS, text).with_context(|| format!("write {EARLY_FACTS}"))?;
    tracing::info!(state = ?facts.state, ms = facts.early_ms[1] - began, "early stage done");
    Ok(())
}
