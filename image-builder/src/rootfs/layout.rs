//! The shape of an image's root: what is below `/var` becomes tmpfiles.d lines (tmpfiles.d(5)) that fill an empty
//! state partition, `/home` and root's home live there, and mount points are empty folders.

use crate::tree::{Entry, Node, Tree};
use anyhow::{Result, bail};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// Folders that something is mounted on, or that only exist to be empty.
const EMPTY: [(&str, u32); 13] = [
    ("/proc", 0o555),
    ("/sys", 0o555),
    ("/dev", 0o755),
    ("/run", 0o755),
    ("/tmp", 0o1777),
    ("/var", 0o755),
    ("/boot", 0o755),
    ("/efi", 0o755),
    ("/mnt", 0o755),
    ("/media", 0o755),
    ("/srv", 0o755),
    ("/opt", 0o755),
    ("/usr/local", 0o755),
];
/// What a build may leave in folders of [`EMPTY`] for packs to use.
const MAY_HAVE_CONTENT: [&str; 3] = ["/srv", "/opt", "/usr/local"];
/// Homes that live on the state partition: link, folder below `/var`, mode.
const HOMES: [(&str, &str, &str); 2] = [("/home", "/var/home", "0755"), ("/root", "/var/roothome", "0700")];
/// Where tmpfiles finds files that it copies to `/var`.
const FACTORY: &str = "/usr/share/factory";
/// The file of lines made here; its name sorts after those of packages, whose lines for one path come first.
const LINES: &str = "/usr/lib/tmpfiles.d/zz-farhold-var.conf";

/// Gives the tree its final shape.
///
/// # Errors
/// If something is where a mount point must be.
pub fn finish(tree: &mut Tree) -> Result<()> {
    let origin: Arc<str> = "layout".into();
    move_homes(tree, &origin)?;
    move_var(tree, &origin)?;
    for (path, mode) in EMPTY {
        if !MAY_HAVE_CONTENT.contains(&path) {
            // What a package has below a mount point could never be seen.
            tree.remove(path);
        }
        let mut entry = Entry::dir(&origin);
        entry.mode = mode;
        tree.replace(path, entry)?;
    }
    settings(tree, &origin)
}

/// Files of `/etc` that are the same in every image.
fn settings(tree: &mut Tree, origin: &Arc<str>) -> Result<()> {
    // Empty, not absent: systemd then takes no boot for the first; the early stage puts the device's own over it.
    let mut machine_id = Entry::text("", origin);
    machine_id.mode = 0o444;
    tree.replace("/etc/machine-id", machine_id)?;
    tree.replace("/etc/mtab", Entry::symlink("../proc/self/mounts", origin))?;
    // systemd's own lines want `/home` and `/root` to be folders.
    tree.replace("/etc/tmpfiles.d/home.conf", Entry::symlink("/dev/null", origin))?;
    if tree.get("/usr/lib/systemd/systemd-resolved").is_some() && tree.get("/etc/resolv.conf").is_none() {
        tree.replace("/etc/resolv.conf", Entry::symlink("../run/systemd/resolve/stub-resolv.conf", origin))?;
    }
    if tree.get("/etc/localtime").is_none() && tree.get("/usr/share/zoneinfo/Etc/UTC").is_some() {
        tree.replace("/etc/localtime", Entry::symlink("/usr/share/zoneinfo/Etc/UTC", origin))?;
    }
    Ok(())
}

/// Moves what packages have in homes below `/var` and leaves links.
fn move_homes(tree: &mut Tree, origin: &Arc<str>) -> Result<()> {
    for (home, target, mode) in HOMES {
        let content: Vec<(String, Entry)> =
            tree.below(home).map(|(path, entry)| (path.replacen(home, target, 1), entry.clone())).collect();
        tree.remove(home);
        let mut folder = Entry::dir(origin);
        folder.mode = super::steps::octal(mode)?;
        tree.add(target, folder)?;
        for (path, entry) in content {
            tree.add(&path, entry)?;
        }
        tree.add(home, Entry::symlink(target.trim_start_matches('/'), origin))?;
    }
    Ok(())
}

