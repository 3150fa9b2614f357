//! Packages and archives unpacked once into the cache: one file with all contents one after the other, and an index.
//!
//! A tree refers to ranges of that file, so an unchanged package costs a build nothing but reading its index.
//! Kernel modules are stored decompressed: the image keeps them so, and the init loads them so. Decides nothing else.

use crate::deb::{self, Kind, Member, Visitor};
use crate::lock::LockedPackage;
use crate::progress::Progress;
use crate::store::{Store, hash_reader};
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Changes when what is written changes.
const LAYOUT: &str = "unpacked 1";
/// Most bytes of a kernel module: the largest of Debian 13 has 14 MB.
const MAX_MODULE_BYTES: u64 = 256 << 20;
/// Most bytes of a copyright file that is searched for licences.
const MAX_COPYRIGHT_BYTES: u64 = 4 << 20;
/// Packages unpacked at once: each xz decoder may need 65 MiB.
const PARALLEL: usize = 2;

/// One path of an unpacked package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Absolute path as the package spells it; modules without `.xz`.
    pub path: String,
    /// What it is.
    pub node: ItemNode,
    /// Permission bits.
    pub mode: u32,
    /// User name.
    pub user: String,
    /// Group name.
    pub group: String,
}

/// What an [`Item`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ItemNode {
    /// A folder.
    Dir,
    /// A file: first byte and number of bytes in the contents file.
    File(u64, u64),
    /// A symbolic link and its target.
    Symlink(String),
}

/// The index of an unpacked package or archive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Index {
    /// Files of the control archive that are text: `control`, `postinst`…
    pub control: BTreeMap<String, String>,
    /// Names after `License:` in the machine-readable copyright file.
    pub licences: BTreeSet<String>,
    /// Paths, in the package's order.
    pub items: Vec<Item>,
}

/// An unpacked package or archive.
#[derive(Clone, Debug)]
pub struct Unpacked {
    /// Its index.
    pub index: Index,
    /// The contents file.
    pub contents: Arc<Path>,
}

/// Unpacks packages that are in the store, unless they are unpacked already; in the order given.
///
/// # Errors
/// If one is missing or broken, with its name; or the cache cannot be written.
pub fn packages(store: &Store, packages: &[LockedPackage], progress: &Progress) -> Result<Vec<Unpacked>> {
    let bar = progress.items("unpack packages", packages.len() as u64);
    // Large ones first, so that no thread is left with the kernel at the end.
    let mut order: Vec<usize> = (0..packages.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(packages[*at].size));
    let done: Mutex<BTreeMap<usize, Result<Unpacked>>> = Mutex::new(BTreeMap::new());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let unpacked = locked(store, &packages[*at]);
                    if let Ok(mut done) = done.lock() {
                        done.insert(*at, unpacked);
                    }
                    bar.add(1);
                }
            });
        }
    });
    let done = match done.into_inner() {
        Ok(done) if done.len() == packages.len() => done,
        Ok(_) | Err(_) => bail!("a thread that unpacks packages died"),
    };
    done.into_values().collect()
}

fn locked(store: &Store, locked: &LockedPackage) -> Result<Unpacked> {
    let what = || format!("unpack package {} {}", locked.name, locked.version);
    let digest =
        Digest::parse(&locked.sha256).ok_or_else(|| anyhow!("malformed SHA-256")).with_context(what)?;
    package(store, &digest).with_context(what)
}

/// Unpacks one package that is in the store, unless it is unpacked already.
///
/// # Errors
/// If it is missing or broken, or the cache cannot be written.
pub fn package(store: &Store, digest: &Digest) -> Result<Unpacked> {
    unpack(store, digest, deb::read)
}

/// Unpacks a tar archive that is in the store; `name` tells by its ending how it is packed.
///
/// # Errors
/// If it is missing or broken, or the cache cannot be written.
pub fn archive(store: &Store, digest: &Digest, name: &str) -> Result<Unpacked> {
    unpack(store, digest, |file, visitor| deb::read_tar(deb::decompress(name, file)?, visitor))
        .with_context(|| format!("unpack {name}"))
}

fn unpack(
    store: &Store,
    digest: &Digest,
    read: impl FnOnce(File, &mut Writer) -> Result<()>,
) -> Result<Unpacked> {
    let key = Digest(Sha256::digest(format!("{LAYOUT} {digest}")).into());
    let folder = store.derive("unpacked", &key, |folder| {
        let path = store.get(digest).ok_or_else(|| anyhow!("it is not in the cache"))?;
        let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        // The cache may have rotted since the download; a broken image would be found much later.
        let found = hash_reader(&mut file).with_context(|| format!("read {}", path.display()))?.0;
        if found != *digest {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            bail!(
                "its bytes in the cache changed (SHA-256 {found}, must be {digest}); removed, so build again"
            );
        }
        file.rewind().with_context(|| format!("read {}", path.display()))?;
        let contents = File::create_new(folder.join("contents")).with_context(|| store.full())?;
        let mut writer = Writer::new(BufWriter::with_capacity(1 << 20, contents));
        read(file, &mut writer)?;
        writer.contents.flush().with_context(|| store.full())?;
        let index = File::create_new(folder.join("index.json")).with_context(|| store.full())?;
        let mut index = BufWriter::new(index);
        serde_json::to_writer(&mut index, &writer.index).with_context(|| store.full())?;
        index.flush().with_context(|| store.full())
    })?;
    let path = folder.join("index.json");
    let bytes = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let index = serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is damaged: remove its folder and build again", path.display()))?;
    Ok(Unpacked { index, contents: Arc::from(folder.join("contents")) })
}

