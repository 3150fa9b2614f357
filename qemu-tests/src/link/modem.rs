//! A stand-in for a satellite modem and the gateway behind it, on a pseudo-terminal: sessions, mailboxes, ring alerts,
//! credits, and everything that goes wrong with them. Real modems cost money by the byte and need the sky.
//!
//! Behind the gateway is a repository's folder, as behind `farhold serve`.

use super::ends::End;
use super::pipe::chance;
use anyhow::{Context, Result};
use formats::link::answer::Queue;
use formats::link::at::{DOWN_MAX, UP_MAX, credits, with_sum};
use formats::link::message::Message;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at what the gateway has and whether to end, ms, if the device says nothing.
const LOOK_MS: u16 = 20;

/// What goes wrong, in parts of a million.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Sessions that find no network.
    pub no_network: u32,
    /// Messages down that are lost on the way.
    pub down_lost: u32,
    /// Messages down that come twice.
    pub down_twice: u32,
    /// Messages up that are paid for and never arrive.
    pub up_lost: u32,
    /// Commands that are answered with `ERROR`.
    pub error: u32,
    /// Commands that are not answered.
    pub silent: u32,
    /// Answers that follow after garbage.
    pub garbage: u32,
    /// Binary messages that are damaged between modem and device.
    pub damaged: u32,
    /// What chance begins from.
    pub seed: u64,
}

/// What it came to.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Bill {
    /// Sessions that reached the network.
    pub sessions: u64,
    /// Of those, without a message either way.
    pub empty: u64,
    /// Messages that went up and came down.
    pub messages: [u64; 2],
    /// Longest of them, bytes.
    pub longest: [usize; 2],
    /// Credits.
    pub credits: u64,
}

/// A modem; ends when it is dropped.
pub struct Modem {
    /// The terminal that a device opens.
    pub path: PathBuf,
    stop: Arc<AtomicBool>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Default)]
struct Shared {
    bill: Bill,
    /// Messages that wait at the gateway.
    down: VecDeque<Vec<u8>>,
}

struct Simulator {
    end: End,
    repository: PathBuf,
    session: Duration,
    faults: Faults,
    draws: u64,
    shared: Arc<Mutex<Shared>>,
    queue: Queue,
    line: Vec<u8>,
    /// Bytes of a binary message that are still to come, with its sum.
    expected: usize,
    up: Vec<u8>,
    inbox: Vec<u8>,
    numbers: [u16; 2],
    rung: bool,
}

impl Modem {
    /// A modem whose sessions take so long, with a repository behind it.
    ///
    /// # Errors
    /// If there is no terminal to be had.
    pub fn start(repository: PathBuf, session: Duration, faults: Faults) -> Result<Self> {
        let (end, path) = End::terminal()?;
        let (stop, shared) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Shared::default())));
        let mut simulator = Simulator {
            end,
            repository,
            session,
            faults,
            draws: 0,
            shared: Arc::clone(&shared),
            queue: Queue::default(),
            line: Vec::new(),
            expected: 0,
            up: Vec::new(),
            inbox: Vec::new(),
            numbers: [0; 2],
            rung: false,
        };
        let asked = Arc::clone(&stop);
        let thread = std::thread::spawn(move || simulator.run(&asked));
        Ok(Self { path, stop, shared, thread: Some(thread) })
    }

    /// Gives the gateway a message for the device.
    pub fn push(&self, message: Vec<u8>) {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).down.push_back(message);
    }

    /// What it came to so far.
    pub fn bill(&self) -> Bill {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).bill
    }
}

impl Drop for Modem {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the modem ended early: {error:#}");
        }
    }
}

impl Simulator {
    fn happens(&mut self, ppm: u32) -> bool {
        self.draws += 1;
        chance(self.faults.seed, self.draws) % 1_000_000 < u64::from(ppm)
    }

    fn shared<T>(&self, act: impl FnOnce(&mut Shared) -> T) -> T {
        act(&mut self.shared.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut buffer = [0; 256];
        while !stop.load(Ordering::Relaxed) {
            match self.end.read(&mut buffer).context("read from the modem's terminal")? {
                Some(n) => {
                    for byte in buffer[..n].iter().copied() {
                        self.hear(byte)?;
                    }
                }
                None => self.wait(PollFlags::POLLIN)?,
            }
            let waits = self.shared(|shared| !shared.down.is_empty());
            if waits && !self.rung {
                self.rung = true;
                self.say("SBDRING")?;
            }
        }
        Ok(())
    }

    /// Sleeps until the terminal has or takes something, or it is to be looked whether something is to be said.
    fn wait(&self, what: PollFlags) -> Result<()> {
        match poll(&mut [PollFd::new(self.end.fd(), what)], LOOK_MS) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for the modem's terminal"),
        }
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(5);
        while !bytes.is_empty() && Instant::now() < until {
            let n = self.end.write(bytes).context("write to the modem's terminal")?;
            bytes = &bytes[n..];
            if n == 0 {
                self.wait(PollFlags::POLLOUT)?;
            }
        }
        Ok(())
    }

    fn say(&mut self, text: &str) -> Result<()> {
        if self.happens(self.faults.garbage) {
            let noise: Vec<u8> = (0..20).map(|n| chance(self.faults.seed, self.draws + n) as u8).collect();
            self.write(&noise)?;
            self.write(b"\r\n")?;
        }
        self.write(format!("\r\n{text}\r\n").as_bytes())
    }

