//! What `farhold check` finds: one value per problem, with the layer, the place, and what to do next.
//!
//! Knows nothing of profiles and packs beyond their names.

use serde::Serialize;
use std::fmt;
use std::num::NonZeroU32;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing can be built.
    Error,
    /// Builds, but is probably not what was meant.
    Warning,
}

/// The layer that a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct LayerId {
    /// Kind, as `kubernetes`.
    pub layer: String,
    /// Pack name.
    pub pack: String,
    /// Pack version.
    pub version: String,
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.layer, self.pack, self.version)
    }
}

/// One problem of a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// File to blame.
    pub file: String,
    /// Line in the file, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<NonZeroU32>,
    /// Column in the line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<NonZeroU32>,
    /// Layer; absent for the profile itself.
    #[serde(flatten)]
    pub layer: Option<Box<LayerId>>,
    /// Path of the value, as `layers[2].values.port`; empty for a whole file.
    pub path: String,
    /// What is wrong and why.
    pub message: String,
    /// What to do.
    pub next: String,
}

impl Finding {
    /// An error at a path of the profile; [`Finding::in_file`] says where that stands.
    pub fn error(path: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            file: String::new(),
            line: None,
            column: None,
            layer: None,
            path: path.into(),
            message: message.into(),
            next: next.into(),
        }
    }
    /// The same finding as a warning.
    pub fn warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }
    /// The same finding in a layer.
    pub fn at(self, layer: LayerId) -> Self {
        Self { layer: Some(Box::new(layer)), ..self }
    }
    /// The same finding in a file.
    pub fn in_file(self, file: impl Into<String>) -> Self {
        Self { file: file.into(), ..self }
    }
    /// The same finding at a line and column of its file, from 1; 0 stands for unknown.
    pub fn at_line(self, place: Option<(u64, u64)>) -> Self {
        let (line, column) = place.unwrap_or_default();
        let known = |n| u32::try_from(n).ok().and_then(NonZeroU32::new);
        Self { line: known(line), column: known(column), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        let layer = self.layer.as_ref().map(ToString::to_string).unwrap_or_default();
        let place = match (self.line, self.column) {
            (Some(line), Some(column)) => format!("{}:{line}:{column}", self.file),
            (Some(line), None) => format!("{}:{line}", self.file),
            (None, _) => self.file.clone(),
        };
        for part in [place.as_str(), severity, &layer, &self.path] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        write!(f, "{}; {}", self.message, self.next)
    }
}

/// The one of `names` that is most like `wanted`, if any is close.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score = |name: &&str| strsim::jaro_winkler(wanted, name);
    names.into_iter().filter(|name| score(name) > 0.7).max_by(|a, b| score(a).total_cmp(&score(b)))
}

/// `did you mean …` for a wrong name, or the list of right ones.
pub fn suggest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(wanted, names.clone()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("there are: {}", join(names)),
    }
}

/// Names joined by commas; `none` if there are none.
pub fn join<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
