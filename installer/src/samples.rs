//! What several tests install, and onto what.

use crate::choose::Candidate;
use crate::inspect::Contents;
use formats::arch::Arch;
use formats::stick::{Plan, Rules};

/// A small release.
pub fn plan() -> Plan {
    Plan {
        format: 1,
        product: "edge".into(),
        board: "vm".into(),
        arch: Arch::X86_64,
        version: "1.0.0".into(),
        esp_bytes: 2 << 20,
        root_bytes: 4 << 20,
        verity_bytes: 1 << 20,
        menu_s: 0,
        target: Rules::default(),
        pair: false,
    }
}

/// A disk of so many GiB without model and serial number.
pub fn disk(device: &str, bus: &str, gib: u64, contents: Contents) -> Candidate {
    Candidate {
        device: device.into(),
        bytes: gib << 30,
        sector: 512,
        bus: bus.into(),
        model: String::new(),
        serial: String::new(),
        removable: false,
        read_only: false,
        started: false,
        contents,
    }
}
