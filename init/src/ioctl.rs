//! The requests to the kernel for which no crate has a safe call: device-mapper, watchdog timeout, inode flags.
#![expect(
    unsafe_code,
    reason = "ioctl with a pointer has no safe form; each call is one line with its proof beside it"
)]

use formats::dm::{CONTROL, Command, REQUEST_BYTES};
use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_readwrite!(watchdog_set_timeout, b'W', 6, i32);
    nix::ioctl_read!(get_flags, b'f', 1, std::ffi::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, std::ffi::c_long);
}

/// `FS_IMMUTABLE_FL`: efivarfs sets it on variables that must not be lost by accident.
const IMMUTABLE: std::ffi::c_long = 0x10;

/// Sends a device-mapper request and returns the answer.
///
/// # Errors
/// The kernel's, or `EINVAL` for a request of another length.
pub fn device_mapper(command: Command, mut request: Vec<u8>) -> std::io::Result<Vec<u8>> {
    if request.len() != REQUEST_BYTES {
        return Err(Errno::EINVAL.into());
    }
    let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
    // SAFETY: the kernel reads and writes at most `data_size` bytes, which the request states as its own length; the
    // vector outlives the call.
    let result = unsafe {
        nix::libc::ioctl(control.as_raw_fd(), command.request() as nix::libc::Ioctl, request.as_mut_ptr())
    };
    Errno::result(result)?;
    Ok(request)
}

/// Sets the timeout of a watchdog, in seconds; returns what the hardware made of it.
///
/// # Errors
/// The kernel's.
pub fn set_timeout(watchdog: &File, seconds: i32) -> std::io::Result<i32> {
    let mut seconds = seconds;
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one int, which lives on this stack.
    unsafe { raw::watchdog_set_timeout(watchdog.as_raw_fd(), &raw mut seconds) }?;
    Ok(seconds)
}

/// Lets a file be written that has the immutable flag.
///
/// # Errors
/// The kernel's.
pub fn make_mutable(file: &File) -> std::io::Result<()> {
    let mut flags = 0;
    // SAFETY: FS_IOC_GETFLAGS writes at most one long, which lives on this stack.
    unsafe { raw::get_flags(file.as_raw_fd(), &raw mut flags) }?;
    let cleared = flags & !IMMUTABLE;
    // SAFETY: FS_IOC_SETFLAGS reads at most one long, which lives on this stack.
    unsafe { raw::set_flags(file.as_raw_fd(), &raw const cleared) }?;
    Ok(())
}
