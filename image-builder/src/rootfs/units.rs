//! Which systemd units start: `[Install]` sections turned into links, and masks. Baked into the image, so that no
//! preset runs on the device. Follows systemd.unit(5), "[Install] section options", and systemctl(1) `enable`.

use crate::resolved::Units;
use crate::tree::{Entry, Node, Tree, name};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Where units come from, the first wins (systemd.unit(5), "Unit load path").
const LOAD_PATH: [&str; 2] = ["/etc/systemd/system", "/usr/lib/systemd/system"];
const ENABLED: &str = "/etc/systemd/system";
const UNIT_LIMIT: u64 = 1 << 20;

/// The keys of an `[Install]` section that make links.
#[derive(Debug, Default, PartialEq, Eq)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

/// Enables `units.enable` and what packages would enable (`by_packages`), except what is disabled; masks the rest.
/// A unit that is both enabled and masked is masked.
///
/// # Errors
/// If a unit to enable is not in the tree, or a template has no instance to enable.
pub fn apply(tree: &mut Tree, units: &Units, by_packages: &[(Arc<str>, String)]) -> Result<()> {
    let origin: Arc<str> = "units".into();
    let off: BTreeSet<&str> = units.disable.iter().chain(&units.mask).map(String::as_str).collect();
    let wanted = by_packages.iter().map(|(who, unit)| (who.clone(), unit.as_str()));
    let asked = units.enable.iter().map(|unit| (Arc::from("profile"), unit.as_str()));
    let mut todo: Vec<(Arc<str>, String)> = wanted
        .chain(asked)
        .filter(|(_, unit)| !off.contains(unit))
        .map(|(who, unit)| (who, unit.to_owned()))
        .collect();
    todo.reverse();
    let mut done = BTreeSet::new();
    while let Some((who, unit)) = todo.pop() {
        if off.contains(unit.as_str()) || !done.insert(unit.clone()) {
            continue;
        }
        let install =
            enable(tree, &unit, &origin).with_context(|| format!("enable {unit} (asked for by {who})"))?;
        todo.extend(install.also.into_iter().map(|also| (who.clone(), also)));
    }
    for unit in &units.mask {
        let path = format!("{ENABLED}/{unit}");
        if matches!(tree.get(&path).map(|entry| &entry.node), Some(Node::Dir)) {
            bail!("mask {unit}: {path} is a folder");
        }
        tree.replace(&path, Entry::symlink("/dev/null", &origin))?;
    }
    Ok(())
}

fn enable(tree: &mut Tree, unit: &str, origin: &Arc<str>) -> Result<Install> {
    let (template, instance) = split(unit);
    let Some(path) =
        LOAD_PATH.iter().map(|dir| format!("{dir}/{template}")).find(|path| tree.file(path).is_some())
    else {
        bail!("no such unit in the image; is the package that brings it among the layers?");
    };
    let data = tree.file(&path).with_context(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&data.bytes(UNIT_LIMIT)?).into_owned();
    let install = parse(&text);
    let linked = match (template.contains("@."), instance.or(install.default_instance.as_deref())) {
        (false, _) => unit.to_owned(),
        (true, Some(instance)) => template.replacen('@', &format!("@{instance}"), 1),
        (true, None) => bail!(
            "a template without DefaultInstance; name an instance, as {}",
            template.replacen('@', "@NAME", 1)
        ),
    };
    let mut link = |at: String| tree.replace(&at, Entry::symlink(path.clone(), origin));
    for (targets, suffix) in
        [(&install.wanted_by, "wants"), (&install.required_by, "requires"), (&install.upheld_by, "upholds")]
    {
        for target in targets {
            let target = target.replace("%i", instance.unwrap_or_default());
            link(format!("{ENABLED}/{target}.{suffix}/{linked}"))?;
        }
    }
    for alias in &install.alias {
        if alias != name(&path) {
            link(format!("{ENABLED}/{alias}"))?;
        }
    }
    Ok(install)
}

