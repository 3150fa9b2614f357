//! The loop of a witness: one datagram in, one vote made durable, one datagram out; thousands of sites, no sessions, no timers.
//!
//! A site is two files: the keys of its nodes, and the voter's state. It does not know databases.

use super::identity::{Identity, Number, Point, PublicKey};
use super::saved::{Counters, Opened, Store};
use super::seal::{self, Envelope, Header, Stamp};
use crate::clock::boot_us;
use crate::ha::acceptor::Acceptor;
use crate::ha::register::VoterId;
use crate::ha::resume::Start;
use crate::ha::witness::{self, Witness, WitnessEffect, WitnessEvent};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

/// Longest file of a site's nodes, bytes.
const NODES_MAX: u64 = 4096;

/// The nodes of one site, as its enrolment gave them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nodes {
    /// The two nodes.
    pub nodes: Vec<NodeKey>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeKey {
    /// Its number.
    pub voter: Number,
    /// Its key.
    pub key: PublicKey,
}

/// Where a witness keeps its sites.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Key and states; durable.
    pub state: PathBuf,
    /// Counters that die with a boot.
    pub run: PathBuf,
    /// Counters outside every backup of `state`.
    pub counters: Option<PathBuf>,
}

/// One site in memory; thousands of them must fit into a small machine, so no path is kept.
struct Place {
    voter: Number,
    sequence: u64,
    nodes: [(VoterId, Point); 2],
    witness: Option<Witness>,
}

impl Folders {
    /// The files of one site: nodes, state, counters.
    pub fn of(&self, site: Number) -> (PathBuf, PathBuf, Counters) {
        let count = |folder: &PathBuf| folder.join(site.to_string());
        let counters = Counters { boot: count(&self.run), kept: self.counters.as_ref().map(count) };
        (self.state.join(format!("{site}.json")), self.state.join(format!("{site}.state")), counters)
    }
}

/// Runs a witness until it is killed; it has nothing to put in order.
///
/// # Errors
/// If it cannot listen, or a vote cannot be made durable.
pub fn run(folders: &Folders, listen: SocketAddr) -> Result<()> {
    let identity = Identity::open(&folders.state)?;
    crate::durable::make_folder(&folders.run, 0o700)?;
    let socket = UdpSocket::bind(listen).with_context(|| format!("listen on {listen}"))?;
    let session = Number::draw()?.0;
    let (mut places, mut stamp_us) = (HashMap::<Number, Box<Place>>::new(), 0);
    let mut datagram = [0; seal::DATAGRAM_MAX + 1];
    tracing::info!(%listen, "the witness listens");
    loop {
        let (length, from) = match socket.recv_from(&mut datagram) {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "receive a datagram");
                continue;
            }
        };
        let Some(header) = Header::decode(&datagram[..length]) else { continue };
        if let std::collections::hash_map::Entry::Vacant(vacant) = places.entry(header.site) {
            match load(folders, header.site) {
                Ok(place) => {
                    vacant.insert(Box::new(place));
                }
                Err(error) => {
                    tracing::debug!(site = %header.site, error = format!("{error:#}"), "a site is not served");
                    continue;
                }
            }
        }
        let Some(place) = places.get_mut(&header.site) else { continue };
        let Some((envelope, point)) = place.heard(&identity, header, &datagram[..length]) else { continue };
        for message in place.step((folders, header.site), &envelope)? {
            stamp_us = boot_us().max(stamp_us + 1);
            let stamp = Stamp { session, at_us: stamp_us };
            let header = Header { site: header.site, from: place.voter.voter(), to: message.to };
            let answer = Envelope { stamp, echo: envelope.stamp, message };
            let sealed = seal::seal(&identity, &point, header, &answer)?;
            if let Err(error) = socket.send_to(&sealed, from) {
                tracing::debug!(%error, %from, "answer a datagram");
            }
        }
    }
}

