//! What a running node notices for its operators: lag, progress of a copy, troubles, a second machine under one identity.
//!
//! Nothing here decides anything.

use super::seal::Stamp;
use crate::ha::register::{Lsn, VoterId};
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};

/// Samples of the log's end that are kept; beyond that every second one is dropped.
const SAMPLES_MAX: usize = 512;
/// Between two samples, milliseconds.
const SAMPLE_MS: u64 = 100;
/// So many changes back to an earlier life are no accident of the network's order, nor that life's few first words said again.
const ALTERNATIONS: u32 = 16;
/// How long a second machine is remembered after it was last heard, milliseconds.
const REMEMBERED_MS: u64 = 60_000;

/// What was noticed.
#[derive(Default)]
pub struct Watch {
    troubles: RefCell<BTreeMap<&'static str, String>>,
    lag: RefCell<Lag>,
    copy: Cell<Option<Progress>>,
    lives: RefCell<BTreeMap<VoterId, Lives>>,
}

/// Since when a standby lacks what its primary wrote.
#[derive(Default)]
struct Lag(VecDeque<(u64, Lsn)>);

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    began_ms: u64,
    now_ms: u64,
    bytes: u64,
    total: u64,
}

/// The lives that speak under one identity.
#[derive(Clone, Copy, Default)]
struct Lives {
    current: Stamp,
    earlier: Stamp,
    returns: u32,
    returned_ms: u64,
}

impl Watch {
    /// Something does not work; the same kind replaces what was said before.
    pub fn trouble(&self, kind: &'static str, text: String) {
        self.troubles.borrow_mut().insert(kind, text);
    }

    /// It works again.
    pub fn works(&self, kind: &'static str) {
        self.troubles.borrow_mut().remove(kind);
    }

    /// What does not work, by kind.
    pub fn troubles(&self) -> Value {
        json!(*self.troubles.borrow())
    }

    /// The primary's log ends here; the standby's disk has it up to `flushed`.
    pub fn note_log(&self, now_ms: u64, end: Lsn, flushed: Option<Lsn>) {
        self.lag.borrow_mut().note(now_ms, end, flushed);
    }

    /// Milliseconds for which the standby has not had all of the log.
    pub fn lag_ms(&self, now_ms: u64) -> u64 {
        self.lag.borrow().0.front().map_or(0, |(at, _)| now_ms.saturating_sub(*at))
    }

    /// A copy is under way, or none any more.
    pub fn note_copy(&self, now_ms: u64, sent: Option<(u64, u64)>) {
        let began_ms = self.copy.get().map_or(now_ms, |copy| copy.began_ms);
        self.copy.set(sent.map(|(bytes, total)| Progress { began_ms, now_ms, bytes, total }));
    }

    /// The copy that is under way.
    pub fn copy(&self) -> Value {
        self.copy.get().map_or(Value::Null, |copy| copy.show())
    }

    /// Somebody spoke under this identity at this moment of a life; says whether two machines do so.
    pub fn note_life(&self, from: VoterId, stamp: Stamp, now_ms: u64) -> bool {
        self.lives.borrow_mut().entry(from).or_default().note(stamp, now_ms)
    }

    /// Who is spoken for by two machines.
    pub fn doubles(&self, now_ms: u64) -> Vec<VoterId> {
        let lives = self.lives.borrow();
        lives.iter().filter(|(_, lives)| lives.doubled(now_ms)).map(|(voter, _)| *voter).collect()
    }
}

impl Lag {
    fn note(&mut self, now_ms: u64, end: Lsn, flushed: Option<Lsn>) {
        let flushed = flushed.unwrap_or(0);
        while self.0.front().is_some_and(|(_, end)| *end <= flushed) {
            self.0.pop_front();
        }
        let due = self.0.back().is_none_or(|(at, last)| *last < end && now_ms >= at + SAMPLE_MS);
        if end > flushed && due {
            self.0.push_back((now_ms, end));
        }
        if self.0.len() > SAMPLES_MAX {
            let mut odd = false;
            self.0.retain(|_| {
                odd = !odd;
                odd
            });
        }
    }
}

