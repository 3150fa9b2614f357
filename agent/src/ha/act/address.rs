//! An IPv4 address that is where the primary is: a process of its own, because it needs rights that the pair does not.
//!
//! It asks the node beside it, adds or removes the address with `ip`, and tells the neighbours (gratuitous ARP, RFC 5227,
//! section 3). A convenience and no part of safety: an address that is in two places, or in none, costs nothing but time.

use super::config::{Address, Config};
use super::control::{Ask, ask};
use anyhow::{Context, Result, bail, ensure};
use pnet_datalink::{Channel, MacAddr, NetworkInterface};
use std::net::Ipv4Addr;
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
            tracing::info!(ip = %address.ip, interface = address.interface, here = wanted, "the address moves");
            (here, tells) = (wanted, TELLS);
        }
        if here && tells > 0 {
            tell(address)?;
            tells -= 1;
        }
        std::thread::sleep(LOOK);
    }
}

/// `ip address add|del`; what is so already is well.
fn change(address: &Address, how: &str) -> Result<()> {
    let what = format!("{}/{}", address.ip, address.prefix);
    let args = ["address", how, &what, "dev", &address.interface];
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
    let interfaces: Vec<NetworkInterface> = pnet_datalink::interfaces();
    let interface = interfaces.into_iter().find(|interface| interface.name == address.interface);
    let interface = interface.with_context(|| format!("there is no interface {}", address.interface))?;
    let mac = interface.mac.with_context(|| format!("{} has no hardware address", address.interface))?;
    let opened = pnet_datalink::channel(&interface, pnet_datalink::Config::default());
    let Channel::Ethernet(mut sender, _) = opened.with_context(|| format!("open {}", address.interface))?
    else {
        bail!("{} is no Ethernet", address.interface);
    };
    let sent = sender.send_to(&announcement(mac, address.ip), None);
    ensure!(sent.is_some(), "{} takes no frame", address.interface);
    sent.transpose().map(drop).with_context(|| format!("send on {}", address.interface))
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
