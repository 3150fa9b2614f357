//! The interleavings that break simpler schemes and that can be brought about on real Postgres, numbered as in
//! `docs/ha-protocol.md`.

use super::site::{Node, Plan, Site};
use nix::sys::signal::Signal;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);

/// Only the checkpointer publishes a change of the names. While it is stopped, a standby that has everything and whose names
/// are set still counts for nothing: commits go through without it, and `Paired` must not be decided.
#[test]
fn trap_04_names_are_not_in_force_while_the_checkpointer_is_stopped() {
    let mut site = Site::paired_quickly("trap04");
    let mut clients = site.clients(1);
    clients.wait_for_acks(20, LONG);
    site.kill(Node::B);
    site.wait(Node::A, LONG, |status| status["phase"] == "Alone(Apart)");
    site.signal_titled(Node::A, "checkpointer", Signal::SIGSTOP);
    site.start(Node::B);
    site.wait(Node::A, LONG, |status| status["phase"] == "Alone(Naming)");
    // Acknowledged alone, although a fresh session would show the names.
    clients.wait_for_more(50, LONG);
    assert_eq!(site.status(Node::A).unwrap()["mode"], "solo");
    site.signal_titled(Node::A, "checkpointer", Signal::SIGCONT);
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// A cancelled wait for the standby ends as a commit that nobody else has: the port lets no cancel request through.
#[test]
fn trap_05_a_cancel_request_through_the_port_is_swallowed() {
    // The port closes when nobody was heard for long, which is not what this is about.
    let times = serde_json::json!({ "stale_ms": 60_000 });
    let mut site = Site::with("trap05cancel", Plan { times, ..Plan::default() });
    site.kill(Node::W);
    site.signal(Node::B, Signal::SIGSTOP);
    let mut worker = site.client(Node::A, "cancel").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(worker.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut wait_for = |word: &str| lines.any(|line| line.contains(word));
    assert!(wait_for("WAITS AFTER CANCEL"), "a cancelled write did not go on waiting");
    site.signal(Node::B, Signal::SIGCONT);
    site.start(Node::W);
    assert!(wait_for("COMMITTED"), "the write did not come through when the standby was back");
    assert!(worker.wait().unwrap().success());
}

/// After kill -9 of the server, rows that waited for the standby are visible to whoever may look: nobody may.
#[test]
fn trap_05_a_restarted_primary_shows_nothing_before_the_standby_has_it() {
    let mut site = Site::paired_quickly("trap05restart");
    let mut clients = site.clients(2);
    clients.wait_for_acks(20, LONG);
    site.kill(Node::W);
    site.signal(Node::B, Signal::SIGSTOP);
    site.wait_stuck(Node::A, LONG);
    site.kill_server(Node::A);
    site.wait(Node::A, LONG, |status| {
        status["phase"].as_str().is_some_and(|phase| phase.starts_with("Proving"))
    });
    for _ in 0..10 {
        let status = site.status(Node::A).unwrap();
        assert_eq!(status["port"], "Closed", "{status}");
    }
    site.signal(Node::B, Signal::SIGCONT);
    site.start(Node::W);
    clients.wait_for_more(20, LONG);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// A satellite that drops must not stop the node that is alone by right, not even over a restart.
#[test]
fn trap_08_the_holder_goes_on_and_restarts_without_anybody() {
    let mut site = Site::paired_quickly("trap08");
    let mut clients = site.clients_on(Node::A, 2);
    clients.wait_for_acks(20, LONG);
    site.kill(Node::B);
    site.wait_alone(Node::A, LONG);
    site.kill(Node::W);
    site.wait(Node::A, LONG, |status| status["witness_heard_ms"].as_u64().is_some_and(|ms| ms > 5_000));
    clients.wait_for_more(20, LONG);
    site.kill(Node::A);
    site.start(Node::A);
    clients.wait_for_more(20, LONG);
    [Node::B, Node::W].into_iter().for_each(|node| site.start(node));
    site.wait_paired(LONG);
    site.prove(clients);
}
