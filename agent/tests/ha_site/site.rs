//! One site: folders, configurations, processes.

mod watch;

use super::client::{self, Ack, Clients};
use super::disks::Disks;
use super::net::Net;
pub use super::plan::{Node, Plan};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct Site {
    pub net: Net,
    folder: PathBuf,
    _guard: tempfile::TempDir,
    running: Vec<(Node, Child)>,
    relays: Vec<Child>,
    /// Whose power was cut.
    pub dark: Vec<Node>,
    pub plan: Plan,
}

/// A party's own disk.
const DISK_MIB: u64 = 1024;
const SITE: &str = "00000000000000aa";

pub fn agent() -> &'static str {
    env!("CARGO_BIN_EXE_farhold-agent")
}

/// The newest Postgres of Debian, or the one that is asked for.
pub fn postgres() -> PathBuf {
    if let Ok(path) = std::env::var("FARHOLD_PG_BIN") {
        return PathBuf::from(path);
    }
    let installed = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(Result::ok);
    let newest =
        installed.map(|entry| entry.path().join("bin")).filter(|path| path.join("initdb").exists()).max();
    newest.expect(
        "no Postgres here: install Debian's `postgresql`, or set FARHOLD_PG_BIN to its folder of programs",
    )
}

impl Site {
    /// A new site, both nodes in sync, A primary, kine's table made.
    pub fn paired(name: &str) -> Self {
        Self::with(name, Plan::default())
    }

    /// The same with shorter times.
    pub fn paired_quickly(name: &str) -> Self {
        Self::with(name, Plan::quick())
    }

    /// The same with whatever else differs.
    pub fn with(name: &str, plan: Plan) -> Self {
        let site = Self::joining(name, plan);
        site.wait_paired(Duration::from_secs(300));
        site.make_table();
        site
    }

    /// The same at the moment at which A was told to take B in.
    pub fn joining(name: &str, plan: Plan) -> Self {
        let mut site = Self::empty(name, plan);
        let a = site.enrol(Node::A, &["--first"]);
        let b = site.enrol(Node::B, &[]);
        let w = site.plan.witness.then(|| site.enrol_witness(&a, &b));
        site.configure(Node::A, Some(&b), w.as_ref());
        site.configure(Node::B, Some(&a), w.as_ref());
        site.relay();
        for node in Node::ALL.into_iter().filter(|_| site.plan.own_disks) {
            site.net.disks().flush(&site.home(node));
        }
        site.parties().into_iter().for_each(|node| site.start(node));
        site.wait(Node::A, Duration::from_secs(60), |status| status["phase"] == "Alone(Apart)");
        site.ha(Node::A, &["apply"]);
        site
    }

    /// Networks and folders, nothing else.
    pub fn empty(name: &str, plan: Plan) -> Self {
        let guard = tempfile::Builder::new().prefix(&format!("ha-{name}-")).tempdir().unwrap();
        let folder = guard.path().to_owned();
        let net = Net::new(plan.own_disks.then(Disks::new));
        let (running, relays, dark) = (Vec::new(), Vec::new(), Vec::new());
        let site = Self { net, folder, _guard: guard, running, relays, dark, plan };
        for node in Node::ALL.into_iter().filter(|_| site.plan.own_disks) {
            std::fs::create_dir_all(site.home(node)).unwrap();
            site.net.disks().add(&site.home(node), DISK_MIB);
        }
        if let Some((node, mib)) = site.plan.small_disk {
            std::fs::create_dir_all(site.home(node)).unwrap();
            site.net.small_disk(&site.home(node), mib);
        }
        site
    }

    pub fn make_table(&self) {
        let mut table = self.client(Node::A, "table");
        assert!(table.stdout(Stdio::null()).status().unwrap().success());
    }

    /// Nodes, and the witness if there is one.
    pub fn parties(&self) -> Vec<Node> {
        Node::ALL.into_iter().filter(|node| self.plan.witness || *node != Node::W).collect()
    }

    pub fn enrol_witness(&self, a: &Value, b: &Value) -> Value {
        let node = |party: &Value| {
            format!("{}:{}", party["voter"].as_str().unwrap(), party["key"].as_str().unwrap())
        };
        let (state, run) = (self.path("w/state"), self.path("w/run"));
        let mut add = self.net.as_user(Node::W, agent());
        add.args(["witness", "--state", &state, "--run", &run, "add", "--site", SITE]);
        output(add.args(["--node", &node(a), "--node", &node(b)]))
    }

