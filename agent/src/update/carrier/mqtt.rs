//! A release behind an MQTT broker: announcements are retained there, pieces are pulled from a block server.
//!
//! One thread for each broker keeps the session: it comes back by itself after every loss, with waits that grow and differ
//! by device. What it hands on is bounded: messages that nobody takes in time are dropped and asked for again.

use super::{Carrier, Failure, Sink, Toll, Wanted, What, Worth};
use crate::io::clock::boot_ms;
use crate::update::policy;
use crate::update::step::Fault;
use agent::pull::{AHEAD_MAX, Next, Pull, Pulled, Stop};
use formats::frame::{MAX_FRAME_BYTES, Scope};
use formats::mqtt::Address;
use formats::object::BlockSize;
use formats::pull::{File, Lane, Part};
use formats::report::{self, ReportId};
use rumqttc::{Client, Connection, Event, Incoming, MqttOptions, Publish, QoS, TlsConfiguration, Transport};
use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Between two signs of life on an idle connection: 4 bytes each way every five minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// Requests of ours that wait to be written.
const OUTBOX: usize = 64;
/// Messages that wait to be taken, beyond those that were asked for.
const INBOX: u64 = 16;
/// How long a session may take to come up before a transfer is put off.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// Retained messages come right after a subscription is confirmed, if there are any.
const RETAINED_PATIENCE: Duration = Duration::from_secs(5);
/// Retained files that are kept: announcements and waves for everybody, the site and the device.
const RETAINED_MAX: usize = 8;
/// A whole file of unknown length is asked for in pieces of this size.
const PIECE: BlockSize = BlockSize::KIB_4;
/// The thread that reads messages needs little, TLS some.
const STACK: usize = 512 << 10;

/// Who this device is on a broker.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name in topics where the address names no user.
    pub device: String,
    /// Names of the announcements and waves that are for it.
    pub retained: Vec<String>,
    /// Differs by device.
    pub seed: u64,
}

impl Identity {
    /// The name of the device with this machine id.
    pub fn device_of(id: &str) -> String {
        match Scope::device(id) {
            Scope::Device(tag) | Scope::Site(tag) => formats::hex::encode(&tag),
            Scope::All => String::new(),
        }
    }
}

/// What the thread and its users share.
#[derive(Default)]
struct Shared {
    /// Counts sessions; even while there is none.
    session: u64,
    /// When the broker last confirmed a subscription, ms since the kernel started.
    since_ms: u64,
    /// Subscriptions that it has not confirmed: until then it may have files that it did not send.
    unconfirmed: usize,
    retained: BTreeMap<String, Vec<u8>>,
    /// Where pieces go while somebody pulls, by session of the request.
    takers: BTreeMap<u32, SyncSender<Vec<u8>>>,
    receipts: Vec<ReportId>,
    /// Why there is no session.
    why: String,
    closed: bool,
}

impl Shared {
    /// Whether what the broker retains has come, if there is any.
    fn settled(&self) -> bool {
        self.unconfirmed == 0 && boot_ms() >= self.since_ms + RETAINED_PATIENCE.as_millis() as u64
    }
}

/// A broker, with the session to it.
pub struct Broker {
    address: Address,
    identity: Identity,
    name: String,
    client: Client,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// Is called when a retained file came that was not known.
pub type Heard = Box<dyn Fn() + Send>;

/// Takes a whole piece of what is pulled.
type Take<'t> = dyn FnMut(&mut Pull, u64, Vec<u8>) -> Result<(), Failure> + 't;

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn local(what: String) -> Failure {
    Failure::new(Fault::Local, what)
}

fn options(address: &Address, name: &str, device: &str) -> Result<MqttOptions, Failure> {
    // Fails only if a provider is installed already, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
    // One session for each device, whatever the user: a new one takes the place of the old one.
    let mut options = MqttOptions::new(format!("farhold-{device}"), &address.host, address.port);
    options.set_keep_alive(KEEP_ALIVE).set_clean_session(true);
    let most = address.packet as usize;
    options.set_max_packet_size(most + 64, most + 64);
    if address.tls {
        options.set_transport(Transport::tls_with_config(match &address.ca {
            Some(path) => {
                let ca = std::fs::read(path).map_err(|error| local(format!("read {path}: {error}")))?;
                TlsConfiguration::Simple { ca, alpn: None, client_auth: None }
            }
            None => TlsConfiguration::default(),
        }));
    }
    let password = match &address.password_file {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).map_err(|error| local(format!("read {path}: {error}")))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        None => String::new(),
    };
    if address.user.is_some() || !password.is_empty() {
        options.set_credentials(name, password);
    }
    Ok(options)
}

