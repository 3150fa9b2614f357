//! Tests of the checker: with one rule left out, random schedules must find what the rule is there to prevent.

use super::random::{Faults, campaign};
use super::world::settings;
use crate::ha::settings::{Rule, Settings};

/// Schedules after which an unnoticed rule counts as a checker that is blind to it.
const LIMIT: u64 = 60_000;

fn is_noticed(rule: Rule, acts: u32) {
    let settings = Settings { without: Some(rule), ..settings() };
    match campaign(0..LIMIT, settings, Faults { restore: true, acts }) {
        Ok(tally) => panic!("{LIMIT} schedules without {rule:?} showed nothing: {tally:?}"),
        Err((seed, violation)) => println!("without {rule:?}: seed {seed}: {violation}"),
    }
}

macro_rules! noticed {
    ($($name:ident: $rule:ident,)*) => {
        $(#[test]
        fn $name() {
            is_noticed(Rule::$rule, 600);
        })*
    };
}

noticed! {
    votes_of_a_voter_with_old_state_are_noticed: MuteUntilHeard,
    votes_that_are_not_carried_are_noticed: CarryVotes,
    a_canary_that_does_not_wait_is_noticed: CanaryMustWait,
    names_that_were_not_seen_off_are_noticed: SeenOffFirst,
    a_flush_before_the_canary_is_noticed: FlushedAfterCanary,
    serving_before_the_flush_is_noticed: ServeAfterFlush,
    doubtful_data_are_noticed: OnlyCompleteData,
}
