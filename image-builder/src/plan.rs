//! What a build does: steps with everything that decides each of them, by name. Pure: facts in, plan out.
//!
//! The same list of inputs is hashed to find a step's output in the cache and shown to explain why it is stale, so
//! the two cannot disagree. Knows nothing of caches, files or how a step is done.

use crate::lock::{LockedArch, LockedPackage};
use crate::resolved::{FileContent, ImageFile, Install, Resolved};
use formats::hex::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A step of a build, in the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepName {
    /// Root file system as an EROFS image.
    Root,
    /// dm-verity hash tree of it.
    Verity,
    /// Initial file system with the init.
    Initrd,
    /// Unified kernel image and boot loader, signed for Secure Boot if keys were given.
    Uki,
    /// Disk image.
    Disk,
    /// Signed release and SBOM.
    Release,
}

impl StepName {
    /// All steps in order.
    pub const ALL: [Self; 6] = [Self::Root, Self::Verity, Self::Initrd, Self::Uki, Self::Disk, Self::Release];

    /// Name in listings and caches.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Verity => "verity",
            Self::Initrd => "initrd",
            Self::Uki => "uki",
            Self::Disk => "disk",
            Self::Release => "release",
        }
    }
    /// What the step makes.
    pub const fn makes(self) -> &'static str {
        match self {
            Self::Root => "root file system (EROFS)",
            Self::Verity => "hash tree (dm-verity)",
            Self::Initrd => "initial file system",
            Self::Uki => "boot image (UKI)",
            Self::Disk => "disk image (GPT, ESP, slots)",
            Self::Release => "signed release and SBOM",
        }
    }
    /// Steps whose outputs it takes.
    const fn after(self) -> &'static [Self] {
        match self {
            Self::Root | Self::Initrd => &[],
            Self::Verity => &[Self::Root],
            Self::Uki => &[Self::Verity, Self::Initrd],
            Self::Disk => &[Self::Verity, Self::Uki],
            Self::Release => &[Self::Verity, Self::Uki],
        }
    }
}

impl std::fmt::Display for StepName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What decides a step, by name; values are digests, versions or plain settings.
pub type Inputs = BTreeMap<String, String>;

/// A step with its inputs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Which one.
    pub step: StepName,
    /// SHA-256 over `inputs`: where its output is in the cache.
    pub key: Digest,
    /// Everything that decides its output.
    pub inputs: Inputs,
}

/// A whole build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In order.
    pub steps: Vec<Step>,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The profile.
    pub resolved: &'a Resolved,
    /// What is pinned for it.
    pub locked: &'a LockedArch,
    /// Packages of the tools root.
    pub tools: &'a [LockedPackage],
    /// SHA-256 of files on the builder's disk that the profile copies.
    pub copied: &'a BTreeMap<PathBuf, Digest>,
    /// SHA-256 of this program: other code may make other bytes.
    pub builder: Digest,
    /// Time of every file in the image, seconds since 1970.
    pub epoch: u64,
    /// SHA-256 of the Secure Boot certificate, if the boot files are signed.
    pub secure_boot: Option<Digest>,
    /// Who signs the release, if there is one.
    pub release: Option<ReleaseFacts>,
}

/// What decides a release besides its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleaseFacts {
    /// SHA-256 of the chain of root documents, which names the keys.
    pub roots: Digest,
    /// Sequence number.
    pub sequence: u32,
}

/// Makes the plan.
pub fn plan(facts: &Facts<'_>) -> Plan {
    let mut steps: Vec<Step> = Vec::new();
    for step in StepName::ALL {
        let mut inputs = match step {
            StepName::Root => root(facts),
            StepName::Verity => Inputs::new(),
            StepName::Initrd => initrd(facts),
            StepName::Uki => uki(facts),
            StepName::Disk => disk(facts),
            StepName::Release => release(facts),
        };
        inputs.insert("builder".into(), facts.builder.to_string());
        for before in steps.iter().filter(|before| step.after().contains(&before.step)) {
            inputs.insert(format!("step {}", before.step), before.key.to_string());
        }
        steps.push(Step { step, key: key(step, &inputs), inputs });
    }
    Plan { steps }
}

impl Plan {
    /// A step of the plan.
    pub fn step(&self, name: StepName) -> Option<&Step> {
        self.steps.iter().find(|step| step.step == name)
    }

    /// SHA-256 over all steps: what a whole output folder was made from.
    pub fn key(&self) -> Digest {
        let mut hasher = Sha256::new();
        for step in &self.steps {
            hasher.update(step.key.0);
        }
        Digest(hasher.finalize().into())
    }
}

/// Lengths stand before texts, so that no two lists of inputs give the same bytes.
fn key(step: StepName, inputs: &Inputs) -> Digest {
    let mut hasher = Sha256::new();
    let mut add = |text: &str| {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text);
    };
    add(step.name());
    for (name, value) in inputs {
        add(name);
        add(value);
    }
    Digest(hasher.finalize().into())
}