/// Turns everything below `/var` into lines, and moves its files where tmpfiles copies them from.
fn move_var(tree: &mut Tree, origin: &Arc<str>) -> Result<()> {
    let declared = declared(tree)?;
    let mut lines = String::new();
    let mut files = Vec::new();
    for (path, entry) in tree.below("/var") {
        if path.contains(char::is_whitespace) || path.contains('%') {
            bail!("{path} (from {}) cannot be named in a tmpfiles.d line", entry.origin);
        }
        if declared.contains(path) && !matches!(entry.node, Node::File(_)) {
            continue;
        }
        let (mode, user, group) = (entry.mode, &entry.user, &entry.group);
        let wrote = match &entry.node {
            Node::Dir => writeln!(lines, "d {path} {mode:04o} {user} {group} -"),
            Node::Symlink(target) => writeln!(lines, "L {path} - - - - {target}"),
            Node::File(_) => {
                files.push((format!("{FACTORY}{path}"), entry.clone()));
                writeln!(lines, "C {path} {mode:04o} {user} {group} -")
            }
        };
        wrote.map_err(anyhow::Error::from)?;
    }
    for (path, mut entry) in files {
        (entry.user, entry.group) = ("root".into(), "root".into());
        tree.add(&path, entry)?;
    }
    tree.remove("/var");
    tree.replace(LINES, Entry::text(lines, origin))
}

/// Paths that tmpfiles.d lines of packages and packs make already.
fn declared(tree: &Tree) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for folder in ["/usr/lib/tmpfiles.d", "/etc/tmpfiles.d"] {
        for (path, _) in tree.below(folder).filter(|(path, _)| path.ends_with(".conf")) {
            let Some(data) = tree.file(path) else { continue };
            let bytes = data.bytes(1 << 20)?;
            let text = String::from_utf8_lossy(&bytes);
            for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
                paths
                    .extend(line.split_whitespace().nth(1).map(|path| path.trim_end_matches('/').to_owned()));
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn var_becomes_lines_and_homes_become_links() {
        let origin: Arc<str> = "p".into();
        let mut tree = Tree::new(&origin);
        let mut private = Entry::dir(&origin);
        (private.mode, private.group) = (0o2750, "adm".into());
        tree.add("/var/log/private", private).unwrap();
        tree.add("/var/lib/x/data", Entry::text("data", &origin)).unwrap();
        tree.add("/var/lock", Entry::symlink("/run/lock", &origin)).unwrap();
        tree.add("/root/.profile", Entry::text("p", &origin)).unwrap();
        tree.add("/boot/left", Entry::text("x", &origin)).unwrap();
        tree.add("/usr/lib/tmpfiles.d/v.conf", Entry::text("# c\nd /var/log 0755\n", &origin)).unwrap();
        finish(&mut tree).unwrap();
        let lines = String::from_utf8(tree.file(LINES).unwrap().bytes(9999).unwrap()).unwrap();
        assert_eq!(
            lines,
            "d /var/home 0755 root root -\nd /var/lib 0755 root root -\nd /var/lib/x 0755 root root -\n\
             C /var/lib/x/data 0644 root root -\nL /var/lock - - - - /run/lock\n\
             d /var/log/private 2750 root adm -\nd /var/roothome 0700 root root -\nC /var/roothome/.profile 0644 root root -\n"
        );
        assert_eq!(tree.below("/var").count() + tree.below("/boot").count(), 0);
        assert!(tree.file("/usr/share/factory/var/lib/x/data").is_some());
        assert!(matches!(&tree.get("/home").unwrap().node, Node::Symlink(target) if target == "var/home"));
        assert_eq!(tree.get("/tmp").unwrap().mode, 0o1777);
        assert_eq!(tree.get("/etc/machine-id").unwrap().mode, 0o444);
        assert!(tree.get("/etc/resolv.conf").is_none());
    }
}
