//! The site configuration: `site.yaml` on the stick, or a file of the folder `sites` named by serial number or MAC
//! address; and what of it goes to the device. Pure: text in, values out. Shape: `docs/operators-guide.md`.

use crate::choose::Existing;
use anyhow::{Context, Result, anyhow, bail, ensure};
use formats::device::{SITE_MAX, check_carriers};
use formats::gpt::Guid;
use formats::pairing::{Request, Role, SECRET_MIN, Witness};
use formats::seed::{Seed, SeedFile};
use formats::stick::{Plan, Prefer, Rules};
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
    /// One of a pair, and which.
    #[serde(default)]
    pub pair: Option<Pair>,
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

/// One node of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Which of the two.
    pub role: Role,
    /// This node's fixed address; absent for the first of `network`.
    #[serde(default)]
    pub address: Option<IpAddr>,
    /// The first node's address, for the second.
    #[serde(default)]
    pub peer: Option<IpAddr>,
    /// A code that both nodes' files have; absent for a secret that the stick draws and keeps for the other.
    #[serde(default)]
    pub code: Option<String>,
    /// The third voter, for the first.
    #[serde(default)]
    pub witness: Option<Witness>,
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

/// The file of `sites` that is meant for a machine with these serial numbers and MAC addresses. Case and punctuation do
/// not count: FAT takes no colons.
///
/// # Errors
/// If more than one is.
pub fn pick<'a>(names: &'a [String], ids: &[String]) -> Result<Option<&'a String>> {
    let ids: Vec<String> = ids.iter().map(|id| plain(id)).filter(|id| !id.is_empty()).collect();
    let mut meant = names.iter().filter(|name| machine(name).is_some_and(|stem| ids.contains(&stem)));
    match (meant.next(), meant.next()) {
        (Some(one), Some(other)) => bail!("{one} and {other} are both for this machine; remove one of them"),
        (one, _) => Ok(one),
    }
}

/// The machine that a file of `sites` is meant for, as [`pick`] compares it; `None` if it is no site's file.
pub fn machine(name: &str) -> Option<String> {
    let lower = name.to_ascii_lowercase();
    // Windows and macOS leave files of their own beside those that they copy.
    let own = !name.starts_with('.');
    lower.strip_suffix(".yaml").or(lower.strip_suffix(".yml")).filter(|_| own).map(plain)
}

