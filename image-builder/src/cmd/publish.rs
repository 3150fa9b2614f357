//! `farhold publish`: puts a release into a repository, with deltas from earlier releases.

use crate::progress::Progress;
use crate::release::keys::{KeyFolder, catalogue_key};
use crate::release::publish::{Publish, Published, publish};
use crate::release::repository::Repository;
use anyhow::{Context, Result, anyhow};
use formats::object::BlockSize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Puts a release into a repository that any web server, stick or block server can carry, with deltas from earlier
/// releases.
#[derive(clap::Args)]
pub struct PublishCmd {
    /// Release folder, as `farhold build` makes it.
    release: PathBuf,
    /// Repository folder; made if it is not there.
    #[arg(long, visible_alias = "to", value_name = "DIR")]
    repo: PathBuf,
    /// A release folder to make deltas from, besides those that the repository holds; repeat for each.
    #[arg(long, value_name = "RELEASE")]
    from: Vec<PathBuf>,
    /// Make deltas from this many of the repository's earlier releases, newest first.
    #[arg(long, default_value_t = 3, value_name = "N")]
    bases: usize,
    /// The catalogue key, or a key folder that holds it; without it no deltas are published.
    #[arg(long, visible_alias = "keys", value_name = "PATH")]
    key: Option<PathBuf>,
    /// Then take all but the newest N releases of each target out, with what only they need.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Also offer a full payload of this zstd level (19 takes about a minute for 150 MB).
    #[arg(long, value_name = "LEVEL")]
    level: Option<i32>,
    /// Make no adaptive payload, from which devices take what they lack whatever they run.
    #[arg(long)]
    no_adaptive: bool,
    /// Announce it under this number; needs the release keys [default: its own, or the next free one if --key holds
    /// the release keys].
    #[arg(long, value_name = "N")]
    sequence: Option<u32>,
    /// Block size of what is made, in bytes: 65536, or at most 4096 for modems.
    #[arg(long, default_value = "65536", value_name = "BYTES", value_parser = block)]
    block: BlockSize,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    plan: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn block(text: &str) -> Result<BlockSize> {
    let bytes: u32 = text.parse().context("must be a number of bytes")?;
    let log2 = bytes.is_power_of_two().then(|| bytes.trailing_zeros() as u8);
    log2.and_then(BlockSize::from_log2).ok_or_else(|| anyhow!("must be a power of two from 256 to 4194304"))
}

impl PublishCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If a device would refuse the release, the repository has a newer one, or a file cannot be read or written.
    pub fn run(&self) -> Result<ExitCode> {
        let repository = Repository::at(&self.repo)?;
        let key = self.key.as_deref().map(catalogue_key).transpose()?;
        let keys = self.key.as_deref().filter(|path| path.is_dir()).map(KeyFolder::open).transpose()?;
        let progress = if self.json { Progress::quiet() } else { Progress::stderr() };
        let published = publish(&Publish {
            release: &self.release,
            repository: &repository,
            from: &self.from,
            bases: self.bases,
            key: key.as_ref(),
            keep: self.keep,
            level: self.level,
            adaptive: !self.no_adaptive,
            keys: keys.as_ref(),
            sequence: self.sequence,
            block: self.block,
            plan: self.plan,
            progress: &progress,
        })
        .with_context(|| format!("publish {} to {}", self.release.display(), self.repo.display()))?;
        if self.json {
            println!("{}", serde_json::to_string(&published).context("print the report")?);
        } else {
            print(&published);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(published: &Published) {
    let Published { product, board, version, rank, full_bytes, .. } = published;
    let done = if published.plan { "would publish" } else { "published" };
    println!("{done}: {product} {version} for {board}, {rank} (root version, sequence)");
    println!("  announced as  {}", published.announcement);
    println!("  without base  {full_bytes} bytes to fetch");
    for payload in &published.payloads {
        let from = match (&payload.from, payload.kind) {
            (Some(from), _) => format!("from {from}"),
            (None, "adaptive") => "and more, adaptive".to_owned(),
            (None, _) => "packed harder".to_owned(),
        };
        let share = |bytes: u64| bytes as f64 * 100.0 / payload.own_bytes.max(1) as f64;
        match payload.bytes {
            Some(bytes) => println!(
                "  {:12}  {bytes} bytes {from}, {:.1} % of the release's own {} ({})",
                payload.target,
                share(bytes),
                payload.own_bytes,
                payload.outcome
            ),
            None => println!("  {:12}  {from} ({})", payload.target, payload.outcome),
        }
    }
    for note in &published.notes {
        println!("  note: {note}");
    }
}
