//! The image of an installation stick, from what `farhold build` left: the signed release, and an installer of the same
//! parts: stub, kernel and modules of the release's own boot image, with another first program. Says nothing of how the
//! installer works; layout and names are `formats::stick`.

use crate::execute::RELEASE;
use crate::execute::report::Report;
use crate::flash::map::{self, Map};
use crate::image::initrd;
use crate::image::pe::Pe;
use crate::image::sparse;
use crate::image::uki;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, bail};
use formats::bootargs::BootArgs;
use formats::esp::{self, FatFile, Volume};
use formats::gpt::{self, Guid, NewPartition, SECTOR, Table};
use formats::hex::{self, Digest};
use formats::layout::{LABEL_ESP, Slot, TYPE_ESP};
use formats::manifest::{Entry, TargetKind};
use formats::repository as names;
use formats::sparse::Sparse;
use formats::stick::{self, Contents, Plan, Rules};
use installer::release::Release;
use installer::site::{self, Site};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Partitions start at whole MiB.
const ALIGN: u64 = 1 << 20;
/// Room for logs and more sites on the partition that people see.
const SPARE: u64 = 32 << 20;
/// Longest file that is taken from the output folder, bytes.
const MAX_FILE: u64 = 4 << 30;

/// What a stick is made of.
pub struct Input<'a> {
    /// Folder that `farhold build` wrote.
    pub folder: &'a Path,
    /// The installer, a static program for the release's processor.
    pub installer: &'a Path,
    /// Site configuration for every machine.
    pub site: Option<&'a Path>,
    /// Folder of site configurations by serial number or MAC address.
    pub sites: Option<&'a Path>,
    /// Which disk is meant where the site says nothing.
    pub rules: Rules,
}

/// What was made.
pub struct Made {
    /// What the installer is for.
    pub plan: Plan,
    /// Length of the image.
    pub bytes: u64,
    /// Bytes of the installer's boot image.
    pub installer_bytes: u64,
    /// Site configurations on the stick.
    pub sites: usize,
}

/// The parts of a stick, ready to be written.
pub struct Stick {
    made: Made,
    mbr_and_table: gpt::NewTable,
    parts: Vec<(u64, Sparse)>,
    used: Vec<(u64, u64)>,
}

/// Makes a stick in memory, after everything of the release was checked as the installer will.
///
/// # Errors
/// If the folder is not what a build leaves, the release is not good, or a site's file makes no sense.
pub fn make(input: &Input<'_>, progress: &Progress) -> Result<Stick> {
    let Sites { files: sites, said } = sites(input)?;
    let folder = input.folder.join(RELEASE);
    let roots = read(&folder.join(names::ROOTS))?;
    let plan = plan(input, &folder)?;
    for (path, site) in &said {
        site.suits(&plan).with_context(|| path.display().to_string())?;
    }
    let release = Release::open(&folder, &roots, &plan)
        .with_context(|| format!("{} is not a good release", folder.display()))?;
    let bar = progress.bytes("check the release", release.image_bytes());
    release.verify_image(&mut |n| {
        bar.add(n);
        Ok(())
    })?;
    drop(bar);
    let boot = boot_image(input, &folder, &release, (&plan, &roots))?;
    let mut files = release_files(&folder)?;
    let contents = Contents {
        format: 1,
        installer_sha256: hex::encode(&Sha256::digest(&boot)[..]),
        installer_bytes: boot.len() as u64,
    };
    let contents = serde_json::to_vec_pretty(&contents).context("encode the stick's contents")?;
    files.push((stick::CONTENTS.to_owned(), contents));
    files.push(("README.TXT".to_owned(), README.replace('\n', "\r\n").into_bytes()));
    files.push(("site.example.yaml".to_owned(), EXAMPLE.replace('\n', "\r\n").into_bytes()));
    let count = sites.len();
    files.extend(sites);
    lay_out(plan, (&files, &boot), count)
}

