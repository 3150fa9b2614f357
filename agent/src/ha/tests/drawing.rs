//! The drawing of the phases beside the code: every edge that simulated sites take is drawn, and every drawn edge is taken.

use std::cell::RefCell;
use std::collections::BTreeSet;

use crate::ha::state::Phase;

type Edges = BTreeSet<(&'static str, &'static str)>;

thread_local! {
    static TAKEN: RefCell<Edges> = const { RefCell::new(BTreeSet::new()) };
}

pub fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Mute => "Mute",
        Phase::Inert => "Inert",
        Phase::Following => "Following",
        Phase::Taking => "Taking",
        Phase::Proving { .. } => "Proving",
        Phase::Leading => "Leading",
        Phase::Alone(_) => "Alone",
        Phase::Outside => "Outside",
        Phase::Copying(_) => "Copying",
        Phase::Catching => "Catching",
        Phase::Handing(_) => "Handing",
        Phase::Refused(_) => "Refused",
    }
}

pub fn note(from: Phase, to: Phase) {
    let (from, to) = (name(from), name(to));
    if from != to {
        TAKEN.with_borrow_mut(|taken| taken.insert((from, to)));
    }
}

#[test]
fn the_drawing_is_what_sites_do() {
    let faults = super::random::Faults { restore: true, acts: 600 };
    super::random::campaign(0..8_000, super::world::settings(), faults).unwrap();
    let taken = TAKEN.with_borrow(Clone::clone);
    let drawn: Edges = include_str!("../node.dot")
        .lines()
        .filter_map(|line| line.trim().trim_end_matches(';').split_once(" -> "))
        .collect();
    let undrawn: Vec<_> = taken.difference(&drawn).collect();
    let untaken: Vec<_> = drawn.difference(&taken).collect();
    assert!(
        undrawn.is_empty() && untaken.is_empty(),
        "taken, not drawn: {undrawn:?}; drawn, not taken: {untaken:?}"
    );
}
