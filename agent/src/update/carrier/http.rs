//! A release on a web server: any that serves files, better one that knows ranges (RFC 9110, 14).
//!
//! Names may change behind an address, connections end anywhere: that shows when blocks are verified, so that neither
//! dates nor entity tags are needed to put an object together. Entity tags only save sending an announcement again. A
//! page in place of a file comes from a captive portal or a proxy: the source was not reached, and what is here stays.

use super::{Carrier, Failure, Sink, Stream, Tagged, Toll, Wanted, tls};
use crate::update::step::Fault;
use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, RANGE, RETRY_AFTER,
};
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

/// How long one read or connection may take: slow satellite links answer within seconds.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes read at once: less than a usual block, so that what a power cut costs beyond a flush is less than one.
const CHUNK: usize = 16 << 10;

/// What is asked for.
#[derive(Clone, Copy)]
enum Ask<'a> {
    Whole,
    /// The whole, unless it still has this entity tag.
    Unless(&'a str),
    Range(&'a Range<u64>),
}

/// A web server's folder.
pub struct Server {
    client: Client,
    base: String,
}

impl Server {
    /// Prepares requests; nothing is sent yet.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn open(source: &str) -> Result<Self, Failure> {
        // Fails only if a provider is installed already, which is what is wanted.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = Client::builder()
            .user_agent("farhold-agent")
            .timeout(PATIENCE)
            .connect_timeout(PATIENCE / 3)
            .pool_max_idle_per_host(1);
        let client = if source.starts_with("https://") {
            let tls = tls::config().map_err(|error| Failure::local(&error))?;
            client.tls_backend_preconfigured(tls)
        } else {
            client
        };
        let client = client
            .build()
            .map_err(|error| Failure::new(Fault::Local, format!("set up HTTP: {}", root_cause(&error))))?;
        Ok(Self { client, base: source.trim_end_matches('/').to_owned() })
    }

    fn get(&self, path: &str, ask: Ask<'_>) -> Result<Response, Failure> {
        let url = format!("{}/{path}", self.base);
        // A compressed answer would be another file.
        let request = self.client.get(&url).header(ACCEPT_ENCODING, "identity");
        let request = match ask {
            Ask::Whole => request,
            Ask::Unless(tag) => request.header(IF_NONE_MATCH, tag),
            Ask::Range(range) => {
                request.header(RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
            }
        };
        let answer = request.send().map_err(|error| {
            Failure::new(Fault::Unreachable(None), format!("cannot reach {url} ({})", root_cause(&error)))
        })?;
        let status = answer.status();
        let same = matches!(ask, Ask::Unless(_)) && status == StatusCode::NOT_MODIFIED;
        if status.is_success() || same {
            return Ok(answer);
        }
        let why = format!("{url} answered with HTTP status {}", status.as_u16());
        let fault = match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Fault::Absent,
            StatusCode::RANGE_NOT_SATISFIABLE => Fault::Damaged,
            _ => Fault::Unreachable(retry_after(&answer)),
        };
        Err(Failure::new(fault, why))
    }
}

/// Seconds; a date would need a clock.
fn retry_after(answer: &Response) -> Option<u32> {
    answer.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

/// The innermost cause: what a person can act on is there (no route, no such name, certificate).
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// Where the body of an answer begins in the file: 0 unless the server says that it is a part.
fn begins_at(answer: &Response) -> Option<u64> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let text = answer.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    text.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Whether an answer says that it is a page for people, which no file of a repository is.
fn is_page(answer: &Response) -> bool {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.trim_start().to_ascii_lowercase().starts_with("text/html")
}

impl Server {
    fn page(&self, path: &str) -> Failure {
        let why = format!(
            "{}/{path} is answered with a page: a captive portal or a proxy answers in the source's place",
            self.base
        );
        Failure::new(Fault::Unreachable(None), why)
    }

    fn body(
        &self,
        path: &str,
        limit: u64,
        answer: Response,
        toll: &mut dyn Toll,
    ) -> Result<Vec<u8>, Failure> {
        let page = is_page(&answer);
        let mut bytes = Vec::new();
        answer.take(limit + 1).read_to_end(&mut bytes).map_err(|error| {
            let why = format!("read {}/{path}: {}", self.base, root_cause(&error));
            Failure::new(Fault::Unreachable(None), why)
        })?;
        toll.paid(bytes.len() as u64)?;
        if bytes.len() as u64 > limit {
            let why = format!("{}/{path} has more than {limit} bytes", self.base);
            return Err(if page { self.page(path) } else { Failure::new(Fault::Damaged, why) });
        }
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        if page && first == Some(&b'<') { Err(self.page(path)) } else { Ok(bytes) }
    }

    fn run(&self, path: &str, range: Range<u64>, stream: &mut Stream<'_>) -> Result<(), Failure> {
        let mut answer = self.get(path, Ask::Range(&range))?;
        let page = is_page(&answer);
        let at = begins_at(&answer).filter(|at| *at <= range.start);
        let Some(at) = at else {
            let why = format!("{}/{path}: the server answered with another range than asked for", self.base);
            return Err(Failure::new(Fault::Unreachable(None), why));
        };
        // A server without ranges sends all from the start: what comes before is passed over.
        let mut skip = range.start - at;
        let mut left = range.end - range.start;
        let mut chunk = vec![0; CHUNK];
        while left > 0 {
            let n = answer.read(&mut chunk).map_err(|error| {
                let why = format!("read {}/{path}: {}", self.base, root_cause(&error));
                Failure::new(Fault::Unreachable(None), why)
            })?;
            if n == 0 {
                let why = format!("{}/{path}: the answer ended {left} bytes too early", self.base);
                return Err(Failure::new(Fault::Unreachable(None), why));
            }
            let passed = usize::try_from(skip).unwrap_or(n).min(n);
            skip -= passed as u64;
            stream.paid(passed as u64)?;
            let useful = (n - passed).min(usize::try_from(left).unwrap_or(usize::MAX));
            stream.take(&chunk[passed..passed + useful]).map_err(|failure| match failure.fault {
                Fault::Damaged if page => self.page(path),
                Fault::Damaged | Fault::Unreachable(_) | Fault::Absent | Fault::Incomplete | Fault::Local => {
                    failure
                }
            })?;
            left -= useful as u64;
        }
        Ok(())
    }
}

impl Carrier for Server {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let answer = self.get(path, Ask::Whole)?;
        self.body(path, limit, answer, toll)
    }

    fn changed(
        &mut self,
        path: &str,
        limit: u64,
        known: Option<&Tagged>,
        toll: &mut dyn Toll,
    ) -> Result<Tagged, Failure> {
        let tag = known.and_then(|known| known.tag.as_deref());
        let answer = self.get(path, tag.map_or(Ask::Whole, Ask::Unless))?;
        if let (Some(known), StatusCode::NOT_MODIFIED) = (known, answer.status()) {
            return Ok(known.clone());
        }
        let tag = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        Ok(Tagged { tag, bytes: self.body(path, limit, answer, toll)? })
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let path = wanted.what.path();
        wanted.missing.iter().try_for_each(|run| {
            self.run(&path, wanted.bytes(run), &mut Stream::new(wanted, run.start, &mut *sink))
        })
    }
}
