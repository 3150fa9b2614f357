//! What to answer to a request for a file: status, range, validators. Follows RFC 9110, sections 13 and 14. Knows no
//! sockets and no files; the caller says how long the file is and what names its contents.

use formats::repository as names;

/// What of a request matters here.
#[derive(Clone, Debug, Default)]
pub struct Asked<'a> {
    /// `GET`, `HEAD` or something else.
    pub method: &'a str,
    /// `Range`.
    pub range: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
}

/// A file that can be had.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its length in bytes.
    pub bytes: u64,
    /// Its entity tag, with quotes.
    pub tag: String,
}

/// An answer; the body is bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// First byte of the body.
    pub start: u64,
    /// Bytes of the body, as `Content-Length` says; a `HEAD` request gets none of them.
    pub length: u64,
    /// `Content-Range`, where there is one.
    pub content_range: Option<String>,
}

/// The answer to a request for a file that was found.
pub fn answer(asked: &Asked<'_>, found: &Found) -> Answer {
    let plain = |status, length| Answer { status, start: 0, length, content_range: None };
    if asked.method != "GET" && asked.method != "HEAD" {
        return plain(405, 0);
    }
    if asked.if_none_match.is_some_and(|tags| matches(tags, &found.tag)) {
        return plain(304, 0);
    }
    // A weak or another tag, or a date: the whole file, as it is now.
    let same = asked.if_range.is_none_or(|tag| tag.trim() == found.tag);
    let range =
        asked.range.filter(|_| same && asked.method == "GET").and_then(|text| range(text, found.bytes));
    match range {
        None => plain(200, found.bytes),
        Some(None) => {
            let content_range = Some(format!("bytes */{}", found.bytes));
            Answer { status: 416, start: 0, length: 0, content_range }
        }
        Some(Some((start, end))) => Answer {
            status: 206,
            start,
            length: end - start + 1,
            content_range: Some(format!("bytes {start}-{end}/{}", found.bytes)),
        },
    }
}

fn matches(tags: &str, tag: &str) -> bool {
    tags.split(',').map(str::trim).any(|given| given == "*" || given.trim_start_matches("W/") == tag)
}

