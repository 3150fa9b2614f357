//! Which entry systemd-boot starts, as a model: the agent asks it before it writes an entry, the power-cut tests judge
//! every state of the ESP by it.
//!
//! Follows systemd-boot's `boot_entry_compare` and the UAPI group's Version Format Specification. All entries of a
//! device have the same sort key, its product, so that version and name decide. Knows nothing of files.

use crate::entry::EntryName;
use std::cmp::Ordering;

/// Compares two version strings; the greater one is the newer.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip(a, |byte| !is_valid(byte));
        b = skip(b, |byte| !is_valid(byte));
        // A tilde is older than the end, the end older than the other separators.
        if let Some(decided) = separator(&mut a, &mut b, b'~') {
            return decided;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().min(1).cmp(&b.len().min(1));
        }
        for mark in [b'-', b'^', b'.'] {
            if let Some(decided) = separator(&mut a, &mut b, mark) {
                return decided;
            }
        }
        let digits = starts(a, u8::is_ascii_digit) || starts(b, u8::is_ascii_digit);
        let kind = if digits { u8::is_ascii_digit } else { u8::is_ascii_alphabetic };
        let (left, right) = (run(&mut a, kind), run(&mut b, kind));
        let ordered = if digits { numbers(left, right) } else { left.cmp(right) };
        if ordered != Ordering::Equal {
            return ordered;
        }
    }
}

fn is_valid(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"~-^.".contains(&byte)
}

fn skip(text: &[u8], unwanted: impl Fn(u8) -> bool) -> &[u8] {
    let at = text.iter().position(|byte| !unwanted(*byte)).unwrap_or(text.len());
    &text[at..]
}

fn starts(text: &[u8], kind: fn(&u8) -> bool) -> bool {
    text.first().is_some_and(kind)
}

/// Where only one side has the mark, that side is the older one; where both have it, both go on behind it.
fn separator(a: &mut &[u8], b: &mut &[u8], mark: u8) -> Option<Ordering> {
    let (left, right) = (a.first() == Some(&mark), b.first() == Some(&mark));
    if left != right {
        return Some((!left).cmp(&!right));
    }
    if left {
        (*a, *b) = (&a[1..], &b[1..]);
    }
    None
}

fn run<'t>(text: &mut &'t [u8], kind: fn(&u8) -> bool) -> &'t [u8] {
    let end = text.iter().position(|byte| !kind(byte)).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    if a.is_empty() || b.is_empty() {
        return a.len().cmp(&b.len());
    }
    let (a, b) = (skip(a, |byte| byte == b'0'), skip(b, |byte| byte == b'0'));
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// The order in which systemd-boot lists two entries: the lesser one comes first.
pub fn compare(a: &EntryName, b: &EntryName) -> Ordering {
    let spent = |entry: &EntryName| entry.tries.is_some_and(|tries| tries.left == 0);
    let by_name = spent(a)
        .cmp(&spent(b))
        .then_with(|| compare_versions(&b.version, &a.version))
        .then_with(|| compare_versions(&b.id(), &a.id()));
    match (a.tries, b.tries) {
        (Some(a), Some(b)) => by_name.then(b.left.cmp(&a.left)).then(a.done.cmp(&b.done)),
        (Some(_), None) | (None, Some(_)) | (None, None) => by_name,
    }
}

/// The entry that systemd-boot starts by itself.
pub fn first<'e>(entries: impl IntoIterator<Item = &'e EntryName>) -> Option<&'e EntryName> {
    entries.into_iter().min_by(|a, b| compare(a, b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Ascending; the examples of the Version Format Specification and systemd's own `test-string-util`.
    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        let ascending = [
            "~1",
            "",
            "1~rc1",
            "1",
            "1-1",
            "1^2",
            "1.0",
            "2~beta",
            "2",
            "11",
            "122~rc1",
            "122",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
        ];
        for (n, a) in ascending.iter().enumerate() {
            for (m, b) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(a, b), n.cmp(&m), "{a:?} {b:?}");
            }
        }
        assert_eq!(compare_versions("1.002", "1.2"), Ordering::Equal);
        assert_eq!(compare_versions("1_2", "12"), Ordering::Less);
    }

    #[test]
    fn a_newer_version_comes_first_until_its_tries_are_spent() {
        let names = |list: &[&str]| -> Vec<EntryName> {
            list.iter().map(|name| EntryName::parse(name).unwrap()).collect()
        };
        let chosen = |list: &[&str]| first(&names(list)).unwrap().file_name();
        assert_eq!(chosen(&["1.0_aaaaaaaa.efi", "1.1_bbbbbbbb+3.efi"]), "1.1_bbbbbbbb+3.efi");
        assert_eq!(chosen(&["1.0_aaaaaaaa.efi", "1.1_bbbbbbbb+0-3.efi"]), "1.0_aaaaaaaa.efi");
        assert_eq!(chosen(&["1.1_bbbbbbbb+0-3.efi"]), "1.1_bbbbbbbb+0-3.efi");
        assert_eq!(chosen(&["1.1_bbbbbbbb+1-2.efi", "1.1_bbbbbbbb+2-1.efi"]), "1.1_bbbbbbbb+2-1.efi");
        assert_eq!(first(&[]), None);
    }

    proptest! {
        #[test]
        fn the_order_is_one(texts in prop::collection::vec("[0-9a-c.~^-]{0,6}", 3)) {
            let [a, b, c] = [&texts[0], &texts[1], &texts[2]];
            prop_assert_eq!(compare_versions(a, b), compare_versions(b, a).reverse());
            if compare_versions(a, b).is_le() && compare_versions(b, c).is_le() {
                prop_assert!(compare_versions(a, c).is_le(), "{} {} {}", a, b, c);
            }
        }
    }
}
