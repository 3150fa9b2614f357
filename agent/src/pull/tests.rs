//! Against a peer that answers as the server does, over a link that loses, repeats and reorders, and against hostile ones.

#![expect(clippy::single_range_in_vec_init, reason = "missing pieces are ranges")]

use super::*;
use formats::hex::Digest;
use proptest::prelude::*;

const PIECE: BlockSize = BlockSize::KIB_1;

fn of(length: Result<u64, u64>, missing: Vec<Range<u64>>) -> Pulled {
    let file = File::Object(Digest([1; 32]));
    Pulled { file, piece: PIECE, length, missing, part_bytes: 300, session: 5 }
}

fn file(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 + n / 256) as u8).collect()
}

/// All messages that answer a request.
fn answer(request: &[u8], file: &[u8]) -> Vec<Vec<u8>> {
    let get = Get::parse(request).unwrap();
    let room = usize::from(get.part_bytes) - PART_HEADER;
    let mut out = Vec::new();
    for index in get.pieces() {
        let at = index as usize * PIECE.bytes() as usize;
        let piece = &file[at..file.len().min(at + PIECE.bytes() as usize)];
        for (n, bytes) in piece.chunks(room).enumerate() {
            let (length, offset) = (file.len() as u64, (n * room) as u32);
            out.push(Part { tag: get.tag, body: Body::Data { length, index, offset, bytes } }.encode());
        }
    }
    out
}

struct Link {
    seed: u64,
    lost: u64,
    twice: u64,
    swapped: u64,
}

impl Link {
    fn draw(&mut self, share: u64) -> bool {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % 100 < share
    }
}

/// Runs to the end; gives the pieces and how many messages came in vain.
fn run(mut pull: Pull, file: &[u8], link: &mut Link) -> (BTreeMap<u64, Vec<u8>>, Stop) {
    let (mut now, mut air, mut got) = (1_000, VecDeque::new(), BTreeMap::new());
    for _ in 0..200_000 {
        match pull.next(now) {
            Next::Stop(stop) => return (got, stop),
            Next::Send(request) => {
                for message in answer(&request, file) {
                    if link.draw(link.lost) {
                        continue;
                    }
                    if link.draw(link.twice) {
                        air.push_back(message.clone());
                    }
                    if link.draw(link.swapped) {
                        air.push_front(message);
                    } else {
                        air.push_back(message);
                    }
                }
            }
            Next::Wait(until) => match air.pop_front() {
                Some(message) => {
                    now += 3;
                    if let Some((index, bytes)) = pull.message(&message, now) {
                        assert!(got.insert(index, bytes).is_none(), "piece {index} came twice");
                    }
                }
                None => now = until.max(now + 1),
            },
        }
    }
    panic!("it does not end");
}

#[test]
fn a_good_link_costs_each_byte_once() {
    let file = file(40_000);
    let (got, stop) = run(
        Pull::new(of(Ok(40_000), vec![2..5, 9..40])),
        &file,
        &mut Link { seed: 1, lost: 0, twice: 0, swapped: 0 },
    );
    assert_eq!(stop, Stop::Done);
    assert_eq!(got.keys().copied().collect::<Vec<_>>(), (2..5).chain(9..40).collect::<Vec<_>>());
    for (index, bytes) in got {
        assert_eq!(bytes, file[index as usize * 1024..file.len().min((index as usize + 1) * 1024)]);
    }
}

#[test]
fn files_of_unknown_length_are_bounded() {
    let link = || Link { seed: 1, lost: 0, twice: 0, swapped: 0 };
    for length in [1, 1024, 5000] {
        let (got, stop) = run(Pull::new(of(Err(5000), vec![])), &file(length), &mut link());
        assert_eq!((got.into_values().flatten().collect::<Vec<_>>(), stop), (file(length), Stop::Done));
    }
    assert_eq!(run(Pull::new(of(Err(4999), vec![])), &file(5000), &mut link()).1, Stop::Damaged);
}

#[test]
fn silence_busy_and_absence_end_it() {
    let mut pull = Pull::new(of(Ok(3000), vec![0..3]));
    let (mut now, mut requests) = (0, 0);
    let stop = loop {
        match pull.next(now) {
            Next::Send(_) => requests += 1,
            Next::Wait(until) => now = until,
            Next::Stop(stop) => break stop,
        }
    };
    assert_eq!((stop, requests), (Stop::Silent, SILENCES_MAX));
    assert!((60_000..400_000).contains(&now), "{now}");
    for (body, stop) in [(Body::Absent, Stop::Absent), (Body::Busy(9), Stop::Busy(9))] {
        let mut pull = Pull::new(of(Ok(5000), vec![0..5]));
        let Next::Send(request) = pull.next(0) else { panic!("no request") };
        let tag = Get::parse(&request).unwrap().tag;
        let old = Tag { number: tag.number + 7, ..tag };
        assert_eq!(pull.message(&Part { tag: old, body: body.clone() }.encode(), 1), None);
        assert!(matches!(pull.next(1), Next::Wait(_)), "an answer to another request counts");
        pull.message(&Part { tag, body }.encode(), 1);
        assert_eq!(pull.next(1), Next::Stop(stop));
    }
}

#[test]
fn wrong_pieces_are_asked_for_again_and_then_the_peer_is_given_up() {
    let mut pull = Pull::new(of(Ok(1024), vec![0..1]));
    let mut requests = 0;
    let stop = loop {
        match pull.next(requests) {
            Next::Send(request) => {
                requests += 1;
                for message in answer(&request, &[7; 1024]) {
                    if let Some((index, _)) = pull.message(&message, requests) {
                        pull.wrong(index);
                    }
                }
            }
            Next::Wait(_) => panic!("all was answered"),
            Next::Stop(stop) => break stop,
        }
    };
    assert_eq!((stop, requests), (Stop::Damaged, u64::from(WRONG_MAX) + 1));
}

#[test]
fn hostile_messages_take_no_memory() {
    let mut pull = Pull::new(of(Ok(5000), vec![0..5]));
    assert!(matches!(pull.next(0), Next::Send(_)));
    let tag = Tag { session: 5, number: 1 };
    for (length, index, offset) in
        [(u64::MAX, 0, 0), (5000, u32::MAX, 0), (5000, 1, u32::MAX), (5000, 9, 0), (4999, 0, 0)]
    {
        let body = Body::Data { length, index, offset, bytes: &[1; 200] };
        assert_eq!(pull.message(&Part { tag, body }.encode(), 1), None);
    }
    for n in 0..100_000u32 {
        let body = Body::Data { length: 5000, index: n % 5, offset: n % 1024, bytes: &[1] };
        drop(pull.message(&Part { tag: Tag { number: n, ..tag }, body }.encode(), 1));
    }
    let held: usize =
        pull.partial.values().map(|partial| partial.bytes.len() + partial.have.len() * 16).sum();
    assert!(held < 5 * (1024 + 1024 * 16), "{held}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_a_link_does_it_ends_with_all(
        seed: u64, length in 1usize..100_000, lost in 0u64..40, twice in 0u64..30, swapped in 0u64..30,
    ) {
        let file = file(length);
        let pieces = length.div_ceil(1024) as u64;
        let mut link = Link { seed, lost, twice, swapped };
        let (got, stop) = run(Pull::new(of(Ok(length as u64), vec![0..pieces])), &file, &mut link);
        prop_assert_eq!(stop, Stop::Done);
        prop_assert_eq!(got.into_values().flatten().collect::<Vec<_>>(), file);
    }
}
