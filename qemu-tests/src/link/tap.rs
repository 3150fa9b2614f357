//! The one request to the kernel that makes a TAP device: no crate of ours has a safe call for it.
#![expect(
    unsafe_code,
    reason = "ioctl with a pointer has no safe form; the call is one line with its proof beside it"
)]

use std::ffi::{c_int, c_short};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// `IFF_TAP | IFF_NO_PI` of `linux/if_tun.h`: Ethernet frames, nothing before them.
const TAP: c_short = 0x0002 | 0x1000;

/// As much of `struct ifreq` (`linux/if.h`) as TUNSETIFF reads.
#[repr(C)]
pub struct Request {
    name: [u8; 16],
    flags: c_short,
    rest: [u8; 22],
}

mod raw {
    // `_IOW('T', 202, int)`, though what it points to is a `struct ifreq`.
    const TUNSETIFF: nix::sys::ioctl::ioctl_num_type =
        nix::request_code_write!(b'T', 202, size_of::<super::c_int>());
    nix::ioctl_write_ptr_bad!(make, TUNSETIFF, super::Request);
}

/// Makes a TAP device, or attaches to one that has no owner. It vanishes with the file unless it is persistent.
///
/// # Errors
/// The kernel's: it takes CAP_NET_ADMIN in the network namespace.
pub fn open(name: &str) -> Result<File> {
    let mut request = Request { name: [0; 16], flags: TAP, rest: [0; 22] };
    if name.is_empty() || name.len() > 15 {
        let why = format!("the name `{name}` of a TAP device must have 1 to 15 bytes");
        return Err(Error::new(ErrorKind::InvalidInput, why));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: the kernel reads a `struct ifreq` of 40 bytes, which `request` is and which lives for the whole call.
    unsafe { raw::make(file.as_raw_fd(), &raw const request) }?;
    Ok(file)
}
