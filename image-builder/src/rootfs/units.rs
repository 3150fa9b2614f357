//! systemd units: what `systemctl enable` and `mask` would do (systemd.unit(5), `[Install]`), and presets that make
//! a first boot change nothing.

use crate::resolved::Units;
use crate::tree::{Entry, Node, Tree, name};
use anyhow::{Context, Result, anyhow, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Units that change or ask what an immutable image has settled, masked where a package brings them.
const MASKED: [&str; 17] = [
    // Debian's package managers' timers: there is nothing to update in place.
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    // Caches that the build settles or the image does without.
    "ldconfig.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    // Asks questions on the console.
    "systemd-firstboot.service",
    // Only the agent blesses and writes the ESP (design, section 4).
    "systemd-bless-boot.service",
    "systemd-boot-update.service",
    "systemd-boot-random-seed.service",
    // Accounts are in the image.
    "systemd-sysusers.service",
    // The state file system is grown and checked by the early stage.
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-growfs-root.service",
    "systemd-remount-fs.service",
];
/// Most bytes of a unit file.
const MAX_UNIT_BYTES: u64 = 1 << 20;

/// A unit that a package enables when it is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enabled {
    /// Unit name.
    pub unit: String,
    /// Of user managers, not of the system's.
    pub user: bool,
    /// The package.
    pub package: String,
}

/// Links units as packages and the profile want them.
///
/// # Errors
/// If a unit that the profile enables is not in the image or cannot be enabled.
pub fn apply(tree: &mut Tree, enabled: &[Enabled], wanted: &Units) -> Result<()> {
    let mut masks: BTreeSet<&str> = wanted.mask.iter().map(String::as_str).collect();
    masks.extend(MASKED.iter().filter(|unit| find(tree, "system", unit).is_some()));
    let off = |unit: &str| masks.contains(unit) || wanted.disable.iter().any(|u| u == unit);
    let switched_off: BTreeSet<String> =
        wanted.disable.iter().filter(|unit| !wanted.enable.contains(unit)).cloned().collect();
    // Also= of another unit must not bring back what is switched off.
    let mut done: BTreeSet<(String, String)> =
        switched_off.iter().map(|unit| ("system".to_owned(), unit.clone())).collect();
    for unit in enabled.iter().filter(|unit| unit.user || !off(&unit.unit)) {
        let scope = if unit.user { "user" } else { "system" };
        // A package may name a unit that an exclude pattern left out: then there is nothing to enable.
        if find(tree, scope, &unit.unit).is_some() {
            let origin: Arc<str> = unit.package.as_str().into();
            enable(tree, scope, &unit.unit, &origin, &mut done)?;
        }
    }
    let origin: Arc<str> = "units".into();
    for unit in &wanted.enable {
        if masks.contains(unit.as_str()) {
            bail!("unit `{unit}` is to be enabled, but it is masked; take it out of one of the two");
        }
        enable(tree, "system", unit, &origin, &mut done)?;
    }
    for unit in &masks {
        let path = format!("/etc/systemd/system/{unit}");
        if let Some(Entry { node: Node::File(_), origin, .. }) = tree.get(&path) {
            bail!("unit `{unit}` is to be masked, but {origin} has it in /etc; take it out there");
        }
        tree.replace(&path, Entry::symlink("/dev/null", &origin))?;
    }
    done.retain(|(_, unit)| !switched_off.contains(unit));
    presets(tree, &done, &origin)
}

