//! Reads the facts of this boot and of this moment. No decisions; what cannot be read is a reason in words.

use crate::io::{efi, ioctl, systemd};
use crate::pair_view;
use crate::step::{Facts, Look, Room};
use anyhow::{Context, Result, ensure};
use formats::boot::{BOOT_FACTS, EARLY_FACTS};
use formats::device::{DEVICE_PROFILE, DeviceProfile};
use formats::dm::{self, Command, ROOT_NAME};
use formats::layout::Slot;
use formats::status::{Observed, ProfileId};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Largest file of facts that is read, bytes.
const FACTS_MAX: u64 = 1 << 20;

/// Everything that does not change until the next boot.
pub fn facts() -> Facts {
    let mut unread = Vec::new();
    let mut keep = |error: anyhow::Error| unread.push(format!("{error:#}"));
    let profile = json::<DeviceProfile>(DEVICE_PROFILE).map_err(&mut keep).ok();
    let boot = json(BOOT_FACTS).map_err(&mut keep).ok();
    let early = json(EARLY_FACTS).map_err(&mut keep).ok();
    let fallback = efi::fallback().map_err(&mut keep).ok().flatten();
    let version = profile.as_ref().map_or("unknown", |profile| profile.version.as_str());
    let observed = observed(version).map_err(&mut keep).ok();
    let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned());
    Facts {
        node: line("/proc/sys/kernel/hostname").unwrap_or_default(),
        machine_id: line("/etc/machine-id").unwrap_or_default(),
        boot_id: line("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        profile: profile.map(names).unwrap_or_default(),
        boot,
        early,
        observed,
        fallback,
        unread,
    }
}

fn names(profile: DeviceProfile) -> ProfileId {
    let arch = profile.arch.to_string();
    ProfileId { name: profile.profile, product: profile.product, arch, board: profile.board }
}

fn json<T: DeserializeOwned>(path: &str) -> Result<T> {
    let mut text = Vec::new();
    let file = File::open(path).with_context(|| format!("read {path}"))?;
    file.take(FACTS_MAX).read_to_end(&mut text).with_context(|| format!("read {path}"))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {path}"))
}

/// Slot and roothash from the device-mapper table of the root, the one thing that cannot be mistaken.
fn observed(version: &str) -> Result<Observed> {
    let answer = ioctl::device_mapper(Command::Table, dm::request(Command::Table, ROOT_NAME, None))
        .with_context(|| format!("read the device-mapper table of {ROOT_NAME}"))?;
    let root = fs::metadata("/").context("look at /")?.dev();
    let minor = dm::minor(&answer).map(u64::from);
    ensure!(minor == Some(nix::sys::stat::minor(root)), "/ is not on the device {ROOT_NAME}");
    let table = dm::table(&answer).with_context(|| format!("the table of {ROOT_NAME} is not Farhold's"))?;
    let slot = slot_of(&label(&table.data)?, &label(&table.hash)?)?;
    let kernel = nix::sys::utsname::uname().context("ask for the kernel's release")?;
    let kernel = kernel.release().to_string_lossy().into_owned();
    Ok(Observed { slot, roothash: table.roothash, version: version.to_owned(), kernel })
}

/// The partition label of a device given as `major:minor`.
fn label(device: &str) -> Result<String> {
    let path = Path::new("/sys/dev/block").join(device).join("uevent");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let name = text.lines().find_map(|line| line.strip_prefix("PARTNAME="));
    Ok(name.with_context(|| format!("device {device} of the root is no partition with a label"))?.to_owned())
}

fn slot_of(root: &str, verity: &str) -> Result<Slot> {
    let slot = Slot::BOTH.into_iter().find(|slot| slot.root_label() == root && slot.verity_label() == verity);
    slot.with_context(|| format!("partitions `{root}` and `{verity}` are not a slot"))
}

/// What changes: systemd's view and the room of `/var`.
pub fn look() -> Look {
    let room = nix::sys::statvfs::statvfs("/var").ok().map(|var| {
        let block = var.fragment_size();
        let free_files = (var.files() > 0).then(|| var.files_available());
        Room { bytes: var.blocks() * block, free_bytes: var.blocks_available() * block, free_files }
    });
    Look { system: systemd::view().map_err(|error| format!("{error:#}")), room, ha: pair_view::look() }
}

/// Resident memory of this process, bytes; 0 if the kernel does not tell.
pub fn rss_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    pages * page.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(4096)
}

/// Most memory that this process ever had resident, bytes; 0 if the kernel does not tell.
pub fn peak_rss_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
    kib.and_then(|kib| kib.trim().parse::<u64>().ok()).map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_needs_both_of_its_partitions() {
        assert_eq!(slot_of("farhold-root-b", "farhold-verity-b").unwrap(), Slot::B);
        assert!(slot_of("farhold-root-b", "farhold-verity-a").is_err());
        assert!(slot_of("", "").is_err());
    }

    #[test]
    fn own_memory_is_told() {
        let (now, peak) = (rss_bytes(), peak_rss_bytes());
        assert!((1 << 20..1 << 32).contains(&now) && peak >= 1 << 20, "{now}, {peak}");
    }
}
