//! Shell patterns over whole paths, as dpkg's `path-exclude` uses them: `*` and `?` also match `/`.

/// Whether `text` matches `pattern`; `*` any characters, `?` one.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where the last `*` was, and how far it has eaten: going back there is enough (no nesting).
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            Some(_) | None => match star {
                Some((at, eaten)) => {
                    star = Some((at, eaten + 1));
                    p = at + 1;
                    t = eaten + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn matches_like_path_exclude() {
        for (pattern, text, expected) in [
            ("/usr/share/doc/*", "/usr/share/doc/x/copyright", true),
            ("/usr/share/doc/*/copyright", "/usr/share/doc/x/copyright", true),
            ("/usr/share/doc/*", "/usr/share/doc", false),
            ("/usr/share/locale/??/*", "/usr/share/locale/de/x", true),
            ("/usr/share/locale/??/*", "/usr/share/locale/en@q/x", false),
            ("*.a", "/usr/lib/libx.a", true),
            ("*.a", "/usr/lib/libx.ab", false),
            ("a*b*c", "aXbXbXc", true),
            ("", "", true),
            ("*", "", true),
            ("?", "", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
