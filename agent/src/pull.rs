//! Pulls pieces of a file over a link that loses, repeats and reorders messages: which request to send when, and what
//! answers are worth. Pure: messages and the time in, messages and whole pieces out. Times are milliseconds since the
//! kernel started. Knows no topics and no sockets.
//!
//! Two requests are under way at most, each for about [`AHEAD_MS`] of the measured rate, and one until something comes:
//! nothing piles up at a broker for a device that is slow or gone, nor for many that begin at once.

use formats::object::BlockSize;
use formats::pull::{Body, File, Get, PART_HEADER, Part, Tag};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// Requests under way at once: while one is answered the next is on its way.
const REQUESTS_MAX: usize = 2;
/// A request asks for what comes in this time.
const AHEAD_MS: u64 = 4_000;
/// Bytes that a request asks for: first, least, most.
const WINDOW_FIRST: u64 = 64 << 10;
const WINDOW_MIN: u64 = 4 << 10;
const WINDOW_MAX: u64 = 512 << 10;
/// Most bytes that were asked for and have not come.
pub const AHEAD_MAX: u64 = REQUESTS_MAX as u64 * WINDOW_MAX;
/// What later messages overtook may still come for so long.
const GRACE_MS: u64 = 1_000;
/// Without a message for so long, requests count as lost: first, longest.
const PATIENCE_FIRST_MS: u64 = 10_000;
const PATIENCE_MAX_MS: u64 = 60_000;
/// Times that nothing came before the peer counts as gone.
const SILENCES_MAX: u32 = 4;
/// Pieces that are not the file's before the peer is given up.
const WRONG_MAX: u32 = 8;
/// Bytes without a whole piece before the peer is given up, beyond twice the piece: whatever a link loses, that is a lie.
const VAIN_MAX: u64 = 2 * WINDOW_MAX;
/// Seconds after which an answer is of no use.
const EXPIRY_S: u16 = 60;

/// Why pulling ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All that was wanted is here.
    Done,
    /// The peer has no such file.
    Absent,
    /// The peer wants to be asked again after so many seconds.
    Busy(u32),
    /// Nothing comes.
    Silent,
    /// What comes is not the file, or is longer than allowed.
    Damaged,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this request.
    Send(Vec<u8>),
    /// Wait for a message until this time.
    Wait(u64),
    /// End.
    Stop(Stop),
}

/// What is pulled.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The file.
    pub file: File,
    /// Bytes of a piece.
    pub piece: BlockSize,
    /// Its length in bytes, if it is known; else the most that it may have.
    pub length: Result<u64, u64>,
    /// Numbers of the pieces that are wanted; all, where the length is not known.
    pub missing: Vec<Range<u64>>,
    /// Most bytes of a message.
    pub part_bytes: u16,
    /// Drawn by the caller: messages of another session are not for this file.
    pub session: u32,
}

struct Request {
    number: u32,
    /// Pieces that have not come.
    open: BTreeSet<u32>,
    last: u32,
    /// Once all of it should be here: until when the rest may still come.
    over_ms: Option<u64>,
}

/// Pieces of which a part is here.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// Ranges that are here; they do not touch.
    have: Vec<Range<usize>>,
}

impl Partial {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        let mut new = at..at + bytes.len();
        self.have.retain(|old| {
            let apart = old.end < new.start || old.start > new.end;
            if !apart {
                new = new.start.min(old.start)..new.end.max(old.end);
            }
            apart
        });
        self.have.push(new);
    }
    fn whole(&self) -> bool {
        matches!(self.have.as_slice(), [all] if all.len() == self.bytes.len())
    }
}

/// A file being pulled.
pub struct Pull {
    of: Pulled,
    length: Option<u64>,
    /// Not asked for yet, or again.
    todo: VecDeque<Range<u64>>,
    requests: VecDeque<Request>,
    partial: BTreeMap<u32, Partial>,
    number: u32,
    heard_ms: Option<u64>,
    asked_ms: u64,
    patience_ms: u64,
    silences: u32,
    wrong: u32,
    /// Bytes since a piece became whole.
    vain: u64,
    /// Bytes of a request.
    window: u64,
    /// When the rate was last measured, and bytes since then.
    rated: (u64, u64),
    stop: Option<Stop>,
}

