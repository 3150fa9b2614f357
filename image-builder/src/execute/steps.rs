//! How each step is done. Outputs carry their facts beside them as JSON, for the steps and reports after them.

use super::Worker;
use super::output::{DISK, DISK_MAP, Folder};
use super::report::{FileReport, Report, hash_file};
use crate::erofs::{self, Identity};
use crate::flash::map::{self, Map};
use crate::image::initrd::{self, Module};
use crate::image::uki::{self, Parts};
use crate::image::{disk, secureboot, verity};
use crate::plan::StepName;
use crate::release::make::{
    self, Announce, BootFileInput, DEFAULT_LEVEL, ReleaseFacts, ReleaseInput, SlotInput,
};
use crate::resolved::Install;
use crate::rootfs::{PackageFacts, Rootfs};
use crate::sbom::{self, Output, SbomInput};
use crate::tree::{Entry, Node};
use anyhow::{Context, Result, anyhow};
use formats::bootargs::BootArgs;
use formats::device::{DEVICE_PROFILE, DeviceProfile};
use formats::entry::EntryName;
use formats::esp::{self, Contents, Volume};
use formats::frame::Scope;
use formats::hex::{Digest, encode};
use formats::layout::{LABEL_ESP, LABEL_STATE, Slot};
use formats::manifest::Needs;
use formats::verity::Parameters;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Slot image in the output of step `root` and in releases.
pub const ROOT: &str = "root.erofs";
/// Verity area in the output of step `verity` and in releases.
pub const VERITY: &str = "root.verity";
const UKI: &str = "uki.efi";
const BOOT_LOADER: &str = "systemd-boot.efi";
const INITRD: &str = "initrd.cpio";
const KERNEL: &str = "vmlinuz";
const DEVICE_TREE: &str = "device-tree.dtb";
/// Folder of the release in the output of a build.
pub const RELEASE: &str = "release";
const SBOM: &str = "sbom.spdx.json";
const FACTS: &str = "facts.json";
const OS_RELEASE: &str = "/usr/lib/os-release";
const MAX_OS_RELEASE_BYTES: u64 = 64 << 10;
const MAX_KERNEL_BYTES: u64 = 256 << 20;
/// The largest of Debian's have 0.2 MB.
const MAX_DEVICE_TREE_BYTES: u64 = 4 << 20;

/// About a slot image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RootFacts {
    /// SHA-256.
    pub sha256: Digest,
    /// Length in bytes.
    pub bytes: u64,
    /// Contents of its os-release.
    pub os_release: String,
    /// Its packages.
    pub packages: Vec<PackageFacts>,
}

/// About a verity area.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VerityFacts {
    /// Roothash.
    pub roothash: Digest,
    /// Salt, hexadecimal.
    pub salt: String,
    /// UUID in the superblock, hexadecimal.
    pub uuid: String,
    /// Blocks of the slot image.
    pub data_blocks: u64,
}

/// About an initrd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InitrdFacts {
    /// Kernel release.
    pub kernel: String,
    /// Names of its modules in load order.
    pub modules: Vec<String>,
}

/// About a UKI.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UkiFacts {
    /// File name on the ESP.
    pub entry: String,
    /// Kernel command line.
    pub cmdline: String,
}

/// Makes the tree say which image it is: os-release and the device profile.
pub fn identify(rootfs: &mut Rootfs, device: &DeviceProfile) -> Result<()> {
    let tree = &mut rootfs.tree;
    let data = tree.file(OS_RELEASE).ok_or_else(|| {
        anyhow!("the image has no {OS_RELEASE}: the package base-files must be in the profile")
    })?;
    let text = String::from_utf8(data.bytes(MAX_OS_RELEASE_BYTES)?).context("read os-release")?;
    let origin = "farhold".into();
    tree.replace(OS_RELEASE, Entry::text(os_release(&text, device), &origin))?;
    if tree.get(DEVICE_PROFILE).is_none() {
        let json = serde_json::to_vec_pretty(device).context("write the device profile")?;
        tree.replace(DEVICE_PROFILE, Entry::text(json, &origin))?;
    }
    Ok(())
}

