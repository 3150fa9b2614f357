//! Sockets and files of the web server. One thread, a bounded number of connections, bodies read from files in pieces, so
//! that memory does not grow with what is served.

use super::answer::{self, Answer, Asked, Found};
use super::pace::Pace;
use crate::release::folder::read_limited;
use anyhow::{Context, Result};
use formats::hex;
use formats::roles::MAX_CHAIN_BYTES;
use http_body_util::channel::{Channel, Sender};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest as _, Sha256};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Most connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 256;
/// Time that a client has to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes that are read and sent at once when no rate is set.
const CHUNK: usize = 64 * 1024;

type Body = Channel<Bytes, io::Error>;

/// What is served, and how.
pub struct Options {
    /// Repository or release folder.
    pub folder: PathBuf,
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
    /// Bits per second for all connections together; none: as fast as it goes.
    pub bits_per_s: Option<u64>,
    /// Write a line for each answer to standard error.
    pub log: bool,
}

struct Server {
    folder: PathBuf,
    pace: Option<RefCell<Pace>>,
    begun: Instant,
    log: bool,
    sent: Cell<u64>,
}

/// Serves until the process is interrupted; `ready` learns the address. Gives the bytes of all bodies.
///
/// # Errors
/// If the address cannot be listened on.
pub fn run(options: Options, ready: impl FnOnce(SocketAddr)) -> Result<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the server's loop")?;
    let address = options.address;
    let server = Rc::new(Server {
        folder: options.folder,
        pace: options.bits_per_s.map(|rate| RefCell::new(Pace::new(rate))),
        begun: Instant::now(),
        log: options.log,
        sent: Cell::new(0),
    });
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listen on {address}: choose another --http address"))?;
        ready(listener.local_addr().context("ask for the address")?);
        tokio::select! {
            error = accept(listener, &server) => error,
            interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for an interrupt"),
        }
    })?;
    Ok(server.sent.get())
}