impl Pull {
    /// Begins; nothing is sent yet.
    pub fn new(of: Pulled) -> Self {
        let length = of.length.ok();
        let todo = match length {
            Some(_) => of.missing.iter().cloned().collect(),
            // The first answer says how long the file is.
            None => std::iter::once(0..1).collect(),
        };
        Self {
            of,
            length,
            todo,
            requests: VecDeque::new(),
            partial: BTreeMap::new(),
            number: 0,
            heard_ms: None,
            asked_ms: 0,
            patience_ms: PATIENCE_FIRST_MS,
            silences: 0,
            wrong: 0,
            vain: 0,
            window: WINDOW_FIRST,
            rated: (0, 0),
            stop: None,
        }
    }

    /// The file's length, once it is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// What to do now.
    pub fn next(&mut self, now_ms: u64) -> Next {
        if let Some(stop) = &self.stop {
            return Next::Stop(stop.clone());
        }
        self.give_up_requests(now_ms);
        if let Some(stop) = &self.stop {
            return Next::Stop(stop.clone());
        }
        let answered = self.heard_ms.is_some() && self.silences == 0;
        if self.requests.len() < if answered { REQUESTS_MAX } else { 1 }
            && let Some(get) = self.ask(now_ms)
        {
            return Next::Send(get.encode());
        }
        if self.requests.is_empty() {
            return Next::Stop(Stop::Done);
        }
        let silent = self.silent_ms();
        Next::Wait(self.requests.iter().filter_map(|request| request.over_ms).fold(silent, u64::min))
    }

    /// All requests under way are lost: the connection is a new one.
    pub fn reconnected(&mut self) {
        while let Some(request) = self.requests.pop_front() {
            self.again(&request.open);
        }
    }

    fn again(&mut self, open: &BTreeSet<u32>) {
        for piece in open.iter().rev() {
            let piece = u64::from(*piece);
            match self.todo.front_mut() {
                Some(first) if first.start == piece + 1 => first.start = piece,
                Some(_) | None => self.todo.push_front(piece..piece + 1),
            }
        }
    }

    /// When requests count as lost; sessions differ by up to a half, so that those who wait for one server do not all ask
    /// again at once.
    fn silent_ms(&self) -> u64 {
        let spread = u64::from(self.of.session.wrapping_mul(0x9e37_79b1) >> 16);
        let patience = self.patience_ms + ((self.patience_ms * spread) >> 17);
        self.heard_ms.unwrap_or(0).max(self.asked_ms) + patience
    }

    fn give_up_requests(&mut self, now_ms: u64) {
        while self.requests.front().is_some_and(|request| request.over_ms.is_some_and(|at| now_ms >= at)) {
            if let Some(request) = self.requests.pop_front() {
                self.again(&request.open);
            }
        }
        if !self.requests.is_empty() && now_ms >= self.silent_ms() {
            self.silences += 1;
            self.patience_ms = (self.patience_ms * 2).min(PATIENCE_MAX_MS);
            self.window = WINDOW_MIN;
            self.reconnected();
            if self.silences >= SILENCES_MAX {
                self.stop = Some(Stop::Silent);
            }
        }
    }

    fn ask(&mut self, now_ms: u64) -> Option<Get> {
        let most = (self.window / u64::from(self.of.piece.bytes())).max(1);
        let mut get = Get {
            tag: Tag { session: self.of.session, number: self.number + 1 },
            expiry_s: EXPIRY_S,
            part_bytes: self.of.part_bytes,
            count: 0,
            file: self.of.file,
            piece: self.of.piece,
            first: 0,
            map: Vec::new(),
        };
        let taken = get.want(self.todo.iter().cloned().flatten().take(usize::try_from(most).unwrap_or(1)));
        let open: BTreeSet<u32> = get.pieces().collect();
        let last = *open.last()?;
        let mut left = u64::from(taken);
        while let Some(run) = self.todo.front_mut().filter(|_| left > 0) {
            let now = left.min(run.end - run.start);
            (run.start, left) = (run.start + now, left - now);
            if run.start >= run.end {
                self.todo.pop_front();
            }
        }
        self.number += 1;
        self.asked_ms = now_ms;
        self.requests.push_back(Request { number: self.number, open, last, over_ms: None });
        Some(get)
    }

