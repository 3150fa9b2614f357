//! Resolves Debian packages with the machine's `apt-get`, in private state folders, for any architecture, as any user.
//!
//! apt checks the archive's signatures and picks versions; nothing of the machine's own apt configuration or dpkg
//! status is read. What is downloaded later is checked against the SHA-256 that the signed index gives.
//! See apt.conf(5), apt-get(8), apt-cache(8).

mod stanza;

use crate::lock::LockedPackage;
use crate::mirror::Mirrors;
use crate::progress::Progress;
use crate::resolved::Absent;
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail};
use formats::arch::Arch;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};
use stanza::{Stanza, index_by_digest};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Variables that tell apt's downloads how to reach the network.
const PROXY_VARIABLES: [&str; 6] =
    ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];
/// Least similarity of a package name that is offered in the place of an unknown one.
const NEAR: f64 = 0.8;

/// Where packages are looked for.
#[derive(Clone, Debug)]
pub struct Sources<'a> {
    /// Mirrors.
    pub mirrors: &'a Mirrors,
    /// Suites, as `trixie-security`.
    pub suites: &'a [String],
    /// Components, as `main`.
    pub components: &'a [String],
    /// Architecture of the packages.
    pub arch: Arch,
    /// Whether indices past their `Valid-Until` are taken: only for snapshot mirrors.
    pub snapshot: bool,
}

/// apt with the current indices of some [`Sources`].
pub struct Apt<'a> {
    sources: Sources<'a>,
    folder: PathBuf,
    /// Held as long as this lives: two resolutions in one state folder would spoil each other.
    _lock: Flock<File>,
}

/// A set of packages.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// The packages, sorted by name.
    pub packages: Vec<LockedPackage>,
    /// Mirrors that they are on, by role.
    pub mirrors: BTreeMap<String, String>,
}

impl<'a> Apt<'a> {
    /// Fetches the indices.
    ///
    /// # Errors
    /// If there is no apt, no network, or a signature does not check.
    pub fn update(store: &Store, sources: Sources<'a>, progress: &Progress) -> Result<Self> {
        let list = source_list(&sources)?;
        let key = Sha256::digest(format!("{list} {} {}", sources.arch, sources.mirrors.keyring.display()));
        let folder = store.root().join("apt").join(formats::hex::encode(&key[..8]));
        for below in ["state/lists/partial", "cache/archives/partial", "etc", "log"] {
            fs::create_dir_all(folder.join(below)).with_context(|| store.full())?;
        }
        let lock = File::create(folder.join("lock")).with_context(|| store.full())?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", folder.display()))?;
        write(&folder.join("etc/sources.list"), &list)?;
        write(&folder.join("status"), "")?;
        write(&folder.join("apt.conf"), &configuration(&folder, &sources))?;
        let apt = Self { sources, folder, _lock: lock };
        let busy = progress.busy(&format!("indices for {}", apt.sources.arch));
        apt.run("apt-get", &["update", "-qq", "--error-on=any"]).with_context(|| {
            let mirrors = apt.sources.mirrors;
            let security = mirrors.security.as_deref().map_or(String::new(), |url| format!(" and {url}"));
            format!("fetch the package indices of {}{security}", mirrors.archive)
        })?;
        drop(busy);
        Ok(apt)
    }

    /// Resolves packages and what they depend on, without recommendations, as if nothing were installed but the
    /// `absent` packages.
    ///
    /// # Errors
    /// If a package is unknown or the set contradicts itself; in apt's words, and for unknown names with near ones.
    /// If a package that is not allowed to depends on an absent one.
    pub fn resolve(&self, requested: &[String], absent: &BTreeMap<String, Absent>) -> Result<Resolution> {
        let absent: BTreeMap<&str, &Absent> = absent
            .iter()
            .filter(|(name, _)| !requested.contains(name))
            .map(|(name, rule)| (name.as_str(), rule))
            .collect();
        let stand_ins = self.stand_ins(&absent)?;
        let mut arguments = vec!["install", "-qq", "--yes", "--no-install-recommends", "--print-uris"];
        arguments.extend(requested.iter().map(String::as_str));
        let output = match self.run("apt-get", &arguments) {
            Ok(output) => output,
            Err(error) => return Err(self.explain(error)),
        };
        let (resolution, stanzas) = self.describe(&output)?;
        check_absent(&stanzas, &absent, &stand_ins)?;
        Ok(resolution)
    }

