//! Inputs of each step when it was last done, kept in the cache so that a stale step can be explained.

use crate::explain::Before;
use crate::plan::{Plan, StepName};
use crate::resolved::Resolved;
use crate::store::Store;
use anyhow::{Context, Result};
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

/// The record of a profile, processor and board; empty if nothing was built yet.
///
/// # Errors
/// If it cannot be read. A damaged record counts as none: it only explains.
pub fn read(store: &Store, resolved: &Resolved) -> Result<Before> {
    let path = path(store, resolved);
    match fs::read(&path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Before::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Adds a step that was done to the record.
///
/// # Errors
/// If it cannot be written.
pub fn add(store: &Store, resolved: &Resolved, plan: &Plan, step: StepName) -> Result<()> {
    let Some(done) = plan.step(step) else { return Ok(()) };
    let mut record = read(store, resolved)?;
    record.insert(step, done.inputs.clone());
    let path = path(store, resolved);
    let folder = path.parent().unwrap_or(store.root());
    fs::create_dir_all(folder).with_context(|| store.full())?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| store.full())?;
    serde_json::to_writer(&mut file, &record).with_context(|| store.full())?;
    file.flush().with_context(|| store.full())?;
    file.persist(&path).with_context(|| store.full())?;
    Ok(())
}

fn path(store: &Store, resolved: &Resolved) -> PathBuf {
    let device = &resolved.device;
    let name = format!("{}-{}-{}.json", device.profile, device.arch, device.board);
    store.root().join("record").join(name)
}
