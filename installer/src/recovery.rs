//! The recovery entry of an installed disk: works with both slots broken, since all it needs is its own boot image.

use crate::choose::Existing;
use crate::console::Console;
use crate::disk::{BlockDevice, Disk};
use crate::inspect::{Contents, Parts, inspect};
use crate::install::{Carried, Meant};
use crate::machine::Node;
use crate::run::install_from;
use crate::site::{Link, Site, WhenDone};
use crate::stick;
use crate::write::seed_at;
use anyhow::{Context, Result, bail};
use formats::layout::{STATE_MARK_BYTES, Slot, StateMark};
use formats::seed::Seed;
use formats::stick::LABEL_BOOT;
use formats::verity::{BLOCK, Parameters};
use std::path::Path;

/// Shows the menu until something ends it.
///
/// # Errors
/// If the disk cannot be read.
pub fn run(console: &mut Console, carried: &Carried, nodes: &[Node]) -> Result<WhenDone> {
    let device = nodes.first().and_then(|node| whole(&node.device)).context("the disk has no name")?;
    let mut disk = BlockDevice::open(Path::new(&device), true)?;
    loop {
        // Each time: an installation that failed may have changed it.
        let parts = match inspect(&disk, carried.plan.arch) {
            Contents::Farhold(parts) | Contents::Unused(parts) => parts,
            other @ (Contents::Empty
            | Contents::Begun
            | Contents::Stick
            | Contents::Foreign(_)
            | Contents::Unreadable(_)) => bail!("{device} holds {}", other.text()),
        };
        console.say(
            "\nRecovery\n  1  show status\n  2  install again from a stick\n  3  set an address for the next start\n  \
             4  factory reset: all data of this device is lost\n  5  restart\n  6  power off",
        );
        let done = match console.ask("Number:")?.as_str() {
            "1" => status(console, &disk, &parts),
            "2" => match reinstall(console, carried, &device)? {
                Some(done) => return Ok(done),
                None => Ok(()),
            },
            "3" => address(console, &mut disk, &parts),
            "4" => reset(console, &mut disk, &parts),
            "5" => return Ok(WhenDone::Reboot),
            "6" => return Ok(WhenDone::Poweroff),
            _ => Ok(()),
        };
        if let Err(error) = done {
            console.say(&format!("FAILED: {error:#}"));
        }
    }
}

/// `/dev/sda` of `/dev/sda6`, `/dev/nvme0n1` of `/dev/nvme0n1p6`.
fn whole(partition: &str) -> Option<String> {
    let name = partition.trim_end_matches(|c: char| c.is_ascii_digit());
    let numbered = name.strip_suffix('p').filter(|rest| rest.ends_with(|c: char| c.is_ascii_digit()));
    Some(numbered.unwrap_or(name).to_owned()).filter(|name| name.len() > "/dev/".len())
}

fn status(console: &mut Console, disk: &dyn Disk, parts: &Parts) -> Result<()> {
    for (slot, verity) in Slot::BOTH.into_iter().zip(parts.verity) {
        let mut blocks = [0; 2 * BLOCK];
        disk.read(verity.start, &mut blocks)?;
        let what = match Parameters::parse(&blocks[..BLOCK]) {
            Ok(found) if blocks[BLOCK..].iter().any(|byte| *byte != 0) => {
                let roothash = formats::hex::encode(&found.hash(&blocks[BLOCK..])[..4]);
                format!("an image of {} MiB, roothash {roothash}", found.data_blocks >> 8)
            }
            Ok(_) => "half-written".into(),
            Err(error) => format!("{error}"),
        };
        console.say(&format!("  slot {slot}: {what}"));
    }
    let mut mark = [0; STATE_MARK_BYTES];
    disk.read(parts.state.start + parts.state.bytes - STATE_MARK_BYTES as u64, &mut mark)?;
    let state = match StateMark::parse(&mark) {
        Some(StateMark::Made) => "made",
        Some(StateMark::Making) => "will be made anew at the next start",
        Some(StateMark::Empty) | None => "not made yet, or made by an older version",
    };
    console.say(&format!("  state partition: {} MiB, {state}", parts.state.bytes >> 20));
    Ok(())
}

fn reinstall(console: &mut Console, carried: &Carried, device: &str) -> Result<Option<WhenDone>> {
    let Some(nodes) = stick::find(None)? else {
        console.say("No stick is there. Put one in, wait until its light is calm, and choose this again.");
        return Ok(None);
    };
    let question = "KEEP to renew the system and keep its data, ERASE to lose all (Enter: neither):";
    let existing = match console.ask(question)?.as_str() {
        "KEEP" => Existing::Keep,
        "ERASE" => Existing::Erase,
        _ => {
            console.say("Nothing was changed.");
            return Ok(None);
        }
    };
    // Seen from the installation, it is the stick that is spared and this disk that is written.
    let started = stick::node(&nodes, LABEL_BOOT).map(|node| node.entry.guid);
    let carried = Carried { plan: carried.plan.clone(), roots: carried.roots.clone(), started };
    let meant = Meant::This { device: device.to_owned(), existing };
    install_from(console, &carried, &nodes, &meant)
}

fn address(console: &mut Console, disk: &mut dyn Disk, parts: &Parts) -> Result<()> {
    let address = console.ask("Address as 192.0.2.10/24 (Enter: automatic, DHCP):")?;
    let mut link = Link::default();
    if !address.is_empty() {
        link.addresses.push(address);
        let gateway = console.ask("Router as 192.0.2.1 (Enter: none):")?;
        link.gateway = Some(gateway).filter(|text| !text.is_empty());
    }
    let site = Site { network: vec![link], ..Site::default() };
    site.checked()?;
    let seed: Seed = site.seed(parts.state_guid, None)?;
    disk.write(seed_at(parts.state), &seed.encode()?)?;
    disk.sync()?;
    console.say("The device takes it at its next start.");
    Ok(())
}

fn reset(console: &mut Console, disk: &mut dyn Disk, parts: &Parts) -> Result<()> {
    if console.ask("Type RESET to lose all data of this device:")? != "RESET" {
        console.say("Nothing was changed.");
        return Ok(());
    }
    // The next start makes the file system anew where it finds this mark, whatever stands before it.
    let at = parts.state.start + parts.state.bytes - STATE_MARK_BYTES as u64;
    disk.write(at, &StateMark::Making.encode())?;
    disk.sync()?;
    console.say("The next start makes the state partition anew.");
    Ok(())
}

#[cfg(test)]
mod tests;
