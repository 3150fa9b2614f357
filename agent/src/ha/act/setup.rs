//! Beginnings: a first node with a new database, a node that is to join, a site at a witness.
//!
//! Nothing that exists is replaced. It does not know how a pair is formed; that is decided (`ha apply`).

use super::config::Config;
use super::identity::{Identity, Number, PublicKey};
use super::node::{files, platform};
use super::saved::Store;
use super::secrets::Secrets;
use super::session::row;
use super::settings::{CONTROL, OWNER};
use super::witness::{Folders, NodeKey, add};
use crate::durable;
use crate::ha::acceptor::Acceptor;
use crate::ha::register::Register;
use crate::ha::state::{Data, Saved};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Number and key of a party, for the configurations of the others.
pub struct Party {
    /// Its number.
    pub voter: Number,
    /// Its key.
    pub key: PublicKey,
}

/// Makes the identity of a node that has no data yet.
///
/// # Errors
/// If there is one.
pub fn joining(config: &Config) -> Result<Party> {
    durable::make_folder(&config.run, 0o700)?;
    let key = Identity::create(&config.state)?.public();
    let (path, counters) = files(config);
    Ok(Party { voter: Store::create(&path, counters)?, key })
}

/// Makes the identity of the first node, a database, and the first register.
///
/// # Errors
/// If anything of that exists, or Postgres cannot be used.
pub fn first(config: &Config) -> Result<Party> {
    let data = &config.postgres.data;
    ensure!(
        !data.join("PG_VERSION").exists(),
        "make a database: {} holds one, and nothing replaces it",
        data.display()
    );
    let platform = platform(config)?;
    let party = joining(config)?;
    if let Some(parent) = data.parent() {
        durable::make_folder(parent, 0o700)?;
    }
    let folder = data.display().to_string();
    let args =
        ["-D", &folder, "-U", OWNER, "--locale=C", "--encoding=UTF8", "--data-checksums", "--auth=trust"];
    let output = Command::new(config.postgres.bin.join("initdb")).args(args).env("LC_ALL", "C").output();
    let output = output.context("start initdb")?;
    if !output.status.success() {
        bail!("`initdb` ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let password = make_owner(config, data)?;
    durable::write(&config.state.join("datastore-password"), password.as_bytes(), 0o600)?;
    let control = std::fs::read(data.join("global/pg_control")).context("read the database's number")?;
    let system_id =
        control.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)).context("no number")?;
    let register = Register::first(party.voter.voter(), system_id, platform);
    let voter = Acceptor::new(party.voter.voter(), Number::draw()?.0, register);
    let (path, counters) = files(config);
    let mut store = Store::open::<Saved>(&path, counters)?.store;
    store.write(party.voter, &Some(Saved { voter, data: Data::Led }))?;
    Ok(party)
}

/// Makes the datastore's database and owner, with a password of its own.
fn make_owner(config: &Config, data: &Path) -> Result<String> {
    let sockets = config.run.join("setup");
    durable::make_folder(&sockets, 0o700)?;
    let mut server = Command::new(config.postgres.bin.join("postgres"))
        .args(["-c", "listen_addresses=", "-c", "fsync=on"])
        .arg("-D")
        .arg(data)
        .arg(format!("--unix_socket_directories={}", sockets.display()))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .spawn()
        .context("start postgres")?;
    let secrets = Secrets::draw()?;
    let database = &config.postgres.database;
    let made = in_loop(async {
        let client = loop {
            match super::session::connect(&sockets, CONTROL).await {
                Ok(client) => break client,
                Err(error) if server.try_wait().is_ok_and(|ended| ended.is_some()) => return Err(error),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        };
        row(&client, "SELECT 1").await?;
        let owner = format!("CREATE ROLE \"{database}\" LOGIN PASSWORD '{}'", secrets.datastore_password);
        client.simple_query(&owner).await.context("make the datastore's owner")?;
        let make = format!("CREATE DATABASE \"{database}\" OWNER \"{database}\"");
        client.simple_query(&make).await.context("make the datastore")?;
        secrets.store(&client).await
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id()).context("a process number")?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).context("stop postgres")?;
    server.wait().context("stop postgres")?;
    made.map(|()| secrets.datastore_password)
}

fn in_loop<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a loop")?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// Adds a site to a witness, or changes its nodes; makes the witness' key if there is none.
///
/// # Errors
/// If a node is malformed or a file cannot be written.
pub fn add_site(state: PathBuf, run: PathBuf, site: Number, nodes: &[String]) -> Result<Party> {
    let identity =
        if state.join("key").exists() { Identity::open(&state)? } else { Identity::create(&state)? };
    let read = |node: &String| node_key(node).with_context(|| format!("understand --node {node}"));
    let nodes = nodes.iter().map(read).collect::<Result<_>>()?;
    let voter = add(&Folders { state, run, counters: None }, site, nodes)?;
    Ok(Party { voter, key: identity.public() })
}

fn node_key(text: &str) -> Result<NodeKey> {
    let (voter, key) = text.split_once(':').context("it must be NUMBER:KEY, as `ha init` prints them")?;
    Ok(NodeKey { voter: voter.parse()?, key: key.parse()? })
}
