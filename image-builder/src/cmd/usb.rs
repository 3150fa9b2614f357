//! `farhold usb`: the image of an installation stick.

use crate::execute::report::Report;
use crate::progress::Progress;
use crate::usb::{self, Input};
use anyhow::{Context, Result, anyhow};
use formats::stick::{Prefer, Rules};
use std::path::PathBuf;
use std::process::ExitCode;

/// Makes an installation stick from what `farhold build` left; write it with `farhold flash`.
#[derive(clap::Args)]
pub struct UsbCmd {
    /// Folder that `farhold build --out` wrote, with a release.
    dir: PathBuf,
    /// The stick's image.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The installer, a static program [default: farhold-installer-ARCH beside farhold].
    #[arg(long, value_name = "FILE", env = "FARHOLD_INSTALLER")]
    installer: Option<PathBuf>,
    /// Site configuration for every machine; without one the stick asks.
    #[arg(long, value_name = "FILE")]
    site: Option<PathBuf>,
    /// Folder of site configurations named by serial number or MAC address.
    #[arg(long, value_name = "DIR")]
    sites: Option<PathBuf>,
    /// Buses that the target may be on: nvme, ata, mmc, virtio, scsi, usb [default: all but usb].
    #[arg(long, value_name = "BUS", value_delimiter = ',')]
    target_bus: Vec<String>,
    /// Of several disks take the `smallest` or the `largest`.
    #[arg(long, value_parser = prefer)]
    target_prefer: Option<Prefer>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn prefer(text: &str) -> Result<Prefer> {
    match text {
        "smallest" => Ok(Prefer::Smallest),
        "largest" => Ok(Prefer::Largest),
        _ => Err(anyhow!("must be smallest or largest")),
    }
}

impl UsbCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// As [`usb::make`].
    pub fn run(&self) -> Result<ExitCode> {
        let installer = match &self.installer {
            Some(path) => path.clone(),
            None => self.beside()?,
        };
        let input = Input {
            folder: &self.dir,
            installer: &installer,
            site: self.site.as_deref(),
            sites: self.sites.as_deref(),
            rules: Rules { bus: self.target_bus.clone(), prefer: self.target_prefer, ..Rules::default() },
        };
        let progress = if self.json { Progress::quiet() } else { Progress::stderr() };
        let made = usb::make(&input, &progress)?.write(&self.out)?;
        let plan = &made.plan;
        if self.json {
            let report = serde_json::json!({
                "image": self.out, "bytes": made.bytes, "installer_bytes": made.installer_bytes,
                "sites": made.sites, "plan": plan,
            });
            println!("{}", serde_json::to_string_pretty(&report).context("print the report")?);
        } else {
            println!("{}: {} MiB", self.out.display(), made.bytes >> 20);
            println!("  installs  {} {} for {} ({})", plan.product, plan.version, plan.board, plan.arch);
            match made.sites {
                0 => println!("  asks      which disk, name, address: it has no site's file"),
                n => println!("  sites     {n}: it asks nothing where one fits the machine"),
            }
            println!("next: farhold devices, then farhold flash {} DEVICE", self.out.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn beside(&self) -> Result<PathBuf> {
        let report = Report::read(&self.dir)?;
        let own = std::env::current_exe().context("find this program")?;
        let path = own.with_file_name(format!("farhold-installer-{}", report.arch));
        if path.is_file() {
            return Ok(path);
        }
        Err(anyhow!(
            "no installer at {}: `make programs` builds it, or give one with --installer",
            path.display()
        ))
    }
}
