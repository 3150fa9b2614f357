//! A root file system in memory: paths with owner, mode and a reference to where the bytes are, never the bytes.
//!
//! Paths go through the symbolic links that the tree has, so `/bin/sh` and `/usr/bin/sh` are one file. Knows nothing
//! of packages or images; [`archive`] writes it as a tar stream.

pub mod archive;

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// Top folders that are links into `/usr` (merged-usr, Debian 12 and later).
pub const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// As many links as Linux follows in one path (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Where the bytes of a file are.
#[derive(Clone, Debug)]
pub enum Data {
    /// Here; for small generated files.
    Bytes(Arc<[u8]>),
    /// A range of a file on the builder's disk. Files of equal range become hard links of each other.
    Range {
        /// The file.
        path: Arc<Path>,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
    },
}

impl Data {
    /// Number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Range { len, .. } => *len,
        }
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// A reader of exactly these bytes.
    ///
    /// # Errors
    /// If the file they are in cannot be opened.
    pub fn open(&self) -> Result<Box<dyn Read + '_>> {
        match self {
            Self::Bytes(bytes) => Ok(Box::new(&bytes[..])),
            Self::Range { path, offset, len } => {
                let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
                file.seek(SeekFrom::Start(*offset)).with_context(|| format!("read {}", path.display()))?;
                Ok(Box::new(file.take(*len)))
            }
        }
    }
    /// The bytes, if there are at most `limit`.
    ///
    /// # Errors
    /// If there are more, or fewer than there should be, or they cannot be read.
    pub fn bytes(&self, limit: u64) -> Result<Vec<u8>> {
        if self.len() > limit {
            bail!("{} bytes are more than the {limit} expected at most", self.len());
        }
        let mut bytes = Vec::with_capacity(usize::try_from(self.len()).unwrap_or(0));
        self.open()?.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != self.len() {
            bail!("{} of {} bytes: the cache changed under the build", bytes.len(), self.len());
        }
        Ok(bytes)
    }
}

/// What a path is.
#[derive(Clone, Debug)]
pub enum Node {
    /// A folder.
    Dir,
    /// A regular file.
    File(Data),
    /// A symbolic link and its target.
    Symlink(String),
}

/// One path of a tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// What it is.
    pub node: Node,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Name of the user that owns it.
    pub user: Arc<str>,
    /// Name of the group that owns it.
    pub group: Arc<str>,
    /// Package, pack or step that brought it.
    pub origin: Arc<str>,
}

impl Entry {
    /// An entry owned by root.
    pub fn new(node: Node, mode: u32, origin: &Arc<str>) -> Self {
        let root: Arc<str> = "root".into();
        Self { node, mode, user: root.clone(), group: root, origin: origin.clone() }
    }
    /// A folder, mode 755.
    pub fn dir(origin: &Arc<str>) -> Self {
        Self::new(Node::Dir, 0o755, origin)
    }
    /// A text file, mode 644.
    pub fn text(text: impl AsRef<[u8]>, origin: &Arc<str>) -> Self {
        Self::new(Node::File(Data::Bytes(text.as_ref().into())), 0o644, origin)
    }
    /// A symbolic link.
    pub fn symlink(target: impl Into<String>, origin: &Arc<str>) -> Self {
        Self::new(Node::Symlink(target.into()), 0o777, origin)
    }
}

/// Two owners of one path.
#[derive(Debug, thiserror::Error)]
#[error("{path} is in {first} and in {second}")]
pub struct Conflict {
    /// The path.
    pub path: String,
    /// Who brought it first.
    pub first: Arc<str>,
    /// Who brought it again.
    pub second: Arc<str>,
}

