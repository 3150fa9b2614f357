//! SLIP (RFC 1055): datagrams on a serial line, found again after any noise. Bytes in, bytes out; it knows nothing else, so
//! that a fuzzer takes this file as it is.

const END: u8 = 0xc0;
const ESCAPE: u8 = 0xdb;
const ESCAPED_END: u8 = 0xdc;
const ESCAPED_ESCAPE: u8 = 0xdd;

/// Puts bytes between two ends, so that neither occurs inside.
pub fn frame(bytes: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(bytes.len() + 8);
    framed.push(END);
    for byte in bytes {
        match *byte {
            END => framed.extend([ESCAPE, ESCAPED_END]),
            ESCAPE => framed.extend([ESCAPE, ESCAPED_ESCAPE]),
            other => framed.push(other),
        }
    }
    framed.push(END);
    framed
}

/// Finds frames in whatever the line brings; what is too long or malformed is passed over.
pub struct Frames {
    max: usize,
    bytes: Vec<u8>,
    escaped: bool,
    spoilt: bool,
}

impl Frames {
    /// Frames of at most `max` bytes.
    pub fn new(max: usize) -> Self {
        Self { max, bytes: Vec::new(), escaped: false, spoilt: false }
    }

    /// Takes one byte; a frame, when it is complete.
    pub fn take(&mut self, byte: u8) -> Option<Vec<u8>> {
        if byte == END {
            let whole = !self.spoilt && !self.escaped && !self.bytes.is_empty();
            let bytes = std::mem::take(&mut self.bytes);
            (self.escaped, self.spoilt) = (false, false);
            return whole.then_some(bytes);
        }
        let plain = match (self.escaped, byte) {
            (false, ESCAPE) => {
                self.escaped = true;
                return None;
            }
            (false, other) => other,
            (true, ESCAPED_END) => END,
            (true, ESCAPED_ESCAPE) => ESCAPE,
            (true, _) => {
                self.spoilt = true;
                byte
            }
        };
        self.escaped = false;
        self.spoilt |= self.bytes.len() >= self.max;
        if !self.spoilt {
            self.bytes.push(plain);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1200;

    fn all(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Frames::new(MAX);
        bytes.iter().filter_map(|byte| frames.take(*byte)).collect()
    }

    proptest! {
        #[test]
        fn a_frame_comes_out_as_it_went_in_after_any_noise(
            noise in prop::collection::vec(any::<u8>(), 0..64),
            said in prop::collection::vec(prop_oneof![any::<u8>(), Just(END), Just(ESCAPE)], 1..MAX),
        ) {
            let line = [noise, frame(&said), frame(&said)].concat();
            let found = all(&line);
            prop_assert_eq!(found.last(), Some(&said));
        }

        #[test]
        fn nothing_that_comes_makes_a_frame_longer_than_a_datagram(
            noise in prop::collection::vec(any::<u8>(), 0..4_000),
        ) {
            prop_assert!(all(&noise).iter().all(|frame| frame.len() <= MAX));
        }
    }

    #[test]
    fn malformed_frames_are_passed_over() {
        assert_eq!(all(&[END, 1, ESCAPE, 2, 3, END, 4, END]), [vec![4]]);
        assert_eq!(all(&[END, 1, ESCAPE, END, 4, END]), [vec![4]]);
        assert!(all(&vec![1; 5_000]).is_empty());
        assert_eq!(all(&[vec![1; 5_000], vec![END, 7, END]].concat()), [vec![7]]);
    }
}
