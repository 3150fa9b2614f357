//! More paths than one: a serial cable between the nodes, an address that follows the primary, and the tunnel as a way from
//! agent to agent.

use super::site::{Node, Plan, Site, agent};
use nix::fcntl::OFlag;
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(120);

/// Two pseudo terminals joined by threads: a serial cable without a serial port.
fn cable() -> [String; 2] {
    let ends = [(); 2].map(|()| {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        master
    });
    let names = [0, 1].map(|end| ptsname_r(&ends[end]).unwrap());
    let files = ends.map(|master: PtyMaster| std::fs::File::from(std::os::fd::OwnedFd::from(master)));
    for (from, to) in [(0, 1), (1, 0)] {
        let (mut from, mut to) = (files[from].try_clone().unwrap(), files[to].try_clone().unwrap());
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                match from.read(&mut buffer) {
                    Ok(length) if length > 0 => to.write_all(&buffer[..length]).unwrap(),
                    // Nobody has opened the other side yet, or not again.
                    Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        });
    }
    names
}

fn with_cable(names: [String; 2]) -> Plan {
    let tweak = move |node: Node, config: &mut Value| {
        if node != Node::W {
            config["serial"] = json!({ "device": names[usize::from(node.number()) - 1], "baud": 115_200 });
        }
    };
    Plan { tweak: Box::new(tweak), ..Plan::default() }
}

/// The network between the nodes dies, the cable lives: the standby knows that the primary is well and does not ask for
/// the role; the primary, which cannot replicate, goes on alone with the witness.
#[test]
fn a_serial_cable_prevents_a_false_alarm() {
    let site = Site::with("serial", with_cable(cable()));
    let mut clients = site.clients(2);
    for node in [Node::A, Node::B] {
        site.wait(node, LONG, |status| status["serial_heard_ms"].as_u64().is_some_and(|ms| ms < 5_000));
    }
    for _ in 0..3 {
        clients.wait_for_more(20, LONG);
        let epoch = site.status(Node::A).unwrap()["epoch"].as_u64();
        site.net.part(Node::A, Node::B);
        site.wait_alone(Node::A, LONG);
        assert_eq!(site.status(Node::A).unwrap()["epoch"].as_u64(), epoch.map(|epoch| epoch + 1));
        // It learns over the cable whom it lost to, and hears that the peer is alive.
        site.wait(Node::B, LONG, |status| {
            status["mode"] == "solo" && status["peer_heard_ms"].as_u64().is_some_and(|ms| ms < 3_000)
        });
        clients.wait_for_more(20, LONG);
        site.net.heal();
        site.wait_paired(LONG);
    }
    assert!(
        !site.log(Node::B).contains("to=Taking"),
        "the standby took the role although it heard the primary"
    );
    site.prove(clients);
}

/// Two network cables between the nodes: while one is cut, messages and streams take the other, and the pair is in sync.
#[test]
fn a_second_cable_carries_the_pair() {
    let tweak = |node: Node, config: &mut Value| {
        config["listen"] = "0.0.0.0:7600".into();
        if let Some(addresses) = config.pointer_mut("/peer/addresses").and_then(Value::as_array_mut) {
            addresses.push(format!("{}:7600", node.other().second_address()).into());
        }
    };
    let site = Site::with("cables", Plan { tweak: Box::new(tweak), ..Plan::quick() });
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.net.part(Node::A, Node::B);
    clients.wait_for_more(50, LONG);
    site.wait_paired(LONG);
    clients.wait_for_more(50, LONG);
    for node in [Node::A, Node::B] {
        let status = site.status(node).unwrap();
        assert!(status["peer_heard_ms"].as_u64().is_some_and(|ms| ms < 2_000), "{status}");
    }
    // Roles change over it, too.
    site.switch_over(site.primary(LONG), LONG);
    clients.wait_for_more(50, LONG);
    site.net.heal();
    clients.wait_for_more(20, LONG);
    site.wait_paired(LONG);
    site.prove(clients);
}

