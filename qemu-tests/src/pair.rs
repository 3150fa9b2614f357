//! Two machines of a site made a pair: addresses, enrolment with each other, and a witness that runs on the host.
//!
//! The steps are those of an operator (`docs/pair.md`), carried out over SSH. The witness is a program of the host that both
//! reach at the address under which QEMU's own network shows the host.

use crate::process::Process;
use crate::site::Site;
use crate::ssh::free_port;
use crate::vm::{self, POLL, Vm};
use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the pair's configuration stands on a node.
pub const CONFIG: &str = "/var/lib/farhold-ha/ha.json";
/// The unit that an image of a pair has.
const UNIT: &str = "/usr/lib/systemd/system/farhold-ha.service";
/// Names the site to its witness.
const SITE: &str = "00000000000000fa";
/// Under which QEMU's user network shows the host's loopback interface.
const HOST: &str = "10.0.2.2";
/// The agent as the database's user, which owns all that the pair keeps.
const AS_POSTGRES: &str = "setpriv --reuid=postgres --regid=postgres --init-groups farhold-agent";
const FOLDER: &str = "witness";
const NOTE: &str = "process.json";
const STOP: Duration = Duration::from_secs(30);

/// A witness that outlives the command that started it.
#[derive(Serialize, Deserialize)]
struct Witness {
    process: Process,
    port: u16,
}

/// The address of a node, from 1, in the site's own network.
pub fn address(node: usize) -> String {
    format!("10.77.0.{node}")
}

/// Whether a machine's image can be a node of a pair; it must be up.
///
/// # Errors
/// If the guest cannot be asked.
pub fn is_possible(vm: &Vm) -> Result<bool> {
    Ok(vm.run(&format!("test -e {UNIT}"))?.code == 0)
}

/// Makes a pair of the two nodes of a site, which must be up, with `agent` as the witness' program; waits until both are in
/// sync. `tell` hears of each step.
///
/// # Errors
/// If a step fails or takes longer than `patience`.
pub fn enrol(site: &Site, agent: &Path, patience: Duration, mut tell: impl FnMut(&str)) -> Result<()> {
    let [first, second] = site.nodes() else {
        bail!("a pair has two nodes, this site has {}", site.nodes().len())
    };
    let vms = [site.vm(Some(first))?, site.vm(Some(second))?];
    tell("addresses between the nodes");
    for (node, vm) in (1..).zip(&vms) {
        give_address(vm, node)?;
    }
    tell("keys; a database on the first node");
    let mut parties = Vec::new();
    for (node, vm) in (1..).zip(&vms) {
        configure(vm, node, None)?;
        let first = if node == 1 { "--first" } else { "" };
        parties.push(answer(&vm.sh(&format!("{AS_POSTGRES} ha init {first}"))?)?);
    }
    tell("a witness on this machine");
    let (witness, port) = start_witness(site.folder(), agent, &parties)?;
    for (node, vm) in (1..).zip(&vms) {
        let peer = 3 - node;
        let party = |value: &Value, address: String| json!({ "voter": value["voter"], "key": value["key"], "addresses": [address] });
        let others = json!({ "peer": party(&parties[peer - 1], format!("{}:7600", address(peer))),
            "witness": party(&witness, format!("{HOST}:{port}")) });
        configure(vm, node, Some(others))?;
        vm.sh("systemctl restart farhold-ha.service")?;
    }
    tell("the nodes agree");
    wait(&vms[0], "the first node to serve", patience, |status| status["phase"] == "Alone(Apart)")?;
    vms[0].sh("farhold-agent ha apply")?;
    for vm in &vms {
        vm.sh("systemctl --no-block restart k3s.service")?;
    }
    vms.iter().try_for_each(|vm| wait_paired(vm, patience).map(drop))
}

/// What `ha status` says; nothing if the pair's process does not answer.
///
/// # Errors
/// If the guest cannot be reached.
pub fn status(vm: &Vm) -> Result<Option<Value>> {
    let outcome = vm.run("farhold-agent ha status --json")?;
    Ok(serde_json::from_str(&outcome.stdout).ok())
}

/// Waits until `ha status` says what `holds` wants.
///
/// # Errors
/// If it does not in time; the message has the last status.
pub fn wait(vm: &Vm, what: &str, patience: Duration, holds: impl Fn(&Value) -> bool) -> Result<Value> {
    let until = Instant::now() + patience;
    loop {
        let seen = status(vm)?;
        if let Some(status) = seen.as_ref().filter(|status| holds(status)) {
            return Ok(status.clone());
        }
        if Instant::now() > until {
            bail!("{}: wait for {what}: not after {} s: {seen:?}", vm.machine()?.name, patience.as_secs());
        }
        std::thread::sleep(POLL * 10);
    }
}

