//! Bytes from one side to the other, as long as a verdict lets them pass, asked before each write.
//!
//! It does not know why. A process that was stopped and goes on asks again before it writes what it held.

use super::filter::Filter;
use super::gate::{Pass, Verdict};
use super::stream::{CHUNK, Reader, Writer};
use anyhow::{Result, bail};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// Where bytes come from.
pub enum Source<'a> {
    /// A local socket.
    Plain(Box<dyn AsyncRead + Unpin>),
    /// The other node.
    Sealed(Reader),
    /// The other node, and how many bytes came from it.
    Counted(Reader, &'a Cell<u64>),
}

/// Where bytes go.
pub enum Sink {
    /// A local socket.
    Plain(Box<dyn AsyncWrite + Unpin>),
    /// The other node.
    Sealed(Writer),
}

/// Writes all of it while the verdict is `Go`; no byte is written at any other verdict.
///
/// # Errors
/// If the writer breaks or the verdict is `Stop`.
pub async fn write_guarded<W: AsyncWrite + Unpin + ?Sized, F: Future<Output = ()>>(
    sink: &mut W,
    mut bytes: &[u8],
    verdict: impl Fn() -> Verdict,
    changed: impl Fn() -> F,
) -> Result<()> {
    while !bytes.is_empty() {
        // Created before the question, so that no change in between is missed.
        let change = changed();
        match verdict() {
            Verdict::Stop => bail!("the stream was cut"),
            Verdict::Wait => {
                change.await;
                continue;
            }
            Verdict::Go => {}
        }
        let written = poll_fn(|context| match verdict() {
            Verdict::Go => Pin::new(&mut *sink).poll_write(context, bytes).map(|result| result.map(Some)),
            Verdict::Wait | Verdict::Stop => Poll::Ready(Ok(None)),
        });
        match written.await? {
            Some(0) => bail!("the other side takes no more"),
            Some(length) => bytes = &bytes[length..],
            None => {}
        }
    }
    Ok(())
}

/// Moves bytes until one side ends, the verdict is `Stop`, or the filter objects.
///
/// # Errors
/// Why it ended, if not by the end of the source.
pub async fn pump(
    mut source: Source<'_>,
    mut sink: Sink,
    pass: &Pass,
    verdict: &dyn Fn() -> Verdict,
    mut filter: Option<Filter>,
) -> Result<()> {
    let ask = || if pass.holds() { verdict() } else { Verdict::Stop };
    let mut buffer = vec![0; CHUNK];
    loop {
        let chunk: &[u8] = match &mut source {
            Source::Plain(plain) => {
                let length = plain.read(&mut buffer).await?;
                if length == 0 {
                    return Ok(());
                }
                &buffer[..length]
            }
            Source::Sealed(reader) => match reader.read().await? {
                Some(chunk) => chunk,
                None => return Ok(()),
            },
            Source::Counted(reader, count) => match reader.read().await? {
                Some(chunk) => {
                    count.set(count.get() + chunk.len() as u64);
                    chunk
                }
                None => return Ok(()),
            },
        };
        if let Some(filter) = &mut filter {
            filter.check(chunk)?;
        }
        match &mut sink {
            Sink::Plain(plain) => write_guarded(plain.as_mut(), chunk, ask, || pass.changed()).await?,
            Sink::Sealed(writer) => writer.write(chunk, ask, || pass.changed()).await?,
        }
    }
}

/// Both directions until either ends; a cut ends both.
///
/// # Errors
/// Why it ended.
pub async fn both(
    forth: impl Future<Output = Result<()>>,
    back: impl Future<Output = Result<()>>,
    pass: &Pass,
) -> Result<()> {
    tokio::select! {
        done = forth => done,
        done = back => done,
        () = pass.cut() => bail!("the stream was cut"),
    }
}
