//! Which carrier is used for a look or a fetch, and what it has carried.

use super::{Effect, Outcome, State};
use crate::update::links::{Choice, Table};
use crate::update::policy;
use crate::update::state::Phase;
use formats::tariff::{PEER, Verdict};

impl State {
    /// Tells what time it is: seconds since 1970, milliseconds since the kernel started. The clock may be wrong; signed
    /// times are its lower bound.
    pub fn told(&mut self, now_s: u64, now_ms: u64) {
        self.live.clock = (now_s, now_ms);
    }

    /// The carriers that have settings, now.
    pub fn table(&self, now_ms: u64) -> Table<'_> {
        Table {
            carriers: self.facts.as_ref().map_or(&[], |facts| &facts.carriers),
            used: &self.memory.used,
            down: &self.live.down,
            now_s: self.live.clock.0.max(self.memory.watermark_s.into()),
            now_ms,
        }
    }

    /// Bytes of the job under way.
    pub(super) fn paid(&mut self, bytes: u64) {
        self.live.fetched += bytes;
        self.live.unbooked += bytes;
        let booked = self.source().map_or(0, |source| self.table(0).booked(&source));
        if self.live.unbooked >= booked {
            self.book_job();
        }
    }

    fn source(&self) -> Option<String> {
        match &self.memory.phase {
            Phase::Fetching(attempt) | Phase::Installing(attempt) => Some(attempt.source.clone()),
            Phase::Idle
            | Phase::Trial { .. }
            | Phase::Committing { .. }
            | Phase::Leaving { .. }
            | Phase::Returning { .. } => None,
        }
    }

    /// A job has ended: what it took counts.
    pub(super) fn book_job(&mut self) {
        let bytes = std::mem::take(&mut self.live.unbooked);
        if let Some(source) = self.source() {
            self.book(&source, bytes);
        }
    }

    /// So many bytes came over a source.
    pub(super) fn book(&mut self, source: &str, bytes: u64) {
        let table = self.table(0);
        let peer = (source == PEER).then(|| PEER.to_owned());
        let (name, now_s) = (table.of(source).map(|carrier| carrier.name.clone()).or(peer), table.now_s);
        if let (Some(name), 1..) = (name, bytes) {
            self.memory.used.entry(name).or_default().add(now_s, bytes);
        }
    }

    /// Takes the carrier for a fetch; whether there is one. Otherwise it is tried again when there is.
    pub(super) fn take_carrier(&mut self, now_ms: u64, out: &mut Outcome) -> bool {
        let Phase::Fetching(attempt) = &self.memory.phase else { return true };
        match self.table(now_ms).choose(Some(&attempt.source)) {
            Choice::Free if self.table(now_ms).carriers.is_empty() => {}
            Choice::Free => out.effects.push(Effect::Limit(Default::default())),
            Choice::Use(source, limits) => {
                if let Phase::Fetching(attempt) = &mut self.memory.phase
                    && attempt.source != source
                {
                    let version = attempt.plan.version.clone();
                    out.note("update-source", format!("version {version} now comes from {source}"));
                    attempt.source = source;
                }
                out.effects.push(Effect::Limit(limits));
            }
            Choice::Wait(seconds, why) => {
                self.live.working = false;
                self.live.retry_ms = Some(policy::reopened_ms(now_ms, seconds, self.seed()));
                self.live.stuck = Some(why);
                return false;
            }
        }
        true
    }

    /// A source could not be reached, or its budget has ended the job: another carrier is used if there is one.
    pub(super) fn unreachable(
        &mut self,
        why: String,
        retry_after: Option<u32>,
        now_ms: u64,
        out: &mut Outcome,
    ) {
        let source = self.source().filter(|_| matches!(self.memory.phase, Phase::Fetching(_)));
        if source.is_none_or(|source| !self.avoid(&source, retry_after, now_ms)) {
            return self.later(why, retry_after, now_ms);
        }
        self.live.working = false;
        self.live.failures += 1;
        self.fetch(now_ms, out);
    }

    /// Leaves a carrier alone for a while, unless its budget was what ended the job; false if the source is none.
    pub(super) fn avoid(&mut self, source: &str, retry_after: Option<u32>, now_ms: u64) -> bool {
        let table = self.table(now_ms);
        let Some(carrier) = table.of(source) else { return false };
        if let Verdict::Go(_) = table.judge(carrier) {
            let until = now_ms + policy::backoff_ms(self.live.failures + 1, retry_after, self.seed());
            let name = carrier.name.clone();
            self.live.down.insert(name, until);
        }
        true
    }
}
