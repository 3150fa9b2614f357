//! The folders `x86_64/` and `arm64/` are the same files with other contents, so that `diff -r x86_64 arm64` is the
//! list of what a port has to say; `docs/porting.md` explains each of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use formats::arch::Arch;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Boards that every processor has.
const EVERYWHERE: [&str; 2] = ["boards/generic-uefi.yaml", "boards/vm.yaml"];
/// Most lines, comments aside, in which a file may differ between two processors: with more, the difference is no
/// guide any more, and what is common belongs into one place.
const MOST: usize = 16;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files below the folder of a processor.
fn files(arch: Arch) -> BTreeSet<String> {
    let (top, mut found, mut folders) = (root().join(arch.name()), BTreeSet::new(), vec![String::new()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(top.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                folders.push(format!("{path}/"));
            } else {
                found.insert(path);
            }
        }
    }
    found
}

/// Lines that say something.
fn lines(arch: Arch, file: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(arch.name()).join(file)).unwrap();
    let said = text.lines().map(|line| line.split(" #").next().unwrap().trim_end().to_owned());
    said.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#')).collect()
}

#[test]
fn every_processor_has_the_same_files() {
    let [first, second] = Arch::ALL.map(files);
    let others: Vec<&String> = first.symmetric_difference(&second).collect();
    assert!(others.iter().all(|file| file.starts_with("boards/")), "only in one folder: {others:?}");
    for file in EVERYWHERE {
        assert!(first.contains(file) && second.contains(file), "{file}");
    }
}

#[test]
fn files_differ_in_little_and_the_guide_names_each() {
    let guide = std::fs::read_to_string(root().join("docs/porting.md")).unwrap();
    let [first, second] = Arch::ALL.map(files);
    for file in first.union(&second) {
        assert!(guide.contains(&format!("`{file}`")), "docs/porting.md does not name `{file}`");
    }
    for file in first.intersection(&second) {
        let [one, other] = Arch::ALL.map(|arch| lines(arch, file));
        let differ: Vec<&String> = one.symmetric_difference(&other).collect();
        assert!(differ.len() <= MOST, "{file} differs in {} lines: {differ:?}", differ.len());
    }
}
