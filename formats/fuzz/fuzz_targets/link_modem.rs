//! What a modem says, in lines and binary messages.
#![no_main]

use formats::link::at::{DOWN_MAX, Ear, Said};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut ear = Ear::default();
    for byte in bytes {
        if *byte == 0xfe {
            ear.expect_message();
        }
        match ear.hear(*byte) {
            Some(Said::Message(message)) => assert!(message.len() <= DOWN_MAX),
            Some(Said::Session(session)) => assert!(usize::from(session.down_bytes) <= DOWN_MAX),
            Some(Said::Signal(bars)) => assert!(bars <= 5),
            Some(_) | None => {}
        }
    }
});
