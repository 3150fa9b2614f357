//! A broadcast: nobody is asked, everything comes by itself, again and again. A thread takes in what is on the air, all the
//! time; whoever wants some of it waits for it. Over other carriers only what is missing then is fetched, see
//! [`mend`]. What is right is decided in [`formats::link::cast`].

pub mod address;
mod ear;
pub mod mend;

use super::{Carrier, Failure, Sink, Toll, Wanted, What, Worth};
use crate::io::clock::boot_ms;
use crate::update::step::Fault;
use address::Address;
use ear::{Ear, Folder};
use formats::link::cast::tune::{News, Tuner};
use formats::link::name::Name;
use formats::roles::{Chain, MAX_CHAIN_BYTES, Root};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Packets that are looked at in a second; a flood beyond that is left to the kernel, which drops it.
const PACKETS_MAX: u32 = 20_000;
/// Before a socket or port that failed is opened again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long nothing need be on the air yet before whoever looks for an announcement is told so.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// Wakes whoever waits, so that a job that is not wanted any more ends.
const WAKE: Duration = Duration::from_millis(500);
/// Bytes that are handed on at a time.
const BATCH: u64 = 1 << 20;
/// Pieces that may be wrong before a cast is given up.
const WRONG_MAX: u32 = 3;
const STACK: usize = 512 << 10;

struct Shared {
    tuner: Tuner<Folder>,
    /// Bytes that came.
    heard: u64,
    /// Why nothing is heard.
    why: String,
    closed: bool,
}

/// A broadcast that is listened to.
pub struct Receiver {
    source: String,
    address: Address,
    shared: Mutex<Shared>,
    changed: Condvar,
}

/// Is called when an announcement came that was not known.
pub type Heard = Box<dyn Fn() + Send>;

/// A piece with its number.
type Piece = (u64, Vec<u8>);

fn name_of(what: What) -> Name {
    match what {
        What::Object(id) => Name::Object(id),
        What::Lists(id) => Name::Lists(id),
    }
}

fn trusted(path: &str) -> Result<Root, Failure> {
    let local = |why: String| Failure::new(Fault::Local, format!("{path}: {why}"));
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| local(error.to_string()))?;
    file.take(MAX_CHAIN_BYTES as u64).read_to_end(&mut bytes).map_err(|error| local(error.to_string()))?;
    let chain = Chain::parse(&bytes).map_err(|error| local(error.to_string()))?;
    chain.verify().cloned().map_err(|error| local(error.to_string()))
}

impl Receiver {
    /// Starts to listen. Announcements under these names are kept.
    ///
    /// # Errors
    /// If the address is none, the trusted root documents cannot be read, or there is no thread to be had.
    pub fn start(source: &str, names: &[String], heard: Heard) -> Result<Arc<Self>, Failure> {
        let address = Address::parse(source)?;
        let root = trusted(&address.roots)?;
        let names = names.iter().filter_map(|name| Name::from_path(name)).chain([Name::Announce]).collect();
        let folder = Folder { path: address.kept.clone().into(), made: 0 };
        let tuner = Tuner::new(root, names, folder, address.room);
        let shared = Shared { tuner, heard: 0, why: String::new(), closed: false };
        let (shared, changed) = (Mutex::new(shared), Condvar::new());
        let receiver = Arc::new(Self { source: source.to_owned(), address, shared, changed });
        let listening = receiver.clone();
        let thread = std::thread::Builder::new().name("cast".into()).stack_size(STACK);
        thread
            .spawn(move || listening.run(&heard))
            .map_err(|error| Failure::new(Fault::Local, format!("start a thread to listen: {error}")))?;
        Ok(receiver)
    }

    /// Ends it.
    pub fn close(&self) {
        self.locked().closed = true;
        self.changed.notify_all();
    }

