//! What stands in for maintainer scripts (deb-postinst(5), Debian Policy 6).
//!
//! Of `preinst install` and `postinst configure`, sections that debhelper generated are understood; whatever else a
//! script does must be covered by a rule of the os pack, or it is an error. `prerm` and `postrm` never run on an
//! image. Reads scripts as text; nothing is run.

use super::packages::Package;
use super::pattern::matches;
use super::steps::Owned;
use super::units::Enabled;
use crate::resolved::{Debian, ScriptRule};
use crate::tree::{Entry, Tree};
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Lines of a script that an error shows.
const SHOWN_LINES: usize = 4;
/// debhelper programs whose sections need nothing of an image, or what is taken from them below:
/// runtime notices, sysusers.d and tmpfiles.d (read from the tree), conffile moves of upgrades, the ldconfig trigger
/// (see `libraries`), module lists (see `kernel`), init scripts, and bytecode of Python (compiled when run).
const HARMLESS: [&str; 22] = [
    "dh_apparmor",
    "dh_icons",
    "dh_installalternatives",
    "dh_installdeb",
    "dh_installdebconf",
    "dh_installinit",
    "dh_installmenu",
    "dh_installmime",
    "dh_installmodules",
    "dh_installsystemd",
    "dh_installsystemduser",
    "dh_installsysusers",
    "dh_installtmpfiles",
    "dh_installudev",
    "dh_makeshlibs",
    "dh_movetousr",
    "dh_python3",
    "dh_runit",
    "dh_systemd_enable",
    "dh_systemd_start",
    "dh_sysuser",
    "dh_usrlocal",
];

/// What the scripts of a set of packages come down to.
pub struct Plan<'a> {
    /// Units that packages enable.
    pub enable: Vec<Enabled>,
    /// Steps of rules, in order of package.
    pub steps: Vec<Owned<'a>>,
    alternatives: BTreeMap<String, Alternative>,
}

/// A link that `update-alternatives` would make.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Alternative {
    package: String,
    target: String,
    priority: i64,
}

/// Reads the scripts of all packages.
///
/// # Errors
/// Every script that does something that neither debhelper nor a rule explains.
pub fn plan<'a>(packages: &[Package], debian: &'a Debian) -> Result<Plan<'a>> {
    let mut plan = Plan { enable: Vec::new(), steps: Vec::new(), alternatives: BTreeMap::new() };
    let mut uncovered = Vec::new();
    for package in packages {
        let rule = rule_for(package.name(), &debian.scripts);
        for name in ["preinst", "postinst"] {
            let Some(text) = package.script(name) else { continue };
            let script = Script::read(text);
            plan.take(package.name(), &script);
            if rule.is_none() && !script.residue.is_empty() {
                uncovered.push(describe(package, name, &script));
            }
        }
        let steps = rule.map_or(&[][..], |rule| &rule.steps);
        plan.steps.extend(steps.iter().map(|step| Owned { package: package.name().to_owned(), step }));
    }
    if uncovered.is_empty() {
        return Ok(plan);
    }
    bail!(
        "{} maintainer scripts do what no rule covers; say under `scripts` of the os pack what stands in for each \
         (`because`, `steps`):\n{}",
        uncovered.len(),
        uncovered.join("\n")
    )
}

fn rule_for<'a>(package: &str, rules: &'a BTreeMap<String, ScriptRule>) -> Option<&'a ScriptRule> {
    let by_pattern = || rules.iter().find(|(pattern, _)| matches(pattern, package)).map(|(_, rule)| rule);
    rules.get(package).or_else(by_pattern)
}

fn describe(package: &Package, name: &str, script: &Script) -> String {
    let lines: Vec<&str> = script.residue.iter().take(SHOWN_LINES).map(String::as_str).collect();
    let more = script.residue.len().saturating_sub(SHOWN_LINES);
    let more = if more > 0 { format!("\n      (and {more} lines)") } else { String::new() };
    let package = format!("{} {}", package.name(), package.locked.version);
    format!("  {package}, {name}:\n      {}{more}", lines.join("\n      "))
}

impl Plan<'_> {
    fn take(&mut self, package: &str, script: &Script) {
        for (unit, user) in &script.enable {
            self.enable.push(Enabled { unit: unit.clone(), user: *user, package: package.to_owned() });
        }
        for (link, target, priority) in &script.alternatives {
            let offered =
                Alternative { package: package.to_owned(), target: target.clone(), priority: *priority };
            let better = self.alternatives.get(link).is_none_or(|there| there.priority < offered.priority);
            if better {
                self.alternatives.insert(link.clone(), offered);
            }
        }
    }
}

/// Makes the links of alternatives whose targets were unpacked.
///
/// # Errors
/// If a package owns the path of such a link.
pub fn alternatives(tree: &mut Tree, plan: &Plan<'_>) -> Result<()> {
    for (link, chosen) in &plan.alternatives {
        if tree.follow(&chosen.target).is_some() {
            let origin: Arc<str> = format!("alternatives of {}", chosen.package).into();
            tree.add(link, Entry::symlink(&chosen.target, &origin))?;
        }
    }
    Ok(())
}

