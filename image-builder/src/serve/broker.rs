//! The block server: announces what a repository holds on a broker, and answers devices that pull pieces of it.
//!
//! The broker keeps nothing but the announcements; requests and pieces go with quality of service 0 and are asked for
//! again when they are lost. Decides nothing about turns: [`super::queue`] does.

use super::answer;
use super::pace::Pace;
use super::queue::{Due, Queue};
use crate::fleet::Reports;
use crate::release::folder::read_limited;
use anyhow::{Context, Result};
use formats::frame::{Frame, MAX_FRAME_BYTES};
use formats::mqtt::Address;
use formats::pull::{Body, Get, Part};
use formats::report::{self, Report};
use formats::repository as names;
use rumqttc::{
    AsyncClient, Event, EventLoop, Incoming, MqttOptions, Publish, QoS, TlsConfiguration, Transport,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Messages that wait to be written to the broker.
const OUTBOX: usize = 16;
/// Between two looks whether announcements have changed.
const LOOK: Duration = Duration::from_secs(2);
/// Between two attempts to reach the broker.
const RETRY: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Most announcements and waves of a repository.
const RETAINED_MAX: usize = 4096;
/// Topics that the server listens to.
const TOPICS: usize = 2;

/// What is served, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Repository or release folder.
    pub folder: PathBuf,
    /// The broker.
    pub address: Address,
    /// Bits per second to all devices together; none: as fast as it goes.
    pub bits_per_s: Option<u64>,
    /// Devices that are served at once.
    pub devices: usize,
    /// Where reports are kept.
    pub reports: PathBuf,
    /// Write a line for each request to standard error.
    pub log: bool,
}

struct Server {
    options: Options,
    client: AsyncClient,
    queue: RefCell<Queue>,
    work: Notify,
    begun: Instant,
    reports: RefCell<Reports>,
    retained: RefCell<BTreeMap<String, Vec<u8>>>,
}

/// Connects to a broker as `client`.
///
/// # Errors
/// If the certificates or the password cannot be read.
pub fn connect(address: &Address, client: &str) -> Result<(AsyncClient, EventLoop)> {
    // Fails only if a provider is installed already, which is what is wanted.
    drop(rustls::crypto::ring::default_provider().install_default());
    let mut options = MqttOptions::new(client, &address.host, address.port);
    options.set_keep_alive(KEEP_ALIVE).set_clean_session(true);
    options.set_max_packet_size(64 << 10, 64 << 10);
    if address.tls {
        options.set_transport(Transport::tls_with_config(match &address.ca {
            Some(path) => {
                let ca = fs::read(path).with_context(|| format!("read {path}"))?;
                TlsConfiguration::Simple { ca, alpn: None, client_auth: None }
            }
            None => TlsConfiguration::default(),
        }));
    }
    if let Some(path) = &address.password_file {
        let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        let user = address.user.as_deref().unwrap_or(client);
        options.set_credentials(user, text.lines().next().unwrap_or_default());
    } else if let Some(user) = &address.user {
        options.set_credentials(user, "");
    }
    Ok(AsyncClient::new(options, OUTBOX))
}

/// Serves until the process is interrupted; `ready` is called when the broker was reached for the first time.
///
/// # Errors
/// If the server cannot be set up; a broker that goes away is waited for.
pub fn run(options: Options, ready: impl FnOnce()) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the server's loop")?;
    let mut drawn = [0; 4];
    getrandom::fill(&mut drawn).context("draw a name")?;
    let name = format!("farhold-serve-{}", formats::hex::encode(&drawn));
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let (client, events) = connect(&options.address, &name)?;
        let server = Rc::new(Server {
            queue: RefCell::new(Queue::new(options.devices)),
            work: Notify::new(),
            begun: Instant::now(),
            reports: RefCell::new(Reports::open(&options.reports)?),
            retained: RefCell::default(),
            options,
            client,
        });
        tokio::task::spawn_local(Rc::clone(&server).send());
        tokio::task::spawn_local(Rc::clone(&server).watch());
        tokio::select! {
            error = server.listen(events, ready) => error,
            interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for an interrupt"),
        }
    })
}

