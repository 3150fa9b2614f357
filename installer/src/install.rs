//! An installation from end to end: stick → site → disk → verification → writing → log.

use crate::choose::{Candidate, Chosen, Existing, choose};
use crate::console::{Console, Meter};
use crate::dialogue;
use crate::disk::{BlockDevice, Disk};
use crate::inspect::Contents;
use crate::layout::{self, Layout};
use crate::machine::{self, Node};
use crate::release::Release;
use crate::site::{Site, WhenDone};
use crate::stick::Stick;
use crate::write::{self, Job, Step};
use anyhow::{Context, Result};
use formats::entry::{self, EntryName};
use formats::esp::{self, FatFile, Made, Volume};
use formats::gpt::{Guid, SECTOR};
use formats::hex;
use formats::manifest::Needs;
use formats::stick::{Plan, RECOVERY, Rules};
use formats::verity::Tree;
use std::path::Path;

/// What a boot image of the installer carries.
pub struct Carried {
    /// What it is for.
    pub plan: Plan,
    /// Trusted root documents.
    pub roots: Vec<u8>,
    /// The partition that was started.
    pub started: Option<Guid>,
}

/// Which disk is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meant {
    /// The one that the site's rules, or whoever stands before the machine, choose.
    Chosen,
    /// This one, and what may happen to its data: it was asked for in its own recovery menu.
    This {
        /// Device, as `/dev/sda`.
        device: String,
        /// What was answered.
        existing: Existing,
    },
}

/// How far an installation came, for the message of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Nothing was written to any disk.
    Nothing,
    /// The disk was written to.
    Disk,
}

/// A file of the ESP: its path, or `None` for the system's boot image, and its bytes.
type BootFile = (Option<String>, Vec<u8>);

/// What is written, ready.
struct Prepared {
    release: Release,
    tree: Tree,
    esp: Made,
    layout: Layout,
}

/// Installs from a stick. `reached` says afterwards how far it came, also after an error.
///
/// # Errors
/// What went wrong, and what to do.
pub fn run(
    console: &mut Console,
    carried: &Carried,
    nodes: &[Node],
    meant: &Meant,
    reached: &mut Reached,
) -> Result<WhenDone> {
    let stick = Stick::mount(nodes)?;
    if !stick.writable {
        console.say("The stick is write-protected: it installs, but no log is left on it.");
    }
    let mut name = "machine".to_owned();
    let done = with_stick(console, carried, (&stick, meant), (reached, &mut name));
    if let Err(error) = &done {
        console.say(&format!("FAILED: {error:#}"));
    }
    let log = if stick.writable { stick.leave_log(&name, console.log()).map(Some) } else { Ok(None) };
    match log {
        Ok(Some(path)) => console.say(&format!("The log is on the stick: {path}")),
        Ok(None) => {}
        Err(error) => console.say(&format!("No log was left on the stick: {error:#}")),
    }
    done
}

fn with_stick(
    console: &mut Console,
    carried: &Carried,
    (stick, meant): (&Stick, &Meant),
    (reached, name): (&mut Reached, &mut String),
) -> Result<WhenDone> {
    let Carried { plan, started, roots } = carried;
    let ids = machine::ids();
    console.say(&format!(
        "This machine: {}",
        if ids.is_empty() { "no serial number".into() } else { ids.join(", ") }
    ));
    if let Some(id) = ids.first() {
        *name = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    }
    let release = Release::open(&stick.release(), roots, plan)?;
    let version = release.manifest.version.clone();
    console.say(&format!("Release: {} {version} for {}, signatures good", plan.product, plan.board));
    let disks = machine::disks(plan.arch, *started)?;
    let mut site = match stick.site(&ids)? {
        Some((file, site)) => {
            console.say(&format!("Site: {file}"));
            site.suits(plan).with_context(|| file)?;
            site
        }
        None => match meant {
            Meant::Chosen => dialogue::ask(console, &disks, plan.pair)?,
            Meant::This { .. } => Site::default(),
        },
    };
    let chosen = target(plan, disks, &site, meant)?;
    let keep = if chosen.keep { "; its data stays" } else { "" };
    console.say(&format!("Disk: {}{keep}", chosen.disk.text()));
    if let Some(secret) = site.shared().map(|name| stick.pair_secret(name)).transpose()?
        && let Some(pair) = &mut site.pair
    {
        pair.code = Some(secret);
    }
    let installer = stick.installer(&esp::boot_loader_paths(plan.arch)[0])?;
    let prepared = prepare(console, (plan, &chosen), release, &installer)?;
    let mut disk = BlockDevice::open(Path::new(&chosen.disk.device), true)?;
    put(console, &mut disk, &prepared, &site, (chosen.keep, reached))?;
    console.say(&format!(
        "DONE. {} {version} is installed on {}. Take the stick out.",
        plan.product, chosen.disk.device
    ));
    Ok(site.when_done)
}

fn target(plan: &Plan, mut disks: Vec<Candidate>, site: &Site, meant: &Meant) -> Result<Chosen> {
    let (rules, existing) = match meant {
        Meant::Chosen => (site.rules(&plan.target), site.disk.existing),
        Meant::This { device, existing } => {
            disks.retain(|disk| disk.device == *device);
            // It was started from its bus already.
            let bus = disks.iter().map(|disk| disk.bus.clone()).collect();
            (Rules { bus, ..Rules::default() }, *existing)
        }
    };
    Ok(choose(&disks, &rules, existing, layout::needs(plan))?)
}

