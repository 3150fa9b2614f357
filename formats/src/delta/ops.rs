//! The operations that produce one group of output, in output order.
//!
//! Knows their coding and limits, not how they are carried out (`apply`).

use super::deflate::Restart;
use super::wire::{Reader, put_signed, put_varint};
use super::{MAX_IMAGE, MAX_OBJECTS, MAX_PREFIX, MAX_SKIP, MAX_TEXT, MAX_TEXTS, Result, malformed};

/// One operation; `len` bytes of output each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Bytes of the old image as they are.
    Copy {
        /// Offset in the old image.
        old: u64,
        /// Bytes.
        len: u64,
    },
    /// Bytes of the old image plus the next bytes of the residue, each modulo 256.
    Diff {
        /// Offset in the old image.
        old: u64,
        /// Bytes.
        len: u64,
    },
    /// The next literal bytes.
    Extra {
        /// Bytes.
        len: u64,
    },
    /// Zero bytes.
    Zero {
        /// Bytes.
        len: u64,
    },
    /// A zstd frame whose prefix is a part of the old image.
    Prefix {
        /// Offset of the prefix in the old image.
        old: u64,
        /// Length of the prefix, at most [`MAX_PREFIX`].
        window: u64,
        /// Length of the frame.
        packed: u64,
        /// Bytes.
        len: u64,
    },
    /// What the map of an object says, plus residue and literals.
    Object {
        /// Number of the object.
        object: u64,
        /// Bytes.
        len: u64,
    },
    /// A text of the delta, deflated.
    Deflate {
        /// Number of the text.
        file: u64,
        /// Where deflating begins.
        restart: Restart,
        /// Bytes that it gives before those that are meant; the first of them is cut if the restart has a phase.
        skip: u64,
        /// Bytes.
        len: u64,
    },
}

const COPY: u64 = 0;
const DIFF: u64 = 1;
const EXTRA: u64 = 2;
const ZERO: u64 = 3;
const PREFIX: u64 = 4;
const OBJECT: u64 = 5;
const DEFLATE: u64 = 6;

impl Op {
    /// Bytes of output.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Copy { len, .. } | Self::Diff { len, .. } | Self::Extra { len } | Self::Zero { len } => {
                *len
            }
            Self::Prefix { len, .. } | Self::Object { len, .. } | Self::Deflate { len, .. } => *len,
        }
    }

    /// True if it produces nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Old offset minus output offset, which is expected of the next one too; for an operation at `at`.
    fn displacement(&self, at: u64, before: u64) -> u64 {
        match self {
            Self::Copy { old, .. } | Self::Diff { old, .. } | Self::Prefix { old, .. } => {
                old.wrapping_sub(at)
            }
            Self::Extra { .. } | Self::Zero { .. } | Self::Object { .. } | Self::Deflate { .. } => before,
        }
    }
}

/// Encodes `ops` of the group that starts at byte `start` of the output.
#[must_use]
pub fn encode(ops: &[Op], start: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let (mut at, mut displacement) = (start, 0u64);
    let head = |out: &mut Vec<u8>, kind: u64, len: u64| put_varint(out, len << 3 | kind);
    for op in ops {
        let distance = |old: u64| old.wrapping_sub(at).wrapping_sub(displacement).cast_signed();
        match *op {
            Op::Copy { old, len } => {
                head(&mut out, COPY, len);
                put_signed(&mut out, distance(old));
            }
            Op::Diff { old, len } => {
                head(&mut out, DIFF, len);
                put_signed(&mut out, distance(old));
            }
            Op::Extra { len } => head(&mut out, EXTRA, len),
            Op::Zero { len } => head(&mut out, ZERO, len),
            Op::Prefix { old, window, packed, len } => {
                head(&mut out, PREFIX, len);
                put_signed(&mut out, distance(old));
                put_varint(&mut out, window);
                put_varint(&mut out, packed);
            }
            Op::Object { object, len } => {
                head(&mut out, OBJECT, len);
                put_varint(&mut out, object);
            }
            Op::Deflate { file, restart, skip, len } => {
                head(&mut out, DEFLATE, len);
                put_varint(&mut out, file);
                put_varint(&mut out, restart.text);
                put_varint(&mut out, restart.waiting.into());
                put_varint(&mut out, restart.distance.into());
                put_varint(&mut out, skip << 3 | u64::from(restart.phase));
            }
        }
        displacement = op.displacement(at, displacement);
        at += op.len();
    }
    out
}

/// Decodes the operations of a group one by one, so that their number needs no memory.
pub struct Decode<'a> {
    reader: Reader<'a>,
    start: u64,
    size: u64,
    old_size: u64,
    done: u64,
    displacement: u64,
}

