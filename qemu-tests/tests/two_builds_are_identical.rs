//! Two builds, in two folders, from two caches, at two times, give the same bytes (invariant I2), the second one as a
//! user without any privilege where the tests run as root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use qemu_tests::programs::Programs;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's `nobody`.
const NOBODY: u32 = 65_534;

fn needed(variable: &str) -> PathBuf {
    match std::env::var_os(variable) {
        Some(path) => path.into(),
        None => panic!("{variable} is not set: run this test by `make test`"),
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Packages and tools as downloaded; nothing that a build derived.
fn copy_cache(to: &Path) {
    let home = || needed("HOME").join(".cache");
    let cache = std::env::var_os("FARHOLD_CACHE").map_or_else(
        || std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("farhold"),
        PathBuf::from,
    );
    fs::create_dir_all(to).unwrap();
    run(Command::new("cp").args(["-r", "--reflink=auto"]).arg(cache.join("objects")).arg(to));
}

#[test]
fn two_builds_are_identical() {
    let first = needed("FARHOLD_TEST_IMAGE_DIR");
    let farhold = needed("FARHOLD");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let build = first.parent().unwrap();
    let work = tempfile::Builder::new().prefix("farhold-twice-").tempdir_in("/var/tmp").unwrap();
    let path = |name: &str| work.path().join(name);
    copy_cache(&path("cache"));
    for folder in ["recipes", "x86_64", "arm64"] {
        run(Command::new("cp").arg("-r").arg(root.join(folder)).arg(path(folder)));
    }
    run(Command::new("cp").arg("-r").arg(build.join("keys")).arg(path("keys")));
    for (from, to) in
        [(farhold, "farhold"), (needed("FARHOLD_AGENT"), "agent"), (needed("FARHOLD_INIT"), "init")]
    {
        fs::copy(from, path(to)).unwrap();
    }
    fs::copy(first.with_extension("lock"), path("lock")).unwrap();
    let as_root = nix::unistd::geteuid().is_root();
    if as_root {
        run(Command::new("chown").args(["-R", &NOBODY.to_string()]).arg(work.path()));
    }
    let mut command = Command::new(path("farhold"));
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", path("home"))
        .env("FARHOLD_CACHE", path("cache"))
        .arg("build")
        .arg(path("recipes/profiles/edge-minimal.yaml"))
        .args(Programs::from_environment().unwrap().target())
        .args(["--offline", "--lock"])
        .arg(path("lock"))
        .arg("--keys")
        .arg(path("keys"))
        .arg("--out")
        .arg(path("out"))
        .args(["--artefact", &format!("farhold-agent={}", path("agent").display())])
        .args(["--artefact", &format!("farhold-init={}", path("init").display())]);
    if as_root {
        command.uid(NOBODY).gid(NOBODY);
    }
    run(&mut command);
    let listed = Command::new("find").arg(&first).args(["-type", "f", "-printf", "%P\n"]).output().unwrap();
    let files = String::from_utf8(listed.stdout).unwrap();
    let compared: Vec<&str> = files.lines().filter(|file| *file != "build.json").collect();
    assert!(compared.len() >= 8 && compared.contains(&"disk.img"), "{compared:?}");
    for file in compared {
        run(Command::new("cmp").arg(first.join(file)).arg(path("out").join(file)));
    }
}
