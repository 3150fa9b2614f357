//! A satellite modem for short burst data: a message of 340 bytes up and one of 270 down in a session, a session every 40
//! seconds, every one paid for, empty ones too. So nothing is asked blindly: announcements come by themselves, the modem
//! says when something waits, and what is lost is asked for in one request of one credit.
//!
//! The modem is not trusted to be sane: it may say `ERROR`, say nothing, repeat itself or babble.

use super::linked::Messages;
use super::serial::{Address, Port};
use super::{Failure, Toll};
use crate::io::clock::boot_ms;
use crate::io::durable;
use crate::update::step::Fault;
use formats::frame::MAX_FRAME_BYTES;
use formats::link::at::{CREDIT, Ear, Said, Session, UP_MAX, credits, with_sum};
use formats::link::message::Message;
use formats::link::pull::Settings;
use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;

/// Between two sessions.
pub const SESSION_MS: u64 = 40_000;
/// Where the newest announcement is kept.
pub const KEPT: &str = "/var/lib/farhold/announced";
/// How long the modem may take over a command, in hundredths of the time between sessions.
const COMMAND_SHARE: u64 = 25;
/// The same for a session.
const SESSION_SHARE: u64 = 200;
/// Times that a message is read out of the modem before it is given up.
const READS: u32 = 3;

/// Why a session came to nothing.
enum Trouble {
    /// The modem does not do as it should: that passes.
    Modem(String),
    /// The port is gone, or the transfer is to end.
    Link(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Link(failure)
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Modem(why) => Self::new(Fault::Unreachable(None), why),
            Trouble::Link(failure) => failure,
        }
    }
}

/// A modem.
pub struct Modem {
    port: Port,
    ear: Ear,
    heard: VecDeque<Said>,
    address: Address,
    /// What is to go up with the next session.
    up: Option<Vec<u8>>,
    ready: VecDeque<Message>,
    /// Something waits at the satellite.
    waiting: bool,
    next_session_ms: u64,
    /// Number of the message that came last.
    last: Option<u16>,
}

impl Modem {
    /// Takes a modem into use.
    pub fn new(port: Port, address: Address) -> Self {
        Self {
            port,
            ear: Ear::default(),
            heard: VecDeque::new(),
            address,
            up: None,
            ready: VecDeque::new(),
            waiting: false,
            next_session_ms: 0,
            last: None,
        }
    }

    fn trouble(&self, what: &str) -> Trouble {
        Trouble::Modem(format!("the modem at {} {what}", self.port.device))
    }

    /// Reads until the modem has said something, or until a time.
    fn listen(&mut self, until_ms: u64, toll: &mut dyn Toll) -> Result<Option<Said>, Failure> {
        let mut buffer = [0; 512];
        loop {
            while let Some(said) = self.heard.pop_front() {
                match said {
                    Said::Ring => self.waiting = true,
                    Said::Noise => {}
                    Said::Ok
                    | Said::Error
                    | Said::Ready
                    | Said::Signal(_)
                    | Said::Waiting(_)
                    | Said::Session(_)
                    | Said::Written(_)
                    | Said::Message(_) => return Ok(Some(said)),
                }
                if self.heard.is_empty() {
                    return Ok(None);
                }
            }
            if boot_ms() >= until_ms {
                return Ok(None);
            }
            let n = self.port.read(&mut buffer, until_ms)?;
            toll.paid(0)?;
            let ear = &mut self.ear;
            self.heard.extend(buffer[..n].iter().filter_map(|byte| ear.hear(*byte)));
        }
    }

