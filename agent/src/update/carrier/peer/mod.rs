//! The other node of a pair: what it has is not paid for again, and of two nodes that want the same only one pays for a
//! piece. A node asks the other before each bite that it takes over another carrier; what it then has, it hands on.
//!
//! ```text
//! this node: Beside ── Request ──▶ run/blocks ══ the pair's tunnel ══▶ /run/farhold/blocks ── Shelf: that node's journal
//! ```
//! Everything that comes is verified by the journal like what comes from anywhere. A node that is away, lies or stands
//! still costs a bounded time; then this one pays by itself.

mod claims;
mod serve;
mod talk;
#[cfg(test)]
mod tests;

use super::cast::runs;
use super::{Carrier, Failure, Sink, Tagged, Toll, Wanted, What, Worth};
use crate::io::clock::boot_ms;
use agent::ha::act::Config;
use anyhow::{Context, Result, bail};
use claims::{Claims, LEASE_MS, Pieces};
use formats::hex::Digest;
use serve::CLAIM_MAX;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use talk::{ANSWER_MAX, Answer, File, Request, Runs, hear, say};

/// Where objects are staged, see [`crate::update::machine`].
const STAGED: &str = "/var/lib/farhold/staged";
/// Bytes of a bite at first, at least and at most.
const BITE: [u64; 3] = [256 << 10, 16 << 10, 64 << 20];
/// A bite that took less is followed by a larger one, one that took more by a smaller, ms.
const BITE_MS: [u64; 2] = [3_000, 15_000];
/// How long the other node may take to answer.
const ANSWERS: Duration = Duration::from_secs(10);
/// A carrier that brings nothing for so long does not keep a claim, ms: between two bursts of a satellite go 40 s.
const STALLED_MS: u64 = 150_000;
/// How long one that is away, and one that lies, is left alone, ms.
const AWAY_MS: [u64; 2] = [30_000, 3_600_000];
/// Bytes that are paid for before one that was away is asked again.
const ALONE: u64 = 64 << 20;
/// How long it may bring nothing of what it has claimed, ms: a slow link's block takes its time.
const PATIENCE_MS: u64 = 600_000;
/// Between two looks at what it has, ms.
const LOOK_MS: u64 = 500;
/// Pieces that may be wrong before it is left alone.
const WRONG_MAX: u32 = 3;
/// Between two looks at a source because the other node wants something new, ms.
const HEARD_MS: u64 = 600_000;

/// Is told that the other node wants something that this one does not know.
pub type Heard = Box<dyn Fn() + Send + Sync>;

/// The other node, and what this one hands to it.
pub struct Peer {
    /// Where the tunnel to it begins.
    out: PathBuf,
    /// Where this node's objects are staged.
    staged: PathBuf,
    claims: Mutex<Claims>,
    heard: Heard,
    last_heard: Mutex<(Option<Digest>, u64)>,
    /// Bytes that it brought and that are not counted yet.
    brought: AtomicU64,
    /// Until when it is left alone.
    away_ms: AtomicU64,
    patience_ms: u64,
    /// Bytes of the first bite.
    bite: u64,
}

impl Peer {
    /// Begins to hand out, if a pair's configuration names another node.
    ///
    /// # Errors
    /// If the configuration cannot be read, or the socket not made.
    pub fn of_pair(config: &Path, heard: Heard) -> Result<Option<Arc<Self>>> {
        let pair = Config::read(config)?;
        if pair.peer.is_none() {
            return Ok(None);
        }
        let listener = serve::listen(&pair.blocks, config)?;
        let peer = Arc::new(Self::new(pair.run.join("blocks"), STAGED.into(), heard)?);
        serve::start(peer.clone(), listener)?;
        Ok(Some(peer))
    }

    fn new(out: PathBuf, staged: PathBuf, heard: Heard) -> Result<Self> {
        let mut token = [0; 8];
        getrandom::fill(&mut token).context("draw a number")?;
        Ok(Self {
            out,
            staged,
            claims: Mutex::new(Claims::new(u64::from_le_bytes(token))),
            heard,
            last_heard: Mutex::default(),
            brought: AtomicU64::new(0),
            away_ms: AtomicU64::new(0),
            patience_ms: PATIENCE_MS,
            bite: BITE[0],
        })
    }

    fn claims(&self) -> MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other node wants an object that this one neither has nor fetches: there may be something new.
    fn heard_of(&self, object: Digest) {
        let mut last = self.last_heard.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at_ms) = *last;
        let now_ms = boot_ms();
        if known.is_none() || (known != Some(object) && now_ms.saturating_sub(at_ms) >= HEARD_MS) {
            *last = (Some(object), now_ms);
            (self.heard)();
        }
    }

    fn away(&self) -> bool {
        boot_ms() < self.away_ms.load(Ordering::Relaxed)
    }

    /// Bytes that it brought since the last question.
    pub fn brought(&self) -> u64 {
        self.brought.swap(0, Ordering::Relaxed)
    }
}