/// A root file system. The root folder itself is implied: `0755 root root`.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// A tree with only the merged-usr links of [`MERGED`].
    pub fn new(origin: &Arc<str>) -> Self {
        let mut tree = Self::default();
        tree.entries.insert("/usr".into(), Entry::dir(origin));
        for name in MERGED {
            tree.entries.insert(format!("/usr/{name}"), Entry::dir(origin));
            tree.entries.insert(format!("/{name}"), Entry::symlink(format!("usr/{name}"), origin));
        }
        tree
    }

    /// All paths in order; a folder comes before what is in it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// All paths in order, to change owners and modes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&str, &mut Entry)> {
        self.entries.iter_mut().map(|(path, entry)| (path.as_str(), entry))
    }

    /// Number of paths.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no path.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entry at a path; links on the way are followed, one at its end is not.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        self.entries.get(&self.canonical(path).ok()?)
    }

    /// The entry at a path, to change it.
    pub fn get_mut(&mut self, path: &str) -> Option<&mut Entry> {
        let path = self.canonical(path).ok()?;
        self.entries.get_mut(&path)
    }

    /// The entry that a path leads to, a link at its end followed too, with its own path.
    pub fn follow(&self, path: &str) -> Option<(String, &Entry)> {
        let mut path = self.canonical(path).ok()?;
        for _ in 0..MAX_LINKS {
            let entry = self.entries.get(&path)?;
            let Node::Symlink(target) = &entry.node else { return Some((path, entry)) };
            path = self.canonical(&join(parent(&path), target)).ok()?;
        }
        None
    }

    /// Data of the regular file that a path leads to.
    pub fn file(&self, path: &str) -> Option<&Data> {
        match &self.follow(path)?.1.node {
            Node::File(data) => Some(data),
            Node::Dir | Node::Symlink(_) => None,
        }
    }

    /// Paths below a folder, however deep, without the folder.
    pub fn below(&self, folder: &str) -> impl Iterator<Item = (&str, &Entry)> {
        let from = format!("{}/", self.canonical(folder).unwrap_or_default().trim_end_matches('/'));
        let range: Range<'_, String, Entry> = self.entries.range(from.clone()..);
        range.take_while(move |(path, _)| path.starts_with(&from)).map(|(path, entry)| (path.as_str(), entry))
    }

    /// Adds a path, with folders on the way to it. Folders may be added again; everything else has one owner.
    ///
    /// # Errors
    /// [`Conflict`] if the path is there and is not the same folder or link; or a path that leads nowhere.
    pub fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        let path = self.canonical(path)?;
        if let Some(there) = self.entries.get(&path) {
            let same = match (&there.node, &entry.node) {
                (Node::Dir, Node::Dir) => true,
                (Node::Symlink(a), Node::Symlink(b)) => a == b,
                // A package that ships `/lib` as a folder means the folder that the link leads to.
                (Node::Symlink(_), Node::Dir) => {
                    self.follow(&path).is_some_and(|(_, e)| matches!(e.node, Node::Dir))
                }
                (Node::Dir | Node::File(_) | Node::Symlink(_), _) => false,
            };
            if same {
                return Ok(());
            }
            return Err(Conflict { path, first: there.origin.clone(), second: entry.origin }.into());
        }
        self.put(&path, entry)
    }

    /// Adds a path, replacing a file or link that is there.
    ///
    /// # Errors
    /// If a folder would be replaced by something else or the path leads nowhere.
    pub fn replace(&mut self, path: &str, entry: Entry) -> Result<()> {
        let path = self.canonical(path)?;
        if let Some(there) = self.entries.get(&path)
            && matches!(there.node, Node::Dir)
            && !matches!(entry.node, Node::Dir)
        {
            return Err(Conflict { path, first: there.origin.clone(), second: entry.origin }.into());
        }
        self.put(&path, entry)
    }

    /// Removes a path and what is below it; returns how many paths that were.
    pub fn remove(&mut self, path: &str) -> usize {
        let Ok(path) = self.canonical(path) else { return 0 };
        let below: Vec<String> = self.below(&path).map(|(path, _)| path.to_owned()).collect();
        below.iter().filter(|path| self.entries.remove(*path).is_some()).count()
            + usize::from(self.entries.remove(&path).is_some())
    }

    /// Keeps the paths for which `keep` holds. The caller sees to it that folders stay as long as something in them.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Entry) -> bool) {
        self.entries.retain(|path, entry| keep(path, entry));
    }

    /// The path as this tree spells it: absolute, without `.`, `..` and links on the way.
    ///
    /// # Errors
    /// If links lead round in circles, or the way goes through a file.
    pub fn canonical(&self, path: &str) -> Result<String> {
        let mut links = 0;
        let mut rest: Vec<String> = parts(path);
        rest.reverse();
        let mut done = String::new();
        while let Some(part) = rest.pop() {
            if part == ".." {
                done.truncate(done.rfind('/').unwrap_or(0));
                continue;
            }
            let next = format!("{done}/{part}");
            match self.entries.get(&next).map(|entry| &entry.node) {
                Some(Node::Symlink(target)) if !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        bail!("{path}: more than {MAX_LINKS} symbolic links on the way");
                    }
                    if target.starts_with('/') {
                        done.clear();
                    }
                    rest.extend(parts(target).into_iter().rev());
                }
                Some(Node::File(_)) if !rest.is_empty() => {
                    bail!("{path}: {next} is a file, must be a folder")
                }
                Some(Node::Dir | Node::File(_) | Node::Symlink(_)) | None => done = next,
            }
        }
        Ok(if done.is_empty() { "/".into() } else { done })
    }

    fn put(&mut self, path: &str, entry: Entry) -> Result<()> {
        if path == "/" {
            return match entry.node {
                Node::Dir => Ok(()),
                Node::File(_) | Node::Symlink(_) => bail!("/ must be a folder"),
            };
        }
        let mut folder = parent(path);
        while folder != "/" && !self.entries.contains_key(folder) {
            self.entries.insert(folder.to_owned(), Entry::dir(&entry.origin));
            folder = parent(folder);
        }
        self.entries.insert(path.to_owned(), entry);
        Ok(())
    }
}