    /// Sends a command and hears what comes until `end` is said; an error or silence is none.
    fn command(
        &mut self,
        text: &[u8],
        end: &Said,
        toll: &mut dyn Toll,
    ) -> Result<Option<Vec<Said>>, Failure> {
        let share = if text.starts_with(b"AT+SBDIX") { SESSION_SHARE } else { COMMAND_SHARE };
        let until_ms = boot_ms() + (self.address.session_ms * share / 100).max(200);
        // What is left of an earlier answer is no answer to this.
        self.waiting |= self.heard.contains(&Said::Ring);
        self.heard.clear();
        self.port.write(text)?;
        let mut said = Vec::new();
        while boot_ms() < until_ms {
            match self.listen(until_ms, toll)? {
                Some(Said::Error) => return Ok(None),
                Some(heard) => {
                    let ended = std::mem::discriminant(&heard) == std::mem::discriminant(end);
                    said.push(heard);
                    if ended {
                        return Ok(Some(said));
                    }
                }
                None => {}
            }
        }
        Ok(None)
    }

    fn ok(&mut self, text: &[u8], toll: &mut dyn Toll) -> Result<Vec<Said>, Trouble> {
        self.ear.expect_lines();
        let what = String::from_utf8_lossy(text).trim().to_owned();
        match self.command(text, &Said::Ok, toll)? {
            Some(said) => Ok(said),
            None => Err(self.trouble(&format!("does not do {what}"))),
        }
    }

    fn write_up(&mut self, message: &[u8], toll: &mut dyn Toll) -> Result<(), Trouble> {
        self.ear.expect_lines();
        let text = format!("AT+SBDWB={}\r", message.len());
        if self.command(text.as_bytes(), &Said::Ready, toll)?.is_none() {
            return Err(self.trouble("is not ready for a message"));
        }
        let said = self.command(&with_sum(message), &Said::Ok, toll)?;
        if said.is_some_and(|said| said.contains(&Said::Written(0))) {
            return Ok(());
        }
        Err(self.trouble("did not take a message"))
    }

    /// One session: what is to go up goes up, what waits comes down. It is paid for however it ends.
    fn session(&mut self, toll: &mut dyn Toll) -> Result<(), Trouble> {
        self.next_session_ms = boot_ms() + self.address.session_ms;
        self.ok(b"ATE0\r", toll)?;
        let signal = self.ok(b"AT+CSQ\r", toll)?;
        if signal.contains(&Said::Signal(0)) {
            return Err(self.trouble("has no signal"));
        }
        match self.up.clone() {
            Some(message) => self.write_up(&message, toll)?,
            None => drop(self.ok(b"AT+SBDD0\r", toll)?),
        }
        let said = self.ok(b"AT+SBDIX\r", toll)?;
        let ended =
            said.iter().find_map(|said| if let Said::Session(ended) = said { Some(*ended) } else { None });
        let Some(session) = ended else { return Err(self.trouble("does not say how the session ended")) };
        let up = if session.sent() { self.up.as_ref().map_or(0, Vec::len) } else { 0 };
        let down = if session.down == 1 { credits(session.down_bytes.into()) } else { 0 };
        let up = if up == 0 && down > 0 { 0 } else { credits(up) };
        toll.paid((up + down) * CREDIT as u64)?;
        if session.sent() {
            // It stays in the modem otherwise, and would go up again.
            self.up = None;
            self.ok(b"AT+SBDD0\r", toll)?;
        }
        self.waiting = session.waiting > 0;
        if session.down == 1 { self.read_down(session, toll) } else { Ok(()) }
    }

    fn read_down(&mut self, session: Session, toll: &mut dyn Toll) -> Result<(), Trouble> {
        for _ in 0..READS {
            self.ear.expect_message();
            let said = self.command(b"AT+SBDRB\r", &Said::Ok, toll)?;
            self.ear.expect_lines();
            let message = said.into_iter().flatten().find_map(|said| match said {
                Said::Message(bytes) => Some(bytes),
                Said::Ok
                | Said::Error
                | Said::Ready
                | Said::Ring
                | Said::Signal(_)
                | Said::Waiting(_)
                | Said::Session(_)
                | Said::Written(_)
                | Said::Noise => None,
            });
            let Some(bytes) = message else { continue };
            if self.last.replace(session.down_number) != Some(session.down_number)
                && let Some(message) = Message::parse(&bytes)
            {
                if let Message::Announcement(frame) = &message {
                    self.keep(frame)?;
                }
                self.ready.push_back(message);
            }
            return Ok(());
        }
        Err(self.trouble("does not hand over a message"))
    }