fn prepare(
    console: &mut Console,
    (plan, chosen): (&Plan, &Chosen),
    release: Release,
    installer: &[u8],
) -> Result<Prepared> {
    let needs = release.manifest.needs;
    let layout = lay_out(plan, &chosen.disk, chosen.keep, needs)?;
    let files = release.boot_files()?;
    let total = release.image_bytes();
    let meter = Meter::new("check the image", total);
    let mut done = 0;
    let tree = release.verify_image(&mut |n| {
        done += n;
        console.progress(&meter.line(done), done == total);
        Ok(())
    })?;
    console.say(&meter.end());
    let esp = boot_volume(plan, &release, (&files, installer), &layout)?;
    Ok(Prepared { release, tree, esp, layout })
}

fn lay_out(plan: &Plan, disk: &Candidate, keep: bool, needs: Needs) -> Result<Layout> {
    match &disk.contents {
        Contents::Farhold(parts) if keep => layout::kept(
            plan,
            parts,
            [
                ("root", needs.slot_bytes, parts.root[0].bytes),
                ("verity", needs.verity_bytes, parts.verity[0].bytes),
                ("ESP", needs.esp_bytes, parts.esp.bytes),
            ],
        ),
        Contents::Empty
        | Contents::Begun
        | Contents::Unused(_)
        | Contents::Farhold(_)
        | Contents::Stick
        | Contents::Foreign(_)
        | Contents::Unreadable(_) => layout::fresh(plan, disk.bytes, random),
    }
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("get random bytes from the kernel")?;
    Ok(bytes)
}

/// The ESP: what the release brings, the menu's settings, and this installer as the recovery entry.
fn boot_volume(
    plan: &Plan,
    release: &Release,
    (files, installer): (&[BootFile], &[u8]),
    layout: &Layout,
) -> Result<Made> {
    // Of the stick, not of the plan: the menu of an older installation takes a newer stick.
    let version = &release.manifest.version;
    let factory = EntryName::uncounted(version, &release.roothash.short()).file_name();
    let settings = esp::loader_conf(plan.menu_s);
    let mut all: Vec<FatFile<'_>> = vec![("loader/loader.conf".to_owned(), settings.as_bytes())];
    for (path, bytes) in files {
        let path = path.clone().unwrap_or_else(|| format!("{}/{factory}", entry::FOLDER));
        all.push((path, bytes));
    }
    all.push((format!("{}/{RECOVERY}{version}.efi", entry::FOLDER), installer));
    let part = layout.parts.esp;
    let id = random()?;
    let volume = Volume {
        bytes: part.bytes,
        first_lba: part.start / SECTOR as u64,
        id: u32::from_le_bytes([id[0], id[1], id[2], id[3]]),
        label: *esp::LABEL,
    };
    esp::make_volume(&all, &volume).context("make the boot partition")
}

fn put(
    console: &mut Console,
    disk: &mut dyn Disk,
    prepared: &Prepared,
    site: &Site,
    (keep, reached): (bool, &mut Reached),
) -> Result<()> {
    let mut identity = random()?;
    identity[6] = identity[6] & 0x0f | 0x40;
    identity[8] = identity[8] & 0x3f | 0x80;
    let seed =
        site.seed(prepared.layout.parts.state_guid, (!keep).then(|| hex::encode(&identity)).as_deref())?;
    let job = Job {
        image: &prepared.release,
        tree: &prepared.tree,
        layout: &prepared.layout,
        esp: &prepared.esp.medium,
        esp_used: prepared.esp.used,
        seed: &seed,
    };
    *reached = Reached::Disk;
    let mut current: Option<(Step, Meter)> = None;
    write::install(disk, &job, &mut |step, done, total| {
        let meter = match &current {
            Some((now, meter)) if *now == step => meter,
            Some(_) | None => &current.insert((step, Meter::new(words(step), total))).1,
        };
        if done == total {
            if step != Step::Finish {
                console.say(&meter.end());
            }
        } else {
            console.progress(&meter.line(done), false);
        }
    })
}

fn words(step: Step) -> &'static str {
    match step {
        Step::Image => "write the system",
        Step::Boot => "write the boot files",
        Step::ReadBack => "read everything back",
        Step::Finish => "finish",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::{Extent, Parts};
    use crate::samples::{disk, plan};

    #[test]
    fn the_disk_whose_menu_asked_is_meant_whatever_the_site_says() {
        let extent = Extent { start: 0, bytes: 0 };
        let guid = Guid::from_disk(&[1; 16]);
        let parts =
            Parts { esp: extent, root: [extent; 2], verity: [extent; 2], state: extent, state_guid: guid };
        let disks = [("/dev/sda", Contents::Empty), ("/dev/sdb", Contents::Farhold(parts))]
            .map(|(device, contents)| disk(device, "usb", 64, contents))
            .to_vec();
        let site = Site::parse("disk: {bus: [nvme], serial: another}").unwrap();
        let asked = |existing| {
            let meant = Meant::This { device: "/dev/sdb".into(), existing };
            target(&plan(), disks.clone(), &site, &meant).map(|chosen| (chosen.disk.device, chosen.keep))
        };
        assert_eq!(asked(Existing::Keep).unwrap(), ("/dev/sdb".into(), true));
        assert_eq!(asked(Existing::Erase).unwrap(), ("/dev/sdb".into(), false));
        assert!(target(&plan(), disks.clone(), &site, &Meant::Chosen).is_err());
    }
}
