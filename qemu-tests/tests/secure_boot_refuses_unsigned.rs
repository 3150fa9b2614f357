//! With Secure Boot on and one key enrolled, firmware and boot loader start what that key signed, unchanged, and
//! nothing else. The key is made for this test.

use anyhow::{Context, Result, ensure};
use formats::entry;
use qemu_tests::disk::DiskImage;
use qemu_tests::firmware_vars;
use qemu_tests::machine::VARS;
use qemu_tests::testing::{TestVm, build_again, build_folder, source_folder};
use qemu_tests::vm::BOOT_PATIENCE;
use std::path::Path;
use std::process::Command;

#[test]
fn secure_boot_refuses_unsigned() -> Result<()> {
    let work = tempfile::tempdir()?;
    let (key, certificate) = (work.path().join("db.key"), work.path().join("db.crt"));
    make_key(&key, &certificate)?;
    let signed = work.path().join("signed");
    let options = ["--secure-boot-key", text(&key)?, "--secure-boot-cert", text(&certificate)?];
    build_again(&source_folder().join("recipes/profiles/edge-minimal.yaml"), &signed, &options)?;
    let der = openssl(&["x509", "-outform", "DER", "-in", text(&certificate)?])?;
    let unsigned = DiskImage::new(build_folder()?.join("disk.img"));
    let uki = |disk: &DiskImage| -> Result<String> {
        let names = disk.esp_list(entry::FOLDER)?;
        let name = names.first().context("the ESP has no UKI")?;
        Ok(format!("{}/{name}", entry::FOLDER))
    };

    let vm = machine(&signed.join("disk.img"), &der)?;
    vm.boot()?;
    // The last byte of the variable is its value, after four of attributes.
    let enforced = vm.sh("od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-* | tr -s ' '")?;
    ensure!(enforced.trim().ends_with(" 1"), "the firmware did not enforce: {enforced}");
    vm.cut()?;

    let disk = vm.disk(0)?;
    let path = uki(&disk)?;
    let good = disk.esp_read(&path)?;
    let mut altered = good.clone();
    let at = altered.windows(9).position(|w| w == b"roothash=").context("the UKI has no roothash")? + 9;
    altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
    for (what, bytes) in [("altered", altered), ("unsigned", unsigned.esp_read(&uki(&unsigned)?)?)] {
        disk.esp_write(&path, &bytes)?;
        refused(&vm).with_context(|| format!("an {what} UKI"))?;
    }

    let vm = machine(unsigned.path(), &der)?;
    refused(&vm).context("an unsigned boot loader")
}

/// A machine that enforces signatures by one certificate.
fn machine(image: &Path, certificate: &[u8]) -> Result<TestVm> {
    let vm = TestVm::create_with("device", &[image], |machine| machine.secure_boot = true)?;
    let path = vm.folder().join(VARS);
    let mut vars = std::fs::read(&path)?;
    firmware_vars::enrol(&mut vars, certificate)?;
    std::fs::write(&path, vars)?;
    Ok(vm)
}

fn refused(vm: &TestVm) -> Result<()> {
    vm.power_on()?;
    let mut console = vm.console()?;
    let signs =
        ["Access Denied", "Access denied", "Security Violation", "Linux version", "farhold", " login:"];
    let (index, line) = vm.wait_console(&mut console, &signs, BOOT_PATIENCE)?;
    vm.cut()?;
    ensure!(index < 3, "was started: {line}");
    Ok(())
}

fn make_key(key: &Path, certificate: &Path) -> Result<()> {
    let names = ["-subj", "/CN=Farhold test", "-days", "3650", "-sha256"];
    let files = ["-keyout", text(key)?, "-out", text(certificate)?];
    let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes"];
    openssl(&[request.as_slice(), &names, &files].concat()).map(drop)
}

fn openssl(arguments: &[&str]) -> Result<Vec<u8>> {
    let output =
        Command::new("openssl").args(arguments).output().context("start openssl: install `openssl`")?;
    ensure!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
