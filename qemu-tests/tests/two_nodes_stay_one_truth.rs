//! Two machines booted from one image are made a pair. The cable between them is pulled, the primary's power is cut, both
//! are off and on: what was acknowledged is there, and one node at a time takes writes. Order and safety, not seconds.

use anyhow::{Context, Result, ensure};
use qemu_tests::disk::DiskImage;
use qemu_tests::machine::LAN;
use qemu_tests::pair;
use qemu_tests::site::{Site, Wanted};
use qemu_tests::testing::{DISK_BYTES, pair_image};
use qemu_tests::vm::{BOOT_PATIENCE, Vm};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// Emulated, both at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(600);

/// All processes of the agent on a node of a pair.
const AGENT_MAX: u64 = 24 << 20;

/// A site that ends with the test.
struct Lab {
    site: Site,
    vms: [Vm; 2],
    _folder: tempfile::TempDir,
    /// Highest number that was acknowledged.
    acknowledged: u32,
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.site.down() {
            eprintln!("{error:#}");
        }
    }
}

fn tell(what: &str) {
    eprintln!("two nodes: {what}");
}

/// One statement through a node's local datastore port, as k3s would send it; gives what came back.
fn through_port(vm: &Vm, statement: &str) -> Result<Result<String, String>> {
    let outcome = vm.run(&format!(
        "PGPASSWORD=$(sed -E 's/.*\"datastore_password\":\"([^\"]+)\".*/\\1/' /var/lib/farhold-k3s/secrets) PGCONNECT_TIMEOUT=20 \
         timeout 60 /usr/lib/postgresql/17/bin/psql -h 127.0.0.1 -p 5433 -U kine -d kine -qAtc \"{statement}\""
    ))?;
    let said = if outcome.code == 0 { Ok(outcome.stdout) } else { Err(outcome.stderr) };
    Ok(said.map(|text| text.trim().to_owned()).map_err(|text| text.trim().to_owned()))
}

fn leads(status: &Value) -> bool {
    status["is_primary"] == true && status["port"] == "Local"
}

impl Lab {
    fn create() -> Result<Self> {
        let image = pair_image()?.join("disk.img");
        let folder = tempfile::Builder::new().prefix("farhold-test-").tempdir()?;
        let arch = DiskImage::new(&image).arch()?;
        let wanted = Wanted { image, arch, nodes: 2, memory_mib: 768, disk_bytes: Some(DISK_BYTES) };
        let site = Site::create(&folder.path().join("site"), &wanted)?;
        let vms = [site.vm(Some("node1"))?, site.vm(Some("node2"))?];
        Ok(Self { site, vms, _folder: folder, acknowledged: 0 })
    }

    fn boot(&self, vm: &Vm) -> Result<()> {
        let (_, took) = vm.follow_boot(BOOT_PATIENCE, |_, _| {})?;
        tell(&format!("{} is up after {} s", vm.machine()?.name, took.as_secs()));
        Ok(())
    }

    /// Writes the next numbers through a node's port.
    fn write(&mut self, node: usize, count: u32) -> Result<()> {
        for _ in 0..count {
            let next = self.acknowledged + 1;
            through_port(&self.vms[node], &format!("INSERT INTO truth VALUES ({next})"))?
                .map_err(|why| anyhow::anyhow!("write through node {}: {why}", node + 1))?;
            self.acknowledged = next;
        }
        Ok(())
    }

    /// All that was acknowledged, and no more, is seen through a node's port.
    fn complete(&self, node: usize) -> Result<()> {
        let seen = through_port(&self.vms[node], "SELECT count(*), coalesce(max(n), 0) FROM truth")?
            .map_err(|why| anyhow::anyhow!("read through node {}: {why}", node + 1))?;
        let wanted = format!("{0}|{0}", self.acknowledged);
        ensure!(seen == wanted, "node {} has {seen}, but {wanted} was acknowledged", node + 1);
        Ok(())
    }

    fn wait_paired(&self) -> Result<()> {
        self.vms.iter().try_for_each(|vm| pair::wait_paired(vm, PATIENCE).map(drop))
    }

    /// Index of the primary, when both are in sync and k3s is ready on both.
    fn primary(&self) -> Result<usize> {
        self.wait_paired()?;
        let mut primary = Err(anyhow::anyhow!("nobody is primary"));
        for (index, vm) in self.vms.iter().enumerate() {
            let ready = |status: &Value| {
                status["k3s"]["ready"] == true && matches!(status["port"].as_str(), Some("Local" | "Peer"))
            };
            let status = pair::wait(vm, "k3s", PATIENCE, ready)?;
            if leads(&status) {
                primary = Ok(index);
            }
        }
        primary
    }
}

