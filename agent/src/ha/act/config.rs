//! What a node of a pair is told: addresses, keys, folders. JSON, written at enrolment or baked with the image.
//!
//! It does not know who is primary; that is the register's.

use super::identity::{Number, PublicKey};
use crate::ha::register::{Members, OnPeerLoss, Platform, VoterId};
use crate::ha::settings::Settings;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Longest file that is read, bytes.
const FILE_MAX: u64 = 64 << 10;

/// Parties of earlier readings that are kept.
const FORMER_MAX: usize = 8;

/// A node of a pair.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names the site to a witness of many.
    pub site: Number,
    /// Folder of key and state; durable.
    pub state: PathBuf,
    /// A file outside every backup of `state` that counts its changes, so that an old state is noticed after a boot.
    #[serde(default)]
    pub counter: Option<PathBuf>,
    /// Folder of sockets; gone after a boot.
    pub run: PathBuf,
    /// Where messages (UDP) and the tunnel (TCP) arrive.
    pub listen: SocketAddr,
    /// The other node.
    #[serde(default)]
    pub peer: Option<Party>,
    /// The third voter.
    #[serde(default)]
    pub witness: Option<Party>,
    /// Without a witness: what happens when the peer is lost.
    #[serde(default)]
    pub on_peer_loss: PeerLoss,
    /// The local datastore port; it is also at a socket in `run`.
    pub port: SocketAddr,
    /// The database server.
    pub postgres: Postgres,
    /// k3s on this node, if the agent runs it.
    #[serde(default)]
    pub k3s: Option<crate::k3s::Settings>,
    /// A serial cable to the peer: a second path for heartbeats.
    #[serde(default)]
    pub serial: Option<Serial>,
    /// An address that follows the primary.
    #[serde(default)]
    pub address: Option<Address>,
    /// A file that names the machine and is not on its disk; by default what firmware or device tree say.
    #[serde(default)]
    pub machine: Option<PathBuf>,
    /// Where the agent of this node hands out blocks of releases to that of the other.
    #[serde(default = "blocks")]
    pub blocks: PathBuf,
    /// Times that differ from the shipped ones.
    #[serde(default)]
    pub times: Times,
    /// Where this was read.
    #[serde(skip)]
    pub path: PathBuf,
}

/// Who else there is; read again when an operator applies the configuration.
#[derive(Clone, Debug)]
pub struct Others {
    /// The other node.
    pub peer: Option<Party>,
    /// The third voter.
    pub witness: Option<Party>,
    /// Parties that an earlier reading named: they may still have a vote in the change itself.
    pub former: Vec<Party>,
    on_peer_loss: PeerLoss,
}

/// A serial line.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// The device.
    pub device: PathBuf,
    /// Bits per second; a heartbeat takes about 250 bytes, twice a second.
    #[serde(default = "baud")]
    pub baud: u32,
}

/// An IPv4 address that follows the primary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address.
    pub ip: std::net::Ipv4Addr,
    /// Length of its network's prefix, bits.
    pub prefix: u8,
    /// The interface that has it; without, the one that has another address of that network.
    #[serde(default)]
    pub interface: Option<String>,
}

/// Another party of the site.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Party {
    /// Its number as a voter, drawn with its state.
    pub voter: Number,
    /// Its key.
    pub key: PublicKey,
    /// Where it listens; every message goes to all of them.
    pub addresses: Vec<SocketAddr>,
}

/// The policy without a witness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PeerLoss {
    /// Nothing is written until an operator says so.
    #[default]
    Hold,
    /// This node goes on alone, the peer never does.
    PreferThis,
    /// The peer goes on alone, this node never does.
    PreferPeer,
}

/// The database server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    /// Folder of its programs.
    pub bin: PathBuf,
    /// Its database directory.
    pub data: PathBuf,
    /// Database, and its owner, that clients of the port use.
    #[serde(default = "kine")]
    pub database: String,
    /// More settings, by name. Those that the pair's safety needs cannot be set here.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
}

