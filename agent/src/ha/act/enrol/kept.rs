//! What a node that is to be paired keeps between starts, and the configuration that comes of it.
//!
//! The secret stands in one file and goes with it: when the other side has confirmed, when it was refused, when an operator
//! cancels. It does not know how the nodes meet.

use super::wanted;
use super::wire::Introduction;
use crate::durable;
use crate::ha::act::identity::{Number, PublicKey};
use anyhow::{Context, Result, ensure};
use formats::device::HaSettings;
use formats::pairing::{Request, Role};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Longest file that is read, bytes.
const FILE_MAX: u64 = 64 << 10;

/// Where everything is.
#[derive(Clone, Debug)]
pub struct Places {
    /// The pair's folder; `ha.json` is made in it.
    pub folder: PathBuf,
    /// The configuration but for who is who: the image's.
    pub base: PathBuf,
    /// The image's profile, whose wishes the configuration takes up.
    pub profile: PathBuf,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Keys, and the first node's database, are being made; what is half made is ours to remove.
    Making,
    /// They are made; the nodes have yet to meet.
    Waiting,
    /// Both have kept the other's introduction; the secret is gone.
    Agreed,
}

/// A node that is to be paired.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pending {
    /// What it was told.
    pub request: Request,
    /// How far it is.
    pub stage: Stage,
    /// How often somebody who was told another code was at the other end.
    pub wrong: u32,
    /// The site's number, if this is the first node.
    pub site: Option<Number>,
    /// Number and key, once made.
    pub own: Option<(Number, PublicKey)>,
}

/// Why a pairing ended without a pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// The reason, and what to do.
    pub why: String,
    /// What was made before, for the next request.
    #[serde(default)]
    pub made: Option<Made>,
}

/// What outlives a refusal: a node keeps its key, and the first its database.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Made {
    /// For which of the two.
    pub role: Role,
    /// As in [`Pending`].
    pub site: Option<Number>,
    /// As in [`Pending`].
    pub own: Option<(Number, PublicKey)>,
}

impl Places {
    /// The pair's configuration.
    pub fn config(&self) -> PathBuf {
        self.folder.join("ha.json")
    }

    /// What was asked for and not begun.
    pub fn request(&self) -> PathBuf {
        self.folder.join("pair-request.json")
    }

    fn pending(&self) -> PathBuf {
        self.folder.join("pair.json")
    }

    fn refusal(&self) -> PathBuf {
        self.folder.join("pair-refused.json")
    }

    /// What is under way.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn load(&self) -> Result<Option<Pending>> {
        read(&self.pending())
    }

    /// Why the last pairing was refused.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn refused(&self) -> Result<Option<Refused>> {
        read(&self.refusal())
    }

    /// Takes a new request, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn asked(&self) -> Result<Option<Request>> {
        read(&self.request())
    }

    /// Removes what was asked for.
    ///
    /// # Errors
    /// The file system's.
    pub fn drop_request(&self) -> Result<()> {
        remove(&self.request())
    }

    /// Keeps how far it is.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, pending: &Pending) -> Result<()> {
        let text = serde_json::to_vec_pretty(pending).context("encode what is under way")?;
        durable::write(&self.pending(), &text, 0o600)
    }

    /// Ends it for a reason; the secret goes.
    ///
    /// # Errors
    /// The file system's.
    pub fn refuse(&self, why: &str) -> Result<()> {
        let made = match self.load()? {
            Some(Pending { request, site, own, .. }) => Some(Made { role: request.role, site, own }),
            None => self.refused()?.and_then(|before| before.made),
        };
        let refused = Refused { why: why.to_owned(), made };
        let text = serde_json::to_vec_pretty(&refused).context("encode a reason")?;
        // Root writes it for `pair cancel`, the pair's user reads it; nothing of it is secret.
        durable::write(&self.refusal(), &text, 0o644)?;
        tracing::error!(why, "this node was not paired");
        self.end()
    }

    /// Removes what is under way or asked for.
    ///
    /// # Errors
    /// The file system's.
    pub fn end(&self) -> Result<()> {
        [self.request(), self.pending()].iter().try_for_each(|path| remove(path))?;
        durable::sync_folder(&self.folder)
    }

    /// A new request makes an earlier refusal history.
    ///
    /// # Errors
    /// The file system's.
    pub fn begin(&self, pending: &Pending) -> Result<()> {
        self.save(pending)?;
        [self.request(), self.refusal()].iter().try_for_each(|path| remove(path))
    }

    /// The configuration of a node of this site: the image's, with who is who.
    ///
    /// # Errors
    /// If the image has none.
    pub fn configuration(
        &self,
        request: &Request,
        site: Number,
        peer: Option<&Introduction>,
    ) -> Result<Value> {
        let base: Option<Value> = read(&self.base)?;
        let mut config = base.with_context(|| {
            format!("{} is not there: this image has no layer for a pair (postgresql)", self.base.display())
        })?;
        ensure!(config.is_object(), "{} must be a JSON object", self.base.display());
        config["site"] = json!(site);
        if config.get("k3s").is_some() {
            config["k3s"]["address"] = json!(request.address);
        }
        if let Some(peer) = peer {
            config["peer"] = json!({ "voter": peer.voter, "key": peer.key, "addresses": [peer.address] });
            let witness = match request.role {
                Role::First => request.witness.as_ref(),
                Role::Second => peer.witness.as_ref(),
            };
            if let Some(witness) = witness {
                config["witness"] = json!(witness);
            }
        }
        if let Some(wanted) = self.wanted()? {
            let host = nix::unistd::gethostname().context("read the host's name")?;
            wanted::apply(&mut config, &wanted, request.role, &host.to_string_lossy())?;
        }
        Ok(config)
    }

    /// What the profile says of pairs.
    ///
    /// # Errors
    /// If the profile cannot be read.
    pub fn wanted(&self) -> Result<Option<HaSettings>> {
        let profile: Option<Value> = read(&self.profile)?;
        let Some(ha) = profile.map(|mut profile| profile["ha"].take()).filter(|ha| !ha.is_null()) else {
            return Ok(None);
        };
        let ha = serde_json::from_value(ha);
        ha.with_context(|| format!("understand `ha` in {}", self.profile.display())).map(Some)
    }

    /// Writes the configuration.
    ///
    /// # Errors
    /// The file system's.
    pub fn configure(&self, config: &Value) -> Result<()> {
        let text = serde_json::to_vec_pretty(config).context("encode the configuration")?;
        durable::write(&self.config(), &text, 0o600)
    }
}

impl Pending {
    /// What the other is told; `listen` is the pair's port here.
    ///
    /// # Errors
    /// If the keys are not made yet.
    pub fn introduction(&self, listen: SocketAddr) -> Result<Introduction> {
        let (voter, key) = self.own.context("this node has no key yet: `farhold-agent pair prepare`")?;
        let address = SocketAddr::new(self.request.address, listen.port());
        Ok(Introduction { voter, key, address, site: self.site, witness: self.request.witness.clone() })
    }

    /// Where the second node calls.
    pub fn peer(&self) -> Option<IpAddr> {
        self.request.peer
    }
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text).with_context(|| format!("read {}", path.display()))?;
    ensure!(text.len() as u64 <= FILE_MAX, "read {}: it has more than {FILE_MAX} bytes", path.display());
    serde_json::from_slice(&text).with_context(|| format!("understand {}", path.display())).map(Some)
}
