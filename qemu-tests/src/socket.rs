//! Unix sockets of a machine's folder.
//!
//! A socket's path may have 107 bytes (unix(7)), a machine's folder may lie deeper. QEMU is started inside the folder
//! and uses bare names; here the folder is opened and reached through its descriptor.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longest line taken from QEMU or from the guest, bytes.
pub const LINE_LIMIT: u64 = 1 << 20;

/// Connects to the socket `name` in `folder`; reads and writes give up after `patience`.
///
/// # Errors
/// If the folder or socket is missing, or nobody listens.
pub fn connect(folder: &Path, name: &str, patience: Duration) -> std::io::Result<UnixStream> {
    let folder = File::open(folder)?;
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

/// Reads one line of at most [`LINE_LIMIT`] bytes; `None` at the end of the stream.
///
/// # Errors
/// If reading fails, the line is longer, or it is not UTF-8.
pub fn line(reader: &mut BufReader<UnixStream>) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut bytes).context("read a line")?;
    match bytes.pop() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(String::from_utf8(bytes).context("a line that is not UTF-8")?)),
        Some(_) => anyhow::bail!("read a line: ends after {} bytes without a newline", bytes.len() + 1),
    }
}
