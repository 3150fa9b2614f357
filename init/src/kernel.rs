//! The kernel's side of a boot: first mounts, log records, modules, the clock since its start.

use anyhow::{Context, Result};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::time::{ClockId, clock_gettime};
use std::fs::{self, File, OpenOptions};
use std::io::Write;

/// File of the initrd that names the modules to load, one absolute path per line, in load order.
const MODULE_LIST: &str = "/modules.list";

/// How important a log record is; the numbers are syslog's.
#[derive(Clone, Copy)]
pub enum Level {
    /// Shown on every console, whatever `quiet` says.
    Critical = 2,
    /// Goes on with less.
    Warning = 4,
    /// One line per step.
    Info = 6,
}

/// The kernel log.
pub struct Log {
    file: Option<File>,
}

impl Log {
    /// Opens the log; without one, records are dropped.
    pub fn open() -> Self {
        Self { file: OpenOptions::new().write(true).open("/dev/kmsg").ok() }
    }

    /// Writes a record: one `write` call, because each call is a record of its own.
    pub fn say(&mut self, level: Level, text: &str) {
        let record = format!("<{}>farhold-init: {}\n", level as u8, text.replace('\n', " "));
        // A log that cannot be written has no other place to say so.
        if self.file.as_mut().is_some_and(|file| file.write_all(record.as_bytes()).is_err()) {
            self.file = None;
        }
    }

    /// The log as another process's standard error.
    pub fn for_child(&self) -> std::process::Stdio {
        let clone = self.file.as_ref().and_then(|file| file.try_clone().ok());
        clone.map_or_else(std::process::Stdio::null, std::process::Stdio::from)
    }
}

/// Mounts what every program expects of a kernel. Returns what did not work.
pub fn first_mounts() -> Vec<String> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounts = [
        ("/proc", "proc", plain, ""),
        ("/sys", "sysfs", plain, ""),
        ("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755"),
        ("/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755"),
    ];
    mounts.into_iter().filter_map(|at| mounted(at).err()).map(|error| format!("{error:#}")).collect()
}

fn mounted((target, kind, flags, options): (&str, &str, MsFlags, &str)) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {target}"))?;
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .with_context(|| format!("mount {kind} on {target}"))
}

/// Mounts the UEFI variables, if the machine has any.
///
/// # Errors
/// If there are variables and they cannot be mounted.
pub fn mount_variables() -> Result<()> {
    let target = formats::efi::EFIVARFS;
    if !std::path::Path::new(target).exists() {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("efivarfs"), target, Some("efivarfs"), flags, None::<&str>).context("mount UEFI variables")
}

/// Loads the listed modules and deletes their files, which live in memory. Calls `after_each` so that the watchdog can
/// be armed as soon as its driver is there. Returns what did not work.
pub fn load_modules(mut after_each: impl FnMut()) -> Vec<String> {
    let mut failed = Vec::new();
    let list = match fs::read_to_string(MODULE_LIST) {
        Ok(list) => list,
        Err(error) => return vec![format!("read {MODULE_LIST}: {error}")],
    };
    for path in list.lines().filter(|line| !line.is_empty()) {
        if let Err(error) = load_module(path) {
            failed.push(format!("{error:#}"));
        }
        after_each();
    }
    failed
}

fn load_module(path: &str) -> Result<()> {
    use nix::errno::Errno;
    let file = File::open(path).with_context(|| format!("open module {path}"))?;
    match finit_module(&file, c"", ModuleInitFlags::empty()) {
        // There already, or its hardware is not in this machine: nothing is missing.
        Ok(()) | Err(Errno::EEXIST | Errno::ENODEV) => {}
        Err(error) => return Err(error).with_context(|| format!("load module {path}")),
    }
    fs::remove_file(path).with_context(|| format!("delete loaded module {path}"))
}

/// Milliseconds since the kernel started, sleep included.
pub fn boot_ms() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec()).unwrap_or(0) / 1_000_000
}
