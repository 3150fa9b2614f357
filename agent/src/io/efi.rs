//! The init's record of a fallback, read and removed.

use crate::io::ioctl;
use anyhow::{Context, Result};
use formats::efi::{self, EFIVARFS, Fallback, VALUE_MAX, Variable};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

fn path() -> PathBuf {
    Path::new(EFIVARFS).join(Variable::FarholdFallback.file_name())
}

/// The record, if the init left one.
///
/// # Errors
/// If there is one that cannot be read.
pub fn fallback() -> Result<Option<Fallback>> {
    let path = path();
    let mut bytes = Vec::new();
    match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|file| file.take(VALUE_MAX as u64 + 8).read_to_end(&mut bytes)),
    }
    .with_context(|| format!("read UEFI variable {}", path.display()))?;
    Ok(efi::decode(&bytes).and_then(|text| Fallback::parse(&text)))
}

/// Removes the record, so that the next failure starts anew.
///
/// # Errors
/// If the firmware refuses.
pub fn clear_fallback() -> Result<()> {
    let path = path();
    let clear = || {
        ioctl::make_mutable(&File::open(&path)?)?;
        fs::remove_file(&path)
    };
    clear().with_context(|| format!("remove UEFI variable {}", path.display()))
}
