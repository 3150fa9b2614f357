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
    clients.wait_for_more(20, LONG);
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
    clients.wait_for_more(20, LONG);
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
    clients.wait_for_more(20, LONG);
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

/// A node's disk is put back to an old backup after it has voted for the other one to go on alone, which the witness did not
/// hear of: with the witness it would be two of three that know nothing.
#[test]
fn trap_01_a_node_from_an_old_backup_is_mute_and_copied_anew() {
    let mut site = Site::paired_quickly("trap01node");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.kill(Node::B);
    let backup = site.back_up(Node::B);
    site.start(Node::B);
    site.wait_paired(LONG);
    site.kill(Node::W);
    site.ha(Node::B, &["leave"]);
    site.wait_alone(Node::A, LONG);
    clients.wait_for_more(30, LONG);
    site.kill(Node::B);
    site.restore(Node::B, &backup);
    site.net.isolate(Node::A);
    [Node::W, Node::B].into_iter().for_each(|node| site.start(node));
    site.wait(Node::B, LONG, |status| {
        status["phase"] == "Mute" && status["witness_heard_ms"].as_u64().is_some_and(|ms| ms < 2_000)
    });
    site.wait_deaf(Node::B, Duration::from_secs(5));
    assert_eq!(site.status(Node::B).unwrap()["phase"], "Mute", "it did not wait for the other node");
    site.net.heal();
    site.wait_paired(LONG);
    assert!(site.log(Node::B).matches("the whole database was copied").count() >= 2, "old data were trusted");
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// The power fails at any moment of a hand-over, of the one that gives the role or of both: then one is primary, and has all.
#[test]
fn trap_06_a_hand_over_that_is_cut_midway_leaves_one_primary() {
    let mut site = Site::paired_quickly("trap06cut");
    let mut clients = site.clients(2);
    for (turn, pause) in [0, 100, 300, 500, 800, 1300].into_iter().enumerate() {
        clients.wait_for_more(20, LONG);
        let giving = site.primary(LONG);
        site.ha(giving, &["switchover"]);
        clients.longest_pause(Duration::from_millis(pause));
        let off = if turn % 2 == 0 { vec![giving] } else { vec![giving, giving.other()] };
        off.iter().for_each(|node| site.kill(*node));
        off.iter().rev().for_each(|node| site.start(*node));
        clients.wait_for_more(20, LONG);
        site.wait_paired(LONG);
        println!(
            "{off:?} off {pause} ms into a hand-over from {giving:?}: then {:?} leads",
            site.primary(LONG)
        );
    }
    site.prove(clients);
}

/// A standby whose startup process hangs cannot be promoted, and whoever asks it sees what its files say; its receiver goes on
/// acknowledging. Once it has voted, the tunnel is closed and nothing is acknowledged any more.
#[test]
fn trap_07_a_standby_that_hangs_acknowledges_nothing_after_its_vote() {
    let site = Site::paired_quickly("trap07startup");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    assert_eq!(site.signal_titled(Node::B, "startup recovering", Signal::SIGSTOP), 1);
    clients.wait_for_more(20, LONG);
    site.net.isolate(Node::A);
    site.wait(Node::B, LONG, |status| status["phase"] == "Taking");
    let before = clients.acks();
    site.wait_deaf(Node::A, Duration::from_secs(5));
    assert_eq!(clients.acks(), before, "a write was acknowledged with a standby that had voted to be alone");
    site.signal_titled(Node::B, "startup recovering", Signal::SIGCONT);
    clients.outage(Node::B, LONG);
    site.net.heal();
    site.wait_paired(LONG);
    site.prove(clients);
}

/// A standby that was away for weeks: the log that is kept for it has an end, and it is copied anew. What is kept from then on is
/// kept again: a short absence costs no copy.
#[test]
fn trap_09_a_standby_that_was_away_for_long_is_copied_anew() {
    let settings = &[
        ("max_slot_wal_keep_size", "32MB"),
        ("max_wal_size", "64MB"),
        ("min_wal_size", "32MB"),
        ("wal_keep_size", "0"),
    ];
    let mut site = Site::with("trap09away", Plan::quick().with_settings(settings));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    let write = |site: &Site, segments: &str| {
        let mut work = site.client(Node::A, "segments");
        work.env("FARHOLD_HA_SOCKET", site.socket(Node::A)).env("FARHOLD_HA_SEGMENTS", segments);
        let done = work.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let copies = |site: &Site| site.log(Node::B).matches("the whole database was copied").count();
    for (segments, copied) in [("12", 2), ("1", 2)] {
        site.kill(Node::B);
        site.wait(Node::A, LONG, |status| status["phase"] == "Alone(Apart)");
        write(&site, segments);
        let log: u64 = std::fs::read_dir(site.file(Node::A, "data/pg_wal"))
            .unwrap()
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum();
        assert!(log < 160 << 20, "{} MiB of log are kept", log >> 20);
        site.start(Node::B);
        site.wait_paired(LONG);
        assert_eq!(copies(&site), copied, "after {segments} segments");
        clients.wait_for_more(20, LONG);
    }
    site.prove(clients);
}

/// The power fails while a node is copied: what it has is nothing, and it is copied anew. How far the copy is, the node says.
#[test]
fn trap_10_a_copy_that_is_cut_midway_begins_anew() {
    let plan = Plan::quick().slow_disk(Node::B, Duration::from_millis(5));
    let mut site = Site::joining("trap10cut", plan);
    site.wait(Node::B, LONG, |status| {
        status["phase"] == "Copying(Reseed)"
            && status["copy"]["total"].as_u64().is_some_and(|total| total > 1 << 20)
    });
    assert!(site.ha(Node::B, &["status"]).contains(" MiB of about "), "people see no progress");
    site.kill(Node::B);
    site.start(Node::B);
    site.wait_paired(LONG);
    let log = site.log(Node::B);
    assert_eq!(log.matches("copying the whole database").count(), 2, "{log}");
    assert_eq!(log.matches("the whole database was copied").count(), 1, "{log}");
    site.make_table();
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// A node is primary for a moment, of which nothing reaches the other one: that one takes over with a timeline of another number,
/// so that two logs of one number never meet.
#[test]
fn trap_06_a_primary_of_a_moment_leaves_its_timeline_to_itself() {
    let times = serde_json::json!({ "peer_lost_ms": 5000, "retry_ms": 300, "rejoin_pause_ms": 100 });
    let site = Site::with("trap06moment", Plan { times, ..Plan::default() });
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    assert_eq!(site.signal_titled(Node::B, "startup recovering", Signal::SIGSTOP), 1);
    site.ha(Node::A, &["switchover"]);
    site.wait(Node::B, LONG, |status| status["phase"] == "Taking");
    site.net.isolate(Node::B);
    site.signal_titled(Node::B, "startup recovering", Signal::SIGCONT);
    site.wait_log(Node::B, "Postgres promoted", LONG);
    site.wait_alone(Node::A, LONG);
    clients.wait_for_more(30, LONG);
    assert!(site.log(Node::A).contains("a timeline that this node did not see is passed over"));
    site.net.heal();
    site.wait_paired(LONG);
    assert!(site.log(Node::B).contains("was rewound"), "B came back without a rewind");
    // Both have the same from now on, whoever is primary.
    site.switch_over(Node::A, LONG);
    clients.wait_for_more(30, LONG);
    site.prove(clients);
}
