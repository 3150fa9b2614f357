//! The profile file as types. Every struct refuses unknown keys; units stand in the names.
//!
//! `health`, `ha` and `settings` hold templates, so they are typed only after variables were filled in.

use crate::finding::LayerId;
use crate::pack::model::{ArchName, ByArch, LayerKind};
use crate::resolved::Disk;
use formats::arch::Arch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// A profile.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Who it is.
    pub metadata: Metadata,
    /// Processors that images are made for.
    #[schemars(with = "Vec<ArchName>")]
    pub arch: Vec<Arch>,
    /// Board for each processor.
    #[schemars(with = "ByArch<String>")]
    pub board: BTreeMap<Arch, String>,
    /// Typed variables, used as `{{ vars.NAME }}` in values and settings, set with `--set NAME=VALUE`.
    #[serde(default)]
    pub variables: BTreeMap<String, Variable>,
    /// Layers, from the operating system up.
    pub layers: Vec<Layer>,
    /// Checks that decide whether a boot is healthy.
    #[serde(default)]
    #[schemars(with = "Vec<Health>")]
    pub health: Value,
    /// Two-node settings; absent for a single node.
    #[serde(default)]
    #[schemars(with = "Option<Ha>")]
    pub ha: Value,
    /// Accounts, network, time, logs.
    #[serde(default)]
    #[schemars(with = "Settings")]
    pub settings: Value,
}

impl Profile {
    /// Product that releases are matched against.
    pub fn product(&self) -> &str {
        self.metadata.product.as_ref().unwrap_or(&self.metadata.name)
    }
}

/// Who a profile is.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Name, a-z, 0-9 and `-`.
    pub name: String,
    /// Version of the release that it makes, as `1.4.0`.
    pub version: String,
    /// Product that releases are matched against; the name if absent.
    #[serde(default)]
    pub product: Option<String>,
    /// One or two sentences.
    #[serde(default)]
    pub description: String,
}

/// A variable.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Variable {
    /// Type of its value.
    #[serde(rename = "type")]
    pub kind: VariableKind,
    /// Value if none is set; a variable without one must be set.
    #[serde(default)]
    pub default: Option<Value>,
    /// Allowed values.
    #[serde(default, rename = "enum")]
    pub one_of: Vec<Value>,
    /// Regular expression that a text must match.
    #[serde(default)]
    pub pattern: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub description: String,
}

/// Type of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum VariableKind {
    /// Any text.
    String,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A version, as `1.2.3`.
    Version,
    /// An IPv4 address.
    Ipv4,
    /// An IPv4 network, as `10.0.0.0/16`.
    Ipv4cidr,
    /// An IPv6 address.
    Ipv6,
    /// A line of `authorized_keys`, or empty.
    SshKey,
    /// A crypt(3) hash.
    PasswordHash,
    /// A list of texts; on the command line separated by commas.
    List,
}

/// A layer: one pack with its values.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// What it is for.
    pub layer: LayerKind,
    /// Pack name.
    pub pack: String,
    /// Pack version.
    pub version: String,
    /// Values that differ from the pack's.
    #[serde(default)]
    pub values: serde_json::Map<String, Value>,
}

impl Layer {
    /// The layer as findings name it.
    pub fn id(&self) -> LayerId {
        LayerId { layer: self.layer.name().into(), pack: self.pack.clone(), version: self.version.clone() }
    }
    /// The pack as files and packages name who brought them.
    pub fn origin(&self) -> String {
        format!("{} {}", self.pack, self.version)
    }
}

