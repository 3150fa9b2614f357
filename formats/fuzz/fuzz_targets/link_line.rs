//! Bytes of a serial line: frames, messages, and a transfer that takes them. Memory is bounded, what is read is what was
//! written, and no answer finishes a transfer that nobody answered.
#![no_main]

use formats::link::answer::Queue;
use formats::link::line::{Deframer, MAX_FRAME, frame};
use formats::link::message::{MAX_MESSAGE, Message};
use formats::link::name::Name;
use formats::link::pull::{Pull, Settings};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut deframer = Deframer::default();
    let mut pull = Pull::whole(Name::Roots, 64, 1, Settings::SERIAL, 0);
    let mut queue = Queue::default();
    let mut now = 0;
    let raw = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    for message in deframer.push(bytes).into_iter().chain(raw) {
        let Some(message_read) = Message::parse(&message) else { continue };
        assert_eq!(message_read.encode(), message);
        assert!(message.len() <= MAX_MESSAGE && frame(&message).len() <= MAX_FRAME + 1);
        now += 7;
        pull.take(&message_read, now);
        drop(pull.poll(now));
        if let Message::Want(want) = &message_read {
            queue.take(want);
            while let Some(job) = queue.pop() {
                drop(job.answer(1000, vec![0; 16]));
            }
        }
    }
});
