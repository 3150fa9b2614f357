//! Bakes the same package set with `farhold` and with mkosi and prints ratios: first build, one changed file, unchanged;
//! and the same profile for the other processor beside this machine's.
//!
//! Both start from warm package caches and end at a bootable disk image with an EROFS root on dm-verity. mkosi runs in
//! a Debian 13 tree of its own, made by mmdebstrap, so that the host's versions do not matter. Needs root for mkosi.

use anyhow::{Context, Result, bail, ensure};
use formats::arch::Arch;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROFILE: &str = "recipes/profiles/edge-minimal.yaml";
const PEER_PACKAGES: &str = "mkosi,apt,debian-archive-keyring,systemd,systemd-container,systemd-repart,systemd-ukify,\
systemd-boot,systemd-boot-efi,erofs-utils,cryptsetup-bin,dosfstools,mtools,kmod,cpio,zstd,xz-utils,e2fsprogs,python3,\
bubblewrap,uidmap,openssl,util-linux,ca-certificates";
/// Enters the peer's tree with its own mount namespace; the tree must be a mount point for mkosi's sandbox.
const ENTER: &str = "set -e; mount --bind \"$1\" \"$1\"; for m in proc sys dev; do mount --rbind /$m \"$1/$m\"; done; \
cd \"$1\"; mkdir -p old; pivot_root . old; umount -l /old; cd /; shift; exec \"$@\"";

struct Bench {
    root: PathBuf,
    work: PathBuf,
    cache: PathBuf,
}

/// Wall-clock time of the three builds.
struct Times {
    first: Duration,
    changed: Duration,
    unchanged: Duration,
}

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("workspace folder")?.to_owned();
    let work = root.join("build/bench-bake");
    fs::create_dir_all(&work)?;
    let bench = Bench { cache: work.join("cache"), root, work };
    bench.processors()?;
    let (ours, peak) = bench.farhold()?;
    println!(
        "farhold  first {:.1?}  one changed file {:.1?}  unchanged {:.2?}",
        ours.first, ours.changed, ours.unchanged
    );
    println!("farhold  peak memory of the program itself {} MiB (reach <= 256)", peak >> 20);
    let peer = bench.mkosi()?;
    println!(
        "mkosi    first {:.1?}  one changed file {:.1?}  unchanged {:.2?}",
        peer.first, peer.changed, peer.unchanged
    );
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!("ratio    first {:.2} (reach <= 0.70)", ratio(ours.first, peer.first));
    println!("ratio    one changed file {:.2} (reach <= 0.25)", ratio(ours.changed, peer.changed));
    println!(
        "unchanged {:.2?} (reach <= 1 s), ratio {:.3}",
        ours.unchanged,
        ratio(ours.unchanged, peer.unchanged)
    );
    Ok(())
}

impl Bench {
    /// A copy of the recipes, so that one file can be changed.
    fn recipes(&self) -> Result<PathBuf> {
        let copy = self.work.join("tree");
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        fs::create_dir_all(&copy)?;
        for folder in ["recipes", "x86_64", "arm64"] {
            run(Command::new("cp").arg("-r").arg(self.root.join(folder)).arg(&copy))?;
        }
        Ok(copy)
    }

    /// First builds for the two processors, for the board that the profile names: one general kernel each.
    fn processors(&self) -> Result<()> {
        let own = Arch::host().context("no images for this machine's processor")?;
        let mut seconds = Vec::new();
        for arch in [own].into_iter().chain(Arch::ALL.into_iter().filter(|arch| *arch != own)) {
            let (took, steps) = self.first_build(arch)?;
            println!("{arch:7}  first {:.1?}  {steps}", took);
            seconds.push(took.as_secs_f64());
        }
        println!("ratio    foreign to own {:.2} (reach <= 2.50)", seconds[1] / seconds[0]);
        Ok(())
    }

