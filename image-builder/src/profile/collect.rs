//! What an image is made of: packages, files, artefacts, units and accounts of all layers and settings together.
//!
//! Reads the files of packs; knows nothing of mirrors and locks.

use super::layers::Loaded;
use super::model::{Carrier, Settings};
use super::resolve::Filled;
use crate::board::overlay;
use crate::files;
use crate::finding::{Finding, join};
use crate::resolved::{Artefact, Boot, FileContent, ImageFile, Install, Resolved, Units, User};
use crate::settings::{TextFile, modem, network, system};
use crate::template::Scope;
use formats::device::{DEVICE_PROFILE, DeviceLayer, DeviceProfile, UpdateSettings};
use serde_json::Value;
use std::collections::BTreeMap;

/// Puts an image together; absent if no pack is an operating system, which was found before.
pub fn image(filled: &Filled<'_>, scope: &Scope, findings: &mut Vec<Finding>) -> Option<Resolved> {
    let device = device(filled);
    let artefacts = artefacts(filled, findings);
    let files = all_files(filled, &device, scope, findings);
    owners(&files, &artefacts, findings);
    let (board, settings) = (&filled.board, &filled.settings);
    let args = filled.layers.iter().flat_map(|loaded| &loaded.pack.file.kernel_args);
    let kernel_args = board.boot.kernel_args.iter().chain(args).chain(&settings.kernel_args);
    let debian = filled.layers.iter().find_map(|loaded| loaded.pack.debian.clone())?;
    Some(Resolved {
        packages: packages(filled),
        debian,
        artefacts,
        files,
        units: units(filled),
        users: users(settings),
        boot: Boot { kernel_args: kernel_args.cloned().collect(), ..board.boot.clone() },
        disk: overlay(&settings.disk, &board.disk),
        device,
    })
}

