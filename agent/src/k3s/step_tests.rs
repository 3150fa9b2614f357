//! The server's life: tables, and invariants over random sequences of what can be seen.

use super::*;
use proptest::prelude::*;

const FINE: Look = Look {
    wanted: true,
    port_open: true,
    prepared: true,
    process: Process::Running,
    ready: false,
    renew: false,
};

fn begin() -> State {
    State::begin(false, 0).0
}

fn after(state: State, look: Look, now: u64) -> (State, Option<Effect>) {
    step(state, &look, &TIMES, now)
}

fn ready(since: u64) -> State {
    State { life: Life::Ready { since }, ..begin() }
}

#[test]
fn it_starts_when_datastore_and_secrets_are_there() {
    let absent = Look { process: Process::Absent, ..FINE };
    for missing in [
        Look { port_open: false, ..absent },
        Look { prepared: false, ..absent },
        Look { wanted: false, ..absent },
    ] {
        assert_eq!(after(begin(), missing, 5), (begin(), None));
    }
    let (state, effect) = after(begin(), absent, 5);
    assert_eq!((state.life, effect), (Life::Starting { since: 5 }, Some(Effect::Start)));
    let (state, _) = after(state, Look { ready: true, ..FINE }, 9);
    assert_eq!(state.life, Life::Ready { since: 9 });
}

#[test]
fn failures_double_the_pause_up_to_a_limit_and_steadiness_forgets_them() {
    let mut state = begin();
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let (started, effect) = after(state, Look { process: Process::Absent, ..FINE }, now);
        assert_eq!(effect, Some(Effect::Start));
        let (failed, effect) = after(started, Look { process: Process::Ended(End::Status(1)), ..FINE }, now);
        let Life::Waiting { from } = failed.life else { panic!("{failed:?}") };
        assert_eq!(effect, None);
        pauses.push(from - now);
        (state, now) = (failed, from);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60].map(|s| s * 1000));
    let (steady, _) = after(
        State { life: Life::Ready { since: 0 }, ..state },
        Look { ready: true, ..FINE },
        TIMES.steady_ms,
    );
    assert_eq!((steady.failures, steady.last_end), (0, None));
}

#[test]
fn without_its_datastore_an_end_is_no_failure_and_no_clock_runs() {
    let gone = Look { port_open: false, process: Process::Ended(End::Status(255)), ..FINE };
    assert_eq!(after(ready(0), gone, 10).0.failures, 0);
    let mut state = State { life: Life::Unready { since: 0 }, ..begin() };
    for now in (0..3_600_000).step_by(1000) {
        let effect;
        (state, effect) = after(state, Look { port_open: false, ..FINE }, now);
        assert_eq!(effect, None);
    }
    // The clock begins when the datastore is back.
    let back = 3_600_000;
    assert_eq!(after(state, FINE, back + TIMES.stuck_ms - 2000).1, None);
    let (state, effect) = after(state, FINE, back + TIMES.stuck_ms);
    assert!(
        matches!(state.life, Life::Stopping { why: Stop::Stuck, .. }) && effect == Some(Effect::Terminate)
    );
}

#[test]
fn a_server_that_does_not_stop_is_killed_and_one_that_was_stuck_counts_as_failed() {
    let stuck = State { life: Life::Stopping { since: 0, why: Stop::Stuck }, ..begin() };
    assert_eq!(after(stuck, FINE, TIMES.stop_ms - 1).1, None);
    let (killed, effect) = after(stuck, FINE, TIMES.stop_ms);
    assert_eq!(effect, Some(Effect::Kill));
    let (state, _) =
        after(killed, Look { process: Process::Ended(End::Signal(9)), ..FINE }, TIMES.stop_ms + 5);
    assert_eq!((state.failures, state.life), (1, Life::Waiting { from: TIMES.stop_ms + 1005 }));
}

