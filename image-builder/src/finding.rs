//! What `farhold check` finds: one value per problem, with the layer, the place, and what to do next.

use serde::Serialize;
use std::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing can be built.
    Error,
    /// Builds, but is probably not what was meant.
    Warning,
}

/// One problem of a profile.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// Layer, as `kubernetes k3s 1.33.4`; empty for the profile itself.
    pub layer: String,
    /// File, or path of the value, as `values.cluster.cidr`.
    pub place: String,
    /// What is wrong and why.
    pub message: String,
    /// What to do.
    pub next: String,
}

impl Finding {
    /// An error at a place of the profile itself.
    pub fn error(place: impl Into<String>, message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            layer: String::new(),
            place: place.into(),
            message: message.into(),
            next: next.into(),
        }
    }
    /// The same finding as a warning.
    pub fn warning(self) -> Self {
        Self { severity: Severity::Warning, ..self }
    }
    /// The same finding in a layer.
    pub fn at(self, layer: impl Into<String>) -> Self {
        Self { layer: layer.into(), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: ")?;
        for part in [&self.layer, &self.place] {
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
