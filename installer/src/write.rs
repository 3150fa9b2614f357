//! Writes an installation, in an order in which a power cut at any instant leaves either the old system whole, or a disk
//! that nothing starts from and that this installer takes again, or the new system whole.
//!
//! First the mark of an installation that has begun. Then what the firmware would start is taken away: the partition
//! tables, or of a disk that keeps them the ESP's boot sector. Then slot A but the topmost block of its hash tree, slot
//! B's place, the ESP but its boot sector, the state partition's mark and the seed; all of it is read back from the
//! medium. Then the new tables and the topmost block come, and the mark goes. Last comes the ESP's boot sector, with
//! which the firmware finds the system. Between steps the disk is flushed. Knows nothing of sticks and consoles.

use crate::disk::{ALIGNMENT, Disk};
use crate::inspect::Extent;
use crate::layout::Layout;
use crate::release::Release;
use anyhow::{Context, Result, ensure};
use formats::gpt::SECTOR;
use formats::layout::{STATE_MARK_BYTES, STATE_TAIL_BYTES, StateMark};
use formats::seed::{AREA_BYTES, Seed};
use formats::sparse::Sparse;
use formats::stick;
use formats::verity::{BLOCK, Builder, Parameters, Tree};

const SECTOR_BYTES: u64 = SECTOR as u64;
const CHUNK: usize = 1 << 20;
/// Boot sector and FSInfo of a FAT32 volume, and where their copy stands.
const BOOT_BYTES: usize = 2 * SECTOR;
const BOOT_COPY: u64 = 6 * SECTOR_BYTES;

/// The slot image, wherever it comes from.
pub trait Image {
    /// Salt and block count.
    fn parameters(&self) -> Parameters;
    /// UUID in the superblock.
    fn uuid(&self) -> [u8; 16];
    /// Passes the image on in whole blocks.
    ///
    /// # Errors
    /// If it cannot be read, or `take` fails.
    fn pass(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

impl Image for Release {
    fn parameters(&self) -> Parameters {
        self.parameters
    }
    fn uuid(&self) -> [u8; 16] {
        self.uuid
    }
    fn pass(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.image(take)
    }
}

/// What is to be written.
pub struct Job<'a> {
    /// The image.
    pub image: &'a dyn Image,
    /// Its hash tree, from the check before.
    pub tree: &'a Tree,
    /// Where everything goes.
    pub layout: &'a Layout,
    /// The ESP as it will be.
    pub esp: &'a Sparse,
    /// Bytes of it that mean anything.
    pub esp_used: u64,
    /// Files for the first boot.
    pub seed: &'a Seed,
}

/// A step, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The system image.
    Image,
    /// Boot files.
    Boot,
    /// Reading back.
    ReadBack,
    /// Making it bootable.
    Finish,
}

/// Told what is done: step, bytes done, bytes of the step.
pub type Watch<'a> = &'a mut dyn FnMut(Step, u64, u64);

/// Everything of the installation was read back from the medium and is right; only this permits the last step.
struct Verified(());

/// Installs.
///
/// # Errors
/// The disk's or the stick's, or if the medium returns other bytes than were written. Nothing starts from the disk then.
pub fn install(disk: &mut dyn Disk, job: &Job<'_>, watch: Watch<'_>) -> Result<()> {
    fits(job)?;
    let seed = job.seed.encode()?;
    disk.write(stick::MARK_SECTOR * SECTOR_BYTES, &stick::mark())?;
    disk.sync()?;
    disarm(disk, job)?;
    write_image(disk, job, watch)?;
    write_boot(disk, job, watch)?;
    write_state(disk, job, &seed)?;
    disk.sync()?;
    let verified = read_back(disk, job, &seed, watch)?;
    finish(disk, job, verified)?;
    watch(Step::Finish, 1, 1);
    Ok(())
}