    /// On every node a relay to each other party, which holds everything back for a while.
    fn relay(&mut self) {
        let Some(delay) = self.plan.delay_ms else { return };
        for node in [Node::A, Node::B] {
            for other in Node::ALL.into_iter().filter(|other| *other != node) {
                let (own, replays) = (node.address(), self.plan.replays);
                let ways = format!("{own}:{},{}:7600,{delay},{replays}", relay_port(other), other.address());
                let mut command = self.worker(node, "relay");
                let relay = command.env("FARHOLD_HA_RELAY", ways).stdout(Stdio::null()).spawn().unwrap();
                self.relays.push(relay);
            }
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub fn home(&self, node: Node) -> PathBuf {
        self.folder.join(format!("{node:?}").to_lowercase())
    }

    /// A file of a node, as this process reaches it.
    pub fn file(&self, node: Node, name: &str) -> PathBuf {
        self.net.outside(&self.home(node).join(name))
    }

    /// Writes a node's configuration: its peer and its witness, each with where it is.
    pub fn configure_as(&self, node: Node, others: &[(&str, Node, &Value)]) -> PathBuf {
        let home = self.home(node);
        std::fs::create_dir_all(self.file(node, "")).unwrap();
        let mut config = json!({
            "site": SITE, "state": home.join("state"), "run": home.join("run"), "counter": home.join("count"),
            "machine": home.join("serial-number"), "times": self.plan.times,
            "listen": format!("{}:7600", node.address()), "port": "127.0.0.1:5000",
            "postgres": { "bin": postgres(), "data": home.join("data"),
                "settings": { "shared_buffers": "16MB", "max_connections": "40" } },
            "k3s": super::k3s::configuration(&home, node),
        });
        for (name, other, party) in others {
            let address = match self.plan.delay_ms {
                Some(_) => format!("{}:{}", node.address(), relay_port(*other)),
                None => format!("{}:7600", other.address()),
            };
            config[*name] = json!({ "voter": party["voter"], "key": party["key"], "addresses": [address] });
        }
        (self.plan.tweak)(node, &mut config);
        std::fs::write(self.file(node, "serial-number"), format!("{node:?}")).unwrap();
        std::fs::write(self.file(node, "ha.json"), config.to_string()).unwrap();
        home.join("ha.json")
    }

    /// A node of the ordinary pair.
    pub fn configure(&self, node: Node, peer: Option<&Value>, witness: Option<&Value>) -> PathBuf {
        let peer = peer.map(|peer| ("peer", node.other(), peer));
        let witness = witness.map(|witness| ("witness", Node::W, witness));
        self.configure_as(node, &peer.into_iter().chain(witness).collect::<Vec<_>>())
    }

    pub fn enrol(&self, node: Node, args: &[&str]) -> Value {
        let config = self.configure(node, None, None);
        output(self.net.as_user(node, agent()).args(["ha", "--config"]).arg(config).arg("init").args(args))
    }

    pub fn start(&mut self, node: Node) {
        self.light(node);
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{node:?}.log")))
            .unwrap();
        let wrap = self.plan.wrap.as_ref().filter(|(wrapped, _)| *wrapped == node);
        let words = wrap.iter().flat_map(|(_, words)| words.iter().map(String::as_str)).chain([agent()]);
        let words: Vec<&str> = words.collect();
        let mut command = self.net.as_user(node, words[0]);
        command.args(&words[1..]).envs(self.plan.env.iter().map(|(name, value)| (name, value)));
        if node == Node::W {
            let (state, run) = (self.path("w/state"), self.path("w/run"));
            command.args(["witness", "--state", &state, "--run", &run, "--listen", "10.77.0.3:7600"]);
        } else {
            command.args(["ha", "--config"]).arg(self.home(node).join("ha.json")).arg("run");
        }
        command.env("FARHOLD_LOG", "agent=debug,info").stdin(Stdio::null());
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).process_group(0).spawn().unwrap();
        self.running.push((node, child));
    }

    /// Another process of a party, which ends with it.
    pub fn adopt(&mut self, node: Node, mut command: Command) -> u32 {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{node:?}.log")))
            .unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = command.spawn().unwrap();
        let pid = child.id();
        self.running.push((node, child));
        pid
    }

    /// The process of a party that was started last; it is no longer ended with it.
    pub fn take_last(&mut self, node: Node) -> (Node, Child) {
        let at = self.running.iter().rposition(|(running, _)| *running == node).unwrap();
        self.running.remove(at)
    }

    /// kill -9 of every process of a party: the agent and its Postgres.
    pub fn kill(&mut self, node: Node) {
        self.signal(node, Signal::SIGKILL);
        for (_, child) in self.running.iter_mut().filter(|(running, _)| *running == node) {
            child.wait().unwrap();
        }
        self.running.retain(|(running, _)| *running != node);
    }

    /// Sends a signal to every process of a party.
    pub fn signal(&self, node: Node, signal: Signal) {
        let home = self.home(node);
        let (folder, data) = (format!("{}/", home.display()), home.join("data"));
        let of_node = |pid: &Path| {
            let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
            let cwd = std::fs::read_link(pid.join("cwd")).unwrap_or_default();
            cwd == data || String::from_utf8_lossy(&line).contains(&folder)
        };
        processes(of_node, signal);
    }

    /// kill -9 of a node's database server only.
    pub fn kill_server(&self, node: Node) {
        let text = std::fs::read_to_string(self.file(node, "data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) {
            send(pid, Signal::SIGKILL);
        }
    }

    /// A signal to the database server's processes only.
    pub fn signal_server(&self, node: Node, signal: Signal) {
        let data = self.home(node).join("data");
        processes(|pid| std::fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd == data), signal);
    }

    /// A signal to the processes of a node's database whose title has this word; how many there were.
    pub fn signal_titled(&self, node: Node, title: &str, signal: Signal) -> usize {
        let data = self.home(node).join("data");
        let chosen = |pid: &Path| {
            let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
            std::fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd == data)
                && String::from_utf8_lossy(&line).contains(title)
        };
        processes(chosen, signal)
    }

