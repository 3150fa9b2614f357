//! Leaves a boot that failed: asks for another entry and restarts, or stays with a message. Decisions are in `decide`.

use crate::decide::{self, Next, Situation};
use crate::kernel::Level;
use crate::machine::Machine;
use anyhow::{Context, Result};
use formats::efi::{Fallback, Variable};
use formats::entry;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::reboot::{RebootMode, reboot};
use std::fs;
use std::time::Duration;

/// Where the ESP is mounted, read-only, to see which entries there are.
const ESP: &str = "/run/farhold/esp";
/// Most names read from the ESP; a damaged FAT can show files without end.
const NAMES_MAX: usize = 256;
/// Most characters of a reason that are kept; firmware gives variables little room.
const WHY_CHARS: usize = 400;
/// Between two meals of the watchdog while the machine stays; far below any timeout that hardware offers.
const MEAL: Duration = Duration::from_secs(1);
/// Meals between two repetitions of the message, for consoles attached later.
const MEALS_PER_MESSAGE: u32 = 600;

/// Acts on a failed boot. Does not return.
pub fn leave(machine: &mut Machine, error: &anyhow::Error) -> ! {
    machine.log.say(Level::Critical, &format!("cannot start this system: {error:#}"));
    let situation = look_around(machine);
    match decide::next(&situation) {
        Next::Ask(id) => {
            if ask(machine, situation.record, &id, error) {
                restart(machine, &format!("restarting into {id}"));
            }
        }
        Next::Again { remember } => {
            if !remember || ask(machine, situation.record, "", error) {
                restart(machine, "restarting");
            }
        }
        Next::Halt => {}
    }
    halt(machine, error)
}

/// Stores the request. If the firmware refuses, a restart would only come back here, so the answer is `false`, except
/// for a counted boot, which ends by itself.
fn ask(machine: &mut Machine, mut record: Fallback, id: &str, error: &anyhow::Error) -> bool {
    if record.why.is_empty() {
        record.why = format!("{error:#}").chars().take(WHY_CHARS).collect();
    }
    record.asked.push(id.to_owned());
    match store(machine, &record, id) {
        Ok(()) => true,
        Err(refused) => {
            machine.log.say(Level::Critical, &format!("{refused:#}"));
            machine.trial
        }
    }
}

fn store(machine: &Machine, record: &Fallback, id: &str) -> Result<()> {
    let text = serde_json::to_string(record).context("encode the fallback record")?;
    // The record first: without it, a firmware that ignores the request would restart for ever.
    machine.variables.write(Variable::FarholdFallback, &text)?;
    if id.is_empty() { Ok(()) } else { machine.variables.write(Variable::LoaderEntryOneShot, id) }
}

fn look_around(machine: &mut Machine) -> Situation {
    let record = machine.variables.read(Variable::FarholdFallback);
    let record = record.as_deref().and_then(Fallback::parse).unwrap_or_default();
    let can_ask = machine.variables.read(Variable::LoaderDevicePartUuid).is_some();
    let mut situation = Situation {
        trial: machine.trial,
        disk_found: machine.disk.is_some(),
        can_ask,
        record,
        ..Situation::default()
    };
    let (Some(disk), Some(args)) = (&machine.disk, &machine.args) else { return situation };
    match names(&disk.partitions.esp) {
        Ok(names) => {
            let complete: Vec<_> = machine.slots.iter().filter_map(|slot| slot.complete).collect();
            (situation.other, situation.recovery) = decide::entries(&names, &complete, args.roothash);
        }
        Err(error) => machine.note(format!("{error:#}")),
    }
    situation
}

fn names(esp: &str) -> Result<Vec<String>> {
    fs::create_dir_all(ESP).with_context(|| format!("make {ESP}"))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(esp), ESP, Some("vfat"), flags, None::<&str>)
        .with_context(|| format!("mount the ESP {esp}"))?;
    let folder = format!("{ESP}/{}", entry::FOLDER);
    let list = fs::read_dir(&folder).with_context(|| format!("list {} of the ESP {esp}", entry::FOLDER));
    let names = list.map(|files| {
        let readable = files.take(NAMES_MAX).filter_map(std::result::Result::ok);
        readable.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
    });
    umount2(ESP, MntFlags::MNT_DETACH).context("unmount the ESP")?;
    names
}

fn restart(machine: &mut Machine, how: &str) {
    machine.log.say(Level::Critical, how);
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_AUTOBOOT);
    machine.log.say(Level::Critical, &format!("restart: {error}"));
}

/// Stays, with the message on every console. The watchdog is fed for ever: a reset would only come back here, and a
/// machine that restarts without end wears its flash and cannot be read by whoever stands before it.
fn halt(machine: &mut Machine, error: &anyhow::Error) -> ! {
    let message = format!(
        "STOPPED. This system cannot start ({error:#}) and no other complete one was found. The disk was not changed. \
         Next: switch off and on to try again, choose another entry in the boot menu, or install from a stick."
    );
    loop {
        machine.log.say(Level::Critical, &message);
        for _ in 0..MEALS_PER_MESSAGE {
            machine.feed();
            std::thread::sleep(MEAL);
        }
    }
}
