//! Carriers: where bytes of a release come from. A source is a folder, the address of one on a web server, a broker,
//! a serial line, or a broadcast.
//!
//! A carrier trusts nothing and decides nothing: it hands on bytes within limits, says what they cost, and in which of
//! three ways it failed. What the bytes are worth is checked by who asked. All carriers feed the same staging area, so
//! that what came over one is never asked for on another.

mod cast;
mod folder;
mod http;
mod linked;
pub mod mqtt;
pub mod peer;
mod satellite;
mod serial;
mod stream;
mod tls;

pub use stream::Stream;

use crate::update::step::Fault;
use anyhow::Result;
use formats::hex::Digest;
use formats::repository;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a carrier, or the work with its bytes, failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Which kind.
    pub fault: Fault,
    /// In words.
    pub why: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(fault: Fault, why: impl Into<String>) -> Self {
        Self { fault, why: why.into() }
    }
    /// A failure of this machine.
    pub fn local(error: &anyhow::Error) -> Self {
        Self::new(Fault::Local, format!("{error:#}"))
    }
}

/// A file that comes in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// An object's bytes; a piece is one of its blocks.
    Object(Digest),
    /// An object's hash file; pieces are cut from its start, as long as its list blocks.
    Lists(Digest),
}

impl What {
    /// Its name in a repository.
    pub fn path(&self) -> String {
        match self {
            Self::Object(id) => repository::object(id),
            Self::Lists(id) => repository::lists(id),
        }
    }
}

/// Pieces that are wanted of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The file.
    pub what: What,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of a piece; the last one may be short.
    pub piece: u32,
    /// Numbers of the pieces that are missing: ranges that ascend, do not touch and are not empty.
    pub missing: Vec<Range<u64>>,
}

impl Wanted {
    /// Bytes of piece `index`; `None` if the file has no such piece.
    pub fn piece_length(&self, index: u64) -> Option<usize> {
        let start = index.checked_mul(self.piece.into()).filter(|start| *start < self.length)?;
        usize::try_from((self.length - start).min(self.piece.into())).ok()
    }
    /// Where pieces stand in the file.
    pub fn bytes(&self, pieces: &Range<u64>) -> Range<u64> {
        let piece = u64::from(self.piece);
        pieces.start * piece..(pieces.end * piece).min(self.length)
    }
}

/// What a piece was worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It is kept.
    New,
    /// It was there before, or nobody wants it.
    Known,
    /// It is not the file's; why.
    Wrong(String),
}

/// Is told what bytes cost.
pub trait Toll {
    /// So many bytes came or went over the carrier, whatever they are worth.
    ///
    /// # Errors
    /// The transfer is to end now: it is not wanted any more, or the budget is used up.
    fn paid(&mut self, bytes: u64) -> Result<(), Failure>;
}

/// Takes pieces, in any order.
pub trait Sink: Toll {
    /// Takes a whole piece.
    ///
    /// # Errors
    /// The transfer is to end now.
    fn piece(&mut self, index: u64, bytes: &[u8]) -> Result<Worth, Failure>;
}

/// A count of bytes that never says no.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally(pub u64);

impl Toll for Tally {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.0 += bytes;
        Ok(())
    }
}

/// A small file with the name that its source gave to this state of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged {
    /// An entity tag; `None` if the source has none.
    pub tag: Option<String>,
    /// The file.
    pub bytes: Vec<u8>,
}

/// Something that bytes come from.
pub trait Carrier {
    /// A whole small file of at most `limit` bytes: announcements, root documents, manifests, catalogues.
    ///
    /// # Errors
    /// [`Failure`]; a longer file is [`Fault::Damaged`], one that is not there [`Fault::Absent`].
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure>;

    /// As [`Carrier::whole`], for a file that is looked at again and again; a carrier that knows whether it changed
    /// since `_known` need not send it.
    ///
    /// # Errors
    /// As [`Carrier::whole`].
    fn changed(
        &mut self,
        path: &str,
        limit: u64,
        _known: Option<&Tagged>,
        toll: &mut dyn Toll,
    ) -> Result<Tagged, Failure> {
        Ok(Tagged { tag: None, bytes: self.whole(path, limit, toll)? })
    }

    /// Pieces of a file, those that are missing and perhaps others, handed on as they come. It may end before all came, if
    /// at least one did: whoever asked looks what is still missing and asks again.
    ///
    /// # Errors
    /// [`Failure`], and the sink's own. What was handed on before stays good.
    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure>;
}

/// Opens sources, and keeps those that live on between two uses.
pub struct Carriers {
    identity: mqtt::Identity,
    heard: Arc<dyn Fn(&str) + Send + Sync>,
    brokers: BTreeMap<String, Arc<mqtt::Broker>>,
    receivers: BTreeMap<String, Arc<cast::Receiver>>,
    /// Where a pair's configuration would be, and what may be new if the other node says so.
    pair: Option<(PathBuf, Vec<String>)>,
    peer: Option<Arc<peer::Peer>>,
}

