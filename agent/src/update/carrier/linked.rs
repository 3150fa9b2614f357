//! Files by messages: over a serial line or a satellite modem. What to ask for when is decided in
//! [`formats::link::pull`]; here chunks become pieces.

use super::{Carrier, Failure, Sink, Toll, Wanted, What, Worth};
use crate::update::step::Fault;
use formats::link::message::Message;
use formats::link::name::Name;
use formats::link::pull::{self, Next, Pull, Settings};
use std::collections::BTreeMap;

/// Pieces that may be wrong before the other end is given up.
const WRONG_MAX: u32 = 3;

/// A way for messages, there and back.
pub trait Messages {
    /// How it is used.
    fn settings(&self) -> Settings;
    /// Milliseconds of a clock that never goes back.
    fn now_ms(&self) -> u64;
    /// Sends a message, or takes it for the next occasion.
    ///
    /// # Errors
    /// [`Failure`], the toll's as well.
    fn send(&mut self, message: &Message, toll: &mut dyn Toll) -> Result<(), Failure>;
    /// The next message; none if none came until `until_ms`, or earlier if something else is to be looked at.
    ///
    /// # Errors
    /// [`Failure`], the toll's as well.
    fn receive(&mut self, until_ms: u64, toll: &mut dyn Toll) -> Result<Option<Message>, Failure>;
    /// The newest announcement, where asking for it would cost money and it comes by itself; otherwise none.
    ///
    /// # Errors
    /// [`Failure`], the toll's as well.
    fn announcement(&mut self, _toll: &mut dyn Toll) -> Result<Option<Vec<u8>>, Failure> {
        Ok(None)
    }
    /// Its name, for people.
    fn name(&self) -> &str;
}

/// A carrier of messages.
pub struct Linked<M> {
    messages: M,
    tag: u16,
}

impl<M: Messages> Linked<M> {
    /// A carrier; its first transfer has a number of its own, so that late answers to somebody else are not taken.
    ///
    /// # Errors
    /// If the kernel has no random numbers.
    pub fn new(messages: M) -> Result<Self, Failure> {
        let mut tag = [0; 2];
        getrandom::fill(&mut tag)
            .map_err(|error| Failure::new(Fault::Local, format!("ask for a random number: {error}")))?;
        Ok(Self { messages, tag: u16::from_le_bytes(tag) })
    }

    fn drive(&mut self, pull: &mut Pull, taker: &mut dyn Taker) -> Result<(), Failure> {
        loop {
            let until_ms = match pull.poll(self.messages.now_ms()) {
                Next::Done => return Ok(()),
                Next::Failed(failure) => return Err(self.failure(failure)),
                Next::Send(message) => {
                    self.messages.send(&message, taker.toll())?;
                    continue;
                }
                Next::Wait(until_ms) => until_ms,
            };
            let Some(message) = self.messages.receive(until_ms, taker.toll())? else { continue };
            if let pull::Worth::New(index, bytes, _) = pull.take(&message, self.messages.now_ms()) {
                taker.chunk(index, &bytes)?;
            }
        }
    }

    fn failure(&self, failure: pull::Failure) -> Failure {
        let name = self.messages.name();
        let patience_s = self.messages.settings().patience_ms / 1000;
        match failure {
            pull::Failure::Absent => {
                Failure::new(Fault::Absent, format!("the other end of {name} does not have it"))
            }
            pull::Failure::Later(seconds) => {
                let why = format!("the other end of {name} asks to come again in {seconds} s");
                Failure::new(Fault::Unreachable(Some(seconds.into())), why)
            }
            pull::Failure::Silent => {
                let why = format!(
                    "nothing of use came over {name} for {patience_s} s; look at cable, rate and the other end"
                );
                Failure::new(Fault::Unreachable(None), why)
            }
        }
    }

    fn next_tag(&mut self) -> u16 {
        self.tag = self.tag.wrapping_add(1);
        self.tag
    }
}

/// Takes chunks.
trait Taker {
    fn chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), Failure>;
    fn toll(&mut self) -> &mut dyn Toll;
}

