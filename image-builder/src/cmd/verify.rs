//! `farhold verify`: says about a release folder or a repository what a device would say.

use crate::progress::Progress;
use crate::release::keys::read_chain;
use crate::release::verify::{Report, Viewpoint, verify_announced};
use anyhow::{Context, Result, anyhow};
use formats::arch::Arch;
use formats::repository as names;
use formats::trust::Rank;
use std::path::PathBuf;
use std::process::ExitCode;

/// Checks a release folder, or all that a repository announces, as a device would: signatures, manifest, every block, and
/// that the UKI opens the image.
#[derive(clap::Args)]
pub struct VerifyCmd {
    /// Release folder or repository.
    dir: PathBuf,
    /// Root documents that are trusted, as the device's image carries them; without it the release's own are taken.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Product of the device.
    #[arg(long, requires_all = ["board", "arch"])]
    product: Option<String>,
    /// Board of the device.
    #[arg(long, requires = "product")]
    board: Option<String>,
    /// Processor of the device.
    #[arg(long, requires = "product")]
    arch: Option<Arch>,
    /// Channel of the device.
    #[arg(long)]
    channel: Option<u8>,
    /// The release that the device has accepted.
    #[arg(long, value_name = "ROOT.SEQUENCE", value_parser = rank)]
    after: Option<Rank>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn rank(text: &str) -> Result<Rank> {
    let parts = text.split_once('.').and_then(|(root, sequence)| {
        Some(Rank { root_version: root.parse().ok()?, sequence: sequence.parse().ok()? })
    });
    parts.ok_or_else(|| anyhow!("must be a root version and a sequence number, as 1.42"))
}

impl VerifyCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// What a device would refuse, with the reason.
    pub fn run(&self) -> Result<ExitCode> {
        let mut view = Viewpoint { channel: self.channel, accepted: self.after, ..Viewpoint::default() };
        if let Some(file) = &self.root {
            let (_, chain) = read_chain(file)?;
            let root = chain.verify().with_context(|| format!("verify root documents {}", file.display()))?;
            view.root = Some(root.clone());
        }
        if let (Some(product), Some(board), Some(arch)) = (&self.product, &self.board, self.arch) {
            view.device = Some((product.clone(), board.clone(), arch));
        }
        let progress = if self.json { Progress::quiet() } else { Progress::stderr() };
        let mut reports = Vec::new();
        for name in self.announcements()? {
            let report = verify_announced(&self.dir, &name, &view, &progress)
                .with_context(|| format!("{} in {} is not good", name, self.dir.display()))?;
            reports.push(report);
        }
        if self.json {
            let one = |report| serde_json::to_string(report).context("print the report");
            match reports.as_slice() {
                [report] if self.dir.join(names::ANNOUNCE).exists() => println!("{}", one(report)?),
                all => println!("{}", serde_json::to_string(all).context("print the reports")?),
            }
        } else {
            reports.iter().for_each(print);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl VerifyCmd {
    /// Names of the announcements in the folder.
    fn announcements(&self) -> Result<Vec<String>> {
        let folder = self.dir.join(names::ANNOUNCEMENTS);
        if !folder.exists() {
            return Ok(vec![names::ANNOUNCE.to_owned()]);
        }
        let mut found = Vec::new();
        for entry in folder.read_dir().with_context(|| format!("read {}", folder.display()))? {
            let name = entry.with_context(|| format!("read {}", folder.display()))?.file_name();
            found.push(format!("{}/{}", names::ANNOUNCEMENTS, name.to_string_lossy()));
        }
        found.sort();
        Ok(found)
    }
}

fn print(report: &Report) {
    let Report { product, version, board, arch, .. } = report;
    println!("good: {product} {version} for {board} ({arch})");
    println!(
        "  announcement  {} bytes, sequence {}.{}, channel {}, signed by {} keys{}",
        report.frame_bytes,
        report.root_version,
        report.sequence,
        report.channel,
        report.signed_by.len(),
        if report.root_trusted {
            ""
        } else {
            " of the release's own root documents (none were given as trusted)"
        }
    );
    println!("  manifest      {} bytes, {}", report.manifest_bytes, report.manifest);
    if let Some(roothash) = report.roothash {
        println!("  roothash      {roothash}");
    }
    for object in &report.objects {
        println!("  {:>11} bytes  {}  {}, {}", object.bytes, object.id, object.what, object.how);
    }
}
