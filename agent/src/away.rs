//! A planned end of this boot on a node of a pair: the pair is whole, pods leave, the other node goes on; then this one may
//! go down. [`next`] decides, purely; [`step_down`] carries it out. It does not restart the machine.

use agent::ha::act::{self, Ask, Config};
use agent::k3s::{self, Leaving};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::{Duration, Instant};

/// How long a node that serves alone waits for the other to come back: a peer that is gone for good stops no update.
const ALONE: Duration = Duration::from_secs(3600);
/// The primary lets the other node go first if both were told at once: for so long after the longest drain.
const LET_GO_FIRST: Duration = Duration::from_secs(60);
/// Before pods that a budget held are asked to leave again.
const HELD: Duration = Duration::from_secs(600);
/// Before an API server that did not answer is asked again, and how often that is done.
const UNREACHABLE: Duration = Duration::from_secs(20);
const UNREACHABLE_MAX: u32 = 5;
/// How long the other node may take to go on alone.
const HAND_OVER: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_secs(2);

/// How the pair stands, seen from this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Both are in sync; whether this one is the primary.
    Whole { primary: bool },
    /// This node serves and nobody could take over.
    Alone,
    /// Nobody leans on this node, or nobody says.
    Aside,
}

/// What came of the last drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    NotYet,
    Done,
    Held,
    Unreachable { times: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Wait(Duration),
    Drain { after: Duration },
    Leave,
}

/// What is known when the next thing is decided.
#[derive(Clone, Copy, Debug)]
struct Known {
    stands: Stands,
    drained: Drained,
    waited: Duration,
    /// Seconds that disruption budgets are waited for.
    deadline_s: u64,
    /// This release has failed and is left: nothing is waited for twice.
    urgent: bool,
}

fn next(known: &Known) -> Next {
    let Known { stands, drained, waited, deadline_s, urgent } = *known;
    let first = Duration::from_secs(deadline_s) + LET_GO_FIRST;
    match (drained, stands) {
        (Drained::NotYet, Stands::Alone) if !urgent && waited < ALONE => Next::Wait(LOOK),
        (Drained::NotYet, Stands::Whole { primary: true }) if !urgent && waited < first => Next::Wait(LOOK),
        (Drained::NotYet, _) => Next::Drain { after: Duration::ZERO },
        (Drained::Held, _) if !urgent => Next::Drain { after: HELD },
        (Drained::Unreachable { times }, _) if !urgent && times < UNREACHABLE_MAX => {
            Next::Drain { after: UNREACHABLE }
        }
        (Drained::Done | Drained::Held | Drained::Unreachable { .. }, _) => Next::Leave,
    }
}

fn stands(status: &Value) -> Stands {
    let (primary, solo) = (status["is_primary"] == true, status["mode"] == "solo");
    let whole =
        status["mode"] == "paired" && matches!(status["phase"].as_str(), Some("Leading" | "Following"));
    match (whole, solo && primary && status["policy"] != "one node") {
        (true, _) => Stands::Whole { primary },
        (false, true) => Stands::Alone,
        (false, false) => Stands::Aside,
    }
}

/// Returns when this node may go down; `tell` hears of each change.
///
/// # Errors
/// If the drain cannot be begun at all.
pub fn step_down(config: &Config, urgent: bool, mut tell: impl FnMut(&str)) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a loop")?;
    let begun = Instant::now();
    let drain = config.k3s.as_ref().map(|k3s| k3s.drain);
    // Without k3s there are no pods.
    let mut drained = if drain.is_some() { Drained::NotYet } else { Drained::Done };
    let mut said = None;
    loop {
        let stands = act::ask(&config.run, Ask::Status).map_or(Stands::Aside, |status| stands(&status));
        let deadline_s = drain.map_or(0, |drain| drain.deadline_s);
        let next = next(&Known { stands, drained, waited: begun.elapsed(), deadline_s, urgent });
        if said.replace((stands, next)) != Some((stands, next)) {
            tell(&words(stands, next));
        }
        match next {
            Next::Wait(time) => std::thread::sleep(time),
            Next::Drain { after } => {
                std::thread::sleep(after);
                let drain = drain.context("there is nothing to drain")?;
                drained = match (runtime.block_on(k3s::leave(config, drain, &mut tell)), drained) {
                    (Ok(Leaving::Left(_)), _) => Drained::Done,
                    (Ok(Leaving::Held(_)), _) => Drained::Held,
                    (Err(error), before) => {
                        tell(&format!("pods cannot be asked to leave: {error:#}"));
                        let times = if let Drained::Unreachable { times } = before { times } else { 0 };
                        Drained::Unreachable { times: times + 1 }
                    }
                };
            }
            Next::Leave => {
                hand_over(config, &mut tell);
                return Ok(());
            }
        }
    }
}

