//! Brings `/var` up: grows, makes, checks and mounts the state partition, or falls back to memory with a reason.

use crate::early::decide::{self, Verdict};
use crate::early::folders::{self, Folder};
use crate::early::installed;
use crate::early::region::{self, Region};
use crate::io::disk::{BlockDevice, Disk};
use crate::io::ioctl;
use crate::io::tool::Tool;
use anyhow::{Context, Result, bail, ensure};
use formats::boot::{BootFacts, StateFacts};
use formats::layout::StateMark;
use nix::mount::{MsFlags, mount};
use std::fs::{self, File, OpenOptions};
use std::path::Path;

const VAR: &str = "/var";
/// The state store.
const STORE: &str = "/var/lib/farhold";
/// Where the state partition is mounted when it can only be read.
const READ_ONLY: &str = "/run/farhold/state";
/// Upper and work folder of the overlay on `/var` in that case.
const MEMORY: &str = "/run/farhold/var";
/// Exit code of `e2fsck` from which on damage is left; below, all was right or put right.
const E2FSCK_DAMAGED: i32 = 4;
/// Less growth than this is not worth a resize.
const GROWTH_MIN: u64 = 1 << 20;

/// Where the work on the partition has got to.
struct Work<'a> {
    device: &'a str,
    region: Region,
    made: bool,
    repaired: bool,
    grown: u64,
}

/// Prepares and mounts `/var`; says what became of it. Never fails: the last resort is memory.
pub fn prepare(boot: &BootFacts, notes: &mut Vec<String>) -> StateFacts {
    let folders = folders::list(Path::new(VAR)).unwrap_or_else(|error| {
        notes.push(format!("{error:#}"));
        Vec::new()
    });
    let facts = match persistent(boot, notes) {
        Ok(facts) => facts,
        Err(error) => {
            let why = format!("{error:#}");
            tracing::warn!(why, "/var is not on the state partition");
            fall_back(boot.partitions.state.as_deref(), why, notes)
        }
    };
    finish(&folders, notes);
    facts
}

fn finish(folders: &[Folder], notes: &mut Vec<String>) {
    // A full partition boots too: services that need a missing folder say so themselves.
    if let Err(error) = folders::make(Path::new(VAR), folders) {
        notes.push(format!("{error:#}"));
    }
}

fn persistent(boot: &BootFacts, notes: &mut Vec<String>) -> Result<StateFacts> {
    let device = boot.partitions.state.as_deref().context("the disk has no state partition")?;
    let mut disk = BlockDevice::open(Path::new(&boot.disk))?;
    let mut work = grow(device, &boot.disk, &mut disk)?;
    match work.region.verdict(&disk)? {
        Verdict::Make => make(&mut work, &mut disk)?,
        Verdict::Use => check(&mut work)?,
        Verdict::Refuse(why) => bail!("{why}"),
    }
    let flags = MsFlags::MS_NOATIME;
    mount(Some(device), VAR, Some("ext4"), flags, Some("errors=remount-ro"))
        .with_context(|| format!("mount {device} on {VAR}"))?;
    if let Err(error) = installed::take(&mut disk, &work.region, Path::new(STORE)) {
        notes.push(format!("what the installer left was not taken: {error:#}"));
    }
    if let Err(error) = enlarge(&mut work, &disk) {
        notes.push(format!("the state file system keeps its size: {error:#}"));
    }
    Ok(StateFacts::Persistent {
        device: device.to_owned(),
        bytes: work.region.bytes,
        made: work.made,
        grown_bytes: work.grown,
        repaired: work.repaired,
    })
}

fn grow<'a>(device: &'a str, whole: &str, disk: &mut dyn Disk) -> Result<Work<'a>> {
    let [before, after] =
        region::grow(disk).with_context(|| format!("grow the state partition of {whole}"))?;
    let seen =
        fs::metadata(device).and_then(|_| size_of(device)).with_context(|| format!("look at {device}"))?;
    // The kernel may know the old size though an earlier boot, cut short, has written the new one.
    if seen != after.bytes {
        let file =
            OpenOptions::new().read(true).write(true).open(whole).with_context(|| format!("open {whole}"))?;
        ioctl::resize_partition(&file, after.number, after.start, after.bytes)
            .with_context(|| format!("tell the kernel that {device} has {} bytes now", after.bytes))?;
        tracing::info!(device, from = seen, to = after.bytes, "state partition grown");
    }
    let grown = after.bytes - before.bytes;
    Ok(Work { device, region: after, made: false, repaired: false, grown })
}