    /// A signal to the agent only, not to its database.
    pub fn signal_agent(&self, node: Node, signal: Signal) {
        let (folder, data) = (format!("{}/", self.home(node).display()), self.home(node).join("data"));
        let of_agent = |pid: &Path| {
            let line = std::fs::read(pid.join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let server = std::fs::read_link(pid.join("cwd")).is_ok_and(|cwd| cwd == data);
            line.starts_with(agent()) && line.contains(&folder) && !server
        };
        processes(of_agent, signal);
    }

    /// Number and key of a party, as its first configuration told the others.
    pub fn party(&self, node: Node) -> Value {
        let text = std::fs::read_to_string(self.file(node.other(), "ha.json")).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        config[if node == Node::W { "witness" } else { "peer" }].clone()
    }

    /// Changes a node's configuration where it stands.
    pub fn change_config(&self, node: Node, change: impl FnOnce(&mut Value)) {
        let path = self.file(node, "ha.json");
        let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut config);
        std::fs::write(&path, config.to_string()).unwrap();
    }

    /// The disk of a node that is off, cloned into another machine; what dies with a boot is not on it.
    pub fn clone_disk(&self, from: Node, to: Node) {
        let status =
            Command::new("cp").arg("-a").arg(self.file(from, "")).arg(self.file(to, "")).status().unwrap();
        assert!(status.success());
        std::fs::remove_dir_all(self.file(to, "run")).unwrap();
        std::fs::write(self.file(to, "serial-number"), format!("{to:?}")).unwrap();
        let text = std::fs::read_to_string(self.file(to, "ha.json")).unwrap();
        let (home, there) = (self.home(from).display().to_string(), self.home(to).display().to_string());
        let text = text.replace(&format!("{home}/"), &format!("{there}/"));
        let own = |node: Node| format!("\"listen\":\"{}:", node.address());
        std::fs::write(self.file(to, "ha.json"), text.replace(&own(from), &own(to))).unwrap();
    }

