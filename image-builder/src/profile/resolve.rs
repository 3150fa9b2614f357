//! Turns a profile into plain values, and finds everything that is wrong with it at once.

use super::folders::Folders;
use super::layers::{self, Loaded};
use super::model::{Ha, Health, Profile, Settings};
use super::{basics, collect, variables};
use crate::board::Board;
use crate::finding::{Finding, LayerId, Severity, join};
use crate::pack::repository::{Pack, Repository};
use crate::resolved::Resolved;
use crate::template::{self, Scope};
use crate::{schema, yaml};
use formats::arch::Arch;
use formats::device::{HaSettings, HealthCheck};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
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
    let shown = path.display().to_string();
    let profile: Profile = yaml::parse(&text, &shown).map_err(|finding| vec![finding])?;
    let given = options.recipes.clone().or_else(|| std::env::var_os("FARHOLD_RECIPES").map(PathBuf::from));
    let folders = Folders::find(path, given.as_deref()).map_err(|finding| vec![finding])?;
    let packs = Repository::open(&folders.packs).map_err(|finding| vec![finding])?;
    let findings = basics::check(&profile, &text);
    let mut draft = Draft { profile: &profile, packs, findings, scope: empty_scope() };
    let resolved = draft.resolve(&folders.boards, options);
    let places = yaml::Places::of(&text);
    let placed = |finding: Finding| match finding.file.is_empty() {
        true => {
            let place = places.find(&finding.path);
            finding.in_file(shown.as_str()).at_line(place)
        }
        false => finding,
    };
    let mut findings: Vec<Finding> = draft.findings.into_iter().map(placed).collect();
    findings.sort();
    findings.dedup();
    match resolved {
        Some(resolved) if findings.iter().all(|finding| finding.severity != Severity::Error) => {
            Ok(Resolution { resolved, warnings: findings })
        }
        Some(_) | None => Err(findings),
    }
}

fn empty_scope() -> Scope {
    Scope {
        vars: Map::new(),
        declared: BTreeSet::new(),
        values: Value::Null,
        settings: Value::Null,
        profile: Value::Null,
        ha: Value::Null,
    }
}

/// A profile with its templates filled in.
pub(super) struct Filled<'a> {
    pub profile: &'a Profile,
    pub arch: Arch,
    pub board_name: String,
    pub board: Board,
    pub layers: Vec<Loaded<'a>>,
    pub settings: Settings,
    pub health: Vec<HealthCheck>,
    pub ha: Option<HaSettings>,
}

struct Draft<'a> {
    profile: &'a Profile,
    packs: Repository,
    findings: Vec<Finding>,
    scope: Scope,
}

impl<'a> Draft<'a> {
    fn resolve(&mut self, boards: &Path, options: &Options) -> Option<Resolved> {
        let arch = self.arch(options.arch)?;
        let found = self.board(boards, arch, options.board.as_ref());
        self.variables(arch, found.as_ref(), &options.set);
        let health: Option<Vec<Health>> = self.typed(&self.profile.health, "health");
        let ha: Option<Ha> = self.typed(&self.profile.ha, "ha");
        self.findings.extend(ha.as_ref().and_then(basics::ha));
        self.findings.extend(ha.as_ref().and_then(basics::virtual_ip));
        self.scope.ha = serde_json::to_value(&ha).unwrap_or_default();
        let settings: Settings = self.typed(&self.profile.settings, "settings").unwrap_or_default();
        self.scope.settings = serde_json::to_value(&settings).unwrap_or_default();
        let kubernetes = self.profile.layers.iter().find(|layer| layer.layer.name() == "kubernetes");
        let distribution = kubernetes.map(|layer| layer.pack.as_str());
        self.findings.extend(basics::settings(&settings, distribution));
        self.findings.extend(basics::update(&settings));
        let loaded = self.load(arch);
        let board = found.as_ref().map(|(name, board)| (name.as_str(), board.resources));
        self.findings.extend(layers::check(&self.profile.layers, &loaded, &self.packs, board));
        let units = collect::visible_units(&loaded);
        let visible = basics::Visible { units, kubernetes: kubernetes.is_some() };
        let checks = health.unwrap_or_default();
        self.findings.extend(basics::health(&checks, &visible));
        let (board_name, board) = found?;
        let health = as_device(&checks)?;
        let filled = Filled {
            profile: self.profile,
            arch,
            board_name,
            board,
            health,
            ha: ha.and_then(|ha| as_device(&ha)),
            settings,
            layers: loaded,
        };
        collect::image(&filled, &self.scope, &mut self.findings)
    }