impl<'a> Decode<'a> {
    /// Decodes `bytes` of the group that starts at byte `start` and has `size` bytes of output, from an old image of
    /// `old_size` bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8], start: u64, size: u64, old_size: u64) -> Self {
        let reader = Reader::new("group operations", bytes);
        Self { reader, start, size, old_size, done: 0, displacement: 0 }
    }

    /// `len` old bytes for the operation at `at`.
    fn place(&mut self, at: u64, len: u64) -> Result<u64> {
        let expected = at.wrapping_add(self.displacement);
        let old = expected.wrapping_add_signed(self.reader.signed("old offset")?);
        match old.checked_add(len) {
            Some(end) if end <= self.old_size => Ok(old),
            Some(_) | None => {
                malformed("group operations", format!("{len} bytes at {old} are past {}", self.old_size))
            }
        }
    }

    fn deflate(&mut self, len: u64) -> Result<Op> {
        let file = self.reader.varint("text", MAX_TEXTS)?;
        let text = self.reader.varint("text offset", MAX_TEXT)?;
        let waiting = self.reader.varint("match", 258)? as u16;
        let distance = self.reader.varint("distance", 1 << 15)? as u16;
        let skip = self.reader.varint("skip", MAX_SKIP << 3 | 7)?;
        let restart = Restart { text, waiting, distance, phase: (skip & 7) as u8 };
        Ok(Op::Deflate { file, restart, skip: skip >> 3, len })
    }

    /// The next operation; `None` after the last.
    ///
    /// # Errors
    /// When it is damaged, names bytes outside the old image, or the operations do not add up to the group's output.
    pub fn next_op(&mut self) -> Result<Option<Op>> {
        if self.reader.left() == 0 {
            let whole = self.done == self.size;
            let why = || format!("they give {} of {} bytes", self.done, self.size);
            return if whole { Ok(None) } else { malformed("group operations", why()) };
        }
        let head = self.reader.varint("operation", u64::MAX)?;
        let (kind, len) = (head & 7, head >> 3);
        let at = self.start.wrapping_add(self.done);
        if len == 0 || len > self.size - self.done {
            let left = self.size - self.done;
            return malformed("group operations", format!("one gives {len} bytes, but {left} are left"));
        }
        let op = match kind {
            COPY => Op::Copy { old: self.place(at, len)?, len },
            DIFF => Op::Diff { old: self.place(at, len)?, len },
            EXTRA => Op::Extra { len },
            ZERO => Op::Zero { len },
            PREFIX => {
                let old = self.place(at, 0)?;
                let window = self.reader.varint("prefix", MAX_PREFIX.min(self.old_size - old))?;
                Op::Prefix { old, window, packed: self.reader.varint("frame length", MAX_IMAGE)?, len }
            }
            OBJECT => Op::Object { object: self.reader.varint("object", MAX_OBJECTS)?, len },
            DEFLATE => self.deflate(len)?,
            _ => {
                return malformed("group operations", format!("operation {kind} is unknown to this version"));
            }
        };
        self.displacement = op.displacement(at, self.displacement);
        self.done += len;
        Ok(Some(op))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8], start: u64, size: u64, old_size: u64) -> Result<Vec<Op>> {
        let (mut decode, mut ops) = (Decode::new(bytes, start, size, old_size), Vec::new());
        while let Some(op) = decode.next_op()? {
            ops.push(op);
        }
        Ok(ops)
    }

    fn any_op() -> impl Strategy<Value = Op> {
        let (old, len) = (0u64..1 << 20, 1u64..1 << 16);
        prop_oneof![
            (old.clone(), len.clone()).prop_map(|(old, len)| Op::Copy { old, len }),
            (old.clone(), len.clone()).prop_map(|(old, len)| Op::Diff { old, len }),
            len.clone().prop_map(|len| Op::Extra { len }),
            len.clone().prop_map(|len| Op::Zero { len }),
            (old, 0u64..1 << 16, 0u64..9999, len.clone()).prop_map(|(old, window, packed, len)| Op::Prefix {
                old,
                window,
                packed,
                len
            }),
            (0u64..100, len.clone()).prop_map(|(object, len)| Op::Object { object, len }),
            (0u64..64, 0u64..1 << 30, 0u16..=258, 0u16..=1 << 15, 0u64..8000, len).prop_map(
                |(file, text, waiting, distance, skip, len)| {
                    let restart = Restart { text, waiting, distance, phase: (skip & 7) as u8 };
                    Op::Deflate { file, restart, skip, len }
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn operations_come_back(ops in prop::collection::vec(any_op(), 0..50), start in 0u64..1 << 30) {
            let size = ops.iter().map(Op::len).sum();
            let bytes = encode(&ops, start);
            prop_assert_eq!(decode(&bytes, start, size, 1 << 21).unwrap(), ops);
            prop_assert!(decode(&bytes, start, size + 1, 1 << 21).is_err());
        }

        #[test]
        fn damage_is_an_error_or_other_operations(bytes: Vec<u8>) {
            if let Ok(ops) = decode(&bytes, 0, 100, 1000) {
                prop_assert_eq!(ops.iter().map(Op::len).sum::<u64>(), 100);
            }
        }
    }

    #[test]
    fn old_bytes_past_the_end_are_refused() {
        let bytes = encode(&[Op::Copy { old: 90, len: 20 }], 0);
        let error = decode(&bytes, 0, 20, 100).unwrap_err().to_string();
        assert!(error.contains("20 bytes at 90 are past 100"), "{error}");
    }
}
