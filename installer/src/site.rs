//! The site configuration: `site.yaml` on the stick, or a file of the folder `sites` named by serial number or MAC
//! address; and what of it goes to the device. Pure: text in, values out. Shape: `docs/operators-guide.md`.

use crate::choose::Existing;
use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::device::{SITE_MAX, check_carriers};
use formats::gpt::Guid;
use formats::seed::{Seed, SeedFile};
use formats::stick::{Prefer, Rules};
use formats::tariff::CarrierSettings;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Longest file that is read, bytes.
pub const FILE_MAX: u64 = 64 << 10;

/// What a site says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Name of this node; becomes the host name.
    #[serde(default)]
    pub node: Option<String>,
    /// Name of the site; releases may be meant for one.
    #[serde(default)]
    pub site: Option<String>,
    /// Which disk.
    #[serde(default)]
    pub disk: Target,
    /// Networks, instead of the image's.
    #[serde(default)]
    pub network: Vec<Link>,
    /// Proxy for HTTP and HTTPS, as `http://192.0.2.1:3128`.
    #[serde(default)]
    pub proxy: Option<String>,
    /// What the two nodes of a pair know each other by.
    #[serde(default)]
    pub pair: Option<Value>,
    /// Given to whoever enrols the device.
    #[serde(default)]
    pub enrolment_token: Option<String>,
    /// Carriers of updates instead of the profile's, as [`CarrierSettings`].
    #[serde(default)]
    pub carriers: Option<Value>,
    /// What happens at the end.
    #[serde(default)]
    pub when_done: WhenDone,
}

/// Which disk, and what may happen to it. As [`Rules`], flat.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// What may happen to what stands there.
    #[serde(default)]
    pub existing: Existing,
    /// Buses.
    #[serde(default)]
    pub bus: Option<Vec<String>>,
    /// Least size, GiB.
    #[serde(default)]
    pub min_gib: Option<u64>,
    /// Largest size, GiB.
    #[serde(default)]
    pub max_gib: Option<u64>,
    /// Part of the model's name.
    #[serde(default)]
    pub model: Option<String>,
    /// Serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// Which of several.
    #[serde(default)]
    pub prefer: Option<Prefer>,
}

/// One network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Name of the adapter, or a pattern; absent for every wired one.
    #[serde(default)]
    pub interface: Option<String>,
    /// Its hardware address, instead of a name.
    #[serde(default)]
    pub mac: Option<String>,
    /// Addresses with prefix length; none for DHCP.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Router.
    #[serde(default)]
    pub gateway: Option<String>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<String>,
}

/// What happens after an installation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenDone {
    /// The machine goes off: whoever stands before it sees that it is done, and takes the stick.
    #[default]
    Poweroff,
    /// The machine starts again, from its disk if the firmware prefers it.
    Reboot,
}

/// The file of `sites` that is meant for a machine with these serial numbers and MAC addresses, serial numbers first.
/// Case and punctuation do not count: FAT takes no colons.
pub fn pick<'a>(names: &'a [String], ids: &[String]) -> Option<&'a String> {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let stem = |name: &str| name.strip_suffix(".yaml").or(name.strip_suffix(".yml")).map(plain);
    let ids = ids.iter().map(|id| plain(id)).filter(|id| !id.is_empty());
    ids.into_iter().find_map(|id| names.iter().find(|name| stem(name).as_ref() == Some(&id)))
}