impl Broker {
    /// Starts the session's thread; the broker is reached when it can be.
    ///
    /// # Errors
    /// If the address is none, certificates or password cannot be read, or there is no thread to be had.
    pub fn start(source: &str, identity: Identity, heard: Heard) -> Result<Arc<Self>, Failure> {
        let address = Address::parse(source).map_err(|why| Failure::new(Fault::Absent, why))?;
        let name = address.user.clone().unwrap_or_else(|| identity.device.clone());
        let options = options(&address, &name, &identity.device)?;
        let (client, connection) = Client::new(options, OUTBOX);
        let (shared, changed) = Default::default();
        let broker = Arc::new(Self { address, identity, name, client, shared, changed });
        let session = Session { broker: broker.clone(), heard, failures: 0 };
        let thread = std::thread::Builder::new().name("broker".into()).stack_size(STACK);
        thread
            .spawn(move || session.run(connection))
            .map_err(|error| local(format!("start a thread for the broker: {error}")))?;
        Ok(broker)
    }

    /// Ends the session and its thread.
    pub fn close(&self) {
        locked(&self.shared).closed = true;
        self.changed.notify_all();
        // Without room in its queue the thread is awake and sees the flag.
        drop(self.client.try_disconnect());
    }

    /// Waits until there is a session; gives its number.
    fn session(&self) -> Result<u64, Failure> {
        let shared = locked(&self.shared);
        let waited = self.changed.wait_timeout_while(shared, CONNECT_PATIENCE, |shared| {
            shared.session.is_multiple_of(2) && !shared.closed
        });
        let (shared, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if shared.session % 2 == 1 {
            return Ok(shared.session);
        }
        let Address { host, port, .. } = &self.address;
        let why = if shared.why.is_empty() { "no answer yet" } else { &shared.why };
        Err(Failure::new(Fault::Unreachable(None), format!("cannot reach the broker {host}:{port} ({why})")))
    }

    fn retained(&self, name: &str) -> Result<Vec<u8>, Failure> {
        self.session()?;
        let shared = locked(&self.shared);
        let waited = self.changed.wait_timeout_while(shared, RETAINED_PATIENCE, |shared| {
            !shared.retained.contains_key(name) && !shared.settled() && !shared.closed
        });
        let (shared, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let (fault, what) = match shared.unconfirmed {
            0 if !shared.closed => (Fault::Absent, "has nothing under"),
            _ => (Fault::Unreachable(None), "has not said yet whether it has"),
        };
        shared
            .retained
            .get(name)
            .cloned()
            .ok_or_else(|| Failure::new(fault, format!("the broker {what} {}", self.address.retained(name))))
    }

    /// Sends a report, if there is a session; whether it arrived is told by a receipt. Gives whether it was sent.
    pub fn report(&self, report: &[u8]) -> bool {
        let topic = self.address.report(&self.name);
        if locked(&self.shared).session.is_multiple_of(2) {
            return false;
        }
        self.client.try_publish(topic, QoS::AtLeastOnce, false, report).is_ok()
    }

    /// Receipts that have come since the last call.
    pub fn receipts(&self) -> Vec<ReportId> {
        std::mem::take(&mut locked(&self.shared).receipts)
    }

    /// Pulls until it ends; whole pieces go to `take`.
    fn pull(
        &self,
        of: Pulled,
        toll: &mut dyn FnMut(u64) -> Result<(), Failure>,
        take: &mut Take<'_>,
    ) -> Result<Stop, Failure> {
        let session = self.session()?;
        let part = u64::from(of.part_bytes).max(1);
        let (send, messages) = sync_channel(usize::try_from(AHEAD_MAX / part + INBOX).unwrap_or(usize::MAX));
        let number = of.session;
        locked(&self.shared).takers.insert(number, send);
        let stop = self.pull_from(&messages, session, Pull::new(of), (toll, take));
        locked(&self.shared).takers.remove(&number);
        stop
    }

    fn pull_from(
        &self,
        messages: &Receiver<Vec<u8>>,
        mut session: u64,
        mut pull: Pull,
        (toll, take): (&mut dyn FnMut(u64) -> Result<(), Failure>, &mut Take<'_>),
    ) -> Result<Stop, Failure> {
        let topic = self.address.get(&self.name);
        loop {
            match pull.next(boot_ms()) {
                Next::Stop(stop) => return Ok(stop),
                Next::Send(request) => {
                    toll((topic.len() + request.len() + 5) as u64)?;
                    // One that finds no room is lost like any other.
                    drop(self.client.try_publish(&topic, QoS::AtMostOnce, false, request));
                }
                Next::Wait(until) => {
                    if let Some(message) = self.wait(messages, until, session)? {
                        toll((message.len() + self.address.to(&self.name).len() + 5) as u64)?;
                        if let Some((index, bytes)) = pull.message(&message, boot_ms()) {
                            take(&mut pull, index, bytes)?;
                        }
                    }
                    // Silence must not keep a job that is not wanted any more.
                    toll(0)?;
                    let now = self.session()?;
                    if now != session {
                        session = now;
                        pull.reconnected();
                    }
                }
            }
        }
    }

    /// A message, or nothing if the time is over or the session is another one.
    fn wait(
        &self,
        messages: &Receiver<Vec<u8>>,
        until_ms: u64,
        session: u64,
    ) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            let left = until_ms.saturating_sub(boot_ms());
            // Woken now and then, so that a lost session and a cancelled job are seen soon.
            match messages.recv_timeout(Duration::from_millis(left.min(500))) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Timeout) => {
                    if left <= 500 || locked(&self.shared).session != session {
                        return Ok(None);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Failure::new(
                        Fault::Unreachable(None),
                        "another transfer took the place of this one",
                    ));
                }
            }
        }
    }

    /// A transfer that begins. Small files and pieces have a lane each: a look does not end what is being fetched.
    fn pulled(&self, file: File, piece: BlockSize, lane: Lane) -> Result<Pulled, Failure> {
        let mut drawn = [0; 4];
        getrandom::fill(&mut drawn).map_err(|error| local(format!("draw a number: {error}")))?;
        Ok(Pulled {
            file,
            piece,
            length: Ok(0),
            missing: Vec::new(),
            part_bytes: self.address.part_bytes(&self.name),
            session: lane.session(u32::from_le_bytes(drawn)),
        })
    }

    fn stopped(&self, stop: &Stop, path: &str) -> Result<(), Failure> {
        let fail = |fault, what: &str| {
            let Address { host, prefix, .. } = &self.address;
            Err(Failure::new(fault, format!("{path} from the block server of {prefix} at {host}: {what}")))
        };
        match stop {
            Stop::Done => Ok(()),
            Stop::Absent => fail(Fault::Absent, "it is not there"),
            Stop::Busy(seconds) => fail(Fault::Unreachable(Some(*seconds)), "it is busy"),
            Stop::Silent => fail(Fault::Unreachable(None), "it does not answer"),
            Stop::Damaged => fail(Fault::Damaged, "what it sends is not the file"),
        }
    }
}

