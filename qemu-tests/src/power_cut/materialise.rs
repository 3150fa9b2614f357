//! Disks of states: to be checked by `fsck.fat`, or to be booted.

use crate::disk::DiskImage;
use crate::power_cut::volume::{Contents, FILE_DATA, SECTOR, Sector, Volume};
use crate::qemu::farhold;
use anyhow::{Context, Result, ensure};
use formats::layout::LABEL_ESP;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Writes a volume whose files are holes: all that describes them is there.
///
/// # Errors
/// If it cannot be written.
pub fn described(volume: &Volume, contents: &Contents, path: &Path) -> Result<()> {
    let what = || format!("write {}", path.display());
    let file = File::create(path).with_context(what)?;
    file.set_len(volume.len() as u64 * SECTOR as u64).with_context(what)?;
    for (n, content) in
        (0u64..).zip(volume.sectors()).filter(|(_, content)| (1..FILE_DATA).contains(*content))
    {
        let bytes = contents.bytes(*content).context("a sector of the trace has no bytes")?;
        file.write_all_at(bytes, n * SECTOR as u64).with_context(what)?;
    }
    Ok(())
}

/// Turns the ESP of a disk, on which `base` stands, into another state; `data` are the parts of files.
///
/// # Errors
/// If the disk cannot be written, or is another one.
pub fn onto(
    disk: &DiskImage,
    base: &Volume,
    volume: &Volume,
    bytes: (&Contents, &[Sector]),
) -> Result<usize> {
    ensure!(base.len() == volume.len(), "states of two disks");
    let (contents, data) = bytes;
    let mut written = 0;
    for (n, content) in (0u64..).zip(volume.sectors()).filter(|(n, content)| base.at(*n as u32) != **content)
    {
        let sector = match content.checked_sub(FILE_DATA) {
            Some(part) => data.get(part as usize),
            None => contents.bytes(*content),
        };
        let sector = sector.context("a sector of the trace has no bytes")?;
        disk.write(LABEL_ESP, n * SECTOR as u64, sector)?;
        written += 1;
    }
    Ok(written)
}

/// `fsck.fat` of the builder's tools.
#[derive(Debug)]
pub struct Fsck {
    root: PathBuf,
}

impl Fsck {
    /// Finds it.
    ///
    /// # Errors
    /// If there is no `farhold`, or it has no tools.
    pub fn find() -> Result<Self> {
        let program = farhold().context("the `farhold` program was not found; set FARHOLD to its path")?;
        let output = Command::new(&program).args(["tools", "build"]).output();
        let output = output.with_context(|| format!("start {}", program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "`farhold tools build` failed: {}", said.trim());
        let root = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        ensure!(root.join("usr/sbin/fsck.fat").exists(), "{} has no fsck.fat", root.display());
        Ok(Self { root })
    }

    /// What it says of a volume, without changing it.
    ///
    /// # Errors
    /// If it cannot be started, or cannot read the volume at all.
    pub fn check(&self, image: &Path) -> Result<String> {
        let arch = std::env::consts::ARCH;
        let loader = match arch {
            "aarch64" => "usr/lib/ld-linux-aarch64.so.1",
            _ => "usr/lib64/ld-linux-x86-64.so.2",
        };
        let output = Command::new(self.root.join(loader))
            .arg("--library-path")
            .arg(self.root.join(format!("usr/lib/{arch}-linux-gnu")))
            .arg(self.root.join("usr/sbin/fsck.fat"))
            .arg("-n")
            .arg(image)
            .env("LC_ALL", "C")
            .output()
            .context("start fsck.fat")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // 0: nothing found; 1: found something that it would repair.
        let code = output.status.code();
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(matches!(code, Some(0 | 1)), "fsck.fat ended with {code:?}: {said}{errors}");
        Ok(said)
    }
}
