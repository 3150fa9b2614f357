//! How much a carrier may carry, when, and what that costs: per day and month, within hours, at most so fast, at a price.
//! Pure; times are seconds since 1970, days and months those of UTC. Knows nothing of how bytes are carried.

use serde::{Deserialize, Serialize};

const DAY_S: u64 = 24 * 3600;
const MIB: u64 = 1 << 20;
/// Pauses that are followed before a carrier counts as closed for good: a month's end, a day's, and opening hours.
const PAUSES_MAX: usize = 8;
/// Stretches that a forecast looks over: more than ten years of days with a pause each.
const STRETCHES_MAX: usize = 8_000;

/// The other node of a pair, as counts and words name it; no carrier is called so.
pub const PEER: &str = "peer";

/// A carrier and how it may be used. Of several, the first that may be used and can be reached is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CarrierSettings {
    /// Unique name, as `satellite`.
    pub name: String,
    /// A source, as in [`crate::device::UpdateSettings`].
    pub source: String,
    /// Most KiB in a day.
    #[serde(default)]
    pub day_kib: Option<u64>,
    /// Most KiB in a month.
    #[serde(default)]
    pub month_kib: Option<u64>,
    /// Most kbit in a second.
    #[serde(default)]
    pub rate_kbit: Option<u32>,
    /// From which hour to which it may be used, UTC; `[22, 6]` is at night, none is always.
    #[serde(default)]
    pub hours: Option<[u8; 2]>,
    /// What it costs.
    #[serde(default)]
    pub price: Option<Price>,
}

/// What bytes cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Price {
    /// Currency, as `EUR`.
    pub currency: String,
    /// Thousandths of it for a MiB.
    pub millis_per_mib: u64,
}

impl Price {
    /// What so many bytes cost, as `27.50 EUR`.
    pub fn of(&self, bytes: u64) -> String {
        let millis = (u128::from(bytes) * u128::from(self.millis_per_mib)).div_ceil(MIB.into());
        let cents = millis.div_ceil(10);
        format!("{}.{:02} {}", cents / 100, cents % 100, self.currency)
    }
}

/// A time as budgets see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment {
    /// Days since 1970.
    day: u64,
    /// Months since the year 0.
    month: u64,
    /// Days until the next month.
    left: u64,
    /// Seconds of the day.
    second: u64,
}

impl Moment {
    /// Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`, for days after 1970.
    fn of(now_s: u64) -> Self {
        let day = now_s / DAY_S;
        let month_of = |day: u64| {
            let z = day + 719_468;
            let (era, of_era) = (z / 146_097, z % 146_097);
            let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
            let of_year = of_era - (365 * year + year / 4 - year / 100);
            let shifted = (5 * of_year + 2) / 153;
            let month = if shifted < 10 { shifted + 2 } else { shifted - 10 };
            (year + era * 400 + u64::from(month < 2)) * 12 + month
        };
        let month = month_of(day);
        let left = (1..=31).find(|days| month_of(day + days) != month).unwrap_or(31);
        Self { day, month, left, second: now_s % DAY_S }
    }
}

/// What was used of a carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Day that is counted, days since 1970.
    pub day: u64,
    /// Bytes on it.
    pub day_bytes: u64,
    /// Month that is counted, months since the year 0.
    pub month: u64,
    /// Bytes in it.
    pub month_bytes: u64,
}

impl Used {
    /// What counts at a time. A clock that goes back begins nothing anew.
    pub fn at(mut self, now_s: u64) -> Self {
        let now = Moment::of(now_s);
        if now.day > self.day {
            (self.day, self.day_bytes) = (now.day, 0);
        }
        if now.month > self.month {
            (self.month, self.month_bytes) = (now.month, 0);
        }
        self
    }

    /// Counts bytes.
    pub fn add(&mut self, now_s: u64, bytes: u64) {
        *self = self.at(now_s);
        self.day_bytes = self.day_bytes.saturating_add(bytes);
        self.month_bytes = self.month_bytes.saturating_add(bytes);
    }
}

