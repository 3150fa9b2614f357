//! One virtual machine in one folder: its disks, firmware variables, logs, and the QEMU that runs it.
//!
//! The folder says all; a [`Vm`] is only a handle, so one command may start a machine and another end it.

use crate::console::Console;
use crate::disk::{self, DiskImage};
use crate::machine::{Cache, Machine, SERIAL_LOG, VARS};
use crate::process::Process;
use crate::qemu::Qemu;
use crate::qmp::Qmp;
use crate::status;
use anyhow::{Context, Result, bail};
use formats::status::Status;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often a fact is looked at while waiting for it.
pub const POLL: Duration = Duration::from_millis(50);
/// An honest boot under emulation takes 20 to 160 s, depending on what else the host does.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(400);
/// QEMU opens its control socket within milliseconds, or after seconds on a host under load.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// The agent answers within milliseconds; emulated and during a boot much later.
const ASK_PATIENCE: Duration = Duration::from_secs(2);
const DESCRIPTION: &str = "machine.json";
const RUNNING: &str = "running.json";
const STDERR: &str = "qemu.stderr";

/// A machine's folder.
#[derive(Clone, Debug)]
pub struct Vm {
    folder: PathBuf,
}

/// What was noted when QEMU was started.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Running {
    process: Process,
    /// Milliseconds since 1970 on the host's clock at power-on.
    started_ms: u64,
    /// Length of the console's log before this start.
    log_bytes: u64,
}

/// Whether a machine outlives the program that starts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Goes on when the program ends, and does not see its Ctrl-C.
    Detached,
    /// Ends with the program's process group.
    Attached,
}

impl Vm {
    /// Makes a machine's folder: each image is copied to the disk of the same index and grown to `disk_bytes`, the
    /// firmware's variables are copied.
    ///
    /// # Errors
    /// If the folder exists, an image is missing, or copying fails; a half-made folder is removed.
    pub fn create(
        folder: &Path,
        machine: &Machine,
        images: &[&Path],
        disk_bytes: Option<u64>,
    ) -> Result<Self> {
        if machine.disks.len() != images.len() {
            bail!("machine {}: {} disks but {} images", machine.name, machine.disks.len(), images.len());
        }
        let qemu = Qemu::find(machine.arch)?;
        std::fs::create_dir(folder).with_context(|| format!("make {} for a machine", folder.display()))?;
        let vm = Self { folder: folder.to_owned() };
        let filled = vm.fill(machine, images, disk_bytes, &qemu);
        filled.inspect_err(|_| drop(std::fs::remove_dir_all(folder)))?;
        Ok(vm)
    }

    fn fill(&self, machine: &Machine, images: &[&Path], disk_bytes: Option<u64>, qemu: &Qemu) -> Result<()> {
        for (disk, image) in machine.disks.iter().zip(images) {
            let target = self.folder.join(&disk.file);
            disk::copy_sparse(image, &target)?;
            if let Some(bytes) = disk_bytes {
                DiskImage::new(&target).grow(bytes)?;
            }
            match disk.cache {
                Cache::Logged => drop(File::create_new(self.folder.join(format!("{}.log", disk.file)))?),
                Cache::Unsafe | Cache::Writeback => {}
            }
        }
        std::fs::copy(&qemu.firmware.vars, self.folder.join(VARS)).context("copy firmware variables")?;
        self.save(DESCRIPTION, machine)
    }

