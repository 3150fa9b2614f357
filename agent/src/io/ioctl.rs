//! The requests to the kernel for which no crate has a safe call: the device-mapper table, a partition's new size, the
//! immutable flag of a UEFI variable.
#![expect(
    unsafe_code,
    reason = "ioctl with a pointer has no safe form; each call is one line with its proof beside it"
)]

use formats::dm::{CONTROL, Command, REQUEST_BYTES};
use nix::errno::Errno;
use std::ffi::{c_int, c_long, c_void};
use std::fs::{File, OpenOptions};
use std::io::Result;
use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_write_ptr_bad!(block_page, 0x1269, super::BlkpgIoctlArg);
    nix::ioctl_read!(get_flags, b'f', 1, super::c_long);
    nix::ioctl_write_ptr!(set_flags, b'f', 2, super::c_long);
}

/// `FS_IMMUTABLE_FL`.
const IMMUTABLE: c_long = 0x10;
/// `BLKPG_RESIZE_PARTITION` of `linux/blkpg.h`.
const RESIZE: c_int = 3;

/// `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    names: [u8; 128],
}

/// `struct blkpg_ioctl_arg` of `linux/blkpg.h`.
#[repr(C)]
pub struct BlkpgIoctlArg {
    operation: c_int,
    flags: c_int,
    length: c_int,
    data: *mut c_void,
}

/// Sends a device-mapper request and returns the answer.
///
/// # Errors
/// The kernel's, or `EINVAL` for a request of another length.
pub fn device_mapper(command: Command, mut request: Vec<u8>) -> Result<Vec<u8>> {
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

/// Tells the kernel that a partition of `disk` has another length now; works while others of the disk are in use.
///
/// # Errors
/// The kernel's.
pub fn resize_partition(disk: &File, number: u32, start_bytes: u64, length_bytes: u64) -> Result<()> {
    let signed = |bytes: u64| i64::try_from(bytes).map_err(std::io::Error::other);
    let mut partition = BlkpgPartition {
        start: signed(start_bytes)?,
        length: signed(length_bytes)?,
        number: c_int::try_from(number).map_err(std::io::Error::other)?,
        names: [0; 128],
    };
    let argument = BlkpgIoctlArg {
        operation: RESIZE,
        flags: 0,
        length: size_of::<BlkpgPartition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: both structures have the kernel's layout and live on this stack for the whole call; the kernel copies
    // `length` bytes from `data`.
    unsafe { raw::block_page(disk.as_raw_fd(), &raw const argument) }?;
    Ok(())
}

/// Lets a file be removed that has the immutable flag.
///
/// # Errors
/// The kernel's.
pub fn make_mutable(file: &File) -> Result<()> {
    let mut flags = 0;
    // SAFETY: FS_IOC_GETFLAGS writes at most one long, which lives on this stack.
    unsafe { raw::get_flags(file.as_raw_fd(), &raw mut flags) }?;
    let cleared = flags & !IMMUTABLE;
    // SAFETY: FS_IOC_SETFLAGS reads at most one long, which lives on this stack.
    unsafe { raw::set_flags(file.as_raw_fd(), &raw const cleared) }?;
    Ok(())
}
