//! An IPv4 address that is where the primary is: a process of its own, because it needs rights that the pair does not.
//!
//! It asks the node beside it, adds or removes the address with `ip`, and tells the neighbours (gratuitous ARP, RFC 5227,
//! section 3). A convenience and no part of safety: an address that is in two places, or in none, costs nothing but time.

use super::config::{Address, Config};
use super::control::{Ask, ask};
use anyhow::{Context, Result, bail, ensure};
use pnet_datalink::{Channel, MacAddr, NetworkInterface};
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

/// Between two questions to the node.
const LOOK: Duration = Duration::from_millis(200);
/// The neighbours are told so often, since nobody confirms it.
const TELLS: u32 = 5;

/// Keeps the address where it belongs until it is killed; ends at once if none is configured.
///
/// # Errors
/// If the interface cannot be used.
pub fn follow(config: &Config) -> Result<()> {
    let Some(address) = &config.address else {
        tracing::info!("the configuration names no `address`");
        return Ok(());
    };
    let (mut here, mut tells) = (false, 0);
    // Whatever an earlier process left.
    change(address, "del")?;
    loop {
        let wanted = match ask(&config.run, Ask::Status) {
            Ok(status) => status["port"] == "Local",
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the node does not answer");
                false
            }
        };
        if wanted != here {
            change(address, if wanted { "add" } else { "del" })?;
            tracing::info!(ip = %address.ip, here = wanted, "the address moves");
            (here, tells) = (wanted, TELLS);
        }
        if here && tells > 0 {
            tell(address)?;
            tells -= 1;
        }
        std::thread::sleep(LOOK);
    }
}

/// The interface that the configuration names, or the one in the address' network.
fn find(address: &Address) -> Option<NetworkInterface> {
    let mask = u32::MAX.checked_shl(32 - u32::from(address.prefix)).unwrap_or(0);
    let network = |ip: Ipv4Addr| ip.to_bits() & mask;
    let beside = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => *ip != address.ip && network(*ip) == network(address.ip),
        IpAddr::V6(_) => false,
    };
    pnet_datalink::interfaces().into_iter().find(|interface| match &address.interface {
        Some(name) => interface.name == *name,
        None => !interface.is_loopback() && interface.ips.iter().any(|net| beside(&net.ip())),
    })
}

fn needed(address: &Address) -> Result<NetworkInterface> {
    find(address).with_context(|| match &address.interface {
        Some(name) => format!("there is no interface {name}"),
        None => format!(
            "no interface has an address in the network of {}/{}: give the node one, or name the interface in `address`",
            address.ip, address.prefix
        ),
    })
}

/// `ip address add|del`; what is so already is well.
fn change(address: &Address, how: &str) -> Result<()> {
    let what = format!("{}/{}", address.ip, address.prefix);
    let interface = match how {
        // Without its interface it is nowhere.
        "del" if find(address).is_none() => return Ok(()),
        _ => needed(address)?.name,
    };
    let args = ["address", how, &what, "dev", &interface];
    let output = Command::new("ip").args(args).env("LC_ALL", "C").output().context("start `ip`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let already = ["File exists", "already assigned", "Cannot assign requested address", "Address not found"];
    if !output.status.success() && !already.iter().any(|words| said.contains(words)) {
        bail!("`ip {}` ended with {}: {}", args.join(" "), output.status, said.trim());
    }
    Ok(())
}

/// Tells everybody on the link where the address is now.
fn tell(address: &Address) -> Result<()> {
    let interface = needed(address)?;
    let name = &interface.name;
    let mac = interface.mac.with_context(|| format!("{name} has no hardware address"))?;
    let opened = pnet_datalink::channel(&interface, pnet_datalink::Config::default());
    let Channel::Ethernet(mut sender, _) = opened.with_context(|| format!("open {name}"))? else {
        bail!("{name} is no Ethernet");
    };
    let sent = sender.send_to(&announcement(mac, address.ip), None);
    ensure!(sent.is_some(), "{name} takes no frame");
    sent.transpose().map(drop).with_context(|| format!("send on {name}"))
}

/// An ARP request for an address that names its own sender: whoever knows the address updates what it knows.
fn announcement(mac: MacAddr, ip: Ipv4Addr) -> [u8; 42] {
    let (mac, ip) = (mac.octets(), ip.octets());
    let parts: [&[u8]; 8] = [
        &[0xff; 6],
        &mac,
        // ARP; Ethernet, IPv4, lengths 6 and 4, request.
        &[0x08, 0x06, 0x00, 0x01, 0x08, 0x00, 6, 4, 0x00, 0x01],
        &mac,
        &ip,
        &[0; 6],
        &ip,
        &[],
    ];
    let mut frame = [0; 42];
    frame.iter_mut().zip(parts.concat()).for_each(|(to, from)| *to = from);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_names_its_sender_twice() {
        let frame = announcement(MacAddr::new(2, 0, 0, 0, 0, 7), Ipv4Addr::new(10, 0, 0, 9));
        assert_eq!(frame[..14], [255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(frame[20..22], [0, 1], "a request");
        assert_eq!((&frame[28..32], &frame[38..42]), (&[10, 0, 0, 9][..], &[10, 0, 0, 9][..]));
        assert_eq!(frame[22..28], [2, 0, 0, 0, 0, 7]);
    }
}