fn plan(input: &Input<'_>, release: &Path) -> Result<Plan> {
    let frame = read(&release.join(names::ANNOUNCE)).with_context(|| {
        format!("{} has no release: build with --keys, and give the folder of --out", input.folder.display())
    })?;
    let frame = formats::frame::Frame::parse(&frame).context("read the release's announcement")?;
    let manifest = read(&release.join(names::object(&frame.unverified().manifest)))?;
    let manifest = formats::manifest::Manifest::parse(&manifest).context("read the release's manifest")?;
    let disk = input.folder.join(crate::execute::output::DISK);
    let table = table(&disk).with_context(|| format!("read the partitions of {}", disk.display()))?;
    let bytes = |label: &str| {
        let found = table.partitions().into_iter().find(|partition| partition.label == label);
        found
            .map(|partition| (partition.last + 1 - partition.first) * SECTOR as u64)
            .ok_or_else(|| anyhow!("{} has no partition {label}", disk.display()))
    };
    Ok(Plan {
        format: 1,
        esp_bytes: bytes(LABEL_ESP)?,
        root_bytes: bytes(Slot::A.root_label())?,
        verity_bytes: bytes(Slot::A.verity_label())?,
        menu_s: 0,
        target: input.rules.clone(),
        pair: Report::read(input.folder)?.pair,
        product: manifest.product,
        board: manifest.board,
        arch: manifest.arch,
        version: manifest.version,
    })
}

fn table(disk: &Path) -> Result<Table> {
    let file = File::open(disk)?;
    let mut sector = [0; SECTOR];
    file.read_exact_at(&mut sector, SECTOR as u64)?;
    let header = gpt::Header::parse(&sector, 1)?;
    let mut entries = vec![0; header.entries_bytes()];
    file.read_exact_at(&mut entries, header.entries_at * SECTOR as u64)?;
    Ok(Table::new(header, &entries)?)
}

/// The installer's boot image: the release's own, with another first program, plan and command line.
fn boot_image(
    input: &Input<'_>,
    folder: &Path,
    release: &Release,
    (plan, roots): (&Plan, &[u8]),
) -> Result<Vec<u8>> {
    let program = read(input.installer)?;
    initrd::check_program(&program, plan.arch)
        .with_context(|| format!("the installer {}", input.installer.display()))?;
    let targets = release.manifest.targets.iter().filter_map(Entry::known);
    let target = targets.into_iter().find(|target| target.kind == TargetKind::Uki);
    let target = target.ok_or_else(|| anyhow!("the release has no boot image"))?;
    let old = read(&folder.join(names::object(&target.object.id)))?;
    let pe = Pe::parse(old.clone()).context("read the release's boot image")?;
    let text = |name: &str| {
        let bytes = pe.section_data(name).unwrap_or_default();
        String::from_utf8_lossy(bytes).trim_end_matches(['\0', '\n']).to_owned()
    };
    let modules = initrd::modules(pe.section_data(".initrd").unwrap_or_default())
        .context("take the modules of the release's boot image")?;
    for needed in ["usb_storage", "uas", "sd_mod", "vfat"] {
        let names = |module: &initrd::Module| module.name.replace('-', "_") == needed;
        if !modules.iter().any(names) {
            bail!(
                "board {} cannot start from a stick: its boot image has no module {needed} (its kernel may have no \
                 USB at all); build for a board with the full kernel, as generic-uefi",
                plan.board
            );
        }
    }
    let json = serde_json::to_vec_pretty(plan).context("encode the installation plan")?;
    let initrd = initrd::pack_with(&program, &modules, &[(stick::PLAN, &json), (stick::ROOTS, roots)])?;
    let args = BootArgs::parse(&text(".cmdline")).context("read the release's command line")?;
    let ours = args.encode();
    let ours: Vec<&str> = ours.split(' ').collect();
    let old_line = text(".cmdline");
    let kept = old_line.split_ascii_whitespace().filter(|word| !ours.contains(word));
    let mut line: Vec<&str> = kept.collect();
    line.push(stick::WORD);
    uki::renew(&old, &line.join(" "), &os_release(plan), &initrd).context("make the installer's boot image")
}

/// By these fields the boot menu shows the entry, and sorts it behind every system.
fn os_release(plan: &Plan) -> String {
    format!(
        "ID=farhold\nNAME=Farhold\nPRETTY_NAME=\"Farhold recovery {0}\"\nVERSION_ID={0}\nIMAGE_ID=\"~recovery\"\n\
         IMAGE_VERSION={0}\n",
        plan.version
    )
}

/// Site configurations.
struct Sites {
    /// Their paths on the stick, and their bytes.
    files: Vec<(String, Vec<u8>)>,
    /// Where each was read, and what it says.
    said: Vec<(PathBuf, Site)>,
}

