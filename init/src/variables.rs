//! UEFI variables through efivarfs. On a machine without UEFI every variable is absent and none can be written.

use crate::ioctl;
use anyhow::{Context, Result};
use formats::efi::{self, EFIVARFS, VALUE_MAX, Variable};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The variables of this machine.
pub struct Variables {
    folder: PathBuf,
}

impl Variables {
    /// The kernel's folder of variables.
    pub fn of_machine() -> Self {
        Self { folder: PathBuf::from(EFIVARFS) }
    }

    fn path(&self, variable: Variable) -> PathBuf {
        self.folder.join(variable.file_name())
    }

    /// A variable's text; `None` if it is absent or unreadable, which is the same to the init: it does without.
    pub fn read(&self, variable: Variable) -> Option<String> {
        let mut bytes = Vec::new();
        let file = File::open(self.path(variable)).ok()?;
        file.take(VALUE_MAX as u64 + 8).read_to_end(&mut bytes).ok()?;
        efi::decode(&bytes)
    }

    /// A variable that holds a number in decimal digits.
    pub fn number(&self, variable: Variable) -> Option<u64> {
        self.read(variable)?.parse().ok()
    }

    /// Sets a variable so that it outlives the power.
    ///
    /// # Errors
    /// If there is no UEFI, or the firmware refuses.
    pub fn write(&self, variable: Variable, text: &str) -> Result<()> {
        let path = self.path(variable);
        write_file(&path, &efi::encode(text))
            .with_context(|| format!("write UEFI variable {}", path.display()))
    }
}

/// One open, one write: efivarfs takes a value whole.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Ok(existing) = File::open(path) {
        ioctl::make_mutable(&existing).context("clear the immutable flag")?;
    }
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    let written = file.write(bytes)?;
    anyhow::ensure!(written == bytes.len(), "{written} of {} bytes written", bytes.len());
    Ok(())
}
