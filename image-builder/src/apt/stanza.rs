//! One package as the index describes it (deb822(5), deb-control(5)).

use crate::deb;
use crate::lock::LockedPackage;
use anyhow::{Result, anyhow};
use std::collections::BTreeMap;

/// One stanza of a package index.
#[derive(Clone, Debug)]
pub(super) struct Stanza(BTreeMap<String, String>);

/// Stanzas of `apt-cache show` by SHA-256.
pub(super) fn index_by_digest(shown: &str) -> BTreeMap<String, Stanza> {
    Stanza::parse_all(shown).into_iter().map(|stanza| (stanza.field("SHA256").to_owned(), stanza)).collect()
}

impl Stanza {
    pub(super) fn parse_all(text: &str) -> Vec<Self> {
        let stanzas = text.split("\n\n").map(|stanza| Self(deb::fields(stanza).into_iter().collect()));
        stanzas.filter(|stanza| !stanza.0.is_empty()).collect()
    }
    fn field(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
    pub(super) fn name(&self) -> &str {
        self.field("Package")
    }
    /// Its own name and those it provides.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.name()).chain(groups(self.field("Provides")).flatten())
    }
    /// What it depends on; each group is satisfied by any of its names.
    pub(super) fn dependencies(&self) -> impl Iterator<Item = Vec<&str>> {
        groups(self.field("Depends")).chain(groups(self.field("Pre-Depends")))
    }
    /// The stanza of a dpkg status in which this package is installed and depends on nothing.
    pub(super) fn installed(&self) -> String {
        let mut text = format!("Package: {}\nStatus: install ok installed\n", self.name());
        for name in ["Version", "Architecture", "Multi-Arch", "Provides"] {
            if let Some(value) = self.0.get(name) {
                text.push_str(&format!("{name}: {}\n", value.replace('\n', " ")));
            }
        }
        text.push_str("Maintainer: none\nDescription: left out\n\n");
        text
    }
    /// As it is pinned in a lock.
    pub(super) fn locked(&self, mirror: &str, sha256: &str, size: u64) -> Result<LockedPackage> {
        let need = |name: &str| {
            let value = self.0.get(name).cloned();
            value.ok_or_else(|| anyhow!("the index has no `{name}` for package `{}`", self.name()))
        };
        Ok(LockedPackage {
            name: need("Package")?,
            version: need("Version")?,
            architecture: need("Architecture")?,
            source: self.0.get("Source").cloned(),
            mirror: mirror.to_owned(),
            path: need("Filename")?,
            size,
            sha256: sha256.to_owned(),
        })
    }
}

/// `a (>= 1) | b:any, c` as `[[a, b], [c]]`.
fn groups(field: &str) -> impl Iterator<Item = Vec<&str>> {
    field
        .split(',')
        .map(|group| group.split('|').map(bare).filter(|name| !name.is_empty()).collect::<Vec<&str>>())
        .filter(|group| !group.is_empty())
}

fn bare(relation: &str) -> &str {
    let name = relation.trim().split([' ', '(', '[', '<']).next().unwrap_or_default();
    name.split(':').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_relations() {
        let found: Vec<_> =
            groups("libc6 (>= 2.38), debconf (>= 0.5) | debconf-2.0, perl:any,\n adduser").collect();
        assert_eq!(found, [vec!["libc6"], vec!["debconf", "debconf-2.0"], vec!["perl"], vec!["adduser"]]);
        assert_eq!(groups("").count(), 0);
    }

    #[test]
    fn a_stand_in_keeps_version_and_what_it_provides() {
        let text =
            "Package: debconf\nVersion: 1.5\nArchitecture: all\nDepends: perl-base\nProvides: debconf-2.0\n";
        let stanza = &Stanza::parse_all(text)[0];
        let status = stanza.installed();
        assert!(status.contains("Version: 1.5\n") && status.contains("Provides: debconf-2.0\n"));
        assert!(!status.contains("perl-base"));
        assert_eq!(stanza.names().collect::<Vec<_>>(), ["debconf", "debconf-2.0"]);
    }
}
