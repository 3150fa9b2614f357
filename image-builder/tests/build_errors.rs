//! What an operator sees when a build cannot be done: one error that says what, where and what to do, and nothing
//! half-written under `--out`. The messages are golden.
//!
//! The first tests need nothing; the others take packages from the user's cache, the first time from a mirror.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod common;

use common::store;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const FARHOLD: &str = env!("CARGO_BIN_EXE_farhold");

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// A folder for one test, with a cache and artefacts.
struct Desk {
    dir: tempfile::TempDir,
    cache: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let mut init = b"\x7fELF\x02\x01".to_vec();
        init.resize(64, 0);
        init[18] = 62;
        std::fs::write(dir.path().join("init"), init).unwrap();
        std::fs::write(dir.path().join("agent"), b"agent").unwrap();
        Self { dir, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(FARHOLD);
        command.env("FARHOLD_CACHE", &self.cache).stdin(Stdio::null());
        command.arg(verb).arg(repository().join("recipes/profiles/edge-minimal.yaml"));
        command.args(["--board", "vm"]);
        command
    }

    fn build(&self) -> Command {
        let mut command = self.command("build");
        command.args(["--arch", "x86_64", "--offline"]);
        command.arg("--lock").arg(self.path("lock")).arg("--out").arg(self.path("out"));
        self.artefacts(&mut command);
        command
    }

    fn artefacts(&self, command: &mut Command) {
        for (name, file) in [("farhold-agent", "agent"), ("farhold-init", "init")] {
            command.arg("--artefact").arg(format!("{name}={}", self.path(file).display()));
        }
    }

    /// Standard error with the paths of this test replaced.
    fn errors(&self, output: &Output) -> String {
        assert!(!output.status.success(), "it worked: {}", String::from_utf8_lossy(&output.stdout));
        let text = String::from_utf8_lossy(&output.stderr);
        let text = text.replace(
            &self.cache.canonicalize().unwrap_or_else(|_| self.cache.clone()).display().to_string(),
            "CACHE",
        );
        let text = text.replace(&self.dir.path().display().to_string(), "DIR");
        text.replace(&repository().display().to_string(), "REPO")
    }

    fn leftovers(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> =
            names.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| name.contains("out"));
        names
    }
}

#[test]
fn a_missing_lock() {
    let desk = Desk::new();
    let output = desk.build().output().unwrap();
    assert_eq!(desk.errors(&output), "farhold: there is no lock DIR/lock: `farhold lock` makes it\n");
    assert!(desk.leftovers().is_empty());
}

#[test]
fn a_stale_lock() {
    let desk = Desk::new();
    std::fs::write(desk.path("lock"), lock_of(&["no-longer"])).unwrap();
    let output = desk.build().output().unwrap();
    let errors = desk.errors(&output);
    assert!(
        errors
            .starts_with("farhold: lock DIR/lock: the lock is stale: packages asked for since: base-files, "),
        "{errors}"
    );
    assert!(errors.ends_with("; no longer: no-longer; run `farhold lock` again\n"), "{errors}");
}

#[test]
fn a_lock_of_another_profile() {
    let desk = Desk::new();
    std::fs::write(desk.path("lock"), r#"{"format":1,"profile":"other","arch":{},"tools":{}}"#).unwrap();
    let output = desk.build().output().unwrap();
    assert_eq!(desk.errors(&output), "farhold: lock DIR/lock is for profile other, not edge-minimal\n");
}

#[test]
fn a_lock_without_this_processor() {
    let desk = Desk::new();
    let lock = r#"{"format":1,"profile":"edge-minimal","arch":{},"tools":{}}"#;
    std::fs::write(desk.path("lock"), lock).unwrap();
    let output = desk.build().output().unwrap();
    assert_eq!(
        desk.errors(&output),
        "farhold: lock DIR/lock has nothing for x86_64: run `farhold lock REPO/recipes/profiles/edge-minimal.yaml` \
         again\n"
    );
}

/// A lock of the real profile that asked for these packages.
fn lock_of(packages: &[&str]) -> String {
    serde_json::json!({
        "format": 1, "profile": "edge-minimal", "tools": {},
        "arch": { "x86_64": {
            "board": "vm", "requested": packages, "mirrors": {}, "packages": [], "artefacts": {}, "uids": {}, "gids": {}
        } }
    })
    .to_string()
}

/// A warm cache and a fresh lock, made once for the tests below.
fn warm() -> &'static (PathBuf, Vec<u8>, Desk) {
    static WARM: OnceLock<(PathBuf, Vec<u8>, Desk)> = OnceLock::new();
    WARM.get_or_init(|| {
        let mut desk = Desk::new();
        desk.cache = store().root().to_owned();
        let mut lock = desk.command("lock");
        lock.args(["--arch", "x86_64"]).arg("--out").arg(desk.path("lock"));
        desk.artefacts(&mut lock);
        let output = lock.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (desk.cache.clone(), std::fs::read(desk.path("lock")).unwrap(), desk)
    })
}

fn warm_desk() -> Desk {
    let (cache, lock, _) = warm();
    let mut desk = Desk::new();
    desk.cache.clone_from(cache);
    std::fs::write(desk.path("lock"), lock).unwrap();
    desk
}

