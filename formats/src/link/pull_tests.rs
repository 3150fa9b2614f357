//! Both ends over a line of numbers: everything comes, whatever is lost, and little comes twice.

use super::super::answer::Queue;
use super::*;
use crate::hex::Digest;
use proptest::prelude::*;

const NAME: Name = Name::Object(Digest([7; 32]));

struct Run {
    bytes: Vec<u8>,
    ms: u64,
    /// Chunks that the server sent.
    sent: u64,
    known: u64,
    requests: u64,
}

/// Delay one way, time of a chunk, and which of all messages are lost.
struct Line<'a> {
    delay_ms: u64,
    chunk_ms: u64,
    lost: &'a mut dyn FnMut() -> bool,
}

/// One millisecond after the other; the line takes a chunk after the other and keeps order.
fn run(pull: &mut Pull, file: &[u8], line: &mut Line<'_>) -> Result<Run, Failure> {
    let mut queue = Queue::default();
    let mut run = Run { bytes: vec![0; file.len()], ms: 0, sent: 0, known: 0, requests: 0 };
    let (mut up, mut down) = (VecDeque::new(), VecDeque::new());
    let mut free = 0;
    loop {
        while up.front().is_some_and(|(at, _)| *at <= run.ms) {
            let Some((_, Message::Want(want))) = up.pop_front() else { panic!("no request") };
            queue.take(&want);
        }
        while free <= run.ms {
            let Some(job) = queue.pop() else { break };
            let start = (job.offset() as usize).min(file.len());
            let part = file[start..(start + usize::from(job.chunk)).min(file.len())].to_vec();
            let Some(answer) = job.answer(file.len() as u64, part) else { continue };
            run.sent += 1;
            free = run.ms.max(free) + line.chunk_ms;
            if !(line.lost)() {
                down.push_back((free + line.delay_ms, answer));
            }
        }
        while down.front().is_some_and(|(at, _)| *at <= run.ms) {
            let Some((_, message)) = down.pop_front() else { break };
            match pull.take(&message, run.ms) {
                Worth::New(index, bytes, _) => {
                    let start = index as usize * usize::from(pull.settings.chunk);
                    run.bytes[start..start + bytes.len()].copy_from_slice(&bytes);
                }
                Worth::Known => run.known += 1,
                Worth::Other => panic!("{message:?}"),
            }
        }
        loop {
            match pull.poll(run.ms) {
                Next::Done => return Ok(run),
                Next::Failed(failure) => return Err(failure),
                Next::Wait(at) => {
                    assert!(at > run.ms);
                    break;
                }
                Next::Send(message) => {
                    run.requests += 1;
                    assert_eq!(Message::parse(&message.encode()).as_ref(), Some(&message));
                    if !(line.lost)() {
                        up.push_back((run.ms + line.delay_ms, message));
                    }
                }
            }
        }
        run.ms += 1;
        assert!(run.ms < 30_000_000, "it goes on for ever");
    }
}

fn file(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n ^ (n >> 7)) as u8).collect()
}

fn pull(file: &[u8]) -> Pull {
    let chunks = file.len().div_ceil(usize::from(Settings::SERIAL.chunk)) as u32;
    Pull::new(NAME, std::iter::once(0..chunks).collect(), 1, Settings::SERIAL, 0)
}

#[test]
fn a_line_without_loss_is_never_idle() {
    let file = file(200_000);
    let chunks = 782;
    for (delay_ms, chunk_ms) in [(1, 1_000), (600, 100), (1_500, 30), (10, 30)] {
        let run =
            run(&mut pull(&file), &file, &mut Line { delay_ms, chunk_ms, lost: &mut || false }).unwrap();
        assert!(run.bytes == file && run.sent == chunks && run.known == 0);
        let least = chunks * chunk_ms + 2 * delay_ms;
        assert!(run.ms <= least * 108 / 100 + 6 * delay_ms, "{delay_ms} {chunk_ms}: {} of {least}", run.ms);
        assert!(run.requests <= chunks / 4, "{} requests", run.requests);
    }
}

#[test]
fn a_file_of_unknown_length_comes_whole() {
    for bytes in [0, 1, 255, 256, 257, 5_000] {
        let file = file(bytes);
        let mut pull = Pull::whole(NAME, 64, 3, Settings::SERIAL, 0);
        let run =
            run(&mut pull, &file, &mut Line { delay_ms: 5, chunk_ms: 20, lost: &mut || false }).unwrap();
        assert!(run.bytes == file && run.requests <= 3, "{bytes}: {}", run.requests);
    }
}

#[test]
fn silence_ends_it_and_a_missing_file_does_at_once() {
    let file = file(1_000);
    let mut line = Line { delay_ms: 5, chunk_ms: 20, lost: &mut || true };
    assert_eq!(run(&mut pull(&file), &file, &mut line).err(), Some(Failure::Silent));
    let mut pull = pull(&file);
    assert_eq!(pull.take(&Message::None { tag: 2, after_s: 0 }, 0), Worth::Other);
    pull.take(&Message::None { tag: 1, after_s: 60 }, 0);
    assert_eq!(pull.poll(0), Next::Failed(Failure::Later(60)));
}

#[test]
fn short_chunks_and_chunks_nobody_asked_for_are_of_no_use() {
    let mut pull = pull(&file(1_000));
    let chunk = |index, bytes: usize, last| Message::Chunk { tag: 1, index, last, bytes: vec![0; bytes] };
    assert_eq!(pull.take(&chunk(0, 256, false), 0), Worth::Known, "before it was asked for");
    assert!(matches!(pull.poll(0), Next::Send(_)));
    assert_eq!(pull.take(&chunk(0, 255, false), 1), Worth::Known);
    assert_eq!(pull.take(&chunk(9, 256, false), 1), Worth::Known);
    assert!(matches!(pull.take(&chunk(0, 256, false), 1), Worth::New(0, _, false)));
    assert_eq!(pull.take(&chunk(0, 256, false), 1), Worth::Known);
}

proptest! {
    #[test]
    fn everything_comes_whatever_is_lost(
        bytes in 1usize..60_000, delay_ms in 0u64..1_500, chunk_ms in 1u64..400, loss in 0u64..60, seed: u64,
    ) {
        let mut state = seed | 1;
        let mut lost = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % 100 < loss
        };
        let file = file(bytes);
        let run = run(&mut pull(&file), &file, &mut Line { delay_ms, chunk_ms, lost: &mut lost });
        match run {
            Ok(run) => {
                prop_assert!(run.bytes == file);
                // What comes twice is what a timeout gave up too early: little.
                prop_assert!(run.known <= 32 + run.sent / 8, "{} of {}", run.known, run.sent);
            }
            Err(failure) => prop_assert!(loss > 40, "{failure:?}"),
        }
    }
}
