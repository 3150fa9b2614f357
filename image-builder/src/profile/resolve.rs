//! Turns a profile into plain values, and finds everything that is wrong with it at once.

use super::layers::{self, Loaded};
use super::model::{Profile, Settings};
use super::variables;
use crate::board::{Board, overlay};
use crate::finding::{Finding, Severity, join, suggest};
use crate::pack::model::{LayerKind, PackFile};
use crate::pack::repository::{Pack, Repository};
use crate::resolved::{Artefact, Boot, FileContent, ImageFile, Resolved, Units, User};
use crate::settings::{network, system};
use crate::template::{self, Scope};
use crate::{files, yaml};
use formats::arch::Arch;
use formats::device::{DEVICE_PROFILE, DeviceLayer, DeviceProfile, OnPeerLoss};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a caller decides about a profile.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Folder that holds `packs`; found by the profile's place if absent.
    pub recipes: Option<PathBuf>,
    /// Processor; the profile's first if absent.
    pub arch: Option<Arch>,
    /// Board instead of the profile's.
    pub board: Option<String>,
    /// Variables.
    pub set: BTreeMap<String, String>,
}

/// A resolved profile with the warnings about it.
#[derive(Debug)]
pub struct Resolution {
    /// Plain values.
    pub resolved: Resolved,
    /// Warnings; never errors.
    pub warnings: Vec<Finding>,
}

/// Resolves a profile for one processor.
///
/// # Errors
/// Everything that is wrong, at least one of it an error.
pub fn resolve(path: &Path, options: &Options) -> Result<Resolution, Vec<Finding>> {
    let text = yaml::text(path).map_err(|finding| vec![finding])?;
    let profile: Profile =
        yaml::parse(&text, &path.display().to_string()).map_err(|finding| vec![finding])?;
    let recipes = recipes_folder(path, options).map_err(|finding| vec![finding])?;
    let packs = Repository::open(&recipes).map_err(|finding| vec![finding])?;
    let mut findings = basics(&profile);
    let arch = match options.arch.or(profile.arch.first().copied()) {
        Some(arch) if profile.arch.contains(&arch) => arch,
        Some(arch) => {
            let next =
                format!("it is made for {}; add {arch} there", join(profile.arch.iter().map(|a| a.name())));
            findings.push(Finding::error("arch", format!("the profile is not made for {arch}"), next));
            return Err(findings);
        }
        None => {
            findings.push(Finding::error("arch", "names no processor", "add x86_64 or arm64"));
            return Err(findings);
        }
    };
    findings.extend(unused(&profile, &text));
    let root = recipes.parent().unwrap_or(Path::new(""));
    let mut draft = Draft { profile: &profile, packs, arch, findings, scope: empty_scope() };
    let Some((name, board)) = draft.board(root, options) else { return Err(draft.findings) };
    draft.scope(&name, &board, &options.set);
    let settings = draft.settings();
    let loaded = draft.load();
    let resources = Some((name.as_str(), board.resources));
    draft.findings.extend(layers::check(&loaded, &draft.packs, resources));
    let resolved = draft.finish(&name, board, &loaded, settings);
    draft.findings.sort();
    draft.findings.dedup();
    match resolved {
        Some(resolved) if draft.findings.iter().all(|finding| finding.severity != Severity::Error) => {
            Ok(Resolution { resolved, warnings: draft.findings })
        }
        Some(_) | None => Err(draft.findings),
    }
}

/// `--recipes`, `FARHOLD_RECIPES`, a folder above the profile that holds `packs`, or `recipes` here.
fn recipes_folder(path: &Path, options: &Options) -> Result<PathBuf, Finding> {
    let given = options.recipes.clone().or_else(|| std::env::var_os("FARHOLD_RECIPES").map(PathBuf::from));
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let above = absolute.ancestors().skip(1).find(|folder| folder.join("packs").is_dir()).map(Path::to_owned);
    let here = PathBuf::from("recipes");
    given.or(above).or_else(|| here.join("packs").is_dir().then_some(here)).ok_or_else(|| {
        let next = "give the folder that holds `packs` with --recipes or FARHOLD_RECIPES";
        Finding::error("recipes", format!("no folder `packs` above {} or in ./recipes", path.display()), next)
    })
}

fn empty_scope() -> Scope {
    Scope {
        vars: Map::new(),
        values: Value::Null,
        settings: Value::Null,
        profile: Value::Null,
        ha: Value::Null,
    }
}

