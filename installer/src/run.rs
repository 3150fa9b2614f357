//! The order of things, from the kernel's hand-over to the end: installer if a stick was started, recovery if an
//! installed disk was.

use crate::console::Console;
use crate::install::{self, Carried, Meant, Reached};
use crate::machine::Node;
use crate::recovery;
use crate::site::WhenDone;
use crate::stick;
use anyhow::{Context, Result};
use formats::efi::Variable;
use formats::gpt::Guid;
use formats::layout::LABEL_STATE;
use formats::stick::{LABEL_DATA, PLAN, ROOTS};
use init::kernel::{self, boot_ms};
use init::variables::Variables;
use nix::sys::reboot::{RebootMode, reboot};
use std::fs;
use std::time::Duration;

/// How long the disk that was started may take to appear: USB needs seconds.
const DISK_WAIT_MS: u64 = 30_000;
/// Disks that appear after it: how long nothing new must come.
const SETTLE_MS: u64 = 2_000;
const POLL: Duration = Duration::from_millis(50);

/// Runs as process 1. Does not return.
pub fn run() -> ! {
    let mut notes = kernel::first_mounts();
    notes.extend(kernel::load_modules(|| {}));
    notes.extend(kernel::mount_variables().err().map(|error| format!("{error:#}")));
    let mut console = Console::open();
    for note in notes {
        console.say(&format!("note: {note}"));
    }
    loop {
        let next = once(&mut console).unwrap_or_else(|error| {
            console.say(&format!("STOPPED: {error:#}"));
            None
        });
        match next.or_else(|| after_failure(&mut console)) {
            Some(WhenDone::Poweroff) => end(RebootMode::RB_POWER_OFF),
            Some(WhenDone::Reboot) => end(RebootMode::RB_AUTOBOOT),
            None => {}
        }
    }
}

/// One attempt; `None` if it failed and was explained.
fn once(console: &mut Console) -> Result<Option<WhenDone>> {
    let carried = carried()?;
    let plan = &carried.plan;
    console.say(&format!("\nFarhold {} {}, {} ({})", plan.product, plan.version, plan.board, plan.arch));
    let nodes = wait_for_disk(carried.started)?;
    if nodes.iter().any(|node| node.entry.label == LABEL_STATE) {
        return recovery::run(console, &carried, &nodes).map(Some);
    }
    install_from(console, &carried, &nodes, &Meant::Chosen)
}

/// Installs, and explains a failure.
pub(crate) fn install_from(
    console: &mut Console,
    carried: &Carried,
    nodes: &[Node],
    meant: &Meant,
) -> Result<Option<WhenDone>> {
    let mut reached = Reached::Nothing;
    match install::run(console, carried, nodes, meant, &mut reached) {
        Ok(done) => Ok(Some(done)),
        Err(_) => {
            console.say(match reached {
                Reached::Nothing => "NOT INSTALLED. Nothing was written: the disks are as they were.",
                Reached::Disk => {
                    "NOT INSTALLED. The disk is not complete, and nothing starts from it. Start the stick again."
                }
            });
            Ok(None)
        }
    }
}

fn carried() -> Result<Carried> {
    let plan = fs::read(format!("/{PLAN}")).context("this boot image has no installation plan")?;
    let plan = serde_json::from_slice(&plan).context("read the installation plan")?;
    let roots = fs::read(format!("/{ROOTS}")).context("this boot image has no root documents")?;
    let started = Variables::of_machine().read(Variable::LoaderDevicePartUuid);
    Ok(Carried { plan, roots, started: started.and_then(|text| Guid::parse(text.trim())) })
}

/// The partitions of the disk that was started, when they are there and no other disk appears any more.
fn wait_for_disk(started: Option<Guid>) -> Result<Vec<Node>> {
    let deadline = boot_ms() + DISK_WAIT_MS;
    loop {
        let found = stick::find(started)?;
        let complete = |nodes: &Vec<Node>| {
            let label =
                if nodes.iter().any(|n| n.entry.label == LABEL_STATE) { LABEL_STATE } else { LABEL_DATA };
            stick::node(nodes, label).is_some()
        };
        if let Some(nodes) = found.filter(complete) {
            settle();
            return Ok(nodes);
        }
        anyhow::ensure!(
            boot_ms() < deadline,
            "the stick that was started does not appear; try another socket of this machine, best one of USB 2"
        );
        std::thread::sleep(POLL);
    }
}

/// Waits until the list of disks stays as it is.
fn settle() {
    let count = || fs::read_dir("/sys/block").map_or(0, Iterator::count);
    let (mut seen, mut since) = (count(), boot_ms());
    while boot_ms() < since + SETTLE_MS {
        std::thread::sleep(POLL);
        let now = count();
        if now != seen {
            (seen, since) = (now, boot_ms());
        }
    }
}

fn after_failure(console: &mut Console) -> Option<WhenDone> {
    match console.ask("Enter: try again. r: restart. p: power off.") {
        Ok(answer) if answer == "p" => Some(WhenDone::Poweroff),
        Ok(answer) if answer == "r" => Some(WhenDone::Reboot),
        Ok(_) => None,
        // Nobody can answer: stay, so that the message can be read.
        Err(_) => {
            std::thread::sleep(Duration::from_secs(3600));
            None
        }
    }
}

fn end(mode: RebootMode) -> ! {
    nix::unistd::sync();
    let Err(error) = reboot(mode);
    eprintln!("switch this machine off by hand: {error}");
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
