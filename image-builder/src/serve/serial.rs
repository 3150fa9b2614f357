//! A repository at the end of a serial line. It keeps no state but what was asked for last: devices ask again for what did
//! not come, so that the line, this program and the device may fail at any time.

use anyhow::{Context, Result, ensure};
use formats::link::answer::{Job, Queue};
use formats::link::line::{Deframer, frame};
use formats::link::message::Message;
use formats::link::name::Name;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_serial::{SerialPortBuilderExt, SerialStream};

/// Bits per second where the line does not say.
const BAUD: u32 = 115_200;
/// Before a port that went away is opened again.
const AGAIN: Duration = Duration::from_secs(2);

/// A line: a device, and how fast it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Path of the device.
    pub device: String,
    /// Bits per second.
    pub baud: u32,
}

impl Line {
    /// Reads `DEVICE[?baud=N]`.
    ///
    /// # Errors
    /// What it looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.strip_prefix("serial:").unwrap_or(text);
        let (device, words) = text.split_once('?').unwrap_or((text, ""));
        let baud = match words.strip_prefix("baud=").unwrap_or(words) {
            "" => Some(BAUD),
            digits => digits.parse().ok().filter(|baud| *baud > 0),
        };
        let baud =
            baud.ok_or_else(|| format!("`{words}` is no rate; write it like /dev/ttyUSB0?baud=9600"))?;
        Ok(Self { device: device.to_owned(), baud })
    }
}

/// A file that is being sent.
struct Open {
    name: Name,
    file: File,
    length: u64,
}

/// Serves on a line until the process is interrupted: a port that goes away is opened again. `ready` is called once it is
/// open.
///
/// # Errors
/// If the port cannot be opened at first.
pub fn run(folder: &Path, line: &Line, log: bool, ready: impl FnOnce()) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the server's loop")?;
    runtime.block_on(async {
        let port = open(line)?;
        ready();
        tokio::select! {
            () = for_ever(folder, line, log, port) => Ok(()),
            interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for an interrupt"),
        }
    })
}

async fn for_ever(folder: &Path, line: &Line, log: bool, mut port: SerialStream) {
    loop {
        let ended = serve(&mut port, folder, log).await;
        drop(port);
        eprintln!(
            "farhold: {}: {:#}",
            line.device,
            ended.err().unwrap_or_else(|| anyhow::anyhow!("it was closed"))
        );
        port = loop {
            tokio::time::sleep(AGAIN).await;
            if let Ok(port) = open(line) {
                break port;
            }
        };
    }
}

fn open(line: &Line) -> Result<SerialStream> {
    let Line { device, baud } = line;
    let port = tokio_serial::new(device, *baud).open_native_async();
    port.with_context(|| format!("open {device} at {baud} bit/s: is it there, and may you use it?"))
}

async fn serve(port: &mut SerialStream, folder: &Path, log: bool) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(port);
    let (mut deframer, mut queue) = (Deframer::default(), Queue::default());
    let mut opened: Option<Open> = None;
    let mut out: Vec<u8> = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        while out.is_empty() {
            let Some(job) = queue.pop() else { break };
            if let Some(message) = answer(folder, &job, &mut opened, &mut queue) {
                out = frame(&message.encode());
            }
        }
        tokio::select! {
            read = reader.read(&mut buffer) => {
                let n = read.context("read")?;
                ensure!(n > 0, "it was closed");
                for bytes in deframer.push(&buffer[..n]) {
                    if let Some(Message::Want(want)) = Message::parse(&bytes) {
                        if log {
                            eprintln!("{} from {}: {} chunks", want.name.path(), want.base, want.chunks().count());
                        }
                        queue.take(&want);
                    }
                }
            }
            written = writer.write(&out), if !out.is_empty() => {
                out.drain(..written.context("write")?);
            }
        }
    }
}

/// The answer to a request for a chunk; none for one that the file does not have.
fn answer(folder: &Path, job: &Job, opened: &mut Option<Open>, queue: &mut Queue) -> Option<Message> {
    if opened.as_ref().is_none_or(|open| open.name != job.name || job.index == 0) {
        *opened = File::open(folder.join(job.name.path())).ok().and_then(|file| {
            let facts = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
            Some(Open { name: job.name, file, length: facts.len() })
        });
    }
    let Some(open) = opened else {
        queue.clear();
        return Some(job.absent());
    };
    let left = open.length.saturating_sub(job.offset()).min(job.chunk.into());
    let mut bytes = vec![0; usize::try_from(left).ok()?];
    open.file.read_exact_at(&mut bytes, job.offset()).ok()?;
    job.answer(open.length, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_named_with_their_rate() {
        let line = Line::parse("/dev/ttyUSB0?baud=2400").unwrap();
        assert_eq!(line, Line { device: "/dev/ttyUSB0".into(), baud: 2400 });
        assert_eq!(Line::parse("serial:/dev/ttyS1").unwrap().baud, BAUD);
        assert!(Line::parse("/dev/ttyS1?baud=0").is_err() && Line::parse("/dev/ttyS1?fast").is_err());
    }
}
