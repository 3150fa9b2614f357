//! Disks of their own for the parties: ext4 on loop devices, in a mount namespace that the site's own one follows. Power that
//! goes takes every page that was not flushed, as the kernel's own way to shut a file system down does.

use super::net::hold_namespaces;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// `FS_IOC_SHUTDOWN` with `NOLOGFLUSH`, as xfstests cut power (linux/include/uapi/linux/fs.h).
const SHUT_DOWN: &str = "open my $disk, '<', $ARGV[0] or die \"$ARGV[0]: $!\"; \
    my $flags = pack 'L', 2; ioctl $disk, 0x8004587d, $flags or die \"shut down $ARGV[0]: $!\";";
/// A small one, mounted and taken off.
const TRY: &str = "set -e; truncate -s 8M $0/disk; mkfs.ext4 -q -F $0/disk; mkdir $0/on; mount -o loop $0/disk $0/on; umount $0/on";
/// The kernel writes nothing by itself for so long: what was not flushed is not on the disk.
const COMMIT_S: u32 = 300;

pub struct Disks {
    holder: Child,
}

impl Disks {
    /// Whether disks can be mounted here: root's alone, and not everywhere where one is root.
    pub fn possible() -> bool {
        let folder = tempfile::tempdir().unwrap();
        let tried = Command::new("unshare").args(["--mount", "sh", "-c", TRY]).arg(folder.path()).output();
        let tried = tried.expect("start `unshare` (Debian: util-linux)");
        if !tried.status.success() {
            let said = String::from_utf8_lossy(&tried.stderr);
            println!("skipped: no disk of its own can be mounted for a party: {}", said.trim());
        }
        tried.status.success()
    }

    pub fn new() -> Self {
        let hold = "mount --make-rshared / && echo ready && exec sleep 100000";
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--kill-child", "sh", "-c", hold]);
        let holder = hold_namespaces(&mut unshare);
        Self { holder }
    }

    /// A command where disks are mounted.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", program]);
        command
    }

    /// A new disk of so many MiB, mounted at this folder.
    pub fn add(&self, folder: &Path, mib: u64) {
        let image = folder.with_extension("disk");
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        let status = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&image).status();
        assert!(status.expect("start `mkfs.ext4` (Debian: e2fsprogs)").success(), "mkfs.ext4");
        self.mount(folder);
    }

    pub fn mount(&self, folder: &Path) {
        let options = format!("loop,commit={COMMIT_S}");
        let mut mount = self.inside("mount");
        mount.args(["-o", &options]).arg(folder.with_extension("disk")).arg(folder);
        assert!(mount.status().unwrap().success(), "mount {}", folder.display());
    }

    /// What this process wrote is on the disk, as on a machine that was set up long ago.
    pub fn flush(&self, folder: &Path) {
        assert!(self.inside("sync").arg("--file-system").arg(folder).status().unwrap().success());
    }

    /// What was not flushed is gone; nothing more can be written.
    pub fn cut(&self, folder: &Path) {
        let cut = self.inside("perl").args(["-e", SHUT_DOWN]).arg(folder).status();
        assert!(cut.expect("start `perl` (Debian: perl-base)").success());
    }

    /// Takes a disk off, as soon as the last process that was killed has let go of it.
    pub fn unmount(&self, folder: &Path) {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let tried = self.inside("umount").arg(folder).output().unwrap();
            if tried.status.success() {
                return;
            }
            let said = String::from_utf8_lossy(&tried.stderr).into_owned();
            assert!(said.contains("busy") && Instant::now() < until, "{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for done in [self.holder.kill(), self.holder.wait().map(drop)] {
            done.expect("end the disks");
        }
    }
}