    fn arch(&mut self, wanted: Option<Arch>) -> Option<Arch> {
        let made_for = &self.profile.arch;
        match wanted.or(made_for.first().copied()) {
            Some(arch) if made_for.contains(&arch) => Some(arch),
            Some(arch) => {
                let next =
                    format!("it is made for {}; add {arch} there", join(made_for.iter().map(|a| a.name())));
                self.findings.push(Finding::error(
                    "arch",
                    format!("the profile is not made for {arch}"),
                    next,
                ));
                None
            }
            None => {
                self.findings.push(Finding::error("arch", "names no processor", "add x86_64 or arm64"));
                None
            }
        }
    }

    fn board(&mut self, boards: &Path, arch: Arch, given: Option<&String>) -> Option<(String, Board)> {
        let Some(name) = given.or(self.profile.board.get(&arch)) else {
            let known = Board::list(boards, arch);
            let next = format!("add one of: {}", join(known.iter().map(String::as_str)));
            self.findings.push(Finding::error("board", format!("names no board for {arch}"), next));
            return None;
        };
        match Board::load(boards, arch, name) {
            Ok(board) => Some((name.clone(), board)),
            Err(finding) => {
                self.findings.push(finding);
                None
            }
        }
    }

    /// Variables, and what templates know of the profile.
    fn variables(&mut self, arch: Arch, board: Option<&(String, Board)>, set: &BTreeMap<String, String>) {
        let (vars, findings) = variables::evaluate(&self.profile.variables, set);
        self.findings.extend(findings);
        self.scope.vars = vars;
        self.scope.declared = self.profile.variables.keys().cloned().collect();
        let metadata = &self.profile.metadata;
        self.scope.profile = json!({
            "name": metadata.name, "version": metadata.version, "product": self.profile.product(),
            "arch": arch, "board": board.map(|(name, _)| name),
            "watchdog_s": board.and_then(|(_, board)| board.boot.watchdog_s),
        });
    }

    /// A part of the profile with variables filled in, checked and typed; absent if it is empty or wrong. Of a map only
    /// the keys that are wrong are left out, so that the others are looked at too.
    fn typed<T: DeserializeOwned + JsonSchema>(&mut self, part: &Value, path: &str) -> Option<T> {
        if part.is_null() {
            return None;
        }
        let (mut filled, unfilled) = self.fill(part, path, None);
        let schema = serde_json::to_value(schemars::schema_for!(T)).unwrap_or_default();
        let found = schema::violations(&schema, &filled, path);
        let found = found.unwrap_or_else(|error| vec![Finding::error(path, error, "report this")]);
        let found: Vec<Finding> =
            found.into_iter().filter(|finding| !is_within(&finding.path, &unfilled)).collect();
        let wrong: Vec<String> = found.iter().map(|finding| finding.path.clone()).chain(unfilled).collect();
        self.findings.extend(found.into_iter().map(absent_feature));
        if let Some(map) = filled.as_object_mut() {
            let below = |key: &str| format!("{path}.{key}");
            map.retain(|key, _| !wrong.iter().any(|wrong| is_within(wrong, &[below(key)])));
        }
        match serde_json::from_value(filled) {
            Ok(value) => Some(value),
            // The reason is among the findings already.
            Err(_) if !wrong.is_empty() => None,
            Err(error) => {
                let next = "see docs/profiles.md, or the published schema in an editor";
                self.findings.push(Finding::error(path, error.to_string(), next));
                None
            }
        }
    }

    /// Fills templates in; also says which values could not be filled.
    fn fill(&mut self, value: &Value, path: &str, layer: Option<&LayerId>) -> (Value, Vec<String>) {
        let mut unfilled = Vec::new();
        let filled = template::fill(value, path, &self.scope, &mut unfilled);
        for (path, why) in unfilled.iter().map(|unfilled| (&unfilled.path, &unfilled.why)) {
            if let Some((message, next)) = why {
                let finding = Finding::error(path, message, next);
                self.findings.push(match layer {
                    Some(layer) => finding.at(layer.clone()),
                    None => finding,
                });
            }
        }
        (filled, unfilled.into_iter().map(|unfilled| unfilled.path).collect())
    }

