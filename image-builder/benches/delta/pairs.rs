//! Pairs of images and files to make deltas between, from the Debian mirrors in this machine's apt sources.
//!
//! - `S`: a hot fix: Debian 12 and the same with newer openssl, libexpat and libssh2
//! - `A`: a month: Debian 12 as released and with all updates, kernel and PostgreSQL included
//! - `farhold-A`: the same as Farhold lays images out: no `/boot`, no LLVM bitcode
//! - `U`: a major upgrade: `A`'s new side and Debian 13
//! - `files`: single programs, in Go and C: security updates of Debian, and two releases of npm packages
//!
//! Trees are made with mmdebstrap (root), images with mkfs.erofs; what exists already is kept.

use crate::debian::{run, source, unpack};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const UUID: &str = "-U00000000-0000-0000-0000-000000000001";
const PACKAGES: &str = "linux-image-amd64,systemd,systemd-boot,udev,dbus,openssh-server,openssl,curl,ca-certificates,\
containerd,runc,iptables,iproute2,python3-minimal,kmod,e2fsprogs";
/// Debian 12 with everything that came since its last point release.
const MONTH: [&str; 3] = ["bookworm", "bookworm-updates", "bookworm-security"];
const HOT_FIX: [&str; 4] = ["libssl3", "openssl", "libexpat1", "libssh2-1"];
/// What no image keeps: caches, documents, secrets and what installing leaves.
const DROPPED: &str = "cd \"$0\" && rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug \
usr/share/i18n usr/share/zoneinfo var/lib/dpkg var/lib/apt var/lib/postgresql var/cache/* var/log/* tmp/* run/* dev/* proc/* sys/* \
etc/ssh/ssh_host_* etc/ssl/private/* etc/ssl/certs/ssl-cert-snakeoil.pem etc/machine-id etc/hostname etc/resolv.conf etc/shadow- \
etc/passwd- etc/group- etc/gshadow- var/lib/dbus/machine-id var/lib/systemd/* etc/postgresql/*";
/// What Farhold's images have not.
const LAID_OUT: &str = "cd \"$0\" && rm -rf boot/* initrd* vmlinuz* usr/lib/postgresql/*/lib/bitcode";

/// Two files.
pub struct Pair {
    pub name: String,
    pub old: PathBuf,
    pub new: PathBuf,
    /// A single program.
    pub program: bool,
}

/// The tree `name` of Debian's `suites`, the release's own first.
fn tree(work: &Path, name: &str, postgres: u8, suites: &[&str]) -> Result<PathBuf> {
    let folder = work.join("trees").join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let part = folder.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(work.join("trees"))?;
    let suite = suites.first().copied().unwrap_or("stable");
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--variant=minbase", "--format=directory"]);
    command.arg(format!("--include={PACKAGES},postgresql-{postgres}"));
    command.args([
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Check-Valid-Until \"false\"",
    ]);
    command.arg("--dpkgopt=force-unsafe-io").arg(suite).arg(&part);
    for suite in suites {
        command.arg(source(suite)?);
    }
    run(&mut command)?;
    run(Command::new("sh").args(["-c", DROPPED]).arg(&part))?;
    fs::rename(&part, &folder)?;
    Ok(folder)
}

/// A copy of `from` as `name`, changed by `change`, which gets the copy's path.
fn variant(work: &Path, from: &Path, name: &str, change: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = work.join("trees").join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let part = folder.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    run(Command::new("cp").args(["-a", "--reflink=auto"]).args([from, &part]))?;
    change(&part)?;
    fs::rename(&part, &folder)?;
    Ok(folder)
}

/// Unpacks the newest packages of the hot fix over `tree`.
fn hot_fix(work: &Path, tree: &Path) -> Result<()> {
    for package in HOT_FIX {
        let folder = tempfile::tempdir()?;
        unpack(work, &["bookworm", "bookworm-security"], package, folder.path())?;
        run(Command::new("sh").args(["-c", DROPPED]).arg(folder.path()))?;
        let script = "tar -C \"$0\" -cf - . | tar -C \"$1\" -xf - --keep-directory-symlink";
        run(Command::new("sh").args(["-c", script]).arg(folder.path()).arg(tree))?;
    }
    Ok(())
}

/// The image of `tree`.
fn image_of(work: &Path, tree: &Path) -> Result<PathBuf> {
    let name = tree.file_name().context("a tree has a name")?.to_string_lossy().into_owned();
    let image = work.join("img").join(format!("{name}.erofs"));
    if !image.exists() {
        fs::create_dir_all(work.join("img"))?;
        let part = image.with_extension("part");
        run(Command::new("mkfs.erofs").args(["-T0", UUID, "-x-1"]).args([&part, tree]))?;
        fs::rename(&part, &image)?;
    }
    Ok(image)
}