/// A broker as a carrier.
pub struct Handle(pub Arc<Broker>);

impl Carrier for Handle {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let Some(file) = File::of_path(path) else { return self.0.retained(path) };
        let mut of = self.0.pulled(file, PIECE, Lane::Small)?;
        of.length = Err(limit);
        let mut pieces = BTreeMap::new();
        let stop = self.0.pull(of, &mut |bytes| toll.paid(bytes), &mut |_, index, bytes| {
            pieces.insert(index, bytes);
            Ok(())
        })?;
        self.0.stopped(&stop, path)?;
        Ok(pieces.into_values().flatten().collect())
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let file = match wanted.what {
            What::Object(id) => File::Object(id),
            What::Lists(id) => File::Lists(id),
        };
        let piece = BlockSize::from_log2(wanted.piece.trailing_zeros() as u8)
            .ok_or_else(|| local(format!("pieces of {} bytes", wanted.piece)))?;
        let mut of = self.0.pulled(file, piece, Lane::Bulk)?;
        (of.length, of.missing) = (Ok(wanted.length), wanted.missing.clone());
        let sink = std::cell::RefCell::new(sink);
        let stop =
            self.0.pull(of, &mut |bytes| sink.borrow_mut().paid(bytes), &mut |pull, index, bytes| {
                match sink.borrow_mut().piece(index, &bytes)? {
                    Worth::New | Worth::Known => {}
                    Worth::Wrong(why) => {
                        tracing::debug!(index, why, "a piece from the broker is refused");
                        pull.wrong(index);
                    }
                }
                Ok(())
            })?;
        self.0.stopped(&stop, &wanted.what.path())
    }
}

