//! Whose pieces are sent next, to devices that ask for them over a broker. Pure: requests and the time in, parts out.
//!
//! Each device has the requests of the latest session in each of its two lanes, few at a time; lanes and devices take turns, message by message, so that a
//! greedy one costs the others nothing. When too many are served at once, further ones are told when to come again.

use formats::pull::{Get, PART_HEADER, Tag};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Requests of a session that are kept; the oldest goes for a new one.
const REQUESTS_MAX: usize = 2;
/// A device that asked for nothing for so long has gone.
const GONE: Duration = Duration::from_secs(5);
/// What a device that comes too much is told to wait, seconds: least, and how far spread.
const BUSY_S: u32 = 10;
const BUSY_SPREAD_S: u32 = 20;

/// A part of a file that is to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// To whom.
    pub device: String,
    /// For which request.
    pub get: Get,
    /// Number of the piece.
    pub index: u32,
    /// Where in the piece.
    pub offset: u32,
    /// Most bytes.
    pub bytes: usize,
}

struct Job {
    get: Get,
    until: Duration,
    /// What is left of the pieces, last first.
    left: Vec<u32>,
    offset: u32,
}

struct Device {
    jobs: VecDeque<Job>,
    /// Session that had the last turn.
    served: u32,
    heard: Duration,
}

/// The devices that are served.
pub struct Queue {
    devices: BTreeMap<String, Device>,
    turns: VecDeque<String>,
    devices_max: usize,
    refused: u32,
}

impl Queue {
    /// Nobody yet; at most `devices_max` at once.
    pub fn new(devices_max: usize) -> Self {
        Self { devices: BTreeMap::new(), turns: VecDeque::new(), devices_max, refused: 0 }
    }

    /// Takes a request.
    ///
    /// # Errors
    /// Seconds that the device is to wait, if too many are served already.
    pub fn take(&mut self, device: &str, get: Get, now: Duration) -> Result<(), u32> {
        self.devices.retain(|_, known| !known.jobs.is_empty() || known.heard + GONE > now);
        if !self.devices.contains_key(device) && self.devices.len() >= self.devices_max {
            self.refused = self.refused.wrapping_add(1);
            return Err(BUSY_S + self.refused.wrapping_mul(7) % BUSY_SPREAD_S);
        }
        let fresh = || Device { jobs: VecDeque::new(), served: 0, heard: now };
        let known = self.devices.entry(device.to_owned()).or_insert_with(fresh);
        known.jobs.retain(|job| !get.tag.ends(&job.get.tag));
        known.heard = now;
        // One that came twice is answered once.
        if known.jobs.iter().any(|job| job.get.tag == get.tag) {
            return Ok(());
        }
        let same = |job: &Job| job.get.tag.session == get.tag.session;
        while known.jobs.iter().filter(|job| same(job)).count() >= REQUESTS_MAX {
            let Some(oldest) = known.jobs.iter().position(same) else { break };
            known.jobs.remove(oldest);
        }
        let mut left: Vec<u32> = get.pieces().collect();
        left.reverse();
        let until = now + Duration::from_secs(get.expiry_s.into());
        known.jobs.push_back(Job { get, until, left, offset: 0 });
        if !self.turns.iter().any(|turn| turn == device) {
            self.turns.push_back(device.to_owned());
        }
        Ok(())
    }

    /// What is to be sent next.
    pub fn next(&mut self, now: Duration) -> Option<Due> {
        while let Some(device) = self.turns.pop_front() {
            let Some(known) = self.devices.get_mut(&device) else { continue };
            known.jobs.retain(|job| job.until > now && !job.left.is_empty());
            let other = known.jobs.iter().position(|job| job.get.tag.session != known.served);
            let Some(job) = known.jobs.get_mut(other.unwrap_or(0)) else { continue };
            known.served = job.get.tag.session;
            let Some(&index) = job.left.last() else { continue };
            let room = usize::from(job.get.part_bytes) - PART_HEADER;
            let piece = job.get.piece.bytes();
            let bytes = room.min(piece.saturating_sub(job.offset) as usize);
            let due = Due { device: device.clone(), get: job.get.clone(), index, offset: job.offset, bytes };
            job.offset += u32::try_from(bytes).unwrap_or(piece);
            if job.offset >= piece {
                job.left.pop();
                job.offset = 0;
            }
            self.turns.push_back(device);
            return Some(due);
        }
        None
    }

    /// The piece that `due` is of ends with it, as the file does.
    pub fn ended(&mut self, due: &Due) {
        if let Some(known) = self.devices.get_mut(&due.device) {
            for job in known.jobs.iter_mut().filter(|job| job.get.tag == due.get.tag) {
                if job.left.last() == Some(&due.index) && job.offset > 0 {
                    job.left.pop();
                    job.offset = 0;
                }
            }
        }
    }