    /// Wall-clock time of a build from packages as downloaded, and its steps, the longest first.
    fn first_build(&self, arch: Arch) -> Result<(Duration, String)> {
        let farhold = |verb: &str| {
            let mut command = Command::new(self.root.join("target/release/farhold"));
            command.env("FARHOLD_CACHE", &self.cache).arg(verb);
            command
        };
        let (lock, keys) = (self.work.join(format!("{arch}.lock")), self.work.join("keys"));
        let out = self.work.join(format!("out-{arch}"));
        if !keys.exists() {
            run(farhold("keys").arg("new").arg(&keys))?;
        }
        let programs = self.root.join("target").join(arch.name());
        ensure!(programs.exists(), "{} is missing: run `make programs-{arch}` first", programs.display());
        let profile = self.root.join(PROFILE);
        let options = ["--arch", arch.name()];
        run(farhold("lock")
            .arg(&profile)
            .args(options)
            .arg("--store")
            .arg(&programs)
            .arg("--out")
            .arg(&lock))?;
        forget_steps(&self.cache)?;
        let mut command = farhold("build");
        command.arg(&profile).args(options).arg("--lock").arg(&lock).arg("--keys").arg(&keys).arg("--out");
        let took = timed(command.arg(&out))?;
        let facts: serde_json::Value = serde_json::from_slice(&fs::read(out.join("build.json"))?)?;
        let steps = facts["steps"].as_array().context("build.json has no steps")?;
        let mut steps: Vec<(f64, &str)> = steps
            .iter()
            .filter_map(|step| Some((step["seconds"].as_f64()?, step["step"].as_str()?)))
            .collect();
        steps.sort_by(|a, b| b.0.total_cmp(&a.0));
        let steps: Vec<String> =
            steps.iter().map(|(seconds, step)| format!("{step} {seconds:.1} s")).collect();
        fs::remove_dir_all(&out)?;
        Ok((took, steps.join(", ")))
    }

    fn farhold(&self) -> Result<(Times, u64)> {
        let tree = self.recipes()?;
        let out = self.work.join("out");
        let lock = self.work.join("bench.lock");
        let keys = self.work.join("keys");
        let farhold = |verb: &str| {
            let mut command = Command::new(self.root.join("target/release/farhold"));
            command.env("FARHOLD_CACHE", &self.cache).arg(verb);
            command
        };
        if !keys.exists() {
            run(farhold("keys").arg("new").arg(&keys))?;
        }
        let agent = format!("farhold-agent={}", self.root.join("target/release/farhold-agent").display());
        let init = format!("farhold-init={}", find_init(&self.root)?.display());
        let artefacts = ["--artefact", &agent, "--artefact", &init];
        run(farhold("lock")
            .arg(tree.join(PROFILE))
            .args(["--board", "vm", "--out"])
            .arg(&lock)
            .args(artefacts))?;
        let build = || -> Result<Duration> {
            let mut command = farhold("build");
            command.arg(tree.join(PROFILE)).args(["--arch", "x86_64", "--board", "vm", "--lock"]).arg(&lock);
            timed(command.arg("--keys").arg(&keys).arg("--out").arg(&out).args(artefacts))
        };
        build()?;
        forget_steps(&self.cache)?;
        fs::remove_dir_all(&out)?;
        let first = build()?;
        let file = tree
            .join("recipes/packs/ssh")
            .join(only_entry(&tree.join("recipes/packs/ssh"))?)
            .join("files/etc/issue.net");
        fs::create_dir_all(file.parent().context("folder of the changed file")?)?;
        fs::write(&file, "changed\n")?;
        let changed = build()?;
        let facts: serde_json::Value = serde_json::from_slice(&fs::read(out.join("build.json"))?)?;
        let peak = facts["peak_memory_bytes"].as_u64().context("build.json has no peak_memory_bytes")?;
        let unchanged = build()?;
        Ok((Times { first, changed, unchanged }, peak))
    }