/// Debian's os-release with the fields by which boot entries of images are named and sorted (`os-release(5)`).
fn os_release(base: &str, device: &DeviceProfile) -> String {
    let ours = |line: &str| line.starts_with("IMAGE_ID=") || line.starts_with("IMAGE_VERSION=");
    let mut text: String = base.lines().filter(|line| !ours(line)).map(|line| format!("{line}\n")).collect();
    text.push_str(&format!("IMAGE_ID={}\nIMAGE_VERSION={}\n", device.product, device.version));
    text
}

pub fn root(worker: &Worker<'_>, folder: &Path) -> Result<()> {
    let rootfs = worker.rootfs()?;
    let device = &worker.build.resolved.device;
    let target = folder.join(ROOT);
    let name = format!("{} {} {} {}", device.product, device.version, device.arch, device.board);
    let identity = Identity {
        uuid: uuid_text(verity::derive(b"farhold erofs v1", Digest(Sha256::digest(name).into()))),
        epoch: worker.build.options.epoch,
    };
    let busy = worker.build.progress.busy("make slot image");
    erofs::make(&rootfs.tree, &rootfs.ids, &identity, worker.tools()?, &target)?;
    drop(busy);
    let (sha256, bytes) = hash_file(&target)?;
    let os_release = match rootfs.tree.get(OS_RELEASE).map(|entry| &entry.node) {
        Some(Node::File(data)) => String::from_utf8_lossy(&data.bytes(MAX_OS_RELEASE_BYTES)?).into_owned(),
        Some(Node::Dir | Node::Symlink(_)) | None => String::new(),
    };
    write_facts(folder, &RootFacts { sha256, bytes, os_release, packages: rootfs.packages.clone() })
}

pub fn verity(worker: &Worker<'_>, folder: &Path) -> Result<()> {
    let source = worker.output(StepName::Root)?;
    let root: RootFacts = facts(&source)?;
    let parameters = verity::parameters(root.sha256, root.bytes)?;
    let bar = worker.build.progress.bytes("hash slot image", root.bytes);
    let mut image = open(&source.join(ROOT))?;
    let target = folder.join(VERITY);
    let mut out = BufWriter::new(create(&target)?);
    let area = verity::write(&mut image, root.sha256, parameters, &mut out, &mut |n| bar.add(n))?;
    out.into_inner().context("write verity area")?;
    let facts = VerityFacts {
        roothash: area.roothash,
        salt: encode(&parameters.salt),
        uuid: encode(&area.uuid),
        data_blocks: parameters.data_blocks,
    };
    write_facts(folder, &facts)
}

pub fn initrd(worker: &Worker<'_>, folder: &Path) -> Result<()> {
    let kernel = &worker.rootfs()?.kernel;
    let build = worker.build;
    let mut modules = Vec::new();
    for module in kernel.closure(&build.resolved.boot.initrd_modules)? {
        let bytes = module.data.bytes(MAX_KERNEL_BYTES).with_context(|| format!("read {}", module.path))?;
        modules.push(Module { name: module.name(), bytes });
    }
    let busy = build.progress.busy("pack initrd");
    let packed = initrd::pack(&init_program(worker)?, &modules)?;
    drop(busy);
    let vmlinuz = kernel.vmlinuz.bytes(MAX_KERNEL_BYTES).context("read the kernel")?;
    write(&folder.join(INITRD), &packed)?;
    write(&folder.join(KERNEL), &vmlinuz)?;
    if let Some(tree) = &kernel.device_tree {
        let bytes = tree.bytes(MAX_DEVICE_TREE_BYTES).context("read the device tree")?;
        write(&folder.join(DEVICE_TREE), &bytes)?;
    }
    let names = modules.into_iter().map(|module| module.name).collect();
    write_facts(folder, &InitrdFacts { kernel: kernel.release.clone(), modules: names })
}