    /// Takes a message. Gives a piece, if one became whole.
    pub fn message(&mut self, bytes: &[u8], now_ms: u64) -> Option<(u64, Vec<u8>)> {
        self.vain += bytes.len() as u64;
        if self.vain > VAIN_MAX + 2 * u64::from(self.of.piece.bytes()) {
            self.stop = Some(Stop::Damaged);
        }
        let part = Part::parse(bytes).ok().filter(|part| part.tag.session == self.of.session)?;
        let known = self.requests.iter().any(|request| request.number == part.tag.number);
        match part.body {
            // Only data may be late: it is checked by who wants it.
            Body::Absent if known => self.stop = Some(Stop::Absent),
            Body::Busy(seconds) if known => self.stop = Some(Stop::Busy(seconds)),
            Body::Refused if known => self.stop = Some(Stop::Silent),
            Body::Absent | Body::Busy(_) | Body::Refused => {}
            Body::Data { length, index, offset, bytes } => {
                return self.data((length, index, offset, bytes), part.tag.number, now_ms);
            }
        }
        None
    }

    fn data(
        &mut self,
        (length, index, offset, bytes): (u64, u32, u32, &[u8]),
        number: u32,
        now_ms: u64,
    ) -> Option<(u64, Vec<u8>)> {
        if !self.learn(length) {
            return None;
        }
        self.heard(bytes.len() + PART_HEADER, now_ms);
        let wanted = self.requests.iter().any(|request| request.open.contains(&index));
        let size = self.piece_length(index.into()).filter(|_| wanted);
        let end = usize::try_from(offset).ok().and_then(|at| at.checked_add(bytes.len()));
        let whole = match (size, end) {
            (Some(size), Some(end)) if end <= size => {
                let partial = self.partial.entry(index).or_default();
                partial.bytes.resize(size, 0);
                partial.put(end - bytes.len(), bytes);
                partial.whole().then(|| self.partial.remove(&index)).flatten()
            }
            _ => None,
        };
        if whole.is_some() {
            self.vain = 0;
            for request in &mut self.requests {
                request.open.remove(&index);
            }
        }
        self.conclude(number, index, now_ms);
        whole.map(|partial| (index.into(), partial.bytes))
    }

    fn learn(&mut self, length: u64) -> bool {
        match (self.length, self.of.length) {
            (Some(known), _) => known == length,
            (None, Err(most)) if length > most => {
                self.stop = Some(Stop::Damaged);
                false
            }
            (None, _) => {
                self.length = Some(length);
                let pieces = length.div_ceil(self.of.piece.bytes().into());
                if pieces > 1 {
                    self.todo.push_back(1..pieces);
                }
                true
            }
        }
    }

    fn piece_length(&self, index: u64) -> Option<usize> {
        let (length, piece) = (self.length?, u64::from(self.of.piece.bytes()));
        let start = index.checked_mul(piece).filter(|start| *start < length || length == 0)?;
        usize::try_from((length - start).min(piece)).ok()
    }

    fn heard(&mut self, bytes: usize, now_ms: u64) {
        self.heard_ms = Some(now_ms);
        self.silences = 0;
        let (since, before) = self.rated;
        let sum = before + bytes as u64;
        self.rated = (since, sum);
        if since == 0 {
            self.rated = (now_ms, 0);
        } else if now_ms >= since + AHEAD_MS {
            self.window = (sum * AHEAD_MS / (now_ms - since)).clamp(WINDOW_MIN, WINDOW_MAX);
            self.rated = (now_ms, 0);
        } else if sum > self.window {
            // Faster than was thought.
            self.window = (self.window * 2).min(WINDOW_MAX);
        }
    }

    /// Requests end when all of them is here, and soon after their last piece or a later request's.
    fn conclude(&mut self, number: u32, index: u32, now_ms: u64) {
        for request in &mut self.requests {
            let passed = request.number < number || (request.number == number && request.last == index);
            if passed && request.over_ms.is_none() {
                request.over_ms = Some(now_ms + GRACE_MS);
            }
        }
        self.requests.retain(|request| !request.open.is_empty());
    }

    /// A piece was not the file's: it is asked for again.
    pub fn wrong(&mut self, index: u64) {
        self.wrong += 1;
        self.todo.push_front(index..index + 1);
        if self.wrong > WRONG_MAX {
            self.stop = Some(Stop::Damaged);
        }
    }
}

#[cfg(test)]
mod tests;