/// The thread that keeps the session.
struct Session {
    broker: Arc<Broker>,
    heard: Heard,
    failures: u32,
}

impl Session {
    fn run(mut self, mut connection: Connection) {
        loop {
            let event = connection.recv();
            if locked(&self.broker.shared).closed {
                return;
            }
            match event {
                Ok(Ok(Event::Incoming(Incoming::ConnAck(_)))) => self.up(),
                Ok(Ok(Event::Incoming(Incoming::Publish(message)))) => self.message(message),
                Ok(Ok(Event::Incoming(Incoming::SubAck(_)))) => {
                    let mut shared = locked(&self.broker.shared);
                    shared.unconfirmed = shared.unconfirmed.saturating_sub(1);
                    shared.since_ms = boot_ms();
                }
                Ok(Ok(Event::Incoming(_) | Event::Outgoing(_))) => {}
                Ok(Err(error)) => self.down(&error.to_string()),
                Err(_) => return,
            }
        }
    }

    fn up(&mut self) {
        self.failures = 0;
        let Broker { address, identity, name, client, shared, changed } = &*self.broker;
        let mut topics: Vec<(String, QoS)> = vec![(address.to(name), QoS::AtMostOnce)];
        topics.extend(identity.retained.iter().map(|name| (address.retained(name), QoS::AtLeastOnce)));
        let mut shared = locked(shared);
        shared.unconfirmed = topics.len();
        for (topic, qos) in topics {
            drop(client.try_subscribe(topic, qos));
        }
        shared.session += 1 + shared.session % 2;
        shared.since_ms = boot_ms();
        tracing::info!(host = address.host, "the broker is reached");
        changed.notify_all();
    }

    fn down(&mut self, why: &str) {
        self.failures += 1;
        let wait = policy::backoff_ms(self.failures, None, self.broker.identity.seed);
        tracing::info!(host = self.broker.address.host, why, wait_ms = wait, "no session with the broker");
        let mut shared = locked(&self.broker.shared);
        shared.session += shared.session % 2;
        shared.why = why.to_owned();
        self.broker.changed.notify_all();
        let wait = Duration::from_millis(wait);
        drop(self.broker.changed.wait_timeout_while(shared, wait, |shared| !shared.closed));
    }

    fn message(&mut self, message: Publish) {
        let broker = &self.broker;
        let mut shared = locked(&broker.shared);
        if message.topic == broker.address.to(&broker.name) {
            if let Ok(ids) = report::parse_receipt(&message.payload) {
                if shared.receipts.len() < report::MAX_RECEIPTS {
                    shared.receipts.extend(ids);
                }
                return;
            }
            let session = Part::parse(&message.payload).ok().map(|part| part.tag.session);
            if let Some(taker) = session.and_then(|session| shared.takers.get(&session)) {
                // Who is slow, or has ended, asks again.
                drop(taker.try_send(message.payload.to_vec()));
            }
            return;
        }
        let known =
            broker.identity.retained.iter().find(|name| broker.address.retained(name) == message.topic);
        let (Some(name), true) = (known, message.payload.len() <= MAX_FRAME_BYTES) else { return };
        let old = match message.payload.is_empty() {
            true => shared.retained.remove(name),
            false if shared.retained.len() < RETAINED_MAX || shared.retained.contains_key(name) => {
                shared.retained.insert(name.clone(), message.payload.to_vec())
            }
            false => return,
        };
        let new = old.as_deref() != Some(&message.payload[..]);
        broker.changed.notify_all();
        drop(shared);
        if new {
            (self.heard)();
        }
    }
}
