//! Locks and assembles real Debian 13 images of both architectures from the mirror that this machine's apt sources or
//! `FARHOLD_MIRROR` name. Packages of both processors are downloaded the first time, so they run in `make test-all`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod common;

use common::{debian, store};
use formats::arch::Arch;
use formats::device::DeviceProfile;
use formats::hex::Digest;
use image_builder::fetch::{self, Want};
use image_builder::lock::{Lock, LockedArch};
use image_builder::mirror::{MirrorOptions, Mirrors};
use image_builder::pin::Pinner;
use image_builder::progress::Progress;
use image_builder::resolved::{Boot, Disk, Resolved, Units, User};
use image_builder::rootfs::{self, Inputs, Rootfs};
use image_builder::store::{Store, hash_reader};
use image_builder::tools::{Purpose, ToolsRoot};
use image_builder::tree::Node;
use image_builder::{erofs, mirror};
use std::collections::BTreeMap;
use std::path::Path;

/// What a small image asks for.
const PACKAGES: [&str; 29] = [
    "base-files",
    "base-passwd",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "dbus",
    "e2fsprogs",
    "findutils",
    "grep",
    "hostname",
    "iproute2",
    "iputils-ping",
    "kmod",
    "less",
    "libc-bin",
    "libpam-systemd",
    "login",
    "mawk",
    "ncurses-base",
    "netbase",
    "openssh-server",
    "passwd",
    "procps",
    "sed",
    "systemd",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
];
const EPOCH: u64 = 1_735_689_600;

fn profile(arch: Arch) -> Resolved {
    Resolved {
        device: DeviceProfile {
            profile: "test".into(),
            version: "1".into(),
            product: "test".into(),
            arch,
            board: "vm".into(),
            layers: Vec::new(),
            health: Vec::new(),
            ha: None,
            update: None,
        },
        packages: PACKAGES.iter().map(|name| ((*name).to_owned(), "test 1".to_owned())).collect(),
        debian: debian(arch),
        artefacts: Vec::new(),
        files: Vec::new(),
        units: Units { enable: vec!["getty@.service".into()], ..Units::default() },
        users: vec![User {
            name: "op".into(),
            groups: vec!["adm".into()],
            shell: "/bin/bash".into(),
            password_hash: None,
            ssh_keys: vec!["ssh-ed25519 AAAA test".into()],
        }],
        boot: Boot {
            kernel_package: format!("linux-image-cloud-{}", arch.debian()),
            initrd_modules: ["erofs", "dm-verity", "virtio_blk", "ext4"].map(str::to_owned).to_vec(),
            kernel_args: Vec::new(),
            watchdog_s: None,
            keep_modules: Vec::new(),
            menu_s: 0,
            device_tree: None,
        },
        disk: Disk::default(),
    }
}

struct Bench {
    store: Store,
    tools: ToolsRoot,
    lock: Lock,
}

impl Bench {
    fn new() -> Self {
        let store = store();
        let mirrors = Mirrors::find(&MirrorOptions::default(), Path::new("/")).unwrap();
        let (progress, artefacts) = (Progress::stderr(), BTreeMap::new());
        let pinner = Pinner {
            store: &store,
            mirrors: &mirrors,
            snapshot: false,
            folders: &[],
            artefacts: &artefacts,
            progress: &progress,
        };
        let profiles = Arch::ALL.map(profile);
        let lock = pinner.lock(&profiles, None).unwrap_or_else(|error| panic!("{error:#}"));
        let again = pinner.lock(&profiles, Some(&lock)).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(lock, again, "locking again changes nothing");
        let tools = lock.tools.get(&Arch::host().unwrap()).unwrap();
        let tools = pinner.open_tools(Purpose::Build, tools).unwrap();
        Self { store, tools, lock }
    }