struct Writer {
    contents: BufWriter<File>,
    written: u64,
    files: HashMap<String, (u64, u64)>,
    index: Index,
}

impl Writer {
    fn new(contents: BufWriter<File>) -> Self {
        Self { contents, written: 0, files: HashMap::new(), index: Index::default() }
    }

    fn file(&mut self, member: &Member, data: &mut dyn Read) -> Result<(String, ItemNode)> {
        let start = self.written;
        let is_module = member.path.contains("/lib/modules/") && member.path.ends_with(".ko.xz");
        if is_module {
            let mut module = deb::xz(data)?.take(MAX_MODULE_BYTES + 1);
            self.written += std::io::copy(&mut module, &mut self.contents).context("decompress")?;
            if self.written - start > MAX_MODULE_BYTES {
                bail!("decompresses to more than {MAX_MODULE_BYTES} bytes");
            }
        } else if member.path.starts_with("/usr/share/doc/")
            && member.path.ends_with("/copyright")
            && member.size <= MAX_COPYRIGHT_BYTES
        {
            let mut text = Vec::new();
            data.read_to_end(&mut text)?;
            self.index.licences.extend(licences(&String::from_utf8_lossy(&text)));
            self.contents.write_all(&text)?;
            self.written += text.len() as u64;
        } else {
            self.written += std::io::copy(data, &mut self.contents)?;
        }
        let place = (start, self.written - start);
        self.files.insert(member.path.clone(), place);
        let path = if is_module { member.path.trim_end_matches(".xz") } else { &member.path };
        Ok((path.to_owned(), ItemNode::File(place.0, place.1)))
    }
}

impl Visitor for Writer {
    fn control(&mut self, name: &str, bytes: Vec<u8>) -> Result<()> {
        // Checksums and symbol lists are not needed and long.
        if !["md5sums", "symbols", "shlibs", "templates"].contains(&name) {
            self.index.control.insert(name.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
        }
        Ok(())
    }

    fn entry(&mut self, member: &Member, data: &mut dyn Read) -> Result<()> {
        let (path, node) = match &member.kind {
            Kind::Dir => (member.path.clone(), ItemNode::Dir),
            Kind::Symlink(target) => (member.path.clone(), ItemNode::Symlink(target.clone())),
            Kind::File => self.file(member, data)?,
            Kind::Hardlink(first) => {
                let place = self.files.get(first);
                let (start, len) =
                    place.ok_or_else(|| anyhow!("links to {first}, which does not come before it"))?;
                (member.path.clone(), ItemNode::File(*start, *len))
            }
        };
        let Member { mode, user, group, .. } = member.clone();
        self.index.items.push(Item { path, node, mode, user, group });
        Ok(())
    }
}

/// Short names after `License:` in a machine-readable copyright file (copyright-format 1.0).
fn licences(text: &str) -> Vec<String> {
    if !text.lines().take(5).any(|line| line.starts_with("Format:")) {
        return Vec::new();
    }
    let names = text.lines().filter_map(|line| line.strip_prefix("License:")).map(str::trim);
    names.filter(|name| !name.is_empty() && name.len() < 100).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_licences_only_where_they_are_declared() {
        let text = "Format: https://example/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ or MIT\n\nLicense: MIT\n text";
        assert_eq!(licences(text), ["GPL-2+ or MIT", "MIT"]);
        assert!(licences("License: none of this is a header").is_empty());
    }

    #[test]
    fn a_rotten_cache_is_noticed_and_cleaned() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digest = store.put_bytes(b"whole").unwrap();
        let path = store.get(&digest).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, b"rotten").unwrap();
        let error = format!("{:#}", archive(&store, &digest, "x.tar").unwrap_err());
        assert!(error.starts_with("unpack x.tar: its bytes in the cache changed"), "{error}");
        assert!(store.get(&digest).is_none());
    }

    #[test]
    fn modules_are_kept_decompressed_and_hard_links_share_their_range() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut packed = Vec::new();
        liblzma::read::XzEncoder::new(&b"module"[..], 6).read_to_end(&mut packed).unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, bytes: &[u8], link: Option<&str>| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(bytes.len() as u64);
            match link {
                Some(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    builder.append_link(&mut header, path, target).unwrap();
                }
                None => builder.append_data(&mut header, path, bytes).unwrap(),
            }
        };
        add("usr/lib/modules/6.1/kernel/x.ko.xz", &packed, None);
        add("usr/bin/a", b"program", None);
        add("usr/bin/b", b"", Some("usr/bin/a"));
        let digest = store.put_bytes(&builder.into_inner().unwrap()).unwrap();
        let unpacked = archive(&store, &digest, "x.tar").unwrap();
        let items = &unpacked.index.items;
        assert_eq!(items[0].path, "/usr/lib/modules/6.1/kernel/x.ko");
        assert_eq!(items[0].node, ItemNode::File(0, 6));
        assert_eq!(items[1].node, items[2].node);
        assert_eq!(std::fs::read(&unpacked.contents).unwrap(), b"moduleprogram");
    }
}