    fn locked(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, heard: &Heard) {
        while !self.locked().closed {
            let why = match Ear::open(&self.address.medium).and_then(|mut ear| self.listen(&mut ear, heard)) {
                Ok(()) => return,
                Err(failure) => failure.why,
            };
            tracing::debug!(why, "no broadcast is heard");
            let mut shared = self.locked();
            shared.why = why;
            drop(self.changed.wait_timeout_while(shared, AGAIN, |shared| !shared.closed));
        }
    }

    fn listen(&self, ear: &mut Ear, heard: &Heard) -> Result<(), Failure> {
        let (mut second, mut packets) = (0, 0);
        loop {
            let (came, bytes) = ear.hear()?;
            let now_ms = boot_ms();
            if second != now_ms / 1000 {
                (second, packets) = (now_ms / 1000, 0);
            }
            packets += came.len() as u32;
            let mut shared = self.locked();
            if shared.closed {
                return Ok(());
            }
            shared.heard += bytes;
            let (mut announced, mut wake) = (false, false);
            for packet in &came {
                let news = shared.tuner.take(packet, now_ms);
                announced |= news == News::Announced;
                if let News::Complete(name) = news {
                    self.complete(&shared, &name);
                }
                wake |= news != News::Little;
            }
            drop(shared);
            if wake {
                self.changed.notify_all();
            }
            if announced {
                heard();
            }
            if packets > PACKETS_MAX {
                std::thread::sleep(Duration::from_millis(1000 - now_ms % 1000));
            }
        }
    }

    fn complete(&self, shared: &Shared, name: &Name) {
        let Some(catch) = shared.tuner.catch(name) else { return };
        let tally = catch.tally;
        tracing::info!(
            name = name.path(),
            received = tally.received,
            needed = tally.needed,
            wrong = tally.wrong,
            dropped = tally.dropped,
            heard = shared.heard,
            "all of it was broadcast"
        );
    }

    fn unreachable(&self, what: &str) -> Failure {
        let shared = self.locked();
        let why = match (&shared.why, &shared.tuner.full) {
            (why, _) if shared.heard == 0 && !why.is_empty() => format!(" ({why})"),
            (_, Some(full)) => format!(" ({full})"),
            (..) => String::new(),
        };
        Failure::new(Fault::Unreachable(None), format!("{}: {what}{why}", self.source))
    }

    fn absent(&self, name: &Name) -> Failure {
        Failure::new(Fault::Absent, format!("{} does not carry {}", self.source, name.path()))
    }

    /// Looks again and again until something is there, or nothing of use came for `patience`.
    fn wait<T>(
        &self,
        patience: Duration,
        toll: &mut dyn Toll,
        mut look: impl FnMut(&mut Tuner<Folder>) -> Option<Result<T, Failure>>,
    ) -> Result<Option<T>, Failure> {
        let mut paid = self.locked().heard;
        let mut since_ms = boot_ms();
        let mut known = 0;
        loop {
            let (found, heard, progress) = {
                let mut shared = self.locked();
                let found = look(&mut shared.tuner);
                (found, shared.heard, shared.tuner.kept())
            };
            toll.paid(heard - std::mem::replace(&mut paid, heard))?;
            if let Some(found) = found {
                return found.map(Some);
            }
            if progress != known {
                (known, since_ms) = (progress, boot_ms());
            }
            if u128::from(boot_ms().saturating_sub(since_ms)) >= patience.as_millis() {
                return Ok(None);
            }
            drop(self.changed.wait_timeout(self.locked(), WAKE));
        }
    }

