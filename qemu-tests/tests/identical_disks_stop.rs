//! Two disks with the same GUIDs: nobody can tell which one was started, so the machine stops and says so.

use anyhow::{Result, ensure};
use formats::layout::LABEL_STATE;
use qemu_tests::disk::DiskImage;
use qemu_tests::machine::Disk;
use qemu_tests::testing::{TestVm, build_folder};

#[test]
fn identical_disks_stop() -> Result<()> {
    let image = build_folder()?.join("disk.img");
    let vm = TestVm::create_with("twins", &[&image, &image], |machine| {
        machine.disks.push(Disk::virtio("disk1.img"));
    })?;
    let line = vm.boot_to_stop()?;
    for word in ["/dev/vda and /dev/vdb", "one is a copy of the other", "remove one"] {
        ensure!(line.contains(word), "the message does not say `{word}`: {line}");
    }
    let fresh = DiskImage::new(&image);
    for index in [0, 1] {
        let same = vm.disk(index)?.read(LABEL_STATE, 0, 4096)? == fresh.read(LABEL_STATE, 0, 4096)?;
        ensure!(same, "a state partition was made on disk {index}");
    }
    Ok(())
}