fn plain(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
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
        self.carriers.as_ref().map_or(Ok(()), check_known_carriers)?;
        // Of whatever secret the stick will have.
        self.request(&"0".repeat(SECRET_MIN)).map(drop)
    }

    /// What the pairing on the device is told, if this is one of a pair; `drawn` is the stick's secret, for a file without
    /// a code.
    ///
    /// # Errors
    /// If the file lacks something, or a value makes no sense.
    pub fn request(&self, drawn: &str) -> Result<Option<Request>> {
        let Some(Pair { role, address, peer, code, witness }) = self.pair.clone() else { return Ok(None) };
        let own = self.network.iter().flat_map(|link| &link.addresses).next();
        let own = own.and_then(|text| text.split('/').next()?.parse().ok());
        let address = address.or(own);
        let address =
            address.context("pair: needs a fixed address of this node, as `address` or in `network`")?;
        ensure!(
            code.is_some() || self.site.is_some(),
            "pair: needs `site` with the same name in both nodes' files, or the same `code`"
        );
        let secret = code.unwrap_or_else(|| drawn.to_owned());
        let request = Request { role, address, peer, secret, witness };
        request.check().map_err(|why| anyhow!(why))?;
        Ok(Some(request))
    }

    /// Whether the release can be what the file says of a pair.
    ///
    /// # Errors
    /// If its nodes are no one's pair: what the file says would be kept by a device that never reads it.
    pub fn suits(&self, plan: &Plan) -> Result<()> {
        ensure!(
            self.pair.is_none() || plan.pair,
            "pair: {} {} is no release for two nodes (its profile has no `ha`); take `pair` out of the file",
            plan.product,
            plan.version
        );
        Ok(())
    }

    /// Name of the site whose two nodes share a secret on the stick; `None` if none is needed.
    pub fn shared(&self) -> Option<&str> {
        let needed = self.pair.as_ref().is_some_and(|pair| pair.code.is_none());
        self.site.as_deref().filter(|_| needed)
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
        if let Some(carriers) = &self.carriers {
            let value = json!({ "carriers": carriers });
            add("site.json", 0o600, serde_json::to_string_pretty(&value).context("encode site.json")? + "\n");
        }
        if let Some(request) = self.request("")? {
            let text = serde_json::to_string_pretty(&request).context("encode what the pairing is told")?;
            add("pair.json", 0o600, text + "\n");
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
        if let Some(mac) = &self.mac {
            let parts: Vec<&str> = mac.split([':', '-']).collect();
            let hex = |part: &&str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            ensure!(
                parts.len() == 6 && parts.iter().all(hex),
                "mac `{mac}`: must be six pairs of digits, as 52:54:00:12:34:56"
            );
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
        let pair: Request = serde_json::from_str(text("pair.json")).unwrap();
        assert_eq!((pair.role, pair.secret.as_str()), (Role::First, "1234-5678"));
        let left: SiteFile = serde_json::from_str(text("site.json")).unwrap();
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
            ("pair: {role: third}", "third"),
            ("pair: {role: first, code: 1234-5678}", "needs a fixed address"),
            ("pair: {role: first, address: 10.0.0.1}", "needs `site` with the same name"),
            ("pair: {role: first, address: 10.0.0.1, code: 123}", "has 3 letters and digits"),
            ("site: a\npair: {role: second, address: 10.0.0.2}", "must have the first one's address"),
            (
                "site: a\npair: {role: first, address: 10.0.0.1, peer: 10.0.0.2}",
                "only the second node has it",
            ),
            ("enrolment_token: abc", "enrolment_token"),
            ("network: [{mac: '52:54:00:12:34'}]", "six pairs of digits"),
            ("network: [{mac: '52:54:00:12:34:5g'}]", "six pairs of digits"),
        ] {
            let error = format!("{:#}", Site::parse(text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_machine_finds_its_file_by_serial_number_or_mac_address() {
        let names = ["52-54-00-AB-CD-EF.yaml", "GX 12.yml", "readme.txt"].map(str::to_owned);
        let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
        let found = |wanted: &[&str]| pick(&names, &ids(wanted)).unwrap();
        assert_eq!(found(&["gx12", "52:54:00:ab:cd:00"]), Some(&names[1]));
        assert_eq!(found(&["other", "52:54:00:ab:cd:ef"]), Some(&names[0]));
        assert_eq!(found(&["", "readme"]), None);
        let two = pick(&names, &ids(&["gx12", "52:54:00:ab:cd:ef"])).unwrap_err().to_string();
        assert!(two.contains("are both for this machine; remove one of them"), "{two}");
        assert_eq!((machine("._GX-12.yaml"), machine("gx-12.YAML")), (None, Some("gx12".to_owned())));
    }

    #[test]
    fn a_release_for_one_node_takes_no_file_of_a_pair() {
        let mut plan = crate::samples::plan();
        let site = Site::parse("pair: {role: first, address: 10.0.0.1, code: 1234-5678}").unwrap();
        let error = site.suits(&plan).unwrap_err().to_string();
        assert!(error.contains("edge 1.0.0 is no release for two nodes"), "{error}");
        Site::default().suits(&plan).unwrap();
        plan.pair = true;
        site.suits(&plan).unwrap();
    }

    #[test]
    fn what_windows_makes_of_a_file_is_taken_and_a_tab_is_named() {
        let windows = format!("\u{feff}{}", WHOLE.replace('\n', "\r\n"));
        assert_eq!(Site::parse(&windows).unwrap(), Site::parse(WHOLE).unwrap());
        let tab = format!("{:#}", Site::parse("node: a\ndisk:\n\texisting: erase\n").unwrap_err());
        assert!(tab.contains("line 3") && tab.to_lowercase().contains("tab"), "{tab}");
        let unknown = format!("{:#}", Site::parse("node: a\nnetz: []\n").unwrap_err());
        assert!(
            unknown.contains("netz") && unknown.contains("line 2") && unknown.contains("network"),
            "{unknown}"
        );
    }
}
