//! Any bytes: whatever parses as a frame writes back the same bytes, and never verifies without a signature.
#![no_main]

use formats::frame::Frame;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(frame) = Frame::parse(bytes) {
        assert_eq!(frame.encode().as_deref(), Ok(bytes));
        assert!(frame.unverified().signed_bytes().is_ok_and(|signed| bytes.starts_with(&signed[20..])));
    }
});