async fn accept(listener: TcpListener, server: &Rc<Server>) -> Result<()> {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await.context("wait for a free connection")?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = Rc::clone(server);
                tokio::task::spawn_local(async move {
                    server.connection(stream).await;
                    drop(permit);
                });
            }
            // Out of descriptors, or a client that went away: those that are served go on.
            Err(error) => {
                eprintln!("farhold: accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Server {
    async fn connection(self: Rc<Self>, stream: TcpStream) {
        let serve = service_fn(|request: Request<Incoming>| {
            let server = Rc::clone(&self);
            async move { Ok::<_, Infallible>(server.respond(&request).await) }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(stream), serve)
            .await;
        if let Err(error) = served
            && self.log
        {
            eprintln!("farhold: a connection ended: {error}");
        }
    }

    async fn respond(self: Rc<Self>, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let opened = match answer::name(path) {
            Some(name) => open(&self.folder, name).await.map(|opened| opened.map(|opened| (name, opened))),
            None => Ok(None),
        };
        let (sender, body) = Channel::new(2);
        let mut response = Response::new(body);
        let header = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
        let status = match opened {
            Ok(Some((name, (file, found)))) => {
                let asked = Asked {
                    method: request.method().as_str(),
                    range: header(RANGE),
                    if_range: header(IF_RANGE),
                    if_none_match: header(IF_NONE_MATCH),
                };
                let answer = answer::answer(&asked, &found);
                fill(&mut response, name, &answer, &found);
                let length = if request.method() == Method::GET { answer.length } else { 0 };
                let (status, server) = (answer.status, Rc::clone(&self));
                let line = self
                    .log
                    .then(|| format!("{} {path} {} {status}", request.method(), header(RANGE).unwrap_or("")));
                tokio::task::spawn_local(async move {
                    let sent = if length > 0 { server.send(file, answer, sender).await } else { 0 };
                    if let Some(line) = line {
                        eprintln!("{line} {sent}");
                    }
                });
                status
            }
            Ok(None) => {
                response.headers_mut().insert(CONTENT_LENGTH, 0.into());
                if self.log {
                    eprintln!("{} {path}  404 0", request.method());
                }
                404
            }
            Err(error) => {
                eprintln!("farhold: serve {path}: {error:#}");
                sender.abort(io::Error::other("the server cannot read this file"));
                500
            }
        };
        *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or_default();
        response
    }

    /// Sends the body, and gives how many bytes of it the client took; what it does not take is not read.
    async fn send(
        &self,
        mut file: tokio::fs::File,
        answer: Answer,
        mut sender: Sender<Bytes, io::Error>,
    ) -> u64 {
        if let Err(error) = file.seek(SeekFrom::Start(answer.start)).await {
            sender.abort(error);
            return 0;
        }
        let chunk = self.pace.as_ref().map_or(CHUNK, |pace| pace.borrow().chunk());
        let mut left = answer.length;
        while left > 0 {
            let mut part = vec![0; chunk.min(usize::try_from(left).unwrap_or(chunk))];
            if let Err(error) = file.read_exact(&mut part).await {
                sender.abort(error);
                break;
            }
            let length = part.len() as u64;
            let wait =
                self.pace.as_ref().map(|pace| pace.borrow_mut().take(self.begun.elapsed(), part.len()));
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            if sender.send_data(Bytes::from(part)).await.is_err() {
                break;
            }
            left -= length;
            self.sent.set(self.sent.get() + length);
        }
        answer.length - left
    }
}

/// A file of the repository with its length and entity tag.
async fn open(folder: &Path, name: &str) -> Result<Option<(tokio::fs::File, Found)>> {
    let path = folder.join(name);
    let file = match tokio::fs::File::open(&path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let facts = file.metadata().await.with_context(|| format!("read {}", path.display()))?;
    if !facts.is_file() {
        return Ok(None);
    }
    let tag = if answer::immutable(name) {
        name.rsplit('/').next().unwrap_or(name).to_owned()
    } else {
        // Everything else is small; its tag must change with its contents, not with its time.
        hex::encode(&Sha256::digest(read_limited(&path, MAX_CHAIN_BYTES as u64)?)[..16])
    };
    Ok(Some((file, Found { bytes: facts.len(), tag: format!("\"{tag}\"") })))
}

fn fill(response: &mut Response<Body>, name: &str, answer: &Answer, found: &Found) {
    let caching = if answer::immutable(name) { "public, max-age=31536000, immutable" } else { "no-cache" };
    let mut headers: Vec<(HeaderName, String)> = vec![
        (ETAG, found.tag.clone()),
        (CACHE_CONTROL, caching.to_owned()),
        (ACCEPT_RANGES, "bytes".to_owned()),
    ];
    if answer.status != 304 {
        headers.push((CONTENT_TYPE, "application/octet-stream".to_owned()));
        headers.push((CONTENT_LENGTH, answer.length.to_string()));
    }
    if answer.status == 405 {
        headers.push((ALLOW, "GET, HEAD".to_owned()));
    }
    headers.extend(answer.content_range.clone().map(|range| (CONTENT_RANGE, range)));
    for (name, value) in headers {
        // All of these are digits, hexadecimal digits and the words above.
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::sync::mpsc;

    /// A folder with an announcement and an object of 200,000 bytes, served on a free port until the tests end.
    fn serve(bits_per_s: Option<u64>) -> (tempfile::TempDir, SocketAddr, String) {
        let folder = tempfile::tempdir().unwrap();
        let object = format!("objects/{}", "ab".repeat(32));
        std::fs::create_dir(folder.path().join("objects")).unwrap();
        let bytes: Vec<u8> = (0..200_000u32).map(|n| (n ^ (n >> 8)) as u8).collect();
        std::fs::write(folder.path().join(&object), bytes).unwrap();
        std::fs::write(folder.path().join("announce"), [7; 198]).unwrap();
        std::fs::write(folder.path().join("secret.pem"), b"secret").unwrap();
        let (tell, told) = mpsc::channel();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options { folder: folder.path().to_owned(), address, bits_per_s, log: false };
        std::thread::spawn(move || run(options, |address| tell.send(address).unwrap()).unwrap());
        (folder, told.recv().unwrap(), object)
    }

    /// One request on an open connection: status line with headers, and the body.
    fn ask(stream: &mut BufReader<std::net::TcpStream>, head: &str) -> (String, Vec<u8>) {
        stream.get_mut().write_all(format!("{head}\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            assert_ne!(stream.read_line(&mut answer).unwrap(), 0, "{answer}");
        }
        let answer = answer.to_ascii_lowercase();
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(0, |digits| digits.parse().unwrap());
        let mut body = vec![0; if head.starts_with("HEAD") { 0 } else { length }];
        stream.read_exact(&mut body).unwrap();
        (answer, body)
    }

    fn connect(address: SocketAddr) -> BufReader<std::net::TcpStream> {
        BufReader::new(std::net::TcpStream::connect(address).unwrap())
    }

    #[test]
    fn one_connection_answers_every_kind_of_request() {
        let (folder, address, object) = serve(None);
        let stream = &mut connect(address);
        let (first, body) = ask(stream, "GET /announce HTTP/1.1");
        assert!(first.starts_with("http/1.1 200 ok") && body == [7; 198], "{first}");
        let tag = first.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
        let (again, body) = ask(stream, &format!("GET /announce HTTP/1.1\r\nIf-None-Match: {tag}"));
        assert!(again.starts_with("http/1.1 304") && body.is_empty(), "{again}");
        assert!(!again.contains("transfer-encoding"), "{again}");
        // A new announcement has another tag, however quickly it follows.
        std::fs::write(folder.path().join("announce"), [8; 198]).unwrap();
        let (changed, body) = ask(stream, &format!("GET /announce HTTP/1.1\r\nIf-None-Match: {tag}"));
        assert!(changed.starts_with("http/1.1 200") && body == [8; 198], "{changed}");

        let whole = std::fs::read(folder.path().join(&object)).unwrap();
        let (head, body) = ask(stream, &format!("GET /{object} HTTP/1.1"));
        assert!(head.contains("immutable") && body == whole, "{head}");
        let (head, body) = ask(stream, &format!("GET /{object} HTTP/1.1\r\nRange: bytes=65536-131071"));
        assert!(head.starts_with("http/1.1 206") && body == whole[65536..131072], "{head}");
        assert!(head.contains("content-range: bytes 65536-131071/200000"), "{head}");
        let (head, _) = ask(stream, &format!("GET /{object} HTTP/1.1\r\nRange: bytes=200000-"));
        assert!(head.starts_with("http/1.1 416") && head.contains("content-range: bytes */200000"), "{head}");
        let (head, body) = ask(stream, &format!("HEAD /{object} HTTP/1.1"));
        assert!(head.contains("content-length: 200000") && body.is_empty(), "{head}");
        for path in ["/secret.pem", "/../secret.pem", "/objects/", "/", "/objects/..%2fsecret.pem"] {
            let (head, body) = ask(stream, &format!("GET {path} HTTP/1.1"));
            assert!(head.starts_with("http/1.1 404") && body.is_empty(), "{path}: {head}");
        }
        let (head, _) = ask(stream, "POST /announce HTTP/1.1\r\nContent-Length: 0");
        assert!(head.starts_with("http/1.1 405") && head.contains("allow: get, head"), "{head}");
    }

    #[test]
    fn a_routine_check_takes_few_bytes_on_the_wire() {
        let (_folder, address, _) = serve(None);
        let (head, body) = ask(&mut connect(address), "GET /announce HTTP/1.1");
        assert_eq!(body.len(), 198);
        assert!(head.len() < 270, "{head}");
    }

    #[test]
    fn a_rate_holds_over_all_connections() {
        let (_folder, address, object) = serve(Some(1_600_000));
        let begun = Instant::now();
        let both = [0, 1].map(|_| {
            let head = format!("GET /{object} HTTP/1.1\r\nRange: bytes=0-99999");
            std::thread::spawn(move || ask(&mut connect(address), &head).1.len())
        });
        let bytes: usize = both.into_iter().map(|thread| thread.join().unwrap()).sum();
        // 200,000 bytes at 200,000 a second, less the burst.
        assert_eq!(bytes, 200_000);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    }

    #[test]
    fn clients_that_send_nothing_or_nonsense_do_not_disturb_others() {
        let (_folder, address, _) = serve(None);
        let silent: Vec<_> = (0..50).map(|_| connect(address)).collect();
        let mut rude = connect(address);
        rude.get_mut().write_all(b"\x16\x03\x01\x02\x00\r\n\r\n").unwrap();
        let (head, _) = ask(&mut connect(address), "GET /announce HTTP/1.1");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        drop(silent);
    }
}