fn basics(profile: &Profile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let label = |text: &str| {
        !text.is_empty()
            && text.len() <= 48
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    for (place, text) in [
        ("metadata.name", Some(&profile.metadata.name)),
        ("metadata.product", profile.metadata.product.as_ref()),
    ] {
        if let Some(text) = text.filter(|text| !label(text)) {
            let message = format!("`{text}` must be at most 48 of a-z, 0-9 and `-`");
            findings.push(Finding::error(place, message, "choose another name"));
        }
    }
    if !variables::is_version(&profile.metadata.version) {
        let message = format!("`{}` is not a version", profile.metadata.version);
        findings.push(Finding::error(
            "metadata.version",
            message,
            "use digits, letters, `.` and `-`, as 1.4.0",
        ));
    }
    for (n, check) in profile.health.iter().enumerate() {
        if profile.health[..n].iter().any(|other| other.name == check.name) {
            let message = format!("two checks are named `{}`", check.name);
            findings.push(Finding::error(format!("health[{n}]"), message, "rename one"));
        }
    }
    if let Some(ha) = &profile.ha {
        match (&ha.on_peer_loss, &ha.witness) {
            (OnPeerLoss::Prefer(_), Some(_)) => findings.push(Finding::error(
                "ha",
                "`prefer` and a witness exclude each other: both halves could win",
                "remove the witness, or use `on_peer_loss: witness`",
            )),
            (OnPeerLoss::Witness, None) => findings.push(Finding::error(
                "ha",
                "`on_peer_loss: witness` needs the address of a witness",
                "add `witness: HOST:PORT`, or use `hold` or `prefer`",
            )),
            (OnPeerLoss::Prefer(_), None) => findings.push(
                Finding::error(
                    "ha",
                    "`prefer` goes on without a third vote: if the other node still runs, its users see an outage",
                    "add a witness to be safe without this",
                )
                .warning(),
            ),
            (OnPeerLoss::Hold, _) | (OnPeerLoss::Witness, Some(_)) => {}
        }
    }
    findings
}

/// Variables that nothing uses.
fn unused(profile: &Profile, text: &str) -> Vec<Finding> {
    let used: Vec<&str> = template::variables(text).collect();
    let unused = profile.variables.keys().filter(|name| !used.contains(&name.as_str()));
    unused
        .map(|name| {
            Finding::error(format!("variables.{name}"), "is not used", "use it or remove it").warning()
        })
        .collect()
}

struct Draft<'a> {
    profile: &'a Profile,
    packs: Repository,
    arch: Arch,
    findings: Vec<Finding>,
    scope: Scope,
}

impl<'a> Draft<'a> {
    fn board(&mut self, root: &Path, options: &Options) -> Option<(String, Board)> {
        let Some(name) = options.board.as_ref().or(self.profile.board.get(&self.arch)) else {
            let boards = Board::list(root, self.arch);
            let next = format!("add one of: {}", join(boards.iter().map(String::as_str)));
            self.findings.push(Finding::error("board", format!("names no board for {}", self.arch), next));
            return None;
        };
        match Board::load(root, self.arch, name) {
            Ok(board) => Some((name.clone(), board)),
            Err(finding) => {
                self.findings.push(finding);
                None
            }
        }
    }

    /// Variables, and what templates know of the profile.
    fn scope(&mut self, name: &str, board: &Board, set: &BTreeMap<String, String>) {
        let (vars, findings) = variables::evaluate(&self.profile.variables, set);
        self.findings.extend(findings);
        self.scope.vars = vars;
        let metadata = &self.profile.metadata;
        self.scope.profile = json!({
            "name": metadata.name, "version": metadata.version, "product": self.product(),
            "arch": self.arch, "board": name, "watchdog_s": board.boot.watchdog_s,
        });
        self.scope.ha = serde_json::to_value(&self.profile.ha).unwrap_or_default();
    }

