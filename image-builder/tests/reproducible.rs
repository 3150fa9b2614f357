//! Builds a real Debian 13 disk twice, in two folders and two caches, and compares bytes; then what a second, a changed
//! and a damaged one do. Packages come from the user's cache, the first time from a mirror; each build has its own cache
//! of outputs all the same.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

mod common;

use common::{debian, store};
use formats::arch::Arch;
use formats::device::DeviceProfile;
use image_builder::execute::report::Report;
use image_builder::execute::{self, Build, Options};
use image_builder::lock::Lock;
use image_builder::mirror::{MirrorOptions, Mirrors};
use image_builder::pin::Pinner;
use image_builder::plan::{self, Facts, StepName};
use image_builder::progress::Progress;
use image_builder::resolved::{Artefact, Boot, Disk, FileContent, ImageFile, Install, Resolved, Units};
use image_builder::store::Store;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const EPOCH: u64 = 1_767_225_600;

fn profile(arch: Arch) -> Resolved {
    let packages =
        ["base-files", "base-passwd", "bash", "coreutils", "kmod", "systemd", "systemd-sysv", "udev"];
    let console = if arch == Arch::X86_64 { "console=ttyS0" } else { "console=ttyAMA0" };
    Resolved {
        device: DeviceProfile {
            profile: "test".into(),
            version: "1.0.0".into(),
            product: "test".into(),
            arch,
            board: "vm".into(),
            layers: Vec::new(),
            health: Vec::new(),
            ha: None,
            update: None,
        },
        packages: packages.iter().map(|name| ((*name).to_owned(), "test 1".to_owned())).collect(),
        debian: debian(arch),
        artefacts: vec![Artefact {
            name: "farhold-init".into(),
            origin: "test 1".into(),
            url: None,
            sha256: None,
            size: None,
            install: Install::Init,
        }],
        files: vec![file("first")],
        units: Units::default(),
        users: Vec::new(),
        boot: Boot {
            kernel_package: format!("linux-image-cloud-{}", arch.debian()),
            initrd_modules: ["virtio_blk", "dm-verity", "erofs", "ext4"].map(str::to_owned).to_vec(),
            kernel_args: vec![console.to_owned()],
            watchdog_s: None,
            keep_modules: vec!["fs/*".into()],
            menu_s: 0,
            device_tree: None,
        },
        disk: Disk { esp_mib: Some(256), slot_mib: None, state_mib: None },
    }
}

fn file(text: &str) -> ImageFile {
    ImageFile {
        path: "/etc/test.conf".into(),
        mode: 0o644,
        owner: ("root".into(), "root".into()),
        content: FileContent::Text { text: text.to_owned() },
        origin: "test 1".into(),
    }
}

/// The init of `FARHOLD_TEST_INIT_<arch>`, or an ELF header in its place: what it does matters only in a boot.
fn init(dir: &Path, arch: Arch) -> PathBuf {
    let given = std::env::var_os(format!("FARHOLD_TEST_INIT_{arch}"));
    given.map_or_else(
        || {
            let path = dir.join(format!("init-{arch}"));
            let mut elf = b"\x7fELF\x02\x01".to_vec();
            elf.resize(64, 0);
            elf[18] = if arch == Arch::X86_64 { 62 } else { 183 };
            std::fs::write(&path, elf).unwrap();
            path
        },
        PathBuf::from,
    )
}

/// Packages of one processor in a cache, and a lock of them, made once.
struct Packages {
    cache: PathBuf,
    lock: Lock,
    init: PathBuf,
    _dir: tempfile::TempDir,
}

fn packages(arch: Arch) -> &'static Packages {
    static X86_64: OnceLock<Packages> = OnceLock::new();
    static ARM64: OnceLock<Packages> = OnceLock::new();
    let packages = match arch {
        Arch::X86_64 => &X86_64,
        Arch::Arm64 => &ARM64,
    };
    packages.get_or_init(|| lock_packages(arch))
}

fn lock_packages(arch: Arch) -> Packages {
    let dir = tempfile::tempdir().unwrap();
    let store = store();
    let mirrors = Mirrors::find(&MirrorOptions::default(), Path::new("/")).unwrap();
    let init = init(dir.path(), arch);
    let pinner = Pinner {
        store: &store,
        mirrors: &mirrors,
        snapshot: false,
        folders: &[],
        artefacts: &BTreeMap::from([("farhold-init".into(), init.clone())]),
        progress: &Progress::stderr(),
    };
    let lock = pinner.lock(&[profile(arch)], None).unwrap_or_else(|error| panic!("{error:#}"));
    Packages { cache: store.root().to_owned(), lock, init, _dir: dir }
}

