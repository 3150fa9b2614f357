//! One site: folders, configurations, processes.

use super::client::{self, Ack, Clients};
use super::net::Net;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    A,
    B,
    W,
}

impl Node {
    pub const ALL: [Self; 3] = [Self::A, Self::B, Self::W];

    pub fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
            Self::W => 3,
        }
    }

    pub fn address(self) -> String {
        format!("10.77.0.{}", self.number())
    }
}

pub struct Site {
    pub net: Net,
    folder: PathBuf,
    _guard: tempfile::TempDir,
    running: Vec<(Node, Child)>,
    times: Value,
}

const SITE: &str = "00000000000000aa";

pub fn agent() -> &'static str {
    env!("CARGO_BIN_EXE_farhold-agent")
}

/// The newest Postgres of Debian, or the one that is asked for.
fn postgres() -> PathBuf {
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
        Self::new(name, json!({}))
    }

    /// The same with shorter times.
    pub fn paired_quickly(name: &str) -> Self {
        let times = json!({ "peer_lost_ms": 1000, "retry_ms": 300, "stale_ms": 2000, "rejoin_pause_ms": 100, "hand_over_ms": 5000 });
        Self::new(name, times)
    }

    fn new(name: &str, times: Value) -> Self {
        let guard = tempfile::Builder::new().prefix(&format!("ha-{name}-")).tempdir().unwrap();
        let mut site = Self {
            net: Net::new(),
            folder: guard.path().to_owned(),
            _guard: guard,
            running: Vec::new(),
            times,
        };
        let a = site.enrol(Node::A, &["--first"]);
        let b = site.enrol(Node::B, &[]);
        let node = |party: &Value| {
            format!("{}:{}", party["voter"].as_str().unwrap(), party["key"].as_str().unwrap())
        };
        let (state, run) = (site.path("w/state"), site.path("w/run"));
        let mut add = site.net.as_user(Node::W, agent());
        add.args(["witness", "--state", &state, "--run", &run, "add", "--site", SITE]);
        let w = output(add.args(["--node", &node(&a), "--node", &node(&b)]));
        site.configure(Node::A, Some((&b, &w)));
        site.configure(Node::B, Some((&a, &w)));
        Node::ALL.into_iter().for_each(|node| site.start(node));
        site.wait(Node::A, Duration::from_secs(60), |status| status["phase"] == "Alone(Apart)");
        site.ha(Node::A, &["apply"]);
        site.wait_paired(Duration::from_secs(120));
        let mut table = site.client(Node::A, "table");
        assert!(table.stdout(Stdio::null()).status().unwrap().success());
        site
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    pub fn home(&self, node: Node) -> PathBuf {
        self.folder.join(format!("{node:?}").to_lowercase())
    }

    fn configure(&self, node: Node, others: Option<(&Value, &Value)>) -> PathBuf {
        let home = self.home(node);
        std::fs::create_dir_all(&home).unwrap();
        let party = |value: &Value, other: Node| {
            json!({ "voter": value["voter"], "key": value["key"],
            "addresses": [format!("{}:7600", other.address())] })
        };
        let other = if node == Node::A { Node::B } else { Node::A };
        let mut config = json!({
            "site": SITE, "state": home.join("state"), "run": home.join("run"), "counter": home.join("count"),
            "times": self.times,
            "listen": format!("{}:7600", node.address()), "port": "127.0.0.1:5000",
            "postgres": { "bin": postgres(), "data": home.join("data"),
                "settings": { "shared_buffers": "16MB", "max_connections": "40" } },
            "k3s": super::k3s::configuration(&home, node),
        });
        if let Some((peer, witness)) = others {
            config["peer"] = party(peer, other);
            config["witness"] = party(witness, Node::W);
        }
        let path = home.join("ha.json");
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    fn enrol(&self, node: Node, args: &[&str]) -> Value {
        let config = self.configure(node, None);
        output(self.net.as_user(node, agent()).args(["ha", "--config"]).arg(config).arg("init").args(args))
    }

    pub fn start(&mut self, node: Node) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{node:?}.log")))
            .unwrap();
        let mut command = self.net.as_user(node, agent());
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
        for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
            let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if let Some(pid) = number.filter(|_| of_node(&entry.path())) {
                match nix::sys::signal::kill(Pid::from_raw(pid), signal) {
                    // One that ended in between is as dead as the others.
                    Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => panic!("{signal} to {pid}: {error}"),
                }
            }
        }
    }

    /// kill -9 of a node's database server only.
    pub fn kill_server(&self, node: Node) {
        let text = std::fs::read_to_string(self.home(node).join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = text.lines().next().and_then(|line| line.trim().parse().ok()) {
            match nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => panic!("kill {pid}: {error}"),
            }
        }
    }

    fn ha(&self, node: Node, args: &[&str]) {
        let config = self.home(node).join("ha.json");
        let mut command = self.net.as_user(node, agent());
        let output = command.args(["ha", "--config"]).arg(config).args(args).output().unwrap();
        assert!(output.status.success(), "ha {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn status(&self, node: Node) -> Option<Value> {
        let config = self.home(node).join("ha.json");
        let mut command = self.net.as_user(node, agent());
        let output =
            command.args(["ha", "--config"]).arg(config).args(["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn wait(&self, node: Node, patience: Duration, done: impl Fn(&Value) -> bool) {
        let until = Instant::now() + patience;
        loop {
            let status = self.status(node);
            if status.as_ref().is_some_and(&done) {
                return;
            }
            if Instant::now() > until {
                self.show_logs();
                panic!("{node:?} did not come so far in {patience:?}: {status:?}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn show_logs(&self) {
        for node in Node::ALL {
            let log = std::fs::read_to_string(self.folder.join(format!("{node:?}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- {node:?}, {} lines", lines.len());
            lines[lines.len().saturating_sub(80)..].iter().for_each(|line| println!("{line}"));
        }
    }

    /// Both nodes are in sync and one serves.
    pub fn wait_paired(&self, patience: Duration) {
        let settled = |status: &Value| status["phase"] == "Leading" || status["phase"] == "Following";
        for node in [Node::A, Node::B] {
            self.wait(node, patience, |status| status["mode"] == "paired" && settled(status));
        }
    }

    pub fn switch_over(&self, from: Node, patience: Duration) {
        self.ask_switch_over(from);
        self.wait_leading(if from == Node::A { Node::B } else { Node::A }, patience);
        self.wait_paired(patience);
    }

    /// Asks for a hand-over; whoever is not the primary of a pair says no.
    pub fn try_switch_over(&self, node: Node) {
        if node != Node::W {
            let config = self.home(node).join("ha.json");
            let mut command = self.net.as_user(node, agent());
            drop(command.args(["ha", "--config"]).arg(config).arg("switchover").output().unwrap());
        }
    }

    pub fn ask_switch_over(&self, from: Node) {
        self.ha(from, &["switchover"]);
    }

    pub fn wait_leading(&self, node: Node, patience: Duration) {
        self.wait(node, patience, |status| status["phase"] == "Leading");
    }

    fn alone(status: &Value) -> bool {
        status["mode"] == "solo" && status["is_primary"] == true
    }

    pub fn is_alone(&self, node: Node) -> bool {
        self.status(node).as_ref().is_some_and(Self::alone)
    }

    pub fn wait_alone(&self, node: Node, patience: Duration) {
        self.wait(node, patience, Self::alone);
    }

    /// Folder of a node's database socket.
    pub fn socket(&self, node: Node) -> PathBuf {
        self.home(node).join("run/db")
    }

    /// Waits until a node has heard nothing of its peer for `span` more, by its own clock: it was awake all the while.
    pub fn wait_deaf(&self, node: Node, span: Duration) {
        let deaf = |status: &Value| status["peer_heard_ms"].as_u64();
        let began = self.status(node).as_ref().and_then(deaf).unwrap_or(0);
        let until = began + u64::try_from(span.as_millis()).unwrap();
        self.wait(node, span + Duration::from_secs(60), |status| deaf(status).is_some_and(|ms| ms >= until));
    }

    /// Waits until a primary has written what its standby does not get, and writes no more: every client waits.
    pub fn wait_stuck(&self, node: Node, patience: Duration) {
        const SAME: u32 = 5;
        let seen = std::cell::Cell::new((0, 0));
        self.wait(node, patience, |status| {
            let lag = status["lag_bytes"].as_u64().unwrap_or(0);
            let (last, times) = seen.get();
            seen.set(if lag > 0 && lag == last { (lag, times + 1) } else { (lag, 0) });
            seen.get().1 >= SAME
        });
    }

    /// Waits until a party's log has these words.
    pub fn wait_log(&self, node: Node, words: &str, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.log(node).contains(words) {
            assert!(Instant::now() < until, "{node:?} does not say `{words}`: {}", self.log(node));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn log(&self, node: Node) -> String {
        std::fs::read_to_string(self.folder.join(format!("{node:?}.log"))).unwrap_or_default()
    }

    /// What a node exported, by file.
    pub fn exports(&self, node: Node) -> Vec<String> {
        let files = std::fs::read_dir(self.home(node).join("state/exports")).into_iter().flatten();
        files.filter_map(Result::ok).map(|file| std::fs::read_to_string(file.path()).unwrap()).collect()
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
        let path = self.home(node).join("state/key");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, [7; 32]).unwrap();
    }

    /// A client inside a node's network.
    pub fn client(&self, node: Node, what: &str) -> Command {
        let this = std::env::current_exe().unwrap();
        let password = std::fs::read_to_string(self.home(Node::A).join("state/datastore-password")).unwrap();
        let mut command = self.net.as_user(node, this.to_str().unwrap());
        command.args(["client_worker", "--exact", "--ignored", "--nocapture"]);
        command.env("FARHOLD_HA_CLIENT", what).env("FARHOLD_HA_PASSWORD", password);
        command
    }

    pub fn clients(&self, on_each: usize) -> Clients {
        Clients::new(self, on_each)
    }

    fn rows(&self, node: Node) -> Vec<Ack> {
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
        let acks = clients.end();
        for node in [Node::A, Node::B] {
            let rows = self.rows(node);
            if let Err(violation) = client::check(&acks, &rows) {
                self.show_logs();
                panic!("{node:?}: {violation}");
            }
            println!("{node:?}: {} acknowledged writes, all among {} rows", acks.len(), rows.len());
        }
    }
}

fn output(command: &mut Command) -> Value {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{command:?}: {said}"))
}

impl Drop for Site {
    fn drop(&mut self) {
        Node::ALL.into_iter().for_each(|node| self.kill(node));
    }
}
