//! The few questions of an installation without a site's file. Gives the same value that a file would.

use crate::choose::{Candidate, Existing};
use crate::console::Console;
use crate::inspect::Contents;
use crate::site::{Link, Pair, Site};
use anyhow::{Context, Result};
use formats::pairing::{self, Role};

/// Asks until a whole answer is there.
///
/// # Errors
/// If there is no console.
pub fn ask(console: &mut Console, disks: &[Candidate], pair: bool) -> Result<Site> {
    loop {
        let mut site = Site::default();
        let Some(disk) = ask_disk(console, disks)? else { continue };
        // A device name is not stable; a serial number is, where there is one.
        site.disk.serial = Some(disk.serial.clone()).filter(|serial| !serial.is_empty());
        site.disk.bus = Some(vec![disk.bus.clone()]);
        let Some(existing) = ask_existing(console, disk)? else { continue };
        site.disk.existing = existing;
        let node = console.ask("Name of this machine (Enter: it makes one itself):")?;
        site.node = Some(node).filter(|node| !node.is_empty());
        let address = console.ask("Address as 192.0.2.10/24 (Enter: automatic, DHCP):")?;
        if !address.is_empty() {
            let gateway = console.ask("Router as 192.0.2.1 (Enter: none):")?;
            let dns = console.ask("Name server as 192.0.2.53 (Enter: none):")?;
            site.network.push(Link {
                addresses: vec![address],
                gateway: Some(gateway).filter(|text| !text.is_empty()),
                dns: Some(dns).filter(|text| !text.is_empty()).into_iter().collect(),
                ..Link::default()
            });
        }
        if pair {
            site.pair = ask_pair(console)?;
        }
        match site.checked() {
            Ok(()) => return Ok(site),
            Err(error) => console.say(&format!("{error:#}; please again")),
        }
    }
}

fn ask_pair(console: &mut Console) -> Result<Option<Pair>> {
    let role =
        match console.ask("One of two machines? 1: the first, 2: the second (Enter: neither)")?.as_str() {
            "1" => Role::First,
            "2" => Role::Second,
            _ => return Ok(None),
        };
    let mut pair = Pair { role, address: None, peer: None, code: None, witness: None };
    if role == Role::First {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).context("get random bytes from the kernel")?;
        let code = pairing::code(bytes);
        console.say(&format!("The second machine will ask for this code: {code}"));
        pair.code = Some(code);
        return Ok(Some(pair));
    }
    let peer = console.ask("Address of the first machine, as 192.0.2.10:")?;
    pair.peer = peer.parse().ok();
    pair.code = Some(console.ask("Code that the first machine showed:")?);
    Ok(Some(pair))
}

fn ask_disk<'a>(console: &mut Console, disks: &'a [Candidate]) -> Result<Option<&'a Candidate>> {
    let able: Vec<&Candidate> = disks
        .iter()
        .filter(|disk| !disk.started && disk.contents != Contents::Stick && !disk.read_only)
        .collect();
    console.say("\nDisks of this machine:");
    for (n, disk) in able.iter().enumerate() {
        console.say(&format!("  {}  {}", n + 1, disk.text()));
    }
    let answer = console.ask("Install on which? (number)")?;
    let chosen = answer.parse::<usize>().ok().and_then(|n| able.get(n.checked_sub(1)?).copied());
    if chosen.is_none() {
        console.say("That is none of the numbers.");
    }
    Ok(chosen)
}

fn ask_existing(console: &mut Console, disk: &Candidate) -> Result<Option<Existing>> {
    if disk.contents.free() {
        return Ok(Some(Existing::Refuse));
    }
    let ours = matches!(disk.contents, Contents::Farhold(_));
    let keep = if ours { ", KEEP to renew the system and keep its data" } else { "" };
    let question = format!("{} holds {}. ERASE to lose it{keep}:", disk.device, disk.contents.text());
    Ok(match console.ask(&question)?.as_str() {
        "ERASE" => Some(Existing::Erase),
        "KEEP" if ours => Some(Existing::Keep),
        _ => {
            console.say("Nothing was changed.");
            None
        }
    })
}