/// A machine that builds: its own cache of outputs, packages by links to the shared ones.
struct Machine {
    dir: tempfile::TempDir,
    store: Store,
    packages: &'static Packages,
}

impl Machine {
    fn new(arch: Arch) -> Self {
        let packages = packages(arch);
        let dir = tempfile::tempdir_in(packages.cache.join("scratch")).unwrap();
        let store = Store::open(&dir.path().join("cache")).unwrap();
        link_tree(&packages.cache.join("objects"), &store.root().join("objects"));
        Self { dir, store, packages }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    fn build(&self, resolved: &Resolved) -> anyhow::Result<Report> {
        let options = Options {
            out: self.out(),
            folders: Vec::new(),
            artefacts: BTreeMap::from([("farhold-init".into(), self.packages.init.clone())]),
            offline: true,
            secure_boot: None,
            epoch: EPOCH,
        };
        let locked = &self.packages.lock.arch[&resolved.arch()];
        let tools = &self.packages.lock.tools[&Arch::host().unwrap()];
        let facts = Facts {
            resolved,
            locked,
            tools: &tools.packages,
            copied: &BTreeMap::new(),
            builder: formats::hex::Digest([0; 32]),
            epoch: EPOCH,
            secure_boot: None,
            release: None,
        };
        let progress = Progress::quiet();
        let build = Build {
            resolved,
            locked,
            tools,
            release: None,
            store: &self.store,
            options: &options,
            progress: &progress,
        };
        execute::run(&build, &plan::plan(&facts))
    }

    fn built(&self, resolved: &Resolved) -> Report {
        self.build(resolved).unwrap_or_else(|error| panic!("{error:#}"))
    }
}

fn link_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link_tree(&entry.path(), &target);
        } else {
            std::fs::hard_link(entry.path(), target).unwrap();
        }
    }
}

fn digests(report: &Report) -> BTreeMap<String, String> {
    report.files.iter().map(|file| (file.path.clone(), file.sha256.to_string())).collect()
}

fn redone(report: &Report) -> Vec<StepName> {
    report.steps.iter().filter(|step| !step.cached).map(|step| step.step).collect()
}

#[test]
#[ignore = "downloads packages of both processors"]
fn two_machines_make_the_same_bytes() {
    for arch in Arch::ALL {
        let resolved = profile(arch);
        let (first, second) = (Machine::new(arch), Machine::new(arch));
        let (one, two) = (first.built(&resolved), second.built(&resolved));
        eprintln!("{}", one.text(&first.out()));
        assert_eq!(digests(&one), digests(&two), "{arch}");
        assert!(one.files.iter().any(|file| file.path == "disk.img"));
        assert!(one.peak_memory_bytes < 256 << 20, "{arch}: {} MiB", one.peak_memory_bytes >> 20);
    }
}

#[test]
fn an_unchanged_build_touches_nothing_and_a_changed_file_redoes_what_follows() {
    let machine = Machine::new(Arch::X86_64);
    let mut resolved = profile(Arch::X86_64);
    let first = machine.built(&resolved);
    let disk = || std::fs::metadata(machine.out().join("disk.img")).unwrap();
    let before = disk();

    let again = machine.built(&resolved);
    assert_eq!(redone(&again), []);
    assert_eq!((disk().ino(), disk().mtime_nsec()), (before.ino(), before.mtime_nsec()));

    resolved.files = vec![file("second")];
    let changed = machine.built(&resolved);
    assert_eq!(redone(&changed), [StepName::Root, StepName::Verity, StepName::Uki, StepName::Disk]);

    resolved.files = vec![file("first")];
    let back = machine.built(&resolved);
    assert_eq!(redone(&back), [StepName::Disk]);
    assert_eq!(digests(&back), digests(&first));
}

#[test]
fn a_damaged_output_is_written_again() {
    let machine = Machine::new(Arch::X86_64);
    let resolved = profile(Arch::X86_64);
    let first = machine.built(&resolved);
    std::fs::write(machine.out().join("disk.img"), b"damaged").unwrap();
    let again = machine.built(&resolved);
    assert_eq!(redone(&again), [StepName::Disk]);
    assert_eq!(digests(&again), digests(&first));
}

#[test]
fn an_image_too_large_for_its_slot_leaves_the_earlier_output_alone() {
    let machine = Machine::new(Arch::X86_64);
    let mut resolved = profile(Arch::X86_64);
    let first = machine.built(&resolved);
    resolved.disk.slot_mib = Some(16);
    let error = format!("{:#}", machine.build(&resolved).unwrap_err());
    assert!(error.starts_with("each slot has 16 MiB, of which"), "{error}");
    assert!(first.files.iter().all(|file| file.is_untouched(&machine.out())));
}