/// Waits until a node says that both are in sync and one leads.
///
/// # Errors
/// As [`wait`].
pub fn wait_paired(vm: &Vm, patience: Duration) -> Result<Value> {
    let settled = |status: &Value| status["phase"] == "Leading" || status["phase"] == "Following";
    wait(vm, "the pair", patience, |status| status["mode"] == "paired" && settled(status))
}

/// Gives node `node` (from 1) its [`address`] in the site's network, for good.
///
/// # Errors
/// If the machine has no such network, or the guest cannot be asked.
pub fn give_address(vm: &Vm, node: usize) -> Result<()> {
    let mac = vm.machine()?.lan.with_context(|| format!("node {node} has no network to the other"))?.mac();
    let text = format!("[Match]\nMACAddress={mac}\n\n[Network]\nAddress={}/24\nDHCP=no\n", address(node));
    // The state store keeps it over boots; the running system reads the other.
    vm.sh(&format!(
        "set -e; for etc in /var/lib/farhold/etc /etc; do mkdir -p $etc/systemd/network; \
         printf '{}' > $etc/systemd/network/05-pair.network; done; networkctl reload; \
         networkctl reconfigure $(networkctl --no-legend list | while read n link rest; do \
         grep -qsi {mac} /sys/class/net/$link/address && echo $link; done)",
        text.replace('\n', "\\n")
    ))
    .map(drop)
}

fn configure(vm: &Vm, node: usize, others: Option<Value>) -> Result<()> {
    let mut config = json!({
        "site": SITE, "state": "/var/lib/farhold-ha/state", "run": "/run/farhold-ha",
        "counter": "/var/lib/farhold-ha/counter",
        // Not at the site's address, which goes when its cable is pulled, and the way to the witness with it.
        "listen": "0.0.0.0:7600", "port": "127.0.0.1:5433",
        "postgres": { "bin": "/usr/lib/postgresql/17/bin", "data": "/var/lib/farhold-ha/data",
            "settings": { "shared_buffers": "32MB", "max_connections": "100" } },
        "k3s": { "address": address(node) },
        // Emulated processors stand still for seconds on a busy machine.
        "times": { "peer_lost_ms": 8000, "stale_ms": 12000, "fsync_recent_ms": 8000, "join_ms": 60_000, "hand_over_ms": 60_000 },
    });
    if let (Some(config), Some(Value::Object(others))) = (config.as_object_mut(), others) {
        config.extend(others);
    }
    // JSON has no single quotes of its own here.
    vm.sh(&format!(
        "set -e; install -d -m 0700 -o postgres -g postgres /var/lib/farhold-ha /run/farhold-ha; \
         printf %s '{config}' > {CONFIG}.new; chown postgres:postgres {CONFIG}.new; mv {CONFIG}.new {CONFIG}; sync"
    ))
    .map(drop)
}

fn answer(text: &str) -> Result<Value> {
    serde_json::from_str(text).with_context(|| format!("understand `{text}`"))
}

fn start_witness(site: &Path, agent: &Path, nodes: &[Value]) -> Result<(Value, u16)> {
    let folder = site.join(FOLDER);
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let command = || {
        let mut command = Command::new(agent);
        command.arg("witness").arg("--state").arg(folder.join("state")).arg("--run").arg(folder.join("run"));
        command
    };
    let mut add = command();
    add.args(["add", "--site", SITE]);
    for node in nodes {
        let word = |name: &str| node[name].as_str().unwrap_or_default();
        add.arg("--node").arg(format!("{}:{}", word("voter"), word("key")));
    }
    let party = answer(&crate::programs::run(&mut add)?)?;
    let port = free_port()?;
    let log = File::create(folder.join("log")).context("make the witness' log")?;
    let child = command()
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share a log")?)
        .stderr(log)
        .process_group(0)
        .spawn()
        .with_context(|| format!("start {} as witness", agent.display()))?;
    let process = Process::observe(i32::try_from(child.id())?)?;
    vm::reap(child);
    vm::save(&folder.join(NOTE), &Witness { process, port })?;
    Ok((party, port))
}

/// Ends the witness of a site and removes what it kept; a site without one is left as it is.
///
/// # Errors
/// If it cannot be ended or its folder not be removed.
pub fn end_witness(site: &Path) -> Result<()> {
    let folder: PathBuf = site.join(FOLDER);
    if let Some(witness) = vm::load::<Witness>(&folder.join(NOTE))? {
        witness.process.signal(Signal::SIGTERM)?;
        witness.process.wait_end(STOP)?;
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}
