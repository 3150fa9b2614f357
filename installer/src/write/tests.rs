//! The power is cut after every single write and flush of an installation, with what was not flushed lost, kept or kept
//! in part. Each time: nothing half-written starts, the disk is taken again, and a second installation is whole.

use super::*;
use crate::choose::{Candidate, Existing, choose};
use crate::inspect::{Contents, inspect};
use crate::layout;
use crate::samples::{disk, plan};
use formats::arch::Arch;
use formats::gpt::{Header, Table};
use formats::layout::StateMark;
use formats::stick::Rules;
use std::collections::BTreeMap;

const BYTES: u64 = 700 << 20;
const BLOCKS: u64 = 200;

/// A disk in memory: durable sectors, and those written since the last flush. Stops at an operation.
#[derive(Clone, Default)]
struct Cut {
    durable: BTreeMap<u64, [u8; SECTOR]>,
    pending: Vec<(u64, [u8; SECTOR])>,
    left: Option<usize>,
    operations: usize,
}

impl Cut {
    fn operation(&mut self) -> Result<()> {
        self.operations += 1;
        match &mut self.left {
            Some(0) => anyhow::bail!("power cut"),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn sector(&self, number: u64) -> [u8; SECTOR] {
        let pending = self.pending.iter().rev().find(|(n, _)| *n == number).map(|(_, bytes)| *bytes);
        pending.or_else(|| self.durable.get(&number).copied()).unwrap_or([0; SECTOR])
    }

    /// What is found after the power is back; `keep` decides about each sector that was not flushed.
    fn after(&self, mut keep: impl FnMut(usize) -> bool) -> Self {
        let mut durable = self.durable.clone();
        for (n, (sector, bytes)) in self.pending.iter().enumerate() {
            if keep(n) {
                durable.insert(*sector, *bytes);
            }
        }
        Self { durable, ..Self::default() }
    }
}

impl Disk for Cut {
    fn bytes(&self) -> u64 {
        BYTES
    }
    fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
        assert!(at.is_multiple_of(SECTOR_BYTES) && into.len().is_multiple_of(SECTOR));
        for (n, part) in into.chunks_exact_mut(SECTOR).enumerate() {
            part.copy_from_slice(&self.sector(at / SECTOR_BYTES + n as u64));
        }
        Ok(())
    }
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        assert!(at.is_multiple_of(SECTOR_BYTES) && bytes.len().is_multiple_of(SECTOR) && at < BYTES);
        self.operation()?;
        for (n, part) in bytes.chunks_exact(SECTOR).enumerate() {
            let mut sector = [0; SECTOR];
            sector.copy_from_slice(part);
            self.pending.push((at / SECTOR_BYTES + n as u64, sector));
        }
        Ok(())
    }
    fn sync(&mut self) -> Result<()> {
        self.operation()?;
        for (sector, bytes) in std::mem::take(&mut self.pending) {
            self.durable.insert(sector, bytes);
        }
        Ok(())
    }
}

struct Bytes(Vec<u8>, Parameters);

impl Image for Bytes {
    fn parameters(&self) -> Parameters {
        self.1
    }
    fn uuid(&self) -> [u8; 16] {
        [5; 16]
    }
    fn pass(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.0.chunks(64 * BLOCK).try_for_each(take)
    }
}

/// Everything that one installation writes.
struct World {
    image: Bytes,
    tree: Tree,
    layout: Layout,
    esp: Sparse,
    seed: Seed,
}

impl World {
    fn new(byte: u8, layout: Option<Layout>) -> Self {
        let parameters = Parameters { data_blocks: BLOCKS, salt: [byte; 32] };
        let image = Bytes((0..BLOCKS as usize * BLOCK).map(|n| (n / 97) as u8 ^ byte).collect(), parameters);
        let mut builder = Builder::new(parameters);
        builder.push(&image.0);
        let mut n = 0;
        let guids = || {
            n += 1;
            Ok([byte ^ n; 16])
        };
        let layout = layout.unwrap_or_else(|| layout::fresh(&plan(), BYTES, guids).unwrap());
        let mut esp = Sparse::new(2 << 20);
        esp.write_at(0, &vec![byte; 90_000]).unwrap();
        for boot_sector in [0, BOOT_COPY] {
            esp.write_at(boot_sector + 510, &[0x55, 0xaa]).unwrap();
        }
        let seed = Seed { partition: layout.parts.state_guid.to_string(), files: Vec::new() };
        Self { image, tree: builder.finish(), layout, esp, seed }
    }

    fn install(&self, disk: &mut Cut) -> Result<()> {
        let job = Job {
            image: &self.image,
            tree: &self.tree,
            layout: &self.layout,
            esp: &self.esp,
            esp_used: 90_112,
            seed: &self.seed,
        };
        install(disk, &job, &mut |_, _, _| {})
    }

    /// Whether all of this installation is on a disk.
    fn whole(&self, disk: &Cut) -> bool {
        let parts = &self.layout.parts;
        let read = |at, bytes: usize| {
            let mut found = vec![0; bytes];
            disk.read(at, &mut found).unwrap();
            found
        };
        let mut esp = vec![0; 90_112];
        self.esp.read_at(0, &mut esp);
        read(parts.root[0].start, self.image.0.len()) == self.image.0
            && read(parts.verity[0].start + BLOCK as u64, self.tree.blocks.len()) == self.tree.blocks
            && read(parts.esp.start, esp.len()) == esp
            && Seed::parse(&read(seed_at(parts.state), 4096)) == Ok(Some(self.seed.clone()))
    }
}

