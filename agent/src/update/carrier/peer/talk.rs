//! What two nodes say to each other, in frames of a length of four bytes and postcard. The other node is authenticated by
//! the tunnel, and still not trusted: frames are bounded, and what is in them is verified by who asked.

use super::claims::Pieces;
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};

/// Longest request, bytes.
pub const REQUEST_MAX: usize = 64 << 10;
/// Longest answer: a block of an object, and what is around it.
pub const ANSWER_MAX: usize = (4 << 20) + 64;
/// Most runs of pieces in a message.
const RUNS_MAX: usize = 2048;

/// A file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Whether it is an object's lists of blocks, not the object.
    pub lists: bool,
    /// The object.
    pub id: [u8; 32],
    /// Its length in bytes.
    pub length: u64,
    /// Bytes of a piece.
    pub piece: u32,
}

/// Pieces as runs: first, and the one after the last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runs(Vec<(u64, u64)>);

impl Runs {
    /// The first runs of these pieces.
    pub fn of(pieces: impl IntoIterator<Item = u64>) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for piece in pieces {
            let full = runs.len() == RUNS_MAX;
            match runs.last_mut().filter(|(_, end)| *end == piece) {
                Some((_, end)) => *end += 1,
                None if full => break,
                None => runs.push((piece, piece + 1)),
            }
        }
        Self(runs)
    }

    /// Those of `known` that are in a run.
    pub fn among(&self, known: &Pieces) -> Pieces {
        let mut found = Pieces::new();
        let mut after = 0;
        for (start, end) in self.0.iter().take(RUNS_MAX) {
            // Nobody makes it look at a piece twice.
            let start = *start.max(&after);
            if start < *end {
                found.extend(known.range(start..*end));
                after = *end;
            }
        }
        found
    }

    /// At most so many pieces below `below`.
    pub fn pieces(&self, below: u64, most: usize) -> Pieces {
        let runs = self.0.iter().take(RUNS_MAX);
        runs.flat_map(|(start, end)| *start..(*end).min(below)).take(most).collect()
    }
}

/// A request.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// What is there of a file, and may these be paid for?
    Ask {
        /// The file.
        file: File,
        /// Of who asks.
        token: u64,
        /// All that it claims now.
        claims: Runs,
    },
    /// A run of pieces: an answer for each, and the end.
    Get {
        /// The file.
        file: File,
        /// The pieces.
        from: u64,
        /// The one after the last.
        to: u64,
    },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Answer {
    /// To a question.
    Has {
        /// Whether a transfer of it is under way there.
        wanted: bool,
        /// What is there.
        has: Runs,
        /// What may be paid for.
        granted: Runs,
    },
    /// A piece.
    Piece(u64, Vec<u8>),
    /// No more of the run.
    End,
}

/// Writes a frame.
///
/// # Errors
/// The stream's.
pub fn say(stream: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let bytes = postcard::to_allocvec(message).context("encode a message")?;
    let length = u32::try_from(bytes.len()).context("a message is too long")?;
    // A block is not copied once more.
    stream
        .write_all(&length.to_le_bytes())
        .and_then(|()| stream.write_all(&bytes))
        .context("write to the other node")
}

/// Reads a frame of at most `most` bytes.
///
/// # Errors
/// The stream's, or if it breaks a rule.
pub fn hear<M: DeserializeOwned>(stream: &mut impl Read, most: usize) -> Result<M> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).context("read from the other node")?;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(length <= most, "the other node announces a message of {length} bytes, at most {most} are taken");
    // What does not come takes no memory.
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).context("read from the other node")?;
    ensure!(bytes.len() == length, "the other node ended in the middle of a message");
    postcard::from_bytes(&bytes).context("the other node says what this agent does not understand")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_are_bounded_whatever_they_say() {
        let known: Pieces = (0..100).collect();
        let wide = Runs(vec![(0, u64::MAX), (5, 2), (98, 200)]);
        assert_eq!(wide.among(&known).len(), 100);
        assert_eq!(wide.pieces(50, 10).len(), 10);
        assert_eq!(Runs::of([1, 2, 3, 7]).0, [(1, 4), (7, 8)]);
        assert_eq!(Runs::of((0..10_000).map(|n| 2 * n)).0.len(), RUNS_MAX);
        let all = Request::Ask {
            file: File { lists: false, id: [9; 32], length: u64::MAX, piece: u32::MAX },
            token: u64::MAX,
            claims: Runs(vec![(u64::MAX - 1, u64::MAX); RUNS_MAX]),
        };
        assert!(postcard::to_allocvec(&all).unwrap().len() <= REQUEST_MAX);
    }

    #[test]
    fn a_length_that_lies_is_refused_and_takes_no_memory() {
        let long = (ANSWER_MAX as u32 + 1).to_le_bytes();
        assert!(hear::<Answer>(&mut long.as_slice(), ANSWER_MAX).is_err());
        let cut = [&(ANSWER_MAX as u32).to_le_bytes(), [0; 9].as_slice()].concat();
        assert!(hear::<Answer>(&mut cut.as_slice(), ANSWER_MAX).is_err());
        let mut said = Vec::new();
        say(&mut said, &Answer::Piece(3, vec![7; 4 << 20])).unwrap();
        let Answer::Piece(3, bytes) = hear(&mut said.as_slice(), ANSWER_MAX).unwrap() else { panic!() };
        assert_eq!(bytes.len(), 4 << 20);
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(hear::<Request>(&mut bytes.as_slice(), REQUEST_MAX));
            drop(hear::<Answer>(&mut bytes.as_slice(), ANSWER_MAX));
        }
    }
}
