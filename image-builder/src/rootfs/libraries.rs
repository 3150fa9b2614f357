//! Shows that no `/etc/ld.so.cache` is needed (ld.so(8)): every library is in a folder that the loader searches
//! without one.

use crate::tree::Tree;
use anyhow::{Result, bail};
use formats::arch::Arch;

/// Checks the folders that `/etc/ld.so.conf` and `/etc/ld.so.conf.d` name.
///
/// # Errors
/// Libraries in folders that only a cache would find.
pub fn check(tree: &Tree) -> Result<()> {
    let mut configuration = String::new();
    let files =
        std::iter::once("/etc/ld.so.conf").chain(tree.below("/etc/ld.so.conf.d").map(|(path, _)| path));
    for file in files {
        if let Some(data) = tree.file(file) {
            configuration.push_str(&String::from_utf8_lossy(&data.bytes(1 << 20)?));
            configuration.push('\n');
        }
    }
    let mut missed = Vec::new();
    for folder in configuration.lines().map(str::trim).filter(|line| line.starts_with('/')) {
        let folder = tree.canonical(folder)?;
        if is_searched(&folder) {
            continue;
        }
        let library = tree.below(&folder).find(|(path, _)| path.contains(".so"));
        missed.extend(library.map(|(path, entry)| format!("{path} (from {})", entry.origin)));
    }
    if missed.is_empty() {
        return Ok(());
    }
    bail!(
        "libraries are in folders that programs of the image do not search, because it has no ld.so.cache; move them \
         to /usr/lib, or give their programs a run path:\n  {}",
        missed.join("\n  ")
    )
}

/// Folders that Debian's loader searches by itself.
fn is_searched(folder: &str) -> bool {
    folder == "/usr/lib"
        || folder == "/usr/lib64"
        || Arch::ALL.iter().any(|arch| folder.strip_prefix("/usr/lib/") == Some(arch.triplet()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    #[test]
    fn a_library_that_only_a_cache_finds_is_an_error() {
        let origin = "libx".into();
        let mut tree = Tree::new(&"t".into());
        tree.add(
            "/etc/ld.so.conf.d/x.conf",
            Entry::text("# x\n/lib/x86_64-linux-gnu\n/opt/x/lib\n", &origin),
        )
        .unwrap();
        tree.add("/usr/lib/x86_64-linux-gnu/liba.so.1", Entry::text("", &origin)).unwrap();
        check(&tree).unwrap();
        tree.add("/opt/x/lib/libx.so.1", Entry::text("", &origin)).unwrap();
        let error = check(&tree).unwrap_err().to_string();
        assert!(error.ends_with("\n  /opt/x/lib/libx.so.1 (from libx)"), "{error}");
    }
}