/// Whatever noise the cable makes, and even cut off from everything else: no vote goes over it.
#[test]
fn a_serial_cable_carries_no_vote() {
    let site = Site::with("novote", with_cable(cable()));
    let mut clients = site.clients(2);
    clients.wait_for_more(20, LONG);
    site.net.isolate(Node::A);
    site.net.isolate(Node::B);
    for node in [Node::A, Node::B] {
        site.wait(node, LONG, |status| status["witness_heard_ms"].as_u64().is_some_and(|ms| ms > 8_000));
        assert!(site.status(node).unwrap()["serial_heard_ms"].as_u64().is_some_and(|ms| ms < 3_000));
        assert!(!site.is_alone(node), "{node:?} went on alone with a vote over the cable");
    }
    site.net.heal();
    site.wait_paired(LONG);
    clients.wait_for_more(20, LONG);
    site.prove(clients);
}

struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The process that may change addresses runs beside each node; a third machine's kernel learns from what it announces.
#[test]
fn the_address_follows_the_primary_and_neighbours_are_told() {
    const IP: &str = "10.77.0.99";
    let tweak = |_, config: &mut Value| config["address"] = json!({ "ip": IP, "prefix": 24 });
    let site = Site::with("address", Plan { tweak: Box::new(tweak), ..Plan::quick() });
    let followers = [Node::A, Node::B].map(|node| {
        let mut command = site.net.inside(node, agent());
        command.arg("ha").arg("--config").arg(site.home(node).join("ha.json")).arg("address");
        Follower(command.stdin(Stdio::null()).spawn().unwrap())
    });
    let has = |node: Node| {
        let output =
            site.net.inside(node, "ip").args(["-4", "address", "show", "dev", "eth0"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).contains(IP)
    };
    let until = |what: &str, done: &dyn Fn() -> bool| {
        let end = Instant::now() + LONG;
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    until("A has the address", &|| has(Node::A) && !has(Node::B));
    // The fourth machine looks once, and never again: what it knows later, it was told.
    let mut look = site.net.inside(Node::C, "bash");
    look.args(["-c", &format!("echo x > /dev/udp/{IP}/9")]);
    assert!(look.status().unwrap().success());
    let (a, b) = (site.net.hardware(Node::A), site.net.hardware(Node::B));
    until("C knows where the address is", &|| site.net.neighbour(Node::C, IP).contains(&a));
    site.net.isolate(Node::A);
    until("B has the address", &|| has(Node::B));
    until("C was told", &|| site.net.neighbour(Node::C, IP).contains(&b));
    // The isolated node lets go of it as well, and does not take it back with the old role.
    until("A has let go", &|| !has(Node::A));
    site.net.heal();
    site.wait_paired(LONG);
    site.switch_over(Node::B, LONG);
    until("A has it again", &|| has(Node::A) && !has(Node::B));
    until("C was told again", &|| site.net.neighbour(Node::C, IP).contains(&a));
    drop(followers);
}

/// What the agent of one node says to that of the other, many packets of the tunnel long, comes back turned round.
#[test]
fn agents_reach_each_other_through_the_tunnel() {
    let tweak = |_, config: &mut Value| {
        let run = config["run"].as_str().unwrap().to_owned();
        config["blocks"] = json!(Path::new(&run).with_file_name("agent"));
    };
    let site = Site::with("tunnel", Plan { tweak: Box::new(tweak), ..Plan::quick() });
    site.wait_paired(LONG);
    let said: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    for (from, to) in [(Node::A, Node::B), (Node::B, Node::A)] {
        let listener = UnixListener::bind(site.file(to, "agent")).unwrap();
        let length = said.len();
        let agent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; length];
            stream.read_exact(&mut heard).unwrap();
            heard.reverse();
            stream.write_all(&heard).unwrap();
        });
        let mut stream = UnixStream::connect(site.file(from, "run/blocks")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(&said).unwrap();
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer).unwrap();
        agent.join().unwrap();
        answer.reverse();
        assert!(answer == said, "from {from:?} to {to:?}: other bytes came back");
    }
    // Without an agent over there the stream ends, and so it does without a way there.
    std::fs::remove_file(site.file(Node::B, "agent")).unwrap();
    let ends = || {
        let mut stream = UnixStream::connect(site.file(Node::A, "run/blocks")).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    };
    ends();
    site.net.isolate(Node::A);
    ends();
}
