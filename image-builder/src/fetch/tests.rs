//! A mirror on this machine that serves, drifts, cuts short and vanishes; messages are compared whole.

use super::*;
use sha2::Digest as _;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::Arc;

/// What the mirror does with one path.
#[derive(Clone)]
enum Answer {
    Whole(Vec<u8>),
    /// Promises the whole length and hangs up after so many bytes; honours ranges.
    CutAfter(Vec<u8>, usize),
    Status(u16),
}

/// Serves until the test process ends; counts nothing, remembers request ranges.
fn mirror(answers: &[(&str, Answer)]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    let answers: BTreeMap<String, Answer> =
        answers.iter().map(|(path, answer)| (format!("/{path}"), answer.clone())).collect();
    let log = Arc::new(Mutex::new(Vec::new()));
    let seen = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map(|line| line.unwrap());
            let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
            let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            let range = headers
                .iter()
                .find_map(|h| h.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
            seen.lock().unwrap().push(format!("{path} {}", range.clone().unwrap_or_default()));
            let from: usize = range.and_then(|r| r.trim_end_matches('-').parse().ok()).unwrap_or(0);
            let (status, length, body) = match answers.get(&path).unwrap_or(&Answer::Status(404)) {
                Answer::Whole(bytes) => (200, bytes.len(), &bytes[..]),
                Answer::CutAfter(bytes, n) => {
                    let status = if from > 0 { 206 } else { 200 };
                    (status, bytes.len() - from, &bytes[from..bytes.len().min(from + n)])
                }
                Answer::Status(status) => (*status, 0, &[][..]),
            };
            let head =
                format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        }
    });
    (base, log)
}

fn want(url: String, bytes: &[u8]) -> Want {
    Want {
        what: "package x 1-1 (amd64)".into(),
        url: Some(url),
        names: vec!["x_1-1_amd64.deb".into()],
        digest: Digest(sha2::Sha256::digest(bytes).into()),
        size: Some(bytes.len() as u64),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn get(store: &Store, want: &Want, folders: &[PathBuf]) -> Result<()> {
    fetch(store, std::slice::from_ref(want), folders, &Progress::quiet())
}

const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

#[test]
fn fetches_checks_and_then_needs_no_network() {
    let (_dir, store) = store();
    let (base, log) = mirror(&[("x", Answer::Whole(b"abc".to_vec()))]);
    let want = want(format!("{base}/x"), b"abc");
    get(&store, &want, &[]).unwrap();
    assert_eq!(fs::read(store.get(&want.digest).unwrap()).unwrap(), b"abc");
    get(&store, &want, &[]).unwrap();
    assert_eq!(log.lock().unwrap().len(), 1, "a warm cache asks nobody");
    assert_eq!(fs::read_dir(store.root().join("partial")).unwrap().count(), 0);
}

#[test]
fn a_drifted_mirror_is_one_error_that_says_which() {
    let (_dir, store) = store();
    let (base, _) = mirror(&[
        ("other", Answer::Whole(b"abd".to_vec())),
        ("longer", Answer::Whole(b"abcd".to_vec())),
        ("broken", Answer::Status(500)),
    ]);
    let error =
        |path: &str| format!("{:#}", get(&store, &want(format!("{base}/{path}"), b"abc"), &[]).unwrap_err());
    assert_eq!(
        error("gone"),
        format!(
            "package x 1-1 (amd64): {base}/gone is not there; the lock wants SHA-256 {ABC}, 3 bytes. Mirrors drop \
             old versions: `farhold lock` makes a new lock, a snapshot mirror in the lock keeps it buildable"
        )
    );
    assert_eq!(
        error("other"),
        format!(
            "package x 1-1 (amd64): {base}/other has SHA-256 \
             a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9; the lock wants SHA-256 {ABC}, 3 \
             bytes. The file was replaced since: check why, then `farhold lock` makes a new lock"
        )
    );
    assert_eq!(
        error("longer"),
        format!(
            "package x 1-1 (amd64): {base}/longer is longer; the lock wants SHA-256 {ABC}, 3 bytes. `farhold lock` \
             makes a new lock"
        )
    );
    assert!(error("broken").contains("answered with HTTP status 500"));
    assert!(store.get(&Digest::parse(ABC).unwrap()).is_none());
}

#[test]
fn a_cut_download_goes_on_where_it_stopped_and_gives_up_with_a_count() {
    let (_dir, store) = store();
    let bytes = vec![7u8; 1000];
    let (base, log) = mirror(&[
        ("thirds", Answer::CutAfter(bytes.clone(), 400)),
        ("drops", Answer::CutAfter(b"abc".to_vec(), 0)),
    ]);
    get(&store, &want(format!("{base}/thirds"), &bytes), &[]).unwrap();
    assert_eq!(*log.lock().unwrap(), ["/thirds ", "/thirds 400-", "/thirds 800-"]);
    let error = format!("{:#}", get(&store, &want(format!("{base}/drops"), b"abc"), &[]).unwrap_err());
    assert!(
        error.starts_with(&format!("package x 1-1 (amd64): {base}/drops broke off; the lock wants")),
        "{error}"
    );
}

#[test]
fn without_network_and_cache_one_error_says_what_helps() {
    let (_dir, store) = store();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = format!("{:#}", get(&store, &want(format!("http://{closed}/x"), b"abc"), &[]).unwrap_err());
    assert_eq!(
        error,
        format!(
            "package x 1-1 (amd64): cannot reach http://{closed}/x (Connection refused (os error 111)), and it is \
             not in the cache. Connect this machine, or give a folder that has the file with --store DIR"
        )
    );
}

#[test]
fn folders_come_before_the_network_and_are_checked() {
    let (dir, store) = store();
    let folder = dir.path().join("debs");
    fs::create_dir(&folder).unwrap();
    let name = folder.join("x_1-1_amd64.deb");
    let wanted = Want { url: None, ..want(String::new(), b"abc") };
    fs::write(&name, b"abd").unwrap();
    let error = get(&store, &wanted, std::slice::from_ref(&folder)).unwrap_err().to_string();
    assert!(error.contains("neither in the cache nor in a folder given with --store"), "{error}");
    fs::write(&name, b"abc").unwrap();
    get(&store, &wanted, &[folder]).unwrap();
    assert!(store.get(&wanted.digest).is_some());
}

#[test]
fn two_builds_fetch_one_file_once_each_gets_it() {
    let (_dir, store) = store();
    let (base, log) = mirror(&[("x", Answer::Whole(vec![1; 300_000]))]);
    let want = want(format!("{base}/x"), &[1; 300_000]);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(|| get(&store, &want, &[]))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    assert_eq!(log.lock().unwrap().len(), 1);
}
