//! Which of two nodes pays for which pieces. Pure: requests and times in, grants out.
//!
//! Each node keeps one of these, and asks the other before it pays. What one has claimed is not granted to the other; of two
//! claims that cross on the way, the one with the lower token counts. A claim that is not renewed lapses, so that a
//! node that vanished holds nothing up.

use crate::update::carrier::What;
use std::collections::{BTreeMap, BTreeSet};

/// A claim of the other node that it does not renew lapses after so long, ms.
pub const LEASE_MS: u64 = 20_000;
/// Files that are kept in mind.
const FILES_MAX: usize = 8;

/// Numbers of pieces.
pub type Pieces = BTreeSet<u64>;

#[derive(Debug, Default)]
struct Held {
    mine: Pieces,
    /// The other node has not been asked yet.
    pending: bool,
    /// Paid for in this transfer: they need not be in the journal yet.
    here: Pieces,
    theirs: Pieces,
    until_ms: u64,
    /// A transfer of it is under way here.
    wanted: bool,
}

/// What a node knows of both nodes' claims.
#[derive(Debug)]
pub struct Claims {
    /// Differs from the other node's.
    pub token: u64,
    files: BTreeMap<What, Held>,
}

impl Claims {
    /// No claims yet.
    pub fn new(token: u64) -> Self {
        Self { token, files: BTreeMap::new() }
    }

    fn held(&mut self, what: What, now_ms: u64) -> Option<&mut Held> {
        self.files.retain(|file, held| *file == what || held.wanted || now_ms < held.until_ms);
        if !self.files.contains_key(&what) && self.files.len() >= FILES_MAX {
            return None;
        }
        let held = self.files.entry(what).or_default();
        if now_ms >= held.until_ms {
            held.theirs.clear();
        }
        Some(held)
    }

    /// A transfer begins here.
    pub fn begin(&mut self, what: What, now_ms: u64) {
        if let Some(held) = self.held(what, now_ms) {
            held.wanted = true;
        }
    }

    /// It has ended: whatever came is in the journal.
    pub fn end(&mut self, what: What) {
        if let Some(held) = self.files.get_mut(&what) {
            let (theirs, until_ms) = (std::mem::take(&mut held.theirs), held.until_ms);
            *held = Held { theirs, until_ms, ..Held::default() };
        }
    }

    /// Whether a transfer is under way here.
    pub fn wanted(&self, what: What) -> bool {
        self.files.get(&what).is_some_and(|held| held.wanted)
    }

    /// Claims those of these pieces that the other node has not; the other node is to be asked next.
    pub fn claim(&mut self, what: What, pieces: &Pieces, now_ms: u64) -> Pieces {
        let Some(held) = self.held(what, now_ms) else { return pieces.clone() };
        held.mine = pieces - &held.theirs;
        held.pending = true;
        held.mine.clone()
    }

    /// The other node grants these; gives what may be paid for.
    pub fn granted(&mut self, what: What, granted: &Pieces) -> Pieces {
        let Some(held) = self.files.get_mut(&what) else { return granted.clone() };
        held.mine = &held.mine & granted;
        held.pending = false;
        held.mine.clone()
    }

    /// A piece was paid for.
    pub fn paid(&mut self, what: What, piece: u64) {
        if let Some(held) = self.files.get_mut(&what) {
            held.here.insert(piece);
        }
    }

    /// The other node claims these, and no others any more; gives what it may pay for.
    pub fn asked(&mut self, what: What, token: u64, pieces: &Pieces, now_ms: u64) -> Pieces {
        let own = self.token;
        let Some(held) = self.held(what, now_ms) else { return pieces.clone() };
        if held.pending && token < own {
            held.mine = &held.mine - pieces;
        }
        let granted = &(pieces - &held.mine) - &held.here;
        held.theirs.clone_from(&granted);
        held.until_ms = now_ms + LEASE_MS;
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::hex::Digest;
    use proptest::prelude::*;

    const FILE: What = What::Object(Digest([1; 32]));

    fn pieces(of: impl IntoIterator<Item = u64>) -> Pieces {
        of.into_iter().collect()
    }

    #[test]
    fn who_came_first_pays_and_who_vanishes_holds_nothing_up() {
        let (mut a, mut b) = (Claims::new(1), Claims::new(2));
        let wanted = a.claim(FILE, &pieces(0..4), 0);
        let granted = b.asked(FILE, 1, &wanted, 0);
        assert_eq!(a.granted(FILE, &granted), pieces(0..4));
        // The other one leaves them out, and is not granted what it did not know of.
        assert_eq!(b.claim(FILE, &pieces(0..6), 10), pieces(4..6));
        assert_eq!(a.asked(FILE, 2, &pieces(0..6), 10), pieces(4..6));
        assert_eq!(b.claim(FILE, &pieces(0..6), LEASE_MS), pieces(0..6));
        // What was paid for is not granted before it can be had.
        a.begin(FILE, 0);
        a.paid(FILE, 9);
        assert_eq!(a.asked(FILE, 2, &pieces(8..10), 20), pieces([8]));
        a.end(FILE);
        assert_eq!(a.asked(FILE, 2, &pieces(8..10), 20), pieces(8..10));
    }

    #[test]
    fn files_are_bounded() {
        let mut claims = Claims::new(1);
        for n in 0..100 {
            claims.asked(What::Object(Digest([n; 32])), 2, &pieces(0..9), 0);
        }
        assert!(claims.files.len() <= FILES_MAX);
    }

    proptest! {
        /// Two nodes whose questions and answers cross in any order never pay for one piece.
        #[test]
        fn no_piece_is_granted_to_both(steps in prop::collection::vec((any::<bool>(), 0u64..6, 1u64..4, 0u8..3), 1..60)) {
            let mut nodes = [Claims::new(7), Claims::new(3)];
            let mut asked: [Option<Pieces>; 2] = Default::default();
            let mut told: [Option<Pieces>; 2] = Default::default();
            let mut pays: [Pieces; 2] = Default::default();
            for (second, from, length, what) in steps {
                let (me, other) = (usize::from(second), usize::from(!second));
                match what {
                    // Nothing is under way: the next claim.
                    0 if asked[me].is_none() && told[me].is_none() => {
                        pays[me].clear();
                        asked[me] = Some(nodes[me].claim(FILE, &pieces(from..from + length), 0));
                    }
                    1 => if let Some(wanted) = asked[me].take() {
                        let token = nodes[me].token;
                        told[me] = Some(nodes[other].asked(FILE, token, &wanted, 0));
                    },
                    _ => if let Some(granted) = told[me].take() {
                        pays[me] = nodes[me].granted(FILE, &granted);
                    },
                }
                prop_assert!(pays[0].is_disjoint(&pays[1]), "{pays:?}");
            }
        }
    }
}
