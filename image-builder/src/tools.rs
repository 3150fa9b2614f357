//! Tools roots: pinned Debian packages unpacked in the cache, never configured, whose programs are started through
//! their own dynamic loader. So the bytes of an image do not depend on what the builder's machine has installed.
//!
//! Knows nothing of images; who calls a tool knows its arguments.

pub mod command;

use crate::deb;
use crate::lock::LockedPackage;
use crate::progress::Progress;
use crate::store::Store;
use anyhow::{Context, Result, anyhow, bail};
use command::ToolCommand;
use formats::arch::Arch;
use formats::hex::Digest;
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Changes when the way of unpacking a tools root changes.
const LAYOUT: &str = "tools root 1";
/// Folders that no tool reads.
const SKIP: [&str; 9] = [
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/locale/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/bash-completion/",
    "usr/share/bug/",
    "usr/share/icons/",
    "usr/share/applications/",
];

/// What a tools root is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Making images.
    Build,
    /// Booting them in QEMU.
    Lab,
    /// Compiling the device's programs for the other processor.
    Rust,
}

impl Purpose {
    /// Name in caches and options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Lab => "lab",
            Self::Rust => "rust",
        }
    }
    /// Debian packages of the host's architecture; what they depend on is added.
    pub const fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Build => &[
                "cryptsetup-bin",
                "dosfstools",
                "e2fsprogs",
                "erofs-utils",
                "kmod",
                "mtools",
                "openssl",
                "sbsigntool",
            ],
            Self::Lab => {
                &["ovmf", "qemu-efi-aarch64", "qemu-system-arm", "qemu-system-x86", "qemu-utils", "ipxe-qemu"]
            }
            // The standard library; the compiler's own libraries come with it.
            Self::Rust => &["libstd-rust-web-dev"],
        }
    }
    /// Debian packages of the host's architecture that are taken alone.
    pub const fn alone(self) -> &'static [&'static str] {
        match self {
            Self::Build | Self::Lab => &[],
            // It depends on a C compiler, which this machine has.
            Self::Rust => &["rustc-web"],
        }
    }
    /// Debian packages that are taken once for every architecture of images, alone.
    pub const fn per_target(self) -> &'static [&'static str] {
        match self {
            Self::Build => &["systemd-boot-efi"],
            Self::Lab => &[],
            Self::Rust => &["libstd-rust-web-dev"],
        }
    }
    /// Whether a path of a package is unpacked.
    fn wants(self, path: &str) -> bool {
        if SKIP.iter().any(|folder| path.starts_with(folder)) {
            return false;
        }
        // These two packages hold every firmware variant, 385 MB and 150 MB of them; the lab boots these.
        let firmware = path.strip_prefix("usr/share/AAVMF/").or_else(|| path.strip_prefix("usr/share/OVMF/"));
        match firmware {
            Some(name) => FIRMWARE.contains(&name),
            None => !path.starts_with("usr/share/qemu-efi-aarch64/"),
        }
    }
}

/// UEFI firmware that the lab boots: code and empty variables, without and with Secure Boot.
const FIRMWARE: [&str; 8] = [
    "AAVMF_CODE.no-secboot.fd",
    "AAVMF_CODE.secboot.fd",
    "AAVMF_VARS.fd",
    "AAVMF_CODE.fd",
    "OVMF_CODE_4M.fd",
    "OVMF_CODE_4M.secboot.fd",
    "OVMF_VARS_4M.fd",
    "OVMF_VARS_4M.ms.fd",
];

/// A program of a tools root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tool {
    /// Makes EROFS images.
    MkfsErofs,
    /// Checks EROFS images.
    FsckErofs,
    /// Makes and checks dm-verity hash trees.
    Veritysetup,
    /// Checks FAT file systems.
    FsckVfat,
    /// Makes ext4 file systems.
    Mke2fs,
    /// Lists module dependencies.
    Depmod,
    /// Signs EFI programs.
    Sbsign,
    /// Checks signatures of EFI programs.
    Sbverify,
    /// Hashes certificates.
    Openssl,
    /// Emulates x86-64.
    QemuX86,
    /// Emulates 64-bit Arm.
    QemuArm,
    /// Makes disk images for QEMU.
    QemuImg,
}

