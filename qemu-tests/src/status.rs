//! Questions to the agent from outside the machine, over its virtio-serial port (`formats::status`).

use crate::machine::AGENT_SOCKET;
use crate::socket;
use anyhow::{Context, Result};
use formats::status::{AgentState, Status};
use std::io::{BufReader, Write};
use std::path::Path;
use std::time::Duration;

/// Answers to earlier questions that may stand before ours, because who asked has hung up meanwhile.
const STALE_LINES: usize = 8;

/// Asks for the status once. `None` if the agent does not answer within `patience`: it may not run yet.
///
/// # Errors
/// If QEMU does not listen, or what comes is no status.
pub fn ask(folder: &Path, patience: Duration) -> Result<Option<Status>> {
    Ok(match ask_text(folder, "status", patience)? {
        Some(line) => {
            Some(serde_json::from_str(&line).with_context(|| format!("the agent answers `{line}`"))?)
        }
        None => None,
    })
}

/// Asks one word and gives the answer's line of JSON; `None` if there is none within `patience`.
///
/// # Errors
/// If QEMU does not listen, or what comes is no line of text.
pub fn ask_text(folder: &Path, word: &str, patience: Duration) -> Result<Option<String>> {
    let stream =
        socket::connect(folder, AGENT_SOCKET, patience).context("connect to the agent's port; is it up?")?;
    let mut reader = BufReader::new(stream);
    // QEMU resets the connection when the guest restarts, and leaves it silent before the agent has started.
    if reader.get_mut().write_all(format!("{word}\n").as_bytes()).is_err() {
        return Ok(None);
    }
    for _ in 0..STALE_LINES {
        match socket::line(&mut reader) {
            Ok(Some(line)) if line.starts_with('{') => return Ok(Some(line)),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(None),
            Err(error) if error.downcast_ref::<std::io::Error>().is_some() => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether the boot is over: systemd has settled and the agent knows all it wants to know.
pub fn settled(status: &Status) -> bool {
    let agent = match status.agent {
        AgentState::Starting => false,
        AgentState::Running | AgentState::Degraded => true,
    };
    agent && matches!(status.system.as_str(), "running" | "degraded")
}
