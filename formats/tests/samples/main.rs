//! Samples of the release format, valid and invalid, each judged as a device would: what is refused, is refused with
//! the error that stands beside it.
//!
//! `UPDATE=1 cargo test -p formats --test samples` writes them anew from fixed keys. Samples that the cases no longer
//! make (of older versions) stay and are still judged.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its input must stop")]

mod bad_documents;
mod bad_frames;
mod bad_roots;
mod catalogues;
mod device;
mod fixed;
mod good;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A sample: file name to contents, `.hex` files as bytes.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples")
}

fn cases() -> Vec<(String, Files)> {
    let valid = good::cases()
        .into_iter()
        .chain(catalogues::good())
        .map(|(name, files)| (format!("valid/{name}"), files));
    let invalid = bad_frames::cases()
        .into_iter()
        .chain(bad_documents::cases())
        .chain(bad_roots::cases())
        .chain(catalogues::bad());
    let all: Vec<_> = valid.chain(invalid.map(|(name, files)| (format!("invalid/{name}"), files))).collect();
    let names: std::collections::BTreeSet<_> = all.iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), all.len(), "two cases have one name");
    all
}

fn hex_lines(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| formats::hex::encode(line) + "\n").collect()
}

fn bytes_of(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

#[test]
fn writers_still_make_the_samples() {
    let update = std::env::var_os("UPDATE").is_some();
    for (name, files) in cases() {
        let folder = root().join(&name);
        for (file, bytes) in &files {
            let text = hex_lines(bytes);
            let path = folder.join(format!("{file}.hex"));
            if update {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &text).unwrap();
            }
            let stored = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(stored, text, "{name}/{file}.hex differs; UPDATE=1 writes it anew");
        }
        if update {
            fs::write(folder.join("verdict.txt"), device::judge(&files) + "\n").unwrap();
        }
    }
}

#[test]
fn every_sample_gets_its_verdict() {
    let mut count = 0;
    for class in ["valid", "invalid"] {
        for folder in fs::read_dir(root().join(class)).unwrap() {
            let folder = folder.unwrap().path();
            let read = |file: &'static str| {
                let text = fs::read_to_string(folder.join(format!("{file}.hex"))).ok()?;
                Some((file, bytes_of(&text)))
            };
            let names = ["announce", "manifest", "roots", "accepted", "catalogue"];
            let files: Files = names.into_iter().filter_map(read).collect();
            let verdict = device::judge(&files);
            let expected = fs::read_to_string(folder.join("verdict.txt")).unwrap();
            assert_eq!(verdict, expected.trim_end(), "{}", folder.display());
            assert_eq!(verdict.starts_with("refused: "), class == "invalid", "{}", folder.display());
            count += 1;
        }
    }
    assert!(count >= 150, "only {count} samples found");
}