    /// Resolves packages alone, without what they depend on.
    ///
    /// # Errors
    /// If one is unknown.
    pub fn alone(&self, names: &[&str]) -> Result<Resolution> {
        let mut arguments = vec!["download", "-qq", "--print-uris"];
        arguments.extend(names);
        let output = self.run("apt-get", &arguments).map_err(|error| self.explain(error))?;
        Ok(self.describe(&output)?.0)
    }

    /// Writes a dpkg status in which the absent packages are installed at their newest version, and returns what
    /// they provide.
    fn stand_ins(&self, absent: &BTreeMap<&str, &Absent>) -> Result<Vec<Stanza>> {
        let (mut status, mut pins) = (String::new(), String::new());
        let mut stanzas = Vec::new();
        // Pins of the resolution before would hide versions from the look-up.
        write(&self.folder.join("etc/preferences"), "")?;
        if !absent.is_empty() {
            let mut arguments = vec!["show", "--no-all-versions"];
            arguments.extend(absent.keys());
            let shown = self.run("apt-cache", &arguments).context("look up packages that are left out")?;
            stanzas = Stanza::parse_all(&shown);
            // For a virtual name apt shows a package that provides it; leaving that out was not asked for.
            stanzas.retain(|stanza| absent.contains_key(stanza.name()));
            for stanza in &stanzas {
                status.push_str(&stanza.installed());
                // apt takes the archive's stanza of the same version for an upgrade; it must not.
                pins.push_str(&format!("Package: {}\nPin: release *\nPin-Priority: -1\n\n", stanza.name()));
            }
        }
        write(&self.folder.join("etc/preferences"), &pins)?;
        write(&self.folder.join("status"), &status)?;
        Ok(stanzas)
    }

    /// What the lines of `--print-uris` stand for, from the indices.
    fn describe(&self, printed: &str) -> Result<(Resolution, Vec<Stanza>)> {
        let mut uris = Vec::new();
        for line in printed.lines().filter(|line| line.starts_with('\'')) {
            uris.push(
                Uri::parse(line)
                    .ok_or_else(|| anyhow!("apt-get printed an address like none known: {line}"))?,
            );
        }
        if uris.is_empty() {
            return Ok((Resolution { packages: Vec::new(), mirrors: BTreeMap::new() }, Vec::new()));
        }
        let names: Vec<String> = uris.iter().map(Uri::selector).collect();
        let mut arguments = vec!["show"];
        arguments.extend(names.iter().map(String::as_str));
        let index = index_by_digest(&self.run("apt-cache", &arguments)?);
        let mut packages = Vec::new();
        let mut mirrors = BTreeMap::new();
        let mut stanzas = Vec::new();
        for uri in uris {
            let stanza = index.get(&uri.sha256).ok_or_else(|| {
                anyhow!("the package index does not have {} with SHA-256 {}", uri.url, uri.sha256)
            })?;
            let (role, base) = self.mirror_of(&uri.url)?;
            mirrors.insert(role.to_owned(), base.to_owned());
            packages.push(stanza.locked(role, &uri.sha256, uri.size)?);
            stanzas.push(stanza.clone());
        }
        packages.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
        Ok((Resolution { packages, mirrors }, stanzas))
    }

    fn mirror_of(&self, url: &str) -> Result<(&'static str, &str)> {
        let bases = self.sources.suites.iter().filter_map(|suite| self.sources.mirrors.of_suite(suite));
        // The longest base: one mirror may stand in a folder of the other.
        bases
            .filter(|(_, base)| url.starts_with(&format!("{base}/")))
            .max_by_key(|(_, base)| base.len())
            .ok_or_else(|| anyhow!("{url} is on none of the mirrors given"))
    }

    /// Adds near names to apt's complaint about an unknown one.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let text = format!("{error:#}");
        let unknown: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_once("Unable to locate package ").map(|(_, name)| name.trim()))
            .collect();
        if unknown.is_empty() {
            return error.context("resolve packages");
        }
        let known = self.run("apt-cache", &["pkgnames"]).unwrap_or_default();
        let describe = |name: &&str| {
            let mut near: Vec<(f64, &str)> =
                known.lines().map(|other| (strsim::jaro_winkler(name, other), other)).collect();
            near.retain(|(likeness, _)| *likeness >= NEAR);
            near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
            let near: Vec<&str> = near.into_iter().take(3).map(|(_, name)| name).collect();
            if near.is_empty() {
                format!("`{name}`")
            } else {
                format!("`{name}` (near: {})", near.join(", "))
            }
        };
        let list: Vec<String> = unknown.iter().map(describe).collect();
        anyhow!("Debian has no package {} in {}", list.join(", "), self.sources.suites.join(", "))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("APT_CONFIG", self.folder.join("apt.conf")).args(arguments);
        for name in PROXY_VARIABLES {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        let output = match command.output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("no `{program}` on this machine: resolving Debian packages needs the package `apt`")
            }
            Err(error) => return Err(error).with_context(|| format!("start {program}")),
        };
        finished(program, arguments, output)
    }
}

