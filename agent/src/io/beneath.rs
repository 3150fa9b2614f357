//! Files below a folder that a stranger may have filled: no name leads out of it, no symbolic link is followed, nothing but
//! regular files is opened, and opening never waits (a FIFO would).

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

fn open_at(folder: &OwnedFd, name: &Path, flags: OFlag) -> Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mode = if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o644) } else { Mode::empty() };
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).mode(mode).resolve(resolve);
    Ok(openat2(folder, name, how)?)
}

/// Opens a regular file below a folder for reading.
///
/// # Errors
/// The kernel's; [`ErrorKind::NotFound`] also for what is no regular file, or would be reached by a link.
pub fn open(folder: &Path, name: &str) -> Result<File> {
    let file = match open_at(&File::open(folder)?.into(), Path::new(name), OFlag::O_RDONLY) {
        Ok(file) => File::from(file),
        Err(error)
            if [Errno::ELOOP, Errno::EXDEV, Errno::ENXIO]
                .contains(&Errno::from_raw(error.raw_os_error().unwrap_or(0))) =>
        {
            return Err(Error::new(ErrorKind::NotFound, format!("{name} is no plain file: {error}")));
        }
        Err(error) => return Err(error),
    };
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::NotFound, format!("{name} is no plain file")))
}

/// Puts a file into a subfolder, which is made if it is not there; one of that name is replaced at once.
///
/// # Errors
/// The kernel's; then nothing new is left behind, where the folder can still be written.
pub fn replace(folder: &Path, subfolder: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let top: OwnedFd = File::open(folder)?.into();
    match mkdirat(&top, subfolder, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let at = open_at(&top, Path::new(subfolder), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let temporary = format!("{name}.new");
    // A file that was left behind, or put there, goes first: what is written is always new.
    match unlinkat(&at, temporary.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut file = File::from(open_at(&at, Path::new(&temporary), flags)?);
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    let written = written.and_then(|()| Ok(renameat(&at, temporary.as_str(), &at, name)?));
    // On a stick that is gone this fails too, which changes nothing.
    if written.is_err() && unlinkat(&at, temporary.as_str(), UnlinkatFlags::NoRemoveDir).is_err() {
        tracing::debug!(temporary, "an unfinished report stays");
    }
    written?;
    File::from(at).sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_but_plain_files_below_the_folder_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("stick");
        std::fs::create_dir_all(at.join("objects")).unwrap();
        std::fs::write(folder.path().join("secret"), b"secret").unwrap();
        std::fs::write(at.join("objects/plain"), b"plain").unwrap();
        symlink("plain", at.join("objects/link")).unwrap();
        symlink("../..", at.join("objects/up")).unwrap();
        symlink("/dev/zero", at.join("objects/zero")).unwrap();
        nix::unistd::mkfifo(&at.join("objects/fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let mut text = String::new();
        open(&at, "objects/plain").unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "plain");
        let names = [
            "objects/link",
            "objects/up/secret",
            "objects/zero",
            "objects/fifo",
            "../secret",
            "objects",
            "objects/none",
        ];
        for name in names {
            assert_eq!(open(&at, name).err().map(|error| error.kind()), Some(ErrorKind::NotFound), "{name}");
        }
    }

    #[test]
    fn reports_are_replaced_and_land_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("stick");
        std::fs::create_dir(&at).unwrap();
        for text in [b"one".as_slice(), b"two"] {
            replace(&at, "reports", "a.json", text).unwrap();
            assert_eq!(std::fs::read(at.join("reports/a.json")).unwrap(), text);
        }
        // A link that waits for the temporary file is removed, not followed.
        symlink(folder.path().join("elsewhere"), at.join("reports/a.json.new")).unwrap();
        replace(&at, "reports", "a.json", b"three").unwrap();
        assert!(!folder.path().join("elsewhere").exists());
        assert_eq!(std::fs::read_dir(at.join("reports")).unwrap().count(), 1);
        std::fs::remove_dir_all(at.join("reports")).unwrap();
        symlink(folder.path(), at.join("reports")).unwrap();
        assert!(replace(&at, "reports", "a.json", b"four").is_err());
        assert!(!folder.path().join("a.json").exists());
    }
}
