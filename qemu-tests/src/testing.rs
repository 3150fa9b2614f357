//! What every test of a booted image needs first: the image, and a machine that ends with the test.

use crate::disk::DiskImage;
use crate::machine::Machine;
use crate::programs::{Programs, run};
pub use crate::programs::{build_folder, pair_image, source_folder};
use crate::site::Site;
use crate::ssh::free_port;
use crate::status::settled;
use crate::vm::{BOOT_PATIENCE, Lifetime, Vm};
use anyhow::{Context, Result};
use formats::arch::Arch;
use formats::layout::Slot;
use formats::status::Status;
use std::path::Path;

/// Set, machines' folders stay after a test, for a look at their logs.
const KEEP_VARIABLE: &str = "FARHOLD_LAB_KEEP";
/// What the init says when it gives up.
const STOPPED: &str = "farhold-init: STOPPED";
/// Room for the state partition to grow into.
pub const DISK_BYTES: u64 = 6 << 30;

/// Builds the profile under test again with more options, into `out`, from the lock and cache of the first build: only
/// what the options change is made.
///
/// # Errors
/// If a variable of `make test` is missing, or the build fails.
pub fn build_again(profile: &Path, out: &Path, options: &[&str]) -> Result<()> {
    let programs = Programs::from_environment()?;
    let mut command = programs.farhold();
    command.arg("build").arg(profile).args(programs.target()).arg("--offline");
    command.arg("--lock").arg(&programs.lock).arg("--keys").arg(&programs.keys).args(programs.artefacts());
    run(command.arg("--out").arg(out).args(options)).map(drop)
}

/// A site that ends with the test.
pub struct Ended<'a>(pub &'a Site);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.down() {
            eprintln!("{error:#}");
        }
    }
}

/// Marsaglia's xorshift, 64 bits: times of power cuts that a seed repeats.
pub struct Random(u64);

impl Random {
    /// Begins; the same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// The number that a variable names, or else `usual`.
///
/// # Errors
/// If it names something else.
pub fn number(variable: &str, usual: u64) -> Result<u64> {
    std::env::var(variable)
        .map_or(Ok(usual), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

/// A machine that is killed, and its folder removed, when the test is done with it.
pub struct TestVm {
    vm: Vm,
    // Removed after the machine was ended: fields are dropped in this order, the machine in `drop` before.
    folder: Option<tempfile::TempDir>,
}

impl TestVm {
    /// A machine with the image under test on a disk of [`DISK_BYTES`], network and SSH; not started.
    ///
    /// # Errors
    /// If there is no image or no QEMU.
    pub fn create(name: &str) -> Result<Self> {
        let image = build_folder()?.join("disk.img");
        Self::create_with(name, &[&image], |_| {})
    }

    /// A machine with these images on its disks, after `change`; not started.
    ///
    /// # Errors
    /// If an image is missing or there is no QEMU.
    pub fn create_with(name: &str, images: &[&Path], change: impl FnOnce(&mut Machine)) -> Result<Self> {
        let first = images.first().context("a machine needs a disk")?;
        Self::create_for(DiskImage::new(*first).arch()?, name, images, change)
    }

    /// The same for a processor that the first image does not tell, because it is no system.
    ///
    /// # Errors
    /// As [`TestVm::create_with`].
    pub fn create_for(
        arch: Arch,
        name: &str,
        images: &[&Path],
        change: impl FnOnce(&mut Machine),
    ) -> Result<Self> {
        let mut machine = Machine::new(name, arch);
        machine.ssh_port = Some(free_port()?);
        change(&mut machine);
        let folder = tempfile::Builder::new().prefix("farhold-test-").tempdir()?;
        let vm = Vm::create(&folder.path().join(name), &machine, images, Some(DISK_BYTES))?;
        vm.make_key()?;
        Ok(Self { vm, folder: Some(folder) })
    }

    /// Power on.
    ///
    /// # Errors
    /// As [`Vm::start`].
    pub fn power_on(&self) -> Result<()> {
        self.vm.start(Lifetime::Attached)
    }

    /// Power on, and wait until the system has settled.
    ///
    /// # Errors
    /// As [`Vm::start`] and [`Vm::follow_boot`].
    pub fn boot(&self) -> Result<Status> {
        self.power_on()?;
        let (status, wall) = self.vm.follow_boot(BOOT_PATIENCE, |_, _| {})?;
        eprint!("{}", crate::boot::table(&status, u64::try_from(wall.as_millis())?));
        Ok(status)
    }

    /// Power on, and wait for the agent's word on the console; gives the slot that it names. A boot that stops is an
    /// error.
    ///
    /// # Errors
    /// As [`Vm::start`] and [`Vm::wait`].
    pub fn boot_to_slot(&self) -> Result<Slot> {
        self.power_on()?;
        let mut console = self.console()?;
        // After `farhold: ` comes how the agent is, which may be degraded.
        let (index, line) =
            self.wait_console(&mut console, &[" slot=a ", " slot=b ", STOPPED], BOOT_PATIENCE)?;
        match index {
            0 => Ok(Slot::A),
            1 => Ok(Slot::B),
            _ => anyhow::bail!("it stopped: {line}"),
        }
    }

    /// Power on, and wait until the init stops for good; gives its message. Cuts the power afterwards.
    ///
    /// # Errors
    /// If the machine boots, or says nothing.
    pub fn boot_to_stop(&self) -> Result<String> {
        self.power_on()?;
        let mut console = self.console()?;
        let (index, line) = self.wait_console(&mut console, &[STOPPED, " login:"], BOOT_PATIENCE)?;
        if index != 0 {
            anyhow::bail!("it booted: {line}");
        }
        // The match may be seen while the rest of the line is still on its way.
        let rest = self.wait("the end of its line", BOOT_PATIENCE, || console.rest_of_line())?;
        self.cut()?;
        Ok(format!("{STOPPED}{rest}"))
    }

    /// Restarts from within, and waits until the next boot has settled.
    ///
    /// # Errors
    /// If the guest does not restart or settle.
    pub fn reboot(&self) -> Result<Status> {
        let before = self.wait_status("any answer", BOOT_PATIENCE, |_| true)?.boot_id;
        // The connection may break before the command's status comes back.
        self.run("systemctl --no-block reboot")?;
        self.wait_status("a settled next boot", BOOT_PATIENCE, |status| {
            status.boot_id != before && settled(status)
        })
    }
}

impl std::ops::Deref for TestVm {
    type Target = Vm;
    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl Drop for TestVm {
    fn drop(&mut self) {
        if let Err(error) = self.vm.cut() {
            eprintln!("{error:#}");
        }
        if std::env::var_os(KEEP_VARIABLE).is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }
}
