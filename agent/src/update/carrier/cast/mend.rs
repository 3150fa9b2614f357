//! Another carrier beside a broadcast: what was broadcast is not fetched, and what is fetched is as good as a symbol.
//! Pieces that lack most come first, no more of them than there are symbols missing.

use super::{Giver, Receiver, name_of, runs};
use crate::update::carrier::{Carrier, Failure, Sink, Tagged, Toll, Wanted, Worth};
use crate::update::step::Fault;
use formats::link::name::Name;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes that are fetched before it is looked again what is still missing.
const BITE: u64 = 256 << 10;

/// A carrier whose gaps in objects are filled by broadcasts, and the other way round.
pub struct Mended {
    /// The carrier.
    pub inner: Box<dyn Carrier>,
    /// What is listened to.
    pub receivers: Vec<Arc<Receiver>>,
}

/// Hands pieces on until a broadcast is heard that carries the file too.
struct Until<'g, 's> {
    giver: &'g mut Giver<'s>,
    receivers: &'g [Arc<Receiver>],
    wanted: &'g Wanted,
    heard: bool,
}

impl Toll for Until<'_, '_> {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.giver.sink.paid(bytes)
    }
}

impl Sink for Until<'_, '_> {
    fn piece(&mut self, index: u64, bytes: &[u8]) -> Result<Worth, Failure> {
        let worth = self.giver.sink.piece(index, bytes)?;
        if !matches!(worth, Worth::Wrong(_)) {
            self.giver.missing.remove(&index);
        }
        self.heard = self.receivers.iter().any(|receiver| receiver.carries(self.wanted));
        if self.heard {
            return Err(Failure::new(Fault::Unreachable(None), "a broadcast carries the rest of it too"));
        }
        Ok(worth)
    }
}

/// Hands pieces on, and what was right to the receiver.
struct Both<'g, 's> {
    giver: &'g mut Giver<'s>,
    receiver: &'g Receiver,
    name: Name,
    piece: u64,
    new: u64,
}

impl Toll for Both<'_, '_> {
    fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.giver.sink.paid(bytes)
    }
}

impl Sink for Both<'_, '_> {
    fn piece(&mut self, index: u64, bytes: &[u8]) -> Result<Worth, Failure> {
        let worth = self.giver.sink.piece(index, bytes)?;
        match worth {
            Worth::New | Worth::Known => {
                self.new += u64::from(worth == Worth::New);
                self.giver.missing.remove(&index);
                self.receiver.locked().tuner.repair(&self.name, index * self.piece, bytes);
            }
            Worth::Wrong(_) => {}
        }
        Ok(worth)
    }
}

impl Receiver {
    /// Whether a file is being broadcast, or was.
    fn carries(&self, wanted: &Wanted) -> bool {
        let shared = self.locked();
        let catch = shared.tuner.catch(&name_of(wanted.what));
        catch.is_some_and(|catch| u64::from(catch.head().cut.length) == wanted.length)
    }

    /// The pieces to fetch next: those that lack most, in order.
    fn bite(&self, wanted: &Wanted, missing: &BTreeSet<u64>) -> BTreeSet<u64> {
        let shared = self.locked();
        let Some(catch) = shared.tuner.catch(&name_of(wanted.what)) else { return missing.clone() };
        let lacks = |index: u64| catch.lacks(&wanted.bytes(&(index..index + 1)));
        let mut pieces: Vec<(usize, u64)> = missing.iter().map(|index| (lacks(*index), *index)).collect();
        pieces.sort_by_key(|(lacks, index)| (std::cmp::Reverse(*lacks), *index));
        let most = (BITE / u64::from(wanted.piece).max(1)).max(1) as usize;
        let (needs, mut got) = (catch.needs(), 0);
        let enough = pieces.into_iter().take(most).take_while(|(lacks, _)| {
            let more = got < needs;
            got += lacks;
            more
        });
        enough.map(|(_, index)| index).collect()
    }
}

impl Carrier for Mended {
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
        let mut giver = Giver::new(wanted, sink);
        loop {
            let Some(receiver) = self.receivers.iter().find(|receiver| receiver.carries(wanted)) else {
                let narrow = Wanted { missing: runs(&giver.missing), ..wanted.clone() };
                let (giver, receivers) = (&mut giver, self.receivers.as_slice());
                let mut until = Until { giver, receivers, wanted, heard: false };
                match self.inner.pieces(&narrow, &mut until) {
                    Err(_) if until.heard => continue,
                    ended => return ended,
                }
            };
            Self::ready(receiver, wanted, &mut giver)?;
            if giver.missing.is_empty() {
                return Ok(());
            }
            let mut bite = receiver.bite(wanted, &giver.missing);
            bite.extend(giver.missing.first().filter(|_| bite.is_empty()));
            let narrow = Wanted { missing: runs(&bite), ..wanted.clone() };
            let (name, piece) = (name_of(wanted.what), wanted.piece.into());
            let mut both = Both { giver: &mut giver, receiver, name, piece, new: 0 };
            self.inner.pieces(&narrow, &mut both)?;
            if both.new == 0 {
                return Ok(());
            }
        }
    }
}

impl Mended {
    /// Hands on all that was broadcast.
    fn ready(receiver: &Receiver, wanted: &Wanted, giver: &mut Giver<'_>) -> Result<(), Failure> {
        loop {
            let ready = Receiver::ready(&receiver.locked().tuner, wanted, &giver.missing);
            match ready {
                Some(pieces) => giver.give(pieces?)?,
                None => return Ok(()),
            }
        }
    }
}
