//! Answers on the Unix socket and on the virtio-serial port: one word and a newline in, one line of JSON out.
//!
//! Knows nothing of what the words mean: a request goes to the loop with a place for its answer.

use anyhow::{Context, Result};
use formats::status::{SOCKET, VIRTIO_PORT};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};

/// Longest request, bytes.
const REQUEST_MAX: u64 = 1024;
/// How long a client may take over a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether somebody has connected to the virtio-serial port.
const PORT_IDLE: Duration = Duration::from_millis(500);
/// Requests that wait at once.
pub const QUEUE: usize = 16;

/// A request for the loop.
pub struct Request {
    /// The line: a word, and what belongs to it.
    pub word: String,
    /// Whether the superuser of this machine asks.
    pub from_root: bool,
    /// Where the answer goes: one line of JSON, without the newline.
    pub answer: oneshot::Sender<String>,
}

/// Opens the socket; an old one is replaced.
///
/// # Errors
/// If it cannot be made.
pub fn listen() -> Result<UnixListener> {
    let path = Path::new(SOCKET);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("remove old {SOCKET}"))?;
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {SOCKET}"))?;
    // Any local user may ask; words that change anything are taken from the superuser only.
    fs::set_permissions(path, Permissions::from_mode(0o666))
        .with_context(|| format!("open {SOCKET} to all"))?;
    Ok(listener)
}

/// Serves one connection until its end.
///
/// # Errors
/// The connection's.
pub async fn connection(stream: UnixStream, requests: mpsc::Sender<Request>) -> Result<()> {
    let from_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        let mut bounded = (&mut read).take(REQUEST_MAX);
        let got = tokio::time::timeout(PATIENCE, bounded.read_until(b'\n', &mut line)).await;
        if got.context("client too slow")?? == 0 {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        requests
            .send(Request { word: word(&line), from_root, answer })
            .await
            .context("the loop has ended")?;
        let text = answered.await.context("no answer")?;
        tokio::time::timeout(PATIENCE, write.write_all(format!("{text}\n").as_bytes()))
            .await
            .context("client too slow")??;
    }
}

fn word(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim().to_owned()
}

/// Serves the virtio-serial port, if the machine has it, on a thread of its own: the port has no way to wait for a
/// connection, so it is looked at from time to time. Never returns.
pub fn port(requests: &mpsc::Sender<Request>) {
    let Some(path) = find_port() else { return };
    tracing::info!(port = %path.display(), "serving a virtio-serial port");
    loop {
        if let Err(error) = port_session(&path, requests) {
            tracing::debug!(error = format!("{error:#}"), "virtio-serial port");
        }
        std::thread::sleep(PORT_IDLE);
    }
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == VIRTIO_PORT)
    };
    let found = ports.filter_map(std::result::Result::ok).find(named)?;
    Some(Path::new("/dev").join(found.file_name()))
}

fn port_session(path: &Path, requests: &mpsc::Sender<Request>) -> Result<()> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    let writer = device.try_clone().context("share the port")?;
    answer_lines(BufReader::new(device), writer, |word| {
        let (answer, answered) = oneshot::channel();
        requests.blocking_send(Request { word, from_root: false, answer }).context("the loop has ended")?;
        answered.blocking_recv().context("no answer")
    })
}

fn answer_lines(
    mut reader: impl BufRead,
    mut writer: impl Write,
    mut ask: impl FnMut(String) -> Result<String>,
) -> Result<()> {
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(REQUEST_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let word = word(&line);
        if !word.is_empty() {
            writer.write_all(format!("{}\n", ask(word)?).as_bytes())?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_gets_a_line_and_endless_ones_are_cut() {
        let mut out = Vec::new();
        let input = [b"status\r\n\nwhy\n".as_slice(), &[b'x'; 4000], b"\n"].concat();
        answer_lines(input.as_slice(), &mut out, |word| Ok(format!("<{}>", word.len()))).unwrap();
        let expected = "<6>\n<3>\n<1024>\n<1024>\n<1024>\n<928>\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn a_loop_that_ended_ends_the_session() {
        let mut out = Vec::new();
        let gone = |_| anyhow::bail!("the loop has ended");
        assert!(answer_lines(b"status\n".as_slice(), &mut out, gone).is_err());
        assert!(out.is_empty());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_socket_client_is_answered() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (send, mut receive) = mpsc::channel(QUEUE);
        let client = tokio::spawn(async move {
            let (read, mut write) = ours.into_split();
            write.write_all(b"status\n").await.unwrap();
            let mut line = String::new();
            tokio::io::BufReader::new(read).read_line(&mut line).await.unwrap();
            line
        });
        let server = tokio::spawn(connection(theirs, send));
        let request = receive.recv().await.unwrap();
        request.answer.send(format!("{{\"word\":\"{}\"}}", request.word)).unwrap();
        assert_eq!(client.await.unwrap(), "{\"word\":\"status\"}\n");
        server.await.unwrap().unwrap();
    }
}
