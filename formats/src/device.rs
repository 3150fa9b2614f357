//! The profile as the device sees it: resolved, typed, part of the verified root at [`DEVICE_PROFILE`].

use crate::arch::Arch;
use crate::mqtt::Address;
use crate::tariff::CarrierSettings;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Where the image carries the [`DeviceProfile`].
pub const DEVICE_PROFILE: &str = "/usr/lib/farhold/profile.json";

/// Where the image carries the pattern of host names; the first `%` stands for eight digits of the machine.
pub const HOST_NAME_PATTERN: &str = "/usr/lib/farhold/hostname";

/// What this device is meant to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Profile name.
    pub profile: String,
    /// Release version.
    pub version: String,
    /// Product that releases are matched against.
    pub product: String,
    /// Processor.
    pub arch: Arch,
    /// Board that releases are matched against.
    pub board: String,
    /// Packs in layer order.
    pub layers: Vec<DeviceLayer>,
    /// Checks that decide whether a boot is healthy.
    pub health: Vec<HealthCheck>,
    /// Two-node settings; `None` for a single node.
    pub ha: Option<HaSettings>,
    /// Where new releases come from by themselves; `None` if an operator brings them.
    #[serde(default)]
    pub update: Option<UpdateSettings>,
}

/// Where new releases come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSettings {
    /// A folder on the device, or an address that begins with `http://`, `https://`, `mqtt://`, `mqtts://`, `serial:` or
    /// `cast:`.
    pub source: String,
    /// How often it is asked, seconds.
    pub poll_s: u32,
    /// Channel that is followed; 0 is `stable`.
    #[serde(default)]
    pub channel: u8,
    /// Carriers with budgets, the most wanted first; `source` counts for nothing then, but for a broker that reports go to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carriers: Vec<CarrierSettings>,
}

/// File on the state partition that names the device's site, since one image serves many: one line of at most
/// [`SITE_MAX`] bytes.
pub const SITE: &str = "/var/lib/farhold/site";
/// Longest name of a site, bytes.
pub const SITE_MAX: usize = 64;

/// What an installer leaves of a site's configuration for the agent, beside [`SITE`].
pub const SITE_FILE: &str = "/var/lib/farhold/site.json";
/// Longest such file, bytes.
pub const SITE_FILE_MAX: u64 = 64 << 10;

/// [`SITE_FILE`]. What it does not say is as the image has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteFile {
    /// Carriers instead of the profile's, the most wanted first.
    #[serde(default)]
    pub carriers: Option<Vec<CarrierSettings>>,
}

/// Whether carriers can be used together: each makes sense, is another, and leads to something that the agent opens.
///
/// # Errors
/// The index of the first that does not, and why.
pub fn check_carriers(carriers: &[CarrierSettings]) -> Result<(), (usize, String)> {
    for (n, carrier) in carriers.iter().enumerate() {
        if carriers[..n].iter().any(|other| other.name == carrier.name) {
            return Err((n, format!("there are two carriers `{}`", carrier.name)));
        }
        carrier.check().and_then(|()| check_source(&carrier.source)).map_err(|why| (n, why))?;
    }
    Ok(())
}

/// Whether the agent can open a source of updates.
///
/// # Errors
/// Why not.
pub fn check_source(source: &str) -> Result<(), String> {
    const KNOWN: [&str; 7] = ["http://", "https://", "mqtt://", "mqtts://", "serial:/dev/", "cast:", "/"];
    if Address::is_meant(source) {
        Address::parse(source).map_err(|why| why.to_string())?;
    }
    if !KNOWN.iter().any(|start| source.starts_with(start)) || source.contains(char::is_whitespace) {
        return Err(format!("`{source}` is no source of updates"));
    }
    Ok(())
}

/// One layer as built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceLayer {
    /// Layer kind: os, kubernetes, cni, csi, addon.
    pub layer: String,
    /// Pack name.
    pub pack: String,
    /// Pack version.
    pub version: String,
}

/// A declared health check with its deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Unique name in the profile.
    pub name: String,
    /// Seconds after boot by which it must have passed.
    pub deadline_s: u32,
    /// What is checked.
    #[serde(flatten)]
    pub probe: Probe,
}

/// What a health check looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probe {
    /// A systemd unit is active.
    Unit {
        /// Unit name.
        unit: String,
    },
    /// A TCP port on this machine accepts.
    Port {
        /// Port number.
        port: u16,
    },
    /// An HTTP request to this machine answers 2xx.
    Http {
        /// URL; the host must be a loopback address.
        url: String,
    },
    /// This node is Ready in Kubernetes.
    NodeReady,
    /// A file system has room.
    Disk {
        /// Mount point.
        path: String,
        /// Least free share, percent.
        min_free_percent: u8,
    },
    /// A command ends with 0.
    Command {
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// Two-node settings (design section 8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HaSettings {
    /// What to do when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// Witness address; excludes `prefer`.
    pub witness: Option<String>,
    /// Virtual IP with prefix length that follows the primary.
    pub virtual_ip: Option<String>,
}

/// Address and length of the prefix of `192.0.2.10/24`; nothing if it is none, one that no host of that network can have, or a
/// network of one address, which no interface has another one of.
pub fn virtual_ip(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (ip, prefix) = text.split_once('/')?;
    let (ip, prefix) = (ip.parse::<Ipv4Addr>().ok()?, prefix.parse().ok()?);
    let host = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !ip.is_broadcast();
    (host && (1..=31).contains(&prefix) && !is_of_all(ip, prefix)).then_some((ip, prefix))
}

/// Whether it is the network itself, or its broadcast address; two hosts alone have neither (RFC 3021).
fn is_of_all(ip: Ipv4Addr, prefix: u8) -> bool {
    let hosts = u32::MAX >> prefix;
    prefix < 31 && [0, hosts].contains(&(ip.to_bits() & hosts))
}

/// Policy on loss of the peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnPeerLoss {
    /// Ask the witness; go on only with its vote.
    Witness,
    /// Write nothing until an operator confirms.
    Hold,
    /// The named node goes on alone: `first` or `second`, as they were paired, or a host name.
    Prefer(String),
}