impl Site {
    /// Reads a site's file.
    ///
    /// # Errors
    /// With line and column, or the first value that makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let site: Self = serde_saphyr::from_str(text)?;
        site.checked()?;
        Ok(site)
    }

    /// Whether every value makes sense.
    ///
    /// # Errors
    /// The first that does not.
    pub fn checked(&self) -> Result<()> {
        if let Some(node) = &self.node {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            let good = !node.is_empty() && node.len() <= 63 && node.bytes().all(plain);
            ensure!(
                good && !node.starts_with('-') && !node.ends_with('-'),
                "node `{node}`: must be 1 to 63 letters, digits and inner hyphens"
            );
        }
        if let Some(site) = &self.site {
            let good = !site.trim().is_empty() && site.len() <= SITE_MAX && !site.contains(char::is_control);
            ensure!(good, "site `{site}`: must be one line of 1 to {SITE_MAX} bytes");
        }
        if let Some(proxy) = &self.proxy {
            let plain = !proxy.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"');
            ensure!(plain && proxy.contains("://"), "proxy `{proxy}`: must be as http://HOST:PORT");
        }
        for (n, link) in self.network.iter().enumerate() {
            link.check().with_context(|| format!("network {}", n + 1))?;
        }
        self.carriers.as_ref().map_or(Ok(()), check_known_carriers)
    }

    /// The rules for the target: the site's where it says something, else the profile's.
    pub fn rules(&self, profile: &Rules) -> Rules {
        let own = &self.disk;
        Rules {
            bus: own.bus.clone().unwrap_or_else(|| profile.bus.clone()),
            min_gib: own.min_gib.or(profile.min_gib),
            max_gib: own.max_gib.or(profile.max_gib),
            model: own.model.clone().or_else(|| profile.model.clone()),
            serial: own.serial.clone().or_else(|| profile.serial.clone()),
            prefer: own.prefer.or(profile.prefer),
        }
    }

    /// The files that the device with this state partition finds at its first boot. `machine_id` is its identity; `None`
    /// keeps the one that it has.
    ///
    /// # Errors
    /// If they cannot be encoded.
    pub fn seed(&self, partition: Guid, machine_id: Option<&str>) -> Result<Seed> {
        let mut seed = Seed { partition: partition.to_string(), files: Vec::new() };
        let mut add = |path: &str, mode, text: String| {
            seed.files.push(SeedFile { path: path.to_owned(), mode, text });
        };
        if let Some(id) = machine_id {
            add("etc/machine-id", 0o444, format!("{id}\n"));
        }
        if let Some(node) = &self.node {
            add("etc/hostname", 0o644, format!("{node}\n"));
        }
        if let Some(site) = &self.site {
            add("site", 0o644, format!("{}\n", site.trim()));
        }
        for (n, link) in self.network.iter().enumerate() {
            add(&format!("etc/systemd/network/10-site-{n}.network"), 0o644, link.text());
        }
        if let Some(proxy) = &self.proxy {
            let names = ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"];
            let mut text: String = names.iter().map(|name| format!("{name}=\"{proxy}\"\n")).collect();
            text.push_str("no_proxy=\"localhost,127.0.0.0/8,::1\"\nNO_PROXY=\"localhost,127.0.0.0/8,::1\"\n");
            add("site.env", 0o600, text);
        }
        let said = [&self.pair, &self.carriers].iter().any(|value| value.is_some())
            || [&self.site, &self.enrolment_token].iter().any(|text| text.is_some());
        if said {
            let value = json!({
                "site": self.site, "node": self.node, "pair": self.pair,
                "enrolment_token": self.enrolment_token, "carriers": self.carriers,
            });
            add("site.json", 0o600, serde_json::to_string_pretty(&value).context("encode site.json")? + "\n");
        }
        Ok(seed)
    }
}

/// A word that the agent does not know would be a budget that nobody keeps.
fn check_known_carriers(said: &Value) -> Result<()> {
    let carriers: Vec<CarrierSettings> = serde_json::from_value(said.clone()).context("carriers")?;
    check_carriers(&carriers).map_err(|(n, why)| anyhow!("carrier {}: {why}", n + 1))?;
    let known = serde_json::to_value(&carriers).context("carriers")?;
    unknown(said, &known).map_or(Ok(()), |word| bail!("carriers: `{word}` is not known"))
}

/// The first key of `said` that `known`, of the same shape, has not.
fn unknown<'a>(said: &'a Value, known: &Value) -> Option<&'a str> {
    match (said, known) {
        (Value::Object(said), Value::Object(known)) => {
            said.iter().find_map(|(key, value)| match known.get(key) {
                Some(known) => unknown(value, known),
                None => Some(key.as_str()),
            })
        }
        (Value::Array(said), Value::Array(known)) => {
            said.iter().zip(known).find_map(|(said, known)| unknown(said, known))
        }
        (_, _) => None,
    }
}

