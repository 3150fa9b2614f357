//! The site's network: one namespace per party on a bridge, all inside one user namespace of an ordinary user. A second
//! bridge stands for a second cable, which is never cut.

use super::disks::Disks;
use super::site::Node;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Sets up everything, says so, and waits until it is killed.
const SETUP: &str = "set -e; mount -t tmpfs t /run; mkdir /run/netns; ip link set lo up; \
    for c in 0 1; do ip link add br$c type bridge; ip link set br$c up; done; \
    for n in 1 2 3 4; do ip netns add n$n; ip netns exec n$n ip link set lo up; \
    for c in 0 1; do ip link add v$c$n type veth peer name eth$c netns n$n; ip link set v$c$n master br$c up; \
    ip netns exec n$n ip addr add 10.7$((7 + c)).0.$n/24 dev eth$c; ip netns exec n$n ip link set eth$c up; done; done; \
    echo ready; exec sleep 100000";

/// A process that says that its namespaces are ready, and holds them until it is killed.
pub fn hold_namespaces(unshare: &mut Command) -> Child {
    let mut holder = unshare
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start `unshare` (Debian: util-linux)");
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "ready", "namespaces cannot be made here: see what `unshare` or `ip` said above");
    holder
}

pub struct Net {
    holder: Child,
    pid: String,
    disks: Option<Disks>,
}

impl Net {
    /// With disks, what is mounted there appears here.
    pub fn new(disks: Option<Disks>) -> Self {
        let (mut unshare, spread) = match &disks {
            Some(disks) => (disks.inside("unshare"), "slave"),
            None => (Command::new("unshare"), "private"),
        };
        unshare.args(["--user", "--map-root-user", "--mount", "--propagation", spread, "--net"]);
        let holder = hold_namespaces(unshare.args(["--kill-child", "sh", "-c", SETUP]));
        let pid = holder.id().to_string();
        Self { holder, pid, disks }
    }

    /// The parties' disks, in a site that has some.
    pub fn disks(&self) -> &Disks {
        self.disks.as_ref().expect("a plan with disks")
    }

    /// A command as root of the namespaces, in a party's network.
    pub fn inside(&self, node: Node, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let namespace = format!("n{}", node.number());
        command.args(["--target", &self.pid, "--user", "--mount", "--net", "--preserve-credentials"]);
        command.args(["ip", "netns", "exec", &namespace, program]);
        command
    }

    /// A command as an ordinary user, which Postgres insists on, in a party's network.
    pub fn as_user(&self, node: Node, program: &str) -> Command {
        let mut command = self.inside(node, "unshare");
        command.args(["--user", "--map-user=1000", "--map-group=1000", program]);
        command
    }

    /// A path as the parties see it, which may lie on a disk that only they have.
    pub fn outside(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.pid, path.display()))
    }

    /// A small disk of its own at this folder, for every process that is started later.
    pub fn small_disk(&self, folder: &Path, mib: u32) {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--user", "--mount", "--net", "--preserve-credentials"]);
        command.args(["mount", "-t", "tmpfs", "-o", &format!("size={mib}M,mode=0777"), "small"]);
        assert!(command.arg(folder).status().expect("start `nsenter`").success(), "mount a small disk");
    }

    /// So many of a hundred packets that would arrive at each party are lost.
    pub fn lose(&self, percent: u8) {
        let chance = format!("0.{percent:02}");
        let rule =
            ["-A", "INPUT", "-i", "eth0", "-m", "statistic", "--mode", "random", "--probability", &chance];
        for node in Node::ALL {
            let status = self.inside(node, "iptables").args(rule).args(["-j", "DROP"]).status();
            assert!(status.expect("start `iptables` (Debian: iptables)").success(), "iptables");
        }
    }

    /// Every packet arrives again.
    pub fn lose_nothing(&self) {
        for node in Node::ALL {
            assert!(self.inside(node, "iptables").args(["-F", "INPUT"]).status().unwrap().success());
        }
    }

    /// What a party's kernel believes about a neighbour.
    pub fn neighbour(&self, node: Node, ip: &str) -> String {
        let output = self.inside(node, "ip").args(["neigh", "show", ip]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The hardware address of a party.
    pub fn hardware(&self, node: Node) -> String {
        let output = self.inside(node, "cat").arg("/sys/class/net/eth0/address").output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn neighbours(&self, node: Node, args: &[&str]) {
        let status = self.inside(node, "ip").arg("neigh").args(args).status().expect("start `ip`");
        assert!(status.success(), "ip neigh {args:?}");
    }

    /// `node` does not hear `other` any more: what is sent to it goes to a station that does not exist.
    pub fn deafen(&self, node: Node, other: Node) {
        let nobody = ["lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"];
        self.neighbours(other, &[&["replace", &node.address()], nobody.as_slice()].concat());
    }

    /// These two do not hear each other.
    pub fn part(&self, a: Node, b: Node) {
        self.deafen(a, b);
        self.deafen(b, a);
    }

    /// Nobody hears `node`, and it hears nobody.
    pub fn isolate(&self, node: Node) {
        for other in Node::ALL.into_iter().filter(|other| *other != node) {
            self.part(node, other);
        }
    }

    /// These two, who were parted, hear each other again.
    pub fn heal_between(&self, a: Node, b: Node) {
        for (node, other) in [(a, b), (b, a)] {
            self.neighbours(node, &["del", &other.address(), "dev", "eth0"]);
        }
    }

    /// Everybody hears everybody.
    pub fn heal(&self) {
        Node::ALL
            .into_iter()
            .for_each(|node| self.neighbours(node, &["flush", "dev", "eth0", "nud", "permanent"]));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for done in [self.holder.kill(), self.holder.wait().map(drop)] {
            done.expect("end the namespaces");
        }
    }
}
