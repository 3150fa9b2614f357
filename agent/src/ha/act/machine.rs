//! Which machine this is: a disk that was cloned or moved makes a voter whose state cannot be shown to be its newest.
//!
//! Firmware or device tree name the machine; the name is kept beside the state. It does not know what follows from a difference.

use super::config::Config;
use crate::durable;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Where a machine's own name stands: SMBIOS, then device tree.
const SOURCES: [&str; 3] =
    ["/sys/class/dmi/id/product_uuid", "/proc/device-tree/serial-number", "/sys/class/dmi/id/product_serial"];

fn kept(state: &Path) -> PathBuf {
    state.join("machine")
}

/// A digest of the machine's name, if it has one that can be read.
fn name(config: &Config) -> Option<String> {
    let sources: Vec<PathBuf> = match &config.machine {
        Some(path) => vec![path.clone()],
        // The unit puts there what only root may read.
        None => [config.run.join("machine")].into_iter().chain(SOURCES.map(PathBuf::from)).collect(),
    };
    let read = sources.iter().find_map(|path| std::fs::read(path).ok().filter(|name| !name.is_empty()))?;
    Some(Sha256::digest(read).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Whether the state was last used in this machine, as far as anybody can tell.
pub fn same(config: &Config) -> bool {
    match (name(config), std::fs::read_to_string(kept(&config.state))) {
        (Some(name), Ok(kept)) => name == kept.trim(),
        (None, _) | (_, Err(_)) => true,
    }
}

/// Keeps the machine's name beside the state; done after a doubt about the state is durable.
///
/// # Errors
/// The file system's.
pub fn keep(config: &Config) -> Result<()> {
    let Some(name) = name(config) else { return Ok(()) };
    let path = kept(&config.state);
    if std::fs::read_to_string(&path).is_ok_and(|kept| kept == name) {
        return Ok(());
    }
    durable::write(&path, name.as_bytes(), 0o600).context("keep the machine's name")
}