/// Site configurations with their names on the stick, each read as the installer will, and what they say.
fn sites(input: &Input<'_>) -> Result<Sites> {
    let mut all = Sites { files: Vec::new(), said: Vec::new() };
    let mut pairs = Pairs::default();
    let mut add = |path: &Path, name: String| -> Result<()> {
        let bytes = read(path)?;
        let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is no text", path.display()))?;
        let site = Site::parse(text).with_context(|| path.display().to_string())?;
        pairs.add(path, &site)?;
        all.said.push((path.to_owned(), site));
        all.files.push((name, bytes));
        Ok(())
    };
    if let Some(path) = input.site {
        add(path, stick::SITE.to_owned())?;
    }
    if let Some(folder) = input.sites {
        let mut machines = BTreeMap::new();
        for path in sorted(folder)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Some(machine) = site::machine(&name) else { continue };
            if let Some(other) = machines.insert(machine, path.clone()) {
                bail!(
                    "{} and {} are for one machine: case and punctuation do not count; remove one of them",
                    other.display(),
                    path.display()
                );
            }
            add(&path, format!("{}/{name}", stick::SITES))?;
        }
        if machines.is_empty() {
            bail!("{} has no site's file: name them SERIAL.yaml or MAC.yaml", folder.display());
        }
    }
    Ok(all)
}

/// The pairs that the files declare by the names of their sites.
#[derive(Default)]
struct Pairs(BTreeMap<(String, &'static str), PathBuf>);

impl Pairs {
    fn add(&mut self, path: &Path, site: &Site) -> Result<()> {
        let (Some(name), Some(pair)) = (site.shared(), &site.pair) else { return Ok(()) };
        let role = pair.role.name();
        match self.0.insert((name.to_owned(), role), path.to_owned()) {
            Some(other) => bail!(
                "{} and {} are both the {role} node of site {name:?}: one must be the {}",
                other.display(),
                path.display(),
                if role == "first" { "second" } else { "first" }
            ),
            None => Ok(()),
        }
    }
}

fn release_files(folder: &Path) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in [names::ANNOUNCE, names::ROOTS] {
        files.push((format!("{}/{name}", stick::RELEASE), read(&folder.join(name))?));
    }
    for path in sorted(&folder.join(names::OBJECTS))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push((format!("{}/{}/{name}", stick::RELEASE, names::OBJECTS), read(&path)?));
    }
    Ok(files)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("list {}", folder.display());
    let list = fs::read_dir(folder).with_context(what)?;
    let mut paths: Vec<PathBuf> = list
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .with_context(what)?;
    paths.sort();
    Ok(paths)
}

fn lay_out(plan: Plan, (files, boot): (&[(String, Vec<u8>)], &[u8]), sites: usize) -> Result<Stick> {
    // GUIDs follow from the contents: the same build gives the same stick.
    let mut identity = Sha256::new_with_prefix("farhold stick v1\n");
    for (name, bytes) in files {
        identity.update(name);
        identity.update(Sha256::digest(bytes));
    }
    let identity = Digest(identity.finalize().into());
    let guid = |purpose: &str| {
        let derived = crate::image::verity::derive(purpose.as_bytes(), identity);
        let mut raw = [0; 16];
        raw.copy_from_slice(&derived[..16]);
        raw[7] = raw[7] & 0x0f | 0x80;
        raw[8] = raw[8] & 0x3f | 0x80;
        Guid::from_disk(&raw)
    };
    let length: u64 = files.iter().map(|(_, bytes)| bytes.len().next_multiple_of(4096) as u64).sum();
    let data_bytes = (length + length / 256 + SPARE).max(esp::MIN_BYTES).next_multiple_of(ALIGN);
    let boot_bytes =
        (boot.len() as u64 + boot.len() as u64 / 32 + ALIGN).max(esp::MIN_BYTES).next_multiple_of(ALIGN);
    let mut volume = [b' '; 11];
    volume[..stick::VOLUME.len()].copy_from_slice(stick::VOLUME.as_bytes());
    let data: Vec<FatFile<'_>> = files.iter().map(|(name, bytes)| (name.clone(), bytes.as_slice())).collect();
    let boot_path = esp::boot_loader_paths(plan.arch)[0].clone();
    let wanted = [
        (stick::LABEL_DATA, stick::TYPE_DATA, data_bytes, volume, data),
        (stick::LABEL_BOOT, TYPE_ESP, boot_bytes, *b"FARHOLDBOOT", vec![(boot_path, boot)]),
    ];
    let (mut partitions, mut parts, mut used, mut start) = (Vec::new(), Vec::new(), Vec::new(), ALIGN);
    for (label, kind, bytes, volume_label, files) in wanted {
        let id = guid(label).to_disk();
        let volume = Volume {
            bytes,
            first_lba: start / SECTOR as u64,
            id: u32::from_le_bytes([id[0], id[1], id[2], id[3]]),
            label: volume_label,
        };
        let made = esp::make_volume(&files, &volume).with_context(|| format!("make {label}"))?;
        used.push((start, made.used));
        parts.push((start, made.medium));
        partitions.push(NewPartition {
            kind: Guid::parse(kind).context("read a partition type")?,
            guid: guid(label),
            first: start / SECTOR as u64,
            last: (start + bytes) / SECTOR as u64 - 1,
            attributes: 0,
            label: label.to_owned(),
        });
        start += bytes;
    }
    let bytes = start + ALIGN;
    let mbr_and_table = gpt::make(guid("disk"), bytes / SECTOR as u64, &partitions)?;
    let made = Made { plan, bytes, installer_bytes: boot.len() as u64, sites };
    Ok(Stick { made, mbr_and_table, parts, used })
}