/// A health check with its deadline, as [`formats::device::HealthCheck`] carries it to the device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Health {
    /// A systemd unit is active.
    Unit {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
        /// Unit name.
        unit: String,
    },
    /// A TCP port on this machine accepts.
    Port {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
        /// Port number.
        port: u16,
    },
    /// An HTTP request to this machine answers 2xx.
    Http {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
        /// Address; the host must be a loopback address.
        url: String,
    },
    /// This node is Ready in Kubernetes.
    NodeReady {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
    },
    /// A file system has room.
    Disk {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
        /// Mount point.
        path: String,
        /// Least free share, percent.
        #[schemars(range(max = 100))]
        min_free_percent: u8,
    },
    /// A command ends with 0.
    Command {
        /// Unique name.
        name: String,
        /// Seconds after boot by which it must have passed.
        deadline_s: u32,
        /// Program and arguments.
        #[schemars(length(min = 1))]
        argv: Vec<String>,
    },
}

/// Two-node settings, as [`formats::device::HaSettings`] carries them to the device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ha {
    /// What to do when the peer is lost.
    pub on_peer_loss: OnPeerLoss,
    /// Address and port of the witness; excludes `prefer`.
    #[serde(default)]
    pub witness: Option<String>,
    /// Address with prefix length that follows the primary.
    #[serde(default)]
    pub virtual_ip: Option<String>,
}

/// Policy on loss of the peer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnPeerLoss {
    /// Ask the witness; go on only with its vote.
    Witness,
    /// Write nothing until an operator confirms.
    Hold,
    /// The named node goes on alone: `first` or `second`, as they were paired, or a host name.
    Prefer(String),
}

/// The `settings` of a profile, read after variables are filled in.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Host name; `%` stands for the first eight digits of the machine's id.
    pub hostname: Option<String>,
    /// People with an account.
    pub users: Vec<UserSettings>,
    /// Network interfaces; DHCP on every wired one if empty.
    pub networks: Vec<Network>,
    /// Cellular modems; add the packages `modemmanager` and `network-manager`.
    pub modems: Vec<Modem>,
    /// Proxy for everything that honours it.
    pub proxy: Option<Proxy>,
    /// Time servers.
    pub ntp: Vec<String>,
    /// CA certificates to trust: PEM texts.
    pub ca_certificates: Vec<String>,
    /// Mirrors by registry name, as `docker.io: [https://mirror.site.example]`.
    pub registry_mirrors: BTreeMap<String, Vec<String>>,
    /// Limits of logs.
    pub logs: Logs,
    /// Time zone, as `Europe/Oslo`; UTC if absent.
    pub timezone: Option<String>,
    /// Words for the kernel command line.
    pub kernel_args: Vec<String>,
    /// Partition sizes.
    pub disk: Disk,
    /// Where new releases come from by themselves.
    pub update: Option<Update>,
}

/// Where new releases come from, as [`formats::device::UpdateSettings`] carries it to the device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Update {
    /// A folder on the device, or an address that begins with `http://`, `https://`, `mqtt://` or `mqtts://`.
    pub source: String,
    /// How often it is asked, seconds.
    #[serde(default = "hour")]
    #[schemars(range(min = 60))]
    pub poll_s: u32,
    /// Channel that is followed; 0 is `stable`.
    #[serde(default)]
    pub channel: u8,
    /// Carriers with budgets, the most wanted first: of those that may be used and can be reached, the first is.
    #[serde(default)]
    pub carriers: Vec<Carrier>,
}

/// A carrier, as [`formats::tariff::CarrierSettings`] carries it to the device.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Carrier {
    /// Unique name, as `satellite`.
    pub name: String,
    /// A source, as above.
    pub source: String,
    /// Most KiB in a day.
    #[serde(default)]
    pub day_kib: Option<u64>,
    /// Most KiB in a month.
    #[serde(default)]
    pub month_kib: Option<u64>,
    /// Most kbit in a second.
    #[serde(default)]
    pub rate_kbit: Option<u32>,
    /// From which hour to which it may be used, UTC, as `[22, 6]`.
    #[serde(default)]
    pub hours: Option<[u8; 2]>,
    /// What it costs.
    #[serde(default)]
    pub price: Option<Price>,
}