/// First and last byte that a single range asks for. Outer `None`: no range that is understood, to be ignored; inner
/// `None`: none of the file's bytes.
fn range(text: &str, bytes: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |digits: &str| {
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (start, end) = match (number(first), number(last)) {
        (Some(start), Some(end)) if start <= end => (start, end.min(bytes.saturating_sub(1))),
        (Some(start), None) if last.is_empty() => (start, bytes.saturating_sub(1)),
        (None, Some(count)) if first.is_empty() => {
            if count == 0 {
                return Some(None);
            }
            (bytes.saturating_sub(count), bytes.saturating_sub(1))
        }
        _ => return None,
    };
    Some((start < bytes).then_some((start, end)))
}

/// The repository name that a request's path asks for; `None` for everything that is no such name.
pub fn name(path: &str) -> Option<&str> {
    let name = path.strip_prefix('/')?;
    let parts: Vec<&str> = name.split('/').collect();
    let plain = |part: &str| {
        let safe = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !part.is_empty() && part.len() <= 128 && part.bytes().all(safe)
    };
    let known = match parts.as_slice() {
        [file] => *file == names::ANNOUNCE || *file == names::ROOTS,
        [names::OBJECTS, file] => plain(file.strip_suffix(".lists").unwrap_or(file)),
        [names::ANNOUNCEMENTS | names::WAVES | names::RELEASES, file] => plain(file),
        [names::CATALOGUES, manifest, base] => plain(manifest) && plain(base),
        _ => false,
    };
    known.then_some(name)
}

/// Whether what a name means never changes: objects and lists are named by their contents.
pub fn immutable(name: &str) -> bool {
    name.starts_with(names::OBJECTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "\"t\"";

    fn found(bytes: u64) -> Found {
        Found { bytes, tag: TAG.to_owned() }
    }

    fn get(range: &str) -> Asked<'_> {
        Asked { method: "GET", range: Some(range), ..Asked::default() }
    }

    #[test]
    fn ranges_are_those_of_the_standard() {
        let part = |start, length, text: &str| Answer {
            status: 206,
            start,
            length,
            content_range: Some(text.to_owned()),
        };
        let rows = [
            ("bytes=0-99", part(0, 100, "bytes 0-99/1000")),
            ("bytes=900-", part(900, 100, "bytes 900-999/1000")),
            ("bytes=-1", part(999, 1, "bytes 999-999/1000")),
            ("bytes=-5000", part(0, 1000, "bytes 0-999/1000")),
            ("bytes=999-99999999999999999999999", part(999, 1, "bytes 999-999/1000")),
        ];
        for (range, expected) in rows {
            assert_eq!(answer(&get(range), &found(1000)), expected, "{range}");
        }
        for range in ["bytes=1000-", "bytes=-0", "bytes=99999999999999999999999-"] {
            let answer = answer(&get(range), &found(1000));
            assert_eq!(
                (answer.status, answer.content_range.as_deref()),
                (416, Some("bytes */1000")),
                "{range}"
            );
        }
        assert_eq!(answer(&get("bytes=0-0"), &found(0)).status, 416);
        // Not understood, or several: the whole file is a good answer.
        for range in
            ["bytes=5-1", "bytes=a-b", "bytes=", "bytes=-", "0-5", "bytes=0-1,5-6", "lines=0-1", "bytes=+1-2"]
        {
            let answer = answer(&get(range), &found(1000));
            assert_eq!((answer.status, answer.length), (200, 1000), "{range}");
        }
    }

    #[test]
    fn a_changed_file_is_sent_whole_and_a_known_one_not_at_all() {
        let changed = Asked { if_range: Some("\"old\""), ..get("bytes=5-9") };
        assert_eq!(answer(&changed, &found(10)).status, 200);
        let same = Asked { if_range: Some(TAG), ..get("bytes=5-9") };
        assert_eq!(answer(&same, &found(10)).status, 206);
        let weak = Asked { if_range: Some("W/\"t\""), ..get("bytes=5-9") };
        assert_eq!(answer(&weak, &found(10)).status, 200);
        for tags in [TAG, "\"a\", \"t\"", "W/\"t\"", "*"] {
            let known = Asked { if_none_match: Some(tags), ..get("bytes=5-9") };
            assert_eq!(
                answer(&known, &found(10)),
                Answer { status: 304, start: 0, length: 0, content_range: None }
            );
        }
        let other = Asked { if_none_match: Some("\"a\""), ..Asked { method: "GET", ..Asked::default() } };
        assert_eq!(answer(&other, &found(10)).status, 200);
    }

    #[test]
    fn methods_that_change_things_are_refused() {
        for (method, status) in [("GET", 200), ("HEAD", 200), ("POST", 405), ("DELETE", 405), ("", 405)] {
            assert_eq!(answer(&Asked { method, ..Asked::default() }, &found(1)).status, status, "{method}");
        }
    }

    #[test]
    fn only_names_of_a_repository_are_served() {
        let id = "ab".repeat(32);
        for good in [
            "/announce".to_owned(),
            "/roots".to_owned(),
            format!("/objects/{id}"),
            format!("/objects/{id}.lists"),
            "/announcements/33b3343b4722dc34-0-site-01020304050607".to_owned(),
            format!("/catalogues/{id}/any"),
        ] {
            assert_eq!(name(&good), good.strip_prefix('/'));
        }
        for bad in [
            "",
            "/",
            "announce",
            "/announce/",
            "//announce",
            "/objects/",
            "/objects/..",
            "/objects/../roots",
            "/objects/%2e%2e",
            "/objects/.partial-x",
            "/catalogues/a",
            "/catalogues/a/b/c",
            "/.publish-x/full",
            "/keys/dev-root-1.pem",
            "/dev-root-1.pem",
            "/objects/a\0b",
        ] {
            assert_eq!(name(bad), None, "{bad}");
        }
        assert_eq!(name(&format!("/objects/{}", "a".repeat(129))), None);
    }
}
