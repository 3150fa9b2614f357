//! A serial cable to the peer: heartbeats in frames ([`super::slip`]), sealed as every datagram is.
//!
//! A second path that prevents false alarms; never a vote. It does not know what a frame says.

use super::config::Serial;
use super::seal::DATAGRAM_MAX;
use super::site::Site;
use super::slip::{Frames, frame};
use crate::ha::message::Body;
use anyhow::{Context, Result, bail};
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio_serial::SerialPortBuilderExt;

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
    let (mut frames, mut buffer) = (Frames::new(DATAGRAM_MAX), [0; 512]);
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
