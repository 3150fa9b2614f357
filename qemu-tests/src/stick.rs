//! A USB stick as a technician makes it at a desk, plugged into a machine that runs and pulled out of it.

use crate::qmp::Qmp;
use crate::vm::Vm;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// QEMU's names of the device and of what stands behind it.
const DEVICE: &str = "stick";
/// How long QEMU may take to let go of it.
const RELEASE: Duration = Duration::from_secs(60);

/// A stick of one FAT32 file system without a partition table.
pub struct FatStick {
    path: PathBuf,
}

impl FatStick {
    /// Makes a stick of `bytes` at `path`, with the files of `folder`.
    ///
    /// # Errors
    /// If they do not fit, or a file cannot be read or written.
    pub fn make(path: &Path, bytes: u64, folder: &Path) -> Result<Self> {
        let what = || format!("make the stick {}", path.display());
        let file = File::options().read(true).write(true).create_new(true).open(path).with_context(what)?;
        file.set_len(bytes).with_context(what)?;
        let options = fatfs::FormatVolumeOptions::new().fat_type(fatfs::FatType::Fat32);
        fatfs::format_volume(&file, options).with_context(what)?;
        let stick = Self { path: path.to_owned() };
        let fat = stick.fat(&file)?;
        copy(folder, &fat.root_dir())?;
        fat.unmount().with_context(what)?;
        Ok(stick)
    }

    fn fat<'f>(&self, file: &'f File) -> Result<fatfs::FileSystem<&'f File>> {
        fatfs::FileSystem::new(file, fatfs::FsOptions::new())
            .with_context(|| format!("open the stick {}", self.path.display()))
    }

    /// Names and texts of the files in a folder of the stick, which must be in no machine.
    ///
    /// # Errors
    /// If there is no such folder, or a file is no text.
    pub fn texts(&self, folder: &str) -> Result<Vec<(String, String)>> {
        let file = File::open(&self.path)?;
        let fat = self.fat(&file)?;
        let list = fat.root_dir().open_dir(folder).with_context(|| format!("open {folder} on the stick"))?;
        let mut found = Vec::new();
        for entry in list.iter() {
            let entry = entry?;
            if entry.is_file() {
                let mut text = String::new();
                entry.to_file().read_to_string(&mut text)?;
                found.push((entry.file_name(), text));
            }
        }
        Ok(found)
    }
}

fn copy(from: &Path, to: &fatfs::Dir<&File>) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let path = entry?.path();
        let name =
            path.file_name().and_then(|name| name.to_str()).context("a name that FAT does not have")?;
        if path.is_dir() {
            copy(&path, &to.create_dir(name)?)?;
        } else {
            let mut source = File::open(&path)?;
            io::copy(&mut source, &mut to.create_file(name)?)
                .with_context(|| format!("copy {} onto the stick", path.display()))?;
        }
    }
    Ok(())
}

impl Vm {
    /// Plugs the stick into the running machine, which has USB ports.
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn plug(&self, stick: &FatStick) -> Result<()> {
        let mut qmp = Qmp::connect(self.folder())?;
        let file = json!({ "driver": "file", "filename": stick.path });
        qmp.execute("blockdev-add", json!({ "driver": "raw", "node-name": DEVICE, "file": file }))?;
        let device = json!({ "driver": "usb-storage", "id": DEVICE, "drive": DEVICE, "bus": "usb.0" });
        qmp.execute("device_add", device).map(drop)
    }

    /// Pulls the stick out.
    ///
    /// # Errors
    /// If QEMU refuses, or does not let go of it.
    pub fn unplug(&self) -> Result<()> {
        let mut qmp = Qmp::connect(self.folder())?;
        qmp.execute("device_del", json!({ "id": DEVICE }))?;
        let node = json!({ "node-name": DEVICE });
        // Refused as long as the device is on its way out.
        self.wait("the stick's end", RELEASE, || Ok(qmp.execute("blockdev-del", node.clone()).ok())).map(drop)
    }
}
