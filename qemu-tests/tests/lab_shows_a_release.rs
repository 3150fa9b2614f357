//! `farhold lab link` makes a machine's network slow and lossy, `farhold lab push` brings a release over it and shows how it goes,
//! up to the version that runs. Afterwards the network is what it was.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use qemu_tests::disk::DiskImage;
use qemu_tests::programs::run;
use qemu_tests::scenario::runs;
use qemu_tests::site::{Site, Wanted};
use qemu_tests::testing::{DISK_BYTES, Ended, build_folder};
use qemu_tests::vm::{BOOT_PATIENCE, Lifetime};
use qemu_tests::workshop::Workshop;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

/// Ends also when the test fails.
struct Link(Child);

impl Drop for Link {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("{error}");
        }
    }
}

#[test]
#[cfg_attr(not(feature = "long"), ignore = "takes minutes: make test-all")]
fn lab_shows_a_release_over_a_bad_link() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("farhold-test-").tempdir()?;
    let mut workshop = Workshop::new(folder.path())?;
    let first = build_folder()?;
    workshop.publish(&first)?;
    let second = workshop.bake("1.0.1")?;
    let published = workshop.publish(&second)?;

    let image = first.join("disk.img");
    let arch = DiskImage::new(&image).arch()?;
    let wanted = Wanted { image, arch, nodes: 1, memory_mib: 1024, disk_bytes: Some(DISK_BYTES) };
    let site = Site::create(&folder.path().join("site"), &wanted)?;
    let _ended = Ended(&site);
    let vm = site.vm(None)?;
    vm.start(Lifetime::Attached)?;
    vm.follow_boot(BOOT_PATIENCE, |_, _| {})?;

    let mut command = workshop.programs().farhold();
    command.args(["lab", "link", "--json", "--rate", "256kbit", "--loss", "2%", "--seed", "1", "--dir"]);
    command.arg(site.folder()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut link = Link(command.spawn().context("start farhold lab link")?);
    let mut said = String::new();
    BufReader::new(link.0.stderr.take().context("hear the link")?).read_line(&mut said)?;
    ensure!(said.contains("node1 behind the link"), "the link says: {said}");

    let mut command = workshop.programs().farhold();
    command.args(["lab", "push", "--json"]).arg(workshop.repository()).arg("--dir").arg(site.folder());
    let told: Value = serde_json::from_str(&run(&mut command)?)?;
    eprintln!("  {told}");
    let node = &told[0];
    ensure!(node["node"] == "node1" && node["good"] == true && node["version"] == "1.0.1", "{told}");
    let fetched = node["fetched_bytes"].as_u64().context("no bytes")?;
    ensure!(fetched >= published.delta_bytes && fetched < published.full_bytes / 10, "{told}, {published:?}");
    ensure!(node["last"].as_str().is_some_and(|last| last.contains("committed")), "{told}");

    kill(Pid::from_raw(i32::try_from(link.0.id())?), Signal::SIGINT).context("end the link")?;
    let said = std::io::read_to_string(link.0.stdout.take().context("hear the link")?)?;
    let there: Value = serde_json::from_str(&said).with_context(|| format!("the link says `{said}`"))?;
    let there = &there["node1"]["there"];
    ensure!(there["delivered_bytes"].as_u64() >= Some(fetched), "the link counted {there}");
    ensure!(there["lost"].as_u64() > Some(0), "the link lost nothing: {there}");
    vm.sh("true").context("the network after the link's end")?;
    let status = vm.ask_status()?.context("the node does not answer")?;
    ensure!(runs(&status)? == (Slot::B, "1.0.1"), "{:?} runs", status.observed);
    Ok(())
}
