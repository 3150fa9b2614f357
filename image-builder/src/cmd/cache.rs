//! `farhold cache`: where the cache is and how much is in it.

use crate::store::Store;
use anyhow::{Context, Result};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

/// Shows where the cache is and how much is in it.
#[derive(clap::Args)]
pub struct CacheCmd {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl CacheCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the cache cannot be opened or read.
    pub fn run(&self) -> Result<ExitCode> {
        let store = Store::from_environment()?;
        let mut bytes = 0;
        add_bytes(store.root(), &mut bytes)?;
        if self.json {
            println!("{}", serde_json::json!({ "path": store.root(), "bytes": bytes }));
        } else {
            println!("{}: {} MiB", store.root().display(), bytes >> 20);
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Adds up what files occupy on disk, in bytes.
fn add_bytes(folder: &Path, bytes: &mut u64) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry.with_context(|| format!("read {}", folder.display()))?;
        // What another build removes meanwhile does not count.
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            add_bytes(&entry.path(), bytes)?;
        } else {
            *bytes += meta.blocks() * 512;
        }
    }
    Ok(())
}