impl Tool {
    /// Path below the root.
    const fn path(self) -> &'static str {
        match self {
            Self::MkfsErofs => "usr/bin/mkfs.erofs",
            Self::FsckErofs => "usr/bin/fsck.erofs",
            Self::Veritysetup => "usr/sbin/veritysetup",
            Self::FsckVfat => "usr/sbin/fsck.vfat",
            Self::Mke2fs => "usr/sbin/mke2fs",
            Self::Depmod => "usr/sbin/depmod",
            Self::Sbsign => "usr/bin/sbsign",
            Self::Sbverify => "usr/bin/sbverify",
            Self::Openssl => "usr/bin/openssl",
            Self::QemuX86 => "usr/bin/qemu-system-x86_64",
            Self::QemuArm => "usr/bin/qemu-system-aarch64",
            Self::QemuImg => "usr/bin/qemu-img",
        }
    }
    /// Name for messages.
    pub fn name(self) -> &'static str {
        let path = self.path();
        path.rsplit('/').next().unwrap_or(path)
    }
}

/// An unpacked tools root.
#[derive(Clone, Debug)]
pub struct ToolsRoot {
    path: PathBuf,
    arch: Arch,
}

impl ToolsRoot {
    /// The root of these packages for this machine, unpacked if it is not in the cache yet. The packages must be in
    /// the store.
    ///
    /// # Errors
    /// If the machine is of no known architecture, a package is missing or broken, or the cache cannot be written.
    pub fn open(
        store: &Store,
        purpose: Purpose,
        packages: &[LockedPackage],
        progress: &Progress,
    ) -> Result<Self> {
        let arch = Arch::host().ok_or_else(|| {
            anyhow!("no tools for a {} machine, only for x86_64 and arm64", std::env::consts::ARCH)
        })?;
        let path = store.derive(&format!("tools-{}", purpose.name()), &key(packages), |dir| {
            let bar = progress.items(&format!("unpack {} tools", purpose.name()), packages.len() as u64);
            link_merged(dir)?;
            for package in packages {
                unpack(store, purpose, package, dir)?;
                bar.add(1);
            }
            match purpose {
                Purpose::Rust => write_compiler(dir, arch),
                Purpose::Build | Purpose::Lab => Ok(()),
            }
        })?;
        Ok(Self { path, arch })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file of the root, as `usr/share/OVMF/OVMF_CODE_4M.fd`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn file(&self, below: &str) -> Result<PathBuf> {
        let path = self.path.join(below);
        if !path.exists() {
            bail!(
                "the tools root has no {below}: `farhold lock` with the newest packages, or tell the maintainers"
            );
        }
        Ok(path)
    }

    /// systemd-boot for a machine.
    ///
    /// # Errors
    /// If the root has none.
    pub fn systemd_boot(&self, arch: Arch) -> Result<PathBuf> {
        self.file(&format!("usr/lib/systemd/boot/efi/systemd-boot{}.efi", arch.efi()))
    }

    /// The EFI stub that UKIs for a machine start with.
    ///
    /// # Errors
    /// If the root has none.
    pub fn efi_stub(&self, arch: Arch) -> Result<PathBuf> {
        self.file(&format!("usr/lib/systemd/boot/efi/linux{}.efi.stub", arch.efi()))
    }

    /// Where the root's libraries are.
    pub fn libraries(&self) -> PathBuf {
        self.path.join("usr/lib").join(self.arch.triplet())
    }

    /// Program and first arguments that start a tool with the root's own libraries.
    fn start(&self, tool: Tool) -> Vec<OsString> {
        let libraries = self.libraries();
        let loader = loader(self.arch);
        let mut path = libraries.clone().into_os_string();
        for below in ["systemd", "pulseaudio"] {
            path.push(":");
            path.push(libraries.join(below));
        }
        let program = self.path.join(tool.path()).into_os_string();
        vec![libraries.join(loader).into_os_string(), "--library-path".into(), path, program]
    }

    /// How to start an emulator, with the folders in which it finds its ROMs.
    pub fn qemu(&self, tool: Tool) -> Vec<String> {
        let folders = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
        let roms = folders.iter().flat_map(|below| ["-L".into(), self.path.join(below).into_os_string()]);
        self.start(tool).into_iter().chain(roms).map(|word| word.to_string_lossy().into_owned()).collect()
    }

    /// A call of a tool, to be given arguments and run.
    pub fn command(&self, tool: Tool) -> ToolCommand {
        let libraries = self.libraries();
        let words = self.start(tool);
        let mut command = ToolCommand::new(tool, Path::new(&words[0]));
        command.args(&words[1..]);
        // OpenSSL has both paths compiled in; the host's must not be read.
        command.env("OPENSSL_CONF", "/dev/null").env("OPENSSL_MODULES", libraries.join("ossl-modules"));
        command
    }
}

/// File name of a processor's dynamic loader.
const fn loader(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "ld-linux-x86-64.so.2",
        Arch::Arm64 => "ld-linux-aarch64.so.1",
    }
}