fn fits(job: &Job<'_>) -> Result<()> {
    let parts = &job.layout.parts;
    let parameters = job.image.parameters();
    let image = parameters.data_blocks.saturating_mul(BLOCK as u64);
    for (what, needs, extent) in [
        ("image", image, parts.root[0]),
        ("hash tree", parameters.hash_area_bytes(), parts.verity[0]),
        ("ESP", job.esp_used.max(job.esp.length()), parts.esp),
    ] {
        let has = extent.bytes;
        ensure!(needs <= has, "the {what} has {needs} bytes, its partition {has}: nothing was written");
    }
    Ok(())
}

/// Takes away what the firmware would start.
fn disarm(disk: &mut dyn Disk, job: &Job<'_>) -> Result<()> {
    let zeros = [0u8; BOOT_BYTES];
    if job.layout.table.is_none() {
        // One sector decides; all that belongs to it goes after it, so that what still starts is whole.
        disk.write(job.layout.parts.esp.start, &zeros[..SECTOR])?;
        disk.sync()?;
        disk.write(job.layout.parts.esp.start + SECTOR_BYTES, &zeros[SECTOR..])?;
        disk.write(job.layout.parts.esp.start + BOOT_COPY, &zeros)?;
        return disk.sync();
    }
    // The backup first: firmware that finds the primary table damaged takes the backup and repairs the other with it.
    let last = disk.bytes() / SECTOR_BYTES - 1;
    disk.write(last * SECTOR_BYTES, &[0; SECTOR])?;
    disk.sync()?;
    disk.write(0, &zeros)?;
    disk.sync()
}

fn write_image(disk: &mut dyn Disk, job: &Job<'_>, watch: Watch<'_>) -> Result<()> {
    let parts = &job.layout.parts;
    for verity in parts.verity {
        // What an earlier life left here must not open.
        disk.write(verity.start, &[0; 2 * BLOCK])?;
    }
    let total = job.image.parameters().data_blocks * BLOCK as u64;
    let mut at = parts.root[0].start;
    let end = at + total;
    job.image.pass(&mut |part| {
        ensure!(at + part.len() as u64 <= end, "the image is longer than announced");
        disk.write(at, part)?;
        at += part.len() as u64;
        watch(Step::Image, total - (end - at), total);
        Ok(())
    })?;
    ensure!(at == end, "the image ended {} bytes early", end - at);
    let hashes = parts.verity[0].start;
    disk.write(hashes, &job.image.parameters().superblock(job.image.uuid()))?;
    // Without its first block the tree does not open; that one comes when all else was read back.
    disk.write(hashes + 2 * BLOCK as u64, job.tree.blocks.get(BLOCK..).context("an empty hash tree")?)
}

fn write_boot(disk: &mut dyn Disk, job: &Job<'_>, watch: Watch<'_>) -> Result<()> {
    let start = job.layout.parts.esp.start;
    let mut at = 0;
    while at < job.esp_used {
        disk.write(start + at, &esp_part(job, at, false))?;
        at += CHUNK as u64;
        watch(Step::Boot, at.min(job.esp_used), job.esp_used);
    }
    Ok(())
}

/// A piece of the ESP as it is before (`armed` false) or after the last step.
fn esp_part(job: &Job<'_>, at: u64, armed: bool) -> Vec<u8> {
    let end = job.esp_used.next_multiple_of(ALIGNMENT as u64).min(job.esp.length());
    let mut part = vec![0; (end - at).min(CHUNK as u64) as usize];
    job.esp.read_at(at, &mut part);
    if at == 0 && !armed {
        part[..BOOT_BYTES].fill(0);
        part[BOOT_COPY as usize..BOOT_COPY as usize + BOOT_BYTES].fill(0);
    }
    part
}

fn write_state(disk: &mut dyn Disk, job: &Job<'_>, seed: &[u8]) -> Result<()> {
    let state = job.layout.parts.state;
    if job.layout.table.is_some() {
        disk.write(state.start, &StateMark::Empty.encode())?;
        disk.write(state.start + state.bytes - STATE_MARK_BYTES as u64, &[0; STATE_MARK_BYTES])?;
    }
    ensure!(seed.len() <= AREA_BYTES, "the seed is too long");
    disk.write(seed_at(state), seed)
}

