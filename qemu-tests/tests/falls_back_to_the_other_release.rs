//! Two releases in two slots: the newer one boots; when its slot cannot be opened, the init asks once for the entry of
//! the other one and restarts, and the device says why.

use anyhow::{Context, Result, ensure};
use formats::entry;
use formats::layout::Slot;
use formats::status::Status;
use formats::verity::BLOCK;
use qemu_tests::disk::DiskImage;
use qemu_tests::testing::{TestVm, build_again, source_folder};
use std::path::Path;
use std::process::Command;

#[test]
fn falls_back_to_the_other_release() -> Result<()> {
    let work = tempfile::tempdir()?;
    let newer = newer_release(work.path())?;
    let vm = TestVm::create("device")?;
    let disk = vm.disk(0)?;
    for label in [Slot::root_label, Slot::verity_label] {
        disk.copy_from(&newer, label(Slot::A), label(Slot::B))?;
    }
    let names = newer.esp_list(entry::FOLDER)?;
    let name = names.first().context("the newer image has no UKI")?;
    let path = format!("{}/{name}", entry::FOLDER);
    disk.esp_write(&path, &newer.esp_read(&path)?)?;

    runs(&vm.boot()?, Slot::B, "1.0.1")?;
    vm.cut()?;

    disk.flip_byte(Slot::B.verity_label(), BLOCK as u64 + 100)?;
    let status = vm.boot()?;
    runs(&status, Slot::A, "1.0.0")?;
    let told = status.findings.iter().find(|finding| finding.code == "boot-fallback");
    let message = &told.context("the agent does not say that it fell back")?.message;
    ensure!(message.contains("1.0.1") && message.contains("slot b"), "it does not say why: {message}");
    Ok(())
}

fn runs(status: &Status, slot: Slot, version: &str) -> Result<()> {
    let observed = status.observed.as_ref().context("the agent does not know what runs")?;
    ensure!((observed.slot, observed.version.as_str()) == (slot, version), "{observed:?} runs");
    Ok(())
}

/// The profile under test as version 1.0.1.
fn newer_release(work: &Path) -> Result<DiskImage> {
    for folder in ["recipes", "x86_64", "arm64"] {
        let copied = Command::new("cp").arg("-r").arg(source_folder().join(folder)).arg(work).status()?;
        ensure!(copied.success(), "copy {folder}");
    }
    let profile = work.join("recipes/profiles/edge-minimal.yaml");
    let text = std::fs::read_to_string(&profile)?;
    let newer = text.replacen("version: 1.0.0", "version: 1.0.1", 1);
    ensure!(newer != text, "the profile's version is not 1.0.0");
    std::fs::write(&profile, newer)?;
    let out = work.join("out");
    build_again(&profile, &out, &[])?;
    Ok(DiskImage::new(out.join("disk.img")))
}