/// Why a carrier is not used for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The month's budget is spent.
    Month,
    /// The day's budget is spent.
    Day,
    /// It is outside its hours.
    Hours,
}

impl Why {
    /// In words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Month => "this month's budget is spent",
            Self::Day => "this day's budget is spent",
            Self::Hours => "it is outside its hours",
        }
    }
}

/// Whether a carrier may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes, for so many bytes; none: for as many as there are.
    Go(Option<u64>),
    /// Not for so many seconds, and why.
    Wait(u64, Why),
}

impl CarrierSettings {
    /// What is wrong with these settings.
    ///
    /// # Errors
    /// In words, with what it must be.
    pub fn check(&self) -> Result<(), String> {
        let letters = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.is_empty() || self.name.len() > 32 || !self.name.chars().all(letters) {
            return Err(format!("`{}` is no name: 1 to 32 letters, digits and `-`", self.name));
        }
        if self.name == PEER {
            return Err(format!("`{PEER}` is the other node of a pair; a carrier needs another name"));
        }
        if self.day_kib == Some(0) || self.month_kib == Some(0) || self.rate_kbit == Some(0) {
            return Err("budgets and rates must be 1 or more; remove the carrier to not use it".into());
        }
        if let Some([from, to]) = self.hours
            && (from > 23 || to > 24 || from == to)
        {
            return Err(format!("hours [{from}, {to}] must be two different hours, 0 to 23 and 0 to 24"));
        }
        match &self.price {
            Some(price) if price.currency.len() != 3 => {
                Err(format!("currency `{}` must be three letters, as EUR", price.currency))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Bytes a second at most.
    pub fn rate_bytes(&self) -> Option<u64> {
        self.rate_kbit.map(|kbit| u64::from(kbit) * 125)
    }

    fn left(&self, used: Used) -> Option<u64> {
        let left =
            |kib: Option<u64>, bytes: u64| kib.map(|kib| kib.saturating_mul(1024).saturating_sub(bytes));
        let both = [left(self.day_kib, used.day_bytes), left(self.month_kib, used.month_bytes)];
        both.into_iter().flatten().min()
    }

    /// Until when it is not used, and why.
    fn pause(&self, used: Used, now_s: u64) -> Option<(u64, Why)> {
        let (now, used) = (Moment::of(now_s), used.at(now_s));
        let midnight = now_s - now.second + DAY_S;
        let spent = |kib: Option<u64>, bytes: u64| kib.is_some_and(|kib| bytes >= kib.saturating_mul(1024));
        // Used in a day or month that this clock has not reached: it will be counted from there.
        let ahead = |counted: u64, now: u64, unit_s: u64| counted.saturating_sub(now) * unit_s;
        if spent(self.month_kib, used.month_bytes) {
            let months = ahead(used.month, now.month, 31 * DAY_S);
            return Some((midnight + (now.left - 1) * DAY_S + months, Why::Month));
        }
        if spent(self.day_kib, used.day_bytes) {
            return Some((midnight + ahead(used.day, now.day, DAY_S), Why::Day));
        }
        let [from, to] = self.hours?.map(|hour| u64::from(hour) * 3600);
        let open =
            if from < to { (from..to).contains(&now.second) } else { now.second >= from || now.second < to };
        let opens = if now.second < from { now_s - now.second + from } else { midnight + from };
        (!open).then_some((opens, Why::Hours))
    }

    /// Whether it may be used now.
    pub fn judge(&self, used: Used, now_s: u64) -> Verdict {
        let Some((mut until_s, why)) = self.pause(used, now_s) else {
            return Verdict::Go(self.left(used.at(now_s)));
        };
        for _ in 0..PAUSES_MAX {
            match self.pause(used, until_s) {
                Some((later_s, _)) => until_s = later_s,
                None => break,
            }
        }
        Verdict::Wait(until_s.saturating_sub(now_s), why)
    }

    /// Seconds until the hours or the day end.
    fn stretch(&self, now_s: u64) -> u64 {
        let second = now_s % DAY_S;
        let closes = self.hours.map(|[_, to]| u64::from(to) * 3600).filter(|to| *to > second);
        closes.unwrap_or(DAY_S).min(DAY_S) - second
    }

    /// Seconds until so many bytes have come, if the line itself carries `line_bytes` a second; `None` if neither line nor
    /// settings say how fast it is, or if it takes more than about ten years.
    pub fn forecast_s(&self, mut used: Used, now_s: u64, bytes: u64, line_bytes: Option<u64>) -> Option<u64> {
        let rate = [line_bytes, self.rate_bytes()].into_iter().flatten().min()?.max(1);
        let (mut at_s, mut left) = (now_s, bytes);
        for _ in 0..STRETCHES_MAX {
            if left == 0 {
                return Some(at_s - now_s);
            }
            match self.judge(used, at_s) {
                Verdict::Wait(seconds, _) => at_s += seconds.max(1),
                Verdict::Go(allowed) => {
                    let most = self.stretch(at_s).saturating_mul(rate).min(allowed.unwrap_or(u64::MAX));
                    let now = left.min(most);
                    used.add(at_s, now);
                    at_s += now.div_ceil(rate).max(1);
                    left -= now;
                }
            }
        }
        None
    }
}

/// A span of time for people.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds.div_ceil(60)),
        7_200..=172_799 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days {} h", seconds / DAY_S, seconds % DAY_S / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 2026-01-31 22:00 UTC.
    const LATE_JANUARY: u64 = 1_769_896_800;

    fn carrier() -> CarrierSettings {
        CarrierSettings {
            name: "sat".into(),
            source: "serial:/dev/x".into(),
            day_kib: None,
            month_kib: None,
            rate_kbit: None,
            hours: None,
            price: None,
        }
    }

    #[test]
    fn days_and_months_are_those_of_the_calendar() {
        let moment = Moment::of(LATE_JANUARY);
        assert_eq!((moment.month, moment.left, moment.second), (2026 * 12, 1, 22 * 3600));
        let leap = Moment::of(1_709_164_800); // 2024-02-29
        assert_eq!((leap.month, leap.left, leap.second), (2024 * 12 + 1, 1, 0));
        assert_eq!(Moment::of(0).month, 1970 * 12);
        assert_eq!(
            (Moment::of(1_767_225_599).month, Moment::of(1_767_225_600).month),
            (2025 * 12 + 11, 2026 * 12)
        );
    }

    #[test]
    fn budgets_are_spent_and_begin_anew() {
        let settings = CarrierSettings { day_kib: Some(10), month_kib: Some(15), ..carrier() };
        let mut used = Used::default();
        assert_eq!(settings.judge(used, LATE_JANUARY), Verdict::Go(Some(10 << 10)));
        used.add(LATE_JANUARY, 9 << 10);
        assert_eq!(settings.judge(used, LATE_JANUARY), Verdict::Go(Some(1 << 10)));
        used.add(LATE_JANUARY, 1 << 10);
        assert_eq!(settings.judge(used, LATE_JANUARY), Verdict::Wait(7200, Why::Day));
        // The day ends, and so does the month.
        assert_eq!(settings.judge(used, LATE_JANUARY + 7200), Verdict::Go(Some(10 << 10)));
        // A clock that goes back a year gives nothing back.
        assert!(matches!(settings.judge(used, LATE_JANUARY - 365 * DAY_S), Verdict::Wait(..)));
        used.add(LATE_JANUARY, 5 << 10);
        assert_eq!(settings.judge(used, LATE_JANUARY), Verdict::Wait(7200, Why::Month));
    }

    #[test]
    fn hours_may_pass_midnight_and_wait_for_a_new_day() {
        let night = CarrierSettings { hours: Some([22, 6]), day_kib: Some(1), ..carrier() };
        assert_eq!(night.judge(Used::default(), LATE_JANUARY), Verdict::Go(Some(1024)));
        assert_eq!(night.judge(Used::default(), LATE_JANUARY - 3600), Verdict::Wait(3600, Why::Hours));
        let day = CarrierSettings { hours: Some([8, 12]), day_kib: Some(1), ..carrier() };
        let mut used = Used::default();
        let morning = LATE_JANUARY - 13 * 3600;
        used.add(morning, 1024);
        // The budget is back at midnight, the hours at eight.
        assert_eq!(day.judge(used, morning), Verdict::Wait(23 * 3600, Why::Day));
    }

    #[test]
    fn forecasts_count_pauses_and_money() {
        let plain = CarrierSettings { rate_kbit: Some(8), ..carrier() };
        assert_eq!(plain.forecast_s(Used::default(), LATE_JANUARY, 60_000, None), Some(60));
        assert_eq!(plain.forecast_s(Used::default(), LATE_JANUARY, 60_000, Some(100)), Some(600));
        assert_eq!(carrier().forecast_s(Used::default(), LATE_JANUARY, 60_000, None), None);
        // 3 MiB at 1 MiB a day: two hours of January, a whole day, and the first seconds of the next.
        let budget = CarrierSettings { day_kib: Some(1024), rate_kbit: Some(8192), ..carrier() };
        assert_eq!(budget.forecast_s(Used::default(), LATE_JANUARY, 3 << 20, None), Some(7200 + DAY_S + 2));
        let never = CarrierSettings { day_kib: Some(1), rate_kbit: Some(1), ..carrier() };
        assert_eq!(never.forecast_s(Used::default(), LATE_JANUARY, 1 << 40, None), None);
        let price = Price { currency: "EUR".into(), millis_per_mib: 27_500 };
        assert_eq!(
            (price.of(1 << 20), price.of(1), price.of(0)),
            ("27.50 EUR".into(), "0.01 EUR".into(), "0.00 EUR".into())
        );
        assert_eq!(
            span(90) + ", " + &span(600) + ", " + &span(7500) + ", " + &span(300_000),
            "90 s, 10 min, 2 h 5 min, 3 days 11 h"
        );
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        assert!(carrier().check().is_ok());
        let bad = [
            CarrierSettings { name: "a b".into(), ..carrier() },
            CarrierSettings { name: PEER.into(), ..carrier() },
            CarrierSettings { day_kib: Some(0), ..carrier() },
            CarrierSettings { hours: Some([6, 6]), ..carrier() },
            CarrierSettings { hours: Some([24, 6]), ..carrier() },
            CarrierSettings {
                price: Some(Price { currency: "euros".into(), millis_per_mib: 1 }),
                ..carrier()
            },
        ];
        assert!(bad.iter().all(|settings| settings.check().is_err()));
    }

    proptest! {
        #[test]
        fn a_wait_ends_in_use_and_no_budget_is_overdrawn(
            now in 0u64..1 << 33, day in 1u64..100, month in 1u64..1000, from in 0u8..24, to in 0u8..25,
            asked in prop::collection::vec((0u64..100_000, 0u64..200_000), 1..40),
        ) {
            prop_assume!(from != to);
            let settings =
                CarrierSettings { day_kib: Some(day), month_kib: Some(month), hours: Some([from, to]), ..carrier() };
            let (mut used, mut at_s) = (Used::default(), now);
            for (later, bytes) in asked {
                at_s += later;
                if let Verdict::Wait(seconds, _) = settings.judge(used, at_s) {
                    at_s += seconds;
                }
                let Verdict::Go(Some(allowed)) = settings.judge(used, at_s) else {
                    return Err(TestCaseError::fail("a wait does not end in use"));
                };
                used.add(at_s, bytes.min(allowed));
                prop_assert!(used.day_bytes <= day << 10 && used.month_bytes <= month << 10);
            }
        }
    }
}