fn init_program(worker: &Worker<'_>) -> Result<Vec<u8>> {
    let build = worker.build;
    let mut inits = build.resolved.artefacts.iter().filter(|a| matches!(a.install, Install::Init));
    let (Some(init), None) = (inits.next(), inits.next()) else {
        return Err(anyhow!("exactly one artefact must be the init (`install: {{as: init}}`)"));
    };
    let pinned = build.locked.artefacts.get(&init.name);
    let digest = pinned.and_then(|artefact| Digest::parse(&artefact.sha256));
    let path = digest.and_then(|digest| build.store.get(&digest)).ok_or_else(|| {
        anyhow!("artefact {} is not in the cache: give it with --artefact {0}=PATH", init.name)
    })?;
    let program = read(&path)?;
    initrd::check_program(&program, build.resolved.arch())
        .with_context(|| format!("artefact {} (from {})", init.name, init.origin))?;
    Ok(program)
}

pub fn uki(worker: &Worker<'_>, folder: &Path) -> Result<()> {
    let build = worker.build;
    let tools = worker.tools()?;
    let root: RootFacts = facts(&worker.output(StepName::Root)?)?;
    let (parameters, roothash) = verity_facts(worker)?;
    let source = worker.output(StepName::Initrd)?;
    let initrd: InitrdFacts = facts(&source)?;
    let device = &build.resolved.device;
    let entry = EntryName::uncounted(&device.version, &roothash.short()).file_name();
    if EntryName::parse(&entry).is_none() {
        return Err(anyhow!(
            "version `{}` must be 64 characters or fewer of letters, digits and . - ~ ^",
            device.version
        ));
    }
    let args = BootArgs {
        roothash,
        verity: parameters,
        version: device.version.clone(),
        watchdog_s: build.resolved.boot.watchdog_s,
    };
    let mut cmdline = args.encode();
    for word in &build.resolved.boot.kernel_args {
        cmdline.push(' ');
        cmdline.push_str(word);
    }
    // Words of the board or the profile must not shadow those that the init trusts.
    BootArgs::parse(&cmdline).context("check the kernel command line")?;
    let (stub, linux) = (read(&tools.efi_stub(device.arch)?)?, read(&source.join(KERNEL))?);
    let device_tree = match &build.resolved.boot.device_tree {
        Some(_) => Some(read(&source.join(DEVICE_TREE))?),
        None => None,
    };
    let parts = Parts {
        stub: &stub,
        linux: &linux,
        initrd: &read(&source.join(INITRD))?,
        cmdline: &cmdline,
        os_release: &root.os_release,
        uname: &initrd.kernel,
        dtb: device_tree.as_deref(),
    };
    let boot_loader = read(&tools.systemd_boot(device.arch)?)?;
    place_signed(worker, &uki::assemble(&parts)?, &folder.join(UKI))?;
    place_signed(worker, &boot_loader, &folder.join(BOOT_LOADER))?;
    write_facts(folder, &UkiFacts { entry, cmdline })
}

/// Writes an EFI program, signed if keys were given.
fn place_signed(worker: &Worker<'_>, program: &[u8], target: &Path) -> Result<()> {
    let Some(keys) = &worker.build.options.secure_boot else { return write(target, program) };
    let unsigned = target.with_extension("unsigned");
    write(&unsigned, program)?;
    secureboot::sign(worker.tools()?, keys, &unsigned, target)?;
    fs::remove_file(&unsigned).with_context(|| format!("remove {}", unsigned.display()))
}

/// Where everything is on the disk.
pub fn layout(worker: &Worker<'_>) -> Result<disk::Layout> {
    let resolved = worker.build.resolved;
    let source = worker.output(StepName::Uki)?;
    let needs = disk::Needs {
        esp: esp::need(length(&source.join(UKI))?, length(&source.join(BOOT_LOADER))?),
        image: facts::<RootFacts>(&worker.output(StepName::Root)?)?.bytes,
    };
    let asked = disk::Asked {
        esp_mib: resolved.disk.esp_mib,
        slot_mib: resolved.disk.slot_mib,
        state_mib: resolved.disk.state_mib,
    };
    disk::plan(resolved.device.arch, asked, needs)
}

