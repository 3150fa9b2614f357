//! The storage of this machine as the update engine meets it: the other slot's partitions, staged files, the ESP.

use crate::io::disk::{BlockDevice, Disk};
use crate::io::durable;
use crate::update::esp::{Esp, Folder};
use crate::update::install::{Platform, Volume};
use crate::update::written::{Counted, Written};
use anyhow::{Context, Result};
use formats::boot::Partitions;
use formats::layout::Slot;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Where objects are staged on the state partition.
const STAGED: &str = "/var/lib/farhold/staged";

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its partitions.
    pub partitions: Partitions,
    /// The slot that does not run.
    pub other: Slot,
    /// What was written.
    pub written: Written,
}

impl Machine {
    fn staged(&self, id: &formats::hex::Digest, bytes: u64) -> Result<PathBuf> {
        let folder = Path::new(STAGED);
        durable::make_folder(folder, 0o700)?;
        let path = folder.join(id.to_string());
        let what = || format!("make {} with {bytes} bytes", path.display());
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(what)?;
        if file.metadata().with_context(what)?.len() != bytes {
            // Room is taken now, so that it cannot run out half-way.
            let length = i64::try_from(bytes).with_context(what)?;
            nix::fcntl::posix_fallocate(&file, 0, length).with_context(what)?;
            file.set_len(bytes).with_context(what)?;
            file.sync_all().with_context(what)?;
            durable::sync_folder(folder)?;
        }
        Ok(path)
    }
}

const fn index(slot: Slot) -> usize {
    match slot {
        Slot::A => 0,
        Slot::B => 1,
    }
}

impl Platform for Machine {
    fn open(&mut self, volume: Volume) -> Result<Box<dyn Disk>> {
        let Partitions { root, verity, .. } = &self.partitions;
        let Written { slot, staged, .. } = &self.written;
        let writable = |path: &str| anyhow::Ok(Counted::new(BlockDevice::open(Path::new(path))?, slot));
        Ok(match volume {
            Volume::OtherRoot => Box::new(writable(&root[index(self.other)])?),
            Volume::OtherVerity => Box::new(writable(&verity[index(self.other)])?),
            Volume::RunningRoot => {
                let path = Path::new(&root[index(self.other.other())]);
                Box::new(BlockDevice::open_for_reading(path)?)
            }
            Volume::Staged(id, bytes) => {
                Box::new(Counted::new(BlockDevice::open(&self.staged(&id, bytes)?)?, staged))
            }
        })
    }

    fn discard(&mut self) -> Result<()> {
        match fs::remove_dir_all(STAGED) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {STAGED}"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn keep(&mut self, objects: &[formats::hex::Digest]) -> Result<()> {
        let names: Vec<String> = objects.iter().map(ToString::to_string).collect();
        for file in fs::read_dir(STAGED).into_iter().flatten().filter_map(std::result::Result::ok) {
            if !names.iter().any(|name| *name == *file.file_name().to_string_lossy()) {
                let path = file.path();
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn esp(&mut self) -> Result<Box<dyn Esp + '_>> {
        Ok(Box::new(Folder::mount(&self.partitions.esp)?.counted(&self.written.esp)))
    }

    fn var_free(&mut self) -> Result<u64> {
        let var = nix::sys::statvfs::statvfs("/var").context("ask for the room of /var")?;
        // What was staged before is room for what is staged now.
        let staged = fs::read_dir(STAGED).into_iter().flatten().filter_map(std::result::Result::ok);
        let staged: u64 = staged.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        Ok(var.blocks_available() * var.fragment_size() + staged)
    }
}
