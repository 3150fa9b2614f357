//! Both carriers against well-behaved and hostile sources: what they hand on is asked for, or an error of the right
//! kind.

use super::*;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

const FILE: &[u8] = b"0123456789abcdef";

/// A server that answers each connection by `answer`, given the path and the `Range` header, or `same` if that is the
/// entity tag which the client has.
fn server(answer: impl Fn(&str, Option<&str>) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            let path = request.split(' ').nth(1).unwrap().to_owned();
            let mut range = None;
            for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    range = Some(value.to_owned());
                }
                if line.to_ascii_lowercase().starts_with("if-none-match: \"same\"") {
                    range = Some("same".to_owned());
                }
            }
            // A client that has what it wants may be gone.
            drop(stream.write_all(&answer(&path, range.as_deref())));
        }
    });
    format!("http://{address}/repo/")
}

fn reply(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn part(range: Option<&str>) -> Vec<u8> {
    let Some((from, to)) = range.and_then(|range| range.split_once('-')) else {
        return reply("200 OK", "", FILE);
    };
    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
    let header = format!("Content-Range: bytes {from}-{to}/{}\r\n", FILE.len());
    reply("206 Partial Content", &header, &FILE[from..=to])
}

#[derive(Default)]
struct Taken {
    bytes: Vec<u8>,
    paid: u64,
}

impl Toll for Taken {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.paid += bytes;
        Ok(())
    }
}

impl Sink for Taken {
    fn piece(&mut self, _: u64, bytes: &[u8]) -> Result<Worth, Failure> {
        self.bytes.extend(bytes);
        Ok(Worth::New)
    }
}

const ID: Digest = Digest([7; 32]);

fn ask(source: &str, range: Range<u64>) -> Result<Vec<u8>, Failure> {
    let wanted = Wanted { what: What::Object(ID), length: range.end.max(16), piece: 1, missing: vec![range] };
    let mut taken = Taken::default();
    open(source)?.pieces(&wanted, &mut taken)?;
    Ok(taken.bytes)
}

fn whole(source: &str, path: &str, limit: u64) -> Result<Vec<u8>, Failure> {
    open(source)?.whole(path, limit, &mut Tally::default())
}

#[test]
fn a_server_with_ranges_sends_what_is_asked_for() {
    let source = server(|path, range| {
        assert!(path.starts_with("/repo/objects/0707"), "{path}");
        part(range)
    });
    assert_eq!(ask(&source, 3..9).unwrap(), b"345678");
    assert_eq!(whole(&source, &repository::object(&ID), 16).unwrap(), FILE);
    assert_eq!(whole(&source, &repository::object(&ID), 15).unwrap_err().fault, Fault::Damaged);
}

#[test]
fn a_server_that_ignores_ranges_is_of_use_too() {
    let source = server(|_, _| reply("200 OK", "", FILE));
    assert_eq!(ask(&source, 3..9).unwrap(), b"345678");
    assert_eq!(ask(&source, 0..16).unwrap(), FILE);
    // What comes before the range is paid for too.
    let wanted = Wanted { what: What::Object(ID), length: 16, piece: 4, missing: vec![1..2, 3..4] };
    let mut taken = Taken::default();
    open(&source).unwrap().pieces(&wanted, &mut taken).unwrap();
    assert_eq!((taken.bytes.as_slice(), taken.paid >= 24), (b"4567cdef".as_slice(), true));
}

#[test]
fn an_empty_answer_a_wrong_range_and_a_cut_connection_are_tried_again() {
    let empty = server(|_, _| reply("200 OK", "", b""));
    let wrong = server(|_, _| reply("206 Partial Content", "Content-Range: bytes 9-15/16\r\n", b"9abcdef"));
    let nameless = server(|_, _| reply("206 Partial Content", "", b"345678"));
    let cut = server(|_, range| {
        let mut answer = part(range);
        answer.truncate(answer.len() - 2);
        answer
    });
    for source in [empty, wrong, nameless, cut] {
        assert_eq!(ask(&source, 3..9).unwrap_err().fault, Fault::Unreachable(None));
    }
    assert_eq!(ask("http://127.0.0.1:1/", 0..1).unwrap_err().fault, Fault::Unreachable(None));
}

