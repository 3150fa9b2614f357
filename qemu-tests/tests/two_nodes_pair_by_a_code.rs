//! Two machines booted from one image become a pair by a code that a person carries from one console to the other. A
//! mistyped code is refused with the reason, and what a power cut interrupts goes on by itself.

use anyhow::{Result, ensure};
use qemu_tests::disk::DiskImage;
use qemu_tests::pair;
use qemu_tests::site::{Site, Wanted};
use qemu_tests::testing::{DISK_BYTES, Ended, pair_image};
use qemu_tests::vm::{BOOT_PATIENCE, Lifetime, Vm};
use std::time::Duration;

/// Emulated, both at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);
const WRONG: &str = "1111-2222";

fn says(vm: &Vm, words: &str) -> Result<()> {
    let said = || {
        let said = vm.sh("farhold-agent pair status")?;
        Ok(said.contains(words).then_some(()))
    };
    vm.wait(words, PATIENCE, said)
}

#[test]
fn two_nodes_pair_by_a_code() -> Result<()> {
    let image = pair_image()?.join("disk.img");
    let folder = tempfile::Builder::new().prefix("farhold-test-").tempdir()?;
    let arch = DiskImage::new(&image).arch()?;
    let wanted = Wanted { image, arch, nodes: 2, memory_mib: 768, disk_bytes: Some(DISK_BYTES) };
    let site = Site::create(&folder.path().join("site"), &wanted)?;
    let _ended = Ended(&site);
    let vms = [site.vm(Some("node1"))?, site.vm(Some("node2"))?];
    for vm in &vms {
        vm.start(Lifetime::Attached)?;
    }
    for (node, vm) in (1..).zip(&vms) {
        vm.follow_boot(BOOT_PATIENCE, |_, _| {})?;
        pair::give_address(vm, node)?;
    }
    let [first, second] = [pair::address(1), pair::address(2)];
    let said = vms[0].sh(&format!("farhold-agent pair first --address {first}"))?;
    let code = said.split_whitespace().find(|word| word.len() == 9 && word.as_bytes()[4] == b'-');
    let Some(code) = code else { anyhow::bail!("no code in `{said}`") };
    let join = |code: &str| format!("farhold-agent pair second --address {second} --peer {first} {code}");

    says(&vms[0], "waits for the second node")?;
    vms[1].sh(&join(WRONG))?;
    says(&vms[1], "REFUSED: the node at ")?;
    says(&vms[0], "callers with another code: 1")?;
    eprintln!("a mistyped code is refused");

    vms[1].sh(&join(code))?;
    vms[0].cut()?;
    vms[0].start(Lifetime::Attached)?;
    vms[0].follow_boot(BOOT_PATIENCE, |_, _| {})?;
    for vm in &vms {
        pair::wait_paired(vm, PATIENCE)?;
        says(vm, "no pairing is under way")?;
    }
    eprintln!("the right one makes them a pair, with the first node's power cut in between");
    for vm in &vms {
        let left = vm.sh("cat /var/lib/farhold-ha/*.json /var/lib/farhold/*.json 2>/dev/null || true")?;
        ensure!(!left.contains(code), "the code is still there: {left}");
    }
    Ok(())
}
