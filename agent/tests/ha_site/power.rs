//! Power that goes: processes end, the network falls silent, and what was not flushed was never written.

use super::disks::Disks;
use super::site::{Node, Plan, Site};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(180);

fn plan() -> Plan {
    Plan { own_disks: true, ..Plan::quick() }
}

/// Written before each cut, and never flushed.
const WITNESS_OF_THE_CUT: &str = "not-flushed";

impl Site {
    /// At once for all of them; whoever is started later finds what the disk holds.
    pub fn cut_power(&mut self, parties: &[Node]) {
        for node in parties {
            self.net.isolate(*node);
        }
        for node in parties {
            self.kill(*node);
        }
        for node in parties.iter().filter(|node| !self.dark.contains(node)).copied().collect::<Vec<_>>() {
            std::fs::write(self.file(node, WITNESS_OF_THE_CUT), "x").unwrap();
            self.net.disks().cut(&self.home(node));
            self.dark.push(node);
        }
    }

    /// The disk of a party comes back, if its power was cut.
    pub fn light(&mut self, node: Node) {
        let Some(at) = self.dark.iter().position(|dark| *dark == node) else { return };
        self.dark.remove(at);
        let home = self.home(node);
        self.net.disks().unmount(&home);
        self.net.disks().mount(&home);
        assert!(!self.file(node, WITNESS_OF_THE_CUT).exists(), "the power cut was none");
        std::fs::remove_dir_all(self.file(node, "run")).unwrap();
    }

    fn power_on(&mut self, parties: &[Node]) {
        self.net.heal();
        parties.iter().for_each(|node| self.start(*node));
    }
}

/// Each set of machines loses its power while writes go on.
#[test]
fn power_cuts_take_what_was_not_flushed() {
    if !Disks::possible() {
        return;
    }
    let mut site = Site::with("power", plan());
    let (a, b, w) = (Node::A, Node::B, Node::W);
    let sets: [&[Node]; 7] = [&[a], &[b], &[w], &[a, w], &[b, w], &[a, b], &[a, b, w]];
    for off in sets {
        let mut clients = site.clients(2);
        clients.wait_for_more(40, LONG);
        site.cut_power(off);
        if off.len() == 1 {
            clients.wait_for_more(20, LONG);
        }
        site.power_on(off);
        clients.wait_for_more(20, LONG);
        site.wait_paired(LONG);
        site.prove(clients);
        println!("{off:?} off and on: well");
    }
}

/// Both lose their power again and again while they are on their way to each other.
#[test]
fn power_cuts_in_the_middle_of_a_rejoin() {
    if !Disks::possible() {
        return;
    }
    let mut site = Site::with("powerrejoin", plan());
    let mut clients = site.clients(2);
    for (turn, off) in [Node::A, Node::B, Node::A, Node::B].into_iter().enumerate() {
        clients.wait_for_more(20, LONG);
        site.cut_power(&[off]);
        clients.wait_for_more(20, LONG);
        site.power_on(&[off]);
        for on_the_way in [30 * turn, 20] {
            clients.wait_for_more(on_the_way, LONG);
            site.cut_power(&[Node::A, Node::B]);
            site.power_on(&[Node::A, Node::B]);
        }
        site.wait_paired(LONG);
    }
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

/// Nobody says that the copy's other end is gone: the stream is asked whether it lives.
#[test]
fn a_holder_loses_its_power_in_the_middle_of_a_copy() {
    if !Disks::possible() {
        return;
    }
    let mut site = Site::joining("powercopy", plan());
    let began = Instant::now();
    while site.signal_titled(Node::A, "sending backup", Signal::SIGSTOP) == 0 {
        assert!(began.elapsed() < LONG, "no copy begins");
    }
    site.cut_power(&[Node::A]);
    site.wait_log(Node::B, "a stream of a copy ended", LONG);
    println!("the copy was given up {:?} after the power went", began.elapsed());
    site.power_on(&[Node::A]);
    site.wait_paired(LONG);
    site.make_table();
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.cut_power(&[Node::A]);
    clients.outage(Node::B, LONG);
    site.power_on(&[Node::A]);
    site.wait_paired(LONG);
    site.prove(clients);
}
