//! The lock: every package, tool and artefact of a build by version and SHA-256, and every user and group id.
//!
//! Plain values and their checks; who resolves, downloads or builds is elsewhere.

use formats::arch::Arch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Format of [`Lock`].
pub const LOCK_FORMAT: u32 = 1;

/// A lock file, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_FORMAT`].
    pub format: u32,
    /// Profile name it was made for.
    pub profile: String,
    /// What is pinned, by architecture.
    pub arch: BTreeMap<Arch, LockedArch>,
    /// Packages of the tools root, by the architecture of the machine that builds.
    pub tools: BTreeMap<Arch, LockedTools>,
}

/// The pinned tools root of one kind of build machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedTools {
    /// Mirror base address by role.
    pub mirrors: BTreeMap<String, String>,
    /// The whole package set, sorted by name and architecture.
    pub packages: Vec<LockedPackage>,
}

/// What is pinned for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedArch {
    /// Board it was made for.
    pub board: String,
    /// Names of the packages asked for; a lock made for others is stale.
    pub requested: Vec<String>,
    /// Mirror base address by role (`archive`, `security`) as used; a snapshot mirror may stand here.
    pub mirrors: BTreeMap<String, String>,
    /// The whole package set, sorted by name.
    pub packages: Vec<LockedPackage>,
    /// Artefacts by name.
    pub artefacts: BTreeMap<String, LockedArtefact>,
    /// Ids of users by name.
    pub uids: BTreeMap<String, u32>,
    /// Ids of groups by name.
    pub gids: BTreeMap<String, u32>,
}

/// One pinned package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// `amd64`, `arm64` or `all`.
    pub architecture: String,
    /// Source package and version, for the SBOM, if it differs from the binary's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Role of the mirror (key of `mirrors`).
    pub mirror: String,
    /// Path below the mirror, as `pool/main/…`.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// One pinned artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedArtefact {
    /// Where it is published, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
}
