//! Which carrier is used now, how much of it, and what is left of its budgets. Pure: settings, counts and times in, a choice
//! with its reason out.

use formats::tariff::{CarrierSettings, PEER, Used, Verdict, span};
use std::collections::BTreeMap;

/// Counts are made durable after so many bytes, or a share of the day's budget, whichever is less.
const BOOKED_BYTES: u64 = 256 << 10;
const BOOKED_SHARE: u64 = 64;

/// How much of a carrier a job may take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; `None`: as many as there are.
    pub bytes: Option<u64>,
    /// Bytes a second; `None`: as fast as it goes.
    pub rate_bytes: Option<u64>,
}

/// What is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// No carrier has settings, or the operator named a source that is none of them.
    Free,
    /// This source, so much of it.
    Use(String, Limits),
    /// None for so many seconds; why.
    Wait(u64, String),
}

/// The carriers at a time.
#[derive(Clone, Copy, Debug)]
pub struct Table<'t> {
    /// The most wanted first.
    pub carriers: &'t [CarrierSettings],
    /// What each has carried, by name.
    pub used: &'t BTreeMap<String, Used>,
    /// Until when those that could not be reached are left alone, ms since the kernel started, by name.
    pub down: &'t BTreeMap<String, u64>,
    /// Seconds since 1970.
    pub now_s: u64,
    /// Milliseconds since the kernel started.
    pub now_ms: u64,
}