#[test]
fn no_network_with_a_cold_cache() {
    let mut desk = warm_desk();
    desk.cache = desk.path("cold");
    let output = desk.build().output().unwrap();
    let errors = desk.errors(&output);
    assert!(errors.starts_with("farhold: step root (root file system (EROFS)): --offline: "), "{errors}");
    assert!(errors.contains("files are not in the cache CACHE, the first is package "), "{errors}");
    assert!(
        errors.ends_with("; build once without --offline, or give a folder that has them with --store\n"),
        "{errors}"
    );
    assert!(!desk.path("out").exists());
}

#[test]
fn an_output_folder_that_is_not_ours() {
    let desk = warm_desk();
    std::fs::create_dir(desk.path("out")).unwrap();
    std::fs::write(desk.path("out/letter.txt"), "dear").unwrap();
    let output = desk.build().output().unwrap();
    assert_eq!(
        desk.errors(&output),
        "farhold: --out DIR/out: the folder holds files that farhold did not write; remove them, or choose another \
         folder\n"
    );
    assert_eq!(std::fs::read_to_string(desk.path("out/letter.txt")).unwrap(), "dear");
}

#[test]
fn a_changed_artefact() {
    let desk = warm_desk();
    let mut other = std::fs::read(desk.path("init")).unwrap();
    other.push(1);
    std::fs::write(desk.path("init"), &other).unwrap();
    // An own cache: in the shared one the right init is already there.
    let mut desk = desk;
    desk.cache = desk.path("cold");
    let output = desk.build().output().unwrap();
    let errors = desk.errors(&output);
    let start =
        "farhold: step root (root file system (EROFS)): --artefact farhold-init: DIR/init has SHA-256 ";
    assert!(errors.starts_with(start), "{errors}");
    assert!(errors.ends_with("; run `farhold lock` again to take the new one\n"), "{errors}");
}

#[test]
fn a_full_disk_leaves_nothing() {
    let desk = warm_desk();
    let done = desk.build().output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::remove_dir_all(desk.path("out")).unwrap();
    // A limit on the size of files acts as a full disk does, in the middle of a write.
    let mut limited = Command::new("sh");
    limited.arg("-c").arg("trap '' XFSZ; ulimit -f 400000; exec \"$0\" \"$@\"");
    let build = desk.build();
    limited.arg(build.get_program()).args(build.get_args()).env("FARHOLD_CACHE", &desk.cache);
    let output = limited.output().unwrap();
    let errors = desk.errors(&output);
    assert!(errors.starts_with("farhold: step disk (disk image (GPT, ESP, slots)): "), "{errors}");
    assert!(errors.contains("File too large"), "{errors}");
    assert!(!desk.path("out").exists(), "{:?}", desk.leftovers());
    let again = desk.build().output().unwrap();
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert_eq!(desk.leftovers(), ["out"]);
}

#[test]
fn a_killed_build_leaves_nothing_in_place_and_resumes() {
    let mut desk = warm_desk();
    let whole = desk.build().output().unwrap();
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
    let report: serde_json::Value =
        serde_json::from_slice(&std::fs::read(desk.path("out/build.json")).unwrap()).unwrap();
    // Another cache with the same packages, so that every step is done again.
    let cold = desk.path("cold");
    link_tree(&desk.cache.join("objects"), &cold.join("objects"));
    desk.cache = cold;
    std::fs::rename(desk.path("out"), desk.path("whole")).unwrap();
    for wait in [300, 1500, 3000, 5000] {
        let (mut child, ended) = spawn_family(&desk.build());
        let by_itself = ended.recv_timeout(Duration::from_millis(wait)).is_ok();
        let was_running = child.try_wait().unwrap().is_none();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!was_running || !desk.path("out").exists(), "half an output after {wait} ms");
        let all_ended = by_itself || ended.recv_timeout(Duration::from_secs(10)).is_ok();
        assert!(all_ended, "left behind after {wait} ms: {:?}", processes_of(&desk.cache));
    }
    let output = desk.build().arg("--json").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let resumed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let disk = |report: &serde_json::Value| {
        let files = report["files"].as_array().unwrap();
        files.iter().find(|file| file["path"] == "disk.img").unwrap()["sha256"].clone()
    };
    assert_eq!(disk(&resumed), disk(&report));
    assert_eq!(desk.leftovers(), ["out"]);
}

/// The same call, and what hears when it and whatever it started have ended: nobody holds the pipe any more.
fn spawn_family(call: &Command) -> (Child, Receiver<()>) {
    let mut family = Command::new("sh");
    family.args(["-c", r#"exec "$0" "$@" 9>&1"#]).arg(call.get_program()).args(call.get_args());
    family.envs(call.get_envs().filter_map(|(name, value)| Some((name, value?))));
    family.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = family.spawn().unwrap();
    let (mut pipe, (tell, ended)) = (child.stdout.take().unwrap(), channel());
    std::thread::spawn(move || std::io::copy(&mut pipe, &mut std::io::sink()).map(|_| tell.send(())));
    (child, ended)
}

/// Command lines of programs out of this cache.
fn processes_of(cache: &Path) -> Vec<String> {
    let lines = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let lines = lines.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(&format!("{}/derived", cache.display()))).collect()
}

fn link_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_tree(&entry.path(), &target);
        } else if std::fs::hard_link(entry.path(), &target).is_err() {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}
