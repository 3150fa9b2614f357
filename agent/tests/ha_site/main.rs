//! Two nodes and a witness in network namespaces, with real Postgres and the real agent: writes that were acknowledged are
//! never lost, whatever is killed or cut.
//!
//! Needs Debian's `postgresql` (or `FARHOLD_PG_BIN`), `unshare`, `nsenter`, `ip`; no root, and nothing of the host is
//! changed. It drives the agent only as a program.

#![expect(clippy::unwrap_used, reason = "tests may panic in their helpers")]

mod bench;
mod campaign;
mod client;
mod disks;
mod faults;
mod k3s;
mod links;
mod net;
mod operators;
mod pairing;
mod paths;
mod plan;
mod port;
mod power;
mod refused;
mod relay;
mod site;
mod timelines;
mod traps;
mod versions;

use site::{Node, Site};
use std::time::Duration;

/// Well beyond what a loaded machine needs; a run that is stuck fails, it does not hang.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn kill_9_of_the_primary_loses_no_acknowledged_write() {
    let mut site = Site::paired("kill");
    let mut clients = site.clients(3);
    clients.wait_for_more(30, LONG);
    site.kill(Node::A);
    let outage = clients.outage(Node::B, LONG);
    println!("kill -9 of the primary: writes on the other node's port again after {outage:?}");
    site.start(Node::A);
    site.wait_paired(LONG);
    site.switch_over(Node::B, LONG);
    clients.wait_for_more(30, LONG);
    site.prove(clients);
}

#[test]
fn an_isolated_primary_acknowledges_nothing_and_comes_back() {
    let site = Site::paired("isolated");
    let mut clients = site.clients(3);
    clients.wait_for_more(30, LONG);
    site.net.isolate(Node::A);
    let outage = clients.outage(Node::B, LONG);
    println!("isolated primary: writes on the other node's port again after {outage:?}");
    clients.wait_for_more(30, LONG);
    site.net.heal();
    site.wait_paired(LONG);
    clients.wait_for_more(30, LONG);
    site.prove(clients);
}

#[test]
fn a_one_way_partition_is_survived() {
    let site = Site::paired("oneway");
    let mut clients = site.clients(3);
    clients.wait_for_more(30, LONG);
    // B hears A, A does not hear B.
    site.net.deafen(Node::A, Node::B);
    clients.wait_for_more(30, LONG);
    site.net.heal();
    site.wait_paired(LONG);
    clients.wait_for_more(30, LONG);
    site.prove(clients);
}

#[test]
fn without_the_witness_a_partition_blocks_and_nothing_is_lost() {
    let mut site = Site::paired("nowitness");
    let mut clients = site.clients(3);
    clients.wait_for_more(30, LONG);
    site.kill(Node::W);
    clients.wait_for_more(30, LONG);
    site.net.part(Node::A, Node::B);
    site.wait_deaf(Node::A, Duration::from_secs(6));
    site.wait_deaf(Node::B, Duration::from_secs(1));
    let before = clients.acks();
    site.wait_deaf(Node::A, Duration::from_secs(4));
    assert_eq!(clients.acks(), before, "a write was acknowledged although neither node could be sure");
    site.net.heal();
    clients.wait_for_more(30, LONG);
    site.start(Node::W);
    site.wait_paired(LONG);
    site.prove(clients);
}

#[test]
fn a_planned_hand_over_is_short_and_loses_nothing() {
    let site = Site::paired("handover");
    let mut clients = site.clients(3);
    for (from, to) in [(Node::A, Node::B), (Node::B, Node::A)] {
        clients.wait_for_more(30, LONG);
        site.ha(from, &["switchover"]);
        let outage = clients.longest_pause(Duration::from_secs(6));
        println!("planned hand-over from {from:?}: longest pause between acknowledged writes {outage:?}");
        site.wait_leading(to, LONG);
        site.wait_paired(LONG);
    }
    site.prove(clients);
}

/// All off at once, and on again with the last one first: nothing is served before two parties agree.
#[test]
fn everything_off_and_on_again() {
    let mut site = Site::paired("offon");
    for order in [[Node::A, Node::B, Node::W], [Node::W, Node::B, Node::A]] {
        let mut clients = site.clients(2);
        clients.wait_for_more(20, LONG);
        order.into_iter().for_each(|node| site.kill(node));
        order.into_iter().rev().for_each(|node| site.start(node));
        clients.wait_for_more(20, LONG);
        site.wait_paired(LONG);
        site.prove(clients);
    }
}

/// The primary dies with a row that nobody else has; when it comes back, the row is exported and the database rewound.
#[test]
fn a_loser_is_rewound_and_its_rows_are_exported() {
    let mut site = Site::paired("rewind");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    // Rows are written here and wait: nothing of A reaches B any more.
    site.net.deafen(Node::B, Node::A);
    site.wait_stuck(Node::A, LONG);
    site.net.isolate(Node::A);
    clients.outage(Node::B, LONG);
    site.kill(Node::A);
    site.net.heal();
    site.start(Node::A);
    site.wait_paired(LONG);
    let log = site.log(Node::A);
    assert!(log.contains("are exported"), "nothing was exported");
    assert!(
        log.contains("was rewound") || log.contains("was copied"),
        "A came back without a rewind or a copy"
    );
    println!("{}", if log.contains("was rewound") { "rewound" } else { "copied anew" });
    let exports = site.exports(Node::A).concat();
    assert!(exports.contains("\"table\":\"public.kine\""), "no row was exported: {exports}");
    site.prove(clients);
}

/// A witness that comes back from an old backup votes for nobody until it has heard both nodes.
#[test]
fn a_witness_from_an_old_backup_gives_no_second_primary() {
    let mut site = Site::paired("oldwitness");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    let backup = site.back_up_witness();
    site.net.isolate(Node::B);
    site.wait_alone(Node::A, LONG);
    site.kill(Node::W);
    site.restore_witness(&backup);
    // Now B and the witness hear each other, and neither hears A.
    site.net.heal();
    site.net.isolate(Node::A);
    site.start(Node::W);
    site.wait_log(Node::W, "mute until both nodes were heard", LONG);
    site.wait_deaf(Node::B, Duration::from_secs(10));
    assert!(!site.is_alone(Node::B), "the witness helped a second node to go on alone");
    site.net.heal();
    site.wait_paired(LONG);
    site.prove(clients);
}

/// For `make bench`: what the port costs beside a direct session, in one run, with a null pair.
#[test]
#[ignore = "a measurement"]
fn bench_the_port_beside_a_direct_session() {
    bench::port();
}

/// For `make bench`: how long writes are away.
#[test]
#[ignore = "a measurement: about 15 minutes"]
fn bench_outages() {
    bench::outages();
}

/// For `make test-all`: 1,000 schedules; `FARHOLD_HA_SEED`, `…_SCHEDULES`, `…_SHARDS`, `…_MINUTES` say otherwise.
#[test]
#[ignore = "long: 1,000 schedules of random faults on real Postgres"]
fn campaign_of_random_faults() {
    campaign::run();
}

/// Not a test of its own: the client that the others start inside a node's namespace.
#[test]
#[ignore = "a client that the other tests start inside a namespace"]
fn client_worker() {
    client::work();
}
