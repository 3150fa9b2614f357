//! UEFI variables that boot and device exchange, as bytes: systemd's Boot Loader Interface and Farhold's own record
//! of a fallback that is under way.
//!
//! Follows systemd's "Boot Loader Interface" page and the kernel's `Documentation/filesystems/efivarfs.rst`: a file
//! holds four bytes of attributes, then the value. Knows nothing of files. No rollback depends on these variables:
//! they only shorten the way to a slot that works.

use serde::{Deserialize, Serialize};

/// Where the kernel shows variables.
pub const EFIVARFS: &str = "/sys/firmware/efi/efivars";
/// Vendor of the Boot Loader Interface.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// Vendor of Farhold's own variables.
const FARHOLD: &str = "8d1f5c4e-6d0b-4f0e-9c53-2a7be1f0c6d4";
/// Non-volatile, and readable and writable before and after the start of the system.
const ATTRIBUTES: u32 = 7;
/// Longest value that is read.
pub const VALUE_MAX: usize = 4096;

/// A variable that Farhold reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// GUID of the partition that systemd-boot was started from.
    LoaderDevicePartUuid,
    /// Set, to the entry's path, only if systemd-boot renamed a counted entry for this boot.
    LoaderBootCountPath,
    /// Entry that systemd-boot starts once, at the next boot.
    LoaderEntryOneShot,
    /// Microseconds from power-on to systemd-boot.
    LoaderTimeInit,
    /// Microseconds from power-on to the start of the kernel.
    LoaderTimeExec,
    /// [`Fallback`] as JSON.
    FarholdFallback,
}

impl Variable {
    /// The file name in [`EFIVARFS`].
    pub fn file_name(self) -> String {
        let (name, vendor) = match self {
            Self::LoaderDevicePartUuid => ("LoaderDevicePartUUID", LOADER),
            Self::LoaderBootCountPath => ("LoaderBootCountPath", LOADER),
            Self::LoaderEntryOneShot => ("LoaderEntryOneShot", LOADER),
            Self::LoaderTimeInit => ("LoaderTimeInitUSec", LOADER),
            Self::LoaderTimeExec => ("LoaderTimeExecUSec", LOADER),
            Self::FarholdFallback => ("FarholdFallback", FARHOLD),
        };
        format!("{name}-{vendor}")
    }
}

/// Reads a variable's file as text; anything but UTF-16 with an optional final NUL gives `None`.
pub fn decode(file: &[u8]) -> Option<String> {
    let value = file.get(4..)?;
    if value.len() > VALUE_MAX || !value.len().is_multiple_of(2) {
        return None;
    }
    let units: Vec<u16> = value.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let text = units.strip_suffix(&[0]).unwrap_or(&units);
    String::from_utf16(text).ok()
}

/// A variable's file with attributes and NUL.
pub fn encode(text: &str) -> Vec<u8> {
    let units = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    ATTRIBUTES.to_le_bytes().into_iter().chain(units).collect()
}

/// Boots that the init asked for since the agent last came up, so that it never asks without end.
///
/// The init adds to it before it reboots; the agent removes it when it runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// What failed first, for the operator.
    pub why: String,
    /// Entry ids asked for, in order; an empty one stands for the same entry once more.
    pub asked: Vec<String>,
}

impl Fallback {
    /// Reads the value of [`Variable::FarholdFallback`]; an unreadable record counts as none.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// How often an entry was asked for.
    pub fn times(&self, id: &str) -> usize {
        self.asked.iter().filter(|asked| *asked == id).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip() {
        for text in ["", "1.0_0123abcd.efi", "1234567"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
        assert_eq!(encode("a"), [7, 0, 0, 0, b'a', 0, 0, 0]);
    }

    #[test]
    fn odd_short_and_endless_values_are_refused() {
        assert_eq!(decode(&[7, 0, 0]), None);
        assert_eq!(decode(&[7, 0, 0, 0, b'a']), None);
        assert_eq!(decode(&[7, 0, 0, 0, 0, 0xd8]), None);
        assert_eq!(decode(&vec![0; VALUE_MAX + 6]), None);
    }
}
