//! Receivers that miss a third of all and whole fades, forgers, and who comes late.

use super::catch::{Catch, Tally};
use super::code::ReedSolomon;
use super::packet::{Packet, tag};
use super::send::Cast;
use crate::hex::Digest;
use ed25519_dalek::SigningKey;
use proptest::prelude::*;

const OBJECT: Digest = Digest([5; 32]);

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

fn cast(bytes: &[u8], symbol: u16) -> Cast {
    Cast::new(OBJECT, bytes, symbol, &ReedSolomon, &key()).unwrap()
}

fn catch() -> Catch {
    Catch::new(OBJECT, key().verifying_key())
}

struct Air {
    state: u64,
    loss_percent: u64,
    /// Packets until a fade ends, and how long fades and the time from one to the next are.
    fade: (u64, u64),
    passed: u64,
}

impl Air {
    fn new(seed: u64, loss_percent: u64, fade: (u64, u64)) -> Self {
        Self { state: seed | 1, loss_percent, fade, passed: seed % fade.1.max(1) }
    }
    fn loses(&mut self) -> bool {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.passed += 1;
        let faded = self.fade.1 > 0 && self.passed % self.fade.1 < self.fade.0;
        faded || self.state % 100 < self.loss_percent
    }
}

/// Listens from group `from` on; gives what came, and how many rounds it took.
fn listen(cast: &Cast, from: u32, air: &mut Air, expected: &[u8]) -> (Tally, f64) {
    let mut catch = catch();
    for n in 0..4 * cast.groups() {
        for packet in cast.group((from + n) % cast.groups()) {
            if !air.loses() && catch.take(&packet) {
                assert!(catch.decode(&ReedSolomon).unwrap() == expected);
                return (catch.tally, f64::from(n + 1) / f64::from(cast.groups()));
            }
        }
    }
    panic!("four rounds were not enough: {:?}", catch.tally);
}

#[test]
fn five_megabytes_come_through_loss_and_fades_with_hardly_a_symbol_too_many() {
    let object = bytes(5_000_000);
    let cast = cast(&object, 1024);
    // At 256 kbit/s a packet takes 33 ms: fades of 10 s are 300 packets, one a minute.
    for (seed, from) in [(1, 0), (2, 100), (3, 77), (4, 150)] {
        let mut air = Air::new(seed, 30, (300, 1800));
        let (tally, rounds) = listen(&cast, from, &mut air, &object);
        let ratio = tally.received as f64 / tally.needed as f64;
        eprintln!(
            "from group {from}: {ratio:.3} of the needed symbols received, {rounds:.2} rounds, {tally:?}"
        );
        assert!(ratio <= 1.05, "{tally:?}");
        assert!(rounds <= 1.0, "joined at group {from}: {rounds} rounds");
    }
}

#[test]
fn what_authenticating_costs() {
    let object = bytes(5_000_000);
    let cast = cast(&object, 1024);
    let (mut symbols, mut rest) = (0, 0);
    for group in 0..cast.groups() {
        for packet in cast.group(group) {
            let length = packet.encode().len();
            match packet {
                Packet::Symbol(..) => (symbols, rest) = (symbols + 1024, rest + length - 1024),
                Packet::Head(_) | Packet::Page(..) | Packet::File(..) => rest += length,
            }
        }
    }
    let share = rest as f64 / symbols as f64;
    eprintln!("heads, pages and packet headers: {:.1} % beside the symbols", share * 100.0);
    assert!(share <= 0.11, "{share}");
}

#[test]
fn forged_symbols_heads_and_pages_spoil_nothing() {
    let object = bytes(300_000);
    let cast = cast(&object, 1024);
    let mut catch = catch();
    let forged =
        Cast::new(OBJECT, &bytes(299_999), 1024, &ReedSolomon, &SigningKey::from_bytes(&[9; 32])).unwrap();
    let Packet::Head(head) = cast.group(0).remove(0) else { panic!("no head first") };
    let tag = tag(&head);
    'rounds: for round in 0.. {
        for group in 0..cast.groups() {
            // Before each right packet a wrong one under its name.
            for packet in cast.group(group) {
                let wrong = match &packet {
                    Packet::Head(_) => forged.group(group).remove(0),
                    Packet::Symbol(_, index, bytes) => {
                        Packet::Symbol(tag, *index, vec![!bytes[0]; bytes.len()])
                    }
                    Packet::Page(_, level, index, page) => {
                        Packet::Page(tag, *level, *index, vec![1; page.len()])
                    }
                    Packet::File(..) => packet.clone(),
                };
                if catch.take(&wrong) || catch.take(&packet) {
                    break 'rounds;
                }
            }
        }
        assert!(round < 2, "{:?}", catch.tally);
    }
    assert!(catch.decode(&ReedSolomon).unwrap() == object);
    assert!(catch.tally.wrong > 200, "{:?}", catch.tally);
}

#[test]
fn a_flood_of_what_cannot_be_verified_takes_bounded_memory() {
    let object = bytes(3_000_000);
    let cast = cast(&object, 1024);
    let Packet::Head(head) = cast.group(0).remove(0) else { panic!("no head first") };
    let mut catch = catch();
    catch.take(&Packet::Head(head.clone()));
    for n in 0..200_000u32 {
        catch.take(&Packet::Symbol(tag(&head), n % 5_000, vec![n as u8; 1024]));
    }
    assert!(catch.tally.kept == 0 && catch.tally.dropped > 100_000, "{:?}", catch.tally);
    assert!(catch.waiting_symbols() <= 2 * 2048);
}

#[test]
fn what_is_missing_can_come_over_another_carrier() {
    let object = bytes(100_500);
    let cast = cast(&object, 256);
    let mut catch = catch();
    for group in 0..cast.groups() {
        for packet in cast.group(group) {
            if !matches!(packet, Packet::Symbol(_, index, _) if index > 300) {
                assert!(!catch.take(&packet));
            }
        }
    }
    let missing = catch.missing();
    assert_eq!(missing.len(), 393 - 301);
    for range in missing {
        let part = &object[range.start as usize..range.end as usize];
        catch.repair(range.start, part);
    }
    assert!(catch.missing().is_empty() && catch.decode(&ReedSolomon).unwrap() == object);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_object_comes_through(length in 1usize..200_000, log2 in 6u32..11, loss in 0u64..45, seed: u64, from: prop::sample::Index) {
        let object = bytes(length);
        let cast = cast(&object, 1 << log2);
        let from = from.index(cast.groups() as usize) as u32;
        listen(&cast, from, &mut Air::new(seed, loss, (0, 0)), &object);
    }

    #[test]
    fn packets_come_back(bytes in prop::collection::vec(any::<u8>(), 0..1200), kind in 0usize..5) {
        let kind = [0xc1, 0xd1, 0xe1, 0xf1, 0][kind];
        let bytes = [&[kind], bytes.as_slice()].concat();
        if let Some(packet) = Packet::parse(&bytes) {
            prop_assert_eq!(packet.encode(), bytes);
        }
    }
}
