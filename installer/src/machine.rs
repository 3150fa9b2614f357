//! The machine as the kernel shows it in `/sys`: disks, serial numbers, hardware addresses. Only reads.

use crate::choose::Candidate;
use crate::disk::BlockDevice;
use crate::inspect::{self, Contents};
use anyhow::{Context, Result};
use formats::arch::Arch;
use formats::gpt::{Guid, Header, Partition, SECTOR, Table};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Kernel names that are no disks of their own.
const VIRTUAL: [&str; 9] = ["loop", "ram", "dm-", "zram", "sr", "fd", "nbd", "md", "mtd"];

/// A partition that the kernel shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Device, as `/dev/sda1`.
    pub device: String,
    /// Its entry in the table.
    pub entry: Partition,
}

/// All disks of the machine. `started` is the partition that this system was started from.
///
/// # Errors
/// If the list cannot be read; a single disk that cannot be is in the list as such.
pub fn disks(arch: Arch, started: Option<Guid>) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list /sys/block")? {
        let name = entry.context("list /sys/block")?.file_name().to_string_lossy().into_owned();
        let boot_area = name.contains("boot") || name.contains("rpmb");
        if VIRTUAL.iter().any(|kind| name.starts_with(kind)) || name.starts_with("mmcblk") && boot_area {
            continue;
        }
        let disk = disk(&name, arch, started);
        if disk.bytes > 0 {
            found.push(disk);
        }
    }
    found.sort_by(|a, b| a.device.cmp(&b.device));
    Ok(found)
}

/// One disk by its kernel name.
pub fn disk(name: &str, arch: Arch, started: Option<Guid>) -> Candidate {
    let folder = Path::new("/sys/block").join(name);
    let place = fs::canonicalize(&folder).unwrap_or_else(|_| folder.clone());
    let value = |file: &str| text(&folder.join(file));
    let number = |file: &str| value(file).parse::<u64>().unwrap_or(0);
    let device = format!("/dev/{name}");
    let contents = match BlockDevice::open(Path::new(&device), false) {
        Ok(disk) => inspect::inspect(&disk, arch),
        Err(error) => Contents::Unreadable(format!("{error:#}")),
    };
    let on_it = |guid: Guid| partitions(name).iter().any(|node| node.entry.guid == guid);
    let model = [value("device/vendor"), value("device/model"), value("device/name")];
    let model: Vec<&str> =
        model.iter().map(String::as_str).filter(|t| !t.is_empty() && !t.starts_with("0x")).collect();
    Candidate {
        bytes: number("size") * SECTOR as u64,
        sector: u32::try_from(number("queue/logical_block_size")).unwrap_or(0),
        bus: bus(&place).to_owned(),
        model: model.join(" "),
        serial: serial(&folder, &place),
        removable: number("removable") == 1,
        read_only: number("ro") == 1,
        started: started.is_some_and(on_it),
        contents,
        device,
    }
}

/// The bus, from where the disk hangs in the tree of devices.
fn bus(place: &Path) -> &'static str {
    let place = place.to_string_lossy();
    let found = [("/usb", "usb"), ("/nvme", "nvme"), ("/ata", "ata"), ("/mmc", "mmc"), ("/host", "scsi")];
    let known = found.iter().find(|(part, _)| place.contains(part)).map(|(_, bus)| *bus);
    known.unwrap_or(if place.contains("/virtio") { "virtio" } else { "scsi" })
}

fn serial(folder: &Path, place: &Path) -> String {
    let direct = ["device/serial", "serial"].iter().map(|file| text(&folder.join(file)));
    if let Some(found) = direct.into_iter().find(|text| !text.is_empty()) {
        return found;
    }
    // SCSI's "unit serial number" page: four bytes of head, then text.
    if let Ok(page) = fs::read(folder.join("device/vpd_pg80")) {
        let text = String::from_utf8_lossy(page.get(4..).unwrap_or_default()).trim().to_owned();
        if !text.is_empty() {
            return text;
        }
    }
    let usb = place.ancestors().find(|above| above.join("idVendor").exists());
    usb.map(|usb| text(&usb.join("serial"))).unwrap_or_default()
}

/// A small file's text without blanks at its ends; empty if there is none.
fn text(path: &Path) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim_matches(['\0', ' ', '\n', '\t']).to_owned())
        .unwrap_or_default()
}

/// The partitions of a disk, by its primary table.
pub fn partitions(name: &str) -> Vec<Node> {
    let read = || -> Result<Table> {
        let file = File::open(format!("/dev/{name}"))?;
        let mut sector = [0; SECTOR];
        file.read_exact_at(&mut sector, SECTOR as u64)?;
        let header = Header::parse(&sector, 1)?;
        let mut entries = vec![0; header.entries_bytes()];
        file.read_exact_at(
            &mut entries,
            header.entries_at.checked_mul(SECTOR as u64).context("beyond any disk")?,
        )?;
        Ok(Table::new(header, &entries)?)
    };
    let separator = if name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
    let node = |entry: Partition| Node { device: format!("/dev/{name}{separator}{}", entry.number), entry };
    read().map(|table| table.partitions().into_iter().map(node).collect()).unwrap_or_default()
}

/// Serial numbers and hardware addresses by which a site's file may be named.
pub fn ids() -> Vec<String> {
    let serials = ["product_serial", "board_serial", "chassis_serial", "product_uuid"];
    let mut ids: Vec<String> =
        serials.iter().map(|file| text(&Path::new("/sys/class/dmi/id").join(file))).collect();
    ids.push(text(Path::new("/proc/device-tree/serial-number")));
    let links: Vec<PathBuf> = fs::read_dir("/sys/class/net")
        .map(|list| list.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    let mut macs: Vec<String> = links.iter().map(|link| text(&link.join("address"))).collect();
    macs.sort();
    ids.extend(macs);
    let placeholder =
        |id: &str| id.is_empty() || id.starts_with("00:00:00:00") || id.contains("Default string");
    ids.retain(|id| !placeholder(id) && id != "Not Specified" && id != "To Be Filled By O.E.M.");
    ids.dedup();
    ids
}