/// A conversation.
struct Talk<'p> {
    peer: &'p Peer,
    file: File,
    stream: UnixStream,
}

/// What it says to a question.
struct Said {
    wanted: bool,
    has: Pieces,
    granted: Pieces,
}

impl File {
    /// The file that pieces are wanted of.
    fn of(wanted: &Wanted) -> Self {
        let (lists, id) = match wanted.what {
            What::Object(id) => (false, id),
            What::Lists(id) => (true, id),
        };
        Self { lists, id: id.0, length: wanted.length, piece: wanted.piece }
    }

    /// Which one it is.
    fn what(&self) -> What {
        let id = Digest(self.id);
        if self.lists { What::Lists(id) } else { What::Object(id) }
    }

    /// The object that it is, or whose lists.
    fn object(&self) -> Digest {
        Digest(self.id)
    }
}

impl<'p> Talk<'p> {
    fn begin(peer: &'p Peer, wanted: &Wanted) -> Result<Self> {
        let stream = UnixStream::connect(&peer.out)
            .with_context(|| format!("reach the other node at {}", peer.out.display()))?;
        stream.set_read_timeout(Some(ANSWERS)).and_then(|()| stream.set_write_timeout(Some(ANSWERS)))?;
        Ok(Self { peer, file: File::of(wanted), stream })
    }

    fn ask(&mut self, claimed: &Pieces, missing: &Pieces) -> Result<Said> {
        let token = self.peer.claims().token;
        let claims = Runs::of(claimed.iter().copied());
        say(&mut self.stream, &Request::Ask { file: self.file, token, claims })?;
        match hear(&mut self.stream, ANSWER_MAX)? {
            Answer::Has { wanted, has, granted } => {
                Ok(Said { wanted, has: has.among(missing), granted: granted.among(claimed) })
            }
            Answer::Piece(..) | Answer::End => bail!("the other node answers something else"),
        }
    }

    /// Has pieces handed over; those that are what they should be are missing no longer.
    fn take(&mut self, pieces: &Pieces, missing: &mut Pieces, sink: &mut dyn Sink) -> Result<(), Trouble> {
        let mut wrong = 0;
        for run in runs(pieces) {
            say(&mut self.stream, &Request::Get { file: self.file, from: run.start, to: run.end })?;
            loop {
                let (index, bytes) = match hear(&mut self.stream, ANSWER_MAX)? {
                    Answer::Piece(index, bytes) => (index, bytes),
                    Answer::End => break,
                    Answer::Has { .. } => return Err(anyhow::anyhow!("an answer to no question").into()),
                };
                if !run.contains(&index) {
                    return Err(anyhow::anyhow!("a piece that nobody asked for").into());
                }
                match sink.piece(index, &bytes).map_err(Trouble::End)? {
                    Worth::New | Worth::Known => {
                        self.peer.brought.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                        missing.remove(&index);
                    }
                    Worth::Wrong(why) => {
                        wrong += 1;
                        if wrong > WRONG_MAX {
                            return Err(Trouble::Liar(why));
                        }
                    }
                }
                // A job that is not wanted any more ends.
                sink.paid(0).map_err(Trouble::End)?;
            }
        }
        if wrong > 0 { Err(Trouble::Liar("some of it is damaged".to_owned())) } else { Ok(()) }
    }
}

/// Why nothing more comes from the other node.
enum Trouble {
    /// It is away, or no use.
    Peer(anyhow::Error),
    /// It hands over what is not the object.
    Liar(String),
    /// The transfer is to end.
    End(Failure),
}

impl From<anyhow::Error> for Trouble {
    fn from(error: anyhow::Error) -> Self {
        Self::Peer(error)
    }
}

/// A transfer of this node, as the other one sees it; ends with it.
struct Begun<'p>(&'p Peer, What);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        self.0.claims().end(self.1);
    }
}

/// A carrier that is only asked for what the other node does not bring.
pub struct Beside {
    /// The carrier.
    pub inner: Box<dyn Carrier>,
    /// The other node.
    pub peer: Arc<Peer>,
}

/// Hands on what is paid for, and renews the claim to the rest.
struct Paying<'t, 'p> {
    sink: &'t mut dyn Sink,
    talk: &'t mut Talk<'p>,
    what: What,
    missing: &'t mut Pieces,
    claimed: Pieces,
    renewed_ms: u64,
    /// When bytes came last.
    bytes_ms: u64,
}

impl Toll for Paying<'_, '_> {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        let now_ms = boot_ms();
        if bytes > 0 {
            self.bytes_ms = now_ms;
        }
        let moves = now_ms.saturating_sub(self.bytes_ms) < STALLED_MS;
        if moves && now_ms.saturating_sub(self.renewed_ms) >= LEASE_MS / 4 {
            let renewed = self.talk.ask(&self.claimed, &Pieces::new());
            // One that is away has nothing to say against it, and is not waited for again.
            self.renewed_ms = if renewed.is_ok() { now_ms } else { u64::MAX };
        }
        self.sink.paid(bytes)
    }
}

