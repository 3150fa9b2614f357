//! A fresh disk boots to a running agent on a verified read-only root, and keeps its identity, and only that and
//! `/var`, over a reboot and a power cut.

use anyhow::{Context, Result, ensure};
use formats::boot::StateFacts;
use formats::entry::{self, EntryName};
use formats::layout::{LABEL_ESP, LABEL_STATE, Slot};
use formats::status::{AgentState, Status};
use qemu_tests::disk::DiskImage;
use qemu_tests::testing::{DISK_BYTES, TestVm, build_folder};
use qemu_tests::vm::Vm;

/// The agent's resident memory at rest (design section 9).
const AGENT_RSS_MAX: u64 = 16 << 20;

#[test]
fn boots_to_running() -> Result<()> {
    let image = DiskImage::new(build_folder()?.join("disk.img"));
    let vm = TestVm::create("device")?;
    let first = vm.boot()?;
    everything_runs(&first)?;
    the_slot_is_the_signed_one(&first, &image)?;
    the_root_is_read_only_and_verified(&vm)?;
    the_state_partition_fills_the_disk(&vm, &first)?;
    ensure!(first.agent_rss_bytes <= AGENT_RSS_MAX, "the agent uses {} KiB", first.agent_rss_bytes >> 10);

    let identity = identity(&vm)?;
    ensure!(identity.0 == first.machine_id && is_machine_id(&identity.0), "machine-id is {}", identity.0);
    vm.sh("echo 1 > /etc/farhold-leftover; echo 1 > /var/lib/farhold-kept; hostname left-over; sync")?;

    let second = vm.reboot()?;
    everything_runs(&second)?;
    only_the_state_survived(&vm, &identity, &second)?;

    vm.sh("echo 1 > /etc/farhold-leftover; sync")?;
    vm.cut()?;
    let third = vm.boot()?;
    everything_runs(&third)?;
    only_the_state_survived(&vm, &identity, &third)?;

    let fresh = image.digest(LABEL_ESP)?;
    ensure!(vm.disk(0)?.digest(LABEL_ESP)? == fresh, "the ESP was written in three boots of steady state");
    Ok(())
}

fn everything_runs(status: &Status) -> Result<()> {
    ensure!(status.failed_units.is_empty(), "failed units: {:?}", status.failed_units);
    ensure!(status.system == "running", "the system is {}", status.system);
    ensure!(status.agent == AgentState::Running, "the agent is {:?}: {:?}", status.agent, status.findings);
    Ok(())
}

fn the_slot_is_the_signed_one(status: &Status, image: &DiskImage) -> Result<()> {
    let observed = status.observed.as_ref().context("the agent does not know what runs")?;
    ensure!(observed.slot == Slot::A, "a fresh disk runs from slot {}", observed.slot);
    let names = image.esp_list(entry::FOLDER)?;
    let wanted = EntryName::uncounted(&observed.version, &observed.roothash.short());
    ensure!(names == [wanted.file_name()], "{observed:?} runs, but the ESP has {names:?}");
    Ok(())
}

fn the_root_is_read_only_and_verified(vm: &Vm) -> Result<()> {
    let mount = vm.sh("findmnt -no FSTYPE,OPTIONS /")?;
    ensure!(mount.starts_with("erofs") && mount.contains("ro"), "the root is mounted as {mount}");
    let device =
        vm.sh("d=$(findmnt -no MAJ:MIN / | tr -d ' '); cd /sys/dev/block/$d; cat ro dm/name; ls slaves")?;
    ensure!(device == "1\nfarhold-root\nvda2\nvda3", "the root's device is {device:?}");
    for attempt in ["touch /x", "touch /usr/bin/x", "mount -o remount,rw /"] {
        let outcome = vm.run(&format!("{attempt} 2>&1"))?;
        ensure!(outcome.code != 0, "`{attempt}` succeeded");
        let why = outcome.stdout.to_lowercase();
        ensure!(why.contains("read-only") || why.contains("write-protected"), "`{attempt}`: {why}");
    }
    Ok(())
}

fn the_state_partition_fills_the_disk(vm: &Vm, status: &Status) -> Result<()> {
    let Some(StateFacts::Persistent { device, bytes, made, grown_bytes, .. }) = &status.state else {
        anyhow::bail!("/var is not on the state partition: {:?}", status.state);
    };
    ensure!(*made && *grown_bytes > 0, "made {made}, grown by {grown_bytes}");
    let extent = vm.disk(0)?.partition(LABEL_STATE)?;
    ensure!(extent.bytes == *bytes, "the partition has {} bytes, the agent says {bytes}", extent.bytes);
    let end = extent.start + extent.bytes;
    ensure!(
        DISK_BYTES - end < 2 << 20,
        "the state partition ends {} bytes before the disk",
        DISK_BYTES - end
    );
    let mount = vm.sh("findmnt -no SOURCE,FSTYPE /var; df -B1 --output=size /var | tail -1")?;
    let words: Vec<&str> = mount.split_whitespace().collect();
    let [source, "ext4", size] = words.as_slice() else { anyhow::bail!("/var is {mount:?}") };
    ensure!(source == device, "/var is on {source}, the agent says {device}");
    let size: u64 = size.parse()?;
    ensure!(size > extent.bytes / 10 * 9, "/var has {size} of {} bytes", extent.bytes);
    Ok(())
}

/// machine-id and SSH host key.
fn identity(vm: &Vm) -> Result<(String, String)> {
    let key = vm.sh("cat /etc/ssh/ssh_host_ed25519_key.pub")?;
    ensure!(key.starts_with("ssh-ed25519 "), "the host key is {key:?}");
    Ok((vm.sh("cat /etc/machine-id")?, key))
}

fn is_machine_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit()) && text != "0".repeat(32)
}

fn only_the_state_survived(vm: &Vm, before: &(String, String), status: &Status) -> Result<()> {
    // The login itself would fail if the host key were another: it was remembered at the first one.
    ensure!(identity(vm)? == *before, "machine-id or host key changed");
    ensure!(status.node != "left-over", "the host name of an earlier boot is kept");
    let left = vm.sh("cat /var/lib/farhold-kept; ls /etc/farhold-leftover 2>&1 || true")?;
    ensure!(left.starts_with("1\n") && left.contains("No such file"), "after a boot: {left:?}");
    let Some(StateFacts::Persistent { made: false, .. }) = &status.state else {
        anyhow::bail!("the state partition was not kept: {:?}", status.state);
    };
    Ok(())
}
