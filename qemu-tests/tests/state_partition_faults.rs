//! A full, damaged or unwritable state partition: the device boots, says so, and loses nothing that can be kept.

use anyhow::{Context, Result, ensure};
use formats::boot::StateFacts;
use formats::layout::{LABEL_STATE, STATE_MARK_BYTES};
use formats::status::{Severity, Status};
use qemu_tests::testing::TestVm;

/// Where ext4 has its first superblock in the partition, and its length, bytes.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

#[test]
fn keeps_what_can_be_kept() -> Result<()> {
    let vm = TestVm::create("device")?;
    let machine_id = vm.boot()?.machine_id;

    full(&vm, &machine_id)?;
    corrupt_database(&vm, &machine_id)?;
    unwritable(&vm, &machine_id)?;
    lost_superblock(&vm, &machine_id)
}

fn full(vm: &TestVm, machine_id: &str) -> Result<()> {
    vm.sh("dd if=/dev/zero of=/var/lib/filler bs=1M 2>/dev/null; sync; test $(df --output=avail /var | tail -1) = 0")?;
    vm.cut()?;
    let status = vm.boot()?;
    ensure!(status.machine_id == machine_id, "full: the machine-id changed");
    says(&status, "state-full")?;
    vm.sh("rm /var/lib/filler; sync; echo kept > /var/lib/kept; sync").map(drop)
}

fn corrupt_database(vm: &TestVm, machine_id: &str) -> Result<()> {
    vm.sh("systemctl stop farhold-agent; cd /var/lib/farhold; \
           dd if=/dev/urandom of=agent.db bs=4096 seek=1 count=2 conv=notrunc 2>/dev/null; rm -f agent.db-wal; sync")?;
    vm.cut()?;
    let status = vm.boot()?;
    ensure!(status.machine_id == machine_id, "corrupt database: the machine-id changed");
    says(&status, "store-salvaged")?;
    let files = vm.sh("ls /var/lib/farhold; cat /var/lib/kept")?;
    ensure!(
        files.lines().filter(|file| file.starts_with("agent.db")).count() > 1,
        "nothing was set aside: {files}"
    );
    ensure!(files.ends_with("kept"), "a file on /var was lost: {files}");
    vm.cut()
}

fn unwritable(vm: &TestVm, machine_id: &str) -> Result<()> {
    vm.change(|machine| machine.disks[0].read_only = true)?;
    let status = vm.boot()?;
    ensure!(matches!(status.state, Some(StateFacts::ReadOnly { .. })), "state: {:?}", status.state);
    ensure!(status.machine_id == machine_id, "read-only: the machine-id changed");
    says(&status, "state-read-only")?;
    let kept = vm.sh("cat /var/lib/kept")?;
    ensure!(kept == "kept", "what is on the disk cannot be read: {kept}");
    vm.cut()?;
    vm.change(|machine| machine.disks[0].read_only = false)
}

fn lost_superblock(vm: &TestVm, machine_id: &str) -> Result<()> {
    let disk = vm.disk(0)?;
    let (at, bytes) = SUPERBLOCK;
    let good = disk.read(LABEL_STATE, at, bytes)?;
    disk.write(LABEL_STATE, at, &vec![0; bytes])?;
    let status = vm.boot()?;
    match &status.state {
        Some(StateFacts::Persistent { made, repaired, .. }) => {
            ensure!(!made && *repaired, "a lost superblock was not repaired: {:?}", status.state);
            ensure!(status.machine_id == machine_id, "repaired: the machine-id changed");
            return Ok(());
        }
        Some(StateFacts::Ephemeral { .. }) => says(&status, "state-ephemeral")?,
        Some(StateFacts::ReadOnly { .. }) | None => anyhow::bail!("state: {:?}", status.state),
    }
    vm.cut()?;
    // Nothing was made over it: with its superblock back, all is there.
    disk.write(LABEL_STATE, at, &good)?;
    let status = vm.boot()?;
    ensure!(status.machine_id == machine_id, "the machine-id was lost");
    ensure!(vm.sh("cat /var/lib/kept")? == "kept", "a file on /var was lost");
    Ok(())
}

#[test]
fn makes_nothing_where_the_marker_is_missing() -> Result<()> {
    let vm = TestVm::create("device")?;
    let disk = vm.disk(0)?;
    let somebodys = [0x5a; STATE_MARK_BYTES];
    disk.write(LABEL_STATE, 0, &somebodys)?;
    let status = vm.boot()?;
    ensure!(matches!(status.state, Some(StateFacts::Ephemeral { .. })), "state: {:?}", status.state);
    says(&status, "state-ephemeral")?;
    vm.cut()?;
    ensure!(disk.read(LABEL_STATE, 0, STATE_MARK_BYTES)? == somebodys, "the partition was written");
    Ok(())
}

/// The status has this finding, with something to do.
fn says(status: &Status, code: &str) -> Result<()> {
    let finding = status.findings.iter().find(|finding| finding.code == code);
    let finding = finding.with_context(|| format!("no finding `{code}`: {:?}", status.findings))?;
    ensure!(finding.severity <= Severity::Warning && !finding.next.is_empty(), "{finding:?}");
    Ok(())
}
