//! Puts unpacked packages into a tree: what is excluded stays out, and a path has one owner.

use super::PackageFacts;
use super::pattern::matches;
use crate::deb;
use crate::lock::{LockedArch, LockedPackage};
use crate::resolved::{Artefact, Debian, Install, Resolved};
use crate::store::Store;
use crate::tree::{Conflict, Data, Entry, Node, Tree};
use crate::unpack::{self, Item, ItemNode, Unpacked};
use anyhow::{Context, Result, bail};
use formats::hex::Digest;
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

/// Artefacts that are Debian packages, as if the lock had them among its own.
///
/// # Errors
/// If one is not in the lock or the cache, is no package, or one for another processor.
pub fn given(resolved: &Resolved, locked: &LockedArch, store: &Store) -> Result<Vec<LockedPackage>> {
    let wanted = resolved.artefacts.iter().filter(|artefact| matches!(artefact.install, Install::Package));
    let package = |artefact: &Artefact| -> Result<LockedPackage> {
        let pinned = locked.artefacts.get(&artefact.name).context("the lock does not have it; lock again")?;
        let digest = Digest::parse(&pinned.sha256).context("malformed SHA-256")?;
        let unpacked = unpack::package(store, &digest)?;
        let control = unpacked.index.control.get("control").context("it is no Debian package")?;
        let fields: BTreeMap<String, String> = deb::fields(control).into_iter().collect();
        let field = |name: &str| fields.get(name).cloned().with_context(|| format!("it has no field {name}"));
        let (wants, found) = (resolved.arch().debian(), field("Architecture")?);
        if found != wants && found != "all" {
            bail!("it is a package for {found}, must be one for {wants}");
        }
        Ok(LockedPackage {
            name: field("Package")?,
            version: field("Version")?,
            architecture: found,
            source: fields.get("Source").cloned(),
            mirror: String::new(),
            path: String::new(),
            size: pinned.size,
            sha256: pinned.sha256.clone(),
        })
    };
    let named = |artefact: &Artefact| {
        package(artefact)
            .with_context(|| format!("unpack artefact {} (from {})", artefact.name, artefact.origin))
    };
    wanted.map(named).collect()
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::unpack::Index;
    use std::path::Path;

    /// A package with these control files and paths; contents are not read.
    pub fn package(name: &str, control: &[(&str, &str)], paths: &[&str]) -> Package {
        let locked = LockedPackage {
            name: name.into(),
            version: "1-1".into(),
            architecture: "amd64".into(),
            source: None,
            mirror: "archive".into(),
            path: format!("pool/{name}.deb"),
            size: 1,
            sha256: "0".repeat(64),
        };
        let item = |path: &&str| Item {
            path: (*path).to_owned(),
            node: ItemNode::File(0, 1),
            mode: 0o644,
            user: "root".into(),
            group: "root".into(),
        };
        let index = Index {
            control: control.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            items: paths.iter().map(item).collect(),
            ..Index::default()
        };
        let unpacked = Unpacked { index, contents: Arc::from(Path::new("/contents")) };
        Package::all(&[locked], vec![unpacked]).remove(0)
    }

    pub fn debian() -> Debian {
        Debian {
            suites: Vec::new(),
            components: Vec::new(),
            exclude: vec!["/usr/share/doc/*".into()],
            keep: vec!["/usr/share/doc/*/copyright".into()],
            scripts: BTreeMap::new(),
            absent: BTreeMap::new(),
        }
    }

    fn applied(packages: &[Package]) -> Result<Tree> {
        let mut tree = Tree::new(&"farhold".into());
        apply(&mut tree, packages, &debian())?;
        Ok(tree)
    }

    #[test]
    fn a_path_of_two_packages_names_both() {
        let a = package("a", &[], &["/usr/bin/x", "/usr/bin/y"]);
        let b = package("b", &[], &["/bin/x", "/usr/bin/y"]);
        assert_eq!(
            applied(&[b, a]).unwrap_err().to_string(),
            "packages own the same path; leave one of each pair out:\n  /usr/bin/x is in a and in b\n  \
             /usr/bin/y is in a and in b"
        );
    }

    #[test]
    fn a_declared_replacement_wins_in_either_order() {
        for replacing in ["a", "b"] {
            let control = |name: &str, other: &str| {
                let replaces =
                    if name == replacing { format!("Replaces: {other} (<< 2), z\n") } else { String::new() };
                format!("Package: {name}\n{replaces}")
            };
            let a = package("a", &[("control", &control("a", "b"))], &["/usr/bin/x"]);
            let b = package("b", &[("control", &control("b", "a"))], &["/usr/bin/x"]);
            let tree = applied(&[a, b]).unwrap();
            assert_eq!(&*tree.get("/usr/bin/x").unwrap().origin, replacing);
        }
    }

    #[test]
    fn excluded_paths_stay_out_unless_kept() {
        let a =
            package("a", &[], &["/usr/share/doc/a/copyright", "/usr/share/doc/a/changelog.gz", "/usr/bin/a"]);
        let tree = applied(&[a]).unwrap();
        assert!(tree.get("/usr/share/doc/a/copyright").is_some() && tree.get("/usr/bin/a").is_some());
        assert!(tree.get("/usr/share/doc/a/changelog.gz").is_none());
    }
}