/// Units that packs enable or bring.
pub fn visible_units<'a>(layers: &'a [Loaded<'_>]) -> Vec<&'a str> {
    layers.iter().flat_map(|loaded| &loaded.pack.file.units.enable).map(String::as_str).collect()
}

fn device(filled: &Filled<'_>) -> DeviceProfile {
    let layers = filled.layers.iter().map(|loaded| DeviceLayer {
        layer: loaded.layer.layer.name().into(),
        pack: loaded.layer.pack.clone(),
        version: loaded.layer.version.clone(),
    });
    DeviceProfile {
        profile: filled.profile.metadata.name.clone(),
        version: filled.profile.metadata.version.clone(),
        product: filled.profile.product().into(),
        arch: filled.arch,
        board: filled.board_name.clone(),
        layers: layers.collect(),
        health: filled.health.clone(),
        ha: filled.ha.clone(),
        update: filled.settings.update.as_ref().map(|update| UpdateSettings {
            source: update.source.clone(),
            poll_s: update.poll_s,
            channel: update.channel,
            carriers: update.carriers.iter().map(Carrier::settings).collect(),
        }),
    }
}

fn packages(filled: &Filled<'_>) -> BTreeMap<String, String> {
    let mut packages = BTreeMap::new();
    let mut ask = |name: &str, origin: String| {
        packages.entry(name.to_owned()).or_insert(origin);
    };
    for loaded in &filled.layers {
        let by_arch = loaded.pack.file.packages_by_arch.get(&filled.arch);
        for package in loaded.pack.file.packages.iter().chain(by_arch.into_iter().flatten()) {
            ask(package, loaded.layer.origin());
        }
    }
    let board = &filled.board;
    // A kernel that is an artefact of the board is in no archive.
    let kernel = &board.boot.kernel_package;
    let kernel = (!board.artefacts.iter().any(|artefact| artefact.name == *kernel)).then_some(kernel);
    for package in board.packages.iter().chain(kernel) {
        ask(package, format!("board {}", filled.board_name));
    }
    let settings = &filled.settings;
    if settings.networks.iter().any(|network| network.wifi.is_some()) {
        ask("wpasupplicant", "settings.networks".into());
        ask("wireless-regdb", "settings.networks".into());
    }
    if !settings.modems.is_empty() {
        for package in modem::PACKAGES {
            ask(package, "settings.modems".into());
        }
    }
    if settings.timezone.is_some() {
        ask("tzdata", "settings.timezone".into());
    }
    if !settings.ca_certificates.is_empty() {
        ask("ca-certificates", "settings.ca_certificates".into());
    }
    if !settings.ntp.is_empty() {
        ask("systemd-timesyncd", "settings.ntp".into());
    }
    packages
}

fn units(filled: &Filled<'_>) -> Units {
    let mut units = Units::default();
    for loaded in &filled.layers {
        let of_pack = loaded.pack.file.units.clone();
        units.enable.extend(of_pack.enable);
        units.disable.extend(of_pack.disable);
        units.mask.extend(of_pack.mask);
    }
    for network in filled.settings.networks.iter().filter(|network| network.wifi.is_some()) {
        let interface = network.interface.as_deref().unwrap_or(network::WIFI_INTERFACE);
        units.enable.push(format!("wpa_supplicant@{interface}.service"));
    }
    if !filled.settings.modems.is_empty() {
        units.enable.extend(modem::ENABLE.map(str::to_owned));
        units.disable.extend(modem::DISABLE.map(str::to_owned));
    }
    units
}

fn artefacts(filled: &Filled<'_>, findings: &mut Vec<Finding>) -> Vec<Artefact> {
    let packs = filled.layers.iter().map(|loaded| (Some(loaded), &loaded.pack.file.artefacts));
    let mut artefacts: Vec<Artefact> = Vec::new();
    for (loaded, all) in packs.chain([(None, &filled.board.artefacts)]) {
        let path = loaded.map_or("board".to_owned(), |loaded| format!("layers[{}]", loaded.index));
        let origin = loaded.map_or(format!("board {}", filled.board_name), |loaded| loaded.layer.origin());
        let mut find = |message: String, next: String| {
            let finding = Finding::error(path.as_str(), message, next);
            findings.push(match loaded {
                Some(loaded) => finding.at(loaded.layer.id()),
                None => finding,
            });
        };
        for wanted in all {
            let source = wanted.source.get(&filled.arch);
            if source.is_none() && !wanted.source.is_empty() {
                let message = format!("artefact {} is not published for {}", wanted.name, filled.arch);
                let there = join(wanted.source.keys().map(|arch| arch.name()));
                find(message, format!("it is published for {there}; build for that, or add a source"));
            }
            if let Some(other) = artefacts.iter().find(|other| other.name == wanted.name) {
                find(format!("artefact {} is also in {}", wanted.name, other.origin), "rename one".into());
            }
            artefacts.push(Artefact {
                name: wanted.name.clone(),
                origin: origin.clone(),
                url: source.map(|source| source.url.clone()),
                sha256: source.and_then(|source| source.sha256.clone()),
                size: source.and_then(|source| source.size),
                install: wanted.install.clone(),
            });
        }
    }
    artefacts
}

/// Files of packs, then of settings, then the device profile.
fn all_files(
    filled: &Filled<'_>,
    device: &DeviceProfile,
    scope: &Scope,
    findings: &mut Vec<Finding>,
) -> Vec<ImageFile> {
    let mut all: Vec<ImageFile> = Vec::new();
    for loaded in filled.layers.iter().filter(|loaded| loaded.complete) {
        let scope = Scope { values: loaded.pack.values.clone(), ..scope.clone() };
        let (files, found) = files::of_pack(&loaded.pack, loaded.index, &loaded.layer.origin(), &scope);
        all.extend(files);
        findings.extend(found.into_iter().map(|finding| finding.at(loaded.layer.id())));
    }
    let settings = &filled.settings;
    for (files, found) in
        [network::files(&settings.networks), modem::files(&settings.modems), system::files(settings)]
    {
        findings.extend(found);
        all.extend(
            files.into_iter().map(|TextFile { path, text, mode }| ImageFile {
                mode,
                ..files::text(path, text, "settings")
            }),
        );
    }
    if let Some(zone) = &settings.timezone {
        let target = format!("/usr/share/zoneinfo/{zone}");
        let link = files::text("/etc/localtime".into(), String::new(), "settings.timezone");
        all.push(ImageFile { content: FileContent::Symlink { target }, ..link });
    }
    let device = serde_json::to_value(device).unwrap_or(Value::Null);
    all.push(files::text(DEVICE_PROFILE.into(), format!("{device:#}\n"), "profile"));
    all
}

/// Two owners of one path are an error.
fn owners(files: &[ImageFile], artefacts: &[Artefact], findings: &mut Vec<Finding>) {
    let installed = artefacts.iter().filter_map(|artefact| match &artefact.install {
        Install::File { path, .. } => Some((path, &artefact.origin)),
        Install::Init | Install::Tar { .. } | Install::Package => None,
    });
    let files = files.iter().filter(|file| !matches!(file.content, FileContent::Directory));
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for (path, origin) in files.map(|file| (&file.path, &file.origin)).chain(installed) {
        // The same pack twice is a finding of its own.
        if let Some(other) = owners.insert(path, origin)
            && other != origin
        {
            let message = format!("{path} is brought by {other} and by {origin}");
            findings.push(Finding::error("layers", message, "remove it from one of them"));
        }
    }
}

fn users(settings: &Settings) -> Vec<User> {
    let each = settings.users.iter().map(|user| User {
        name: user.name.clone(),
        groups: user.groups.clone(),
        shell: user.shell.clone(),
        password_hash: user.password_hash.clone().filter(|hash| !hash.is_empty()),
        ssh_keys: user.ssh_keys.iter().filter(|key| !key.trim().is_empty()).cloned().collect(),
    });
    each.collect()
}