    /// Resident memory of a party's agent.
    pub fn resident_kib(&self, node: Node) -> u64 {
        let folder = format!("{}/", self.home(node).display());
        let mut found = 0;
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            if line.starts_with(agent()) && line.contains(&folder) {
                let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
                let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
                let kib =
                    resident.and_then(|text| text.split_whitespace().next()).and_then(|kib| kib.parse().ok());
                found = found.max(kib.unwrap_or(0));
            }
        }
        found
    }

    /// What a node exported, by file.
    pub fn exports(&self, node: Node) -> Vec<String> {
        let files = std::fs::read_dir(self.file(node, "state/exports")).into_iter().flatten();
        files.filter_map(Result::ok).map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
    }

    /// What a backup of a node that is off holds: all but what dies with a boot, and the counter that belongs in none.
    pub fn back_up(&self, node: Node) -> PathBuf {
        let backup = self.folder.join(format!("backup-of-{node:?}"));
        std::fs::create_dir(&backup).unwrap();
        for part in ["state", "data"] {
            let copied =
                Command::new("cp").arg("-a").arg(self.file(node, part)).arg(&backup).status().unwrap();
            assert!(copied.success());
        }
        backup
    }

    /// Puts a node that is off back to it, as documented: the counter goes.
    pub fn restore(&self, node: Node, backup: &Path) {
        for part in ["state", "data", "run"] {
            std::fs::remove_dir_all(self.file(node, part)).unwrap();
        }
        std::fs::remove_file(self.file(node, "count")).unwrap();
        for part in ["state", "data"] {
            let copied = Command::new("cp")
                .arg("-a")
                .arg(backup.join(part))
                .arg(self.file(node, ""))
                .status()
                .unwrap();
            assert!(copied.success());
        }
    }

    fn witness_state(&self) -> PathBuf {
        self.home(Node::W).join(format!("state/{SITE}.state"))
    }

    pub fn back_up_witness(&self) -> Vec<u8> {
        std::fs::read(self.witness_state()).unwrap()
    }

    /// As after a reboot of a machine whose disk was restored: what dies with the boot is gone.
    pub fn restore_witness(&self, backup: &[u8]) {
        std::fs::write(self.witness_state(), backup).unwrap();
        std::fs::remove_dir_all(self.home(Node::W).join("run")).unwrap();
    }

    /// Another key in place of the node's own.
    pub fn forge_key(&self, node: Node) {
        let path = self.file(node, "state/key");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [7; 32]).unwrap();
    }

    /// A worker of this program inside a node's network.
    pub fn worker(&self, node: Node, what: &str) -> Command {
        let this = std::env::current_exe().unwrap();
        let mut command = self.net.as_user(node, this.to_str().unwrap());
        command.args(["client_worker", "--exact", "--ignored", "--nocapture"]);
        command.env("FARHOLD_HA_CLIENT", what).stdin(Stdio::null());
        command
    }

    /// A client of the port on a node.
    pub fn client(&self, node: Node, what: &str) -> Command {
        let password = std::fs::read_to_string(self.file(Node::A, "state/datastore-password")).unwrap();
        let mut command = self.worker(node, what);
        command.env("FARHOLD_HA_PASSWORD", password).env("FARHOLD_HA_PORT", self.home(node).join("run/port"));
        command
    }

    pub fn clients(&self, on_each: usize) -> Clients {
        Clients::new(self, &[Node::A, Node::B], on_each)
    }

    pub fn clients_on(&self, node: Node, count: usize) -> Clients {
        Clients::new(self, &[node], count)
    }

    pub fn rows(&self, node: Node) -> Vec<Ack> {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let output = self.client(node, "read").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && text.contains("END") {
                return text.lines().filter_map(|line| client::parse(node.number(), line)).collect();
            }
            assert!(Instant::now() < until, "{node:?} gives no rows: {text}");
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Ends the clients and proves that both ports show everything that was acknowledged.
    pub fn prove(&self, clients: Clients) {
        self.prove_on(clients, &[Node::A, Node::B]);
    }

    /// The same with other nodes.
    pub fn prove_on(&self, clients: Clients, nodes: &[Node]) {
        let acks = clients.end();
        for node in nodes.iter().copied() {
            let rows = self.rows(node);
            client::check(&acks, &rows).unwrap_or_else(|violation| panic!("{node:?}: {violation}"));
            println!("{node:?}: {} acknowledged writes, all among {} rows", acks.len(), rows.len());
        }
    }
}

pub fn output(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{command:?}: {said}"))
}

fn relay_port(node: Node) -> u16 {
    7700 + u16::from(node.number())
}

fn send(pid: i32, signal: Signal) {
    match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
        // One that ended in between is as dead as the others.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(error) => panic!("{signal} to {pid}: {error}"),
    }
}

/// A signal to every process of which `chosen` says so, by its folder in /proc; how many these were.
fn processes(chosen: impl Fn(&Path) -> bool, signal: Signal) -> usize {
    let mut hit = 0;
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        if let Some(pid) = number.filter(|_| chosen(&entry.path())) {
            send(pid, signal);
            hit += 1;
        }
    }
    hit
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        [Node::A, Node::B, Node::W, Node::C].into_iter().for_each(|node| self.kill(node));
        for mut relay in self.relays.drain(..) {
            relay.kill().unwrap();
            relay.wait().unwrap();
        }
    }
}
