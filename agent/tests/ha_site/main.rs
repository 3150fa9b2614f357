//! Two nodes and a witness in network namespaces, with real Postgres and the real agent: writes that were acknowledged are
//! never lost, whatever is killed or cut.
//!
//! Needs Debian's `postgresql` (or `FARHOLD_PG_BIN`), `unshare`, `nsenter`, `ip`; no root, and nothing of the host is
//! changed. It drives the agent only as a program.

#![expect(clippy::unwrap_used, reason = "tests may panic in their helpers")]

mod client;
mod net;
mod site;

use site::{Node, Site};
use std::time::Duration;

/// Well beyond what a loaded machine needs; a run that is stuck fails, it does not hang.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn kill_9_of_the_primary_loses_no_acknowledged_write() {
    let mut site = Site::paired("kill");
    let mut clients = site.clients(3);
    clients.wait_for_acks(30, LONG);
    site.kill(Node::A);
    let outage = clients.outage(Node::B, LONG);
    println!("kill -9 of the primary: writes on the other node's port again after {outage:?}");
    site.start(Node::A);
    site.wait_paired(LONG);
    site.switch_over(Node::B, LONG);
    clients.wait_for_acks(30, LONG);
    site.prove(clients);
}

#[test]
fn an_isolated_primary_acknowledges_nothing_and_comes_back() {
    let site = Site::paired("isolated");
    let mut clients = site.clients(3);
    clients.wait_for_acks(30, LONG);
    site.net.isolate(Node::A);
    let outage = clients.outage(Node::B, LONG);
    println!("isolated primary: writes on the other node's port again after {outage:?}");
    clients.wait_for_acks(30, LONG);
    site.net.heal();
    site.wait_paired(LONG);
    clients.wait_for_acks(30, LONG);
    site.prove(clients);
}

#[test]
fn a_one_way_partition_is_survived() {
    let site = Site::paired("oneway");
    let mut clients = site.clients(3);
    clients.wait_for_acks(30, LONG);
    // B hears A, A does not hear B.
    site.net.deafen(Node::A, Node::B);
    clients.wait_for_more(30, LONG);
    site.net.heal();
    site.wait_paired(LONG);
    clients.wait_for_acks(30, LONG);
    site.prove(clients);
}

#[test]
fn without_the_witness_a_partition_blocks_and_nothing_is_lost() {
    let mut site = Site::paired("nowitness");
    let mut clients = site.clients(3);
    clients.wait_for_acks(30, LONG);
    site.kill(Node::W);
    clients.wait_for_more(30, LONG);
    site.net.part(Node::A, Node::B);
    std::thread::sleep(Duration::from_secs(6));
    let before = clients.acks();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(clients.acks(), before, "a write was acknowledged although neither node could be sure");
    site.net.heal();
    clients.wait_for_more(30, LONG);
    site.start(Node::W);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// Not a test of its own: the client that the others start inside a node's namespace.
#[test]
#[ignore = "a client that the other tests start inside a namespace"]
fn client_worker() {
    client::work();
}