struct Small<'s> {
    chunks: BTreeMap<u32, Vec<u8>>,
    toll: &'s mut dyn Toll,
}

impl Taker for Small<'_> {
    fn chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), Failure> {
        self.chunks.insert(index, bytes.to_vec());
        Ok(())
    }
    fn toll(&mut self) -> &mut dyn Toll {
        self.toll
    }
}

/// Puts pieces together; as many as the window of the transfer reaches over are begun at a time.
struct Pieces<'s> {
    wanted: &'s Wanted,
    chunk: u64,
    /// Bytes of pieces that are not whole, and how many are missing.
    begun: BTreeMap<u64, (Vec<u8>, usize)>,
    wrong: u32,
    sink: &'s mut dyn Sink,
}

impl Taker for Pieces<'_> {
    fn chunk(&mut self, index: u32, bytes: &[u8]) -> Result<(), Failure> {
        let start = u64::from(index) * self.chunk;
        let (number, at) =
            (start / u64::from(self.wanted.piece), (start % u64::from(self.wanted.piece)) as usize);
        let Some(length) = self.wanted.piece_length(number) else { return Ok(()) };
        let (piece, missing) = self.begun.entry(number).or_insert_with(|| (vec![0; length], length));
        let must = (length - at.min(length)).min(self.chunk as usize);
        if bytes.len() != must {
            let why = format!("{} ends elsewhere than announced", self.wanted.what.path());
            return Err(Failure::new(Fault::Damaged, why));
        }
        piece[at..at + must].copy_from_slice(bytes);
        *missing -= must;
        if *missing > 0 {
            return Ok(());
        }
        let Some((piece, _)) = self.begun.remove(&number) else { return Ok(()) };
        match self.sink.piece(number, &piece)? {
            Worth::New | Worth::Known => {}
            Worth::Wrong(why) if self.wrong >= WRONG_MAX => return Err(Failure::new(Fault::Damaged, why)),
            // It is asked for again with what is still missing.
            Worth::Wrong(_) => self.wrong += 1,
        }
        Ok(())
    }
    fn toll(&mut self) -> &mut dyn Toll {
        self.sink
    }
}

impl<M: Messages> Carrier for Linked<M> {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let absent = || Failure::new(Fault::Absent, format!("{path} is no name of a repository"));
        let name = Name::from_path(path).ok_or_else(absent)?;
        if matches!(name, Name::Announce | Name::Announcement(..))
            && let Some(frame) = self.messages.announcement(toll)?
        {
            return Ok(frame);
        }
        let settings = self.messages.settings();
        let most = u32::try_from(limit / u64::from(settings.chunk) + 1).unwrap_or(u32::MAX);
        let tag = self.next_tag();
        let mut pull = Pull::whole(name, most, tag, settings, self.messages.now_ms());
        let mut small = Small { chunks: BTreeMap::new(), toll };
        self.drive(&mut pull, &mut small)?;
        let bytes: Vec<u8> = small.chunks.into_values().flatten().collect();
        if bytes.len() as u64 > limit {
            return Err(Failure::new(Fault::Damaged, format!("{path} has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut settings = self.messages.settings();
        settings.chunk = settings.chunk.min(u16::try_from(wanted.piece).unwrap_or(u16::MAX));
        let chunk = u64::from(settings.chunk);
        let name = match wanted.what {
            What::Object(id) => Name::Object(id),
            What::Lists(id) => Name::Lists(id),
        };
        let number = |byte: u64| u32::try_from(byte.div_ceil(chunk)).unwrap_or(u32::MAX);
        let ranges = wanted.missing.iter().map(|run| wanted.bytes(run));
        let ranges = ranges.map(|bytes| number(bytes.start)..number(bytes.end)).collect();
        let tag = self.next_tag();
        let mut pull = Pull::new(name, ranges, tag, settings, self.messages.now_ms());
        let mut pieces = Pieces { wanted, chunk, begun: BTreeMap::new(), wrong: 0, sink };
        self.drive(&mut pull, &mut pieces)
    }
}