/// What firmware finds: the ESP of the primary table, or else of the backup, if it has a boot sector.
fn starts(disk: &Cut) -> bool {
    let table = |at: u64| {
        let header = Header::parse(&disk.sector(at), at).ok()?;
        let mut entries = vec![0; header.entries_bytes()];
        disk.read(header.entries_at * SECTOR_BYTES, &mut entries).ok()?;
        Table::new(header, &entries).ok()
    };
    let found = table(1).or_else(|| table(BYTES / SECTOR_BYTES - 1));
    let esp = found
        .and_then(|table| table.partitions().into_iter().find(|p| p.label == formats::layout::LABEL_ESP));
    esp.is_some_and(|esp| disk.sector(esp.first)[510..] == [0x55, 0xaa])
}

fn candidate(contents: Contents) -> Candidate {
    Candidate { bytes: BYTES, ..disk("/dev/nvme0n1", "nvme", 0, contents) }
}

/// Cuts an installation of `new` on `before` at every operation and judges; `old` is what ran before.
fn campaign(before: &Cut, new: &World, old: Option<&World>, existing: Existing) -> usize {
    let mut whole = before.clone();
    new.install(&mut whole).unwrap();
    assert!(new.whole(&whole) && starts(&whole));
    for at in 0..whole.operations {
        let mut disk = Cut { left: Some(at), ..before.clone() };
        new.install(&mut disk).unwrap_err();
        let ways: [fn(usize) -> bool; 4] = [|_| false, |_| true, |n| n % 2 == 0, |n| n % 3 == 1];
        for (way, keep) in ways.into_iter().enumerate() {
            let mut found = disk.after(keep);
            if starts(&found) {
                let one = new.whole(&found) || old.is_some_and(|old| old.whole(&found));
                assert!(one, "cut {at}, way {way}: something half-written starts");
            }
            let contents = inspect(&found, Arch::X86_64);
            let chosen =
                choose(&[candidate(contents.clone())], &Rules::default(), existing, layout::needs(&plan()));
            let chosen = chosen.unwrap_or_else(|error| panic!("cut {at}, way {way}: {contents:?}: {error}"));
            assert_eq!(chosen.keep, existing == Existing::Keep && old.is_some(), "cut {at}, way {way}");
            new.install(&mut found).unwrap();
            assert!(new.whole(&found) && starts(&found), "cut {at}, way {way}: the second installation");
        }
    }
    whole.operations
}

#[test]
fn an_empty_disk_survives_a_cut_at_every_operation_without_being_told_anything() {
    let operations = campaign(&Cut::default(), &World::new(1, None), None, Existing::Refuse);
    eprintln!("{operations} operations, each cut four ways");
    assert!(operations >= 30);
}

#[test]
fn an_installed_disk_that_is_erased_is_old_or_nothing_or_new() {
    let (old, new) = (World::new(1, None), World::new(2, None));
    let mut disk = Cut::default();
    old.install(&mut disk).unwrap();
    let before = Cut { operations: 0, ..disk };
    campaign(&before, &new, Some(&old), Existing::Erase);
}

#[test]
fn an_installed_disk_that_keeps_its_data_keeps_it_through_every_cut() {
    let old = World::new(1, None);
    let mut disk = Cut::default();
    old.install(&mut disk).unwrap();
    // The device has run: its state partition has a file system and the mark of it.
    let state = old.layout.parts.state;
    disk.write(state.start, &[7; BLOCK]).unwrap();
    disk.write(state.start + state.bytes - STATE_MARK_BYTES as u64, &StateMark::Made.encode()).unwrap();
    disk.sync().unwrap();
    let Contents::Farhold(parts) = inspect(&disk, Arch::X86_64) else { panic!("not installed") };
    let new = World::new(2, Some(layout::kept(&plan(), &parts, [("root", 0, 1); 3]).unwrap()));
    let before = Cut { operations: 0, ..disk };
    campaign(&before, &new, Some(&old), Existing::Keep);
    let mut after = before;
    new.install(&mut after).unwrap();
    assert_eq!(after.sector(state.start / SECTOR_BYTES), [7; SECTOR]);
    assert!(matches!(inspect(&after, Arch::X86_64), Contents::Farhold(_)));
}

#[test]
fn a_disk_that_returns_other_bytes_is_never_made_bootable() {
    struct Liar(Cut, u64);
    impl Disk for Liar {
        fn bytes(&self) -> u64 {
            self.0.bytes()
        }
        fn read(&self, at: u64, into: &mut [u8]) -> Result<()> {
            self.0.read(at, into)?;
            if (at..at + into.len() as u64).contains(&self.1) {
                into[(self.1 - at) as usize] ^= 1;
            }
            Ok(())
        }
        fn write(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
            self.0.write(at, bytes)
        }
        fn sync(&mut self) -> Result<()> {
            self.0.sync()
        }
    }
    let world = World::new(1, None);
    let parts = &world.layout.parts;
    for at in [parts.root[0].start + 70_000, parts.verity[0].start + 9000, parts.esp.start + 20_000] {
        let mut disk = Liar(Cut::default(), at);
        let job = Job {
            image: &world.image,
            tree: &world.tree,
            layout: &world.layout,
            esp: &world.esp,
            esp_used: 90_112,
            seed: &world.seed,
        };
        let error = install(&mut disk, &job, &mut |_, _, _| {}).unwrap_err().to_string();
        assert!(error.ends_with(FAILING), "{error}");
        assert!(!starts(&disk.0));
    }
}