    fn mkosi(&self) -> Result<Times> {
        ensure!(nix::unistd::geteuid().is_root(), "the mkosi side needs root: run `sudo make bench`");
        let tree = self.work.join("peer");
        let sources = debian_sources()?;
        if !tree.join("usr/bin/mkosi").exists() {
            let mut command = Command::new("mmdebstrap");
            command.args(["--mode=root", "--variant=apt", "--aptopt=APT::Install-Recommends \"false\""]);
            command.arg(format!("--include={PEER_PACKAGES}")).arg("trixie").arg(&tree);
            run(command.args(sources.iter().map(|(uri, suite)| format!("deb {uri} {suite} main"))))?;
        }
        let conf = tree.join("bench/conf");
        self.mkosi_config(&conf, &sources)?;
        let build = |force: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--propagation", "private", "bash", "-c", ENTER, "enter"]).arg(&tree);
            timed(command.args(["mkosi", "-C", "/bench/conf"]).args(force).arg("build"))
        };
        build(&["-f"])?;
        let first = build(&["-f", "-f"])?;
        fs::create_dir_all(conf.join("mkosi.extra/etc"))?;
        fs::write(conf.join("mkosi.extra/etc/issue.net"), "changed\n")?;
        let changed = build(&["-f"])?;
        let unchanged = build(&["-f"])?;
        Ok(Times { first, changed, unchanged })
    }

    /// The package set of the lock, an EROFS root with verity, systemd-boot and a UKI, incremental.
    fn mkosi_config(&self, conf: &Path, sources: &[(String, String)]) -> Result<()> {
        if conf.exists() {
            fs::remove_dir_all(conf)?;
        }
        let lock: serde_json::Value = serde_json::from_slice(&fs::read(self.work.join("bench.lock"))?)?;
        let names: Vec<&str> = lock["arch"]["x86_64"]["requested"]
            .as_array()
            .context("the lock names no packages")?
            .iter()
            .filter_map(|name| name.as_str())
            .chain(["systemd-boot", "systemd-boot-efi"])
            .collect();
        let write = |path: &str, text: String| -> Result<()> {
            let path = conf.join(path);
            fs::create_dir_all(path.parent().context("folder")?)?;
            Ok(fs::write(path, text)?)
        };
        for folder in ["cache", "pkg", "out"] {
            fs::create_dir_all(conf.with_file_name(folder))?;
        }
        write(
            "mkosi.conf",
            format!(
                "[Distribution]\nDistribution=debian\nRelease=trixie\nArchitecture=x86-64\n\
                 [Output]\nFormat=disk\nImageId=bench\nImageVersion=1.0.0\nOutputDirectory=/bench/out\n\
                 [Build]\nIncremental=yes\nCacheDirectory=/bench/cache\nPackageCacheDirectory=/bench/pkg\nWorkspaceDirectory=/bench/cache\n\
                 [Content]\nBootable=yes\nBootloader=systemd-boot\nUnifiedKernelImages=yes\nWithDocs=no\nCleanPackageMetadata=yes\n\
                 KernelCommandLine=console=ttyS0\nPackages={}\n",
                names.join("\n ")
            ),
        )?;
        write(
            "mkosi.repart/00-esp.conf",
            "[Partition]\nType=esp\nFormat=vfat\nCopyFiles=/boot:/\nCopyFiles=/efi:/\nSizeMinBytes=512M\nSizeMaxBytes=512M\n".into(),
        )?;
        write(
            "mkosi.repart/10-root.conf",
            "[Partition]\nType=root\nFormat=erofs\nCopyFiles=/\nVerity=data\nVerityMatchKey=root\nMinimize=best\n".into(),
        )?;
        write(
            "mkosi.repart/20-verity.conf",
            "[Partition]\nType=root-verity\nVerity=hash\nVerityMatchKey=root\nMinimize=best\n".into(),
        )?;
        let list: String = sources
            .iter()
            .map(|(uri, suite)| {
                format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {uri} {suite} main\n")
            })
            .collect();
        // mkosi writes this file itself, with a suite of debug symbols that mirrors may lack, unless it is given.
        write("mkosi.pkgmngr/etc/apt/sources.list.d/mkosi.sources", String::new())?;
        write("mkosi.pkgmngr/etc/apt/sources.list.d/bench.list", list)
    }
}

/// The mirrors of this machine with the suites of Debian 13.
fn debian_sources() -> Result<Vec<(String, String)>> {
    let mut archive = None;
    let mut security = None;
    let lists = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    for path in lists.chain([PathBuf::from("/etc/apt/sources.list")]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for word in text.lines().filter(|l| !l.trim_start().starts_with('#')).flat_map(str::split_whitespace)
        {
            let base = word.trim_end_matches('/');
            match base.rsplit('/').next() {
                Some("debian") if word.contains("://") => archive = Some(base.to_owned()),
                Some("debian-security") if word.contains("://") => security = Some(base.to_owned()),
                _ => {}
            }
        }
    }
    let (Some(archive), Some(security)) = (archive, security) else {
        bail!("no Debian mirror among this machine's apt sources: the mkosi side needs one");
    };
    Ok(vec![
        (archive.clone(), "trixie".into()),
        (archive, "trixie-updates".into()),
        (security, "trixie-security".into()),
    ])
}

/// Drops what builds derived; keeps packages as downloaded and the unpacked tools, as mkosi keeps its tree.
fn forget_steps(cache: &Path) -> Result<()> {
    for entry in fs::read_dir(cache.join("derived"))? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with("tools-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn find_init(root: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(root.join("target/init")).context("run `make programs` first")? {
        let path = entry?.path().join("image/farhold-init");
        if path.exists() {
            return Ok(path);
        }
    }
    bail!("no farhold-init below target/init: run `make programs` first")
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(folder)?.next().context("empty folder")??;
    Ok(entry.file_name().into())
}

fn timed(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    run(command)?;
    Ok(start.elapsed())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    let tail = String::from_utf8_lossy(&output.stderr);
    let tail: Vec<&str> = tail.lines().rev().take(15).collect();
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        tail.into_iter().rev().collect::<Vec<_>>().join("\n")
    );
    Ok(())
}
