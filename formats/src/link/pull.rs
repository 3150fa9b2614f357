//! Who fetches: asks for the chunks that it lacks, takes them in any order, asks again for what did not come. The whole
//! state of a transfer is here; the other end forgets, the line may fail for days.
//!
//! A chunk counts as lost when enough of those that were asked for later have come, or when nothing came for a while.

use super::message::{MAX_MAP, Message, Want};
use super::name::Name;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

/// How long a device may be busy with something else, as a flush to a slow disk, without the line falling idle, ms.
const BUSY_MS: u64 = 500;

/// How a link is used. Times in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of a chunk.
    pub chunk: u16,
    /// Fewest chunks that are asked for ahead.
    pub window_min: u32,
    /// Most; at most 256, which one map holds.
    pub window_max: u32,
    /// So many later ones must have come before a chunk counts as lost: 1 where nothing is overtaken.
    pub tolerance: u8,
    /// First wait for an answer.
    pub first_wait_ms: u64,
    /// Shortest wait.
    pub wait_min_ms: u64,
    /// Longest wait.
    pub wait_max_ms: u64,
    /// After so long without anything of use the transfer fails; it can be taken up again at any time.
    pub patience_ms: u64,
}

impl Settings {
    /// A serial line.
    pub const SERIAL: Self = Self {
        chunk: 256,
        window_min: 16,
        window_max: 256,
        tolerance: 1,
        first_wait_ms: 5_000,
        wait_min_ms: 300,
        wait_max_ms: 12_000,
        patience_ms: 240_000,
    };
    /// A satellite modem with a session every 40 s: what was asked for comes one message a session.
    pub const SATELLITE: Self = Self {
        chunk: 256,
        window_min: 32,
        window_max: 32,
        tolerance: 4,
        first_wait_ms: 300_000,
        wait_min_ms: 200_000,
        wait_max_ms: 3_600_000,
        patience_ms: 6 * 3_600_000,
    };
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send this and ask again.
    Send(Message),
    /// Nothing before this time, unless a message comes.
    Wait(u64),
    /// Everything came.
    Done,
    /// It failed.
    Failed(Failure),
}

/// Why a transfer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of use came for the time of its patience.
    Silent,
    /// The other end does not have the file.
    Absent,
    /// The other end asks to come again after so many seconds.
    Later(u16),
}

/// What a message was worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worth {
    /// A chunk that was missing, and whether it is the last of the file.
    New(u32, Vec<u8>, bool),
    /// A chunk that is here already.
    Known,
    /// Not about this transfer.
    Other,
}

/// A transfer.
#[derive(Debug)]
pub struct Pull {
    name: Name,
    tag: u16,
    settings: Settings,
    /// Never asked for, ascending.
    todo: VecDeque<Range<u32>>,
    /// Asked for and lost.
    lost: BTreeSet<u32>,
    /// Asked for, in that order, and how many later ones came.
    out: VecDeque<(u32, u8)>,
    /// The length is not known: chunks beyond the last do not exist.
    open: bool,
    anew: bool,
    failed: Option<Failure>,
    wait_ms: u64,
    deadline_ms: u64,
    useful_ms: u64,
    came_ms: Option<u64>,
    asked_ms: Option<u64>,
    /// Smoothed time for eight chunks, and from a request on an idle line to its first chunk.
    eight_ms: Option<u64>,
    round_ms: Option<u64>,
}

impl Pull {
    /// A transfer of chunks; `tag` should differ from that of the last one.
    pub fn new(name: Name, wanted: Vec<Range<u32>>, tag: u16, settings: Settings, now_ms: u64) -> Self {
        Self {
            name,
            tag,
            settings,
            todo: wanted.into_iter().filter(|range| !range.is_empty()).collect(),
            lost: BTreeSet::new(),
            out: VecDeque::new(),
            open: false,
            anew: true,
            failed: None,
            wait_ms: settings.first_wait_ms,
            deadline_ms: now_ms,
            useful_ms: now_ms,
            came_ms: None,
            asked_ms: None,
            eight_ms: None,
            round_ms: None,
        }
    }

    /// A transfer of a whole file of unknown length, of at most so many chunks.
    pub fn whole(name: Name, most: u32, tag: u16, settings: Settings, now_ms: u64) -> Self {
        let mut pull = Self::new(name, Vec::new(), tag, settings, now_ms);
        pull.todo.push_back(0..most);
        pull.open = true;
        pull
    }

    /// Chunks to ask for ahead: what comes in two rounds and while the device is busy, so that the line never idles.
    fn window(&self) -> u32 {
        let Settings { window_min, window_max, .. } = self.settings;
        let (Some(round), Some(eight)) = (self.round_ms, self.eight_ms) else { return window_min };
        let ahead = 8 * (2 * round + BUSY_MS) / eight.max(1) + 8;
        u32::try_from(ahead).unwrap_or(u32::MAX).clamp(window_min, window_max)
    }

    /// Takes a message.
    pub fn take(&mut self, message: &Message, now_ms: u64) -> Worth {
        match message {
            Message::Chunk { tag, index, last, bytes } if *tag == self.tag => {
                self.chunk(*index, bytes, *last, now_ms)
            }
            Message::None { tag, after_s } if *tag == self.tag => {
                self.failed = Some(if *after_s == 0 { Failure::Absent } else { Failure::Later(*after_s) });
                Worth::Known
            }
            Message::Chunk { .. } | Message::None { .. } | Message::Want(_) => Worth::Other,
            Message::Announcement(_) | Message::Other(_) => Worth::Other,
        }
    }

