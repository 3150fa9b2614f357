//! Parsing and rules; a real archive is asked by `tests/debian.rs`.

use super::*;

#[test]
fn reads_printed_addresses() {
    let line = "'http://m.example/debian/pool/main/d/dmsetup_1.02-2_amd64.deb' dmsetup_2%3a1.02-2_amd64.deb 9 SHA256:ab";
    let uri = Uri::parse(line).unwrap();
    assert_eq!((uri.selector().as_str(), uri.size, uri.sha256.as_str()), ("dmsetup=2:1.02-2", 9, "ab"));
    // An archive that offers only weaker hashes is not accepted.
    assert!(Uri::parse("'http://m.example/x.deb' x_1_all.deb 9 MD5Sum:ab").is_none());
}

#[test]
fn a_package_that_needs_an_absent_one_is_named() {
    let packages = Stanza::parse_all(
        "Package: tool\nDepends: libc6, perl-base (>= 5)\n\nPackage: fine\nPre-Depends: perl-base\n\nPackage: libc6\n",
    );
    let stand_ins = Stanza::parse_all("Package: perl-base\nVersion: 5\n");
    let rule = |used_by: &[&str]| Absent {
        because: "only scripts use it".into(),
        used_by: used_by.iter().map(|name| (*name).to_owned()).collect(),
    };
    let only_fine = rule(&["fine"]);
    let error =
        check_absent(&packages, &BTreeMap::from([("perl-base", &only_fine)]), &stand_ins).unwrap_err();
    assert_eq!(
        error.to_string(),
        "packages need others that this image leaves out; ask for those by name in a pack, or allow it under \
         `absent` of the os pack:\n  tool needs perl-base (left out because only scripts use it)"
    );
    let all = rule(&[]);
    check_absent(&packages, &BTreeMap::from([("perl-base", &all)]), &stand_ins).unwrap();
}

#[test]
fn a_security_suite_without_mirror_says_which_option_helps() {
    let mirrors =
        Mirrors { archive: "http://m.example/debian".into(), security: None, keyring: "/k.gpg".into() };
    let suites = ["trixie".to_owned(), "trixie-security".to_owned()];
    let components = ["main".to_owned()];
    let sources = Sources {
        mirrors: &mirrors,
        suites: &suites,
        components: &components,
        arch: Arch::Arm64,
        snapshot: false,
    };
    let error = source_list(&sources).unwrap_err().to_string();
    assert!(
        error.starts_with("suite `trixie-security` has no mirror: give one with --security-mirror URL"),
        "{error}"
    );
    let only = Sources { suites: &suites[..1], ..sources };
    assert_eq!(source_list(&only).unwrap(), "deb [signed-by=/k.gpg] http://m.example/debian trixie main\n");
}
