//! Pairs of images and files to make deltas between, from the Debian mirrors in this machine's apt sources.
//!
//! - `S`: a hot fix: Debian 12 and the same with newer openssl, libexpat and libssh2
//! - `A`: a month: Debian 12 as released and with all updates, kernel and PostgreSQL included
//! - `farhold-A`: the same as Farhold lays images out: no `/boot`, no LLVM bitcode
//! - `U`: a major upgrade: `A`'s new side and Debian 13
//!
//! Trees are made with mmdebstrap (root), images with mkfs.erofs; what exists already is kept.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const EPOCH: &str = "1700000000";
const UUID: &str = "-U00000000-0000-0000-0000-000000000001";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const PACKAGES: &str = "linux-image-amd64,systemd,systemd-boot,udev,dbus,openssh-server,openssl,curl,ca-certificates,\
containerd,runc,iptables,iproute2,python3-minimal,kmod,e2fsprogs";
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

fn run(command: &mut Command) -> Result<()> {
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let tail = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{tail}", output.status);
    Ok(())
}

/// The archive and the security archive among this machine's apt sources.
fn mirrors() -> Result<(String, String)> {
    let (mut archive, mut security) = (None, None);
    let lists = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    for path in lists.chain([PathBuf::from("/etc/apt/sources.list")]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        for word in lines.flat_map(str::split_whitespace).filter(|word| word.contains("://")) {
            let base = word.trim_end_matches('/');
            match base.rsplit('/').next() {
                Some("debian") => archive = Some(base.to_owned()),
                Some("debian-security") => security = Some(base.to_owned()),
                _ => {}
            }
        }
    }
    match (archive, security) {
        (Some(archive), Some(security)) => Ok((archive, security)),
        _ => bail!(
            "no Debian archive and security archive among this machine's apt sources; add them, or name pairs with FARHOLD_BENCH_FILES"
        ),
    }
}

/// The tree `name` with the suites of `sources` (archive or security, suite).
fn tree(work: &Path, name: &str, postgres: u8, sources: &[(bool, &str)]) -> Result<PathBuf> {
    let packages = format!("--include={PACKAGES},postgresql-{postgres}");
    bootstrap(work, name, &["--variant=minbase", &packages], sources)
}

/// A tree of arm64 packages, unpacked and not configured, which needs no emulation.
fn foreign(work: &Path, name: &str, sources: &[(bool, &str)]) -> Result<PathBuf> {
    let options = [
        "--variant=extract",
        "--architectures=arm64",
        "--skip=check/qemu",
        "--include=libssl3,postgresql-15",
    ];
    bootstrap(work, name, &options, sources)
}

fn bootstrap(work: &Path, name: &str, options: &[&str], sources: &[(bool, &str)]) -> Result<PathBuf> {
    let folder = work.join("trees").join(name);
    if folder.exists() {
        return Ok(folder);
    }
    let (archive, security) = mirrors()?;
    let part = folder.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(work.join("trees"))?;
    let suite = sources.first().map_or("stable", |(_, suite)| suite);
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--format=directory"]).args(options);
    command.args([
        "--aptopt=APT::Install-Recommends \"false\"",
        "--aptopt=Acquire::Check-Valid-Until \"false\"",
    ]);
    command.arg("--dpkgopt=force-unsafe-io").arg(suite).arg(&part);
    for (secure, suite) in sources {
        let uri = if *secure { &security } else { &archive };
        command.arg(format!("deb [signed-by={KEYRING}] {uri} {suite} main"));
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
fn hot_fix(tree: &Path) -> Result<()> {
    let debs = tempfile::tempdir()?;
    run(Command::new("apt-get").arg("download").args(HOT_FIX).current_dir(debs.path()))?;
    for deb in fs::read_dir(debs.path())? {
        let unpacked = debs.path().join("x");
        run(Command::new("dpkg").arg("-x").arg(deb?.path()).arg(&unpacked))?;
        run(Command::new("sh").args(["-c", DROPPED]).arg(&unpacked))?;
        let script = "tar -C \"$0\" -cf - . | tar -C \"$1\" -xf - --keep-directory-symlink";
        run(Command::new("sh").args(["-c", script]).arg(&unpacked).arg(tree))?;
        fs::remove_dir_all(&unpacked)?;
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
    let old = || tree(work, "old", 15, &[(false, "bookworm")]);
    let month = [(false, "bookworm"), (false, "bookworm-updates"), (true, "bookworm-security")];
    let new = || tree(work, "new", 15, &month);
    let lay_out = |tree: &Path| run(Command::new("sh").args(["-c", LAID_OUT]).arg(tree));
    let (before, after) = match name {
        "S" => (old()?, variant(work, &old()?, "sm", hot_fix)?),
        "A" => (old()?, new()?),
        "farhold-A" => (variant(work, &old()?, "fold", lay_out)?, variant(work, &new()?, "fnew", lay_out)?),
        "U" => (new()?, tree(work, "tx", 17, &[(false, "trixie"), (true, "trixie-security")])?),
        _ => bail!("FARHOLD_BENCH_PAIRS names `{name}`, but must name some of S, A, farhold-A, U, files"),
    };
    Ok(Pair {
        name: name.to_owned(),
        old: image_of(work, &before)?,
        new: image_of(work, &after)?,
        program: false,
    })
}

/// Single programs: two of the trees, and the pairs in `folder`.
///
/// # Errors
/// If a tree cannot be made, or the folder cannot be read.
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
    let month = [(false, "bookworm"), (false, "bookworm-updates"), (true, "bookworm-security")];
    let trees = (tree(work, "old", 15, &[(false, "bookworm")])?, tree(work, "new", 15, &month)?);
    let arm = (foreign(work, "old-arm64", &[(false, "bookworm")])?, foreign(work, "new-arm64", &month)?);
    let postgres = "usr/lib/postgresql/15/bin/postgres";
    for (name, (before, after), path) in [
        ("libcrypto", &trees, "usr/lib/x86_64-linux-gnu/libcrypto.so.3"),
        ("postgres", &trees, postgres),
        ("libcrypto-arm64", &arm, "usr/lib/aarch64-linux-gnu/libcrypto.so.3"),
        ("postgres-arm64", &arm, postgres),
    ] {
        let (old, new) = (before.join(path), after.join(path));
        found.push(Pair { name: name.to_owned(), old, new, program: true });
    }
    Ok(found)
}
