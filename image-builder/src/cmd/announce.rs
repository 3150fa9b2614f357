//! `farhold announce`: writes a new announcement for a release that exists.

use crate::cmd::keys::signing_time;
use crate::release::announce::{Changes, announce};
use crate::release::keys::KeyFolder;
use anyhow::{Context, Result};
use formats::frame::Scope;
use std::path::PathBuf;
use std::process::ExitCode;

/// Announces a release anew: to another channel, site or device, with another validity, under a newer root document, or as
/// a rescue. What it consists of stays the same.
#[derive(clap::Args)]
pub struct AnnounceCmd {
    /// Release folder; its announcement is replaced.
    release: PathBuf,
    /// Key folder: root documents, and those private keys that are here.
    #[arg(long, value_name = "DIR")]
    keys: PathBuf,
    /// Sequence number; devices follow rising ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    sequence: Option<u32>,
    /// Channel; 0 is `stable`.
    #[arg(long, value_name = "N")]
    channel: Option<u8>,
    /// Only for devices of this site.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["device", "everybody"])]
    site: Option<String>,
    /// Only for this device.
    #[arg(long, value_name = "ID", conflicts_with = "everybody")]
    device: Option<String>,
    /// For every device of the product and board.
    #[arg(long)]
    everybody: bool,
    /// Hours after which devices report it as possibly frozen and wait; 0 for never.
    #[arg(long, value_name = "HOURS")]
    validity_h: Option<u16>,
    /// As a rescue: signed by root keys, and never held back by expiry.
    #[arg(long)]
    rescue: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl AnnounceCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the folder holds no release, nothing would be new, or a file cannot be read or written.
    pub fn run(&self) -> Result<ExitCode> {
        let keys = KeyFolder::open(&self.keys)?;
        let changes = Changes {
            sequence: self.sequence,
            channel: self.channel,
            scope: self.scope(),
            validity_h: self.validity_h,
            rescue: self.rescue,
        };
        let standing = announce(&self.release, &changes, &keys, signing_time()?)
            .with_context(|| format!("announce {}", self.release.display()))?;
        if self.json {
            println!("{}", serde_json::to_string(&standing).context("print where it stands")?);
            return Ok(ExitCode::SUCCESS);
        }
        let path = self.release.display();
        println!(
            "{path}: announced as {} (root version, sequence), signed by {} of {} {} keys{}",
            standing.rank,
            standing.signatures,
            standing.threshold,
            standing.role,
            if standing.signatures < usize::from(standing.threshold) {
                format!("; others: farhold sign {path} --key FILE")
            } else {
                String::new()
            }
        );
        Ok(ExitCode::SUCCESS)
    }

    fn scope(&self) -> Option<Scope> {
        match (&self.site, &self.device) {
            (Some(site), _) => Some(Scope::site(site)),
            (None, Some(device)) => Some(Scope::device(device)),
            (None, None) => self.everybody.then_some(Scope::All),
        }
    }
}