/// `getty@tty1.service` is instance `tty1` of `getty@.service`.
fn split(unit: &str) -> (String, Option<&str>) {
    let parts = unit.split_once('@').and_then(|(prefix, rest)| Some((prefix, rest.rsplit_once('.')?)));
    match parts {
        Some((prefix, (instance, kind))) if !instance.is_empty() => {
            (format!("{prefix}@.{kind}"), Some(instance))
        }
        Some(_) | None => (unit.to_owned(), None),
    }
}

fn parse(text: &str) -> Install {
    let mut install = Install::default();
    let mut inside = false;
    let joined = text.replace("\\\n", " ");
    for line in joined.lines().map(str::trim) {
        if line.starts_with('[') {
            inside = line == "[Install]";
        }
        let Some((key, value)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ';']))
        else {
            continue;
        };
        let values = || value.split_ascii_whitespace().map(str::to_owned);
        match key.trim() {
            "WantedBy" => install.wanted_by.extend(values()),
            "RequiredBy" => install.required_by.extend(values()),
            "UpheldBy" => install.upheld_by.extend(values()),
            "Alias" => install.alias.extend(values()),
            "Also" => install.also.extend(values()),
            "DefaultInstance" => install.default_instance = values().next(),
            _ => {}
        }
    }
    install
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        let origin: Arc<str> = "p".into();
        let mut tree = Tree::new(&origin);
        for (unit, install) in [
            ("ssh.service", "WantedBy=multi-user.target\nAlias=sshd.service\nAlso=ssh.socket"),
            ("ssh.socket", "WantedBy=sockets.target"),
            ("getty@.service", "WantedBy=getty.target\nDefaultInstance=tty1"),
            ("x@.service", "WantedBy=a.target \\\n b.target"),
            ("fstrim.timer", "WantedBy=timers.target"),
        ] {
            let text = format!("[Unit]\nWantedBy=nonsense\n[Install]\n# Alias=no\n{install}\n");
            tree.add(&format!("/usr/lib/systemd/system/{unit}"), Entry::text(text, &origin)).unwrap();
        }
        tree
    }

    fn links(tree: &Tree) -> Vec<String> {
        let target = |entry: &Entry| match &entry.node {
            Node::Symlink(target) => Some(target.clone()),
            Node::Dir | Node::File(_) => None,
        };
        tree.below(ENABLED)
            .filter_map(|(path, entry)| {
                Some(format!("{} {}", path.strip_prefix(ENABLED)?, name(&target(entry)?)))
            })
            .collect()
    }

    #[test]
    fn makes_the_links_that_systemctl_makes() {
        let mut tree = tree();
        let units = Units {
            enable: vec!["getty@.service".into(), "x@7.service".into()],
            disable: vec!["ssh.socket".into()],
            mask: vec!["fstrim.timer".into()],
        };
        apply(
            &mut tree,
            &units,
            &[("openssh-server".into(), "ssh.service".into()), ("util-linux".into(), "fstrim.timer".into())],
        )
        .unwrap();
        assert_eq!(
            links(&tree),
            [
                "/a.target.wants/x@7.service x@.service",
                "/b.target.wants/x@7.service x@.service",
                "/fstrim.timer null",
                "/getty.target.wants/getty@tty1.service getty@.service",
                "/multi-user.target.wants/ssh.service ssh.service",
                "/sshd.service ssh.service",
            ]
        );
    }

    #[test]
    fn a_unit_that_is_not_there_names_who_asked() {
        let units = Units { enable: vec!["nope.service".into()], ..Units::default() };
        let error = format!("{:#}", apply(&mut tree(), &units, &[]).unwrap_err());
        assert!(error.starts_with("enable nope.service (asked for by profile): no such unit"), "{error}");
        let units = Units { enable: vec!["x@.service".into()], ..Units::default() };
        let error = format!("{:#}", apply(&mut tree(), &units, &[]).unwrap_err());
        assert!(error.ends_with("name an instance, as x@NAME.service"), "{error}");
    }
}
