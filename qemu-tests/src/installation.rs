//! Installations from a stick: sticks made of the profile under test, machines with an empty disk, and the device that
//! comes of it. Knows of the installer what stands on the console.

use crate::console::Console;
use crate::disk::DiskImage;
use crate::machine::{Bus, Disk};
use crate::programs::{Programs, run, source_folder};
use crate::testing::{DISK_BYTES, TestVm};
use crate::vm::{BOOT_PATIENCE, Vm};
use anyhow::{Context, Result, bail, ensure};
use formats::stick;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The lab's own board has a kernel without USB.
const BOARD: &str = "generic-uefi";
const PROFILE: &str = "recipes/profiles/edge-minimal.yaml";
/// The site's file for every machine.
const FOR_ALL: &str = "site";
/// Serial number of the machines.
pub const SERIAL: &str = "GX-12";
/// The stick is the first disk, as long as it is there.
const STICK: &str = "stick.img";
const TARGET: &str = "target.img";
/// 0.3 GiB are read, checked, written and read back; 60 s of one emulated processor, many times that under load.
pub const PATIENCE: Duration = Duration::from_secs(1200);
/// An installer that is done switches off.
const OFF_PATIENCE: Duration = Duration::from_secs(120);

/// A vendor's desk: the profile under test, baked for machines that have USB.
pub struct Desk {
    folder: tempfile::TempDir,
    programs: Programs,
    build: PathBuf,
}

impl Desk {
    /// Bakes.
    ///
    /// # Errors
    /// If `make` did not name the programs, or `farhold` fails.
    pub fn new() -> Result<Self> {
        let programs = Programs::from_environment()?;
        let folder = tempfile::Builder::new().prefix("farhold-test-").tempdir()?;
        let (profile, lock) = (source_folder().join(PROFILE), folder.path().join("stick.lock"));
        let build = folder.path().join("build");
        let target = programs.target_on(BOARD);
        let mut command = programs.farhold();
        command.arg("lock").arg(&profile).args(target).arg("--out").arg(&lock);
        run(command.args(programs.artefacts()))?;
        let mut command = programs.farhold();
        command.arg("build").arg(&profile).args(target).arg("--lock").arg(&lock).arg("--out").arg(&build);
        run(command.arg("--keys").arg(&programs.keys).args(programs.artefacts()))?;
        Ok(Self { folder, programs, build })
    }

    /// Makes a stick with these sites: file name, without `.yaml`, and text. `site` is for every machine.
    ///
    /// # Errors
    /// If `farhold usb` fails.
    pub fn stick(&self, sites: &[(&str, &str)]) -> Result<PathBuf> {
        let (folder, out) = (self.folder.path().join("sites"), self.folder.path().join("usb.img"));
        std::fs::create_dir_all(&folder)?;
        let mut command = self.programs.farhold();
        command.arg("usb").arg(&self.build).arg("--out").arg(&out);
        if sites.iter().any(|(name, _)| *name != FOR_ALL) {
            command.arg("--sites").arg(&folder);
        }
        for (name, text) in sites {
            let for_all = *name == FOR_ALL;
            let path = if for_all { self.folder.path() } else { &folder }.join(format!("{name}.yaml"));
            std::fs::write(&path, text)?;
            if for_all {
                command.arg("--site").arg(path);
            }
        }
        run(&mut command)?;
        Ok(out)
    }

    /// A machine with that stick and empty disks; not started. The stick's file is grown like the disks', as a
    /// stick is larger than what is written on it.
    ///
    /// # Errors
    /// As [`TestVm::create_for`].
    pub fn machine(&self, stick: &Path, buses: &[Bus]) -> Result<TestVm> {
        let empty = self.folder.path().join("empty.img");
        std::fs::write(&empty, "")?;
        let disk = |file: &str, bus| Disk { bus, ..Disk::virtio(file) };
        let mut images = vec![stick];
        images.extend(buses.iter().map(|_| empty.as_path()));
        TestVm::create_for(self.programs.arch, "installed", &images, |machine| {
            machine.disks = vec![stick_disk()];
            let files = std::iter::once(TARGET.to_owned()).chain((1..).map(|n| format!("{n}-{TARGET}")));
            machine.disks.extend(buses.iter().zip(files).map(|(bus, file)| disk(&file, *bus)));
            machine.serial = Some(SERIAL.to_owned());
            machine.memory_mib = 512;
        })
    }
}