    /// The machine in a folder that [`Vm::create`] made.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let vm = Self { folder: folder.to_owned() };
        vm.machine()?;
        Ok(vm)
    }

    /// The machine's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The machine as described in its folder.
    ///
    /// # Errors
    /// If the description is missing or cannot be read.
    pub fn machine(&self) -> Result<Machine> {
        self.load(DESCRIPTION)?.with_context(|| format!("no machine in {}", self.folder.display()))
    }

    /// Changes the description; it holds from the next start.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn change(&self, change: impl FnOnce(&mut Machine)) -> Result<()> {
        let mut machine = self.machine()?;
        change(&mut machine);
        self.save(DESCRIPTION, &machine)
    }

    /// The machine's disk of that index.
    ///
    /// # Errors
    /// If it has none.
    pub fn disk(&self, index: usize) -> Result<DiskImage> {
        let machine = self.machine()?;
        let disk =
            machine.disks.get(index).with_context(|| format!("{} has no disk {index}", machine.name))?;
        Ok(DiskImage::new(self.folder.join(&disk.file)))
    }

    /// Power on. Returns when QEMU answers; the guest has then hardly begun.
    ///
    /// # Errors
    /// If it runs already, or QEMU ends at once; the message has QEMU's own words.
    pub fn start(&self, lifetime: Lifetime) -> Result<()> {
        let machine = self.machine()?;
        if self.process()?.is_some() {
            bail!("{} runs already", machine.name);
        }
        let qemu = Qemu::find(machine.arch)?;
        let log_bytes = std::fs::metadata(self.folder.join(SERIAL_LOG)).map_or(0, |meta| meta.len());
        let mut command = qemu.to_command()?;
        command.args(machine.arguments(&qemu)).current_dir(&self.folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(File::create(self.folder.join(STDERR))?);
        let process = self.spawn(command, lifetime, &machine)?;
        let started_ms = u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?;
        self.save(RUNNING, &Running { process, started_ms, log_bytes })?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            match Qmp::connect(&self.folder) {
                Ok(_) => return Ok(()),
                Err(_) if process.alive() && Instant::now() < deadline => std::thread::sleep(POLL),
                Err(_) if !process.alive() => {
                    bail!("{}: QEMU ended at once: {}", machine.name, self.stderr());
                }
                Err(error) => return Err(error.context(format!("{}: QEMU does not answer", machine.name))),
            }
        }
    }

    fn spawn(&self, mut command: Command, lifetime: Lifetime, machine: &Machine) -> Result<Process> {
        match lifetime {
            Lifetime::Detached => drop(command.process_group(0)),
            Lifetime::Attached => {}
        }
        let child = command.spawn().with_context(|| format!("{}: start QEMU", machine.name))?;
        let pid = i32::try_from(child.id())?;
        let process = Process::observe(pid)?;
        reap(child);
        Ok(process)
    }

    /// The running QEMU, if it runs.
    ///
    /// # Errors
    /// If the note about it cannot be read.
    pub fn process(&self) -> Result<Option<Process>> {
        Ok(self.running()?.map(|running| running.process).filter(|process| process.alive()))
    }

    /// Time since power-on; `None` if the machine does not run.
    ///
    /// # Errors
    /// If the note about it cannot be read.
    pub fn up_time(&self) -> Result<Option<Duration>> {
        let Some(running) = self.running()?.filter(|running| running.process.alive()) else {
            return Ok(None);
        };
        let started = UNIX_EPOCH + Duration::from_millis(running.started_ms);
        Ok(Some(SystemTime::now().duration_since(started).unwrap_or_default()))
    }

    /// What QEMU wrote to standard error since the last start.
    pub fn stderr(&self) -> String {
        let text = std::fs::read_to_string(self.folder.join(STDERR)).unwrap_or_default();
        let said = text.trim();
        if said.is_empty() { "it said nothing".to_owned() } else { said.to_owned() }
    }

    /// The console from the last power-on.
    ///
    /// # Errors
    /// If the note about the running machine cannot be read.
    pub fn console(&self) -> Result<Console> {
        let place = self.running()?.map_or(0, |running| running.log_bytes);
        Ok(Console::new(self.folder.join(SERIAL_LOG), place))
    }

    /// Waits until `fact` gives a value.
    ///
    /// # Errors
    /// If `fact` fails, QEMU ends, or `patience` runs out; the message has the end of the console.
    pub fn wait<T>(
        &self,
        what: &str,
        patience: Duration,
        mut fact: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(value) = fact()? {
                return Ok(value);
            }
            if self.process()?.is_none() {
                // What it said last may have come after the look above.
                return fact()?.with_context(|| {
                    format!("wait for {what}: QEMU ended: {}; {}", self.stderr(), self.tail())
                });
            }
            if Instant::now() > deadline {
                bail!("wait for {what}: not after {} s; {}", patience.as_secs(), self.tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits for one of `patterns` on the console; gives its index and line.
    ///
    /// # Errors
    /// As [`Vm::wait`].
    pub fn wait_console(
        &self,
        console: &mut Console,
        patterns: &[&str],
        patience: Duration,
    ) -> Result<(usize, String)> {
        let what = format!("`{}` on the console", patterns.join("` or `"));
        self.wait(&what, patience, || console.find(patterns))
    }

    /// Asks the agent once; `None` if it does not answer yet.
    ///
    /// # Errors
    /// If what comes is no status.
    pub fn ask_status(&self) -> Result<Option<Status>> {
        match self.process()? {
            Some(_) => status::ask(&self.folder, ASK_PATIENCE),
            None => Ok(None),
        }
    }

    /// Waits until the agent reports a status for which `holds` is true.
    ///
    /// # Errors
    /// As [`Vm::wait`]; the message has the last status.
    pub fn wait_status(
        &self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let mut last = None;
        let waited = self.wait(what, patience, || {
            Ok(self.ask_status()?.and_then(|status| {
                let found = holds(&status).then(|| status.clone());
                last = Some(status);
                found
            }))
        });
        waited.with_context(|| match last.map(|status| serde_json::to_string(&status)) {
            Some(Ok(text)) => format!("the agent's last status: {text}"),
            Some(Err(_)) | None => "the agent never answered".to_owned(),
        })
    }

    fn tail(&self) -> String {
        self.console().map_or_else(|error| format!("{error:#}"), |console| console.tail())
    }

    fn running(&self) -> Result<Option<Running>> {
        self.load(RUNNING)
    }

    fn load<T: for<'a> Deserialize<'a>>(&self, name: &str) -> Result<Option<T>> {
        load(&self.folder.join(name))
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<()> {
        save(&self.folder.join(name), value)
    }
}

/// Reads a small JSON file; `None` if it does not exist.
pub(crate) fn load<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => {
            Ok(Some(serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Writes a small JSON file whole or not at all.
pub(crate) fn save(path: &Path, value: &impl Serialize) -> Result<()> {
    let what = || format!("write {}", path.display());
    let folder = path.parent().with_context(what)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(what)?;
    serde_json::to_writer_pretty(&mut file, value).with_context(what)?;
    file.persist(path).with_context(what)?;
    Ok(())
}

/// Takes the exit status of a child when it comes, so that it does not stay as a zombie.
pub(crate) fn reap(mut child: Child) {
    std::thread::spawn(move || drop(child.wait()));
}