/// Makes the links of a unit and of those that it names in `Also=`.
fn enable(
    tree: &mut Tree,
    scope: &str,
    unit: &str,
    origin: &Arc<str>,
    done: &mut BTreeSet<(String, String)>,
) -> Result<()> {
    if !done.insert((scope.to_owned(), unit.to_owned())) {
        return Ok(());
    }
    let path = find(tree, scope, unit).ok_or_else(|| unknown(tree, scope, unit))?;
    let data =
        tree.file(&path).ok_or_else(|| anyhow!("unit `{unit}`: {path} is not a file (is it masked?)"))?;
    let text = String::from_utf8_lossy(&data.bytes(MAX_UNIT_BYTES)?).into_owned();
    let install = Install::parse(&text);
    if install.is_empty() {
        // Static units need no link; asking for one is not wrong.
        return Ok(());
    }
    let instance = match (unit.split_once('@'), &install.default_instance) {
        (Some((stem, rest)), Some(default)) if rest.starts_with('.') => format!("{stem}@{default}{rest}"),
        (Some((stem, rest)), None) if rest.starts_with('.') => {
            bail!(
                "unit `{unit}` is a template without DefaultInstance=; name an instance, as {stem}@NAME{rest}"
            )
        }
        (Some(_) | None, _) => unit.to_owned(),
    };
    let etc = format!("/etc/systemd/{scope}");
    for (targets, kind) in
        [(&install.wanted, "wants"), (&install.required, "requires"), (&install.upheld, "upholds")]
    {
        for target in targets {
            let link = format!("{etc}/{target}.{kind}/{instance}");
            tree.replace(&link, Entry::symlink(&path, origin)).with_context(|| format!("enable {unit}"))?;
        }
    }
    for alias in &install.alias {
        let link = format!("{etc}/{alias}");
        tree.replace(&link, Entry::symlink(&path, origin)).with_context(|| format!("enable {unit}"))?;
    }
    for also in install.also.iter().filter(|also| *also != unit) {
        enable(tree, scope, also, origin, done)?;
    }
    Ok(())
}

/// Path of a unit file; instances are found by their template.
fn find(tree: &Tree, scope: &str, unit: &str) -> Option<String> {
    let template = unit.split_once('@').and_then(|(stem, rest)| {
        let (_, kind) = rest.rsplit_once('.')?;
        Some(format!("{stem}@.{kind}"))
    });
    let names = std::iter::once(unit.to_owned()).chain(template);
    names
        .flat_map(|name| ["/etc", "/usr/lib"].map(|root| format!("{root}/systemd/{scope}/{name}")))
        .find(|path| tree.follow(path).is_some())
}

fn unknown(tree: &Tree, scope: &str, unit: &str) -> anyhow::Error {
    let folder = format!("/usr/lib/systemd/{scope}");
    let mut near: Vec<(f64, &str)> =
        tree.below(&folder).map(|(path, _)| (strsim::jaro_winkler(unit, name(path)), name(path))).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    let near: Vec<&str> =
        near.iter().take(3).filter(|(likeness, _)| *likeness > 0.8).map(|(_, n)| *n).collect();
    let hint = if near.is_empty() { String::new() } else { format!(" (near: {})", near.join(", ")) };
    anyhow!("unit `{unit}` is to be enabled, but no package or pack brings it{hint}")
}

/// An `[Install]` section.
#[derive(Debug, Default)]
struct Install {
    wanted: Vec<String>,
    required: Vec<String>,
    upheld: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    fn parse(text: &str) -> Self {
        let mut values: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let mut here = false;
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
            if line.starts_with('[') {
                here = line == "[Install]";
            } else if let (true, Some((key, value))) = (here, line.split_once('=')) {
                let list = values.entry(key.trim()).or_default();
                // An empty value takes back what came before.
                if value.trim().is_empty() {
                    list.clear();
                }
                list.extend(value.split_whitespace().map(str::to_owned));
            }
        }
        let mut take = |key: &str| values.remove(key).unwrap_or_default();
        Self {
            wanted: take("WantedBy"),
            required: take("RequiredBy"),
            upheld: take("UpheldBy"),
            alias: take("Alias"),
            also: take("Also"),
            default_instance: take("DefaultInstance").pop(),
        }
    }
    fn is_empty(&self) -> bool {
        [&self.wanted, &self.required, &self.upheld, &self.alias, &self.also]
            .iter()
            .all(|list| list.is_empty())
    }
}