    fn chunk(&mut self, index: u32, bytes: &[u8], last: bool, now_ms: u64) -> Worth {
        let place = self.out.iter().position(|(asked, _)| *asked == index);
        let late = self.lost.remove(&index);
        if place.is_none() && !late {
            return Worth::Known;
        }
        // A chunk that is too short would leave a hole; one that is too long is no chunk.
        let chunk = usize::from(self.settings.chunk);
        if bytes.len() > chunk || (bytes.len() < chunk && !last) {
            self.lost.insert(index);
            return Worth::Known;
        }
        self.measure(now_ms);
        if let Some(place) = place {
            self.out.remove(place);
            self.passed(place);
        }
        if last && self.open {
            self.ends_after(index);
        }
        Worth::New(index, bytes.to_vec(), last)
    }

    fn measure(&mut self, now_ms: u64) {
        if let Some(asked) = self.asked_ms.take() {
            let round = now_ms.saturating_sub(asked);
            self.round_ms = Some(self.round_ms.map_or(round, |old| (3 * old + round) / 4));
        } else if let Some(came) = self.came_ms {
            let gap = now_ms.saturating_sub(came);
            // Chunks that come in bursts make it no less than it is.
            self.eight_ms = Some(self.eight_ms.map_or(8 * gap, |old| old - old / 8 + gap));
        }
        self.came_ms = Some(now_ms);
        self.useful_ms = now_ms;
        let usual = 2 * self.round_ms.unwrap_or(0) + self.eight_ms.unwrap_or(self.settings.first_wait_ms);
        self.wait_ms = usual.clamp(self.settings.wait_min_ms, self.settings.wait_max_ms);
        self.deadline_ms = now_ms + self.wait_ms;
    }

    /// Those that were asked for before number `place` were overtaken once more.
    fn passed(&mut self, place: usize) {
        for (_, passed) in self.out.iter_mut().take(place) {
            *passed = passed.saturating_add(1);
        }
        let (tolerance, lost) = (self.settings.tolerance, &mut self.lost);
        self.out.retain(|(index, passed)| {
            let keep = *passed < tolerance;
            if !keep {
                lost.insert(*index);
            }
            keep
        });
    }

    fn ends_after(&mut self, index: u32) {
        self.open = false;
        self.todo.retain_mut(|range| {
            range.end = range.end.min(index + 1);
            range.start < range.end
        });
        self.out.retain(|(asked, _)| *asked <= index);
        self.lost.retain(|asked| *asked <= index);
    }

    /// What to do at this time.
    pub fn poll(&mut self, now_ms: u64) -> Next {
        if let Some(failure) = self.failed {
            return Next::Failed(failure);
        }
        if self.todo.is_empty() && self.lost.is_empty() && self.out.is_empty() {
            return Next::Done;
        }
        if now_ms.saturating_sub(self.useful_ms) >= self.settings.patience_ms {
            return Next::Failed(Failure::Silent);
        }
        if !self.out.is_empty() && now_ms >= self.deadline_ms {
            // Whatever was under way is lost; so may be the request itself.
            self.lost.extend(self.out.drain(..).map(|(index, _)| index));
            self.wait_ms = (2 * self.wait_ms).min(self.settings.wait_max_ms);
            self.anew = true;
            self.asked_ms = None;
            self.came_ms = None;
        }
        let window = self.window();
        let waiting = u32::try_from(self.out.len()).unwrap_or(u32::MAX);
        let more = !(self.todo.is_empty() && self.lost.is_empty());
        if more && waiting <= window / 2 {
            return Next::Send(self.ask(window - waiting, now_ms));
        }
        Next::Wait(self.deadline_ms.min(self.useful_ms + self.settings.patience_ms))
    }

    fn ask(&mut self, most: u32, now_ms: u64) -> Message {
        if self.out.is_empty() {
            self.asked_ms = Some(now_ms);
            self.deadline_ms = now_ms + self.wait_ms;
        }
        let first = [self.lost.first().copied(), self.todo.front().map(|range| range.start)];
        let base = first.into_iter().flatten().min().unwrap_or(0);
        let within = |index: u32| index - base < (MAX_MAP * 8) as u32;
        let mut map: Vec<u8> = Vec::new();
        for _ in 0..most {
            let Some(index) = self.choose(within) else { break };
            let bit = (index - base) as usize;
            map.resize(map.len().max(bit / 8 + 1), 0);
            map[bit / 8] |= 1 << (bit % 8);
            self.out.push_back((index, 0));
        }
        let want =
            Want { tag: self.tag, anew: self.anew, chunk: self.settings.chunk, name: self.name, base, map };
        self.anew = false;
        Message::Want(want)
    }

    /// The next chunk to ask for, lost ones first.
    fn choose(&mut self, within: impl Fn(u32) -> bool) -> Option<u32> {
        if let Some(index) = self.lost.first().copied().filter(|index| within(*index)) {
            self.lost.remove(&index);
            return Some(index);
        }
        let range = self.todo.front_mut()?;
        let index = range.start;
        if !within(index) {
            return None;
        }
        range.start += 1;
        if range.start >= range.end {
            self.todo.pop_front();
        }
        Some(index)
    }
}

#[cfg(test)]
#[path = "pull_tests.rs"]
mod tests;