impl<'t> Table<'t> {
    /// The carrier with this source.
    pub fn of(&self, source: &str) -> Option<&'t CarrierSettings> {
        self.carriers.iter().find(|carrier| carrier.source == source)
    }

    fn used(&self, carrier: &CarrierSettings) -> Used {
        self.used.get(&carrier.name).copied().unwrap_or_default()
    }

    /// Whether budgets and hours let a carrier be used.
    pub fn judge(&self, carrier: &CarrierSettings) -> Verdict {
        carrier.judge(self.used(carrier), self.now_s)
    }

    /// What is used, for somebody who uses `current`.
    pub fn choose(&self, current: Option<&str>) -> Choice {
        if self.carriers.is_empty() || current.is_some_and(|source| self.of(source).is_none()) {
            return Choice::Free;
        }
        let mut waits = Vec::new();
        for carrier in self.carriers {
            let down_ms = self.down.get(&carrier.name).map_or(0, |until| until.saturating_sub(self.now_ms));
            match self.judge(carrier) {
                Verdict::Go(bytes) if down_ms == 0 => {
                    let limits = Limits { bytes, rate_bytes: carrier.rate_bytes() };
                    return Choice::Use(carrier.source.clone(), limits);
                }
                Verdict::Go(_) => {
                    waits.push((down_ms.div_ceil(1000), &carrier.name, "it could not be reached"))
                }
                Verdict::Wait(seconds, why) => waits.push((seconds, &carrier.name, why.words())),
            }
        }
        let seconds = waits.iter().map(|(seconds, ..)| *seconds).min().unwrap_or(0);
        let why: Vec<String> = waits
            .iter()
            .map(|(seconds, name, why)| format!("{name}: {why}, for {}", span(*seconds)))
            .collect();
        Choice::Wait(seconds, format!("no carrier may be used now ({})", why.join("; ")))
    }

    /// After how many bytes of a job's counts are made durable.
    pub fn booked(&self, source: &str) -> u64 {
        let day = self.of(source).and_then(|carrier| carrier.day_kib).map(|kib| kib.saturating_mul(1024));
        day.map_or(BOOKED_BYTES, |bytes| (bytes / BOOKED_SHARE).clamp(1, BOOKED_BYTES))
    }

    /// A sentence for each carrier: whether it may be used, what it has carried, and what the rest of a release takes on it.
    /// `rest`: the bytes, and the source and bytes a second of the transfer under way.
    pub fn words(&self, rest: Option<(u64, &str, u64)>) -> Vec<String> {
        let one = |carrier: &CarrierSettings| {
            let may = match self.judge(carrier) {
                Verdict::Go(_) if self.down.get(&carrier.name).is_some_and(|until| *until > self.now_ms) => {
                    "could not be reached".to_owned()
                }
                Verdict::Go(_) => "may be used".to_owned(),
                Verdict::Wait(seconds, why) => format!("waits {}: {}", span(seconds), why.words()),
            };
            let used = self.used(carrier).at(self.now_s);
            let of = |bytes: u64, most: Option<u64>| match most {
                Some(kib) => format!("{} of {kib} KiB", bytes.div_ceil(1024)),
                None => format!("{} KiB", bytes.div_ceil(1024)),
            };
            let (day, month) = (of(used.day_bytes, carrier.day_kib), of(used.month_bytes, carrier.month_kib));
            let rest = rest.map_or_else(String::new, |rest| self.rest(carrier, rest));
            format!(
                "Carrier {} ({}) {may}; {day} today, {month} this month{rest}.",
                carrier.name, carrier.source
            )
        };
        let brought = self.used.get(PEER).map(|used| used.at(self.now_s)).map(|used| {
            format!(
                "Carrier {PEER} (the other node of the pair) brought {} KiB today, {} KiB this month, for nothing.",
                used.day_bytes.div_ceil(1024),
                used.month_bytes.div_ceil(1024)
            )
        });
        self.carriers.iter().map(one).chain(brought).collect()
    }

    fn rest(&self, carrier: &CarrierSettings, (bytes, source, rate): (u64, &str, u64)) -> String {
        let line = (carrier.source == source && rate > 0).then_some(rate);
        let time = match carrier.forecast_s(self.used(carrier), self.now_s, bytes, line) {
            Some(seconds) => span(seconds),
            None => "an unknown time".to_owned(),
        };
        let money =
            carrier.price.as_ref().map_or_else(String::new, |price| format!(" and {}", price.of(bytes)));
        format!("; the {} KiB that are left take {time}{money} on it", bytes.div_ceil(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::tariff::Price;

    const NOON: u64 = 20_000 * 86_400 + 43_200;

    fn carrier(name: &str) -> CarrierSettings {
        CarrierSettings {
            name: name.into(),
            source: format!("source-of-{name}"),
            day_kib: None,
            month_kib: None,
            rate_kbit: None,
            hours: None,
            price: None,
        }
    }

    fn choose(
        carriers: &[CarrierSettings],
        used: &[(&str, u64)],
        down: &[(&str, u64)],
        current: Option<&str>,
    ) -> Choice {
        let count = |bytes| {
            let mut used = Used::default();
            used.add(NOON, bytes);
            used
        };
        let used = used.iter().map(|(name, bytes)| ((*name).to_owned(), count(*bytes))).collect();
        let down = down.iter().map(|(name, until)| ((*name).to_owned(), *until)).collect();
        Table { carriers, used: &used, down: &down, now_s: NOON, now_ms: 1000 }.choose(current)
    }

    #[test]
    fn the_first_that_may_be_used_and_answers_is() {
        let lan = carrier("lan");
        let sat = CarrierSettings { day_kib: Some(10), rate_kbit: Some(2), ..carrier("sat") };
        let both = [lan, sat];
        let lan = Choice::Use("source-of-lan".into(), Limits::default());
        let limits = |bytes| Limits { bytes: Some(bytes), rate_bytes: Some(250) };
        assert_eq!(choose(&[], &[], &[], None), Choice::Free);
        assert_eq!(choose(&both, &[], &[], Some("/media/stick")), Choice::Free);
        assert_eq!(choose(&both, &[], &[], None), lan);
        assert_eq!(choose(&both, &[], &[], Some("source-of-sat")), lan);
        // Down until later; down until before.
        let sat = |used: u64| Choice::Use("source-of-sat".into(), limits(10_240 - used));
        assert_eq!(choose(&both, &[("sat", 240)], &[("lan", 2000)], None), sat(240));
        assert_eq!(choose(&both, &[], &[("lan", 900)], None), lan);
        let Choice::Wait(seconds, why) = choose(&both, &[("sat", 10_240)], &[("lan", 61_000)], None) else {
            panic!()
        };
        assert_eq!(seconds, 60);
        assert!(why.contains("lan: it could not be reached, for 60 s"), "{why}");
        assert!(why.contains("sat: this day's budget is spent, for 12 h 0 min"), "{why}");
    }

    #[test]
    fn people_see_budgets_time_and_money() {
        let price = Some(Price { currency: "EUR".into(), millis_per_mib: 800_000 });
        let sat = CarrierSettings { month_kib: Some(300), rate_kbit: Some(8), price, ..carrier("sat") };
        let carriers = [carrier("lan"), sat];
        let (used, down) = Default::default();
        let table = Table { carriers: &carriers, used: &used, down: &down, now_s: NOON, now_ms: 0 };
        let words = table.words(Some((200 << 10, "source-of-lan", 1 << 10)));
        assert_eq!(
            words[0],
            "Carrier lan (source-of-lan) may be used; 0 KiB today, 0 KiB this month; the 200 KiB that are left take 4 min on it."
        );
        assert_eq!(
            words[1],
            "Carrier sat (source-of-sat) may be used; 0 KiB today, 0 of 300 KiB this month; the 200 KiB that are left take \
             4 min and 156.25 EUR on it."
        );
        assert!(table.words(None)[0].ends_with("0 KiB this month."));
        let mut brought = Used::default();
        brought.add(NOON, 3 << 10);
        let used = BTreeMap::from([(PEER.to_owned(), brought)]);
        let words = Table { used: &used, ..table }.words(None);
        let said =
            "Carrier peer (the other node of the pair) brought 3 KiB today, 3 KiB this month, for nothing.";
        assert_eq!(words.last().map(String::as_str), Some(said));
    }
}