impl Carriers {
    /// Nothing is open yet. `heard` is told of a source that announces something by itself; it is called by other threads.
    pub fn new(identity: mqtt::Identity, heard: impl Fn(&str) + Send + Sync + 'static) -> Self {
        let (brokers, receivers) = Default::default();
        Self { identity, heard: Arc::new(heard), brokers, receivers, pair: None, peer: None }
    }

    /// Shares with the other node of a pair, if one is configured now or later; what it wants may be new in these sources.
    pub fn pair(&mut self, config: &Path, sources: Vec<String>) {
        self.pair = Some((config.to_owned(), sources));
        self.peer();
    }

    /// The other node of the pair.
    pub fn peer(&mut self) -> Option<Arc<peer::Peer>> {
        if self.peer.is_some() {
            return self.peer.clone();
        }
        let (config, sources) = self.pair.as_ref().filter(|(config, _)| config.exists())?;
        let (heard, sources) = (self.heard.clone(), sources.clone());
        let heard = Box::new(move || sources.iter().for_each(|source| heard(source)));
        match peer::Peer::of_pair(config, heard) {
            Ok(peer) => self.peer = peer,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "nothing is shared with the other node");
            }
        }
        self.peer.clone()
    }

    /// Opens a source: `http://…`, `https://…`, `mqtt://…`, `mqtts://…`, `serial:…`, `cast:…`, or a folder.
    ///
    /// # Errors
    /// [`Failure`] for an address of another kind.
    pub fn open(&mut self, source: &str) -> Result<Box<dyn Carrier>, Failure> {
        if cast::address::Address::is_meant(source) {
            return Ok(Box::new(cast::Handle(self.listen(source)?)));
        }
        let inner: Box<dyn Carrier> = match formats::mqtt::Address::is_meant(source) {
            true => Box::new(mqtt::Handle(self.broker(source)?)),
            false => open(source)?,
        };
        // A stick costs nothing.
        let inner: Box<dyn Carrier> = match self.peer().filter(|_| !source.starts_with('/')) {
            Some(peer) => Box::new(peer::Beside { inner, peer }),
            None => inner,
        };
        if self.receivers.is_empty() {
            return Ok(inner);
        }
        let receivers = self.receivers.values().cloned().collect();
        Ok(Box::new(cast::mend::Mended { inner, receivers }))
    }

    /// The receiver of a broadcast; it begins to listen if it does not yet.
    ///
    /// # Errors
    /// [`Failure`], if the source is no broadcast or cannot be listened to.
    pub fn listen(&mut self, source: &str) -> Result<Arc<cast::Receiver>, Failure> {
        if let Some(receiver) = self.receivers.get(source) {
            return Ok(receiver.clone());
        }
        let (heard, named) = (self.heard.clone(), source.to_owned());
        let heard = Box::new(move || heard(&named));
        let receiver = cast::Receiver::start(source, &self.identity.retained, heard)?;
        self.receivers.insert(source.to_owned(), receiver.clone());
        Ok(receiver)
    }

    /// Begins to listen to those of these sources that are broadcasts.
    pub fn tune<'s>(&mut self, sources: impl IntoIterator<Item = &'s String>) {
        for source in sources.into_iter().filter(|source| cast::address::Address::is_meant(source)) {
            if let Err(failure) = self.listen(source) {
                tracing::warn!(why = failure.why, source, "a broadcast is not listened to");
            }
        }
    }

    /// The session with a broker; it is begun if there is none.
    ///
    /// # Errors
    /// [`Failure`], if the address is none or no session can be kept.
    pub fn broker(&mut self, source: &str) -> Result<Arc<mqtt::Broker>, Failure> {
        if let Some(broker) = self.brokers.get(source) {
            return Ok(broker.clone());
        }
        let (heard, named) = (self.heard.clone(), source.to_owned());
        let broker = mqtt::Broker::start(source, self.identity.clone(), Box::new(move || heard(&named)))?;
        self.brokers.insert(source.to_owned(), broker.clone());
        Ok(broker)
    }
}

impl Drop for Carriers {
    fn drop(&mut self) {
        self.brokers.values().for_each(|broker| broker.close());
        self.receivers.values().for_each(|receiver| receiver.close());
    }
}

/// Opens a source that needs nothing to be kept: a web server, a serial line or a folder.
///
/// # Errors
/// [`Failure`] for an address of another kind.
fn open(source: &str) -> Result<Box<dyn Carrier>, Failure> {
    if source.starts_with("http://") || source.starts_with("https://") {
        return Ok(Box::new(http::Server::open(source)?));
    }
    if source.starts_with("serial:") {
        let address = serial::Address::parse(source)?;
        let port = serial::Port::open(&address)?;
        return Ok(if address.satellite {
            Box::new(linked::Linked::new(satellite::Modem::new(port, address))?)
        } else {
            Box::new(linked::Linked::new(serial::Line::new(port, &address))?)
        });
    }
    if source.contains("://") {
        let why = format!(
            "{source} is not a source: it must be a folder, or begin with http://, https://, mqtt://, mqtts://, serial: or cast:"
        );
        return Err(Failure::new(Fault::Absent, why));
    }
    Ok(Box::new(folder::Folder::open(source)))
}

#[cfg(test)]
pub(crate) mod broker_tests;
#[cfg(test)]
mod tests;
