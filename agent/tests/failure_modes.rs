//! `docs/failure-modes.md` is true as far as a program can see it: every test that it names is there, and the engine's
//! decisions read no wall clock.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("UTF-8");
            found.push((path, text));
        }
    }
}

/// Names in the last column of the tables.
fn named(document: &str) -> Vec<(String, Vec<String>)> {
    let rows = document.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| row "));
    let rows = rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let names = cells[cells.len() - 1].split('`').skip(1).step_by(2).map(str::to_owned);
        (cells[0].trim().to_owned(), names.collect())
    });
    rows.collect()
}

#[test]
fn every_row_has_tests_and_every_test_exists() {
    let document = fs::read_to_string(root().join("docs/failure-modes.md")).unwrap();
    let mut all = Vec::new();
    let folders = [
        "agent/src",
        "agent/tests",
        "formats",
        "init/src",
        "installer/src",
        "qemu-tests/tests",
        "image-builder/src",
    ];
    for folder in folders {
        sources(&root().join(folder), &mut all);
    }
    let rows = named(&document);
    assert!(rows.len() > 40, "{} rows", rows.len());
    for (row, names) in rows {
        assert!(!names.is_empty(), "`{row}` names no test");
        for name in names {
            let function = format!("fn {name}(");
            let there = all.iter().any(|(_, text)| {
                text.split(&function).next().is_some_and(|before| {
                    before.len() < text.len() && before.trim_end().ends_with("#[test]") || {
                        // Inside proptest blocks attributes may follow.
                        before.len() < text.len()
                            && before.lines().rev().take(4).any(|line| line.trim().starts_with("#[test]"))
                    }
                })
            });
            assert!(there, "`{row}` names the test `{name}`, which does not exist");
        }
    }
}

#[test]
fn no_decision_reads_a_wall_clock() {
    let mut engine = Vec::new();
    sources(&root().join("agent/src/update"), &mut engine);
    sources(&root().join("formats/src"), &mut engine);
    assert!(engine.len() > 40);
    for (path, text) in engine {
        for word in ["SystemTime", "CLOCK_REALTIME", "Utc::now", "UNIX_EPOCH"] {
            assert!(!text.contains(word), "{} reads a wall clock: {word}", path.display());
        }
    }
}