/// Times in milliseconds; what is absent is as shipped.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    peer_lost_ms: Option<u64>,
    retry_ms: Option<u64>,
    stale_ms: Option<u64>,
    join_ms: Option<u64>,
    rejoin_pause_ms: Option<u64>,
    fsync_recent_ms: Option<u64>,
    hand_over_ms: Option<u64>,
}

fn baud() -> u32 {
    115_200
}

fn blocks() -> PathBuf {
    "/run/farhold/blocks".into()
}

fn kine() -> String {
    "kine".to_owned()
}

/// What to do where there is no configuration.
fn hint(path: &Path) -> &'static str {
    let kind = std::fs::metadata(path).err().map(|error| error.kind());
    if kind == Some(ErrorKind::NotFound) {
        ": this node is not one of a pair; `farhold-agent pair first` or `pair second` makes it one"
    } else if kind == Some(ErrorKind::PermissionDenied) {
        " as root"
    } else {
        ""
    }
}

impl Config {
    /// Folder of the port's socket for clients on this node, named as drivers of PostgreSQL look for it.
    pub fn port_sockets(&self) -> PathBuf {
        self.run.join("port")
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it is absent, too long, or says something that cannot be.
    pub fn read(path: &Path) -> Result<Self> {
        let size =
            std::fs::metadata(path).with_context(|| format!("read {}{}", path.display(), hint(path)))?.len();
        ensure!(
            size <= FILE_MAX,
            "read {}: it has {size} bytes, at most {FILE_MAX} are read",
            path.display()
        );
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let mut config = Self::parse(&text).with_context(|| format!("understand {}", path.display()))?;
        config.path = std::path::absolute(path).with_context(|| format!("find {}", path.display()))?;
        Ok(config)
    }

    /// Checks a text that stands nowhere yet.
    ///
    /// # Errors
    /// If it says something that cannot be.
    pub fn parse(text: &str) -> Result<Self> {
        let mut json = serde_json::Deserializer::from_str(text);
        let config: Self = serde_path_to_error::deserialize(&mut json)?;
        json.end()?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        for (name, path) in [
            ("state", &self.state),
            ("run", &self.run),
            ("blocks", &self.blocks),
            ("postgres.bin", &self.postgres.bin),
            ("postgres.data", &self.postgres.data),
        ] {
            ensure!(path.is_absolute(), "{name} is {}, but must be an absolute path", path.display());
        }
        let plain =
            |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        let database = &self.postgres.database;
        ensure!(
            plain(database) && (1..=40).contains(&database.len()) && database != super::settings::OWNER,
            "postgres.database is {database:?}, but must be 1 to 40 small letters, digits or underscores, and not \
             {:?}, which is the agent's own",
            super::settings::OWNER
        );
        ensure!(
            self.witness.is_none() || self.on_peer_loss == PeerLoss::Hold,
            "on_peer_loss prefers a node, but there is a witness: the two exclude each other; remove one"
        );
        if let Some(Serial { device, baud }) = &self.serial {
            ensure!(
                device.is_absolute(),
                "serial.device is {}, but must be an absolute path",
                device.display()
            );
            ensure!(*baud >= 9_600, "serial.baud is {baud}, but heartbeats need at least 9600");
        }
        if let Some(Address { prefix, interface, .. }) = &self.address {
            ensure!(*prefix <= 32, "address.prefix is {prefix}, but must be at most 32");
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '@');
            let name = |name: &String| {
                (1..=15).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('-')
            };
            ensure!(
                interface.as_ref().is_none_or(name),
                "address.interface is {interface:?}, which is no interface's name"
            );
        }
        self.k3s.as_ref().map_or(Ok(()), crate::k3s::Settings::check)?;
        super::settings::check_extra(&self.postgres.settings)
    }

    /// What is said of k3s.
    ///
    /// # Errors
    /// If nothing is.
    pub fn k3s(&self) -> Result<&crate::k3s::Settings> {
        self.k3s.as_ref().context("the configuration has no part `k3s`: the agent does not run it here")
    }