    /// The pieces of `missing` that can be read now, up to a batch.
    fn ready(
        tuner: &Tuner<Folder>,
        wanted: &Wanted,
        missing: &BTreeSet<u64>,
    ) -> Option<Result<Vec<Piece>, Failure>> {
        let name = name_of(wanted.what);
        let catch = tuner.catch(&name).filter(|catch| u64::from(catch.head().cut.length) == wanted.length)?;
        if let Some(why) = catch.failed() {
            return Some(Err(Failure::new(Fault::Local, why)));
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for index in missing {
            match catch.read(&wanted.bytes(&(*index..index + 1))) {
                None => continue,
                Some(Err(why)) => return Some(Err(Failure::new(Fault::Local, why))),
                Some(Ok(piece)) => {
                    bytes += piece.len() as u64;
                    found.push((*index, piece));
                }
            }
            if bytes >= BATCH {
                break;
            }
        }
        (!found.is_empty()).then_some(Ok(found))
    }
}

/// Numbers of pieces as ranges.
pub fn runs(pieces: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for piece in pieces {
        match runs.last_mut().filter(|run| run.end == *piece) {
            Some(run) => run.end += 1,
            None => runs.push(*piece..piece + 1),
        }
    }
    runs
}

/// Hands on pieces that were broadcast.
struct Giver<'s> {
    missing: BTreeSet<u64>,
    wrong: u32,
    sink: &'s mut dyn Sink,
}

impl<'s> Giver<'s> {
    fn new(wanted: &Wanted, sink: &'s mut dyn Sink) -> Self {
        Self { missing: wanted.missing.iter().cloned().flatten().collect(), wrong: 0, sink }
    }

    fn give(&mut self, pieces: Vec<Piece>) -> Result<(), Failure> {
        for (index, bytes) in pieces {
            match self.sink.piece(index, &bytes)? {
                Worth::New | Worth::Known => {}
                Worth::Wrong(why) if self.wrong >= WRONG_MAX => {
                    return Err(Failure::new(
                        Fault::Damaged,
                        format!("what is broadcast is not the object: {why}"),
                    ));
                }
                Worth::Wrong(_) => self.wrong += 1,
            }
            self.missing.remove(&index);
        }
        Ok(())
    }
}

/// A broadcast as a carrier.
pub struct Handle(pub Arc<Receiver>);

impl Handle {
    fn announcement(&self, name: &Name, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let found = self.0.wait(FIRST_WAIT.min(self.0.address.wait), toll, |tuner| {
            let frame = tuner.announcement(name).map(|frame| Ok(frame.to_vec()));
            frame.or_else(|| tuner.on_air(name).map(|_| Err(self.0.absent(name))))
        })?;
        found.ok_or_else(|| self.0.unreachable("nothing is on the air yet"))
    }
}

impl Carrier for Handle {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        let absent = || Failure::new(Fault::Absent, format!("{path} is not broadcast"));
        let name = Name::from_path(path).ok_or_else(absent)?;
        if matches!(name, Name::Announce | Name::Announcement(..)) {
            return self.announcement(&name, toll);
        }
        let found = self.0.wait(self.0.address.wait, toll, |tuner| {
            if name == Name::Roots {
                return tuner.chain().map(|chain| Ok(chain.to_vec()));
            }
            tuner.want(name);
            let length = tuner.catch(&name).map(|catch| catch.head().cut.length.into());
            match length {
                Some(length) if length > limit => {
                    Some(Err(Failure::new(Fault::Damaged, format!("{path} has more than {limit} bytes"))))
                }
                Some(length) => tuner
                    .read(&name, &(0..length))
                    .map(|read| read.map_err(|why| Failure::new(Fault::Local, why))),
                None if tuner.on_air(&name) == Some(false) => Some(Err(self.0.absent(&name))),
                None => None,
            }
        })?;
        let bytes = found.ok_or_else(|| self.0.unreachable("nothing more of it comes"))?;
        if bytes.len() as u64 > limit {
            return Err(Failure::new(Fault::Damaged, format!("{path} has more than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let name = name_of(wanted.what);
        let mut giver = Giver::new(wanted, sink);
        while !giver.missing.is_empty() {
            let missing = &giver.missing;
            let found = self.0.wait(self.0.address.wait, giver.sink, |tuner| {
                tuner.want(name);
                let absent = tuner.on_air(&name) == Some(false);
                Receiver::ready(tuner, wanted, missing).or_else(|| absent.then(|| Err(self.0.absent(&name))))
            })?;
            let found = found.ok_or_else(|| self.0.unreachable("nothing more of it comes"))?;
            giver.give(found)?;
        }
        Ok(())
    }
}