/// The cable between the nodes is pulled: one goes on, the other's port is closed.
fn pulled(lab: &mut Lab) -> Result<()> {
    let before = lab.primary()?;
    tell(&format!("the cable is pulled; node {} is primary", before + 1));
    lab.vms[0].link(LAN, false)?;
    lab.vms[1].link(LAN, false)?;
    let alone = |status: &Value| status["mode"] == "solo" && leads(status);
    let mut survivor = None;
    let deadline = std::time::Instant::now() + PATIENCE;
    while survivor.is_none() {
        ensure!(std::time::Instant::now() < deadline, "nobody went on alone");
        for (index, vm) in lab.vms.iter().enumerate() {
            if pair::status(vm)?.is_some_and(|status| alone(&status)) {
                survivor = Some(index);
            }
        }
    }
    let survivor = survivor.context("nobody went on")?;
    tell(&format!("node {} goes on alone", survivor + 1));
    lab.write(survivor, 2)?;
    let other = 1 - survivor;
    let cut_off =
        pair::wait(&lab.vms[other], "its port to close", PATIENCE, |status| status["port"] == "Closed")?;
    ensure!(!leads(&cut_off), "both serve: {cut_off}");
    let refused = through_port(&lab.vms[other], "INSERT INTO truth VALUES (1000000)")?;
    ensure!(refused.is_err(), "the node that was cut off took a write: {refused:?}");
    lab.complete(survivor)?;
    tell("the cable is put back");
    lab.vms[0].link(LAN, true)?;
    lab.vms[1].link(LAN, true)?;
    lab.wait_paired()
}

/// The primary's QEMU is killed while it takes writes: the other has all that was acknowledged.
fn cut(lab: &mut Lab) -> Result<()> {
    let primary = lab.primary()?;
    let (other, name) = (1 - primary, format!("node{}", primary + 1));
    lab.write(primary, 3)?;
    tell(&format!("the power of {name} is cut"));
    lab.vms[primary].cut()?;
    pair::wait(&lab.vms[other], "the other to go on", PATIENCE, |status| {
        status["mode"] == "solo" && leads(status)
    })?;
    lab.complete(other)?;
    lab.write(other, 3)?;
    tell(&format!("{name} is switched on"));
    lab.site.start(Some(&name))?;
    lab.boot(&lab.vms[primary])?;
    let now = lab.primary()?;
    ensure!(now == other, "{name} took the primary role back by itself");
    lab.complete(0)?;
    lab.complete(1)
}

/// Both are off at once.
fn dark(lab: &mut Lab) -> Result<()> {
    let primary = lab.primary()?;
    lab.write(primary, 1)?;
    tell("the power of both is cut");
    lab.vms.iter().try_for_each(Vm::cut)?;
    lab.site.start(None)?;
    lab.vms.iter().try_for_each(|vm| lab.boot(vm))?;
    let primary = lab.primary()?;
    lab.complete(primary)?;
    lab.write(primary, 1)?;
    lab.complete(1 - primary)
}

#[test]
fn two_nodes_stay_one_truth() -> Result<()> {
    let mut lab = Lab::create()?;
    lab.site.start(None)?;
    lab.vms.iter().try_for_each(|vm| lab.boot(vm))?;
    let agent =
        std::env::var_os("FARHOLD_AGENT").context("FARHOLD_AGENT is not set: run this by `make test-all`")?;
    pair::enrol(&lab.site, &PathBuf::from(agent), PATIENCE, tell)?;
    let primary = lab.primary()?;
    for vm in &lab.vms {
        // The device's own status has the pair in one line.
        let status = vm.wait_status("the pair", PATIENCE, |status| {
            status.ha.as_ref().is_some_and(|ha| ha.mode == "paired")
        })?;
        let ha = status.ha.unwrap_or_default();
        tell(&format!("{}: {}", vm.machine()?.name, ha.text));
        ensure!((1..=AGENT_MAX).contains(&ha.agent_bytes), "the agent takes {} KiB", ha.agent_bytes >> 10);
    }
    through_port(&lab.vms[primary], "CREATE TABLE truth (n int PRIMARY KEY)")?.map_err(anyhow::Error::msg)?;
    lab.write(primary, 2)?;
    pulled(&mut lab)?;
    cut(&mut lab)?;
    dark(&mut lab)?;
    tell(&format!("{} writes were acknowledged, and all are there", lab.acknowledged));
    Ok(())
}