/// Writes `disk.img`.
pub fn disk(worker: &Worker<'_>, folder: &Folder, layout: &disk::Layout) -> Result<()> {
    let (resolved, source) = (worker.build.resolved, worker.output(StepName::Uki)?);
    let (uki, boot_loader) = (read(&source.join(UKI))?, read(&source.join(BOOT_LOADER))?);
    let (root, verity) = (worker.output(StepName::Root)?, worker.output(StepName::Verity)?);
    let mut identity = Sha256::new();
    identity.update(facts::<RootFacts>(&root)?.sha256.0);
    identity.update(Sha256::digest(&uki));
    let identity = Digest(identity.finalize().into());
    let part = layout.partition(LABEL_ESP)?;
    let id = u32::from_le_bytes(*identity.0.first_chunk().unwrap_or(&[0; 4]));
    let volume = Volume { bytes: part.bytes, first_lba: part.start / 512, id, label: *esp::LABEL };
    let contents = Contents {
        arch: resolved.device.arch,
        boot_loader: &boot_loader,
        uki: &uki,
        entry: &facts::<UkiFacts>(&source)?.entry,
        recovery: None,
        menu_s: resolved.boot.menu_s,
    };
    let mut file = folder.create(DISK)?;
    disk::write_tables(&mut file, layout, identity)?;
    let esp = esp::make(&contents, &volume).context("make the ESP")?;
    disk::write_memory(&file, part, &esp.medium)?;
    for (label, path) in
        [(Slot::A.root_label(), root.join(ROOT)), (Slot::A.verity_label(), verity.join(VERITY))]
    {
        let (mut source, bytes) = (open(&path)?, length(&path)?);
        let bar = worker.build.progress.bytes(&format!("write {label}"), bytes);
        disk::write_stream(&file, layout.partition(label)?, &mut source, bytes, &mut |n| bar.add(n))?;
    }
    let used = [
        (part.start, esp.used),
        (layout.partition(Slot::A.root_label())?.start, length(&root.join(ROOT))?),
        (layout.partition(Slot::A.verity_label())?.start, length(&verity.join(VERITY))?),
        // What an earlier life of the device left here must not count.
        (layout.partition(Slot::B.verity_label())?.start, map::PIECE),
    ];
    let state = layout.partition(LABEL_STATE)?;
    let ends = [(state.start, map::ALIGNMENT), (state.start + state.bytes - (1 << 20), 1 << 20)];
    let map = Map::declare(&file, layout.bytes, &[&used[..], &ends].concat())?;
    folder.write(DISK_MAP, &map.encode()?)
}

/// Makes the signed release.
pub fn release(worker: &Worker<'_>, folder: &Path) -> Result<()> {
    let build = worker.build;
    let Some((keys, sequence)) = build.release else { return Err(anyhow!("no keys for a release")) };
    let (root, boot) = (worker.output(StepName::Root)?, worker.output(StepName::Uki)?);
    let verity: VerityFacts = facts(&worker.output(StepName::Verity)?)?;
    let (parameters, roothash) = verity_facts(worker)?;
    let uuid = formats::hex::decode(&verity.uuid).ok_or_else(|| anyhow!("damaged UUID in the cache"))?;
    let device = &build.resolved.device;
    let epoch = u32::try_from(build.options.epoch).context("SOURCE_DATE_EPOCH is beyond 2106")?;
    let loader = boot.join(BOOT_LOADER);
    let boot_files =
        esp::boot_loader_paths(device.arch).map(|esp_path| BootFileInput { esp_path, file: loader.clone() });
    let input = ReleaseInput {
        product: &device.product,
        board: &device.board,
        arch: device.arch,
        version: &device.version,
        profile: &device.profile,
        built_s: epoch,
        slot: SlotInput { image: &root.join(ROOT), roothash, verity: parameters, verity_uuid: uuid },
        uki: &boot.join(UKI),
        boot_files: &boot_files,
        needs: Needs {
            slot_bytes: length(&root.join(ROOT))?,
            verity_bytes: parameters.hash_area_bytes(),
            esp_bytes: length(&boot.join(UKI))? + boot_files.len() as u64 * length(&loader)?,
        },
        announce: Announce {
            channel: 0,
            scope: Scope::All,
            sequence: *sequence,
            signed_s: epoch,
            validity_h: 0,
        },
        keys,
        level: DEFAULT_LEVEL,
    };
    let made = make::make(&input, &folder.join(RELEASE), build.progress)?;
    write_facts(folder, &made)
}

