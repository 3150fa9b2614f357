//! Packages of any Debian suite, from the mirrors in this machine's apt sources, whatever suite the machine itself has. Lists and
//! caches are kept in the bench's own folder; nothing is installed.

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Keys of Debian's archives.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const EPOCH: &str = "1700000000";

/// Runs a command that must succeed.
///
/// # Errors
/// If it does not, with what it said.
pub fn run(command: &mut Command) -> Result<()> {
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let tail = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{tail}", output.status);
    Ok(())
}

/// A suite of the archive (`bookworm`), or of the security archive (`bookworm-security`), as a line of apt sources.
///
/// # Errors
/// If this machine has no such mirrors.
pub fn source(suite: &str) -> Result<String> {
    let (archive, security) = mirrors()?;
    let uri = if suite.ends_with("-security") { security } else { archive };
    Ok(format!("deb [signed-by={KEYRING}] {uri} {suite} main"))
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

/// Unpacks a package (`name` or `name=version`) of these suites into the new folder `to`.
///
/// # Errors
/// If there is no such package, or it cannot be fetched.
pub fn unpack(work: &Path, suites: &[&str], package: &str, to: &Path) -> Result<()> {
    let apt = work.join("apt").join(suites.join("+"));
    let options = |command: &mut Command| {
        let option = |name: &str, value: &Path| format!("-o{name}={}", value.display());
        command.arg(option("Dir::Etc::sourcelist", &apt.join("sources.list")));
        command.arg(option("Dir::Etc::sourceparts", Path::new("/dev/null")));
        command.arg(option("Dir::State::lists", &apt.join("lists")));
        command.arg(option("Dir::Cache", &apt.join("cache")));
        command.args(["-oAcquire::Languages=none", "-oAPT::Sandbox::User=root"]);
        command.arg("-oAcquire::Check-Valid-Until=false");
    };
    if !apt.join("ready").exists() {
        for folder in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(apt.join(folder))?;
        }
        let lines = suites.iter().map(|suite| Ok(source(suite)? + "\n")).collect::<Result<String>>()?;
        fs::write(apt.join("sources.list"), lines)?;
        let mut update = Command::new("apt-get");
        options(&mut update);
        run(update.arg("update"))?;
        fs::write(apt.join("ready"), "")?;
    }
    let debs = tempfile::tempdir()?;
    let mut download = Command::new("apt-get");
    options(&mut download);
    run(download.args(["download", package]).current_dir(debs.path()))?;
    let deb = fs::read_dir(debs.path())?.next().with_context(|| format!("apt fetched no {package}"))??;
    run(Command::new("dpkg").arg("-x").arg(deb.path()).arg(to))
}
