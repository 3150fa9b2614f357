//! Messages to systemd (`sd_notify(3)`): one datagram to the socket that it names.

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, sendto, socket};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Sends a state, as `READY=1`. Without a service manager nothing is sent.
///
/// # Errors
/// If the socket that it names cannot be reached.
pub fn send(state: &str) -> Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let bytes = name.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(hidden) => UnixAddr::new_abstract(hidden),
        None => UnixAddr::new(bytes),
    };
    let address = address.context("read NOTIFY_SOCKET")?;
    let out = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("make a socket")?;
    sendto(out.as_raw_fd(), state.as_bytes(), &address, MsgFlags::MSG_NOSIGNAL).context("tell systemd")?;
    Ok(())
}

/// How often systemd wants to hear `WATCHDOG=1`: half of what it allows.
pub fn watchdog_interval() -> Option<Duration> {
    let allowed: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(allowed / 2)).filter(|interval| !interval.is_zero())
}