/// Copies the release from the cache to the output folder.
pub fn place_release(worker: &Worker<'_>, folder: &Folder, report: &mut Report) -> Result<()> {
    let output = worker.output(StepName::Release)?;
    let made: ReleaseFacts = facts(&output)?;
    if made.signatures < usize::from(made.threshold) {
        let (is, must) = (made.signatures, made.threshold);
        report.warnings.push(format!(
            "the release has {is} of {must} signatures: devices refuse it until holders of other release keys \
             have run `farhold sign release --key FILE`"
        ));
    }
    let source = output.join(RELEASE);
    let mut names = Vec::new();
    list_files(&source, RELEASE, &mut names)?;
    for (path, name) in names {
        folder.copy(&path, &name)?;
        report.files.push(folder.describe(&name)?);
    }
    Ok(())
}

/// Writes the SBOM of what is in the image.
pub fn sbom(worker: &Worker<'_>, folder: &Folder) -> Result<FileReport> {
    let build = worker.build;
    let device = &build.resolved.device;
    let root: RootFacts = facts(&worker.output(StepName::Root)?)?;
    let (uki, bytes) = hash_file(&worker.output(StepName::Uki)?.join(UKI))?;
    let debian = root.os_release.lines().find_map(|line| line.strip_prefix("VERSION_ID="));
    let input = SbomInput {
        product: &device.product,
        version: &device.version,
        board: &device.board,
        arch: device.arch,
        profile: &device.profile,
        epoch_s: build.options.epoch,
        debian: debian.unwrap_or_default().trim_matches('"'),
        packages: &root.packages,
        artefacts: &build.locked.artefacts,
        outputs: &[
            Output { name: "slot image".into(), sha256: root.sha256, bytes: root.bytes },
            Output { name: "unified kernel image".into(), sha256: uki, bytes },
        ],
    };
    let mut document = Vec::new();
    sbom::write(&input, &mut document)?;
    folder.write(SBOM, &document)?;
    folder.describe(SBOM)
}

/// Files below a folder in order, each with its name below the output folder.
fn list_files(folder: &Path, name: &str, found: &mut Vec<(PathBuf, String)>) -> Result<()> {
    let entries = fs::read_dir(folder).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
    let mut entries = entries.with_context(|| format!("read {}", folder.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let below = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            list_files(&entry.path(), &below, found)?;
        } else {
            found.push((entry.path(), below));
        }
    }
    Ok(())
}

/// Roothash of the slot image.
pub fn roothash(worker: &Worker<'_>) -> Result<Digest> {
    Ok(verity_facts(worker)?.1)
}

fn verity_facts(worker: &Worker<'_>) -> Result<(Parameters, Digest)> {
    let facts: VerityFacts = facts(&worker.output(StepName::Verity)?)?;
    let salt = formats::hex::decode(&facts.salt).ok_or_else(|| anyhow!("damaged salt in the cache"))?;
    Ok((Parameters { data_blocks: facts.data_blocks, salt }, facts.roothash))
}

fn uuid_text(derived: [u8; 32]) -> String {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&derived[..16]);
    verity::uuid_text(bytes)
}

fn write_facts(folder: &Path, facts: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(facts).context("write facts of a step")?;
    write(&folder.join(FACTS), &json)
}

fn facts<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join(FACTS);
    serde_json::from_slice(&read(&path)?)
        .with_context(|| format!("{} is damaged: remove its folder and build again", path.display()))
}

fn length(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("look at {}", path.display()))?.len())
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("open {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    File::create_new(path).with_context(|| format!("make {}", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