    fn product(&self) -> &'a str {
        let metadata = &self.profile.metadata;
        metadata.product.as_ref().unwrap_or(&metadata.name)
    }

    /// Settings with variables filled in, typed.
    fn settings(&mut self) -> Settings {
        let filled = self.fill(&self.profile.settings, "settings", "");
        if filled.is_null() {
            return Settings::default();
        }
        match serde_json::from_value::<Settings>(filled) {
            Ok(settings) => {
                self.scope.settings = serde_json::to_value(&settings).unwrap_or_default();
                settings
            }
            Err(error) => {
                let next = "see docs/profiles.md, or the published schema in an editor";
                self.findings.push(Finding::error("settings", error.to_string(), next));
                Settings::default()
            }
        }
    }

    fn fill(&mut self, value: &Value, place: &str, layer: &str) -> Value {
        let mut errors = Vec::new();
        let filled = template::fill(value, place, &self.scope, &mut errors);
        for (place, message) in errors {
            self.findings.push(Finding::error(place, message, "correct the template").at(layer));
        }
        filled
    }

    /// Packs of all layers that can be read, with the profile's values over theirs, checked against their schema.
    fn load(&mut self) -> Vec<Loaded<'a>> {
        let mut loaded = Vec::new();
        for layer in &self.profile.layers {
            let mut pack = match self.packs.load(&layer.pack, &layer.version) {
                Ok(pack) => pack,
                Err(finding) => {
                    self.findings.push(finding.at(layer.label()));
                    continue;
                }
            };
            if !pack.file.arch.contains(&self.arch) {
                let made = join(pack.file.arch.iter().map(|arch| arch.name()));
                let message = format!("is not made for {}", self.arch);
                let next = format!("it is made for {made}; choose another pack or processor");
                self.findings.push(Finding::error("arch", message, next).at(layer.label()));
            }
            merge(&mut pack.values, &Value::Object(layer.values.clone()));
            pack.values = self.fill(&pack.values.clone(), "values", &layer.label());
            self.validate(&pack, &layer.label());
            loaded.push((layer, pack));
        }
        loaded
    }

    fn validate(&mut self, pack: &Pack, label: &str) {
        let Some(schema) = &pack.schema else {
            if let Some(key) = pack.values.as_object().and_then(|values| values.keys().next()) {
                let place = format!("values.{key}");
                self.findings.push(Finding::error(place, "this pack takes no values", "remove it").at(label));
            }
            return;
        };
        match jsonschema::validator_for(schema) {
            Err(error) => {
                let place = pack.folder.join("schema.json").display().to_string();
                self.findings.push(Finding::error(place, error.to_string(), "correct the schema").at(label));
            }
            Ok(validator) => {
                for error in validator.iter_errors(&pack.values) {
                    let place = format!("values{}", error.instance_path().to_string().replace('/', "."));
                    let next = "see the pack's schema.json for what is allowed";
                    self.findings.push(Finding::error(place, error.to_string(), next).at(label));
                }
            }
        }
    }

    fn finish(
        &mut self,
        name: &str,
        board: Board,
        loaded: &[Loaded<'a>],
        settings: Settings,
    ) -> Option<Resolved> {
        let debian = loaded.iter().find_map(|(_, pack)| pack.debian.clone());
        let os = loaded.iter().any(|(layer, _)| layer.layer == LayerKind::Os);
        if !os && !self.findings.iter().any(|finding| finding.place == "pack" || finding.place == "version") {
            self.findings.push(Finding::error(
                "layers",
                "no layer `os`",
                "add one, as `{layer: os, pack: debian}`",
            ));
        }
        let device = self.device(name, loaded);
        let mut packages = BTreeMap::new();
        for (layer, pack) in loaded {
            for package in self.packages_of(&pack.file) {
                packages.entry(package).or_insert_with(|| layer.label());
            }
        }
        for package in board.packages.iter().chain([&board.boot.kernel_package]) {
            packages.entry(package.clone()).or_insert_with(|| format!("board {name}"));
        }
        for package in setting_packages(&settings) {
            packages.entry(package.into()).or_insert_with(|| "settings.networks".into());
        }
        let mut units = Units::default();
        for (_, pack) in loaded {
            units.enable.extend(pack.file.units.enable.iter().cloned());
            units.disable.extend(pack.file.units.disable.iter().cloned());
            units.mask.extend(pack.file.units.mask.iter().cloned());
        }
        units.enable.extend(setting_units(&settings));
        let files = self.files(&device, loaded, &settings);
        let args =
            loaded.iter().flat_map(|(_, pack)| pack.file.kernel_args.iter()).chain(&settings.kernel_args);
        let kernel_args = board.boot.kernel_args.iter().chain(args).cloned().collect();
        Some(Resolved {
            packages,
            debian: debian?,
            artefacts: self.artefacts(loaded),
            files,
            units,
            users: users(&settings),
            boot: Boot { kernel_args, ..board.boot },
            disk: overlay(&settings.disk, &board.disk),
            device,
        })
    }

    fn device(&self, board: &str, loaded: &[Loaded<'_>]) -> DeviceProfile {
        let layers = loaded.iter().map(|(layer, _)| DeviceLayer {
            layer: layer.layer.name().into(),
            pack: layer.pack.clone(),
            version: layer.version.clone(),
        });
        DeviceProfile {
            profile: self.profile.metadata.name.clone(),
            version: self.profile.metadata.version.clone(),
            product: self.product().into(),
            arch: self.arch,
            board: board.into(),
            layers: layers.collect(),
            health: self.profile.health.clone(),
            ha: self.profile.ha.clone(),
        }
    }

    fn packages_of(&self, pack: &PackFile) -> Vec<String> {
        let by_arch = pack.packages_by_arch.get(&self.arch);
        pack.packages.iter().chain(by_arch.into_iter().flatten()).cloned().collect()
    }

    fn artefacts(&mut self, loaded: &[Loaded<'_>]) -> Vec<Artefact> {
        let mut artefacts: Vec<Artefact> = Vec::new();
        for (layer, pack) in loaded {
            for wanted in &pack.file.artefacts {
                let source = wanted.source.get(&self.arch);
                if source.is_none() && !wanted.source.is_empty() {
                    let message = format!("artefact {} is not published for {}", wanted.name, self.arch);
                    let there = suggest(self.arch.name(), wanted.source.keys().map(|arch| arch.name()));
                    self.findings.push(Finding::error("artefacts", message, there).at(layer.label()));
                }
                if let Some(other) = artefacts.iter().find(|other| other.name == wanted.name) {
                    let message = format!("artefact {} is also in {}", wanted.name, other.origin);
                    self.findings.push(Finding::error("artefacts", message, "rename one").at(layer.label()));
                }
                artefacts.push(Artefact {
                    name: wanted.name.clone(),
                    origin: layer.label(),
                    url: source.map(|source| source.url.clone()),
                    sha256: source.and_then(|source| source.sha256.clone()),
                    size: source.and_then(|source| source.size),
                    install: wanted.install.clone(),
                });
            }
        }
        artefacts
    }

    /// Files of packs, then of settings, then the device profile. Two owners of one path are an error.
    fn files(
        &mut self,
        device: &DeviceProfile,
        loaded: &[Loaded<'_>],
        settings: &Settings,
    ) -> Vec<ImageFile> {
        let mut all: Vec<ImageFile> = Vec::new();
        for (order, (layer, pack)) in loaded.iter().enumerate() {
            self.scope.values = pack.values.clone();
            match files::of_pack(pack, order, &layer.label(), &self.scope) {
                Ok(files) => all.extend(files),
                Err(errors) => {
                    let found = errors.into_iter().map(|(place, message)| {
                        Finding::error(place, message, "correct the pack's file").at(layer.label())
                    });
                    self.findings.extend(found);
                }
            }
        }
        self.scope.values = Value::Null;
        let (network, found) = network::files(&settings.networks);
        self.findings.extend(found);
        let (system, found) = system::files(settings);
        self.findings.extend(found);
        let rendered = network.into_iter().chain(system);
        all.extend(rendered.map(|(path, text)| files::text(path, text, "settings")));
        if let Some(zone) = &settings.timezone {
            let target = format!("/usr/share/zoneinfo/{zone}");
            let link = files::text("/etc/localtime".into(), String::new(), "settings.timezone");
            all.push(ImageFile { content: FileContent::Symlink { target }, ..link });
        }
        let device = serde_json::to_string_pretty(device).unwrap_or_default();
        all.push(files::text(DEVICE_PROFILE.into(), format!("{device}\n"), "profile"));
        let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
        for file in &all {
            if let Some(other) = owners.insert(&file.path, &file.origin)
                && !matches!(file.content, FileContent::Directory)
            {
                let message = format!("is brought by {other} and by {}", file.origin);
                self.findings.push(Finding::error(&file.path, message, "remove it from one of them"));
            }
        }
        all
    }
}

fn merge(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                merge(below.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above.clone(),
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

fn setting_packages(settings: &Settings) -> Vec<&'static str> {
    let mut packages = Vec::new();
    if settings.networks.iter().any(|network| network.wifi.is_some()) {
        packages.extend(["wpasupplicant", "wireless-regdb"]);
    }
    if settings.networks.iter().any(|network| network.modem.is_some()) {
        packages.extend(["modemmanager", "usb-modeswitch"]);
    }
    if settings.timezone.is_some() {
        packages.push("tzdata");
    }
    packages
}

fn setting_units(settings: &Settings) -> Vec<String> {
    let wifi = settings.networks.iter().filter(|network| network.wifi.is_some());
    let mut units: Vec<String> = wifi
        .map(|network| format!("wpa_supplicant@{}.service", network.interface.as_deref().unwrap_or("wlan0")))
        .collect();
    if settings.networks.iter().any(|network| network.modem.is_some()) {
        units.push("ModemManager.service".into());
    }
    units
}