fn root(facts: &Facts<'_>) -> Inputs {
    let resolved = facts.resolved;
    let mut inputs = Inputs::new();
    for package in &facts.locked.packages {
        inputs.insert(format!("package {}", package.name), pinned(package));
    }
    for (name, artefact) in &facts.locked.artefacts {
        let is_init =
            resolved.artefacts.iter().any(|a| a.name == *name && matches!(a.install, Install::Init));
        if !is_init {
            inputs.insert(format!("artefact {name}"), artefact.sha256.clone());
        }
    }
    for artefact in &resolved.artefacts {
        inputs.insert(format!("place of artefact {}", artefact.name), digest(&artefact.install));
    }
    for file in &resolved.files {
        inputs.insert(format!("file {}", file.path), file_digest(file, facts.copied));
    }
    for (package, rule) in &resolved.debian.scripts {
        inputs.insert(format!("script rule {package}"), digest(&rule.steps));
    }
    for user in &resolved.users {
        inputs.insert(format!("user {}", user.name), digest(user));
    }
    inputs.insert("debian exclude".into(), digest(&(&resolved.debian.exclude, &resolved.debian.keep)));
    inputs.insert("units".into(), digest(&resolved.units));
    inputs.insert("user and group ids".into(), digest(&(&facts.locked.uids, &facts.locked.gids)));
    inputs.insert("kernel modules".into(), digest(&resolved.boot.keep_modules));
    inputs.insert("initrd modules".into(), resolved.boot.initrd_modules.join(" "));
    inputs.insert("device profile".into(), digest(&resolved.device));
    inputs.insert("version".into(), resolved.device.version.clone());
    inputs.insert("SOURCE_DATE_EPOCH".into(), facts.epoch.to_string());
    add_tools(&mut inputs, facts, |_| true);
    inputs
}

fn initrd(facts: &Facts<'_>) -> Inputs {
    let mut inputs = Inputs::new();
    add_kernel(&mut inputs, facts);
    for artefact in facts.resolved.artefacts.iter().filter(|a| matches!(a.install, Install::Init)) {
        let pinned = facts.locked.artefacts.get(&artefact.name).map(|a| a.sha256.clone());
        inputs.insert(format!("artefact {}", artefact.name), pinned.unwrap_or_default());
    }
    inputs.insert("initrd modules".into(), facts.resolved.boot.initrd_modules.join(" "));
    let device_tree = facts.resolved.boot.device_tree.clone();
    inputs.insert("device tree".into(), device_tree.unwrap_or_else(|| "none".into()));
    inputs
}

fn uki(facts: &Facts<'_>) -> Inputs {
    let boot = &facts.resolved.boot;
    let mut inputs = Inputs::new();
    add_kernel(&mut inputs, facts);
    inputs.insert("kernel arguments".into(), boot.kernel_args.join(" "));
    inputs.insert("watchdog".into(), boot.watchdog_s.map_or("off".into(), |s| format!("{s} s")));
    inputs.insert("version".into(), facts.resolved.device.version.clone());
    inputs.insert("secure boot".into(), text(facts.secure_boot));
    add_tools(&mut inputs, facts, |name| name.starts_with("systemd-boot") || name == "sbsigntool");
    inputs
}

fn disk(facts: &Facts<'_>) -> Inputs {
    let disk = &facts.resolved.disk;
    let size = |mib: Option<u64>| mib.map_or("chosen".into(), |mib| format!("{mib} MiB"));
    Inputs::from([
        ("size of ESP".into(), size(disk.esp_mib)),
        ("size of slots".into(), size(disk.slot_mib)),
        ("size of state".into(), size(disk.state_mib)),
        ("menu".into(), format!("{} s", facts.resolved.boot.menu_s)),
        ("version".into(), facts.resolved.device.version.clone()),
    ])
}

fn release(facts: &Facts<'_>) -> Inputs {
    let sequence = facts.release.map_or("none".into(), |release| release.sequence.to_string());
    Inputs::from([
        ("release keys".into(), text(facts.release.map(|release| release.roots))),
        ("sequence".into(), sequence),
        ("device profile".into(), digest(&facts.resolved.device)),
        ("SOURCE_DATE_EPOCH".into(), facts.epoch.to_string()),
    ])
}

fn add_kernel(inputs: &mut Inputs, facts: &Facts<'_>) {
    for package in facts.locked.packages.iter().filter(|p| p.name.starts_with("linux-image")) {
        inputs.insert(format!("package {}", package.name), pinned(package));
    }
    for artefact in facts.resolved.artefacts.iter().filter(|a| matches!(a.install, Install::Package)) {
        let pinned = facts.locked.artefacts.get(&artefact.name).map(|a| a.sha256.clone());
        inputs.insert(format!("artefact {}", artefact.name), pinned.unwrap_or_default());
    }
}

fn add_tools(inputs: &mut Inputs, facts: &Facts<'_>, wanted: impl Fn(&str) -> bool) {
    for tool in facts.tools.iter().filter(|tool| wanted(&tool.name)) {
        inputs.insert(format!("tool {} ({})", tool.name, tool.architecture), pinned(tool));
    }
}

fn pinned(package: &LockedPackage) -> String {
    format!("{} {}", package.version, package.sha256)
}

fn file_digest(file: &ImageFile, copied: &BTreeMap<PathBuf, Digest>) -> String {
    let contents = match &file.content {
        FileContent::Text { text } => Digest(Sha256::digest(text).into()).to_string(),
        FileContent::Copy { from } => text(copied.get(from).copied()),
        FileContent::Symlink { target } => format!("link to {target}"),
        FileContent::Directory => "folder".into(),
    };
    format!("{contents} {:o} {}:{}", file.mode, file.owner.0, file.owner.1)
}

fn text(digest: Option<Digest>) -> String {
    digest.map_or("none".into(), |digest| digest.to_string())
}

/// SHA-256 over the JSON of a value.
fn digest(value: &impl Serialize) -> String {
    // Values of this program have string keys and no floats, so they can always be written.
    let json = serde_json::to_vec(value).unwrap_or_default();
    Digest(Sha256::digest(json).into()).to_string()
}