    /// Who else there is.
    pub fn others(&self) -> Others {
        let Self { peer, witness, on_peer_loss, .. } = self;
        Others {
            peer: peer.clone(),
            witness: witness.clone(),
            former: Vec::new(),
            on_peer_loss: *on_peer_loss,
        }
    }

    /// Times for the decisions.
    pub fn settings(&self, platform: Platform) -> Settings {
        let shipped = Settings::new(platform);
        let times = &self.times;
        Settings {
            peer_lost_ms: times.peer_lost_ms.unwrap_or(shipped.peer_lost_ms),
            retry_ms: times.retry_ms.unwrap_or(shipped.retry_ms),
            stale_ms: times.stale_ms.unwrap_or(shipped.stale_ms),
            join_ms: times.join_ms.unwrap_or(shipped.join_ms),
            rejoin_pause_ms: times.rejoin_pause_ms.unwrap_or(shipped.rejoin_pause_ms),
            fsync_recent_ms: times.fsync_recent_ms.unwrap_or(shipped.fsync_recent_ms),
            hand_over_ms: times.hand_over_ms.unwrap_or(shipped.hand_over_ms),
            ..shipped
        }
    }
}

impl Others {
    /// The members that the file describes.
    pub fn members(&self, me: VoterId) -> Members {
        let Some(peer) = self.peer.as_ref().map(|peer| peer.voter.voter()) else {
            return Members::Single(me);
        };
        let loss = match (&self.witness, self.on_peer_loss) {
            (Some(witness), _) => OnPeerLoss::Witness(witness.voter.voter()),
            (None, PeerLoss::Hold) => OnPeerLoss::Hold,
            (None, PeerLoss::PreferThis) => OnPeerLoss::Prefer(me),
            (None, PeerLoss::PreferPeer) => OnPeerLoss::Prefer(peer),
        };
        Members::Pair { nodes: [me, peer], loss }
    }

    /// The party of this number.
    pub fn party(&self, voter: VoterId) -> Option<&Party> {
        let all = self.peer.iter().chain(&self.witness).chain(&self.former);
        all.into_iter().find(|party| party.voter.voter() == voter)
    }

    /// Whether this is the other node.
    pub fn is_peer(&self, voter: VoterId) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.voter.voter() == voter)
    }

    /// What a later reading says; who was named before is still reached.
    pub fn replaced_by(&self, mut later: Self) -> Self {
        later.former =
            self.peer.iter().chain(&self.witness).chain(&self.former).take(FORMER_MAX).cloned().collect();
        later
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parsed(change: impl FnOnce(&mut Value)) -> Result<Config> {
        let key = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29";
        let mut value = json!({
            "site": "00000000000000aa", "state": "/s", "run": "/r", "listen": "0.0.0.0:7600", "port": "127.0.0.1:5433",
            "postgres": { "bin": "/b", "data": "/d" },
            "peer": { "voter": "0000000000000001", "key": key, "addresses": ["192.0.2.1:7600", "[2001:db8::1]:7600"] },
            "address": { "ip": "192.0.2.10", "prefix": 24 },
        });
        change(&mut value);
        Config::parse(&value.to_string())
    }

    #[test]
    fn an_error_names_the_field() {
        parsed(|_| {}).unwrap();
        for (field, value) in [
            ("/peer/addresses/1", json!("somewhere")),
            ("/peer/key", json!("00")),
            ("/listen", json!("0.0.0.0")),
            ("/address/ip", json!("192.0.2.300")),
            ("/address/prefix", json!(33)),
        ] {
            let error = parsed(|config| *config.pointer_mut(field).unwrap() = value).unwrap_err();
            let said = format!("{error:#}");
            let name = field.trim_start_matches('/').replace("/1", "[1]").replace('/', ".");
            assert!(said.starts_with(&name), "{field}: {said}");
        }
        assert!(parsed(|config| config["address"]["interface"] = json!("-x")).is_err());
        assert!(Config::parse("{} {}").is_err());
    }
}
