//! Whatever the pair's serial cable brings: no frame is longer than a datagram, and one that was sent whole comes out whole
//! after any noise.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../agent/src/ha/act/slip.rs"]
mod slip;

const MAX: usize = 1200;

fuzz_target!(|data: &[u8]| {
    let mut frames = slip::Frames::new(MAX);
    for frame in data.iter().filter_map(|byte| frames.take(*byte)) {
        assert!(!frame.is_empty() && frame.len() <= MAX);
    }
    let sent = &data[..data.len().min(MAX)];
    if !sent.is_empty() {
        let line = slip::frame(sent);
        assert_eq!(line.iter().filter_map(|byte| frames.take(*byte)).last().as_deref(), Some(sent));
    }
});
