//! Whatever the other node of a pair says about pieces of a release: it is refused, or read within its bounds, and what was
//! read is said and heard again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeSet;
use talk::{ANSWER_MAX, Answer, REQUEST_MAX, Request, Runs, hear, say};

mod claims {
    /// As in the agent.
    pub type Pieces = std::collections::BTreeSet<u64>;
}
#[expect(dead_code, reason = "the agent uses what is left")]
#[path = "../../../agent/src/update/carrier/peer/talk.rs"]
mod talk;

/// What a message is heard as, when it is said again.
fn again<M: serde::Serialize + serde::de::DeserializeOwned>(message: &M, most: usize) -> Option<M> {
    let mut said = Vec::new();
    say(&mut said, message).unwrap();
    // A number may be written longer than it must be, so the same message may be longer, too; never this one.
    hear(&mut said.as_slice(), most).ok()
}

fn bounded(runs: &Runs) {
    let known: BTreeSet<u64> = (0..200).map(|n| n * 3).collect();
    assert!(runs.among(&known).is_subset(&known));
    let some = runs.pieces(1000, 64);
    assert!(some.len() <= 64 && some.iter().all(|piece| *piece < 1000));
}

fuzz_target!(|data: &[u8]| {
    let framed = [&(data.len() as u32).to_le_bytes(), data].concat();
    for bytes in [data, &framed] {
        if let Ok(request) = hear::<Request>(&mut &*bytes, REQUEST_MAX) {
            let heard = again(&request, REQUEST_MAX).expect("a request that was heard");
            assert_eq!(format!("{request:?}"), format!("{heard:?}"));
            if let Request::Ask { claims, .. } = &request {
                bounded(claims);
            }
        }
        if let Ok(answer) = hear::<Answer>(&mut &*bytes, ANSWER_MAX) {
            let heard = again(&answer, ANSWER_MAX).expect("an answer that was heard");
            assert_eq!(format!("{answer:?}"), format!("{heard:?}"));
            if let Answer::Has { has, granted, .. } = &answer {
                [has, granted].into_iter().for_each(bounded);
            }
        }
    }
});
