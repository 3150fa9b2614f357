//! Facts about this boot, handed on as JSON: the init writes [`BootFacts`] to [`BOOT_FACTS`], the early stage of the
//! agent (run from the verified root before the service manager) writes [`EarlyFacts`] to [`EARLY_FACTS`].

use crate::hex::Digest;
use crate::layout::Slot;
use serde::{Deserialize, Serialize};

/// Where the init leaves [`BootFacts`]; `/run` is moved into the root.
pub const BOOT_FACTS: &str = "/run/farhold/boot.json";
/// Where the early stage leaves [`EarlyFacts`].
pub const EARLY_FACTS: &str = "/run/farhold/early.json";

/// What the init found and did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFacts {
    /// Slot whose partitions the root is read from.
    pub slot: Slot,
    /// Roothash that was opened, from the signed command line.
    pub roothash: Digest,
    /// Release version, from the signed command line.
    pub version: String,
    /// Boot disk, as `/dev/vda`.
    pub disk: String,
    /// Partitions of the boot disk, as `/dev/vda2`.
    pub partitions: Partitions,
    /// Whether systemd-boot counts this boot as a try.
    pub trial: bool,
    /// Which slots hold a complete image, and of which roothash.
    pub slots: Vec<SlotFacts>,
    /// Watchdog device and seconds, if one was armed.
    pub watchdog: Option<Watchdog>,
    /// Milliseconds since the kernel started (`CLOCK_BOOTTIME`) when the init began and when it handed over.
    pub init_ms: [u64; 2],
    /// Microseconds from power-on to systemd-boot and to the kernel (`LoaderTimeInitUSec`, `LoaderTimeExecUSec`),
    /// where the firmware tells.
    pub firmware_us: Option<[u64; 2]>,
    /// Anything unusual, in words.
    pub notes: Vec<String>,
}

/// Device nodes of a Farhold disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions {
    /// EFI system partition.
    pub esp: String,
    /// Root partitions of slots A and B.
    pub root: [String; 2],
    /// Verity partitions of slots A and B.
    pub verity: [String; 2],
    /// State partition; `None` if the disk has none.
    pub state: Option<String>,
}

/// What the init saw of one slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFacts {
    /// Which slot.
    pub slot: Slot,
    /// Roothash of a completed image; `None` if empty, retired or half-written.
    pub complete: Option<Digest>,
}

/// An armed watchdog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watchdog {
    /// Device, as `/dev/watchdog0`.
    pub device: String,
    /// Seconds until reset.
    pub timeout_s: u32,
}

/// What the early stage did with the state partition and `/etc`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlyFacts {
    /// Where `/var` is.
    pub state: StateFacts,
    /// Whether this boot made the device's identity (machine-id).
    pub identity_made: bool,
    /// Files that the `/etc` overlay took from the state store.
    pub etc: Vec<String>,
    /// Milliseconds since the kernel started when the stage began and ended.
    pub early_ms: [u64; 2],
    /// Anything unusual, in words.
    pub notes: Vec<String>,
}

/// Where `/var` is and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum StateFacts {
    /// On the state partition.
    Persistent {
        /// Device node.
        device: String,
        /// Bytes of the partition.
        bytes: u64,
        /// Whether the file system was made in this boot.
        made: bool,
        /// Bytes by which partition or file system grew in this boot.
        grown_bytes: u64,
        /// Whether the check before the mount had to repair something.
        repaired: bool,
    },
    /// On the state partition, which can only be read; changes of this boot are in memory.
    ReadOnly {
        /// Device node.
        device: String,
        /// Why.
        why: String,
    },
    /// In memory: nothing of this boot is kept.
    Ephemeral {
        /// Why.
        why: String,
    },
}