/// Where the seed stands.
pub fn seed_at(state: Extent) -> u64 {
    state.start + state.bytes - STATE_TAIL_BYTES
}

fn read_back(disk: &dyn Disk, job: &Job<'_>, seed: &[u8], watch: Watch<'_>) -> Result<Verified> {
    let parts = &job.layout.parts;
    let parameters = job.image.parameters();
    let total = parameters.data_blocks * BLOCK as u64;
    let whole = total + job.esp_used;
    let mut builder = Builder::new(parameters);
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < total {
        let part = &mut buffer[..(total - at).min(CHUNK as u64) as usize];
        disk.read(parts.root[0].start + at, part)?;
        builder.push(part);
        at += part.len() as u64;
        watch(Step::ReadBack, at, whole);
    }
    let tree = builder.finish();
    ensure!(tree.roothash == job.tree.roothash, "the disk returns another image than was written: {FAILING}");
    let mut hashes = vec![0; job.tree.blocks.len()];
    disk.read(parts.verity[0].start + BLOCK as u64, &mut hashes)?;
    ensure!(hashes[BLOCK..] == job.tree.blocks[BLOCK..], "the disk returns another hash tree: {FAILING}");
    let mut superblock = [0; BLOCK];
    disk.read(parts.verity[0].start, &mut superblock)?;
    ensure!(
        Parameters::parse(&superblock) == Ok(parameters),
        "the disk returns another superblock: {FAILING}"
    );
    let mut at = 0;
    while at < job.esp_used {
        let wanted = esp_part(job, at, false);
        let part = &mut buffer[..wanted.len()];
        disk.read(parts.esp.start + at, part)?;
        ensure!(*part == wanted, "the disk returns other boot files than were written: {FAILING}");
        at += wanted.len() as u64;
        watch(Step::ReadBack, total + at.min(job.esp_used), whole);
    }
    let mut found = vec![0; seed.len()];
    disk.read(seed_at(parts.state), &mut found)?;
    ensure!(found == seed, "the disk returns another seed than was written: {FAILING}");
    Ok(Verified(()))
}

const FAILING: &str = "it is failing; replace it";

fn finish(disk: &mut dyn Disk, job: &Job<'_>, verified: Verified) -> Result<()> {
    let Verified(()) = verified;
    let parts = &job.layout.parts;
    if let Some(table) = &job.layout.table {
        let last = disk.bytes() / SECTOR_BYTES - 1;
        disk.write(2 * SECTOR_BYTES, &table.entries)?;
        disk.write(table.backup_entries_at * SECTOR_BYTES, &table.entries)?;
        disk.write(last * SECTOR_BYTES, &table.backup)?;
        disk.sync()?;
        disk.write(0, &table.mbr)?;
        disk.write(SECTOR_BYTES, &table.primary)?;
        disk.sync()?;
    }
    let first = parts.verity[0].start + BLOCK as u64;
    disk.write(first, &job.tree.blocks[..BLOCK])?;
    disk.sync()?;
    let mut found = [0; BLOCK];
    disk.read(first, &mut found)?;
    ensure!(
        job.image.parameters().opens(job.tree.roothash, &found),
        "the disk does not keep the last block of the hash tree: {FAILING}"
    );
    disk.write(stick::MARK_SECTOR * SECTOR_BYTES, &[0; SECTOR])?;
    disk.sync()?;
    let mut boot = [0; BOOT_BYTES];
    job.esp.read_at(0, &mut boot);
    disk.write(parts.esp.start + BOOT_COPY, &boot)?;
    disk.write(parts.esp.start + SECTOR_BYTES, &boot[SECTOR..])?;
    disk.sync()?;
    disk.write(parts.esp.start, &boot[..SECTOR])?;
    disk.sync()?;
    let mut found = vec![0; ALIGNMENT];
    disk.read(parts.esp.start, &mut found)?;
    ensure!(found[..BOOT_BYTES] == boot, "the disk does not keep the ESP's boot sector: {FAILING}");
    Ok(())
}

#[cfg(test)]
mod tests;
