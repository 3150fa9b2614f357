//! k3s under the agent, on both nodes of a site. With `FARHOLD_K3S=/path` it is the real one; without, the stand-in of
//! `examples/k3s-stand-in`, which is not Kubernetes and says so.

use super::LONG;
use super::site::{Node, Site, agent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const NODES: [Node; 2] = [Node::A, Node::B];

/// The real program, if it is at hand.
fn real() -> Option<PathBuf> {
    std::env::var_os("FARHOLD_K3S").map(PathBuf::from)
}

fn program() -> PathBuf {
    real().unwrap_or_else(|| Path::new(agent()).with_file_name("examples").join("k3s-stand-in"))
}

fn name(node: Node) -> String {
    format!("node-{node:?}").to_lowercase()
}

/// The part `k3s` of a node's configuration, and the files that the image would hold.
pub fn configuration(home: &Path, node: Node) -> Value {
    let folder = home.join("k3s");
    std::fs::create_dir_all(&folder).unwrap();
    // Days for which k3s makes certificates stand in a file, so that a test may change them between two starts.
    let start = "#!/bin/sh\nhere=${0%/*}\n[ -f \"$here/days\" ] && export CATTLE_NEW_SIGNED_CERT_EXPIRATION_DAYS=$(cat \"$here/days\")\n";
    let script = folder.join("start");
    std::fs::write(&script, format!("{start}exec {} \"$@\"\n", program().display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(
        folder.join("config.yaml"),
        "disable-agent: true\ndisable: [traefik]\ntls-san: [pair.example]\n",
    )
    .unwrap();
    json!({ "program": [script], "config": folder.join("config.yaml"), "data": folder.join("data"),
        "state": folder.join("state"), "run": home.join("run/k3s"), "node": name(node),
        "drain": { "deadline_s": 4 },
        "times": { "steady_ms": 6000, "seldom_ms": 1000, "stop_ms": 20000 } })
}

impl Site {
    fn k3s(&self, node: Node, args: &[&str]) -> Command {
        // The real one wants to be root, if only of its namespace.
        let mut command =
            if real().is_some() { self.net.inside(node, agent()) } else { self.net.as_user(node, agent()) };
        command.args(["k3s", "--config"]).arg(self.home(node).join("ha.json")).args(args);
        command
    }

    fn start_k3s(&mut self, node: Node) -> u32 {
        let path = program();
        assert!(
            path.exists(),
            "{}: `cargo build --release -p agent --example k3s-stand-in` makes it",
            path.display()
        );
        let mut command = self.k3s(node, &["run"]);
        command.env("FARHOLD_LOG", "agent=debug,info");
        self.adopt(node, command)
    }

    fn wait_k3s(&self, node: Node) {
        self.wait(node, LONG, |status| status["k3s"]["ready"] == true);
    }

    /// The process of k3s itself.
    fn k3s_pid(&self, node: Node) -> i32 {
        let note = std::fs::read_to_string(self.home(node).join("run/k3s/process")).unwrap();
        note.split(' ').next().unwrap().parse().unwrap()
    }

    /// A question to a node's API server, asked in its network.
    fn api(&self, node: Node, words: [&str; 3]) -> (u16, Value) {
        let this = std::env::current_exe().unwrap();
        let mut command = self.net.as_user(node, this.to_str().unwrap());
        command.args(["k3s::api_worker", "--exact", "--ignored", "--nocapture"]);
        command
            .env("FARHOLD_HA_K3S", words.join("\n"))
            .env("FARHOLD_HA_K3S_TLS", self.home(node).join("k3s/data/server/tls"));
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let said = text.lines().find_map(|line| Some(&line[line.find("HTTP ")? + 5..])).unwrap_or("0 {}");
        let (status, body) = said.split_once(' ').unwrap();
        (status.parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
    }

    fn create(&self, node: Node, path: &str, object: &Value) -> bool {
        self.api(node, ["POST", path, &object.to_string()]).0 == 201
    }

    fn write(&self, node: Node, name: &str) -> bool {
        self.create(
            node,
            MAPS,
            &json!({ "metadata": { "name": name }, "data": { "from": format!("{node:?}") } }),
        )
    }

    /// Whether node A takes no pods.
    fn is_closed(&self) -> bool {
        self.api(Node::B, ["GET", "/api/v1/nodes/node-a", ""]).1["spec"]["unschedulable"] == true
    }

    fn authority(&self, node: Node) -> String {
        std::fs::read_to_string(self.home(node).join("k3s/data/server/tls/server-ca.crt")).unwrap()
    }
}

/// Not a test of its own: one request that the others make inside a namespace.
#[test]
#[ignore = "a client that the other tests start inside a namespace"]
fn api_worker() {
    let words = std::env::var("FARHOLD_HA_K3S").unwrap();
    let [method, path, body] = words.splitn(3, '\n').collect::<Vec<_>>().try_into().unwrap();
    let tls = PathBuf::from(std::env::var("FARHOLD_HA_K3S_TLS").unwrap());
    let read = |name: &str| std::fs::read(tls.join(name)).unwrap();
    drop(rustls::crypto::ring::default_provider().install_default());
    let client = reqwest::blocking::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(12))
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(&read("server-ca.crt")).unwrap())
        .identity(
            reqwest::Identity::from_pem(&[read("client-admin.key"), read("client-admin.crt")].concat())
                .unwrap(),
        )
        .build()
        .unwrap();
    let request = client.request(method.parse().unwrap(), format!("https://127.0.0.1:6443{path}"));
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let answer = request.header("content-type", kind).body(body.to_owned()).send().unwrap();
    println!("HTTP {} {}", answer.status().as_u16(), answer.text().unwrap().replace('\n', " "));
}

/// Both API servers serve; when the primary's machine dies, the other's goes on without a restart, and nothing is lost.
#[test]
fn k3s_serves_on_both_nodes_and_outlives_the_primary() {
    let mut site = Site::paired("k3s");
    for node in NODES {
        site.start_k3s(node);
    }
    NODES.into_iter().for_each(|node| site.wait_k3s(node));
    assert_eq!(site.authority(Node::A), site.authority(Node::B), "two authorities in one cluster");
    let mut written: Vec<String> = (0..6).map(|n| format!("before-{n}")).collect();
    for (n, name) in written.iter().enumerate() {
        assert!(site.write(NODES[n % 2], name), "{name} was not taken");
    }
    let pid = site.k3s_pid(Node::B);
    site.kill(Node::A);
    let (began, mut tries) = (Instant::now(), 0);
    while !site.write(Node::B, &format!("after-{tries}")) {
        assert!(began.elapsed() < LONG, "the other node's API server takes no writes");
        tries += 1;
    }
    println!("writes through the other node's API server again after {:?}", began.elapsed());
    written.push(format!("after-{tries}"));
    site.wait_k3s(Node::B);
    assert_eq!(site.k3s_pid(Node::B), pid, "k3s was restarted although its machine lived");
    site.start(Node::A);
    site.start_k3s(Node::A);
    site.wait_paired(LONG);
    site.wait_k3s(Node::A);
    for name in &written {
        assert_eq!(site.api(Node::A, ["GET", &format!("{MAPS}/{name}"), ""]).0, 200, "{name} is lost");
    }
    ended_and_started_again(&mut site);
}

/// A k3s that dies is started again; one that a killed agent left behind is stopped first; an agent that is told to end ends it.
fn ended_and_started_again(site: &mut Site) {
    let first = site.k3s_pid(Node::A);
    signal(first, Signal::SIGKILL);
    let second = site.wait_other_k3s(Node::A, first);
    assert!(site.log(Node::A).contains("last by signal 9"), "the status does not say how it ended");
    site.end_runner(Node::A, Signal::SIGKILL);
    assert!(alive(second), "k3s died with the agent");
    site.start_k3s(Node::A);
    let third = site.wait_other_k3s(Node::A, second);
    assert!(
        !alive(second) && site.log(Node::A).contains("left it behind"),
        "the one left behind was not stopped"
    );
    site.end_runner(Node::A, Signal::SIGTERM);
    assert!(!alive(third), "the agent ended and k3s did not");
}

/// Certificates that end soon on both nodes: both restart, one after the other, and a drain answers a budget that never yields.
#[test]
fn certificates_are_renewed_in_turn_and_a_drain_names_the_budget() {
    let mut site = Site::paired("k3s-renew");
    for node in NODES {
        let folder = site.home(node).join("k3s");
        std::fs::write(folder.join("days"), "60").unwrap();
        site.start_k3s(node);
        let until = Instant::now() + LONG;
        while !folder.join("data/server/tls/client-admin.crt").exists() {
            assert!(Instant::now() < until, "{node:?}: no certificate: {}", site.log(node));
            std::thread::sleep(Duration::from_millis(20));
        }
        std::fs::write(folder.join("days"), "365").unwrap();
    }
    let pids = NODES.map(|node| site.k3s_pid(node));
    NODES.into_iter().for_each(|node| site.wait_k3s(node));
    let until = Instant::now() + LONG;
    let fresh = |status: &Value| {
        status["k3s"]["certificates"] == "valid for 364 days" && status["k3s"]["ready"] == true
    };
    loop {
        let seen = NODES.map(|node| site.status(node).unwrap_or_default());
        assert!(
            seen.iter().any(|status| status["k3s"]["ready"] == true),
            "both API servers were restarted at once"
        );
        if seen.iter().all(fresh) {
            break;
        }
        if Instant::now() > until {
            NODES.into_iter().for_each(|node| println!("--- {node:?}\n{}", site.log(node)));
            panic!("{seen:#?}");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for (node, pid) in NODES.into_iter().zip(pids) {
        assert_ne!(site.k3s_pid(node), pid, "{node:?} was not restarted");
        assert_eq!(site.log(node).matches("restarts for new certificates").count(), 1, "{node:?}");
    }
    drains(&mut site);
}

const BUDGET: &str = "The disruption budget web needs 1 healthy pods and has 1 currently";

fn drains(site: &mut Site) {
    if real().is_some() {
        println!("without an agent the real k3s runs no pods: the drain is not tried here");
        return;
    }
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str| json!({ "metadata": { "name": name, "labels": { "app": name } }, "spec": { "nodeName": "node-a" } });
    let budget = json!({ "metadata": { "name": "web" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    assert!(site.create(Node::A, pods, &pod("web")) && site.create(Node::A, pods, &pod("plain")));
    assert!(site.create(Node::A, "/apis/policy/v1/namespaces/default/poddisruptionbudgets", &budget));
    let there = |name: &str| site.api(Node::B, ["GET", &format!("{pods}/{name}"), ""]).0 == 200;

    let held = site.k3s(Node::A, &["drain"]).output().unwrap();
    let said = String::from_utf8_lossy(&held.stdout);
    assert_eq!(held.status.code(), Some(2), "{said}{}", String::from_utf8_lossy(&held.stderr));
    assert!(said.contains(&format!("default/web: {BUDGET}")), "{said}");
    assert!(there("web") && !there("plain") && !site.is_closed());
    let told = site.status(Node::A).unwrap()["k3s"]["drain"].to_string();
    assert!(told.contains(BUDGET), "the status does not name the budget: {told}");

    let forced = site.k3s(Node::A, &["drain", "--deadline-s", "1", "--after", "force"]).output().unwrap();
    let said = String::from_utf8_lossy(&forced.stdout);
    assert!(forced.status.success() && said.contains(&format!("default/web: {BUDGET}")), "{said}");
    assert!(!there("web") && site.is_closed());

    // As after a reboot: the node was closed in another boot.
    let mark = json!({ "metadata": { "annotations": { "farhold/left-in-boot": "an earlier one" } } });
    assert_eq!(site.api(Node::B, ["PATCH", "/api/v1/nodes/node-a", &mark.to_string()]).0, 200);
    site.end_runner(Node::A, Signal::SIGTERM);
    site.start_k3s(Node::A);
    let until = Instant::now() + LONG;
    while site.is_closed() {
        assert!(Instant::now() < until, "the node takes no pods after the reboot");
        std::thread::sleep(Duration::from_millis(200));
    }
    NODES.into_iter().for_each(|node| site.wait_k3s(node));
    steps_down(site);
}

/// What an update does before it restarts the machine, on the standby: its pods leave, and the other node goes on alone.
fn steps_down(site: &mut Site) {
    let standby = NODES.into_iter().find(|node| site.status(*node).unwrap()["phase"] == "Following").unwrap();
    let mut command = site.net.as_user(standby, agent());
    command.args(["ha", "--config"]).arg(site.home(standby).join("ha.json")).arg("step-down");
    let done = command.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("the other node goes on alone"), "{said}");
    let other = standby.other();
    site.wait(other, LONG, |status| status["mode"] == "solo" && status["is_primary"] == true);
    let mut stay = site.net.as_user(standby, agent());
    assert!(
        stay.args(["ha", "--config"])
            .arg(site.home(standby).join("ha.json"))
            .arg("stay")
            .status()
            .unwrap()
            .success()
    );
    site.wait(standby, LONG, |status| status["phase"] == "Following");
    assert!(site.k3s(standby, &["undrain"]).status().unwrap().success());
}

fn signal(pid: i32, what: Signal) {
    kill(Pid::from_raw(pid), what).unwrap();
}

fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z"))
}

impl Site {
    /// Waits until another k3s than `old` is ready.
    fn wait_other_k3s(&self, node: Node, old: i32) -> i32 {
        let until = Instant::now() + LONG;
        loop {
            let pid = self.k3s_pid(node);
            if pid != old && self.status(node).is_some_and(|status| status["k3s"]["ready"] == true) {
                return pid;
            }
            assert!(Instant::now() < until, "{node:?}: no other k3s: {}", self.log(node));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Ends the agent's part that runs k3s, and waits until it is gone.
    fn end_runner(&mut self, node: Node, what: Signal) {
        let (_, mut runner) = self.take_last(node);
        signal(i32::try_from(runner.id()).unwrap(), what);
        runner.wait().unwrap();
    }
}
