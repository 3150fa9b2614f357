//! Order of versions: numbers by value, words by letter, `-` (a pre-release) before the end, build metadata last.

use std::cmp::Ordering;

/// Compares two versions, as `1.33.4+k3s1` and `1.33.10+k3s1`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (pieces(a), pieces(b));
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Ordering::Equal,
            (x, y) => {
                let order = rank(x).cmp(&rank(y));
                if order != Ordering::Equal {
                    return order;
                }
            }
        }
    }
}

/// Pieces of digits, of letters, and the separators `-` and `+`; dots only separate.
fn pieces(version: &str) -> impl Iterator<Item = &str> {
    let mut rest = version;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches('.');
        let first = rest.chars().next()?;
        let kind = |c: char| (c.is_ascii_digit(), c.is_alphabetic());
        let end = rest.find(|c| kind(c) != kind(first)).unwrap_or(rest.len()).max(first.len_utf8());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// `-` sorts before the end, the end before everything else, words before numbers.
fn rank(piece: Option<&str>) -> (u8, u64, &str) {
    match piece {
        Some("-" | "~") => (0, 0, ""),
        None => (1, 0, ""),
        Some(word) => match word.parse() {
            Ok(number) => (3, number, ""),
            Err(_) => (2, 0, word),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_versions_as_people_do() {
        let sorted = ["1.0-rc1", "1.0", "1.2", "1.10", "1.33.4+k3s1", "1.33.4+k3s2", "1.33.10+k3s1", "13"];
        for pair in sorted.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
        assert_eq!(compare("1.2", "1.2"), Ordering::Equal);
    }
}
