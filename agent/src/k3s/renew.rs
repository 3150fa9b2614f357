//! When k3s is restarted so that it makes new certificates, purely.
//!
//! k3s signs certificates for a year and makes new ones when it starts, from 90 or, in newer versions, 120 days before the
//! first expires; nothing of that needs a link, a witness or the other node. They begin when the authority began, so a clock
//! that jumps back does them no harm, and where one jumps forward nothing is served until the restart, which is right then too.
//! The standby goes first, the primary ten days later, each only while the other serves, unless there is no time left.

use super::certificates::Validity;

const DAY_S: i64 = 86_400;
/// Days left at which the standby restarts: within the window of every version.
const STANDBY_DAYS: i64 = 85;
/// Days left at which the primary restarts.
const PRIMARY_DAYS: i64 = 75;
/// Days left at which a node restarts although the other does not serve: a short pause now, or an end later.
const ALONE_DAYS: i64 = 14;
/// Days left of an authority at which an operator hears of it; k3s does not renew those by itself.
const AUTHORITY_DAYS: i64 = 180;

/// What is known when it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Seconds since 1970 on the wall clock, right or not.
    pub now_s: i64,
    /// Whether this node is the database's primary.
    pub primary: bool,
    /// Whether the other node's API server is ready; `None` if nobody asked.
    pub peer_ready: Option<bool>,
}

/// Whether it is time to ask the other node.
pub fn near(validity: &Validity, now_s: i64) -> bool {
    days(validity.first_end_s, now_s) < STANDBY_DAYS
}

/// Whether a restart is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// It is not.
    No,
    /// It is, as soon as this node has the turn: the nodes take it in the datastore, so that they never restart at once even
    /// where a jump of their clocks makes both due.
    InTurn,
    /// It is, whatever the other node does.
    Now,
}

/// Whether a restart is due.
pub fn due(validity: &Validity, facts: &Facts) -> Due {
    let left = days(validity.first_end_s, facts.now_s);
    let own = if facts.primary { PRIMARY_DAYS } else { STANDBY_DAYS };
    match facts.peer_ready {
        _ if left < ALONE_DAYS => Due::Now,
        Some(true) if left < own => Due::InTurn,
        Some(_) | None => Due::No,
    }
}

/// What an operator should know.
pub fn words(validity: &Validity, now_s: i64) -> String {
    let left = days(validity.first_end_s, now_s);
    let mut text = match left {
        ..0 => format!("expired {} days ago by this clock", -left),
        _ => format!("valid for {left} days"),
    };
    if validity.last_begin_s > now_s {
        let later = (validity.last_begin_s - now_s).div_euclid(DAY_S) + 1;
        text.push_str(&format!("; NOT VALID YET for {later} days by this clock: is it right?"));
    }
    let authority = days(validity.authority_end_s, now_s);
    if authority < AUTHORITY_DAYS {
        text.push_str(&format!("; the AUTHORITY ends in {authority} days: `k3s certificate rotate-ca`"));
    }
    text
}

fn days(until_s: i64, now_s: i64) -> i64 {
    until_s.saturating_sub(now_s).div_euclid(DAY_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: i64 = 365 * DAY_S;
    const VALIDITY: Validity = Validity { first_end_s: YEAR, last_begin_s: 0, authority_end_s: 10 * YEAR };

    fn due_with(left_days: i64, primary: bool, peer_ready: Option<bool>) -> Due {
        due(&VALIDITY, &Facts { now_s: YEAR - left_days * DAY_S, primary, peer_ready })
    }

    #[test]
    fn the_standby_goes_first_and_only_while_the_other_serves() {
        for (left, primary, peer, expected) in [
            (100, false, Some(true), Due::No),
            (80, false, Some(true), Due::InTurn),
            (80, false, Some(false), Due::No),
            (80, false, None, Due::No),
            (80, true, Some(true), Due::No),
            (70, true, Some(true), Due::InTurn),
            (70, true, Some(false), Due::No),
            (13, true, Some(false), Due::Now),
            (13, false, None, Due::Now),
            (-400, true, None, Due::Now),
        ] {
            assert_eq!(due_with(left, primary, peer), expected, "{left} {primary} {peer:?}");
        }
    }

    #[test]
    fn jumps_of_a_year_are_survived() {
        let forward = Facts { now_s: YEAR + YEAR / 2, primary: true, peer_ready: None };
        assert_eq!(
            due(&VALIDITY, &forward),
            Due::Now,
            "expired by this clock: nothing serves until the restart"
        );
        let back = Facts { now_s: -YEAR, ..forward };
        assert_eq!((due(&VALIDITY, &back), near(&VALIDITY, back.now_s)), (Due::No, false));
        assert!(words(&VALIDITY, back.now_s).contains("NOT VALID YET"));
        assert_eq!(words(&VALIDITY, 0), "valid for 365 days");
        assert!(words(&VALIDITY, YEAR * 2).starts_with("expired 365 days ago"));
        assert!(words(&VALIDITY, 10 * YEAR - 5 * DAY_S).contains("AUTHORITY ends in 5 days"));
    }
}