/// Writes a program `rustc` at the top of the root that starts the compiler with the root's own libraries: cargo's
/// `RUSTC` must be one program. It finds the root by itself.
fn write_compiler(root: &Path, arch: Arch) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let path = root.join("rustc");
    let text = format!(
        "#!/bin/sh\nroot=$(dirname \"$(readlink -f \"$0\")\")\nlib=$root/usr/lib/{}\n\
         exec \"$lib/{}\" --library-path \"$lib\" \"$root/usr/bin/rustc\" \"$@\"\n",
        arch.triplet(),
        loader(arch)
    );
    let written =
        fs::write(&path, text).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    written.with_context(|| format!("write {}", path.display()))
}

fn key(packages: &[LockedPackage]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(LAYOUT);
    for package in packages {
        hasher.update(format!("\n{} {}", package.name, package.sha256));
    }
    Digest(hasher.finalize().into())
}

fn link_merged(root: &Path) -> Result<()> {
    for name in crate::tree::MERGED {
        fs::create_dir_all(root.join("usr").join(name)).context("make tools root")?;
        std::os::unix::fs::symlink(format!("usr/{name}"), root.join(name)).context("make tools root")?;
    }
    Ok(())
}

fn unpack(store: &Store, purpose: Purpose, package: &LockedPackage, root: &Path) -> Result<()> {
    let what = || format!("unpack tool package {} {}", package.name, package.version);
    let digest = Digest::parse(&package.sha256)
        .ok_or_else(|| anyhow!("`{}` is no SHA-256", package.sha256))
        .with_context(what)?;
    let path = store.get(&digest).ok_or_else(|| anyhow!("not in the cache")).with_context(what)?;
    let file = File::open(&path).with_context(what)?;
    deb::read(file, &mut OnDisk { root, purpose }).with_context(what)
}

/// Unpacks a package onto the disk, owned by whoever runs the build.
struct OnDisk<'a> {
    root: &'a Path,
    purpose: Purpose,
}

impl deb::Visitor for OnDisk<'_> {
    fn control(&mut self, _: &str, _: Vec<u8>) -> Result<()> {
        Ok(())
    }
    fn entry(&mut self, member: &deb::Member, data: &mut dyn std::io::Read) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let below = member.path.trim_start_matches('/');
        // `bin/x` is reached through the merged-usr links made before.
        let merged = below.split_once('/').is_some_and(|(top, _)| crate::tree::MERGED.contains(&top));
        let below = if merged { format!("usr/{below}") } else { below.to_owned() };
        if !self.purpose.wants(&below) || crate::tree::MERGED.contains(&below.as_str()) {
            return Ok(());
        }
        let path = self.root.join(&below);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        }
        let made = match &member.kind {
            deb::Kind::Dir => fs::create_dir_all(&path),
            deb::Kind::File => File::create_new(&path).and_then(|mut file| {
                std::io::copy(data, &mut file)?;
                file.set_permissions(fs::Permissions::from_mode(member.mode & 0o755 | 0o600))
            }),
            deb::Kind::Symlink(target) => std::os::unix::fs::symlink(target, &path),
            deb::Kind::Hardlink(first) => fs::hard_link(self.root.join(first.trim_start_matches('/')), &path),
        };
        match made {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
            made => made.with_context(|| format!("make {}", path.display())),
        }
    }
}
