//! Opens `http:`, `https:` and `file:` addresses at an offset, and copies from them with a limit.

use crate::progress::Bar;
use anyhow::{Context, Result};
use reqwest::StatusCode;
use reqwest::header::RANGE;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

/// How long one read or connection may take: slow satellite links answer within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Opens addresses.
pub(super) struct Client(reqwest::blocking::Client);

/// An address being read.
pub(super) struct Source {
    reader: Box<dyn Read>,
    /// Whether it starts at the offset asked for, not at the beginning.
    pub(super) resumed: bool,
}

/// Why an address gives nothing.
pub(super) enum Unavailable {
    /// The server answered with this HTTP status, or the file of a `file:` address is not there (404).
    Status(u16),
    /// There is no answer.
    Unreachable(anyhow::Error),
}

impl Unavailable {
    pub(super) fn describe(&self, url: &str) -> String {
        match self {
            Self::Status(404 | 410) => format!("{url} is not there"),
            Self::Status(status) => format!("{url} answered with HTTP status {status}"),
            Self::Unreachable(error) => format!("cannot reach {url} ({:#})", Short(error)),
        }
    }
}

/// The innermost cause: what a person can act on is there (no route, no such name, certificate).
struct Short<'a>(&'a anyhow::Error);

impl std::fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.root_cause())
    }
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    /// More bytes than allowed.
    #[error("longer than allowed")]
    TooLong,
    /// The source failed.
    #[error("read from the network")]
    Read(#[source] io::Error),
    /// The target failed.
    #[error("write to the cache")]
    Write(#[source] io::Error),
}

impl Client {
    pub(super) fn new() -> Result<Self> {
        // Fails only if a provider is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = reqwest::blocking::Client::builder()
            .user_agent("farhold")
            .timeout(PATIENCE)
            .connect_timeout(PATIENCE / 3)
            .build()
            .context("set up HTTP")?;
        Ok(Self(client))
    }

    /// Opens an address, from `offset` if the other side can.
    pub(super) fn open(&self, url: &str, offset: u64) -> Result<Source, Unavailable> {
        if let Some(path) = url.strip_prefix("file:") {
            return open_file(Path::new(path.trim_start_matches("//")), offset);
        }
        let mut request = self.0.get(url);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let response = request.send().map_err(|error| Unavailable::Unreachable(error.into()))?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => Ok(Source { reader: Box::new(response), resumed: offset > 0 }),
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => self.open(url, 0),
            status if status.is_success() => Ok(Source { reader: Box::new(response), resumed: false }),
            status => Err(Unavailable::Status(status.as_u16())),
        }
    }
}

fn open_file(path: &Path, offset: u64) -> Result<Source, Unavailable> {
    let open = || -> io::Result<File> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(file)
    };
    match open() {
        Ok(file) => Ok(Source { reader: Box::new(file), resumed: offset > 0 }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unavailable::Status(404)),
        Err(error) => Err(Unavailable::Unreachable(error.into())),
    }
}

/// Copies at most `limit` bytes and looks whether more would come.
pub(super) fn copy(
    mut source: Source,
    target: &mut impl Write,
    limit: u64,
    bar: &Bar,
) -> Result<(), CopyError> {
    let mut left = limit;
    let mut buffer = vec![0u8; 128 << 10];
    loop {
        let n = source.reader.read(&mut buffer).map_err(CopyError::Read)?;
        if n == 0 {
            return Ok(());
        }
        left = left.checked_sub(n as u64).ok_or(CopyError::TooLong)?;
        target.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        bar.add(n as u64);
    }
}