fn stick_disk() -> Disk {
    Disk { bus: Bus::Usb, ..Disk::virtio(STICK) }
}

/// How an installation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The machine switched itself off.
    Done,
    /// It failed; the console's line.
    Failed(String),
}

impl Vm {
    /// Puts the stick in or takes it out; the machine must be off.
    ///
    /// # Errors
    /// If the machine's description cannot be written.
    pub fn with_stick(&self, there: bool) -> Result<()> {
        self.change(|machine| {
            machine.disks.retain(|disk| disk.file != STICK);
            if there {
                machine.disks.insert(0, stick_disk());
            }
        })
    }

    /// Puts the stick in behind the disks, so that the firmware does not start it; the machine must be off.
    ///
    /// # Errors
    /// If the machine's description cannot be written.
    pub fn with_stick_behind(&self) -> Result<()> {
        self.change(|machine| {
            machine.disks.retain(|disk| disk.file != STICK);
            machine.disks.push(stick_disk());
        })
    }

    /// Takes all that is on the installation's target away, as if the disk were new. The machine must be off.
    ///
    /// # Errors
    /// If its file cannot be written.
    pub fn renew_target(&self) -> Result<()> {
        let target = self.folder().join(TARGET);
        std::fs::write(&target, "").context("empty the disk")?;
        DiskImage::new(target).grow(DISK_BYTES)
    }

    /// Bytes that were ever written to the disk images other than the stick.
    ///
    /// # Errors
    /// If one cannot be looked at.
    pub fn written_to_disks(&self) -> Result<u64> {
        let mut bytes = 0;
        for disk in self.machine()?.disks.iter().filter(|disk| disk.file != STICK) {
            bytes += std::fs::metadata(self.folder().join(&disk.file))?.blocks() * 512;
        }
        Ok(bytes)
    }

    /// Waits until the installer says one of `patterns`; gives which. A failure that is none of them is an error.
    ///
    /// # Errors
    /// As [`Vm::wait_console`].
    pub fn installer_says(&self, console: &mut Console, patterns: &[&str]) -> Result<usize> {
        let mut all = patterns.to_vec();
        all.extend(["FAILED: ", "STOPPED: ", "Kernel panic"]);
        let (index, line) = self.wait_console(console, &all, PATIENCE)?;
        ensure!(index < patterns.len(), "the installer says: {line}");
        Ok(index)
    }

    /// Waits until the started installer has ended.
    ///
    /// # Errors
    /// If it says neither that it is done nor that it failed.
    pub fn installer_ends(&self) -> Result<End> {
        let mut console = self.console()?;
        let (index, line) =
            self.wait_console(&mut console, &["DONE. ", "FAILED: ", "STOPPED: ", "Kernel panic"], PATIENCE)?;
        match index {
            0 => {
                if let Some(process) = self.process()? {
                    process.wait_end(OFF_PATIENCE)?;
                }
                Ok(End::Done)
            }
            1 => {
                let rest = self.wait("the end of its line", BOOT_PATIENCE, || console.rest_of_line())?;
                Ok(End::Failed(rest))
            }
            _ => bail!("the installer ended otherwise: {line}"),
        }
    }

    /// The newest log on the stick.
    ///
    /// # Errors
    /// If there is none.
    pub fn stick_log(&self) -> Result<String> {
        let stick = DiskImage::new(self.folder().join(STICK));
        let mut logs = stick.fat_list(stick::LABEL_DATA, stick::LOGS)?;
        logs.sort();
        let last = logs.last().context("the stick has no log")?;
        let bytes = stick.fat_read(stick::LABEL_DATA, &format!("{}/{last}", stick::LOGS))?;
        String::from_utf8(bytes).context("the log is no text")
    }
}