/// The folder that a path is in.
pub fn parent(path: &str) -> &str {
    match path.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &path[..at],
    }
}

/// The last part of a path.
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `target` as seen from `folder`.
pub fn join(folder: &str, target: &str) -> String {
    if target.starts_with('/') { target.to_owned() } else { format!("{folder}/{target}") }
}

fn parts(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect()
}

/// Numeric ids of users and groups by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Users.
    pub uids: BTreeMap<String, u32>,
    /// Groups.
    pub gids: BTreeMap<String, u32>,
}

impl Ids {
    /// Ids of an entry's owner; names that are decimal numbers stand for themselves.
    ///
    /// # Errors
    /// If a name has no id.
    pub fn of(&self, path: &str, entry: &Entry) -> io::Result<(u32, u32)> {
        let find = |ids: &BTreeMap<String, u32>, what: &str, name: &str| {
            ids.get(name).copied().or_else(|| name.parse().ok()).ok_or_else(|| {
                io::Error::other(format!(
                    "{path} (from {}) belongs to {what} `{name}`, which the image does not have",
                    entry.origin
                ))
            })
        };
        Ok((find(&self.uids, "user", &entry.user)?, find(&self.gids, "group", &entry.group)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(name: &str) -> Arc<str> {
        name.into()
    }

    #[test]
    fn merged_usr_makes_two_spellings_one_file() {
        let mut tree = Tree::new(&origin("base"));
        tree.add("/lib/x/libx.so.1", Entry::text("x", &origin("libx"))).unwrap();
        assert!(tree.get("/usr/lib/x/libx.so.1").is_some());
        let error = tree.add("/usr/lib/x/libx.so.1", Entry::text("y", &origin("other"))).unwrap_err();
        assert_eq!(error.to_string(), "/usr/lib/x/libx.so.1 is in libx and in other");
        tree.add("/lib", Entry::dir(&origin("libx"))).unwrap();
        tree.add("/lib", Entry::symlink("usr/lib", &origin("base-files"))).unwrap();
        assert!(tree.add("/lib", Entry::symlink("elsewhere", &origin("bad"))).is_err());
    }

    #[test]
    fn follows_links_and_gives_up_on_circles() {
        let mut tree = Tree::new(&origin("base"));
        tree.add("/usr/bin/mawk", Entry::text("m", &origin("mawk"))).unwrap();
        tree.add("/etc/alternatives/awk", Entry::symlink("/usr/bin/mawk", &origin("s"))).unwrap();
        tree.add("/usr/bin/awk", Entry::symlink("../../etc/alternatives/awk", &origin("s"))).unwrap();
        assert_eq!(tree.follow("/bin/awk").unwrap().0, "/usr/bin/mawk");
        tree.add("/a", Entry::symlink("b", &origin("s"))).unwrap();
        tree.add("/b", Entry::symlink("a", &origin("s"))).unwrap();
        assert!(tree.follow("/a").is_none());
        assert!(tree.add("/a/x", Entry::text("", &origin("s"))).is_err());
        assert!(tree.add("/usr/bin/mawk/x", Entry::text("", &origin("s"))).is_err());
        assert_eq!(tree.canonical("/../../etc/./x").unwrap(), "/etc/x");
    }

    #[test]
    fn removing_a_folder_leaves_its_namesakes() {
        let mut tree = Tree::new(&origin("base"));
        for path in ["/opt/a/1", "/opt/a/2", "/opt/a-b", "/opt/ab"] {
            tree.add(path, Entry::text("", &origin("p"))).unwrap();
        }
        assert_eq!(tree.remove("/opt/a"), 3);
        assert_eq!(tree.below("/opt").map(|(p, _)| p).collect::<Vec<_>>(), ["/opt/a-b", "/opt/ab"]);
    }
}
