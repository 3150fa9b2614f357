//! Faults of a machine: hung, full, slow or failing disks, stopped processes, clocks that jump, power that comes back in any order.

use super::site::{Node, Plan, Site};
use nix::sys::signal::Signal;
use std::io::Write;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(180);

/// The database hangs as on a disk that answers nothing; its agent goes on and says so, and the peer takes over.
#[test]
fn a_primary_whose_database_hangs_loses_its_role() {
    let site = Site::paired_quickly("hungserver");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.signal_server(Node::A, Signal::SIGSTOP);
    clients.outage(Node::B, LONG);
    site.wait_alone(Node::B, LONG);
    clients.wait_for_more(20, LONG);
    site.signal_server(Node::A, Signal::SIGCONT);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// kill -9 of every kind of process there is, one after the other, of whoever has the role at that moment.
#[test]
fn every_process_is_killed_in_turn() {
    let mut site = Site::paired_quickly("processes");
    let mut clients = site.clients(2);
    let of_primary = ["checkpointer", "background writer", "walwriter", "walsender", ": kine kine"];
    let of_standby = ["startup recovering", "walreceiver"];
    let titled =
        of_primary.map(|title| (true, title)).into_iter().chain(of_standby.map(|title| (false, title)));
    for (of_primary, title) in titled {
        clients.wait_for_more(10, LONG);
        let primary = site.primary(LONG);
        let node = if of_primary { primary } else { primary.other() };
        let hit = site.signal_titled(node, title, Signal::SIGKILL);
        assert!(hit > 0, "{node:?} has no process `{title}`");
        clients.wait_for_more(20, LONG);
        site.wait_paired(LONG);
        println!("{title} of {node:?}: {} writes acknowledged so far", clients.acks());
    }
    for of_primary in [true, false] {
        let role = |site: &Site| {
            let primary = site.primary(LONG);
            if of_primary { primary } else { primary.other() }
        };
        clients.wait_for_more(10, LONG);
        site.kill_server(role(&site));
        clients.wait_for_more(20, LONG);
        site.wait_paired(LONG);
        // The agent alone: its server stays behind, and the next agent stops it before anything else.
        let node = role(&site);
        site.signal_agent(node, Signal::SIGKILL);
        site.take_last(node).1.wait().unwrap();
        clients.wait_for_more(20, LONG);
        site.start(node);
        site.wait_paired(LONG);
    }
    site.kill(Node::W);
    clients.wait_for_more(20, LONG);
    site.start(Node::W);
    site.prove(clients);
}

/// The agent alone stops, as one that waits for a flush for ever, and goes on later with all that it held.
#[test]
fn a_primary_whose_agent_stops_loses_its_role_and_forwards_nothing_old() {
    let site = Site::paired_quickly("hungagent");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.signal_agent(Node::A, Signal::SIGSTOP);
    clients.outage(Node::B, LONG);
    clients.wait_for_more(20, LONG);
    site.signal_agent(Node::A, Signal::SIGCONT);
    site.wait_paired(LONG);
    site.prove(clients);
}

#[test]
fn a_standby_that_hangs_does_not_stop_writes_for_long() {
    let site = Site::paired_quickly("hungstandby");
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.signal(Node::B, Signal::SIGSTOP);
    site.wait_alone(Node::A, LONG);
    clients.wait_for_more(20, LONG);
    site.signal(Node::B, Signal::SIGCONT);
    site.wait_paired(LONG);
    site.prove(clients);
}

fn year(site: &Site, node: Node) -> i64 {
    let output = site.client(node, "year").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let at = text.find("YEAR ").unwrap_or_else(|| panic!("{text}"));
    text[at + 5..].split_whitespace().next().unwrap().parse().unwrap()
}

/// Wall clocks of agents, databases and witness jump by a year, in both directions, while writes go on and roles change.
#[test]
fn clocks_that_jump_by_a_year_cost_nothing() {
    let library =
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1".replace("x86_64", std::env::consts::ARCH);
    assert!(std::path::Path::new(&library).exists(), "no {library}: install Debian's `faketime`");
    let clock = tempfile::NamedTempFile::new().unwrap();
    let set = |offset: &str| std::fs::write(clock.path(), offset).unwrap();
    set("+0d\n");
    let env = [
        ("LD_PRELOAD", library.as_str()),
        ("FAKETIME_TIMESTAMP_FILE", clock.path().to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        // The clocks that only count are the kernel's own and do not jump on real machines either.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut site = Site::with("clocks", Plan { env, ..Plan::default() });
    let mut clients = site.clients(2);
    let this_year = year(&site, Node::A);
    for (offset, years) in [("+366d\n", 1), ("-366d\n", -1), ("+0d\n", 0)] {
        clients.wait_for_more(20, LONG);
        set(offset);
        clients.wait_for_more(50, LONG);
        let seen = year(&site, Node::A);
        assert!((seen - this_year - years).abs() <= 1 && (years == 0) == (seen == this_year), "{seen}");
        println!("{}: the database shows {seen}, {} writes acknowledged", offset.trim(), clients.acks());
    }
    set("+366d\n");
    site.kill(Node::A);
    clients.outage(Node::B, LONG);
    set("-366d\n");
    site.start(Node::A);
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// The first one up serves nothing; the second one brings service, whichever two they are.
#[test]
fn all_off_and_on_in_every_order() {
    let mut site = Site::paired_quickly("orders");
    let (a, b, w) = (Node::A, Node::B, Node::W);
    for order in [[a, b, w], [a, w, b], [b, a, w], [b, w, a], [w, a, b], [w, b, a]] {
        let mut clients = site.clients(2);
        clients.wait_for_more(20, LONG);
        order.into_iter().for_each(|node| site.kill(node));
        site.start(order[0]);
        if order[0] != Node::W {
            site.wait_deaf(order[0], Duration::from_secs(2));
            assert_eq!(site.status(order[0]).unwrap()["port"], "Closed", "{order:?}: alone, it serves");
        }
        site.start(order[1]);
        clients.wait_for_more(20, LONG);
        site.start(order[2]);
        site.wait_paired(LONG);
        site.prove(clients);
        println!("{order:?}: well");
    }
}

fn small(node: Node) -> Plan {
    let settings = &[("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("wal_keep_size", "0")];
    Plan { small_disk: Some((node, 400)), ..Plan::quick().with_settings(settings) }
}

/// Writes until nothing more fits.
fn fill(site: &Site, node: Node) {
    let mut ballast = std::fs::File::create(site.file(node, "ballast")).unwrap();
    for size in [1 << 20, 4096, 1] {
        while ballast.write_all(&vec![7; size]).is_ok() {}
    }
}

fn full_disk(name: &str, full: Node) {
    let site = Site::with(name, small(full));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    fill(&site, full);
    site.wait_alone(full.other(), LONG);
    clients.wait_for_more(30, LONG);
    // It lives, says what is wrong, and has learned that it lost its role.
    site.wait(full, LONG, |status| status["troubles"]["disk"].is_string() && status["mode"] == "solo");
    std::fs::remove_file(site.file(full, "ballast")).unwrap();
    site.wait_paired(LONG);
    clients.wait_for_more(10, LONG);
    site.prove(clients);
}

#[test]
fn a_full_disk_of_the_primary_moves_its_role() {
    full_disk("fullprimary", Node::A);
}

#[test]
fn a_full_disk_of_the_standby_does_not_stop_writes() {
    full_disk("fullstandby", Node::B);
}

/// Each flush of the primary takes 200 ms longer: slow, but no reason for anything.
#[test]
fn a_slow_disk_is_no_lost_disk() {
    let site = Site::with("slowdisk", Plan::default().slow_disk(Node::A, Duration::from_millis(200)));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    let before = site.status(Node::A).unwrap()["epoch"].clone();
    let pause = clients.longest_pause(Duration::from_secs(10));
    println!("each flush 200 ms slower: longest pause {pause:?}");
    let status = site.status(Node::A).unwrap();
    assert_eq!((&status["epoch"], &status["phase"]), (&before, &"Leading".into()), "{status}");
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}
