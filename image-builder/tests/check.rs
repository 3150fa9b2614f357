//! `farhold check` on the folders of `tests/cases`, each named by its defect: what it prints and how it ends stands in
//! `expected.txt`. `UPDATE=1` writes those files anew; read the difference before it is committed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, also in its helpers")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn check(case: &Path) -> String {
    let args = fs::read_to_string(case.join("args")).unwrap_or_default();
    let output = Command::new(env!("CARGO_BIN_EXE_farhold"))
        .args(["check", "profile.yaml"])
        .args(args.split_whitespace())
        .current_dir(case)
        .env_remove("FARHOLD_RECIPES")
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    // Files of packs are named by their whole path, which differs by machine.
    let cases = format!("{}/", folder("tests/cases").display());
    format!("{stdout}{stderr}exit {}\n", output.status.code().unwrap()).replace(&cases, "")
}

#[test]
fn each_defect_is_found_and_said_as_expected() {
    let mut cases: Vec<PathBuf> =
        fs::read_dir(folder("tests/cases")).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.retain(|case| case.join("profile.yaml").is_file());
    cases.sort();
    assert!(cases.len() > 20, "cases are there: {}", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let expected = case.join("expected.txt");
        let found = check(&case);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &found).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != found {
            wrong.push(format!("{}:\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "differ from expected.txt:\n{}", wrong.join("\n"));
}

#[test]
fn profiles_of_the_source_tree_have_no_findings() {
    let profiles = folder("../recipes/profiles");
    for entry in fs::read_dir(&profiles).unwrap() {
        let path = entry.unwrap().path();
        let output = Command::new(env!("CARGO_BIN_EXE_farhold")).arg("check").arg(&path).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && said.ends_with(": no findings\n"), "{said}");
    }
}

/// Comparing the two folders is how a third processor is ported: what is in one is in the other.
#[test]
fn both_processors_have_the_same_files() {
    let names = |arch: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(folder(&format!("../{arch}"))).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("x86_64"), names("arm64"));
    assert!(names("x86_64").contains("kernel.yaml"));
}
