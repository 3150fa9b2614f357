//! An installation stick: its partitions, the names of its files, and the plan that its installer carries in its signed
//! boot image. Also the mark of an installation that has begun. Knows no disks.
//!
//! Partition 1 is plain FAT of Microsoft's data type, so that Windows and macOS show it; partition 2 is the ESP. Neither
//! has a label of an installed disk, so that no init takes a stick for one.

use crate::arch::Arch;
use serde::{Deserialize, Serialize};

/// Label of the partition that people see.
pub const LABEL_DATA: &str = "farhold-stick";
/// Its type: Microsoft basic data.
pub const TYPE_DATA: &str = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7";
/// Label of the stick's ESP.
pub const LABEL_BOOT: &str = "farhold-stick-esp";
/// FAT label of the data partition, as file managers show it.
pub const VOLUME: &str = "FARHOLD";
/// Site configuration, at the top of the data partition.
pub const SITE: &str = "site.yaml";
/// Folder of site configurations by serial number or MAC address.
pub const SITES: &str = "sites";
/// Folder of the secrets of pairs, one file a site, drawn when the first of its two nodes is installed.
pub const PAIRS: &str = "pairs";
/// Folder of the release.
pub const RELEASE: &str = "release";
/// Folder of logs, one file an installation.
pub const LOGS: &str = "logs";
/// Digests of what firmware starts, for the installer to compare before it copies it.
pub const CONTENTS: &str = "stick.json";
/// In the initrd: the [`Plan`].
pub const PLAN: &str = "farhold/install.json";
/// In the initrd: the trusted chain of root documents.
pub const ROOTS: &str = "farhold/roots";
/// Word of the kernel command line that a boot image of the installer has.
pub const WORD: &str = "farhold.installer";
/// What names of recovery entries begin with; the init looks for it.
pub const RECOVERY: &str = "recovery_";

/// What the installer is for and how it lays out a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Format, 1.
    pub format: u32,
    /// Product of the release.
    pub product: String,
    /// Board of the release.
    pub board: String,
    /// Processor.
    pub arch: Arch,
    /// Version of the release, for people.
    pub version: String,
    /// Bytes of the ESP.
    pub esp_bytes: u64,
    /// Bytes of each root partition.
    pub root_bytes: u64,
    /// Bytes of each verity partition.
    pub verity_bytes: u64,
    /// Seconds that the boot menu is shown.
    pub menu_s: u32,
    /// Which disk is meant where the site says nothing.
    pub target: Rules,
    /// Whether the image can be a node of a pair, so that a dialogue asks.
    #[serde(default)]
    pub pair: bool,
}

/// Rules for the target disk. What is absent is not asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Buses: `nvme`, `ata`, `mmc`, `virtio`, `scsi`, `usb`; empty for all but `usb`.
    #[serde(default)]
    pub bus: Vec<String>,
    /// Least size, GiB.
    #[serde(default)]
    pub min_gib: Option<u64>,
    /// Largest size, GiB.
    #[serde(default)]
    pub max_gib: Option<u64>,
    /// Part of the model's name, any case.
    #[serde(default)]
    pub model: Option<String>,
    /// The disk's serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// Which of several that fit.
    #[serde(default)]
    pub prefer: Option<Prefer>,
}

/// Which of several disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// The smallest that is large enough.
    Smallest,
    /// The largest.
    Largest,
}

/// What the stick's [`CONTENTS`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// Format, 1.
    pub format: u32,
    /// SHA-256 of the installer's boot image, hexadecimal.
    pub installer_sha256: String,
    /// Its length.
    pub installer_bytes: u64,
}

/// Sector in which an installation that has begun is marked: behind the table, before the first partition.
pub const MARK_SECTOR: u64 = 2040;
/// Bytes of the mark.
pub const MARK_BYTES: usize = 512;
const MARK: &[u8] = b"farhold-install-v1 begun: not complete; start the stick again\n";

/// The mark.
pub fn mark() -> [u8; MARK_BYTES] {
    let mut block = [0; MARK_BYTES];
    block[..MARK.len()].copy_from_slice(MARK);
    block
}

/// Whether these bytes are the mark, every one.
pub fn is_mark(bytes: &[u8]) -> bool {
    bytes == mark()
}