/// A maintainer script, read.
#[derive(Debug, Default)]
struct Script {
    /// Units enabled on a first installation, and whether they are of user managers.
    enable: Vec<(String, bool)>,
    /// Link, target, priority.
    alternatives: Vec<(String, String, i64)>,
    /// Lines that nothing here understands.
    residue: Vec<String>,
}

impl Script {
    fn read(text: &str) -> Self {
        let mut script = Self::default();
        if !["#!/bin/sh", "#! /bin/sh", "#!/bin/bash", "#!/bin/dash", "#!/usr/bin/sh"]
            .iter()
            .any(|s| text.starts_with(s))
        {
            script.residue.push("(not a shell script)".into());
            return script;
        }
        let mut section: Option<(String, Vec<&str>)> = None;
        for line in text.lines() {
            let trimmed = line.trim();
            if let Some(by) = trimmed.strip_prefix("# Automatically added by ") {
                let program = by.split(['/', ' ']).next().unwrap_or_default().to_owned();
                section = Some((program, Vec::new()));
            } else if trimmed.starts_with("# End automatically added section") {
                if let Some((program, lines)) = section.take() {
                    script.section(&program, &lines);
                }
            } else if let Some((_, lines)) = &mut section {
                lines.push(trimmed);
            } else if !is_scaffolding(trimmed) {
                script.residue.push(line.trim_end().to_owned());
            }
        }
        if let Some((program, _)) = section {
            script.residue.push(format!("(section of {program} does not end)"));
        }
        script
    }

    fn section(&mut self, program: &str, lines: &[&str]) {
        if !HARMLESS.contains(&program) {
            self.residue.push(format!("(section of {program})"));
            return;
        }
        // `debian-installed` guards what only upgrades do: such a unit is not enabled when installed.
        if !lines.iter().any(|line| line.contains("deb-systemd-helper debian-installed")) {
            for line in lines {
                let Some((_, rest)) = line.split_once("deb-systemd-helper ") else { continue };
                let words: Vec<&str> = rest.split_whitespace().collect();
                let user = words.contains(&"--user");
                let Some(at) = words.iter().position(|word| *word == "enable") else { continue };
                if let Some(unit) = words.get(at + 1) {
                    self.enable.push((unit.trim_matches(['\'', '"']).to_owned(), user));
                }
            }
        }
        self.alternatives.extend(joined(lines).iter().flat_map(|line| alternatives_of(line)));
    }
}

/// Lines with those that continue them.
fn joined(lines: &[&str]) -> Vec<String> {
    lines.join("\n").replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// `update-alternatives --install LINK NAME PATH PRIORITY [--slave LINK NAME PATH]...`
fn alternatives_of(line: &str) -> Vec<(String, String, i64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(at) = words.iter().position(|word| *word == "--install") else { return Vec::new() };
    if !words.contains(&"update-alternatives") {
        return Vec::new();
    }
    let [link, _, target, priority, slaves @ ..] = &words[at + 1..] else { return Vec::new() };
    let Ok(priority) = priority.parse() else { return Vec::new() };
    let mut found = vec![((*link).to_owned(), (*target).to_owned(), priority)];
    for slave in slaves.chunks(4) {
        if let ["--slave", link, _, target] = slave {
            found.push(((*link).to_owned(), (*target).to_owned(), priority));
        }
    }
    found
}

/// Lines that a script may have around nothing.
fn is_scaffolding(line: &str) -> bool {
    const WORDS: [&str; 17] = [
        "",
        "set -e",
        "set -eu",
        "set -u",
        "exit 0",
        "exit 1",
        ":",
        "true",
        "esac",
        ";;",
        "fi",
        "else",
        "exit 0;",
        ". /usr/share/debconf/confmodule",
        "db_stop",
        "#DEBHELPER#",
        "exit $?",
    ];
    let label = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "|-* (\"'".contains(c))
    };
    line.starts_with('#')
        || WORDS.contains(&line)
        || ["case \"$1\" in", "case $1 in", "case \"${1}\" in"].contains(&line)
        || line.strip_suffix(')').is_some_and(label)
        || line.strip_suffix(";;").is_some_and(|rest| rest.trim_end().strip_suffix(')').is_some_and(label))
        || line.starts_with("echo ") && line.contains("called with unknown argument")
        || is_test_of_argument(line)
}