impl Link {
    fn check(&self) -> Result<()> {
        let plain = |text: &String| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:*".contains(&b));
        if let Some(bad) = self.interface.iter().chain(&self.mac).find(|text| text.is_empty() || !plain(text))
        {
            bail!("`{bad}`: must be an adapter's name, a pattern as en*, or a hardware address");
        }
        for address in &self.addresses {
            let (ip, prefix) = address.split_once('/').unwrap_or((address, ""));
            let most = match ip.parse() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => bail!("address `{address}`: must be as 192.0.2.10/24"),
            };
            ensure!(
                prefix.parse::<u8>().is_ok_and(|n| n <= most),
                "address `{address}`: needs a prefix length, as {ip}/24"
            );
        }
        for ip in self.gateway.iter().chain(&self.dns) {
            ensure!(ip.parse::<IpAddr>().is_ok(), "`{ip}`: must be an IP address");
        }
        ensure!(self.gateway.is_none() || !self.addresses.is_empty(), "gateway without addresses");
        Ok(())
    }

    /// As `systemd.network(5)` wants it.
    fn text(&self) -> String {
        let mut text = match (&self.mac, &self.interface) {
            (Some(mac), _) => format!("[Match]\nMACAddress={mac}\n"),
            (None, Some(name)) => format!("[Match]\nName={name}\n"),
            (None, None) => "[Match]\nName=en* eth*\n".to_owned(),
        };
        text.push_str(if self.addresses.is_empty() { "\n[Network]\nDHCP=yes\n" } else { "\n[Network]\n" });
        let lines = [("Address", &self.addresses), ("DNS", &self.dns)];
        for (key, values) in lines {
            values.iter().for_each(|value| text.push_str(&format!("{key}={value}\n")));
        }
        if let Some(gateway) = &self.gateway {
            text.push_str(&format!("Gateway={gateway}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::device::SiteFile;

    const WHOLE: &str = "
node: pump-1
site: north
disk: {existing: keep, bus: [nvme], min_gib: 16, prefer: smallest}
network:
  - {mac: '52:54:00:12:34:56', addresses: [192.0.2.10/24], gateway: 192.0.2.1, dns: [192.0.2.53]}
  - {interface: 'wwan*'}
proxy: http://192.0.2.1:3128
pair: {role: first, code: 1234-5678}
enrolment_token: abc
carriers: [{name: sat, source: 'https://updates.example/r', day_kib: 100, price: {currency: EUR, millis_per_mib: 5}}]
when_done: reboot
";

    #[test]
    fn everything_that_a_site_says_reaches_the_device() {
        let site = Site::parse(WHOLE).unwrap();
        assert_eq!((site.disk.existing, site.when_done), (Existing::Keep, WhenDone::Reboot));
        let seed = site.seed(Guid::from_disk(&[1; 16]), Some(&"ab".repeat(16))).unwrap();
        let text = |path: &str| &seed.files.iter().find(|file| file.path == path).unwrap().text;
        assert_eq!(text("etc/hostname"), "pump-1\n");
        assert_eq!(text("etc/machine-id"), &format!("{}\n", "ab".repeat(16)));
        assert_eq!(
            text("etc/systemd/network/10-site-0.network"),
            "[Match]\nMACAddress=52:54:00:12:34:56\n\n[Network]\nAddress=192.0.2.10/24\nDNS=192.0.2.53\n\
             Gateway=192.0.2.1\n"
        );
        assert_eq!(
            text("etc/systemd/network/10-site-1.network"),
            "[Match]\nName=wwan*\n\n[Network]\nDHCP=yes\n"
        );
        assert_eq!(text("site"), "north\n");
        assert!(text("site.env").contains("https_proxy=\"http://192.0.2.1:3128\"\n"));
        let json: Value = serde_json::from_str(text("site.json")).unwrap();
        assert_eq!((&json["pair"]["code"], &json["enrolment_token"]), (&json!("1234-5678"), &json!("abc")));
        let left: SiteFile = serde_json::from_value(json).unwrap();
        assert_eq!(left.carriers.unwrap()[0].day_kib, Some(100));
    }

    #[test]
    fn an_empty_file_is_an_unattended_installation_with_the_defaults() {
        for text in ["", "# nothing\n\n", "\u{feff}# by an editor of Windows\r\n"] {
            assert_eq!(Site::parse(text).unwrap(), Site::default());
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, why) in [
            ("nodes: x", "nodes"),
            ("node: a_b", "node `a_b`"),
            ("network: [{addresses: [192.0.2.10]}]", "needs a prefix length"),
            ("network: [{addresses: [nonsense/24]}]", "must be as 192.0.2.10/24"),
            ("network: [{gateway: 192.0.2.1}]", "gateway without addresses"),
            ("network: [{interface: \"a\\nb\"}]", "must be an adapter's name"),
            ("disk: {existing: maybe}", "maybe"),
            ("site: ''", "must be one line"),
            ("site: \"a\\nb\"", "must be one line"),
            ("carriers: {sat: {}}", "carriers: "),
            ("carriers: [{name: a, source: 'gopher://x'}]", "carrier 1: `gopher://x` is no source"),
            ("carriers: [{name: a, source: /mnt, day_kb: 1}]", "carriers: `day_kb` is not known"),
            (
                "carriers: [{name: a, source: /mnt, price: {currency: EUR, millis_per_mib: 1, x: 2}}]",
                "`x` is not known",
            ),
            ("proxy: 192.0.2.1", "must be as http://HOST:PORT"),
        ] {
            let error = format!("{:#}", Site::parse(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_machine_finds_its_file_by_serial_number_before_mac_address() {
        let names = ["52-54-00-AB-CD-EF.yaml", "GX 12.yml", "readme.txt"].map(str::to_owned);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        assert_eq!(pick(&names, &ids(&["gx12", "52:54:00:ab:cd:ef"])), Some(&names[1]));
        assert_eq!(pick(&names, &ids(&["other", "52:54:00:ab:cd:ef"])), Some(&names[0]));
        assert_eq!(pick(&names, &ids(&["", "readme"])), None);
    }
}
