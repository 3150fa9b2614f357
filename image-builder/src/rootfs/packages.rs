//! Puts unpacked packages into a tree: what is excluded stays out, and a path has one owner.

use super::PackageFacts;
use super::pattern::matches;
use crate::deb;
use crate::lock::LockedPackage;
use crate::resolved::Debian;
use crate::tree::{Conflict, Data, Entry, Node, Tree};
use crate::unpack::{Item, ItemNode, Unpacked};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The package whose folders' modes count, as dpkg unpacks it first.
const FIRST: &str = "base-files";

/// A package, unpacked.
pub struct Package {
    /// As locked.
    pub locked: LockedPackage,
    /// Its contents.
    pub unpacked: Unpacked,
    control: BTreeMap<String, String>,
}

impl Package {
    /// Packages with their contents.
    pub fn all(locked: &[LockedPackage], unpacked: Vec<Unpacked>) -> Vec<Self> {
        let package = |(locked, unpacked): (&LockedPackage, Unpacked)| {
            let text = unpacked.index.control.get("control").map_or("", String::as_str);
            let control = deb::fields(text).into_iter().collect();
            Self { locked: locked.clone(), unpacked, control }
        };
        locked.iter().zip(unpacked).map(package).collect()
    }
    /// Its name.
    pub fn name(&self) -> &str {
        &self.locked.name
    }
    /// A maintainer script.
    pub fn script(&self, name: &str) -> Option<&str> {
        self.unpacked.index.control.get(name).map(String::as_str)
    }
    fn field(&self, name: &str) -> &str {
        self.control.get(name).map_or("", String::as_str)
    }
    /// What the SBOM says of it.
    pub fn facts(&self) -> PackageFacts {
        PackageFacts {
            name: self.locked.name.clone(),
            version: self.locked.version.clone(),
            architecture: self.locked.architecture.clone(),
            source: self.locked.source.clone(),
            maintainer: self.field("Maintainer").to_owned(),
            summary: self.field("Description").lines().next().unwrap_or_default().to_owned(),
            sha256: self.locked.sha256.clone(),
            licences: self.unpacked.index.licences.clone(),
        }
    }
    /// Whether it says that it takes over files of another (deb-control(5), `Replaces`).
    fn replaces(&self, other: &str) -> bool {
        let names = self.field("Replaces").split(',').filter_map(|relation| {
            let name = relation.trim().split([' ', '(']).next()?;
            name.split(':').next()
        });
        names.into_iter().any(|name| name == other)
    }
}

/// Adds all packages.
///
/// # Errors
/// All paths that two packages have, with both names.
pub fn apply(tree: &mut Tree, packages: &[Package], debian: &Debian) -> Result<()> {
    let mut order: Vec<&Package> = packages.iter().collect();
    order.sort_by_key(|package| (package.name() != FIRST, package.name()));
    let mut conflicts = Vec::new();
    for package in order {
        let origin: Arc<str> = package.name().into();
        for item in &package.unpacked.index.items {
            if excluded(&item.path, debian) {
                continue;
            }
            let entry = entry(item, package, &origin);
            match tree.add(&item.path, entry.clone()) {
                Ok(()) => {}
                Err(error) => match error.downcast::<Conflict>() {
                    Ok(conflict) => conflicts.extend(settle(tree, packages, package, entry, conflict)?),
                    Err(error) => return Err(error).with_context(|| format!("unpack package {origin}")),
                },
            }
        }
    }
    if !conflicts.is_empty() {
        bail!("packages own the same path; leave one of each pair out:\n  {}", conflicts.join("\n  "));
    }
    Ok(())
}

/// A path of two packages is fine if one declares that it replaces the other's: then its file counts, as in dpkg.
/// Otherwise what to say about it.
fn settle(
    tree: &mut Tree,
    packages: &[Package],
    second: &Package,
    entry: Entry,
    conflict: Conflict,
) -> Result<Option<String>> {
    let first = packages.iter().find(|package| package.name() == &*conflict.first);
    if second.replaces(&conflict.first) {
        tree.replace(&conflict.path, entry)?;
        Ok(None)
    } else if first.is_some_and(|first| first.replaces(second.name())) {
        Ok(None)
    } else {
        Ok(Some(conflict.to_string()))
    }
}

fn entry(item: &Item, package: &Package, origin: &Arc<str>) -> Entry {
    let node = match &item.node {
        ItemNode::Dir => Node::Dir,
        ItemNode::Symlink(target) => Node::Symlink(target.clone()),
        ItemNode::File(offset, len) => {
            let path = package.unpacked.contents.clone();
            Node::File(Data::Range { path, offset: *offset, len: *len })
        }
    };
    Entry {
        node,
        mode: item.mode,
        user: item.user.as_str().into(),
        group: item.group.as_str().into(),
        origin: origin.clone(),
    }
}

fn excluded(path: &str, debian: &Debian) -> bool {
    let hit = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, path));
    hit(&debian.exclude) && !hit(&debian.keep)
}
