//! Processor architectures as values: both are built and tested on either.

use serde::{Deserialize, Serialize};

/// A processor architecture that images are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit x86 (Intel NUC and generic UEFI machines).
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm (NVIDIA Jetson and generic UEFI machines).
    #[serde(rename = "arm64")]
    Arm64,
}

impl Arch {
    /// Every architecture, in the order of listings.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Arm64];

    /// The name in profiles, folders and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }
    /// Debian's name of the architecture.
    pub const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
    /// The multiarch library folder, as in `/usr/lib/<triplet>`.
    pub const fn triplet(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }
    /// The suffix that UEFI gives file names of this machine type (UEFI 2.10, 3.5.1.1).
    pub const fn efi(self) -> &'static str {
        match self {
            Self::X86_64 => "x64",
            Self::Arm64 => "aa64",
        }
    }
    /// The architecture of the running program, if images exist for it.
    pub fn host() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Arm64),
            _ => None,
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Arch {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|arch| arch.name() == text)
            .ok_or_else(|| format!("unknown architecture `{text}`, must be x86_64 or arm64"))
    }
}
