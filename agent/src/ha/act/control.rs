//! What an operator asks a running node, one line of JSON each way over a socket that only the agent's user reaches.
//!
//! It does not decide whether a command may be done.

use super::node::Site;
use super::session;
use super::settings::CONTROL;
use crate::clock::boot_ms;
use crate::ha::register::{Mode, OnPeerLoss};
use crate::ha::state::{Command, Node, Phase, Server};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Longest line, bytes.
const LINE_MAX: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// How the pair is.
    Status,
    /// The database role goes to the other node.
    Switchover,
    /// The other node goes on alone, so that this one can go down.
    Leave,
    /// Takes `Leave` back.
    Stay,
    /// The members become what the configuration says: pairing, replacing, another witness or policy.
    Apply,
    /// Goes on alone without a quorum.
    ForceSolo,
    /// Vouches that this node's state is its newest.
    Trust,
}

/// A question on its way to the loop.
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Result<Value, String>>,
}

impl Ask {
    /// The command for the decisions, if it is one.
    ///
    /// # Errors
    /// If the node was told no register, or the configuration describes no pair.
    pub fn command(self, site: &Site) -> Result<Option<Command>> {
        if site.register().is_none() && self != Self::Status {
            bail!("this node belongs to no pair yet: run `ha apply` on the node that has the data");
        }
        Ok(match self {
            Self::Status => None,
            Self::Switchover => Some(Command::Switchover),
            Self::Leave => Some(Command::Leave),
            Self::Stay => Some(Command::Stay),
            Self::Apply => Some(Command::Change(site.config.members(site.voter())?)),
            Self::ForceSolo => Some(Command::ForceSolo),
            Self::Trust => Some(Command::Trust),
        })
    }
}

/// Takes questions until the agent ends.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let requests = requests.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(stream, requests).await {
                tracing::debug!(error = format!("{error:#}"), "a question was not answered");
            }
        });
    }
}

async fn answer(mut stream: UnixStream, requests: mpsc::Sender<Request>) -> Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_MAX)).read_line(&mut line).await?;
    let ask: Ask = serde_json::from_str(&line).context("understand a question")?;
    let (reply, answer) = oneshot::channel();
    requests.send(Request { ask, reply }).await.context("the loop ended")?;
    let answer = match answer.await.context("the loop ended")? {
        Ok(value) => json!({ "ok": value }),
        Err(why) => json!({ "error": why }),
    };
    Ok(write.write_all(format!("{answer}\n").as_bytes()).await?)
}

/// A checkpoint now makes the stop of a planned hand-over short.
///
/// # Errors
/// If the server does not take it.
pub fn checkpoint(run: &Path) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a loop")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let client = session::connect(&run.join("db"), CONTROL).await?;
        client.simple_query("CHECKPOINT").await.context("checkpoint before the hand-over")?;
        Ok(())
    })
}

/// Asks a running node.
///
/// # Errors
/// If it does not run, or says no.
pub fn ask(run: &Path, ask: Ask) -> Result<Value> {
    if ask == Ask::Switchover || ask == Ask::Leave {
        // On the standby there is nothing to write, and without a server the node itself will say no.
        if let Err(error) = checkpoint(run) {
            tracing::debug!(error = format!("{error:#}"), "no checkpoint before the hand-over");
        }
    }
    let path = run.join("control");
    let mut stream = std::os::unix::net::UnixStream::connect(&path)
        .with_context(|| format!("connect to {}: does `ha run` run?", path.display()))?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    let question = serde_json::to_string(&ask).context("encode a question")?;
    stream.write_all(format!("{question}\n").as_bytes()).context("ask the node")?;
    let mut line = String::new();
    std::io::BufReader::new(stream).take(LINE_MAX).read_line(&mut line).context("read the node's answer")?;
    let mut answer: Value = serde_json::from_str(&line).context("understand the node's answer")?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => bail!("{why}"),
        None => Ok(answer["ok"].take()),
    }
}

/// How the pair is, as this node knows it.
pub fn status(site: &Site) -> Value {
    let node = site.node.borrow();
    let Some(node) = node.as_ref() else {
        return json!({ "voter": site.voter().0, "phase": "Unjoined",
            "says": "this node belongs to no pair yet: run `ha apply` on the node that has the data" });
    };
    let (register, run, now) = (&node.saved.voter.register, &node.run, boot_ms());
    let lag = node.standby_flushed().map(|flushed| node.lsn().saturating_sub(flushed));
    let ago = |at: u64| now.saturating_sub(at);
    json!({
        "voter": format!("{:016x}", node.id().0),
        "epoch": register.epoch,
        "forced": register.forces,
        "mode": match register.mode { Mode::Paired { .. } => "paired", Mode::Solo { .. } => "solo" },
        "primary": format!("{:016x}", register.mode.primary().0),
        "is_primary": register.mode.primary() == node.id(),
        "phase": format!("{:?}", run.phase),
        "port": format!("{:?}", site.forward()),
        "data": format!("{:?}", node.saved.data),
        "server": match run.server {
            Server::Down { .. } => "down",
            Server::Primary { .. } => "primary",
            Server::Standby { .. } => "standby",
            Server::Stuck => "stuck",
        },
        "mute": node.saved.voter.muted,
        "lag_bytes": lag,
        "peer_heard_ms": ago(run.peer.heard_at),
        "witness_heard_ms": register.members.witness().map(|_| ago(run.witness_at)),
        "if_the_peer_died_now": prospect(node),
    })
}

/// What would happen if the peer died now.
fn prospect(node: &Node) -> &'static str {
    use crate::ha::register::Members;
    let register = &node.saved.voter.register;
    match (register.mode, register.members, node.run.phase) {
        (_, _, Phase::Refused(_)) => "this node does not take part: see its phase",
        (_, _, Phase::Mute) => "this node may have old state and waits to hear the others, or for `ha trust`",
        (_, Members::Single(_), _) => "there is no peer",
        (Mode::Solo { holder }, _, _) if holder == node.id() => {
            "service goes on: this node serves alone already"
        }
        (Mode::Solo { .. }, _, _) => "service stops until the peer is back: this node is not in sync yet",
        (Mode::Paired { .. }, Members::Pair { loss: OnPeerLoss::Witness(_), .. }, _) => {
            "this node goes on alone, if the witness answers"
        }
        (Mode::Paired { .. }, Members::Pair { loss: OnPeerLoss::Prefer(preferred), .. }, _)
            if preferred == node.id() =>
        {
            "this node goes on alone"
        }
        (Mode::Paired { .. }, Members::Pair { .. }, _) => {
            "nothing is written until an operator says `ha force-solo`"
        }
    }
}