impl Progress {
    fn show(&self) -> Value {
        let rate = (self.bytes * 1000).checked_div(self.now_ms - self.began_ms);
        let left = self.total.saturating_sub(self.bytes);
        let eta = rate.and_then(|rate| left.checked_div(rate));
        json!({ "bytes": self.bytes, "total": self.total, "bytes_per_s": rate, "eta_s": eta })
    }
}

impl Lives {
    fn note(&mut self, stamp: Stamp, now_ms: u64) -> bool {
        let repeated = [self.current, self.earlier]
            .iter()
            .any(|known| known.session == stamp.session && stamp.at_us <= known.at_us);
        if stamp.session == self.current.session || repeated {
            self.current.at_us = self.current.at_us.max(if repeated { 0 } else { stamp.at_us });
            return self.doubled(now_ms);
        }
        if stamp.session == self.earlier.session {
            let lately = now_ms.saturating_sub(self.returned_ms) <= REMEMBERED_MS;
            self.returns = if lately { self.returns + 1 } else { 1 };
            self.returned_ms = now_ms;
        }
        (self.earlier, self.current) = (self.current, stamp);
        self.doubled(now_ms)
    }

    fn doubled(&self, now_ms: u64) -> bool {
        self.returns >= ALTERNATIONS && now_ms.saturating_sub(self.returned_ms) <= REMEMBERED_MS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_counts_from_the_oldest_byte_that_the_standby_lacks() {
        let watch = Watch::default();
        watch.note_log(1_000, 100, Some(100));
        assert_eq!(watch.lag_ms(5_000), 0);
        watch.note_log(5_000, 200, Some(100));
        watch.note_log(6_000, 300, Some(100));
        assert_eq!(watch.lag_ms(7_000), 2_000);
        watch.note_log(7_000, 300, Some(250));
        assert_eq!(watch.lag_ms(7_000), 1_000);
        watch.note_log(8_000, 300, Some(300));
        assert_eq!(watch.lag_ms(8_000), 0);
        // However long it lasts, little is kept, and the oldest stays.
        (0..10_000).for_each(|at| watch.note_log(10_000 + 100 * at, 400 + at, Some(300)));
        assert!(watch.lag.borrow().0.len() <= SAMPLES_MAX);
        assert_eq!(watch.lag_ms(20_000), 10_000);
    }

    #[test]
    fn a_restart_is_no_second_machine_but_two_that_alternate_are() {
        let watch = Watch::default();
        let stamp = |session, at_us| Stamp { session, at_us };
        for (at, life) in [(1, 7), (2, 7), (3, 8), (4, 7), (5, 8), (6, 9), (7, 9)] {
            assert!(!watch.note_life(VoterId(1), stamp(life, at), at), "{at}");
        }
        for at in 10..60 {
            watch.note_life(VoterId(2), stamp(7 + at % 2, at), at);
            // What was said once and is said again is no second machine.
            watch.note_life(VoterId(3), if at % 2 == 0 { stamp(7, 2) } else { stamp(8, at) }, at);
        }
        assert_eq!(watch.doubles(60), [VoterId(2)]);
        assert!(watch.doubles(100_000).is_empty());
    }

    #[test]
    fn a_copy_has_a_rate_and_an_end() {
        let watch = Watch::default();
        assert_eq!(watch.copy(), Value::Null);
        watch.note_copy(1_000, Some((0, 1_000)));
        watch.note_copy(3_000, Some((400, 1_000)));
        assert_eq!(watch.copy(), json!({ "bytes": 400, "total": 1000, "bytes_per_s": 200, "eta_s": 3 }));
        watch.note_copy(4_000, None);
        assert_eq!(watch.copy(), Value::Null);
    }
}
