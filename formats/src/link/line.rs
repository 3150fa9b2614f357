//! Messages on a line: `COBS(message ‖ CRC-32C) ‖ 0`. A zero byte ends a frame and stands nowhere else, so that a
//! reader that comes in the middle, or met garbage, is right again at the next one.
//!
//! COBS is of Cheshire and Baker (1999); the checksum is CRC-32/ISCSI, little-endian. It finds what lines do to bytes, not
//! what people do: whatever matters is verified by its hash or signature.

use super::message::MAX_MESSAGE;
use crc::{CRC_32_ISCSI, Crc};

const CHECK: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// Longest frame without its end, bytes: COBS adds one for each 254 begun.
pub const MAX_FRAME: usize = MAX_MESSAGE + 4 + (MAX_MESSAGE + 4) / 254 + 1;

/// The bytes that carry a message of at most [`MAX_MESSAGE`] bytes.
pub fn frame(message: &[u8]) -> Vec<u8> {
    let checked = [message, &CHECK.checksum(message).to_le_bytes()].concat();
    let mut out = cobs::encode_vec(&checked);
    out.push(0);
    out
}

/// What came over a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Frames that were good.
    pub good: u64,
    /// Runs of bytes between zeros that were none.
    pub damaged: u64,
}

/// Finds messages in what comes over a line; holds at most [`MAX_FRAME`] bytes.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
    /// Too much came without an end: the rest of it is passed over.
    skipping: bool,
    /// What came so far.
    pub seen: Seen,
}

impl Deframer {
    /// Takes bytes; gives the messages that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        for byte in bytes {
            if *byte != 0 {
                if self.buffer.len() == MAX_FRAME {
                    self.skipping = true;
                } else {
                    self.buffer.push(*byte);
                }
                continue;
            }
            let found = if self.skipping { None } else { open(&self.buffer) };
            let empty = self.buffer.is_empty();
            self.buffer.clear();
            self.skipping = false;
            match found {
                Some(message) => {
                    self.seen.good += 1;
                    messages.push(message);
                }
                // Zeros in a row are an idle line.
                None => self.seen.damaged += u64::from(!empty),
            }
        }
        messages
    }
}

fn open(frame: &[u8]) -> Option<Vec<u8>> {
    // The decoder of the crate wants whole groups; a cut one is damage.
    let mut checked = cobs::decode_vec(frame).ok()?;
    let (message, check) = checked.split_last_chunk::<4>()?;
    if CHECK.checksum(message) != u32::from_le_bytes(*check) {
        return None;
    }
    let length = message.len();
    checked.truncate(length);
    Some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(CHECK.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(frame(b"\x41\x00\x02").len(), 3 + 4 + 1 + 1);
    }

    #[test]
    fn overhead_is_what_the_documents_say() {
        assert_eq!(frame(&[7; 260]).len(), 260 + 4 + 2 + 1);
        assert!(frame(&[7; MAX_MESSAGE]).len() <= MAX_FRAME + 1);
    }

    proptest! {
        #[test]
        fn messages_come_through_garbage(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 1..8),
            garbage in prop::collection::vec(any::<u8>(), 0..3000),
            cut in 1usize..64,
        ) {
            let mut line = garbage;
            line.push(0);
            let mut deframer = Deframer::default();
            let noise = deframer.push(&line).len();
            let bytes: Vec<u8> = messages.iter().flat_map(|message| frame(message)).collect();
            let came: Vec<Vec<u8>> = bytes.chunks(cut).flat_map(|part| deframer.push(part)).collect();
            prop_assert_eq!(noise, 0);
            prop_assert_eq!(came, messages);
        }

        #[test]
        fn a_changed_byte_is_noticed(message in prop::collection::vec(any::<u8>(), 1..300), at: prop::sample::Index, with in 1u8..) {
            let mut bytes = frame(&message);
            let at = at.index(bytes.len());
            bytes[at] ^= with;
            bytes.push(0);
            prop_assert!(Deframer::default().push(&bytes).iter().all(|came| *came != message || at == bytes.len() - 2));
        }
    }
}