impl Stick {
    /// Writes the image; it appears whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(self, out: &Path) -> Result<Made> {
        let what = || format!("write {}", out.display());
        let mut temporary =
            tempfile::NamedTempFile::new_in(crate::release::keys::parent(out)).with_context(what)?;
        let file = temporary.as_file_mut();
        file.set_len(self.made.bytes).with_context(what)?;
        for (start, medium) in &self.parts {
            sparse::write(medium, file, *start).with_context(what)?;
        }
        let table = &self.mbr_and_table;
        let sector = SECTOR as u64;
        for (at, bytes) in [
            (0, &table.mbr),
            (1, &table.primary),
            (2, &table.entries),
            (table.backup_entries_at, &table.entries),
            (self.made.bytes / sector - 1, &table.backup),
        ] {
            file.write_all_at(bytes, at * sector).with_context(what)?;
        }
        file.sync_all().with_context(what)?;
        let map = Map::declare(file, self.made.bytes, &self.used)?;
        temporary.persist(out).with_context(what)?;
        let beside = map::beside(out);
        fs::write(&beside, map.encode()?).with_context(|| format!("write {}", beside.display()))?;
        Ok(self.made)
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).with_context(|| format!("read {}", path.display()))?.len();
    if length > MAX_FILE {
        bail!("{} has {length} bytes, a stick takes files up to {MAX_FILE}", path.display());
    }
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

const README: &str = include_str!("usb/README.TXT");
const EXAMPLE: &str = include_str!("usb/site.example.yaml");

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "site: north\npair: {role: first, address: 10.77.0.1}\n";
    const SECOND: &str = "site: north\npair: {role: second, address: 10.77.0.2, peer: 10.77.0.1}\n";

    fn taken(files: &[(&str, &str)]) -> Result<usize> {
        let folder = tempfile::tempdir()?;
        for (name, text) in files {
            fs::write(folder.path().join(name), text)?;
        }
        let nowhere = Path::new("/nonexistent");
        let sites = Some(folder.path());
        let input = Input { folder: nowhere, installer: nowhere, site: None, sites, rules: Rules::default() };
        Ok(super::sites(&input)?.files.len())
    }

    #[test]
    fn files_of_sites_are_checked_before_anything_is_made() {
        let windows = "\u{feff}node: a\r\nsite: b\r\n";
        let good = [("GX-12.yaml", FIRST), ("GX-13.yml", SECOND), ("x.yaml", windows), ("notes.txt", "\t")];
        assert_eq!(taken(&good).unwrap(), 3);
        let cases: [(&[(&str, &str)], &str); 6] = [
            (&[("GX-12.yaml", FIRST), ("gx12.yml", SECOND)], "are for one machine"),
            (&[("GX-12.yaml", FIRST), ("GX-13.yml", FIRST)], "are both the first node of site \"north\""),
            (&[("GX-12.yaml", "node: a\nnetz: []\n")], "GX-12.yaml: "),
            (&[("GX-12.yaml", "disk:\n\texisting: erase\n")], "GX-12.yaml: "),
            (&[("GX-12.yaml", "network: [{mac: '52:54:00:12:34'}]\n")], "mac `52:54:00:12:34`"),
            (&[("notes.txt", "")], "has no site's file"),
        ];
        for (files, why) in cases {
            let error = format!("{:#}", taken(files).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