    fn keep(&self, frame: &[u8]) -> Result<(), Failure> {
        durable::write(Path::new(&self.address.kept), frame, 0o600).map_err(|error| Failure::local(&error))
    }

    /// A session, if it is time for one; a modem that fails is tried again later.
    fn session_if_due(&mut self, toll: &mut dyn Toll) -> Result<(), Failure> {
        if boot_ms() < self.next_session_ms || !(self.waiting || self.up.is_some()) {
            return Ok(());
        }
        match self.session(toll) {
            Ok(()) => Ok(()),
            Err(Trouble::Modem(why)) => {
                tracing::debug!(why, "satellite session");
                Ok(())
            }
            Err(Trouble::Link(failure)) => Err(failure),
        }
    }
}

impl Messages for Modem {
    fn settings(&self) -> Settings {
        let scaled = |ms: u64| ms * self.address.session_ms / SESSION_MS;
        let usual = Settings::SATELLITE;
        Settings {
            first_wait_ms: scaled(usual.first_wait_ms),
            wait_min_ms: scaled(usual.wait_min_ms),
            wait_max_ms: scaled(usual.wait_max_ms),
            patience_ms: scaled(usual.patience_ms),
            ..usual
        }
    }

    fn now_ms(&self) -> u64 {
        boot_ms()
    }

    fn send(&mut self, message: &Message, _toll: &mut dyn Toll) -> Result<(), Failure> {
        let bytes = message.encode();
        if bytes.len() > UP_MAX {
            let why =
                format!("a message of {} bytes does not fit a session, which takes {UP_MAX}", bytes.len());
            return Err(Failure::new(Fault::Local, why));
        }
        self.up = Some(bytes);
        Ok(())
    }

    fn receive(&mut self, until_ms: u64, toll: &mut dyn Toll) -> Result<Option<Message>, Failure> {
        while self.ready.is_empty() && boot_ms() < until_ms {
            self.session_if_due(toll)?;
            if self.ready.is_empty() {
                let due = if self.waiting || self.up.is_some() { self.next_session_ms } else { u64::MAX };
                self.listen(until_ms.min(due), toll)?;
            }
        }
        Ok(self.ready.pop_front())
    }

    /// What came by itself: without a ring, no session is paid for.
    fn announcement(&mut self, toll: &mut dyn Toll) -> Result<Option<Vec<u8>>, Failure> {
        let said = self.ok(b"AT+SBDSX\r", toll)?;
        if said.iter().any(|said| matches!(said, Said::Waiting(true))) {
            self.waiting = true;
        }
        let until_ms = boot_ms() + 4 * self.address.session_ms;
        let mut newest = None;
        while self.waiting && boot_ms() < until_ms {
            if let Some(Message::Announcement(frame)) = self.receive(until_ms, toll)? {
                newest = Some(frame);
            }
        }
        if newest.is_some() {
            return Ok(newest);
        }
        let mut kept = Vec::new();
        if let Ok(file) = std::fs::File::open(&self.address.kept) {
            file.take(MAX_FRAME_BYTES as u64).read_to_end(&mut kept).map_err(|error| {
                Failure::new(Fault::Local, format!("read {}: {error}", self.address.kept))
            })?;
        }
        if kept.is_empty() {
            let why = format!(
                "no announcement has come over {} yet; one comes when a release is announced",
                self.port.device
            );
            return Err(Failure::new(Fault::Unreachable(None), why));
        }
        Ok(Some(kept))
    }

    fn name(&self) -> &str {
        &self.port.device
    }
}
