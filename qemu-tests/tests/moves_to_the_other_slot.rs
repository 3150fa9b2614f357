//! Where both slots hold the image that the command line names, a damaged one is passed over; one that opens is taken
//! in the order A, B.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use formats::verity::BLOCK;
use qemu_tests::testing::TestVm;

#[test]
fn moves_to_the_other_slot() -> Result<()> {
    let vm = TestVm::create("device")?;
    let disk = vm.disk(0)?;
    for label in [Slot::root_label, Slot::verity_label] {
        disk.copy_partition(label(Slot::A), label(Slot::B))?;
    }

    // Slot A cannot be opened: its superblock is gone.
    let superblock = disk.read(Slot::A.verity_label(), 0, BLOCK)?;
    disk.write(Slot::A.verity_label(), 0, &[0; BLOCK])?;
    let status = vm.boot()?;
    let observed = status.observed.context("the agent does not know what runs")?;
    ensure!(observed.slot == Slot::B, "slot {} runs", observed.slot);
    let boot = status.boot.context("the init left no facts")?;
    let complete: Vec<_> = boot.slots.iter().map(|slot| slot.complete).collect();
    ensure!(complete == [None, Some(observed.roothash)], "the init saw {:?}", boot.slots);
    vm.cut()?;

    // Slot A opens but cannot be mounted: the file system's own first block is damaged.
    disk.write(Slot::A.verity_label(), 0, &superblock)?;
    disk.flip_byte(Slot::A.root_label(), 1024)?;
    ensure!(vm.boot_to_slot()? == Slot::B, "a slot was mounted whose first block is damaged");
    vm.cut()?;

    // Both are whole again.
    disk.flip_byte(Slot::A.root_label(), 1024)?;
    ensure!(vm.boot_to_slot()? == Slot::A, "slot A is whole, but B was taken");
    Ok(())
}