/// The pair of images with this name.
///
/// # Errors
/// If it is unknown, or cannot be made.
pub fn image(work: &Path, name: &str) -> Result<Pair> {
    let old = || tree(work, "old", 15, &MONTH[..1]);
    let new = || tree(work, "new", 15, &MONTH);
    let lay_out = |tree: &Path| run(Command::new("sh").args(["-c", LAID_OUT]).arg(tree));
    let (before, after) = match name {
        "S" => (old()?, variant(work, &old()?, "sm", |tree| hot_fix(work, tree))?),
        "A" => (old()?, new()?),
        "farhold-A" => (variant(work, &old()?, "fold", lay_out)?, variant(work, &new()?, "fnew", lay_out)?),
        "U" => (new()?, tree(work, "tx", 17, &["trixie", "trixie-security"])?),
        _ => bail!("FARHOLD_BENCH_PAIRS names `{name}`, but must name some of S, A, farhold-A, U, files"),
    };
    Ok(Pair {
        name: name.to_owned(),
        old: image_of(work, &before)?,
        new: image_of(work, &after)?,
        program: false,
    })
}

/// A program in two versions of a Debian package: name of the pair, suites, package, versions, path in the package.
struct Packaged(&'static str, &'static [&'static str], &'static str, [&'static str; 2], &'static str);

const PACKAGED: [Packaged; 2] = [
    Packaged(
        "containerd",
        &["bookworm", "bookworm-security"],
        "containerd",
        ["1.6.20~ds1-1+deb12u2", "1.6.20~ds1-1+deb12u3"],
        "usr/bin/containerd",
    ),
    Packaged(
        "incusd",
        &["trixie", "trixie-security"],
        "incus-base",
        ["6.0.4-2+deb13u10", "6.0.4-2+deb13u12"],
        "usr/libexec/incus/incusd",
    ),
];

/// The same of npm packages.
struct Npm(&'static str, &'static str, [&'static str; 2], &'static str);

const NPM: [Npm; 2] = [
    Npm("esbuild", "@esbuild/linux-x64", ["0.28.1", "0.28.2"], "package/bin/esbuild"),
    Npm(
        "tsgo",
        "@typescript/native-preview-linux-x64",
        ["7.0.0-dev.20260628.1", "7.0.0-dev.20260705.1"],
        "package/lib/tsgo",
    ),
];

/// Fills `work/files/NAME.1` and `.2` with `fetch`, which puts version 0 or 1 of the program at a path.
fn both(work: &Path, name: &str, fetch: impl Fn(usize, &Path, &Path) -> Result<()>) -> Result<Pair> {
    let place = |side: usize| work.join("files").join(format!("{name}.{}", side + 1));
    fs::create_dir_all(work.join("files"))?;
    for side in [0, 1].into_iter().filter(|side| !place(*side).exists()) {
        let folder = tempfile::tempdir()?;
        let part = place(side).with_extension("part");
        fetch(side, folder.path(), &part).with_context(|| format!("fetch {name}, version {side}"))?;
        fs::rename(&part, place(side))?;
    }
    Ok(Pair { name: name.to_owned(), old: place(0), new: place(1), program: true })
}

fn packaged(work: &Path, program: &Packaged) -> Result<Pair> {
    let Packaged(name, suites, package, versions, path) = program;
    both(work, name, |side, folder, to| {
        unpack(work, suites, &format!("{package}={}", versions[side]), folder)?;
        fs::copy(folder.join(path), to)?;
        Ok(())
    })
}

fn npm(work: &Path, program: &Npm) -> Result<Pair> {
    let Npm(name, package, versions, path) = program;
    both(work, name, |side, folder, to| {
        let script = "npm pack --silent \"$0\" && tar -xzf ./*.tgz";
        run(Command::new("sh")
            .args(["-c", script, &format!("{package}@{}", versions[side])])
            .current_dir(folder))?;
        fs::copy(folder.join(path), to)?;
        Ok(())
    })
}

/// Single programs: of Debian, of npm, of the trees; or the pairs in `folder`.
///
/// # Errors
/// If one cannot be fetched, or the folder cannot be read.
pub fn files(work: &Path, folder: Option<&Path>) -> Result<Vec<Pair>> {
    let mut found = Vec::new();
    if let Some(folder) = folder {
        let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
        let mut old: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        old.retain(|path| path.extension().is_some_and(|extension| extension == "1"));
        old.sort();
        for old in old {
            let name = old.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let new = old.with_extension("2");
            found.push(Pair { name, old, new, program: true });
        }
        return Ok(found);
    }
    for program in &NPM {
        found.push(npm(work, program)?);
    }
    for program in &PACKAGED {
        found.push(packaged(work, program)?);
    }
    let trees = (tree(work, "old", 15, &MONTH[..1])?, tree(work, "new", 15, &MONTH)?);
    for (name, path) in [
        ("libcrypto", "usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
        ("postgres", "usr/lib/postgresql/15/bin/postgres"),
    ] {
        let (old, new) = (trees.0.join(path), trees.1.join(path));
        found.push(Pair { name: name.to_owned(), old, new, program: true });
    }
    Ok(found)
}

/// desync, from Debian sid; `None` if it cannot be had.
pub fn desync(work: &Path) -> Option<PathBuf> {
    let program = work.join("desync/usr/bin/desync");
    if !program.exists() {
        unpack(work, &["sid"], "desync", &work.join("desync")).ok()?;
    }
    Some(program)
}
