//! A profile after every name was looked up, every variable filled in and every template rendered: plain values, the
//! input of `lock`, `plan` and `build`. Made by `profile`, knows nothing of mirrors, caches or images.

use formats::arch::Arch;
use formats::device::DeviceProfile;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything that decides an image, except what the lock pins.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// The profile as the device will see it; also carries name, version, product, arch and board.
    pub device: DeviceProfile,
    /// Debian packages asked for, by name, with the pack that asks.
    pub packages: BTreeMap<String, Origin>,
    /// Where Debian packages come from and how they are unpacked.
    pub debian: Debian,
    /// Files fetched by digest.
    pub artefacts: Vec<Artefact>,
    /// Files of packs and settings, rendered, in layer order.
    pub files: Vec<ImageFile>,
    /// systemd units to enable, disable or mask.
    pub units: Units,
    /// People and services with an account, besides those that packages declare by sysusers.d.
    pub users: Vec<User>,
    /// Kernel, modules and command line of the board.
    pub boot: Boot,
    /// Sizes of partitions.
    pub disk: Disk,
}

/// Who asked for something: a pack (`k3s 1.33.4`), the board, or a place in the profile (`settings.users`).
pub type Origin = String;

/// The Debian part of the `os` pack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Debian {
    /// Suites in apt's words, as `trixie`, `trixie-updates`; `trixie-security` is looked for on the security mirror.
    pub suites: Vec<String>,
    /// Archive components, as `main`.
    pub components: Vec<String>,
    /// Shell patterns of paths in packages that are not unpacked (later `keep` wins).
    pub exclude: Vec<String>,
    /// Exceptions from `exclude`.
    pub keep: Vec<String>,
    /// What replaces each maintainer script that is not made of known debhelper snippets only, by package name.
    pub scripts: BTreeMap<String, ScriptRule>,
    /// Packages that are left out though others depend on them, by name, with the reason. A pack that asks for one
    /// by name gets it.
    #[serde(default)]
    pub absent: BTreeMap<String, Absent>,
}

/// Why a package that others depend on is left out.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Absent {
    /// Why the image works without it.
    pub because: String,
    /// Packages that may depend on it all the same; any other that does is an error. Empty: all may.
    #[serde(default)]
    pub used_by: Vec<String>,
}

/// What stands in for a package's maintainer scripts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptRule {
    /// Why these steps do what the scripts would have done in an image.
    pub because: String,
    /// Steps, in order.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// A declared step on the root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Copies a file of the tree.
    Copy {
        /// Absolute source path.
        from: String,
        /// Absolute target path.
        to: String,
        /// Octal mode of the copy; the source's if absent.
        #[serde(default)]
        mode: Option<String>,
    },
    /// Makes a symbolic link.
    Symlink {
        /// Absolute path of the link.
        path: String,
        /// What it points to.
        target: String,
    },
    /// Makes a folder.
    Directory {
        /// Absolute path.
        path: String,
        /// Octal mode.
        mode: String,
        /// `user:group`.
        #[serde(default)]
        owner: Option<String>,
    },
    /// Makes a small text file.
    File {
        /// Absolute path.
        path: String,
        /// Contents.
        text: String,
        /// Octal mode.
        #[serde(default)]
        mode: Option<String>,
    },
    /// Sets mode or owner of a path.
    Owner {
        /// Absolute path.
        path: String,
        /// `user:group`.
        owner: String,
        /// Octal mode.
        #[serde(default)]
        mode: Option<String>,
    },
    /// Adds a system user (sysusers.d line of kind `u`, or `g` for a group only).
    Sysuser {
        /// One line in sysusers.d syntax.
        line: String,
    },
    /// Makes the link that `update-alternatives` would make.
    Alternative {
        /// Generic path, as `/usr/bin/awk`.
        link: String,
        /// Chosen program.
        target: String,
    },
    /// Makes `/etc/ssl/certs/ca-certificates.crt` and its hash links from the certificates in `folder`.
    CaBundle {
        /// Folder of certificates.
        folder: String,
    },
    /// Removes a path, and what is below it.
    Remove {
        /// Absolute path.
        path: String,
    },
}

