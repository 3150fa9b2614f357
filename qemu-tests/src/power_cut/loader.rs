//! The order in which systemd-boot tries entries, as a model.
//!
//! Follows the UAPI group's Boot Loader Specification (sorting, boot counting) and Version Format Specification, and
//! systemd's "Automatic Boot Assessment". Deliberately not the agent's own model: one mistake is then not made twice,
//! and this one knows names that Farhold never gives, as torn ones are. Entries of one product have one sort key.

use std::cmp::Ordering;

/// An entry that systemd-boot lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name without counters, in lower case.
    pub id: String,
    /// Tries left; `None` if they are not counted.
    pub left: Option<u32>,
    /// Tries done.
    pub done: u32,
    /// Version in its os-release.
    pub version: String,
}

impl Entry {
    /// The entry of a file name; `None` if systemd-boot passes such a name over.
    pub fn named(file: &str, version: &str) -> Option<Self> {
        let id = file.to_lowercase();
        let stem = id.strip_suffix(".efi").filter(|_| !id.starts_with('.') && !id.starts_with("auto-"))?;
        let counters = stem.rsplit_once('+').and_then(|(base, counters)| {
            let (left, done) = counters.split_once('-').unwrap_or((counters, "0"));
            Some((base, left.parse().ok()?, done.parse().ok()?))
        });
        let version = version.to_owned();
        Some(match counters {
            Some((base, left, done)) => Self { id: format!("{base}.efi"), left: Some(left), done, version },
            None => Self { id, left: None, done: 0, version },
        })
    }

    /// The order of two entries; the lesser one is tried first. Equal ones are tried in the folder's order.
    pub fn order(&self, other: &Self) -> Ordering {
        let spent = |entry: &Self| entry.left == Some(0);
        let newest = newer(&other.version, &self.version).then_with(|| newer(&other.id, &self.id));
        let counters = match (self.left, other.left) {
            (Some(left), Some(right)) => right.cmp(&left).then(self.done.cmp(&other.done)),
            (Some(_), None) | (None, Some(_)) | (None, None) => Ordering::Equal,
        };
        spent(self).cmp(&spent(other)).then(newest).then(counters)
    }
}

/// A piece of a version: separators sort by kind, letters before digits, digits by value.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Piece {
    Tilde,
    End,
    Dash,
    Caret,
    Dot,
    Letters(String),
    /// Number of digits without leading zeros, then the digits.
    Number(usize, String),
}

/// Compares versions; the greater is the newer.
pub fn newer(a: &str, b: &str) -> Ordering {
    pieces(a).cmp(&pieces(b))
}

fn pieces(text: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let kind: fn(char) -> bool = match first {
            '0'..='9' => |c| c.is_ascii_digit(),
            'a'..='z' | 'A'..='Z' => |c| c.is_ascii_alphabetic(),
            _ => {
                match first {
                    '~' => out.push(Piece::Tilde),
                    '-' => out.push(Piece::Dash),
                    '^' => out.push(Piece::Caret),
                    '.' => out.push(Piece::Dot),
                    _ => {}
                }
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        let end = rest.find(|c| !kind(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        if first.is_ascii_digit() {
            let digits = run.trim_start_matches('0');
            out.push(Piece::Number(digits.len(), digits.to_owned()));
        } else {
            out.push(Piece::Letters(run.to_owned()));
        }
        rest = after;
    }
    out.push(Piece::End);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first<'n>(names: &[(&'n str, &str)]) -> &'n str {
        let mut entries: Vec<(Entry, &str)> =
            names.iter().map(|(name, version)| (Entry::named(name, version).unwrap(), *name)).collect();
        entries.sort_by(|a, b| a.0.order(&b.0));
        entries[0].1
    }

    #[test]
    fn versions_are_ordered_as_the_specification_says() {
        let ascending = [
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-1",
            "123-1.1",
            "123^post1",
            "123.a-1",
            "123.1-1",
            "123a-1",
            "124-1",
        ];
        for (n, a) in ascending.iter().enumerate() {
            for (m, b) in ascending.iter().enumerate() {
                assert_eq!(newer(a, b), n.cmp(&m), "{a} {b}");
            }
        }
        assert_eq!(newer("1.002", "1.2"), Ordering::Equal);
    }

    #[test]
    fn the_newest_comes_first_until_its_tries_are_spent() {
        assert_eq!(first(&[("a_1.efi", "1.0"), ("a_2+3.efi", "2.0")]), "a_2+3.efi");
        assert_eq!(first(&[("a_1.efi", "1.0"), ("a_2+0-3.efi", "2.0")]), "a_1.efi");
        assert_eq!(first(&[("a_2+1-2.efi", "2.0"), ("a_2+2-1.efi", "2.0")]), "a_2+2-1.efi");
        assert_eq!(first(&[("A_2+0-3.EFI", "2.0")]), "A_2+0-3.EFI");
    }

    #[test]
    fn names_that_are_passed_over() {
        for name in ["a.txt", ".a.efi", "auto-x.efi", "efi"] {
            assert_eq!(Entry::named(name, "1"), None, "{name}");
        }
        let torn = Entry::named("100_01~1.EFI", "1.0").unwrap();
        assert_eq!((torn.id.as_str(), torn.left), ("100_01~1.efi", None));
        assert_eq!(Entry::named("a+x.efi", "1").unwrap().left, None);
    }

    /// The agent decides by its own model before it writes an entry.
    #[test]
    fn the_agents_model_agrees_on_every_pair_of_names() {
        let versions = ["1.0.0", "1.0.1", "1.0.10", "1.0.1-rc1", "1.0.1~rc1", "1.1"];
        let counters = ["", "+3", "+2-1", "+1-2", "+0-3", "+0-1"];
        let all =
            versions.iter().flat_map(|v| counters.iter().map(move |c| (*v, format!("{v}_0123abcd{c}.efi"))));
        let all: Vec<(&str, String)> = all.collect();
        for (a_version, a) in &all {
            for (b_version, b) in &all {
                let ours = Entry::named(a, a_version).unwrap().order(&Entry::named(b, b_version).unwrap());
                let parse = |name: &str| formats::entry::EntryName::parse(name).unwrap();
                assert_eq!(ours, formats::loader::compare(&parse(a), &parse(b)), "{a} {b}");
            }
        }
    }
}