fn finished(program: &str, arguments: &[&str], output: Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let verb = arguments.first().copied().unwrap_or_default();
        bail!("{program} {verb} ended with {}:\n  {}", output.status, said.trim().replace('\n', "\n  "));
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what {program} printed"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// sources.list(5) lines; suites without a mirror are an error.
fn source_list(sources: &Sources<'_>) -> Result<String> {
    let keyring = sources.mirrors.keyring.display();
    let components = sources.components.join(" ");
    let mut list = String::new();
    for suite in sources.suites {
        let Some((_, url)) = sources.mirrors.of_suite(suite) else {
            bail!(
                "suite `{suite}` has no mirror: give one with --security-mirror URL or FARHOLD_SECURITY_MIRROR, \
                 or take the suite out of the profile"
            );
        };
        list.push_str(&format!("deb [signed-by={keyring}] {url} {suite} {components}\n"));
    }
    Ok(list)
}

fn configuration(folder: &Path, sources: &Sources<'_>) -> String {
    let at = |below: &str| folder.join(below).display().to_string();
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    let settings = [
        ("APT::Architecture", sources.arch.debian().to_owned()),
        ("APT::Install-Recommends", "false".into()),
        // As root apt would give up its rights for a user who may not enter the cache.
        ("APT::Sandbox::User", user.map_or_else(|| "root".into(), |user| user.name)),
        ("Acquire::Languages", "none".into()),
        ("Acquire::ForceHash", "SHA256".into()),
        ("Acquire::Retries", "2".into()),
        ("Acquire::Check-Valid-Until", (!sources.snapshot).to_string()),
        ("Dir::State", at("state")),
        ("Dir::State::status", at("status")),
        ("Dir::Cache", at("cache")),
        ("Dir::Log", at("log")),
        ("Dir::Etc", at("etc")),
        ("Dir::Etc::sourcelist", at("etc/sources.list")),
        ("Dir::Etc::preferences", at("etc/preferences")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ("Dir::Etc::trustedparts", "/dev/null".into()),
        ("Dir::Etc::main", "/dev/null".into()),
        ("Dir::Etc::parts", "/dev/null".into()),
    ];
    let lines = settings.iter().map(|(name, value)| format!("{name} \"{value}\";\n"));
    format!("{}APT::Architectures {{\"{}\";}};\n", lines.collect::<String>(), sources.arch.debian())
}

/// Errors for packages that need one that is left out.
fn check_absent(packages: &[Stanza], absent: &BTreeMap<&str, &Absent>, stand_ins: &[Stanza]) -> Result<()> {
    let here: Vec<&str> = packages.iter().flat_map(Stanza::names).collect();
    let mut wrong = Vec::new();
    for package in packages {
        for group in package.dependencies() {
            if group.iter().any(|name| here.contains(name)) {
                continue;
            }
            let needed = stand_ins.iter().find(|stand_in| stand_in.names().any(|name| group.contains(&name)));
            let Some((needed, rule)) = needed.and_then(|s| Some((s.name(), absent.get(s.name())?))) else {
                continue;
            };
            if !rule.used_by.is_empty() && !rule.used_by.iter().any(|name| name == package.name()) {
                wrong.push(format!("{} needs {needed} (left out because {})", package.name(), rule.because));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!(
        "packages need others that this image leaves out; ask for those by name in a pack, or allow it under \
         `absent` of the os pack:\n  {}",
        wrong.join("\n  ")
    )
}

/// One line of `--print-uris`: `'URL' name_version_arch.deb size SHA256:hash`.
struct Uri {
    url: String,
    file: String,
    size: u64,
    sha256: String,
}

impl Uri {
    fn parse(line: &str) -> Option<Self> {
        let (url, rest) = line.strip_prefix('\'')?.split_once('\'')?;
        let mut words = rest.split_whitespace();
        let (file, size, hash) = (words.next()?, words.next()?, words.next()?);
        let sha256 = hash.strip_prefix("SHA256:")?.to_owned();
        Some(Self { url: url.to_owned(), file: file.to_owned(), size: size.parse().ok()?, sha256 })
    }
    /// `name=version` for apt-cache.
    fn selector(&self) -> String {
        let mut parts = self.file.splitn(3, '_');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!("{name}={}", version.replace("%3a", ":"))
    }
}

#[cfg(test)]
mod tests;
