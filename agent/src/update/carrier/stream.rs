//! Cuts bytes that come in order into pieces: for carriers that hand on a range of a file as a stream.

use super::{Failure, Sink, Wanted, Worth};
use crate::update::step::Fault;

/// A run of pieces that comes as a stream.
pub struct Stream<'s> {
    wanted: &'s Wanted,
    next: u64,
    buffer: Vec<u8>,
    sink: &'s mut dyn Sink,
}

impl<'s> Stream<'s> {
    /// A stream that begins with piece `first`.
    pub fn new(wanted: &'s Wanted, first: u64, sink: &'s mut dyn Sink) -> Self {
        Self { wanted, next: first, buffer: Vec::new(), sink }
    }

    /// Says that bytes came that belong to no piece, as those before the range.
    ///
    /// # Errors
    /// The sink's.
    pub fn paid(&mut self, bytes: u64) -> Result<(), Failure> {
        self.sink.paid(bytes)
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`Fault::Damaged`] with the first piece that is not the file's; the sink's.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        self.sink.paid(bytes.len() as u64)?;
        while !bytes.is_empty() {
            let Some(length) = self.wanted.piece_length(self.next) else {
                return Err(Failure::new(Fault::Damaged, "the source sends more than it was asked for"));
            };
            let (now, later) = bytes.split_at(bytes.len().min(length - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == length {
                if let Worth::Wrong(why) = self.sink.piece(self.next, &self.buffer)? {
                    let why = format!("what the source sends is not the object: {why}");
                    return Err(Failure::new(Fault::Damaged, why));
                }
                self.buffer.clear();
                self.next += 1;
            }
        }
        Ok(())
    }
}
