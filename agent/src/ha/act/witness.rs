//! The loop of a witness: one datagram in, one vote made durable, one datagram out; thousands of sites, no sessions, no timers.
//!
//! A site is two files: the keys of its nodes, and the voter's state. It does not know databases.

use super::identity::{Identity, Number, Point, PublicKey};
use super::saved::{Opened, Store};
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

struct Place {
    voter: Number,
    sequence: Store,
    nodes: [(VoterId, Point); 2],
    witness: Option<Witness>,
}

impl Folders {
    /// The files of one site: nodes, state, counters.
    pub fn of(&self, site: Number) -> (PathBuf, PathBuf, Vec<PathBuf>) {
        let counters = [Some(&self.run), self.counters.as_ref()];
        (
            self.state.join(format!("{site}.json")),
            self.state.join(format!("{site}.state")),
            counters.into_iter().flatten().map(|folder| folder.join(site.to_string())).collect(),
        )
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
    let (mut places, mut stamp_us) = (HashMap::new(), 0);
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
                    vacant.insert(place);
                }
                Err(error) => {
                    tracing::debug!(site = %header.site, error = format!("{error:#}"), "a site is not served");
                    continue;
                }
            }
        }
        let Some(place) = places.get_mut(&header.site) else { continue };
        let Some((envelope, point)) = place.heard(&identity, header, &datagram[..length]) else { continue };
        for message in place.step(&envelope)? {
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
        sequence: store,
        nodes: [(a.voter.voter(), a.key.point()), (b.voter.voter(), b.key.point())],
        witness: voter_state.map(Witness::start),
    };
    if let (Start::Unproven { .. }, Some(acceptor)) = (start, voter_state) {
        tracing::warn!(%site, "the state may be old: mute until both nodes were heard");
        place.sequence.write(voter, &Some(acceptor))?;
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

    /// Takes a message and returns what goes back to its sender.
    fn step(&mut self, envelope: &Envelope) -> Result<Vec<crate::ha::message::Message>> {
        let message = envelope.message;
        let named = message.register.members.witness() == Some(self.voter.voter());
        if self.witness.is_none() && named {
            let acceptor = Acceptor::new(self.voter.voter(), Number::draw()?.0, message.register);
            self.sequence.write(self.voter, &Some(acceptor))?;
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
                WitnessEffect::Save(acceptor) => self.sequence.write(self.voter, &Some(acceptor))?,
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