impl Server {
    async fn listen(self: &Rc<Self>, mut events: EventLoop, ready: impl FnOnce()) -> Result<()> {
        let mut ready = Some(ready);
        let (mut said, mut subscribed) = (String::new(), 0);
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Incoming::ConnAck(_))) => {
                    said.clear();
                    subscribed = 0;
                    self.retained.borrow_mut().clear();
                    // The queue may be full of pieces: this must wait for room, and the loop must not.
                    tokio::task::spawn_local(Rc::clone(self).subscribe());
                }
                Ok(Event::Incoming(Incoming::SubAck(_))) => {
                    subscribed += 1;
                    // Before, a request would go to nobody.
                    if subscribed == TOPICS
                        && let Some(ready) = ready.take()
                    {
                        ready();
                    }
                }
                Ok(Event::Incoming(Incoming::Publish(message))) => self.message(&message),
                Ok(Event::Incoming(_) | Event::Outgoing(_)) => {}
                Err(error) => {
                    let text = format!("{error}");
                    if text != said {
                        let Address { host, port, .. } = &self.options.address;
                        eprintln!("farhold: broker {host}:{port}: {text}; trying again");
                        said = text;
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn subscribe(self: Rc<Self>) {
        let address = &self.options.address;
        let topics: [String; TOPICS] = [address.get("+"), address.report("+")];
        for topic in topics {
            if let Err(error) = self.client.subscribe(topic, QoS::AtLeastOnce).await {
                eprintln!("farhold: subscribe: {error}");
            }
        }
    }

    fn message(self: &Rc<Self>, message: &Publish) {
        match self.options.address.from(&message.topic) {
            Some(("get", device)) => self.asked(device, &message.payload),
            Some(("report", device)) => self.reported(device, &message.payload),
            Some(_) | None => {}
        }
    }

    fn asked(self: &Rc<Self>, device: &str, bytes: &[u8]) {
        let get = match Get::parse(bytes) {
            Ok(get) => get,
            Err(error) => {
                if self.options.log {
                    eprintln!("{device}: refused: {error}");
                }
                return;
            }
        };
        if self.options.log {
            let (path, pieces) = (get.file.path(), get.pieces().count());
            eprintln!("{device} {path} {pieces} pieces from {}", get.first);
        }
        let tag = get.tag;
        match self.queue.borrow_mut().take(device, get, self.begun.elapsed()) {
            Ok(()) => self.work.notify_one(),
            Err(wait) => self.tell(device, &Part { tag, body: Body::Busy(wait) }.encode()),
        }
    }

    /// A short answer that may get lost: the device asks again.
    fn tell(&self, device: &str, bytes: &[u8]) {
        let topic = self.options.address.to(device);
        drop(self.client.try_publish(topic, QoS::AtMostOnce, false, bytes));
    }

    fn reported(&self, device: &str, bytes: &[u8]) {
        let kept = Report::parse(bytes).map_err(anyhow::Error::new).and_then(|report| {
            self.reports.borrow_mut().take(&report)?;
            Ok(report.id)
        });
        match kept {
            Ok(id) => self.tell(device, &report::encode_receipt(&[id])),
            Err(error) => eprintln!("farhold: report of {device}: {error:#}"),
        }
    }

    /// Sends what is due, at the rate that is set.
    async fn send(self: Rc<Self>) {
        let mut pace = self.options.bits_per_s.map(Pace::new);
        let mut files = Files::default();
        loop {
            let due = self.queue.borrow_mut().next(self.begun.elapsed());
            let Some(due) = due else {
                self.work.notified().await;
                continue;
            };
            let Some(bytes) = self.part(&due, &mut files) else { continue };
            if let Some(pace) = &mut pace {
                tokio::time::sleep(pace.take(self.begun.elapsed(), bytes.len())).await;
            }
            let topic = self.options.address.to(&due.device);
            // Without a broker this waits until there is one again; devices have asked anew by then.
            if self.client.publish(topic, QoS::AtMostOnce, false, bytes).await.is_err() {
                return;
            }
        }
    }

    /// The message for what is due; nothing if the file ended before.
    fn part(&self, due: &Due, files: &mut Files) -> Option<Vec<u8>> {
        let (tag, path) = (due.get.tag, due.get.file.path());
        let body = match self.read(due, &path, files) {
            Ok(Some((length, bytes))) if !bytes.is_empty() || length == 0 => {
                let (index, offset) = (due.index, due.offset);
                return Some(
                    Part { tag, body: Body::Data { length, index, offset, bytes: &bytes } }.encode(),
                );
            }
            Ok(Some(_)) if due.offset > 0 => return None,
            // Beyond the end: the device's idea of the file is another one.
            Ok(Some(_)) => Body::Refused,
            Ok(None) => Body::Absent,
            Err(error) => {
                eprintln!("farhold: {error:#}");
                Body::Refused
            }
        };
        self.queue.borrow_mut().drop_request(&due.device, tag);
        Some(Part { tag, body }.encode())
    }

    /// Length of the file and the bytes that are due; `None` if it is not there.
    fn read(&self, due: &Due, path: &str, files: &mut Files) -> Result<Option<(u64, Vec<u8>)>> {
        let Some((file, length)) = files.open(&self.options.folder, path)? else { return Ok(None) };
        let at = u64::from(due.index) * u64::from(due.get.piece.bytes()) + u64::from(due.offset);
        let mut bytes = vec![0; usize::try_from(length.saturating_sub(at).min(due.bytes as u64))?];
        file.read_exact_at(&mut bytes, at).with_context(|| format!("read {path}"))?;
        if at + bytes.len() as u64 >= length {
            self.queue.borrow_mut().ended(due);
        }
        Ok(Some((length, bytes)))
    }

    /// Announces what is new, as long as the server runs.
    async fn watch(self: Rc<Self>) {
        let mut said = String::new();
        loop {
            match retained(&self.options.folder) {
                Ok(found) => self.announce(found).await,
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != said {
                        eprintln!("farhold: {text}");
                        said = text;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn announce(&self, found: BTreeMap<String, Vec<u8>>) {
        let gone: Vec<String> =
            self.retained.borrow().keys().filter(|name| !found.contains_key(*name)).cloned().collect();
        // An empty retained message takes the one before away.
        let gone = gone.into_iter().map(|name| (name, Vec::new()));
        for (name, bytes) in gone.chain(found) {
            if self.retained.borrow().get(&name) == Some(&bytes) {
                continue;
            }
            let topic = self.options.address.retained(&name);
            if self.client.publish(topic, QoS::AtLeastOnce, true, bytes.clone()).await.is_err() {
                return;
            }
            if bytes.is_empty() {
                self.retained.borrow_mut().remove(&name);
            } else {
                self.retained.borrow_mut().insert(name, bytes);
            }
        }
    }
}

/// Files that are read again and again.
#[derive(Default)]
struct Files {
    open: Vec<(String, File, u64)>,
}

impl Files {
    const MAX: usize = 16;

    fn open(&mut self, folder: &Path, name: &str) -> Result<Option<(&File, u64)>> {
        if let Some(at) = self.open.iter().position(|(known, ..)| known == name) {
            // What is not named by its contents may have been replaced.
            let entry = self.open.remove(at);
            if answer::immutable(name) {
                self.open.push(entry);
                return Ok(self.open.last().map(|(_, file, length)| (file, *length)));
            }
        }
        let path = folder.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
        };
        let length = file.metadata().with_context(|| format!("read {}", path.display()))?.len();
        if self.open.len() >= Self::MAX {
            self.open.remove(0);
        }
        self.open.push((name.to_owned(), file, length));
        Ok(self.open.last().map(|(_, file, length)| (file, *length)))
    }
}

/// Announcements and waves of a repository or release folder, by name.
fn retained(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for kind in [names::ANNOUNCEMENTS, names::WAVES] {
        let entries = match fs::read_dir(folder.join(kind)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}/{kind}", folder.display())),
        };
        for entry in entries.take(RETAINED_MAX) {
            let entry = entry.with_context(|| format!("read {}/{kind}", folder.display()))?;
            let Some(name) = entry.file_name().to_str().map(|name| format!("{kind}/{name}")) else {
                continue;
            };
            if formats::mqtt::is_name(&name[kind.len() + 1..]) && answer::name(&format!("/{name}")).is_some()
            {
                found.insert(name, read_limited(&entry.path(), MAX_FRAME_BYTES as u64)?);
            }
        }
    }
    let single = folder.join(names::ANNOUNCE);
    if found.is_empty() && single.exists() {
        let bytes = read_limited(&single, MAX_FRAME_BYTES as u64)?;
        let frame = Frame::parse(&bytes).with_context(|| format!("read {}", single.display()))?;
        found.insert(names::announcement_of(frame.unverified()), bytes);
    }
    Ok(found)
}
