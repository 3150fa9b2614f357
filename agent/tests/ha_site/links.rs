//! Links that are cut, slow or lossy. Where two voters still talk, one of them in sync, writes go on; nothing is ever lost.

use super::site::{Node, Plan, Site};
use serde_json::json;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);
const LINKS: [(Node, Node); 3] = [(Node::A, Node::B), (Node::A, Node::W), (Node::B, Node::W)];

fn chosen<T: Copy>(of: &[T], bits: u8) -> Vec<T> {
    of.iter().enumerate().filter(|(at, _)| bits & (1 << at) != 0).map(|(_, one)| *one).collect()
}

#[test]
fn every_subset_of_links_is_cut() {
    let site = Site::paired_quickly("subsets");
    let mut clients = site.clients(2);
    for bits in 1..8 {
        clients.wait_for_more(10, LONG);
        let cut = chosen(&LINKS, bits);
        cut.iter().for_each(|(a, b)| site.net.part(*a, *b));
        if cut.len() < LINKS.len() {
            // More than what was on its way.
            clients.wait_for_more(30, LONG);
        } else {
            site.wait_deaf(Node::A, Duration::from_secs(3));
            site.wait_deaf(Node::B, Duration::from_secs(1));
            let before = clients.acks();
            site.wait_deaf(Node::A, Duration::from_secs(3));
            assert_eq!(clients.acks(), before, "a write was acknowledged although no two voters could talk");
        }
        println!("{cut:?} cut: {} writes acknowledged so far", clients.acks());
        site.net.heal();
        site.wait_paired(LONG);
    }
    site.prove(clients);
}

fn ways() -> Vec<(Node, Node)> {
    LINKS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]).collect()
}

#[test]
fn every_link_is_cut_one_way() {
    let site = Site::paired_quickly("oneways");
    let mut clients = site.clients(2);
    for (deaf, other) in ways() {
        clients.wait_for_more(10, LONG);
        site.net.deafen(deaf, other);
        clients.wait_for_more(30, LONG);
        println!("{deaf:?} does not hear {other:?}: {} writes acknowledged so far", clients.acks());
        site.net.heal();
        site.wait_paired(LONG);
    }
    site.prove(clients);
}

/// For `make test-all`: all 63 sets of one-way cuts.
#[test]
#[ignore = "long: ten minutes"]
fn every_subset_of_one_way_cuts() {
    let site = Site::paired_quickly("oneway-subsets");
    let mut clients = site.clients(2);
    for bits in 1..64 {
        clients.wait_for_more(10, LONG);
        let cut = chosen(&ways(), bits);
        cut.iter().for_each(|(deaf, other)| site.net.deafen(*deaf, *other));
        let pause = clients.longest_pause(Duration::from_secs(4));
        println!("{bits}: {cut:?}: no write for {pause:?}");
        site.net.heal();
        clients.wait_for_more(10, LONG);
        site.wait_paired(LONG);
    }
    site.prove(clients);
}

/// Half a second on each way, for messages and streams: the votes of a failover, a rewind and a commit still get through.
#[test]
fn a_delay_of_half_a_second_on_every_link() {
    let mut site = Site::with("delay", Plan { delay_ms: Some(500), ..Plan::default() });
    let mut clients = site.clients(2);
    clients.wait_for_more(10, LONG);
    site.kill(Node::A);
    let outage = clients.outage(Node::B, LONG);
    println!("500 ms on each way, kill -9 of the primary: writes again after {outage:?}");
    site.start(Node::A);
    site.wait_paired(LONG);
    clients.wait_for_more(10, LONG);
    site.prove(clients);
}

/// What was said once is said again and again, by whoever stands between: it neither keeps a dead node alive nor gives a role
/// back.
#[test]
fn what_is_said_again_later_changes_nothing() {
    let plan = Plan { delay_ms: Some(1), replays: true, ..Plan::quick() };
    let mut site = Site::with("replays", plan);
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    for node in [Node::B, Node::A] {
        site.switch_over(site.primary(LONG), LONG);
        // The dead node's words go on.
        site.kill(node);
        site.wait_alone(node.other(), LONG);
        site.wait_deaf(node.other(), Duration::from_secs(4));
        clients.wait_for_more(30, LONG);
        site.start(node);
        site.wait_paired(LONG);
    }
    clients.wait_for_more(100, LONG);
    for node in [Node::A, Node::B] {
        assert_eq!(
            site.status(node).unwrap()["two_machines_speak_as"],
            json!([]),
            "what was repeated looks like a clone"
        );
    }
    site.prove(clients);
}

#[test]
fn thirty_of_a_hundred_packets_are_lost() {
    let mut site = Site::paired("loss");
    let mut clients = site.clients(2);
    clients.wait_for_more(10, LONG);
    site.net.lose(30);
    clients.wait_for_more(30, LONG);
    site.kill(Node::A);
    clients.wait_for_more(30, LONG);
    site.start(Node::A);
    clients.wait_for_more(30, LONG);
    site.net.lose_nothing();
    site.wait_paired(LONG);
    site.prove(clients);
}
