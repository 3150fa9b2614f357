//! The order of a boot, from the kernel's hand-over to systemd's.

use crate::kernel::{Level, boot_ms};
use crate::machine::Machine;
use crate::slots::SlotView;
use crate::{early, fallback, root, slots};
use anyhow::{Context, Result, anyhow};
use formats::boot::{BOOT_FACTS, BootFacts};
use formats::efi::Variable;
use formats::layout::Slot;
use std::fs;

const SERVICE_MANAGER: &str = "/usr/lib/systemd/systemd";

/// Boots. Does not return.
pub fn run() -> ! {
    let mut machine = Machine::start();
    match boot(&mut machine) {
        Ok(never) => match never {},
        Err(error) => fallback::leave(&mut machine, &error),
    }
}

fn boot(machine: &mut Machine) -> Result<std::convert::Infallible> {
    let args = machine.args.clone().with_context(|| machine.notes.join("; "))?;
    let disk = machine.find_disk()?;
    machine.disk = Some(disk.clone());
    machine.slots = slots::read(&disk.partitions, &args).to_vec();
    let slot = open_first(machine)?;
    root::switch()?;
    let mut facts = BootFacts {
        slot,
        roothash: args.roothash,
        version: args.version.clone(),
        disk: disk.device,
        partitions: disk.partitions,
        trial: machine.trial,
        slots: machine.slots.iter().map(SlotView::facts).collect(),
        watchdog: machine.watchdog.as_ref().map(|watchdog| watchdog.facts.clone()),
        init_ms: [machine.started_ms, boot_ms()],
        firmware_us: firmware_us(machine),
        notes: machine.notes.clone(),
    };
    fs::create_dir_all("/run/farhold").context("make /run/farhold")?;
    write_facts(&facts)?;
    early::prepare(machine);
    facts.init_ms[1] = boot_ms();
    facts.notes.clone_from(&machine.notes);
    write_facts(&facts)?;
    machine.feed();
    machine.log.say(
        Level::Info,
        &format!(
            "handing over: slot={slot} version={} roothash={} trial={}",
            args.version, args.roothash, machine.trial
        ),
    );
    nix::unistd::execv(&std::ffi::CString::new(SERVICE_MANAGER)?, &[c"/usr/lib/systemd/systemd"])
        .with_context(|| format!("start {SERVICE_MANAGER} from slot {slot}"))
}

/// Opens the first slot that holds the named image; the other one too may hold it, after a repair.
fn open_first(machine: &mut Machine) -> Result<Slot> {
    let (Some(disk), Some(args)) = (machine.disk.clone(), machine.args.clone()) else {
        return Err(anyhow!("no disk or no command line"));
    };
    let mut reasons = Vec::new();
    for view in machine.slots.clone() {
        let slot = view.slot;
        if let Some(misfit) = view.misfit {
            let reason = format!("slot {slot}: {misfit}");
            if view.damaged {
                machine.note(reason.clone());
            }
            reasons.push(reason);
            continue;
        }
        match root::mount_slot(slot, &disk.partitions, &args, machine.trial) {
            Ok(()) => return Ok(slot),
            Err(error) => {
                let reason = format!("slot {slot}: {error:#}");
                machine.note(reason.clone());
                reasons.push(reason);
            }
        }
    }
    Err(anyhow!(
        "roothash {} of version {} opens no slot: {}",
        args.roothash,
        args.version,
        reasons.join("; ")
    ))
}

fn firmware_us(machine: &Machine) -> Option<[u64; 2]> {
    let number = |variable| machine.variables.number(variable);
    Some([number(Variable::LoaderTimeInit)?, number(Variable::LoaderTimeExec)?])
}

fn write_facts(facts: &BootFacts) -> Result<()> {
    let text = serde_json::to_vec_pretty(facts).context("encode the boot facts")?;
    fs::write(BOOT_FACTS, text).with_context(|| format!("write {BOOT_FACTS}"))
}
