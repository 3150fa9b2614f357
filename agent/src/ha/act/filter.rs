//! Looks at what a client sends: a statement that mentions `synchronous_commit` ends the session.
//!
//! Only the texts of `Query` and `Parse` are looked at, never values: those may contain anything. It guards against a
//! library's default and a well-meant setting, not against somebody who builds the word from pieces.
//! PostgreSQL documentation, "Message Formats".

use anyhow::{Result, bail};

const WORD: &[u8] = b"synchronous_commit";

/// Follows one client's messages.
#[derive(Default)]
pub struct Filter {
    header: Vec<u8>,
    left: usize,
    looks: bool,
    tail: Vec<u8>,
}

impl Filter {
    /// Takes the next bytes of the client.
    ///
    /// # Errors
    /// If they lower durability or are no messages.
    pub fn check(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, after) = bytes.split_at(self.left.min(bytes.len()));
                if self.looks {
                    self.look(now)?;
                }
                self.left -= now.len();
                bytes = after;
                continue;
            }
            let (now, after) = bytes.split_at((5 - self.header.len()).min(bytes.len()));
            self.header.extend(now);
            bytes = after;
            if self.header.len() == 5 {
                self.begin()?;
            }
        }
        Ok(())
    }

    fn begin(&mut self) -> Result<()> {
        let length = self.header[1..].iter().fold(0_usize, |length, byte| length << 8 | usize::from(*byte));
        if !(4..=1 << 30).contains(&length) {
            bail!("a message of {length} bytes");
        }
        self.left = length - 4;
        self.looks = matches!(self.header[0], b'Q' | b'P');
        self.tail.clear();
        self.header.clear();
        Ok(())
    }

    fn look(&mut self, bytes: &[u8]) -> Result<()> {
        self.tail.extend(bytes);
        if self.tail.windows(WORD.len()).any(|window| window.eq_ignore_ascii_case(WORD)) {
            bail!("a statement changes synchronous_commit: every commit must reach both nodes");
        }
        let keep = self.tail.len().min(WORD.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, text: &[u8]) -> Vec<u8> {
        let length = text.len() as u32 + 4;
        let mut bytes = vec![kind];
        bytes.extend((0..4).rev().map(|byte| (length >> (8 * byte)) as u8));
        bytes.extend(text);
        bytes
    }

    /// Cut into pieces of every size.
    fn refused(bytes: &[u8]) -> bool {
        let outcomes: Vec<bool> = (1..=bytes.len())
            .map(|size| {
                let mut filter = Filter::default();
                bytes.chunks(size).any(|chunk| filter.check(chunk).is_err())
            })
            .collect();
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{outcomes:?}");
        outcomes[0]
    }

    #[test]
    fn trap_05_a_session_that_lowers_durability_ends() {
        let begin = message(b'Q', b"BEGIN\0");
        let lower = message(b'Q', b"SET Synchronous_Commit TO off\0");
        assert!(refused(&[begin.clone(), lower].concat()));
        assert!(refused(&message(b'P', b"x\0set local synchronous_commit=local\0\0\0")));
        // As a value it is just a value.
        assert!(!refused(&[begin, message(b'B', b"synchronous_commit")].concat()));
        assert!(refused(&[b'Q', 0, 0, 0, 1]), "a length that cannot be");
    }
}