fn load(folders: &Folders, site: Number) -> Result<Place> {
    let (nodes, state, counters) = folders.of(site);
    let size = std::fs::metadata(&nodes).with_context(|| format!("read {}", nodes.display()))?.len();
    ensure!(size <= NODES_MAX, "read {}: it has {size} bytes", nodes.display());
    let text = std::fs::read_to_string(&nodes).with_context(|| format!("read {}", nodes.display()))?;
    let known: Nodes =
        serde_json::from_str(&text).with_context(|| format!("understand {}", nodes.display()))?;
    let [a, b] = known.nodes.as_slice() else { anyhow::bail!("{} must name two nodes", nodes.display()) };
    let Opened { store, voter, value, start } = Store::open::<Acceptor>(&state, counters)?;
    let voter_state = value.map(|acceptor| match start {
        Start::Proven => acceptor,
        Start::Unproven { life } => acceptor.unproven(life),
    });
    let mut place = Place {
        voter,
        sequence: store.sequence(),
        nodes: [(a.voter.voter(), a.key.point()), (b.voter.voter(), b.key.point())],
        witness: voter_state.map(Witness::start),
    };
    if let (Start::Unproven { .. }, Some(acceptor)) = (start, voter_state) {
        tracing::warn!(%site, "the state may be old: mute until both nodes were heard");
        place.save(folders, site, &acceptor)?;
    }
    Ok(place)
}

impl Place {
    fn heard(&self, identity: &Identity, header: Header, datagram: &[u8]) -> Option<(Envelope, Point)> {
        let (_, point) = self.nodes.iter().find(|(voter, _)| *voter == header.from)?;
        if header.to != self.voter.voter() {
            return None;
        }
        match seal::open(identity, point, datagram) {
            Ok(envelope) => Some((envelope, *point)),
            Err(error) => {
                tracing::debug!(site = %header.site, error = format!("{error:#}"), "a datagram was dropped");
                None
            }
        }
    }

    /// Makes a state durable.
    fn save(&mut self, folders: &Folders, site: Number, acceptor: &Acceptor) -> Result<()> {
        let (_, state, counters) = folders.of(site);
        let mut store = Store::again(state, counters, self.sequence);
        store.write(self.voter, &Some(*acceptor))?;
        self.sequence = store.sequence();
        Ok(())
    }

    /// Takes a message and returns what goes back to its sender.
    fn step(
        &mut self,
        (folders, site): (&Folders, Number),
        envelope: &Envelope,
    ) -> Result<Vec<crate::ha::message::Message>> {
        let message = envelope.message;
        let named = message.register.members.witness() == Some(self.voter.voter());
        if self.witness.is_none() && named {
            let acceptor = Acceptor::new(self.voter.voter(), Number::draw()?.0, message.register);
            self.save(folders, site, &acceptor)?;
            self.witness = Some(Witness::start(acceptor));
        }
        let Some(witness) = self.witness else { return Ok(Vec::new()) };
        let (next, mut effects) = witness::step(&witness, WitnessEvent::Message(message));
        if next.asks() {
            effects.extend(witness::step(&next, WitnessEvent::Tick).1);
        }
        self.witness = Some(next);
        let mut sent = Vec::new();
        for effect in effects {
            match effect {
                WitnessEffect::Save(acceptor) => self.save(folders, site, &acceptor)?,
                WitnessEffect::Send(answer) if answer.to == message.from => sent.push(answer),
                WitnessEffect::Send(_) => {}
                WitnessEffect::Rejected(from, refusal) => tracing::warn!(?from, %refusal, "not listened to"),
            }
        }
        Ok(sent)
    }
}

