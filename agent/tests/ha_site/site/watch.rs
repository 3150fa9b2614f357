//! What a site says of itself, and waits until it does.

use super::super::plan::Node;
use super::{Site, agent};
use serde_json::Value;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// How long a node that is in sync may not be heard under load.
const READY: Duration = Duration::from_secs(30);
/// Between two looks at a fact.
const LOOK: Duration = Duration::from_millis(200);

/// Looks until there is `Ok`; what the last look gave instead, if that takes longer than `patience`.
fn until<E>(patience: Duration, mut look: impl FnMut() -> Result<(), E>) -> Result<(), E> {
    let until = Instant::now() + patience;
    loop {
        match look() {
            Err(_) if Instant::now() < until => std::thread::sleep(LOOK),
            ended => return ended,
        }
    }
}

impl Site {
    /// What `ha` prints; said again as long as its answer is to wait.
    pub fn ha(&self, node: Node, args: &[&str]) -> String {
        let mut printed = Ok(String::new());
        let look = || match self.try_ha(node, args) {
            Err(said) if said.contains("wait until") => Err(said),
            ended => {
                printed = ended;
                Ok(())
            }
        };
        until(READY, look).and(printed).unwrap_or_else(|said| panic!("ha {args:?}: {said}"))
    }

    /// What `ha` prints, or what it says against it.
    pub fn try_ha(&self, node: Node, args: &[&str]) -> Result<String, String> {
        let config = self.home(node).join("ha.json");
        let mut command = self.net.as_user(node, agent());
        command.args(["ha", "--config"]).arg(config).args(args).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn status(&self, node: Node) -> Option<Value> {
        let config = self.home(node).join("ha.json");
        let mut command = self.net.as_user(node, agent());
        let output =
            command.args(["ha", "--config"]).arg(config).args(["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).ok()
    }

    pub fn wait(&self, node: Node, patience: Duration, done: impl Fn(&Value) -> bool) {
        let look = || {
            let status = self.status(node);
            if status.as_ref().is_some_and(&done) { Ok(()) } else { Err(status) }
        };
        if let Err(status) = until(patience, look) {
            panic!("{node:?} did not come so far in {patience:?}: {status:?}");
        }
    }

    pub(super) fn show_logs(&self) {
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
        self.ha(from, &["switchover"]);
        self.wait_leading(from.other(), patience);
        self.wait_paired(patience);
    }

    /// Asks for a hand-over; whoever is not the primary of a pair says no.
    pub fn try_switch_over(&self, node: Node) {
        if node != Node::W {
            drop(self.try_ha(node, &["switchover"]));
        }
    }

    pub fn wait_leading(&self, node: Node, patience: Duration) {
        self.wait(node, patience, |status| status["phase"] == "Leading");
    }

    /// Whoever is primary of the pair.
    pub fn primary(&self, patience: Duration) -> Node {
        let until = Instant::now() + patience;
        let leads = |node: &Node| self.status(*node).is_some_and(|status| status["phase"] == "Leading");
        loop {
            if let Some(node) = [Node::A, Node::B].into_iter().find(leads) {
                return node;
            }
            assert!(Instant::now() < until, "nobody leads");
            std::thread::sleep(Duration::from_millis(100));
        }
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
        let look = || if self.log(node).contains(words) { Ok(()) } else { Err(self.log(node)) };
        until(patience, look).unwrap_or_else(|log| panic!("{node:?} does not say `{words}`: {log}"));
    }

    pub fn log(&self, node: Node) -> String {
        std::fs::read_to_string(self.folder.join(format!("{node:?}.log"))).unwrap_or_default()
    }
}
