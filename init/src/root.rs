//! Opens a slot with dm-verity, mounts its EROFS image, and makes it the root of the file system tree.

use crate::ioctl;
use crate::kernel::boot_ms;
use anyhow::{Context, Result, ensure};
use formats::boot::Partitions;
use formats::bootargs::BootArgs;
use formats::dm::{self, Command, ROOT_NAME, VerityTable};
use formats::layout::Slot;
use formats::verity::BLOCK;
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

/// Where the image is mounted before it becomes `/`.
const SYSROOT: &str = "/sysroot";
/// How long the kernel may take to show a device node that it has already made.
const NODE_WAIT_MS: u64 = 5_000;

/// Opens and mounts a slot. After an error nothing of the attempt is left, so that the other slot can be tried.
///
/// # Errors
/// If the partitions are too small for the image, or the kernel refuses to open or mount it.
pub fn mount_slot(slot: Slot, partitions: &Partitions, args: &BootArgs, restart: bool) -> Result<()> {
    let at = match slot {
        Slot::A => 0,
        Slot::B => 1,
    };
    let (data, hash) = (&partitions.root[at], &partitions.verity[at]);
    ensure_room(data, args.verity.data_blocks.saturating_mul(BLOCK as u64))?;
    ensure_room(hash, args.verity.hash_area_bytes())?;
    let table = VerityTable {
        data: data.clone(),
        hash: hash.clone(),
        parameters: args.verity,
        roothash: args.roothash,
        restart,
    };
    let mounted = open(&table).and_then(|device| mount_image(&device));
    if mounted.is_err() {
        // Nothing to remove if the device was never made.
        drop(ioctl::device_mapper(Command::Remove, dm::request(Command::Remove, ROOT_NAME, None)));
    }
    mounted
}

fn open(table: &VerityTable) -> Result<String> {
    let send = |command: Command, table| {
        let request = dm::request(command, ROOT_NAME, table);
        ioctl::device_mapper(command, request).with_context(|| format!("device-mapper {command:?}"))
    };
    send(Command::Create, None)?;
    send(Command::Load, Some(table)).with_context(|| format!("load table `{}`", table.text()))?;
    let answer = send(Command::Resume, None)?;
    let minor = dm::minor(&answer).context("device-mapper gave no device number")?;
    let node = format!("/dev/dm-{minor}");
    let deadline = boot_ms() + NODE_WAIT_MS;
    while !Path::new(&node).exists() {
        ensure!(boot_ms() < deadline, "the kernel made {node} but does not show it");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(node)
}

fn mount_image(device: &str) -> Result<()> {
    fs::create_dir_all(SYSROOT).with_context(|| format!("make {SYSROOT}"))?;
    mount(Some(device), SYSROOT, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>)
        .with_context(|| format!("mount {device} as EROFS"))
}

fn ensure_room(device: &str, needed: u64) -> Result<()> {
    let mut file = File::open(device).with_context(|| format!("open {device}"))?;
    let bytes = file.seek(SeekFrom::End(0)).with_context(|| format!("read the size of {device}"))?;
    ensure!(bytes >= needed, "{device} has {bytes} bytes, the image needs {needed}");
    Ok(())
}

/// Moves the kernel's file systems into the image and makes it `/`, for the init and for the kernel's own threads.
///
/// # Errors
/// If a mount cannot be moved.
pub fn switch() -> Result<()> {
    for folder in ["/dev", "/proc", "/sys", "/run"] {
        move_mount(folder, &format!("{SYSROOT}{folder}"))?;
    }
    if let Err(error) = fs::remove_file("/init") {
        ensure!(error.kind() == std::io::ErrorKind::NotFound, "free the init's own file: {error}");
    }
    nix::unistd::chdir(SYSROOT).with_context(|| format!("enter {SYSROOT}"))?;
    move_mount(".", "/")?;
    nix::unistd::chroot(".").context("make the image the root")?;
    nix::unistd::chdir("/").context("enter the new root")
}

fn move_mount(from: &str, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .with_context(|| format!("move {from} to {to}"))
}
