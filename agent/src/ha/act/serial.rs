//! A serial cable to the peer: heartbeats in SLIP frames (RFC 1055), sealed as every datagram is.
//!
//! A second path that prevents false alarms; never a vote. It does not know what a frame says.

use super::config::Serial;
use super::seal::DATAGRAM_MAX;
use super::site::Site;
use crate::ha::message::Body;
use anyhow::{Context, Result, bail};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio_serial::SerialPortBuilderExt;

const END: u8 = 0xc0;
const ESCAPE: u8 = 0xdb;
const ESCAPED_END: u8 = 0xdc;
const ESCAPED_ESCAPE: u8 = 0xdd;
/// Between two heartbeats over the cable, microseconds: a slow line must carry them.
const PAUSE_US: u64 = 400_000;
/// After a line that does not work.
const REOPEN: Duration = Duration::from_secs(2);

/// The running line.
pub struct Line {
    outgoing: mpsc::Sender<Vec<u8>>,
    incoming: mpsc::Receiver<Vec<u8>>,
    sent_us: u64,
    task: JoinHandle<()>,
}

/// Puts bytes between two ends, so that neither occurs inside.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(bytes.len() + 8);
    framed.push(END);
    for byte in bytes {
        match *byte {
            END => framed.extend([ESCAPE, ESCAPED_END]),
            ESCAPE => framed.extend([ESCAPE, ESCAPED_ESCAPE]),
            other => framed.push(other),
        }
    }
    framed.push(END);
    framed
}

/// Finds frames in whatever the line brings; what is too long or malformed is passed over.
#[derive(Default)]
pub struct Frames {
    bytes: Vec<u8>,
    escaped: bool,
    spoilt: bool,
}

impl Frames {
    /// Takes one byte; a frame, when it is complete.
    pub fn take(&mut self, byte: u8) -> Option<Vec<u8>> {
        if byte == END {
            let whole = !self.spoilt && !self.escaped && !self.bytes.is_empty();
            let bytes = std::mem::take(&mut self.bytes);
            (self.escaped, self.spoilt) = (false, false);
            return whole.then_some(bytes);
        }
        let plain = match (self.escaped, byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                return None;
            }
            (false, other) => other,
            (true, ESCAPED_END) => END,
            (true, ESCAPED_ESCAPE) => ESCAPE,
            (true, _) => {
                self.spoilt = true;
                byte
            }
        };
        self.escaped = false;
        self.spoilt |= self.bytes.len() >= DATAGRAM_MAX;
        if !self.spoilt {
            self.bytes.push(plain);
        }
        None
    }
}

impl Line {
    /// Opens the line and keeps it open.
    pub fn open(site: Rc<Site>, config: Serial) -> Self {
        let (outgoing, mut to_send) = mpsc::channel::<Vec<u8>>(2);
        let (heard, incoming) = mpsc::channel(16);
        let task = spawn_local(async move {
            loop {
                let ended = run(&site, &config, &mut to_send, &heard).await;
                let why = ended.map_or_else(|error| format!("{error:#}"), |()| "it ended".to_owned());
                tracing::debug!(device = %config.device.display(), why, "the serial cable does not work");
                site.watch.trouble("serial", why);
                tokio::time::sleep(REOPEN).await;
            }
        });
        Self { outgoing, incoming, sent_us: 0, task }
    }

    /// Sends a heartbeat now and then; everything else stays off the cable.
    pub fn send(&mut self, body: &Body, datagram: &[u8], now_us: u64) {
        let due = now_us.saturating_sub(self.sent_us) >= PAUSE_US;
        if due && matches!(body, Body::Beat(_)) {
            self.sent_us = now_us;
            if self.outgoing.try_send(frame(datagram)).is_err() {
                tracing::trace!("the serial cable is behind");
            }
        }
    }

    /// The next frame that came.
    pub async fn heard(&mut self) -> Vec<u8> {
        match self.incoming.recv().await {
            Some(frame) => frame,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    site: &Site,
    config: &Serial,
    to_send: &mut mpsc::Receiver<Vec<u8>>,
    heard: &mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    let device = config.device.display();
    let name = config.device.to_str().with_context(|| format!("open {device}: its name is not UTF-8"))?;
    let opened = tokio_serial::new(name, config.baud).open_native_async();
    let mut line = opened.with_context(|| format!("open {device}"))?;
    site.watch.works("serial");
    let (mut frames, mut buffer) = (Frames::default(), [0; 512]);
    loop {
        tokio::select! {
            read = line.read(&mut buffer) => {
                let length = read.with_context(|| format!("read from {device}"))?;
                if length == 0 {
                    bail!("read from {device}: the line ended");
                }
                for frame in buffer[..length].iter().filter_map(|byte| frames.take(*byte)) {
                    if heard.try_send(frame).is_err() {
                        tracing::trace!("a frame of the serial cable was dropped");
                    }
                }
            }
            Some(bytes) = to_send.recv() => {
                let sent = tokio::time::timeout(REOPEN, line.write_all(&bytes)).await;
                sent.with_context(|| format!("write to {device}: nobody takes it"))?
                    .with_context(|| format!("write to {device}"))?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Frames::default();
        bytes.iter().filter_map(|byte| frames.take(*byte)).collect()
    }

    proptest! {
        #[test]
        fn a_frame_comes_out_as_it_went_in_after_any_noise(
            noise in prop::collection::vec(any::<u8>(), 0..64),
            said in prop::collection::vec(prop_oneof![any::<u8>(), Just(END), Just(ESCAPE)], 1..DATAGRAM_MAX),
        ) {
            let line = [noise, frame(&said), frame(&said)].concat();
            let found = all(&line);
            prop_assert_eq!(found.last(), Some(&said));
        }

        #[test]
        fn nothing_that_comes_makes_a_frame_longer_than_a_datagram(
            noise in prop::collection::vec(any::<u8>(), 0..4_000),
        ) {
            prop_assert!(all(&noise).iter().all(|frame| frame.len() <= DATAGRAM_MAX));
        }
    }

    #[test]
    fn malformed_frames_are_passed_over() {
        assert_eq!(all(&[END, 1, ESCAPE, 2, 3, END, 4, END]), [vec![4]]);
        assert_eq!(all(&[END, 1, ESCAPE, END, 4, END]), [vec![4]]);
        assert!(all(&vec![1; 5_000]).is_empty());
        assert_eq!(all(&[vec![1; 5_000], vec![END, 7, END]].concat()), [vec![7]]);
    }
}