/// `if [ "$1" = "configure" ]; then` and longer, asking only for the first argument.
fn is_test_of_argument(line: &str) -> bool {
    let Some(condition) = line.strip_prefix("if ").and_then(|rest| rest.strip_suffix("then")) else {
        return false;
    };
    let condition = condition.trim_end().trim_end_matches(';');
    condition.split("||").all(|test| {
        let test = test.trim().strip_prefix('[').and_then(|test| test.strip_suffix(']'));
        let words: Vec<&str> = test.unwrap_or_default().split_whitespace().collect();
        matches!(words[..], ["\"$1\"" | "$1", "=" | "==", value] if !value.contains('$') && !value.contains('`'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn understands_what_debhelper_generates() {
        let script = Script::read(
            "#!/bin/sh\nset -e\ncase \"$1\" in\n    configure)\n    ;;\n  abort-upgrade|abort-remove) ;;\n    *)\n\
             echo \"postinst called with unknown argument \\`$1'\" >&2\n exit 1\n;;\nesac\n\
             # Automatically added by dh_installsystemd/13.24\n\
             if deb-systemd-helper --quiet was-enabled 'ssh.service'; then\n\
             \tdeb-systemd-helper enable 'ssh.service' >/dev/null || true\nfi\n# End automatically added section\n\
             # Automatically added by dh_installsystemd/13.24\n\
             if deb-systemd-helper debian-installed 'ssh.socket'; then\n\
             \tdeb-systemd-helper enable 'ssh.socket' >/dev/null || true\nfi\n# End automatically added section\n\
             # Automatically added by dh_installsystemduser/13\n\
             \tdeb-systemd-helper --user enable 'agent.socket' >/dev/null\n# End automatically added section\n\
             # Automatically added by dh_installalternatives/13\nif [ \"$1\" = x ]; then\n\
             update-alternatives --install /usr/bin/awk awk /usr/bin/mawk 5 \\\n\
             \t--slave /usr/bin/nawk nawk /usr/bin/mawk\nfi\n# End automatically added section\nexit 0\n",
        );
        assert_eq!(script.residue, [""; 0]);
        assert_eq!(script.enable, [("ssh.service".into(), false), ("agent.socket".into(), true)]);
        assert_eq!(
            script.alternatives,
            [
                ("/usr/bin/awk".into(), "/usr/bin/mawk".into(), 5),
                ("/usr/bin/nawk".into(), "/usr/bin/mawk".into(), 5)
            ]
        );
    }

    #[test]
    fn anything_else_is_residue() {
        for (text, residue) in [
            ("#!/bin/sh\nadduser x\n", "adduser x"),
            (
                "#!/bin/sh\nif [ \"$1\" = configure ] && rm -rf /x; then\nfi\n",
                "if [ \"$1\" = configure ] && rm -rf /x; then",
            ),
            ("#!/bin/sh\nif [ \"$1\" = \"$(rm x)\" ]; then\n", "if [ \"$1\" = \"$(rm x)\" ]; then"),
            ("#!/usr/bin/perl\n", "(not a shell script)"),
            ("\u{7f}ELF", "(not a shell script)"),
            (
                "#!/bin/sh\n# Automatically added by dh_ucf/1\nucf x\n# End automatically added section",
                "(section of dh_ucf)",
            ),
            (
                "#!/bin/sh\n# Automatically added by dh_installdeb/1\n",
                "(section of dh_installdeb does not end)",
            ),
            ("#!/bin/sh\ncreate_x() {\n}\n", "create_x() {"),
        ] {
            assert_eq!(Script::read(text).residue.first().map(String::as_str), Some(residue), "{text}");
        }
    }

    #[test]
    fn rules_are_found_by_name_before_pattern() {
        let rule = |because: &str| ScriptRule { because: because.into(), steps: Vec::new() };
        let rules =
            BTreeMap::from([("linux-image-*".into(), rule("a")), ("linux-image-x".into(), rule("b"))]);
        assert_eq!(rule_for("linux-image-x", &rules).unwrap().because, "b");
        assert_eq!(rule_for("linux-image-6.12", &rules).unwrap().because, "a");
        assert!(rule_for("linux-base", &rules).is_none());
    }

    #[test]
    fn every_uncovered_script_is_named_at_once() {
        use super::super::packages::tests::{debian, package};
        let long = "#!/bin/sh\nset -e\none\ntwo\nthree\nfour\nfive\nsix\n";
        let packages = [
            package("a", &[("postinst", long), ("prerm", "#!/bin/sh\nnever run\n")], &[]),
            package("b", &[("preinst", "#!/bin/sh\nrm -rf /x\n")], &[]),
            package("c", &[("postinst", "#!/bin/sh\nset -e\nexit 0\n")], &[]),
        ];
        let mut debian = debian();
        let error = plan(&packages, &debian).err().unwrap().to_string();
        assert_eq!(
            error,
            "2 maintainer scripts do what no rule covers; say under `scripts` of the os pack what stands in for each \
             (`because`, `steps`):\n  a 1-1, postinst:\n      one\n      two\n      three\n      four\n      \
             (and 2 lines)\n  b 1-1, preinst:\n      rm -rf /x"
        );
        for name in ["a", "b"] {
            let rule = ScriptRule { because: "tested".into(), steps: Vec::new() };
            debian.scripts.insert(name.into(), rule);
        }
        plan(&packages, &debian).unwrap();
    }
}