/// A file fetched by digest: from the cache, a folder of artefacts, or its URL, in that order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Artefact {
    /// Name, unique in the profile.
    pub name: String,
    /// Pack that asks.
    pub origin: Origin,
    /// Where it is published; `None` for what is built beside the builder (agent, init).
    pub url: Option<String>,
    /// SHA-256; `None` where the operator's lock supplies it.
    pub sha256: Option<String>,
    /// Length in bytes, if known.
    pub size: Option<u64>,
    /// Where it goes.
    pub install: Install,
}

/// Where an artefact goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "as", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Install {
    /// A file in the image.
    File {
        /// Absolute path.
        path: String,
        /// Octal mode.
        mode: String,
    },
    /// The program that the initrd starts.
    Init,
    /// A Debian package (.deb) that no archive has, unpacked like any other; the board's kernel may be one.
    Package,
    /// A tar archive (optionally gzip, xz or zstd) unpacked below a folder of the image.
    Tar {
        /// Absolute path of the folder.
        path: String,
    },
}

/// One rendered file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageFile {
    /// Absolute path in the image.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner and group names.
    pub owner: (String, String),
    /// Contents.
    pub content: FileContent,
    /// Who brought it.
    pub origin: Origin,
}

/// Contents of a rendered file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FileContent {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// Bytes of a file on the builder's disk, unchanged.
    Copy {
        /// Its path.
        from: PathBuf,
    },
    /// A symbolic link.
    Symlink {
        /// What it points to.
        target: String,
    },
    /// An empty folder.
    Directory,
}

/// systemd units by what happens to them; later layers win.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Units {
    /// Enabled as their `[Install]` section says.
    #[serde(default)]
    pub enable: Vec<String>,
    /// Not enabled, though a package would.
    #[serde(default)]
    pub disable: Vec<String>,
    /// Linked to `/dev/null`.
    #[serde(default)]
    pub mask: Vec<String>,
}

/// An account.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct User {
    /// Login name.
    pub name: String,
    /// Supplementary groups.
    pub groups: Vec<String>,
    /// Login shell.
    pub shell: String,
    /// crypt(3) hash; `None` locks the password.
    pub password_hash: Option<String>,
    /// Lines of `authorized_keys`; the file stands at `/etc/ssh/authorized_keys.d/<name>`.
    pub ssh_keys: Vec<String>,
}

/// Kernel and boot of a board.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// Debian package whose dependency is the kernel image, as `linux-image-cloud-amd64`.
    pub kernel_package: String,
    /// Modules that the initrd loads, by name, in order; dependencies are added.
    pub initrd_modules: Vec<String>,
    /// Words added to the kernel command line.
    pub kernel_args: Vec<String>,
    /// Hardware watchdog timeout, seconds.
    pub watchdog_s: Option<u32>,
    /// Shell patterns, below `/usr/lib/modules/<release>/kernel`, of modules that the image keeps; empty keeps all.
    pub keep_modules: Vec<String>,
    /// Seconds that systemd-boot shows its menu.
    pub menu_s: u32,
    /// Shell pattern of the one device tree, a file of the kernel's package, that the boot image hands to the kernel;
    /// `None` leaves it to the firmware.
    #[serde(default)]
    pub device_tree: Option<String>,
}

/// Sizes of a disk image; `None` lets the builder choose (slots twice the first image).
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// ESP, MiB.
    #[serde(default)]
    pub esp_mib: Option<u64>,
    /// Each root slot, MiB.
    #[serde(default)]
    pub slot_mib: Option<u64>,
    /// State partition as built, MiB; the device grows it to the disk's end.
    #[serde(default)]
    pub state_mib: Option<u64>,
}

impl Resolved {
    /// Processor that the image is for.
    pub fn arch(&self) -> Arch {
        self.device.arch
    }
}
