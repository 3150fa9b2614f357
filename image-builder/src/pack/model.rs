//! The file `pack.yaml` as types. Familiar to people who know Palette's `pack.json`: layers, constraints with
//! `required`, `optional`, `notSupported`, `upgrade`; digests instead of tags, typed values instead of YAML in strings.

use crate::resolved::{Install, Units};
use formats::arch::Arch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a layer is for; a profile lists layers in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// The operating system; exactly one.
    Os,
    /// The Kubernetes distribution; at most one.
    Kubernetes,
    /// The pod network; at most one.
    Cni,
    /// Storage classes.
    Csi,
    /// Everything else.
    Addon,
}

impl LayerKind {
    /// The name in files and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Os => "os",
            Self::Kubernetes => "kubernetes",
            Self::Cni => "cni",
            Self::Csi => "csi",
            Self::Addon => "addon",
        }
    }
}

/// Names of processors, for the published schemas.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) enum ArchName {
    #[schemars(rename = "x86_64")]
    X86_64,
    #[schemars(rename = "arm64")]
    Arm64,
}

/// A map with processors as keys, for the published schemas.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct ByArch<T> {
    x86_64: Option<T>,
    arm64: Option<T>,
}

/// `pack.yaml`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PackFile {
    /// Name; also the folder's.
    pub name: String,
    /// Version; also the folder's.
    pub version: String,
    /// Name for people.
    pub display_name: String,
    /// One or two sentences.
    #[serde(default)]
    pub description: String,
    /// Which layer it fills.
    pub layer: LayerKind,
    /// Processors it is made for.
    #[schemars(with = "Vec<ArchName>")]
    pub arch: Vec<Arch>,
    /// What it needs beside it.
    #[serde(default)]
    pub constraints: Constraints,
    /// Debian packages for every processor.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Debian packages for one processor.
    #[serde(default)]
    #[schemars(with = "ByArch<Vec<String>>")]
    pub packages_by_arch: BTreeMap<Arch, Vec<String>>,
    /// Files fetched by digest.
    #[serde(default)]
    pub artefacts: Vec<PackArtefact>,
    /// systemd units.
    #[serde(default)]
    pub units: Units,
    /// Octal modes of paths below `files/` that differ from 0644.
    #[serde(default)]
    pub modes: BTreeMap<String, String>,
    /// Words for the kernel command line.
    #[serde(default)]
    pub kernel_args: Vec<String>,
    /// Where Debian packages come from and how they are unpacked; only in the `os` layer.
    #[serde(default)]
    pub debian: Option<DebianFile>,
}

/// What a pack needs beside it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Constraints {
    /// Other packs.
    #[serde(default)]
    pub dependencies: Vec<Dependency>,
    /// Least resources, added up over the profile and compared with the board.
    #[serde(default)]
    pub resources: Resources,
}

/// A constraint on another pack or layer.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Dependency {
    /// Name of the other pack; or `layer`.
    #[serde(default)]
    pub pack: Option<String>,
    /// Any pack of this layer.
    #[serde(default)]
    pub layer: Option<LayerKind>,
    /// Kind of constraint.
    #[serde(rename = "type")]
    pub kind: DependencyKind,
    /// Lowest version, included.
    #[serde(default)]
    pub min_version: Option<String>,
    /// Highest version, included.
    #[serde(default)]
    pub max_version: Option<String>,
}

/// Kind of a [`Dependency`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum DependencyKind {
    /// Must be in the profile, in the range.
    Required,
    /// If it is in the profile, it must be in the range.
    Optional,
    /// Must not be in the profile in the range.
    NotSupported,
    /// This pack may replace versions of the named pack in the range on a device; checked when a release is published.
    Upgrade,
}

/// Resources of a pack or board.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Processor time, thousandths of a core.
    #[serde(default)]
    pub cpu_m: u64,
    /// Memory, MiB.
    #[serde(default)]
    pub memory_mib: u64,
    /// Disk, MiB.
    #[serde(default)]
    pub disk_mib: u64,
}

/// A file fetched by digest, per processor.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PackArtefact {
    /// Name, unique in a profile.
    pub name: String,
    /// Where it goes.
    pub install: Install,
    /// Where it comes from; empty for what is built beside the builder.
    #[serde(default)]
    #[schemars(with = "ByArch<Source>")]
    pub source: BTreeMap<Arch, Source>,
}

/// Where an artefact is published.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Address.
    pub url: String,
    /// SHA-256; absent where the operator's lock supplies it.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Length, bytes.
    #[serde(default)]
    pub size: Option<u64>,
}

/// Where Debian packages come from and how they are unpacked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DebianFile {
    /// Suites in apt's words; names that end in `-security` come from the security mirror.
    pub suites: Vec<String>,
    /// Archive components.
    pub components: Vec<String>,
    /// File beside `pack.yaml` with `exclude`, `keep`, `absent` and `scripts`.
    pub rules: String,
}
