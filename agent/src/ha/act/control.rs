//! What an operator asks a running node, one line of JSON each way over a socket that only the agent's user reaches.
//!
//! It does not decide whether a command may be done.

use super::session;
use super::settings::CONTROL;
use super::site::Site;
use crate::ha::register::{Members, OnPeerLoss};
use crate::ha::state::Command;
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
    /// Without the peer nothing is written until an operator says so, whatever the configuration says.
    Hold,
    /// Goes on alone without a quorum.
    ForceSolo,
    /// Vouches that this node's state is its newest.
    Trust,
}

/// A question on its way to the loop.
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// By whom, as far as the socket and the asker say.
    pub who: String,
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
            Self::Apply => {
                site.read_others()?;
                Some(Command::Change(site.others().members(site.voter())))
            }
            Self::Hold => Some(Command::Change(held(site)?)),
            Self::ForceSolo => Some(Command::ForceSolo),
            Self::Trust => Some(Command::Trust),
        })
    }
}

/// The present nodes without anybody who decides for them.
fn held(site: &Site) -> Result<Members> {
    match site.register().map(|register| register.members) {
        Some(Members::Pair { nodes, .. }) => Ok(Members::Pair { nodes, loss: OnPeerLoss::Hold }),
        Some(Members::Single(_)) | None => bail!("this node has no peer"),
    }
}

/// One line to the node.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    ask: Ask,
    #[serde(default)]
    who: String,
}

/// The name under which the asker logged in; the socket adds what the kernel knows.
fn login() -> String {
    ["SUDO_USER", "LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
}

/// Takes questions until the agent ends.
pub async fn serve(listener: UnixListener, requests: mpsc::Sender<Request>) {
    loop {
        let stream = super::listen::local(&listener).await;
        let requests = requests.clone();
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(stream, requests).await {
                tracing::debug!(error = format!("{error:#}"), "a question was not answered");
            }
        });
    }
}

async fn answer(mut stream: UnixStream, requests: mpsc::Sender<Request>) -> Result<()> {
    let uid = stream.peer_cred().context("ask the kernel who asks")?.uid();
    let (read, mut write) = stream.split();
    let mut line = String::new();
    BufReader::new(read.take(LINE_MAX)).read_line(&mut line).await?;
    let Question { ask, who } = serde_json::from_str(&line).context("understand a question")?;
    let who = format!("{who} (uid {uid})");
    let (reply, answer) = oneshot::channel();
    requests.send(Request { ask, who, reply }).await.context("the loop ended")?;
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
    let mut stream = std::os::unix::net::UnixStream::connect(&path).with_context(|| {
        format!("ask the pair's process at {} (`systemctl status farhold-ha`)", path.display())
    })?;
    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    let question = Question { ask, who: login() };
    let question = serde_json::to_string(&question).context("encode a question")?;
    stream.write_all(format!("{question}\n").as_bytes()).context("ask the node")?;
    let mut line = String::new();
    std::io::BufReader::new(stream).take(LINE_MAX).read_line(&mut line).context("read the node's answer")?;
    let mut answer: Value = serde_json::from_str(&line).context("understand the node's answer")?;
    match answer.get("error").and_then(Value::as_str) {
        Some(why) => bail!("{why}"),
        None => Ok(answer["ok"].take()),
    }
}
