//! What the init knows and holds while it boots; filled step by step, and all that a failed boot has to go by.

use crate::disks::{self, BootDisk, Choice};
use crate::kernel::{self, Level, Log, boot_ms};
use crate::slots::SlotView;
use crate::variables::Variables;
use crate::watchdog::Watchdog;
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::bootargs::BootArgs;
use formats::efi::Variable;
use formats::gpt::Guid;
use std::time::Duration;

/// How long the boot disk may take to appear: USB and RAID controllers need seconds, a dead disk never comes.
const DISK_WAIT_MS: u64 = 30_000;
/// Between two looks for the disk.
const POLL: Duration = Duration::from_millis(20);

/// A boot in progress.
pub struct Machine {
    /// Kernel log.
    pub log: Log,
    /// Armed watchdog.
    pub watchdog: Option<Watchdog>,
    /// UEFI variables.
    pub variables: Variables,
    /// Anything unusual, for the facts.
    pub notes: Vec<String>,
    /// The signed command line, once it is read.
    pub args: Option<BootArgs>,
    /// Boot disk, once it is found.
    pub disk: Option<BootDisk>,
    /// Both slots, once they are read.
    pub slots: Vec<SlotView>,
    /// Whether systemd-boot counts this boot.
    pub trial: bool,
    /// When the init began, ms since the kernel started.
    pub started_ms: u64,
}

impl Machine {
    /// Mounts, reads the command line, loads modules, arms the watchdog. What fails is a note: a later step decides
    /// whether the boot can do without.
    pub fn start() -> Self {
        let notes = kernel::first_mounts();
        let mut machine = Self {
            log: Log::open(),
            watchdog: None,
            variables: Variables::of_machine(),
            notes: Vec::new(),
            args: None,
            disk: None,
            slots: Vec::new(),
            trial: false,
            started_ms: boot_ms(),
        };
        notes.into_iter().for_each(|note| machine.note(note));
        machine.log.say(Level::Info, "start");
        let args = read_args();
        let seconds = args.as_ref().ok().and_then(|args| args.watchdog_s);
        let mut armed = None;
        let failed = kernel::load_modules(|| {
            if let Some(seconds) = seconds.filter(|_| armed.is_none() && Watchdog::present()) {
                armed = Some(Watchdog::arm(seconds));
            }
        });
        failed.into_iter().for_each(|note| machine.note(note));
        match (seconds, armed) {
            (_, Some(Ok(watchdog))) => machine.watchdog = Some(watchdog),
            (_, Some(Err(error))) => machine.note(format!("watchdog not armed: {error:#}")),
            (Some(_), None) => machine.note("watchdog asked for, but the machine shows none".into()),
            (None, None) => {}
        }
        if let Err(error) = kernel::mount_variables() {
            machine.note(format!("{error:#}"));
        }
        machine.trial =
            machine.variables.read(Variable::LoaderBootCountPath).is_some_and(|path| !path.is_empty());
        match args {
            Ok(args) => machine.args = Some(args),
            Err(error) => machine.note(format!("{error:#}")),
        }
        machine
    }

    /// Logs something unusual and keeps it for the facts.
    pub fn note(&mut self, note: String) {
        self.log.say(Level::Warning, &note);
        self.notes.push(note);
    }

    /// Feeds the watchdog, if there is one.
    pub fn feed(&mut self) {
        let fed = self.watchdog.as_mut().map_or(Ok(()), Watchdog::feed);
        if let Err(error) = fed {
            self.watchdog = None;
            self.note(format!("feed the watchdog: {error}; it is left alone"));
        }
    }

    /// Waits for the boot disk.
    ///
    /// # Errors
    /// If it does not appear, or cannot be told from another.
    pub fn find_disk(&mut self) -> Result<BootDisk> {
        let arch = Arch::host().context("this processor is not one that images are made for")?;
        let boot_partition = self.variables.read(Variable::LoaderDevicePartUuid);
        let guid = boot_partition.as_deref().map(|text| Guid::parse(text.trim()));
        if guid == Some(None) {
            self.note(
                "LoaderDevicePartUUID is not a GUID; the boot disk must be the only Farhold disk".into(),
            );
        }
        let deadline = boot_ms() + DISK_WAIT_MS;
        loop {
            self.feed();
            match disks::choose(&disks::scan()?, guid.flatten(), arch) {
                Choice::Found(disk) if std::path::Path::new(&disk.partitions.root[1]).exists() => {
                    return Ok(disk);
                }
                Choice::Found(disk) if boot_ms() > deadline => {
                    bail!("{} has a partition table that the kernel does not show", disk.device)
                }
                Choice::Wait(why) if boot_ms() > deadline => {
                    bail!("no boot disk after {} s: {why}", DISK_WAIT_MS / 1000)
                }
                Choice::Found(_) | Choice::Wait(_) => std::thread::sleep(POLL),
                Choice::Refuse(why) => bail!("boot disk unclear: {why}"),
            }
        }
    }
}

fn read_args() -> Result<BootArgs> {
    let line = std::fs::read_to_string("/proc/cmdline").context("read /proc/cmdline")?;
    Ok(BootArgs::parse(&line)?)
}
