//! The stick: which disk it is, and its files. Mounts its partitions.

use crate::machine::{self, Node};
use crate::site::{self, FILE_MAX, Site};
use anyhow::{Context, Result, bail, ensure};
use formats::gpt::Guid;
use formats::hex;
use formats::pairing::{self, SECRET_MAX, SECRET_MIN};
use formats::stick::{self, Contents};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Where the partition that people see is mounted.
const DATA: &str = "/stick";
/// Where the stick's ESP is mounted.
const BOOT: &str = "/stick-boot";

/// A mounted stick.
pub struct Stick {
    /// Whether a log can be left.
    pub writable: bool,
    folder: PathBuf,
    boot: String,
}

/// The partitions of the disk that has the partition `started`, or else of the only stick.
///
/// # Errors
/// If two disks have it, or two sticks are there and it is not known which one was started.
pub fn find(started: Option<Guid>) -> Result<Option<Vec<Node>>> {
    let mut found: Vec<Vec<Node>> = Vec::new();
    for entry in fs::read_dir("/sys/block").context("list /sys/block")? {
        let name = entry.context("list /sys/block")?.file_name().to_string_lossy().into_owned();
        let nodes = machine::partitions(&name);
        let this = match started {
            Some(guid) => nodes.iter().any(|node| node.entry.guid == guid),
            None => nodes.iter().any(|node| node.entry.label == stick::LABEL_BOOT),
        };
        if this {
            found.push(nodes);
        }
    }
    ensure!(
        found.len() < 2,
        "{} disks are copies of the one that was started; remove all but one and start again",
        found.len()
    );
    Ok(found.pop())
}

/// The node of a partition, if the kernel shows it.
pub fn node<'a>(nodes: &'a [Node], label: &str) -> Option<&'a Node> {
    nodes.iter().find(|node| node.entry.label == label && Path::new(&node.device).exists())
}

impl Stick {
    /// Mounts the stick with these partitions.
    ///
    /// # Errors
    /// If it has not the partitions of a stick, or cannot be read.
    pub fn mount(nodes: &[Node]) -> Result<Self> {
        let (Some(data), Some(boot)) = (node(nodes, stick::LABEL_DATA), node(nodes, stick::LABEL_BOOT))
        else {
            bail!("the stick has lost its partitions; make it again");
        };
        fs::create_dir_all(DATA).with_context(|| format!("make {DATA}"))?;
        let attach = |flags| mount(Some(data.device.as_str()), DATA, Some("vfat"), flags, None::<&str>);
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
        let writable = attach(flags).is_ok();
        if !writable {
            attach(flags | MsFlags::MS_RDONLY)
                .with_context(|| format!("read the stick {}; make it again, or take another", data.device))?;
        }
        Ok(Self { writable, folder: DATA.into(), boot: boot.device.clone() })
    }

    /// Folder of the release.
    pub fn release(&self) -> PathBuf {
        self.folder.join(stick::RELEASE)
    }

    /// The site's configuration and the name of its file; `None` if the stick has none for this machine.
    ///
    /// # Errors
    /// If a file is there and cannot be used.
    pub fn site(&self, ids: &[String]) -> Result<Option<(String, Site)>> {
        let folder = self.folder.join(stick::SITES);
        let list = fs::read_dir(&folder);
        let names: Vec<String> = list
            .map(|list| {
                list.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect()
            })
            .unwrap_or_default();
        let path = match site::pick(&names, ids).with_context(|| format!("folder {}", stick::SITES))? {
            Some(name) => format!("{}/{name}", stick::SITES),
            None if self.folder.join(stick::SITE).exists() => stick::SITE.to_owned(),
            None => return Ok(None),
        };
        let bytes = read(&self.folder.join(&path), FILE_MAX)?;
        let text = String::from_utf8(bytes).with_context(|| format!("{path} is not UTF-8 text"))?;
        let site =
            Site::parse(&text).with_context(|| format!("{path} on the stick; correct it and start again"))?;
        Ok(Some((path, site)))
    }

    /// The secret by which the two nodes of a site know each other: drawn once, for the one that is installed first.
    ///
    /// # Errors
    /// If it cannot be read, or not be left for the other node.
    pub fn pair_secret(&self, site: &str) -> Result<String> {
        secret(&self.folder.join(stick::PAIRS), site)
    }

