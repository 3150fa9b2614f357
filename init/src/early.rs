//! Runs the agent's early stage in the verified root, and stands in for it if it fails: `/var` and `/etc` in memory,
//! so that the device comes up and can say so.

use crate::kernel::{Level, boot_ms};
use crate::machine::Machine;
use anyhow::{Context, Result, ensure};
use formats::boot::{EARLY_FACTS, EarlyFacts, StateFacts};
use nix::mount::{MsFlags, mount};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const AGENT: &str = "/usr/bin/farhold-agent";
/// How long the early stage may take. A file system check of a large, worn disk takes minutes, and stopping one midway
/// is worse than waiting; beyond this a dead disk is more likely than a slow one.
const DEADLINE_MS: u64 = 30 * 60 * 1000;
/// How long a killed process may take to go; one that waits for a dead disk never does, and is left behind.
const KILL_WAIT_MS: u64 = 5_000;
const POLL: Duration = Duration::from_millis(10);
/// Between two records that say that the stage still runs.
const PROGRESS_MS: u64 = 30_000;

/// Runs the early stage; whatever happens, `/var` and `/etc` can be written afterwards.
pub fn prepare(machine: &mut Machine) {
    let began = boot_ms();
    let Err(error) = run(machine) else { return };
    let why = format!("the early stage failed: {error:#}");
    machine.note(why.clone());
    let mut notes = Vec::new();
    for made in [memory_var(), memory_etc()] {
        if let Err(error) = made {
            machine.note(format!("{error:#}"));
            notes.push(format!("{error:#}"));
        }
    }
    let facts = EarlyFacts {
        state: StateFacts::Ephemeral { why },
        identity_made: false,
        etc: Vec::new(),
        early_ms: [began, boot_ms()],
        notes,
    };
    if let Err(error) = write_facts(&facts) {
        machine.note(format!("{error:#}"));
    }
}

fn run(machine: &mut Machine) -> Result<()> {
    let mut child = Command::new(AGENT)
        .arg("early")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(machine.log.for_child())
        .spawn()
        .with_context(|| format!("start {AGENT}"))?;
    let began = boot_ms();
    let mut told = began;
    while boot_ms() < began + DEADLINE_MS {
        if let Some(status) = child.try_wait().context("wait for the early stage")? {
            ensure!(status.success(), "it ended with {status}");
            ensure!(Path::new(EARLY_FACTS).exists(), "it left no {EARLY_FACTS}");
            return Ok(());
        }
        machine.feed();
        if boot_ms() > told + PROGRESS_MS {
            told = boot_ms();
            machine.log.say(
                Level::Warning,
                &format!("preparing the state partition, {} s so far", (told - began) / 1000),
            );
        }
        std::thread::sleep(POLL);
    }
    stop(machine, &mut child)?;
    anyhow::bail!("not done after {} min", DEADLINE_MS / 60_000)
}

fn stop(machine: &mut Machine, child: &mut Child) -> Result<()> {
    child.kill().context("stop the early stage")?;
    let deadline = boot_ms() + KILL_WAIT_MS;
    while child.try_wait().context("wait for the early stage")?.is_none() && boot_ms() < deadline {
        machine.feed();
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn memory_var() -> Result<()> {
    if is_mount("/var")? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/var", Some("tmpfs"), flags, Some("mode=0755,size=25%"))
        .context("mount /var in memory")
}

fn memory_etc() -> Result<()> {
    if is_mount("/etc")? {
        return Ok(());
    }
    for folder in ["/run/farhold/etc/upper", "/run/farhold/etc/work"] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    let options = "lowerdir=/etc,upperdir=/run/farhold/etc/upper,workdir=/run/farhold/etc/work";
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options))
        .context("mount /etc in memory")
}

fn is_mount(folder: &str) -> Result<bool> {
    let device =
        |path: &str| fs::metadata(path).map(|meta| meta.dev()).with_context(|| format!("look at {path}"));
    Ok(device(folder)? != device("/")?)
}

fn write_facts(facts: &EarlyFacts) -> Result<()> {
    let text = serde_json::to_vec_pretty(facts).context("encode the early facts")?;
    fs::write(EARLY_FACTS, text).with_context(|| format!("write {EARLY_FACTS}"))
}
