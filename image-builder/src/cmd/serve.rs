//! `farhold serve`: serves a repository over HTTP, MQTT and serial lines.

use crate::serve::serial::{self, Line};
use crate::serve::{broker, http};
use anyhow::{Context, Result, bail};
use formats::mqtt::Address;
use formats::repository as names;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;

/// Where HTTP is served if nothing else is asked for.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8480);

/// Serves a repository, or a single release folder, until it is interrupted: over HTTP with ranges and entity tags, as a
/// block server behind an MQTT broker, and at the end of a serial line.
#[derive(clap::Args)]
pub struct ServeCmd {
    /// Repository or release folder.
    repo: PathBuf,
    /// Address and port to listen on; port 0 takes a free one [default: 127.0.0.1:8480, unless --mqtt or --serial is given].
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Broker, as mqtts://USER@HOST/PREFIX?ca=FILE&password-file=FILE.
    #[arg(long, value_name = "URL", value_parser = broker)]
    mqtt: Option<Address>,
    /// Devices that are served over the broker at once; others are told to come again.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    mqtt_devices: u16,
    /// Serial line, as /dev/ttyUSB0?baud=9600.
    #[arg(long, value_name = "DEV", value_parser = Line::parse)]
    serial: Option<Line>,
    /// Where the reports of devices are kept [default: `reports` in the repository].
    #[arg(long, value_name = "DIR")]
    reports: Option<PathBuf>,
    /// Send at most this many kbit/s over all connections of a carrier together, as a slow link would.
    #[arg(long, value_name = "KBIT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate_kbit: Option<u64>,
    /// Write a line for each answer to standard error when it ends: method, path, range, status, bytes taken.
    #[arg(long)]
    log: bool,
}

fn broker(text: &str) -> Result<Address> {
    Address::parse(text).map_err(anyhow::Error::msg)
}

/// Says where it serves; if nobody reads that any more, it serves all the same.
fn say(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        tracing::debug!(%error, "nobody reads standard output");
    }
}

impl ServeCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the folder holds no release, or the address cannot be listened on.
    pub fn run(&self) -> Result<ExitCode> {
        let there = |name: &str| self.repo.join(name).exists();
        if !there(names::ANNOUNCE) && !there(names::ANNOUNCEMENTS) {
            bail!(
                "{0} has nothing to serve: `farhold publish RELEASE --repo {0}` puts a release there",
                self.repo.display()
            );
        }
        let others = self.mqtt.is_some() || self.serial.is_some();
        let mut servers: Vec<Box<dyn FnOnce() -> Result<()> + Send + '_>> = Vec::new();
        if let Some(address) = self.http.or((!others).then_some(HTTP)) {
            servers.push(Box::new(move || self.http(address)));
        }
        if let Some(address) = &self.mqtt {
            servers.push(Box::new(|| self.behind(self.broker(address))));
        }
        if let Some(line) = &self.serial {
            servers.push(Box::new(|| self.on_a_line(line)));
        }
        side_by_side(servers)?;
        Ok(ExitCode::SUCCESS)
    }

    fn on_a_line(&self, line: &Line) -> Result<()> {
        let folder = self.repo.display();
        serial::run(&self.repo, line, self.log, || {
            say(&format!("serving {folder} on {} at {} bit/s (Ctrl-C ends it)", line.device, line.baud));
        })
        .with_context(|| format!("serve {folder} on {}", line.device))
    }

    fn broker(&self, address: &Address) -> broker::Options {
        broker::Options {
            folder: self.repo.clone(),
            address: address.clone(),
            bits_per_s: self.rate_kbit.map(|kbit| kbit * 1000),
            devices: self.mqtt_devices.into(),
            reports: self.reports.clone().unwrap_or_else(|| self.repo.join("reports")),
            log: self.log,
        }
    }

    fn behind(&self, options: broker::Options) -> Result<()> {
        let folder = self.repo.display();
        let Address { host, port, prefix, .. } = options.address.clone();
        broker::run(options, || {
            say(&format!("serving {folder} behind {host}:{port} as {prefix} (Ctrl-C ends it)"));
        })
        .with_context(|| format!("serve {folder} behind {host}:{port}"))
    }

    fn http(&self, address: SocketAddr) -> Result<()> {
        let options = http::Options {
            folder: self.repo.clone(),
            address,
            bits_per_s: self.rate_kbit.map(|kbit| kbit * 1000),
            log: self.log,
        };
        let folder = self.repo.display();
        let sent = http::run(options, |address| {
            say(&format!("serving {folder} at http://{address}/ (Ctrl-C ends it)"));
        })
        .with_context(|| format!("serve {folder}"))?;
        writeln!(std::io::stdout(), "{sent} bytes sent").context("write to standard output")
    }
}

/// Runs all until they end, as an interrupt makes them; the first that fails ends all, with the process.
fn side_by_side(servers: Vec<Box<dyn FnOnce() -> Result<()> + Send + '_>>) -> Result<()> {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let many = servers.len();
        for server in servers {
            let tell = tell.clone();
            scope.spawn(move || drop(tell.send(server())));
        }
        for _ in 0..many {
            match told.recv() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    eprintln!("farhold: {error:#}");
                    std::process::exit(1);
                }
                Err(_) => bail!("a server has ended"),
            }
        }
        Ok(())
    })
}