    /// The boot image that this installer came in, for the recovery entry.
    ///
    /// # Errors
    /// If it is not the one that was put on the stick.
    pub fn installer(&self, path: &str) -> Result<Vec<u8>> {
        let contents = read(&self.folder.join(stick::CONTENTS), FILE_MAX)?;
        let contents: Contents = serde_json::from_slice(&contents)
            .with_context(|| format!("{} on the stick is damaged; make it again", stick::CONTENTS))?;
        fs::create_dir_all(BOOT).with_context(|| format!("make {BOOT}"))?;
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(self.boot.as_str()), BOOT, Some("vfat"), flags, None::<&str>).with_context(|| {
            format!("read the stick's boot partition {}; make the stick again", self.boot)
        })?;
        let bytes = read(&Path::new(BOOT).join(path), contents.installer_bytes);
        umount2(BOOT, MntFlags::MNT_DETACH).context("leave the stick's boot partition")?;
        let bytes = bytes?;
        ensure!(
            hex::encode(&Sha256::digest(&bytes)[..]) == contents.installer_sha256,
            "the installer on the stick is damaged; make it again, or take another stick"
        );
        Ok(bytes)
    }

    /// Leaves a log, in a file of its own.
    ///
    /// # Errors
    /// If the stick is write-protected or full.
    pub fn leave_log(&self, name: &str, text: &str) -> Result<String> {
        let folder = self.folder.join(stick::LOGS);
        fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for n in 1..1000 {
            let file = format!("{name}-{n}.txt");
            match File::create_new(folder.join(&file)) {
                Ok(mut log) => {
                    log.write_all(text.as_bytes()).and_then(|()| log.sync_all()).context("write the log")?;
                    return Ok(format!("{}/{file}", stick::LOGS));
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).context("make a log on the stick"),
            }
        }
        bail!("the stick has 1000 logs of this machine")
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        nix::unistd::sync();
        if let Err(error) = umount2(DATA, MntFlags::empty()) {
            // A stick that was pulled out is gone already.
            eprintln!("leave the stick: {error}");
        }
    }
}

/// One site's secret in a folder, made if it is not there.
fn secret(folder: &Path, site: &str) -> Result<String> {
    let short: String = site.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    let digest = hex::encode(&Sha256::digest(site)[..4]);
    let path = folder.join(format!("{}-{digest}.txt", short.to_ascii_lowercase()));
    if path.exists() {
        let text = String::from_utf8(read(&path, FILE_MAX)?).unwrap_or_default();
        let text = text.trim().to_owned();
        ensure!(
            (SECRET_MIN..=SECRET_MAX).contains(&pairing::plain(&text).len()),
            "{} is damaged; remove it, and install both nodes of the site again",
            path.display()
        );
        return Ok(text);
    }
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).context("get random bytes from the kernel")?;
    let text = hex::encode(&bytes);
    let temporary = path.with_extension("new");
    let left = fs::create_dir_all(folder)
        .and_then(|()| {
            let mut file = File::create(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| File::open(folder)?.sync_all());
    left.context(
        "the secret of the pair could not be left on the stick for the other node: make the stick writable, or give both \
         nodes' files the same `code`",
    )?;
    Ok(text)
}

fn read(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(limit + 1).read_to_end(&mut bytes).with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= limit, "{} has more than {limit} bytes", path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_of_a_site_is_drawn_once() {
        let stick = tempfile::tempdir().unwrap();
        let folder = stick.path().join("pairs");
        let drawn = secret(&folder, "Nord / 1").unwrap();
        assert_eq!(drawn.len(), 32);
        assert_eq!(secret(&folder, "Nord / 1").unwrap(), drawn);
        assert_ne!(secret(&folder, "Nord / 2").unwrap(), drawn);
        let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2);
        assert!(names.iter().all(|name| name.to_string_lossy().starts_with("nord")), "{names:?}");
        for name in names {
            fs::write(folder.join(name), "cut").unwrap();
        }
        let damaged = secret(&folder, "Nord / 1").unwrap_err().to_string();
        assert!(damaged.contains("is damaged; remove it"), "{damaged}");
    }

    #[test]
    fn a_stick_that_cannot_keep_it_says_what_to_do() {
        let stick = tempfile::tempdir().unwrap();
        // A file where the folder should be fails for everybody, root too.
        fs::write(stick.path().join("pairs"), "").unwrap();
        let error = secret(&stick.path().join("pairs"), "north").unwrap_err().to_string();
        assert!(
            error.contains("make the stick writable, or give both nodes' files the same `code`"),
            "{error}"
        );
    }
}