impl Sink for Paying<'_, '_> {
    fn piece(&mut self, index: u64, bytes: &[u8]) -> Result<Worth, Failure> {
        let worth = self.sink.piece(index, bytes)?;
        if !matches!(worth, Worth::Wrong(_)) {
            self.missing.remove(&index);
            self.claimed.remove(&index);
            self.talk.peer.claims().paid(self.what, index);
        }
        Ok(worth)
    }
}

/// How large the next bite is.
struct Bite(u64);

impl Bite {
    fn pieces(&self, missing: &Pieces, piece: u32) -> Pieces {
        let most = usize::try_from(self.0 / u64::from(piece.max(1))).unwrap_or(CLAIM_MAX).clamp(1, CLAIM_MAX);
        missing.iter().copied().take(most).collect()
    }

    fn took(&mut self, ms: u64) {
        let [_, least, most] = BITE;
        if ms < BITE_MS[0] {
            self.0 = (self.0 * 2).min(most);
        } else if ms > BITE_MS[1] {
            self.0 = (self.0 / 2).max(least);
        }
    }
}

impl Beside {
    /// Takes what the other node has and pays for what is this node's to pay.
    fn share(&mut self, wanted: &Wanted, missing: &mut Pieces, sink: &mut dyn Sink) -> Result<(), Trouble> {
        let (peer, what) = (self.peer.clone(), wanted.what);
        let mut talk = Talk::begin(&peer, wanted)?;
        peer.claims().begin(what, boot_ms());
        let _begun = Begun(&peer, what);
        let (mut bite, mut since_ms) = (Bite(peer.bite), boot_ms());
        while !missing.is_empty() {
            let claimed = peer.claims().claim(what, &bite.pieces(missing, wanted.piece), boot_ms());
            let said = talk.ask(&claimed, missing)?;
            let mine = peer.claims().granted(what, &(&said.granted - &said.has));
            if !said.has.is_empty() {
                talk.take(&said.has, missing, sink)?;
            }
            if said.has.is_empty() && mine.is_empty() {
                self.wait(since_ms, &said, sink)?;
                continue;
            }
            since_ms = boot_ms();
            if mine.is_empty() {
                continue;
            }
            let narrow = Wanted { missing: runs(&mine), ..wanted.clone() };
            let before = missing.len();
            let (sink, talk) = (&mut *sink, &mut talk);
            let (renewed_ms, bytes_ms) = (since_ms, since_ms);
            let mut paying = Paying { sink, talk, what, missing, claimed: mine, renewed_ms, bytes_ms };
            self.inner.pieces(&narrow, &mut paying).map_err(Trouble::End)?;
            if missing.len() == before {
                // As a carrier may: who asked looks again, or gives up.
                return Ok(());
            }
            bite.took(boot_ms().saturating_sub(since_ms));
        }
        Ok(())
    }

    /// All that is missing is the other node's to pay; not for ever.
    fn wait(&self, since_ms: u64, said: &Said, sink: &mut dyn Sink) -> Result<(), Trouble> {
        if boot_ms().saturating_sub(since_ms) >= self.peer.patience_ms {
            let what =
                if said.wanted { "fetches it and never has it" } else { "claims what it does not fetch" };
            return Err(anyhow::anyhow!("the other node {what}").into());
        }
        sink.paid(0).map_err(Trouble::End)?;
        std::thread::sleep(Duration::from_millis(LOOK_MS));
        Ok(())
    }
}

impl Carrier for Beside {
    fn whole(&mut self, path: &str, limit: u64, toll: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
        self.inner.whole(path, limit, toll)
    }

    fn changed(
        &mut self,
        path: &str,
        limit: u64,
        known: Option<&Tagged>,
        toll: &mut dyn Toll,
    ) -> Result<Tagged, Failure> {
        self.inner.changed(path, limit, known, toll)
    }

    fn pieces(&mut self, wanted: &Wanted, sink: &mut dyn Sink) -> Result<(), Failure> {
        let mut missing: Pieces = wanted.missing.iter().cloned().flatten().collect();
        if !self.peer.away() {
            let (away_ms, why) = match self.share(wanted, &mut missing, sink) {
                Ok(()) => return Ok(()),
                Err(Trouble::End(failure)) => return Err(failure),
                Err(Trouble::Peer(error)) => (AWAY_MS[0], format!("{error:#}")),
                Err(Trouble::Liar(why)) => (AWAY_MS[1], why),
            };
            tracing::debug!(why, "the other node is left alone for a while");
            self.peer.away_ms.store(boot_ms() + away_ms, Ordering::Relaxed);
        }
        let alone = Bite(ALONE).pieces(&missing, wanted.piece);
        if alone.is_empty() {
            return Ok(());
        }
        self.inner.pieces(&Wanted { missing: runs(&alone), ..wanted.clone() }, sink)
    }
}