    fn assemble(&self, arch: Arch) -> Rootfs {
        let (resolved, progress) = (profile(arch), Progress::stderr());
        let inputs = Inputs {
            resolved: &resolved,
            locked: &self.lock.arch[&arch],
            store: &self.store,
            tools: &self.tools,
            progress: &progress,
        };
        rootfs::assemble(&inputs).unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// Digest and length of the image: whole images would not fit the memory that a build may take.
fn image(bench: &Bench, rootfs: &Rootfs, path: &Path) -> (Digest, u64) {
    let identity = erofs::Identity { uuid: "0e54b6e2-6f4a-4d0c-8d2c-3f8c5a1b7d90".into(), epoch: EPOCH };
    erofs::make(&rootfs.tree, &rootfs.ids, &identity, &bench.tools, path).unwrap_or_else(|e| panic!("{e:#}"));
    erofs::check(path, &bench.tools).unwrap_or_else(|e| panic!("{e:#}"));
    hash_reader(&mut std::fs::File::open(path).unwrap()).unwrap()
}

#[test]
#[ignore = "downloads packages of both processors"]
fn both_architectures_become_clean_identical_images() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    for arch in Arch::ALL {
        let started = std::time::Instant::now();
        let rootfs = bench.assemble(arch);
        let assembled = started.elapsed();
        let first = image(&bench, &rootfs, &dir.path().join(format!("{arch}-1")));
        eprintln!(
            "{arch}: {} packages, {} paths, {} MiB, SHA-256 {}, assembled in {:.1} s, image and check after {:.1} s",
            rootfs.packages.len(),
            rootfs.tree.len(),
            first.1 >> 20,
            first.0,
            assembled.as_secs_f64(),
            started.elapsed().as_secs_f64()
        );
        let second = image(&bench, &bench.assemble(arch), &dir.path().join(format!("{arch}-2")));
        assert!(first == second, "{arch}: two builds differ");
        looks_like_a_system(&rootfs, arch);
        needs_are_met(&rootfs);
    }
}

fn text(rootfs: &Rootfs, path: &str) -> String {
    let data = rootfs.tree.file(path).unwrap_or_else(|| panic!("no {path}"));
    String::from_utf8(data.bytes(16 << 20).unwrap()).unwrap()
}

fn looks_like_a_system(rootfs: &Rootfs, arch: Arch) {
    let tree = &rootfs.tree;
    for path in ["/usr/lib/systemd/systemd", "/bin/sh", "/sbin/init", "/usr/bin/awk", "/usr/sbin/sshd"] {
        assert!(tree.file(path).is_some(), "{arch}: {path}");
    }
    let absent = debian(arch).absent;
    assert!(rootfs.packages.iter().all(|package| !absent.contains_key(&package.name)), "{arch}");
    for path in ["/usr/bin/dpkg", "/usr/bin/perl", "/usr/bin/apt"] {
        assert!(tree.get(path).is_none(), "{arch}: {path}");
    }
    assert!(text(rootfs, "/etc/passwd").contains("op:x:1000:1000::/home/op:/bin/bash"));
    assert!(text(rootfs, "/etc/passwd").contains("messagebus:x:"));
    assert!(text(rootfs, "/etc/ssl/certs/ca-certificates.crt").matches("BEGIN CERTIFICATE").count() > 100);
    let hashes = tree.below("/etc/ssl/certs").filter(|(path, _)| path.ends_with(".0")).count();
    assert!(hashes > 100, "{arch}: {hashes} links by subject hash");
    for link in ["multi-user.target.wants/ssh.service", "getty.target.wants/getty@tty1.service"] {
        assert!(tree.get(&format!("/etc/systemd/system/{link}")).is_some(), "{arch}: {link}");
    }
    assert_eq!(tree.below("/var").count(), 0);
    let order = rootfs.kernel.closure(&profile(arch).boot.initrd_modules).unwrap();
    assert!(order.iter().any(|module| module.name() == "dm_verity"), "{arch}: {}", rootfs.kernel.release);
    assert!(!rootfs.kernel.vmlinuz.is_empty());
    assert!(rootfs.packages.iter().filter(|package| !package.licences.is_empty()).count() > 50);
}

/// Scripts find their interpreters and links their targets, so that leaving packages out broke nothing.
fn needs_are_met(rootfs: &Rootfs) {
    let tree = &rootfs.tree;
    let mut broken = Vec::new();
    for (path, entry) in tree.iter() {
        let Node::File(data) = &entry.node else { continue };
        if entry.mode & 0o111 == 0 || data.len() > 1 << 20 || path.starts_with("/usr/share/doc") {
            continue;
        }
        let bytes = data.bytes(1 << 20).unwrap();
        let Some(rest) = bytes.strip_prefix(b"#!") else { continue };
        let line = String::from_utf8_lossy(rest.split(|b| *b == b'\n').next().unwrap()).into_owned();
        let mut words = line.split_whitespace();
        let interpreter = match (words.next(), words.next()) {
            (Some("/usr/bin/env"), Some(name)) => format!("/usr/bin/{name}"),
            (Some(interpreter), _) => interpreter.to_owned(),
            (None, _) => continue,
        };
        if tree.file(&interpreter).is_none() {
            broken.push(format!("{path} (from {}): {interpreter}", entry.origin));
        }
    }
    assert!(broken.is_empty(), "scripts without interpreter:\n{}", broken.join("\n"));
    let sshd = tree.file("/usr/sbin/sshd").unwrap().bytes(32 << 20).unwrap();
    assert!(needed(&sshd).iter().any(|name| name == "libc.so.6"));
    assert!(missing_libraries(rootfs).is_empty(), "{}", missing_libraries(rootfs).join("\n"));
}

/// Libraries that programs name and the image does not have, by a reader of ELF dynamic sections (elf(5)).
fn missing_libraries(rootfs: &Rootfs) -> Vec<String> {
    let names: std::collections::BTreeSet<&str> =
        rootfs.tree.iter().map(|(path, _)| path.rsplit('/').next().unwrap()).collect();
    let mut missing = Vec::new();
    for (path, entry) in rootfs.tree.iter().filter(|(path, _)| !path.contains("/modules/")) {
        let Node::File(data) = &entry.node else { continue };
        if data.len() < 64 || data.len() > 32 << 20 {
            continue;
        }
        let bytes = data.bytes(32 << 20).unwrap();
        for needed in needed(&bytes) {
            if !names.contains(needed.as_str()) {
                missing.push(format!("{path} (from {}) needs {needed}", entry.origin));
            }
        }
    }
    missing
}

/// `DT_NEEDED` of a 64-bit little-endian ELF file; nothing for other files.
fn needed(elf: &[u8]) -> Vec<String> {
    let u64_at = |at: usize| elf.get(at..at + 8).map(|b| u64::from_le_bytes(b.try_into().unwrap()) as usize);
    let u32_at = |at: usize| elf.get(at..at + 4).map(|b| u32::from_le_bytes(b.try_into().unwrap()) as usize);
    let u16_at = |at: usize| elf.get(at..at + 2).map(|b| u16::from_le_bytes(b.try_into().unwrap()) as usize);
    let read = || -> Option<Vec<String>> {
        (elf.get(..6)? == b"\x7fELF\x02\x01").then_some(())?;
        let (table, size, count) = (u64_at(40)?, u16_at(58)?, u16_at(60)?);
        // SHT_DYNAMIC is 6; its link is the section of its strings.
        let section = (0..count).map(|n| table + n * size).find(|at| u32_at(at + 4) == Some(6))?;
        let (offset, length) = (u64_at(section + 24)?, u64_at(section + 32)?);
        let strings = u64_at(table + u32_at(section + 40)? * size + 24)?;
        let entries = (offset..offset + length).step_by(16);
        // DT_NEEDED is 1.
        let names = entries.filter(|at| u64_at(*at) == Some(1)).filter_map(|at| {
            let name = elf.get(strings + u64_at(at + 8)?..)?;
            Some(String::from_utf8_lossy(name.split(|b| *b == 0).next()?).into_owned())
        });
        Some(names.collect())
    };
    read().unwrap_or_default()
}

#[test]
#[ignore = "downloads packages of both processors"]
fn a_warm_cache_needs_no_network_and_a_changed_lock_says_what() {
    let bench = Bench::new();
    let locked: &LockedArch = &bench.lock.arch[&Arch::X86_64];
    let mut nowhere = locked.clone();
    nowhere.mirrors.values_mut().for_each(|url| *url = "http://127.0.0.1:9".into());
    let wants = Want::locked(&nowhere).unwrap();
    fetch::fetch(&bench.store, &wants, &[], &Progress::quiet()).unwrap();
    // The same lock with one package that nobody has any more.
    let mut drifted = locked.clone();
    drifted.packages[0].sha256 = "0".repeat(64);
    drifted.packages[0].path = "pool/main/gone.deb".into();
    assert!(drifted.mirrors.contains_key(mirror::ARCHIVE));
    let wants = Want::locked(&drifted).unwrap();
    let error = fetch::fetch(&bench.store, &wants, &[], &Progress::quiet()).unwrap_err().to_string();
    let package = &drifted.packages[0];
    assert!(error.starts_with(&format!("package {} {}", package.name, package.version)), "{error}");
    assert!(error.contains("is not there") && error.contains("`farhold lock` makes a new lock"), "{error}");
}
