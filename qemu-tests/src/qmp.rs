//! QEMU's control channel (QEMU Machine Protocol): one command, one answer. Knows nothing of the guest.

use crate::socket;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Socket in the machine's folder.
pub const SOCKET: &str = "qmp.sock";
/// An answer takes milliseconds; a host under load may take much longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open control channel. QEMU serves one at a time.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and agrees on capabilities.
    ///
    /// # Errors
    /// If QEMU does not listen or does not greet.
    pub fn connect(folder: &Path) -> Result<Self> {
        let stream = socket::connect(folder, SOCKET, PATIENCE).context("connect to QEMU's control socket")?;
        let mut qmp = Self { reader: BufReader::new(stream) };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU's control socket greets with `{greeting}`, expected `QMP`");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns; events on the way are skipped.
    ///
    /// # Errors
    /// If QEMU refuses the command or hangs up.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.reader
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
            .with_context(|| format!("send `{command}` to QEMU"))?;
        loop {
            let mut answer = self.message().with_context(|| format!("answer to `{command}`"))?;
            if let Some(error) = answer.get("error") {
                bail!(
                    "QEMU refuses `{command}`: {}",
                    error.get("desc").and_then(Value::as_str).unwrap_or("?")
                );
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn message(&mut self) -> Result<Value> {
        let line = socket::line(&mut self.reader)?.context("QEMU closed its control socket")?;
        serde_json::from_str(&line).with_context(|| format!("QEMU's control socket says `{line}`, not JSON"))
    }
}
