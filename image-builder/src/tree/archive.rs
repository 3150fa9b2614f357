//! Writes a [`Tree`] as a tar stream whose bytes depend on nothing but the tree, the ids and the time given.
//!
//! POSIX ustar with GNU long names, as `tar(5)` describes; entries in order of path. Files that share a range of
//! bytes, owner and mode are written once and linked.

use super::{Data, Entry, Ids, Node, Tree};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// Writes the tree; every time stamp is `epoch`, seconds since 1970.
///
/// # Errors
/// If an owner has no id, a file cannot be read or is shorter than it was, or `out` fails.
pub fn write(tree: &Tree, ids: &Ids, epoch: u64, out: impl Write) -> Result<()> {
    let mut builder = Builder::new(out);
    let mut seen: HashMap<(&Path, u64, u64), (&str, &Entry)> = HashMap::new();
    builder.append_data(&mut root_header(epoch), "./", std::io::empty()).context("write root folder")?;
    for (path, entry) in tree.iter() {
        let name = path.trim_start_matches('/');
        let mut header = Header::new_gnu();
        header.set_mtime(epoch);
        header.set_mode(entry.mode & 0o7777);
        let (uid, gid) = ids.of(path, entry)?;
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        header.set_size(0);
        let wrote = match &entry.node {
            Node::Dir => {
                header.set_entry_type(EntryType::Directory);
                builder.append_data(&mut header, format!("{name}/"), std::io::empty())
            }
            Node::Symlink(target) => {
                header.set_entry_type(EntryType::Symlink);
                builder.append_link(&mut header, name, target)
            }
            Node::File(data) => match first_copy(&mut seen, path, entry, data) {
                Some(first) => {
                    header.set_entry_type(EntryType::Link);
                    builder.append_link(&mut header, name, first.trim_start_matches('/'))
                }
                None => {
                    header.set_entry_type(EntryType::Regular);
                    header.set_size(data.len());
                    let reader =
                        data.open().with_context(|| format!("read {path} (from {})", entry.origin))?;
                    builder.append_data(&mut header, name, Exactly { reader, left: data.len() })
                }
            },
        };
        wrote.with_context(|| format!("write {path} (from {})", entry.origin))?;
    }
    builder.into_inner().and_then(|mut out| out.flush()).context("end the tar stream")
}

/// The path that the same bytes, owner and mode were first written under.
fn first_copy<'a>(
    seen: &mut HashMap<(&'a Path, u64, u64), (&'a str, &'a Entry)>,
    path: &'a str,
    entry: &'a Entry,
    data: &'a Data,
) -> Option<&'a str> {
    let Data::Range { path: source, offset, len } = data else { return None };
    if *len == 0 {
        return None;
    }
    match seen.entry((source, *offset, *len)) {
        std::collections::hash_map::Entry::Vacant(place) => {
            place.insert((path, entry));
            None
        }
        std::collections::hash_map::Entry::Occupied(first) => {
            let (first_path, first) = first.get();
            let same = first.mode == entry.mode && first.user == entry.user && first.group == entry.group;
            same.then_some(*first_path)
        }
    }
}

/// Turns an early end into an error: a short member would shift everything after it.
struct Exactly<R> {
    reader: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(buffer)?;
        self.left = self.left.saturating_sub(n as u64);
        if n == 0 && self.left > 0 && !buffer.is_empty() {
            return Err(std::io::Error::other(format!("{} bytes are missing from the cache", self.left)));
        }
        Ok(n)
    }
}

fn root_header(epoch: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::Directory);
    header.set_mode(0o755);
    header.set_mtime(epoch);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn sample(dir: &Path) -> (Tree, Ids) {
        let origin: Arc<str> = "p".into();
        let mut tree = Tree::new(&origin);
        let source = dir.join("data");
        std::fs::write(&source, b"0123456789").unwrap();
        let range = |offset, len| Node::File(Data::Range { path: Arc::from(source.as_path()), offset, len });
        tree.add("/usr/bin/a", Entry::new(range(2, 3), 0o755, &origin)).unwrap();
        tree.add("/usr/bin/b", Entry::new(range(2, 3), 0o755, &origin)).unwrap();
        tree.add("/usr/bin/c", Entry::new(range(2, 3), 0o4755, &origin)).unwrap();
        let long = format!("/usr/share/{}/{}", "x".repeat(150), "y".repeat(150));
        tree.add(&long, Entry::text("long", &origin)).unwrap();
        let mut ids = Ids::default();
        ids.uids.insert("root".into(), 0);
        ids.gids.insert("root".into(), 0);
        (tree, ids)
    }

    #[test]
    fn equal_ranges_are_linked_unless_owner_or_mode_differ() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, ids) = sample(dir.path());
        let mut bytes = Vec::new();
        write(&tree, &ids, 1_700_000_000, &mut bytes).unwrap();
        let mut again = Vec::new();
        write(&tree.clone(), &ids, 1_700_000_000, &mut again).unwrap();
        assert_eq!(bytes, again);
        let mut kinds = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 1_700_000_000);
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            kinds.push((entry.path().unwrap().display().to_string(), entry.header().entry_type(), text));
        }
        let of = |path: &str| kinds.iter().find(|(p, ..)| p == path).cloned().unwrap();
        assert_eq!(of("usr/bin/a"), ("usr/bin/a".into(), EntryType::Regular, "234".into()));
        assert_eq!(of("usr/bin/b").1, EntryType::Link);
        assert_eq!(of("usr/bin/c").1, EntryType::Regular);
        assert!(kinds.iter().any(|(p, _, text)| p.ends_with("yyy") && text == "long"));
    }

    #[test]
    fn an_unknown_owner_and_a_shrunk_source_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let (mut tree, ids) = sample(dir.path());
        std::fs::write(dir.path().join("data"), b"012").unwrap();
        let error = format!("{:#}", write(&tree, &ids, 0, std::io::sink()).unwrap_err());
        assert!(error.contains("/usr/bin/a (from p)") && error.contains("missing from the cache"), "{error}");
        tree.get_mut("/usr/bin/a").unwrap().group = "shadow".into();
        let error = format!("{:#}", write(&tree, &ids, 0, std::io::sink()).unwrap_err());
        assert_eq!(error, "/usr/bin/a (from p) belongs to group `shadow`, which the image does not have");
    }
}