/// Writes the nodes of a site, and makes its voter if there is none; returns the voter's number.
///
/// # Errors
/// If a file cannot be written.
pub fn add(folders: &Folders, site: Number, nodes: Vec<NodeKey>) -> Result<Number> {
    ensure!(nodes.len() == 2, "a site has two nodes, not {}", nodes.len());
    let (path, state, counters) = folders.of(site);
    crate::durable::make_folder(&folders.run, 0o700)?;
    let voter = if Path::exists(&state) {
        Store::open::<Acceptor>(&state, counters)?.voter
    } else {
        Store::create(&state, counters)?
    };
    let text = serde_json::to_string_pretty(&Nodes { nodes }).context("encode the nodes")?;
    crate::durable::write(&path, text.as_bytes(), 0o600)?;
    Ok(voter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::message::{Beat, Body, Message};
    use crate::ha::register::{Members, OnPeerLoss, Platform, Register};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    const SITES: u64 = 10_000;
    const RESIDENT_MAX_KIB: u64 = 16 << 10;

    /// The witness as a process of its own: this program again.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn start(folder: &Path, listen: SocketAddr) -> Running {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["ha::act::witness::tests::worker", "--exact", "--ignored", "--nocapture"]);
        command.env("FARHOLD_WITNESS", format!("{},{listen}", folder.display()));
        Running(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn folders(folder: &Path) -> Folders {
        Folders { state: folder.join("state"), run: folder.join("run"), counters: None }
    }

    #[test]
    #[ignore = "not a test: the witness that another one starts"]
    fn worker() {
        let Ok(told) = std::env::var("FARHOLD_WITNESS") else { return };
        let (folder, listen) = told.split_once(',').unwrap();
        run(&folders(Path::new(folder)), listen.parse().unwrap()).unwrap();
    }

    fn resident_kib(running: &Running) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Says a heartbeat as the first node of a site, and returns the witness' answer.
    fn say(
        socket: &UdpSocket,
        node: &Identity,
        witness: PublicKey,
        header: Header,
        register: Register,
    ) -> Message {
        let beat = Beat { able: true, leaving: false, flushed: None, fsync_age_ms: 0 };
        let message = Message { from: header.from, to: header.to, register, body: Body::Beat(beat) };
        let envelope = Envelope { stamp: Stamp { session: 1, at_us: 1 }, echo: Stamp::default(), message };
        let datagram = seal::seal(node, &witness.point(), header, &envelope).unwrap();
        let mut answer = [0; seal::DATAGRAM_MAX];
        for _ in 0..1000 {
            // A connected socket says so while nobody listens yet.
            if socket.send(&datagram).is_ok()
                && let Ok(length) = socket.recv(&mut answer)
                && let Ok(envelope) = seal::open(node, &witness.point(), &answer[..length])
                && Header::decode(&answer[..length]).unwrap().site == header.site
            {
                return envelope.message;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("the witness does not answer for site {}", header.site);
    }

    /// Ten thousand sites in one process, each with its own durable register, over real datagrams.
    #[test]
    fn ten_thousand_sites_fit_into_16_mib() {
        // On a disk, its hundred thousand flushes would take minutes; what is asked here is memory, and that files are read again.
        let memory = Path::new("/dev/shm");
        let folder =
            if memory.exists() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let folders = folders(folder.path());
        let witness = Identity::create(&folders.state).unwrap().public();
        let keys = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let nodes = keys.each_ref().map(|key| Identity::create(key.path()).unwrap());
        let pair = |site: u64| [2 * site, 2 * site + 1].map(VoterId);
        let mut voters = Vec::new();
        for site in 1..=SITES {
            let of = |n: usize| NodeKey { voter: Number(pair(site)[n].0), key: nodes[n].public() };
            voters.push(add(&folders, Number(site), vec![of(0), of(1)]).unwrap().voter());
        }
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listen = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        socket.connect(listen).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let platform = Platform { postgres_major: 15, machine: 62 };
        let told = |site: u64, epoch: u64| {
            let [a, b] = pair(site);
            let loss = OnPeerLoss::Witness(voters[site as usize - 1]);
            let members = Members::Pair { nodes: [a, b], loss };
            let header = Header { site: Number(site), from: a, to: voters[site as usize - 1] };
            (header, Register { epoch, members, ..Register::first(a, site, platform) })
        };
        let running = start(folder.path(), listen);
        for site in 1..=SITES {
            let (header, register) = told(site, 7);
            assert_eq!(say(&socket, &nodes[0], witness, header, register).register, register);
        }
        let resident = resident_kib(&running);
        println!("{SITES} sites heard: {resident} KiB resident");
        assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB");
        // What it promised to remember is on disk: a node that is behind is taught by the next process.
        drop(running);
        let running = start(folder.path(), listen);
        for site in 1..=SITES {
            let (header, register) = told(site, 6);
            let answer = say(&socket, &nodes[0], witness, header, register);
            assert_eq!(answer.register.epoch, 7, "site {site}");
        }
        let resident = resident_kib(&running);
        println!("{SITES} sites loaded from disk: {resident} KiB resident");
        assert!(resident <= RESIDENT_MAX_KIB, "{resident} KiB");
    }
}