fn words(stands: Stands, next: Next) -> String {
    match (stands, next) {
        (Stands::Alone, Next::Wait(_)) => "this node serves alone: it waits for the other".to_owned(),
        (_, Next::Wait(_)) => "the other node goes first, if it is to go down too".to_owned(),
        (_, Next::Drain { after }) if after.is_zero() => "pods are asked to leave".to_owned(),
        (_, Next::Drain { after }) => format!("pods are asked to leave again in {} s", after.as_secs()),
        (_, Next::Leave) => "the other node is asked to go on alone".to_owned(),
    }
}

/// The other node goes on alone. One that cannot is no reason to stay up: the register says who serves, whoever restarts.
fn hand_over(config: &Config, tell: &mut impl FnMut(&str)) {
    if let Err(error) = act::ask(&config.run, Ask::Leave) {
        tell(&format!("the other node was not asked to go on alone: {error:#}"));
        return;
    }
    let until = Instant::now() + HAND_OVER;
    while Instant::now() < until {
        let status = act::ask(&config.run, Ask::Status).unwrap_or_default();
        if status["mode"] == "solo" && status["is_primary"] == false {
            tell("the other node goes on alone");
            return;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    tell(&format!("the other node did not go on alone within {} s", HAND_OVER.as_secs()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn known(stands: Stands, drained: Drained, waited_s: u64) -> Known {
        Known { stands, drained, waited: Duration::from_secs(waited_s), deadline_s: 300, urgent: false }
    }

    #[test]
    fn a_node_that_serves_alone_waits_for_the_other_but_not_for_ever() {
        assert_eq!(next(&known(Stands::Alone, Drained::NotYet, 3599)), Next::Wait(LOOK));
        assert_eq!(next(&known(Stands::Alone, Drained::NotYet, 3600)), Next::Drain { after: Duration::ZERO });
    }

    #[test]
    fn of_two_nodes_told_at_once_the_standby_goes_first() {
        let standby = known(Stands::Whole { primary: false }, Drained::NotYet, 0);
        assert_eq!(next(&standby), Next::Drain { after: Duration::ZERO });
        let primary = |waited| next(&known(Stands::Whole { primary: true }, Drained::NotYet, waited));
        assert_eq!(primary(359), Next::Wait(LOOK));
        assert_eq!(primary(360), Next::Drain { after: Duration::ZERO });
    }

    #[test]
    fn a_budget_that_holds_pods_puts_a_planned_restart_off_and_a_failed_release_is_left_all_the_same() {
        let held = known(Stands::Whole { primary: false }, Drained::Held, 900);
        assert_eq!(next(&held), Next::Drain { after: HELD });
        assert_eq!(next(&Known { urgent: true, ..held }), Next::Leave);
    }

    #[test]
    fn an_api_server_that_never_answers_stops_no_restart() {
        let silent = |times| next(&known(Stands::Aside, Drained::Unreachable { times }, 100));
        assert_eq!(silent(1), Next::Drain { after: UNREACHABLE });
        assert_eq!(silent(UNREACHABLE_MAX), Next::Leave);
        assert_eq!(next(&known(Stands::Aside, Drained::Done, 0)), Next::Leave);
    }

    #[test]
    fn the_status_tells_how_the_pair_stands() {
        let leading = json!({ "mode": "paired", "phase": "Leading", "is_primary": true });
        assert_eq!(stands(&leading), Stands::Whole { primary: true });
        assert_eq!(
            stands(&json!({ "mode": "solo", "phase": "Alone(Apart)", "is_primary": true })),
            Stands::Alone
        );
        assert_eq!(
            stands(&json!({ "mode": "solo", "phase": "Outside", "is_primary": false })),
            Stands::Aside
        );
        assert_eq!(
            stands(&json!({ "mode": "solo", "is_primary": true, "policy": "one node" })),
            Stands::Aside
        );
        assert_eq!(stands(&Value::Null), Stands::Aside);
    }
}