    /// Nothing more of a request can be sent: what it asks for is not there.
    pub fn drop_request(&mut self, device: &str, tag: Tag) {
        if let Some(known) = self.devices.get_mut(device) {
            known.jobs.retain(|job| job.get.tag != tag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::object::BlockSize;
    use formats::pull::{File, Lane};

    const NOW: Duration = Duration::from_secs(100);

    fn get(session: u32, number: u32, pieces: std::ops::Range<u64>) -> Get {
        let tag = Tag { session, number };
        let piece = BlockSize::KIB_1;
        let mut get = Get {
            tag,
            expiry_s: 60,
            part_bytes: 600,
            count: 0,
            file: File::Roots,
            piece,
            first: 0,
            map: vec![],
        };
        get.want(pieces);
        get
    }

    fn all(queue: &mut Queue) -> Vec<(String, u32, u32, usize)> {
        std::iter::from_fn(|| queue.next(NOW))
            .map(|due| (due.device, due.index, due.offset, due.bytes))
            .collect()
    }

    #[test]
    fn devices_take_turns_and_pieces_are_cut_to_messages() {
        let mut queue = Queue::new(10);
        queue.take("a", get(1, 1, 0..2), NOW).unwrap();
        queue.take("b", get(1, 1, 7..8), NOW).unwrap();
        queue.take("b", get(1, 1, 7..8), NOW).unwrap();
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let expected = [(&a, 0, 0), (&b, 7, 0), (&a, 0, 574), (&b, 7, 574), (&a, 1, 0), (&a, 1, 574)]
            .map(|(name, index, offset)| (name.clone(), index, offset, if offset == 0 { 574 } else { 450 }));
        assert_eq!(all(&mut queue), expected);
    }

    #[test]
    fn a_new_session_ends_the_old_one_and_the_oldest_request_goes() {
        let mut queue = Queue::new(10);
        for number in 1..=3 {
            queue.take("a", get(1, number, u64::from(number)..u64::from(number) + 1), NOW).unwrap();
        }
        let indices = |queue: &mut Queue| {
            all(queue).into_iter().filter(|due| due.2 == 0).map(|due| due.1).collect::<Vec<_>>()
        };
        assert_eq!(indices(&mut queue), [2, 3]);
        queue.take("a", get(1, 4, 4..5), NOW).unwrap();
        queue.take("a", get(3, 1, 9..10), NOW).unwrap();
        assert_eq!(indices(&mut queue), [9]);
        queue.take("a", get(3, 2, 9..10), NOW).unwrap();
        assert_eq!(queue.next(NOW + Duration::from_secs(61)), None);
    }

    #[test]
    fn a_look_goes_on_beside_what_is_fetched() {
        let mut queue = Queue::new(10);
        let session = |lane: Lane| lane.session(8);
        queue.take("a", get(session(Lane::Bulk), 1, 0..3), NOW).unwrap();
        queue.take("a", get(session(Lane::Bulk), 2, 3..4), NOW).unwrap();
        queue.take("a", get(session(Lane::Small), 1, 7..9), NOW).unwrap();
        let order: Vec<u32> = all(&mut queue).into_iter().map(|due| due.1).collect();
        assert_eq!(order, [0, 7, 0, 7, 1, 8, 1, 8, 2, 2, 3, 3]);
    }

    #[test]
    fn ends_of_files_and_files_that_are_gone_end_the_work() {
        let mut queue = Queue::new(10);
        queue.take("a", get(1, 1, 0..2), NOW).unwrap();
        let due = queue.next(NOW).unwrap();
        queue.ended(&due);
        assert_eq!(queue.next(NOW).unwrap().index, 1);
        queue.drop_request("a", due.get.tag);
        assert_eq!(queue.next(NOW), None);
    }

    #[test]
    fn who_comes_too_much_is_told_to_wait_and_served_later() {
        let mut queue = Queue::new(2);
        for device in ["a", "b"] {
            queue.take(device, get(1, 1, 0..1), NOW).unwrap();
        }
        let waits: Vec<u32> = (0..20).map(|_| queue.take("c", get(1, 1, 0..1), NOW).unwrap_err()).collect();
        assert!(waits.iter().all(|wait| (BUSY_S..BUSY_S + BUSY_SPREAD_S).contains(wait)));
        assert!(waits.iter().collect::<std::collections::BTreeSet<_>>().len() > 10);
        all(&mut queue);
        queue.take("c", get(1, 2, 0..1), NOW + GONE).unwrap();
    }
}
