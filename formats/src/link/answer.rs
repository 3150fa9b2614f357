//! Who has the files: a queue of chunks that were asked for. It forgets all but the last request's file; who reads files
//! and sends is outside.

use super::message::{Message, Want};
use super::name::Name;
use std::collections::VecDeque;

/// Most chunks that wait: two full maps.
const QUEUE_MAX: usize = 512;

/// A chunk to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    /// The request's tag.
    pub tag: u16,
    /// The file.
    pub name: Name,
    /// Bytes of a chunk.
    pub chunk: u16,
    /// Which chunk.
    pub index: u32,
}

impl Job {
    /// Where the chunk begins in the file.
    pub fn offset(&self) -> u64 {
        u64::from(self.index) * u64::from(self.chunk)
    }

    /// The answer, given the file's length and the bytes there; `None` if the file has no such chunk.
    pub fn answer(&self, length: u64, bytes: Vec<u8>) -> Option<Message> {
        let end = self.offset() + bytes.len() as u64;
        let there = self.offset() < length || (length == 0 && self.index == 0);
        there.then_some(Message::Chunk { tag: self.tag, index: self.index, last: end >= length, bytes })
    }

    /// The answer where there is no such file.
    pub fn absent(&self) -> Message {
        Message::None { tag: self.tag, after_s: 0 }
    }
}

/// Chunks that were asked for and not sent.
#[derive(Debug, Default)]
pub struct Queue {
    jobs: VecDeque<Job>,
}

impl Queue {
    /// Takes a request.
    pub fn take(&mut self, want: &Want) {
        if want.anew || self.jobs.front().is_some_and(|job| job.tag != want.tag || job.name != want.name) {
            self.jobs.clear();
        }
        for index in want.chunks() {
            let job = Job { tag: want.tag, name: want.name, chunk: want.chunk, index };
            if self.jobs.len() < QUEUE_MAX && !self.jobs.contains(&job) {
                self.jobs.push_back(job);
            }
        }
    }

    /// The next chunk to send.
    pub fn pop(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Nothing more of what waits is of use: the file is not there.
    pub fn clear(&mut self) {
        self.jobs.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(tag: u16, base: u32, map: Vec<u8>) -> Want {
        Want { tag, anew: false, chunk: 16, name: Name::Roots, base, map }
    }

    fn drain(queue: &mut Queue) -> Vec<(u16, u32)> {
        std::iter::from_fn(|| queue.pop()).map(|job| (job.tag, job.index)).collect()
    }

    #[test]
    fn a_chunk_that_waits_is_not_queued_twice_and_a_new_transfer_ends_the_old() {
        let mut queue = Queue::default();
        queue.take(&want(1, 0, vec![0b111]));
        queue.take(&want(1, 2, vec![0b11]));
        assert_eq!(drain(&mut queue), [(1, 0), (1, 1), (1, 2), (1, 3)]);
        queue.take(&want(1, 0, vec![0xff]));
        queue.take(&want(2, 9, vec![1]));
        assert_eq!(drain(&mut queue), [(2, 9)]);
        queue.take(&want(2, 0, vec![0xff]));
        queue.take(&Want { anew: true, ..want(2, 3, vec![1]) });
        assert_eq!(drain(&mut queue), [(2, 3)]);
    }

    #[test]
    fn greed_is_bounded() {
        let mut queue = Queue::default();
        (0..100).for_each(|n| queue.take(&want(1, n * 256, vec![0xff; 32])));
        assert_eq!(drain(&mut queue).len(), QUEUE_MAX);
    }

    #[test]
    fn the_last_chunk_says_so_and_those_beyond_it_do_not_exist() {
        let job = |index| Job { tag: 1, name: Name::Roots, chunk: 16, index };
        let last = |message| matches!(message, Some(Message::Chunk { last: true, .. }));
        assert!(!last(job(0).answer(33, vec![0; 16])) && job(0).answer(33, vec![0; 16]).is_some());
        assert!(last(job(2).answer(33, vec![0; 1])) && last(job(1).answer(32, vec![0; 16])));
        assert!(last(job(0).answer(0, vec![])));
        assert_eq!((job(1).answer(16, vec![]), job(1).answer(0, vec![])), (None, None));
    }
}