fn size_of(device: &str) -> std::io::Result<u64> {
    use std::io::{Seek, SeekFrom};
    File::open(device)?.seek(SeekFrom::End(0))
}

fn make(work: &mut Work<'_>, disk: &mut dyn Disk) -> Result<()> {
    let bytes = work.region.bytes;
    let blocks =
        decide::blocks(bytes).with_context(|| format!("the state partition has only {bytes} bytes"))?;
    work.region.mark(disk, StateMark::Making)?;
    let args = decide::make_args(work.device, blocks);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tracing::info!(device = work.device, blocks, "making the state file system");
    Tool::Mke2fs.run(&args)?.success()?;
    File::open(work.device)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("flush {}", work.device))?;
    work.region.mark(disk, StateMark::Made)?;
    work.made = true;
    Ok(())
}

fn check(work: &mut Work<'_>) -> Result<()> {
    let outcome = Tool::E2fsck.run(&["-p", work.device])?;
    match outcome.code() {
        Some(0) => {}
        Some(code) if code < E2FSCK_DAMAGED => {
            tracing::warn!(device = work.device, code, "the state file system was repaired");
            work.repaired = true;
        }
        Some(_) | None => {
            return Err(outcome
                .failure()
                .context("the state file system cannot be checked, or needs an operator"));
        }
    }
    Ok(())
}

fn enlarge(work: &mut Work<'_>, disk: &dyn Disk) -> Result<()> {
    if work.made {
        return Ok(());
    }
    let [start, _] = work.region.edges(disk)?;
    let now = decide::ext4_blocks(&start).context("its superblock cannot be read")?;
    let wanted = decide::blocks(work.region.bytes).context("the partition is too small")?;
    let more = wanted.saturating_sub(now) * decide::BLOCK;
    if more < GROWTH_MIN {
        return Ok(());
    }
    Tool::Resize2fs.run(&[work.device, &wanted.to_string()])?.success()?;
    tracing::info!(device = work.device, blocks = wanted, "state file system grown");
    work.grown = work.grown.max(more);
    Ok(())
}

fn fall_back(device: Option<&str>, why: String, notes: &mut Vec<String>) -> StateFacts {
    if let Some(device) = device {
        match read_only(device) {
            Ok(()) => return StateFacts::ReadOnly { device: device.to_owned(), why },
            Err(error) => notes.push(format!("the state partition cannot be read either: {error:#}")),
        }
    }
    if let Err(error) = memory() {
        notes.push(format!("{error:#}"));
    }
    StateFacts::Ephemeral { why }
}

/// What can be read of the partition, under a layer in memory. The journal is not replayed: that would write.
fn read_only(device: &str) -> Result<()> {
    ensure!(!is_mount(VAR)?, "{VAR} is mounted already");
    fs::create_dir_all(READ_ONLY).with_context(|| format!("make {READ_ONLY}"))?;
    mount(Some(device), READ_ONLY, Some("ext4"), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, Some("noload"))
        .with_context(|| format!("mount {device} read-only"))?;
    for folder in ["upper", "work"] {
        let folder = format!("{MEMORY}/{folder}");
        fs::create_dir_all(&folder).with_context(|| format!("make {folder}"))?;
    }
    let options = format!("lowerdir={READ_ONLY},upperdir={MEMORY}/upper,workdir={MEMORY}/work");
    mount(Some("overlay"), VAR, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("mount a layer in memory on {VAR}"))
}

fn memory() -> Result<()> {
    if is_mount(VAR)? {
        return Ok(());
    }
    mount(Some("tmpfs"), VAR, Some("tmpfs"), MsFlags::MS_NODEV, Some("mode=0755,size=25%"))
        .with_context(|| format!("mount {VAR} in memory"))
}

fn is_mount(folder: &str) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let device =
        |path: &str| fs::metadata(path).map(|meta| meta.dev()).with_context(|| format!("look at {path}"));
    Ok(device(folder)? != device("/")?)
}