#[test]
fn what_the_status_says_is_heard() {
    let missing = server(|_, _| reply("404 Not Found", "", b""));
    assert_eq!(ask(&missing, 0..1).unwrap_err().fault, Fault::Absent);
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        let busy = server(move |_, _| reply(status, "Retry-After: 120\r\n", b""));
        assert_eq!(ask(&busy, 0..1).unwrap_err().fault, Fault::Unreachable(Some(120)));
    }
}

#[test]
fn folders_are_read_and_their_absence_is_not_that_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("objects")).unwrap();
    std::fs::write(folder.path().join(repository::object(&ID)), FILE).unwrap();
    let source = folder.path().to_str().unwrap().to_owned();
    assert_eq!(ask(&source, 3..9).unwrap(), b"345678");
    assert_eq!(ask(&source, 3..17).unwrap_err().fault, Fault::Damaged);
    assert_eq!(whole(&source, &repository::object(&ID), 3).unwrap_err().fault, Fault::Damaged);
    assert_eq!(whole(&source, "objects/y", 3).unwrap_err().fault, Fault::Absent);
    assert_eq!(whole(&source, "objects", 3).unwrap_err().fault, Fault::Absent);
    drop(folder);
    // A stick that is not plugged in may come back.
    assert_eq!(ask(&source, 0..1).unwrap_err().fault, Fault::Unreachable(None));
    assert_eq!(open("ftp://x/").err().map(|failure| failure.fault), Some(Fault::Absent));
}

#[test]
fn a_captive_portal_is_a_source_that_cannot_be_reached() {
    let page = b"<!DOCTYPE html><html>Please accept our terms</html>";
    let portal = server(move |_, _| reply("200 OK", "Content-Type: text/html; charset=utf-8\r\n", page));
    let whole = open(&portal).unwrap().whole("announce", 600, &mut Tally::default()).unwrap_err();
    assert_eq!(whole.fault, Fault::Unreachable(None));
    assert!(whole.why.contains("captive portal"), "{}", whole.why);
    assert_eq!(
        open(&portal).unwrap().whole("announce", 20, &mut Tally::default()).unwrap_err().fault,
        Fault::Unreachable(None)
    );
    // Among pieces it shows when they are verified; what is here stays, and no other payload is tried for it.
    struct Refuses;
    impl Toll for Refuses {
        fn paid(&mut self, _: u64) -> Result<(), Failure> {
            Ok(())
        }
    }
    impl Sink for Refuses {
        fn piece(&mut self, _: u64, _: &[u8]) -> Result<Worth, Failure> {
            Ok(Worth::Wrong("not the object".into()))
        }
    }
    let wanted =
        Wanted { what: What::Object(ID), length: 40, piece: 4, missing: std::iter::once(0..10).collect() };
    let failed = open(&portal).unwrap().pieces(&wanted, &mut Refuses).unwrap_err();
    assert_eq!(failed.fault, Fault::Unreachable(None), "{}", failed.why);
    let other = server(move |_, _| reply("200 OK", "", page));
    assert_eq!(open(&other).unwrap().pieces(&wanted, &mut Refuses).unwrap_err().fault, Fault::Damaged);
}

#[test]
fn an_announcement_that_did_not_change_is_not_sent_again() {
    let tag = "ETag: \"same\"\r\n";
    let source = server(move |_, condition| match condition {
        Some("same") => reply("304 Not Modified", tag, b""),
        Some(_) | None => reply("200 OK", tag, FILE),
    });
    let mut carrier = open(&source).unwrap();
    let (mut first, mut second) = (Tally::default(), Tally::default());
    let found = carrier.changed("announce", 16, None, &mut first).unwrap();
    assert_eq!((found.bytes.as_slice(), first.0), (FILE, 16));
    assert_eq!(carrier.changed("announce", 16, Some(&found), &mut second).unwrap(), found);
    assert_eq!(second.0, 0);
    let other = Tagged { tag: Some("\"other\"".into()), bytes: Vec::new() };
    assert_eq!(carrier.changed("announce", 16, Some(&other), &mut second).unwrap(), found);
}