    /// Packs of all layers that can be read, with the profile's values over theirs, checked against their schema.
    fn load(&mut self, arch: Arch) -> Vec<Loaded<'a>> {
        let mut loaded = Vec::new();
        for (index, layer) in self.profile.layers.iter().enumerate() {
            let path = format!("layers[{index}]");
            let mut pack = match self.packs.load(&layer.pack, &layer.version) {
                Ok(pack) => pack,
                Err(finding) => {
                    let path = match finding.path.is_empty() {
                        true => String::new(),
                        false => format!("{path}.{}", finding.path),
                    };
                    self.findings.push(Finding { path, ..finding }.at(layer.id()));
                    continue;
                }
            };
            if !pack.file.arch.contains(&arch) {
                let made = join(pack.file.arch.iter().map(|arch| arch.name()));
                let message = format!("pack {} is not made for {arch}", layer.pack);
                let next = format!("it is made for {made}; choose another pack or processor");
                self.findings.push(Finding::error(path.as_str(), message, next).at(layer.id()));
            }
            merge(&mut pack.values, &Value::Object(layer.values.clone()));
            let path = format!("{path}.values");
            let (values, unfilled) = self.fill(&pack.values, &path, Some(&layer.id()));
            pack.values = values;
            self.validate(&pack, &path, &unfilled, &layer.id());
            // A template that uses such a value would only repeat what was found.
            let complete = unfilled.is_empty();
            loaded.push(Loaded { index, layer, pack, complete });
        }
        loaded
    }

    fn validate(&mut self, pack: &Pack, path: &str, unfilled: &[String], id: &LayerId) {
        let Some(schema) = &pack.schema else {
            if let Some(key) = pack.values.as_object().and_then(|values| values.keys().next()) {
                let finding =
                    Finding::error(format!("{path}.{key}"), "this pack takes no values", "remove it");
                self.findings.push(finding.at(id.clone()));
            }
            return;
        };
        match schema::violations(schema, &pack.values, path) {
            Ok(found) => {
                let found = found.into_iter().filter(|finding| !is_within(&finding.path, unfilled));
                self.findings.extend(found.map(|finding| finding.at(id.clone())));
            }
            Err(error) => {
                let file = pack.folder.join("schema.json").display().to_string();
                let finding = Finding::error("", error, "correct the schema").in_file(file);
                self.findings.push(finding.at(id.clone()));
            }
        }
    }
}

/// Keys that people look for and that Farhold does not have are refused in words of their own.
fn absent_feature(finding: Finding) -> Finding {
    match finding.path.as_str() {
        "settings.state_encryption" => Finding {
            message: "Farhold has no encryption of the state partition (sealed by a TPM or otherwise)".into(),
            next: "remove it; keep secrets off the device, or use a disk that encrypts itself".into(),
            ..finding
        },
        _ => finding,
    }
}

/// Whether a path is one of `paths` or below one.
fn is_within(path: &str, paths: &[String]) -> bool {
    paths.iter().any(|around| {
        path.strip_prefix(around.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// The form in which the device gets a value; the types differ only in what they derive.
fn as_device<T: DeserializeOwned>(value: &impl serde::Serialize) -> Option<T> {
    serde_json::to_value(value).and_then(serde_json::from_value).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_the_profile_win_key_by_key() {
        let mut values = json!({ "a": { "x": 1, "y": 2 }, "list": [1, 2] });
        merge(&mut values, &json!({ "a": { "y": 3 }, "list": [9], "new": true }));
        assert_eq!(values, json!({ "a": { "x": 1, "y": 3 }, "list": [9], "new": true }));
    }

    #[test]
    fn every_kind_of_check_and_policy_has_the_form_of_the_device() {
        let health = json!([
            { "name": "u", "kind": "unit", "deadline_s": 1, "unit": "a.service" },
            { "name": "p", "kind": "port", "deadline_s": 1, "port": 22 },
            { "name": "h", "kind": "http", "deadline_s": 1, "url": "http://localhost" },
            { "name": "n", "kind": "node-ready", "deadline_s": 1 },
            { "name": "d", "kind": "disk", "deadline_s": 1, "path": "/var", "min_free_percent": 5 },
            { "name": "c", "kind": "command", "deadline_s": 1, "argv": ["true"] },
        ]);
        let checks: Vec<Health> = serde_json::from_value(health.clone()).unwrap();
        let device: Vec<HealthCheck> = as_device(&checks).unwrap();
        assert_eq!(serde_json::to_value(device).unwrap(), health);
        for policy in [json!("witness"), json!("hold"), json!({ "prefer": "node-a" })] {
            let text = json!({ "on_peer_loss": policy, "witness": null, "virtual_ip": null });
            let ha: Ha = serde_json::from_value(text.clone()).unwrap();
            let device: HaSettings = as_device(&ha).unwrap();
            assert_eq!(serde_json::to_value(device).unwrap(), text);
        }
    }
}