    fn hear(&mut self, byte: u8) -> Result<()> {
        if self.expected > 0 {
            self.line.push(byte);
            if self.line.len() == self.expected {
                self.expected = 0;
                let mut bytes = std::mem::take(&mut self.line);
                if self.happens(self.faults.damaged) {
                    bytes[0] ^= 1;
                }
                let message = bytes[..bytes.len() - 2].to_vec();
                if with_sum(&message) == bytes {
                    self.up = message;
                    self.say("0")?;
                } else {
                    self.say("2")?;
                }
                return self.say("OK");
            }
            return Ok(());
        }
        match byte {
            b'\r' => {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                self.command(line.trim())
            }
            b'\n' => Ok(()),
            byte => {
                if self.line.len() < 100 {
                    self.line.push(byte);
                }
                Ok(())
            }
        }
    }

    fn command(&mut self, line: &str) -> Result<()> {
        if line.is_empty() || self.happens(self.faults.silent) {
            return Ok(());
        }
        if self.happens(self.faults.error) {
            return self.say("ERROR");
        }
        if let Some(length) = line.strip_prefix("AT+SBDWB=") {
            match length.parse::<usize>() {
                Ok(length @ 1..=UP_MAX) => {
                    self.expected = length + 2;
                    return self.say("READY");
                }
                _ => return self.say("3"),
            }
        }
        match line {
            "ATE0" => {}
            "AT+CSQ" => self.say("+CSQ:4")?,
            "AT+SBDD0" => self.up.clear(),
            "AT+SBDSX" => {
                let [up, down] = self.numbers;
                let waits = self.shared(|shared| shared.down.len());
                let text = format!(
                    "+SBDSX: {}, {up}, 0, {down}, {}, {waits}",
                    u8::from(!self.up.is_empty()),
                    u8::from(waits > 0)
                );
                self.say(&text)?;
            }
            "AT+SBDIX" => self.session()?,
            "AT+SBDRB" => {
                let length = self.inbox.len();
                let mut bytes =
                    [&[(length >> 8) as u8, length as u8], with_sum(&self.inbox).as_slice()].concat();
                if self.happens(self.faults.damaged) {
                    let last = bytes.len() - 1;
                    bytes[last] ^= 0x55;
                }
                self.write(&bytes)?;
            }
            _ => return self.say("ERROR"),
        }
        self.say("OK")
    }

    fn session(&mut self) -> Result<()> {
        std::thread::sleep(self.session);
        if self.happens(self.faults.no_network) {
            let [up, down] = self.numbers;
            return self.say(&format!("+SBDIX: 32, {up}, 2, {down}, 0, 0"));
        }
        let up = self.up.clone();
        if !up.is_empty() {
            self.numbers[0] = self.numbers[0].wrapping_add(1);
            if !self.happens(self.faults.up_lost) {
                self.arrives(&up)?;
            }
        }
        self.rung = false;
        let mut message = self.shared(|shared| shared.down.pop_front());
        if let Some(bytes) = &message {
            if self.happens(self.faults.down_lost) {
                message = None;
            } else if self.happens(self.faults.down_twice) {
                self.shared(|shared| shared.down.push_front(bytes.clone()));
            }
        }
        let length = message.as_ref().map_or(0, Vec::len);
        if let Some(message) = &message {
            self.numbers[1] = self.numbers[1].wrapping_add(1);
            self.inbox.clone_from(message);
        }
        let waits = self.shared(|shared| {
            let Bill { sessions, empty, messages, longest, credits: paid } = &mut shared.bill;
            *sessions += 1;
            *empty += u64::from(up.is_empty() && message.is_none());
            messages[0] += u64::from(!up.is_empty());
            messages[1] += u64::from(message.is_some());
            *longest = [longest[0].max(up.len()), longest[1].max(length)];
            let down = if message.is_some() { credits(length) } else { 0 };
            *paid += if up.is_empty() && message.is_some() { 0 } else { credits(up.len()) } + down;
            shared.down.len()
        });
        let ([up, down], came) = (self.numbers, u8::from(message.is_some()));
        self.say(&format!("+SBDIX: 0, {up}, {came}, {down}, {length}, {waits}"))
    }

    /// A message reached the gateway: what it asks for waits for the next sessions.
    fn arrives(&mut self, message: &[u8]) -> Result<()> {
        let Some(Message::Want(want)) = Message::parse(message) else { return Ok(()) };
        self.queue.take(&want);
        while let Some(job) = self.queue.pop() {
            let answer = match std::fs::read(self.repository.join(job.name.path())) {
                Ok(file) => {
                    let start = usize::try_from(job.offset()).unwrap_or(usize::MAX).min(file.len());
                    let end = (start + usize::from(job.chunk)).min(file.len());
                    job.answer(file.len() as u64, file[start..end].to_vec())
                }
                Err(_) => {
                    self.queue.clear();
                    Some(job.absent())
                }
            };
            let Some(bytes) = answer.map(|answer| answer.encode()) else { continue };
            anyhow::ensure!(bytes.len() <= DOWN_MAX, "a message of {} bytes for a modem", bytes.len());
            self.shared(|shared| shared.down.push_back(bytes));
        }
        Ok(())
    }
}