/// What bytes cost.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Currency, as `EUR`.
    pub currency: String,
    /// Thousandths of it for a MiB.
    pub millis_per_mib: u64,
}

impl Carrier {
    /// As the device takes it.
    pub fn settings(&self) -> formats::tariff::CarrierSettings {
        let price = |price: &Price| formats::tariff::Price {
            currency: price.currency.clone(),
            millis_per_mib: price.millis_per_mib,
        };
        formats::tariff::CarrierSettings {
            name: self.name.clone(),
            source: self.source.clone(),
            day_kib: self.day_kib,
            month_kib: self.month_kib,
            rate_kbit: self.rate_kbit,
            hours: self.hours,
            price: self.price.as_ref().map(price),
        }
    }
}

fn hour() -> u32 {
    3600
}

/// A person with an account.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserSettings {
    /// Login name.
    pub name: String,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Login shell.
    #[serde(default = "bash")]
    pub shell: String,
    /// crypt(3) hash; none locks the password.
    #[serde(default)]
    pub password_hash: Option<String>,
    /// Lines of `authorized_keys`; empty ones are dropped.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
}

fn bash() -> String {
    "/bin/bash".into()
}

/// One network interface.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Interface name or shell pattern, as `en*`; for Wi-Fi the name that the adapter gets, `wlan0` if absent.
    #[serde(default)]
    pub interface: Option<String>,
    /// Hardware address, instead of a name.
    #[serde(default)]
    pub mac: Option<String>,
    /// Ask by DHCP; default if no address is given.
    #[serde(default)]
    pub dhcp: Option<bool>,
    /// Addresses with prefix length, IPv4 or IPv6.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Default routes.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// Name servers.
    #[serde(default)]
    pub dns: Vec<String>,
    /// MTU, bytes.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Preference of its routes, lower is better.
    #[serde(default)]
    pub metric: Option<u32>,
    /// VLANs on it.
    #[serde(default)]
    pub vlans: Vec<Vlan>,
    /// Wi-Fi; adds the package `wpasupplicant`.
    #[serde(default)]
    pub wifi: Option<Wifi>,
}

/// A VLAN.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vlan {
    /// Number, 1 to 4094.
    pub id: u16,
    /// Addresses with prefix length; DHCP if none.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Default routes.
    #[serde(default)]
    pub gateways: Vec<String>,
}

/// A Wi-Fi network.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wifi {
    /// Network name.
    pub ssid: String,
    /// 64 hexadecimal digits, as `wpa_passphrase` derives them, so that no passphrase stands in the image.
    pub psk: String,
    /// Country, for allowed channels.
    pub country: String,
}

/// A cellular connection, kept up by NetworkManager and ModemManager, which leave all other interfaces alone.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Modem {
    /// Access point name.
    pub apn: String,
    /// User, where the network asks for one.
    #[serde(default)]
    pub user: Option<String>,
    /// Password of the user.
    #[serde(default)]
    pub password: Option<String>,
    /// PIN of the SIM card.
    #[serde(default)]
    pub pin: Option<String>,
    /// Preference of its routes, lower is better; wired networks have 1024 unless set.
    #[serde(default = "modem_metric")]
    pub metric: u32,
}

const fn modem_metric() -> u32 {
    2000
}

/// Proxy addresses.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Proxy {
    /// For HTTP.
    pub http: Option<String>,
    /// For HTTPS.
    pub https: Option<String>,
    /// Hosts and networks reached directly.
    pub no_proxy: Vec<String>,
}

/// Limits of logs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Logs {
    /// Journal on disk, MiB.
    pub journal_mib: u32,
    /// One container's log file, MiB.
    pub container_mib: u32,
    /// Log files kept for one container.
    pub container_files: u32,
}

impl Default for Logs {
    fn default() -> Self {
        Self { journal_mib: 256, container_mib: 10, container_files: 3 }
    }
}
