//! `farhold devices`: disks, cards and sticks that an image could be written to.

use crate::flash::inuse;
use anyhow::{Context, Result};
use formats::arch::Arch;
use installer::choose::Candidate;
use installer::machine;
use serde::Serialize;
use std::process::ExitCode;

/// Lists disks, cards and sticks with model, size and bus, and says which `farhold flash` would take.
#[derive(clap::Args)]
pub struct DevicesCmd {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// One device.
#[derive(Serialize)]
struct Device {
    device: String,
    bus: String,
    bytes: u64,
    model: String,
    serial: String,
    removable: bool,
    read_only: bool,
    contents: String,
    /// Why `farhold flash` refuses it; absent if it does not.
    refused: Option<String>,
}

impl DevicesCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the kernel's list of disks cannot be read.
    pub fn run(&self) -> Result<ExitCode> {
        let uses = inuse::disks();
        let disks = machine::disks(Arch::host().unwrap_or(Arch::X86_64), None)?;
        let device = |disk: &Candidate| Device {
            refused: uses
                .get(disk.device.trim_start_matches("/dev/"))
                .cloned()
                .or_else(|| disk.read_only.then(|| "write-protected".to_owned())),
            device: disk.device.clone(),
            bus: disk.bus.clone(),
            bytes: disk.bytes,
            model: disk.model.clone(),
            serial: disk.serial.clone(),
            removable: disk.removable,
            read_only: disk.read_only,
            contents: disk.contents.text(),
        };
        let devices: Vec<Device> = disks.iter().map(device).collect();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&devices).context("print the list")?);
            return Ok(ExitCode::SUCCESS);
        }
        if devices.is_empty() {
            println!("no disk, card or stick is there");
        }
        for device in &devices {
            let gib = device.bytes as f64 / f64::from(1 << 30);
            let named = [&device.model, &device.serial].into_iter().filter(|text| !text.is_empty());
            let named: Vec<&str> = named.map(String::as_str).collect();
            println!("{:14} {:6} {gib:8.1} GiB  {}", device.device, device.bus, named.join(", "));
            match &device.refused {
                Some(why) => println!("{:14} refused: {why}", ""),
                None => println!("{:14} holds {}", "", device.contents),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
