//! The overlay on `/etc`: the image's below, a fresh layer in memory above, filled from the state store's allow-list.

use crate::early::{allow, identity};
use crate::io::durable;
use anyhow::{Context, Result, ensure};
use formats::device::HOST_NAME_PATTERN;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

const LAYER: &str = "/run/farhold/etc";
/// Most the layer may hold: files of the allow-list and what services write into `/etc` until the next boot.
const LAYER_OPTIONS: &str = "mode=0755,size=32m";

/// Host names where the profile says nothing.
const DEFAULT_PATTERN: &str = "farhold-%";

/// What was put over `/etc`.
pub struct EtcFacts {
    /// Whether a machine id was made.
    pub identity_made: bool,
    /// Files taken from the store, relative to `/etc`.
    pub files: Vec<String>,
}

/// Builds and mounts the overlay.
///
/// # Errors
/// If the overlay cannot be mounted; what cannot be taken from the store is a note.
pub fn prepare(notes: &mut Vec<String>) -> Result<EtcFacts> {
    durable::make_folder(Path::new(LAYER), 0o755)?;
    mount(Some("tmpfs"), LAYER, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(LAYER_OPTIONS))
        .with_context(|| format!("mount {LAYER}"))?;
    let upper = format!("{LAYER}/upper");
    for folder in [upper.as_str(), &format!("{LAYER}/work")] {
        durable::make_folder(Path::new(folder), 0o755)?;
    }
    let pattern = fs::read_to_string(HOST_NAME_PATTERN).unwrap_or_else(|_| DEFAULT_PATTERN.into());
    let paths = Paths { image: Path::new("/etc"), store: Path::new(allow::STORE), upper: Path::new(&upper) };
    let facts = fill(&paths, &pattern, notes)?;
    let options = format!("lowerdir=/etc,upperdir={upper},workdir={LAYER}/work");
    mount(Some("overlay"), "/etc", Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .context("mount the overlay on /etc")?;
    Ok(facts)
}

/// The three places of `/etc`.
struct Paths<'a> {
    /// The image's.
    image: &'a Path,
    /// The state store's.
    store: &'a Path,
    /// The upper layer.
    upper: &'a Path,
}

/// Fills the upper layer: allowed files of the store, a machine id, the host name.
fn fill(paths: &Paths<'_>, pattern: &str, notes: &mut Vec<String>) -> Result<EtcFacts> {
    let Paths { store, upper, .. } = *paths;
    let mut files = Vec::new();
    for folder in allow::folders() {
        for path in names(&store.join(folder), folder, notes) {
            if files.len() == allow::FILES_MAX {
                notes.push(format!(
                    "more than {} files in {}; the rest is left out",
                    allow::FILES_MAX,
                    store.display()
                ));
                break;
            }
            match copy(paths, &path) {
                Ok(()) => files.push(path),
                Err(error) => notes.push(format!("{error:#}")),
            }
        }
    }
    let (machine_id, identity_made) = machine_id(store, upper, notes)?;
    let given = fs::read_to_string(upper.join("hostname"));
    let pattern = given.as_deref().unwrap_or(pattern);
    let name = identity::host_name(pattern.trim(), &machine_id);
    if identity::is_host_name(&name) {
        durable::write(&upper.join("hostname"), format!("{name}\n").as_bytes(), 0o644)?;
    } else {
        notes.push(format!(
            "host name `{}` is not one that the kernel takes; it is left out",
            name.escape_debug()
        ));
    }
    files.sort();
    Ok(EtcFacts { identity_made, files })
}

/// The allowed files of one folder of the store. A missing folder has none.
fn names(store: &Path, folder: &str, notes: &mut Vec<String>) -> Vec<String> {
    let list = match fs::read_dir(store) {
        Ok(list) => list,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            notes.push(format!("list {}: {error}", store.display()));
            return Vec::new();
        }
    };
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let relative = |entry: fs::DirEntry| format!("{prefix}{}", entry.file_name().to_string_lossy());
    let mut names: Vec<String> =
        list.filter_map(std::result::Result::ok).map(relative).filter(|p| allow::allows(p)).collect();
    names.sort();
    names
}

fn copy(paths: &Paths<'_>, path: &str) -> Result<()> {
    let Paths { image, store, upper } = *paths;
    let from = store.join(path);
    let take = || -> Result<()> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NOFOLLOW.bits()).open(&from)?;
        let meta = file.metadata()?;
        ensure!(meta.is_file(), "it is not a plain file");
        ensure!(
            meta.len() <= allow::FILE_MAX,
            "it has {} bytes, the limit is {}",
            meta.len(),
            allow::FILE_MAX
        );
        let mut bytes = Vec::new();
        file.take(allow::FILE_MAX).read_to_end(&mut bytes)?;
        make_parents(image, upper, path)?;
        // An empty or torn identity must not hide the image's or a new one.
        ensure!(
            path != "machine-id" || identity::is_machine_id(&String::from_utf8_lossy(&bytes)),
            "it is no machine id"
        );
        durable::write(&upper.join(path), &bytes, meta.permissions().mode() & 0o755)
    };
    take().with_context(|| format!("take {} into /etc", from.display()))
}

/// Makes the folders above `path` in the upper layer as they are in the image, which the overlay would otherwise hide.
fn make_parents(image: &Path, upper: &Path, path: &str) -> Result<()> {
    let parents: Vec<&Path> =
        Path::new(path).ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let to = upper.join(parent);
        if !to.exists() {
            durable::make_folder(&to, 0o755)?;
            if let Ok(meta) = fs::metadata(image.join(parent)) {
                fs::set_permissions(&to, Permissions::from_mode(meta.permissions().mode() & 0o7777))?;
            }
        }
    }
    Ok(())
}

/// The device's machine id, made once and kept in the store if it can be.
fn machine_id(store: &Path, upper: &Path, notes: &mut Vec<String>) -> Result<(String, bool)> {
    let path = upper.join("machine-id");
    if let Ok(text) = fs::read_to_string(&path)
        && identity::is_machine_id(&text)
    {
        return Ok((text, false));
    }
    let mut random = [0u8; 16];
    getrandom::fill(&mut random).context("get random bytes from the kernel")?;
    let text = identity::machine_id(random);
    if let Err(error) = put(store, "machine-id", text.as_bytes(), 0o444) {
        notes.push(format!("the machine id of this boot is not kept: {error:#}"));
    }
    durable::write(&path, text.as_bytes(), 0o444)?;
    Ok((text, true))
}

/// Puts a file into the state store, durably.
///
/// # Errors
/// The file system's, or if the path is not on the allow-list.
pub fn put(store: &Path, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
    ensure!(allow::allows(path), "{path} is not on the allow-list of /etc");
    let to = store.join(path);
    durable::make_folder(to.parent().unwrap_or(store), 0o755)?;
    durable::write(&to, bytes, mode)
}

#[cfg(test)]
mod tests;
