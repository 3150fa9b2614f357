//! `farhold serve`: serves a repository over HTTP.

use crate::serve::http::{self, Options};
use anyhow::{Context, Result, bail};
use formats::repository as names;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Serves a repository, or a single release folder, over HTTP with ranges and entity tags until it is interrupted.
#[derive(clap::Args)]
pub struct ServeCmd {
    /// Repository or release folder.
    repo: PathBuf,
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8480")]
    http: SocketAddr,
    /// Send at most this many kbit/s over all connections together, as a slow link would.
    #[arg(long, value_name = "KBIT", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rate_kbit: Option<u64>,
    /// Write a line for each answer to standard error when it ends: method, path, range, status, bytes taken.
    #[arg(long)]
    log: bool,
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
        let options = Options {
            folder: self.repo.clone(),
            address: self.http,
            bits_per_s: self.rate_kbit.map(|kbit| kbit * 1000),
            log: self.log,
        };
        let folder = self.repo.display();
        let sent = http::run(options, |address| {
            println!("serving {folder} at http://{address}/ (Ctrl-C ends it)");
        })
        .with_context(|| format!("serve {folder}"))?;
        writeln!(std::io::stdout(), "{sent} bytes sent").context("write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}