#[test]
fn certificates_are_renewed_by_one_restart_a_day_at_most() {
    let due = Look { ready: true, renew: true, ..FINE };
    assert_eq!(after(ready(0), due, 10).1, None, "right after a start it is left alone");
    let (state, effect) = after(ready(0), due, TIMES.steady_ms);
    assert_eq!(effect, Some(Effect::Terminate));
    let (state, _) =
        after(state, Look { process: Process::Ended(End::Status(0)), ..due }, TIMES.steady_ms + 5);
    assert_eq!((state.failures, state.life), (0, Life::Waiting { from: TIMES.steady_ms + 5 }));
    let again = State { life: Life::Ready { since: 100_000 }, ..state };
    assert_eq!(after(again, due, 300_000).1, None, "it changed nothing, and is not tried at once again");
    assert_eq!(after(again, due, TIMES.steady_ms + TIMES.renew_pause_ms).1, Some(Effect::Terminate));
}

#[test]
fn a_leftover_is_stopped_before_anything_is_started() {
    let (state, effect) = State::begin(true, 7);
    assert_eq!(effect, Some(Effect::Terminate));
    assert_eq!(after(state, FINE, 8).1, None);
    let (state, _) = after(state, Look { process: Process::Absent, ..FINE }, 9);
    assert_eq!(after(state, Look { process: Process::Absent, ..FINE }, 9).1, Some(Effect::Start));
}

#[test]
fn words_name_the_reason() {
    let words = |state: State, look: Look| super::words(&state, &look);
    assert_eq!(words(ready(0), FINE), "ready");
    assert_eq!(words(begin(), Look { port_open: false, ..FINE }), "waits for the datastore port");
    let killed = State { failures: 2, last_end: Some(End::Signal(9)), ..begin() };
    assert!(
        words(killed, FINE).ends_with("it failed 2 times in a row, last by signal 9: perhaps out of memory")
    );
}

fn looks() -> impl Strategy<Value = (Look, u64)> {
    let end = prop_oneof![Just(End::Status(1)), Just(End::Signal(9)), Just(End::Unseen)];
    (any::<[bool; 5]>(), proptest::option::of(end), 0_u64..200_000).prop_map(|(flags, end, later)| {
        let [wanted, port_open, prepared, ready, renew] = flags;
        let process = end.map_or(Process::Running, Process::Ended);
        (Look { wanted, port_open, prepared, process, ready, renew }, later)
    })
}

proptest! {
    /// Never two processes, never an effect on one that is not there, never a start that was not wanted.
    #[test]
    fn effects_fit_the_process(sequence in proptest::collection::vec(looks(), 1..200)) {
        let (mut state, mut now, mut running) = (begin(), 0, false);
        for (mut look, later) in sequence {
            now += later;
            // What can be seen of a process depends on whether there is one.
            look.process = match (running, look.process) {
                (true, seen) => seen,
                (false, _) => Process::Absent,
            };
            running &= look.process == Process::Running;
            let effect;
            (state, effect) = step(state, &look, &TIMES, now);
            match effect {
                Some(Effect::Start) => {
                    prop_assert!(!running && look.wanted && look.port_open && look.prepared);
                    running = true;
                }
                Some(Effect::Terminate | Effect::Kill) => prop_assert!(running, "{state:?}"),
                None => {}
            }
            prop_assert_eq!(matches!(state.life, Life::Waiting { .. }), !running, "{:?}", state);
        }
    }

    /// With everything there, a server that is not wanted is gone in bounded time.
    #[test]
    fn what_is_not_wanted_ends(sequence in proptest::collection::vec(looks(), 1..60)) {
        let (mut state, mut now, mut running) = (begin(), 0, false);
        for (mut look, later) in sequence {
            now += later;
            look.process = if running { look.process } else { Process::Absent };
            running &= look.process == Process::Running;
            let (next, effect) = step(state, &look, &TIMES, now);
            (state, running) = (next, running || effect == Some(Effect::Start));
        }
        let mut killed = false;
        for _ in 0..4 {
            now += TIMES.stop_ms;
            let process = if running && !killed { Process::Running } else { Process::Absent };
            let (next, effect) = step(state, &Look { wanted: false, process, ..FINE }, &TIMES, now);
            state = next;
            killed |= effect == Some(Effect::Kill);
        }
        prop_assert!(matches!(state.life, Life::Waiting { .. }), "{:?}", state);
    }
}