/// Should systemd take a boot for the first (systemd.preset(5)), its presets say what is linked already.
fn presets(tree: &mut Tree, done: &BTreeSet<(String, String)>, origin: &Arc<str>) -> Result<()> {
    for scope in ["system", "user"] {
        let mut text = String::new();
        for (_, unit) in done.iter().filter(|(in_scope, _)| in_scope == scope) {
            text.push_str(&format!("enable {unit}\n"));
        }
        text.push_str("disable *\n");
        let path = format!("/etc/systemd/{scope}-preset/00-farhold.preset");
        tree.replace(&path, Entry::text(text, origin))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(units: &[(&str, &str)]) -> Tree {
        let origin = "p".into();
        let mut tree = Tree::new(&origin);
        for (unit, text) in units {
            tree.add(&format!("/usr/lib/systemd/system/{unit}"), Entry::text(text, &origin)).unwrap();
        }
        tree
    }

    fn units(enable: &[&str], disable: &[&str], mask: &[&str]) -> Units {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Units { enable: list(enable), disable: list(disable), mask: list(mask) }
    }

    fn links(tree: &Tree) -> Vec<(String, String)> {
        let link = |(path, entry): (&str, &Entry)| match &entry.node {
            Node::Symlink(target) => {
                Some((path.trim_start_matches("/etc/systemd/system/").to_owned(), target.clone()))
            }
            Node::Dir | Node::File(_) => None,
        };
        tree.below("/etc/systemd/system").filter_map(link).collect()
    }

    #[test]
    fn links_as_systemctl_would() {
        let mut tree = tree(&[
            (
                "ssh.service",
                "[Unit]\n[Install]\nWantedBy=multi-user.target\nAlias=sshd.service\nAlso=keys.service\n",
            ),
            ("keys.service", "[Install]\nRequiredBy=a.target \\\n b.target\n"),
            ("getty@.service", "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n"),
            ("off.service", "[Install]\nWantedBy=multi-user.target\n"),
            ("fstrim.timer", "[Install]\nWantedBy=timers.target\n"),
            ("static.service", "[Service]\n"),
        ]);
        let by = |unit: &str| Enabled { unit: unit.into(), user: false, package: "p".into() };
        let packages = [by("ssh.service"), by("off.service"), by("fstrim.timer"), by("not-unpacked.service")];
        let wanted = units(&["getty@.service", "static.service"], &["off.service"], &[]);
        apply(&mut tree, &packages, &wanted).unwrap();
        let lib = |unit: &str| format!("/usr/lib/systemd/system/{unit}");
        assert_eq!(
            links(&tree),
            [
                ("a.target.requires/keys.service".into(), lib("keys.service")),
                ("b.target.requires/keys.service".into(), lib("keys.service")),
                ("fstrim.timer".into(), "/dev/null".into()),
                ("getty.target.wants/getty@tty1.service".into(), lib("getty@.service")),
                ("multi-user.target.wants/ssh.service".into(), lib("ssh.service")),
                ("sshd.service".into(), lib("ssh.service")),
            ]
        );
        let preset = tree.file("/etc/systemd/system-preset/00-farhold.preset").unwrap().bytes(999).unwrap();
        assert!(String::from_utf8(preset).unwrap().ends_with("enable static.service\ndisable *\n"));
    }

    #[test]
    fn an_unknown_unit_has_near_names() {
        let error =
            apply(&mut tree(&[("ssh.service", "")]), &[], &units(&["sshd.service"], &[], &[])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unit `sshd.service` is to be enabled, but no package or pack brings it (near: ssh.service)"
        );
        let error = apply(&mut tree(&[("a.service", "")]), &[], &units(&["a.service"], &[], &["a.service"]));
        assert!(error.unwrap_err().to_string().contains("but it is masked"));
    }
}
