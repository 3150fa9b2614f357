//! Finds packs: `packs/<name>/<version>/pack.yaml` below a recipes folder, with their values, schema and files.

use super::model::{DebianFile, PackFile};
use super::version;
use crate::finding::{Finding, join, suggest};
use crate::resolved::{Absent, Debian, ScriptRule};
use crate::yaml;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A pack as read.
#[derive(Clone, Debug)]
pub struct Pack {
    /// `pack.yaml`.
    pub file: PackFile,
    /// Its folder.
    pub folder: PathBuf,
    /// `values.yaml`, an object.
    pub values: Value,
    /// `schema.json`, if there is one.
    pub schema: Option<Value>,
    /// What `debian` names.
    pub debian: Option<Debian>,
}

/// The file that `debian.rules` names.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DebianRules {
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    absent: BTreeMap<String, Absent>,
    #[serde(default)]
    scripts: BTreeMap<String, ScriptRule>,
}

impl DebianRules {
    fn with(self, source: &DebianFile) -> Debian {
        let Self { exclude, keep, absent, scripts } = self;
        let DebianFile { suites, components, .. } = source.clone();
        Debian { suites, components, exclude, keep, scripts, absent }
    }
}

/// All packs below some folders, by name, versions in order.
#[derive(Debug)]
pub struct Repository {
    folders: Vec<PathBuf>,
    versions: BTreeMap<String, Vec<String>>,
}

impl Repository {
    /// Lists the packs below folders; of the same version in two of them the first wins.
    ///
    /// # Errors
    /// If a folder cannot be read.
    pub fn open(folders: &[PathBuf]) -> Result<Self, Finding> {
        let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for folder in folders {
            let unreadable = |error: std::io::Error| {
                let next = "make it readable, or give another with --recipes or FARHOLD_RECIPES";
                Finding::error("", format!("cannot be read: {error}"), next)
                    .in_file(folder.display().to_string())
            };
            for name in names(folder).map_err(unreadable)? {
                let mut found = names(&folder.join(&name)).map_err(unreadable)?;
                found.retain(|version| folder.join(&name).join(version).join("pack.yaml").is_file());
                versions.entry(name).or_default().extend(found);
            }
        }
        for found in versions.values_mut() {
            found.sort_by(|a, b| version::compare(a, b));
            found.dedup();
        }
        Ok(Self { folders: folders.to_owned(), versions })
    }

    /// Versions of a pack, lowest first; none if there is no such pack.
    pub fn versions(&self, name: &str) -> &[String] {
        self.versions.get(name).map_or(&[], Vec::as_slice)
    }

    /// Reads a pack.
    ///
    /// # Errors
    /// Unknown name or version with the nearest or the existing ones; files that cannot be read.
    pub fn load(&self, name: &str, version: &str) -> Result<Pack, Finding> {
        let Some(versions) = self.versions.get(name) else {
            let known = self.versions.keys().map(String::as_str);
            return Err(Finding::error("pack", format!("there is no pack `{name}`"), suggest(name, known)));
        };
        if !versions.iter().any(|there| there == version) {
            let next = format!("versions of {name}: {}", join(versions.iter().map(String::as_str)));
            return Err(Finding::error("version", format!("{name} has no version {version}"), next));
        }
        let mut places = self.folders.iter().map(|folder| folder.join(name).join(version));
        let folder = places.find(|folder| folder.join("pack.yaml").is_file()).unwrap_or_default();
        let path = folder.join("pack.yaml");
        let file: PackFile = yaml::load(&path)?;
        if (file.name.as_str(), file.version.as_str()) != (name, version) {
            let message =
                format!("says it is {} {}, but its folder is {name}/{version}", file.name, file.version);
            let finding = Finding::error("", message, "make them equal");
            return Err(finding.in_file(path.display().to_string()));
        }
        let values = optional(&folder.join("values.yaml"), yaml::load)?;
        let schema = optional(&folder.join("schema.json"), json)?;
        let debian = match &file.debian {
            Some(debian) => {
                let rules: DebianRules = yaml::load(&folder.join(&debian.rules))?;
                Some(rules.with(debian))
            }
            None => None,
        };
        let values = values.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        Ok(Pack { file, folder, values, schema, debian })
    }
}

fn optional<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T, Finding>) -> Result<Option<T>, Finding> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

fn json(path: &Path) -> Result<Value, Finding> {
    serde_json::from_str(&yaml::text(path)?).map_err(|error| {
        let message = error.to_string();
        Finding::error("", message, "correct the JSON Schema").in_file(path.display().to_string())
    })
}

fn names(folder: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
