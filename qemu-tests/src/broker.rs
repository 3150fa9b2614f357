//! A real mosquitto beside a test, and `farhold serve` behind it.

use crate::programs::Programs;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Debian's program lies outside of ordinary users' search path.
const MOSQUITTO: &str = "/usr/sbin/mosquitto";

/// A broker and a server; both end when this is dropped.
#[derive(Debug)]
pub struct Broker {
    port: u16,
    children: Vec<Child>,
}

impl Broker {
    /// Starts a broker on a free loopback port; its configuration and what it says lie in `folder`.
    ///
    /// # Errors
    /// If Debian's `mosquitto` is not there.
    pub fn start(folder: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config = folder.join("mosquitto.conf");
        std::fs::write(
            &config,
            format!("listener {port} 127.0.0.1\nallow_anonymous true\npersistence false\n"),
        )?;
        let log = File::create(folder.join("mosquitto.log"))?;
        let program = if Path::new(MOSQUITTO).exists() { MOSQUITTO } else { "mosquitto" };
        let mut command = Command::new(program);
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().context("start mosquitto: install the package `mosquitto`")?;
        Ok(Self { port, children: vec![child] })
    }

    /// The broker's address as a guest sees it.
    pub fn url(&self) -> String {
        format!("mqtt://{}:{}", crate::server::HOST_IN_GUEST, self.port)
    }

    /// Serves a repository behind it. Until the broker listens, the server tries again.
    ///
    /// # Errors
    /// If `farhold serve` does not start.
    pub fn serve(&mut self, programs: &Programs, repository: &Path, log: &Path) -> Result<()> {
        let mut command = programs.farhold();
        command
            .arg("serve")
            .arg(repository)
            .arg("--mqtt")
            .arg(format!("mqtt://server@127.0.0.1:{}", self.port));
        let errors = File::create(log).with_context(|| format!("make {}", log.display()))?;
        command.arg("--log").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        self.children.push(command.spawn().context("start farhold serve")?);
        let mut line = String::new();
        if let Some(out) = self.children.last_mut().and_then(|child| child.stdout.as_mut()) {
            BufReader::new(out).read_line(&mut line).context("hear from farhold serve")?;
        }
        let said = std::fs::read_to_string(log)?;
        ensure!(line.starts_with("serving"), "farhold serve says `{line}`: {said}");
        Ok(())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
    }
}
