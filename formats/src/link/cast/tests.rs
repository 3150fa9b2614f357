//! Receivers that miss a third of all and whole fades, forgers, and who comes late.

use super::catch::{Catch, Tally};
use super::code::ReedSolomon;
use super::index::{Entry, Index, id_of, index_id};
use super::packet::{Head, Packet};
use super::send::{Cast, pieces, symbol_for};
use super::store::Memory;
use super::tune::{News, Room, Tuner};
use crate::arch::Arch;
use crate::frame::{Announcement, Frame, Scope, target_tag};
use crate::hex::Digest;
use crate::keys::{PublicKey, Role, SIGNATURE_BYTES};
use crate::link::name::Name;
use crate::roles::Root;
use ed25519_dalek::{Signer, SigningKey};
use proptest::prelude::*;

const OBJECT: Digest = Digest([5; 32]);

fn key() -> SigningKey {
    SigningKey::from_bytes(&[3; 32])
}

fn public(key: &SigningKey) -> PublicKey {
    PublicKey::from_bytes(&key.verifying_key().to_bytes()).unwrap()
}

fn sign(message: &[u8]) -> [u8; SIGNATURE_BYTES] {
    key().sign(message).to_bytes()
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect()
}

fn cast(bytes: &[u8], symbol: u16) -> Cast {
    Cast::new(OBJECT, bytes, symbol, &ReedSolomon, &sign).unwrap()
}

fn catch(cast: &Cast) -> Catch<Memory> {
    let head = Head::open(cast.head(), public(&key())).unwrap();
    Catch::new(cast.tag(), head, Memory::default()).unwrap()
}

/// Gives a packet to a reception as a tuner does; whether enough came.
fn feed(catch: &mut Catch<Memory>, packet: &Packet) -> bool {
    let tag = catch.tag();
    match packet {
        Packet::Symbol(of, index, bytes) if *of == tag => {
            let room = 2048usize.saturating_sub(catch.waiting());
            catch.symbol(*index, bytes, room);
        }
        Packet::Page(of, level, index, page) if *of == tag => {
            catch.page(usize::from(*level), *index, page);
        }
        Packet::Head(_) | Packet::File(..) | Packet::Symbol(..) | Packet::Page(..) => {}
    }
    catch.whole()
}

fn decoded(mut catch: Catch<Memory>) -> Vec<u8> {
    catch.restore(&ReedSolomon).unwrap();
    let length = catch.head().cut.length.into();
    catch.read(&(0..length)).unwrap().unwrap()
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
    let mut catch = catch(cast);
    for n in 0..4 * cast.groups() {
        for packet in cast.group((from + n) % cast.groups()) {
            if !air.loses() && feed(&mut catch, &packet) {
                let tally = catch.tally;
                assert!(decoded(catch) == expected);
                return (tally, f64::from(n + 1) / f64::from(cast.groups()));
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
    let mut catch = catch(&cast);
    'rounds: for round in 0.. {
        for group in 0..cast.groups() {
            // Before each right packet a wrong one under its name.
            for packet in cast.group(group) {
                let wrong = match &packet {
                    Packet::Symbol(tag, index, bytes) => {
                        Packet::Symbol(*tag, *index, vec![!bytes[0]; bytes.len()])
                    }
                    Packet::Page(tag, level, index, page) => {
                        Packet::Page(*tag, *level, *index, vec![1; page.len()])
                    }
                    Packet::Head(_) | Packet::File(..) => packet.clone(),
                };
                if feed(&mut catch, &wrong) || feed(&mut catch, &packet) {
                    break 'rounds;
                }
            }
        }
        assert!(round < 2, "{:?}", catch.tally);
    }
    assert!(catch.tally.wrong > 200, "{:?}", catch.tally);
    assert!(decoded(catch) == object);
    let other = SigningKey::from_bytes(&[9; 32]);
    assert!(Head::open(cast.head(), public(&other)).is_none());
}

#[test]
fn a_flood_of_what_cannot_be_verified_takes_bounded_memory() {
    let object = bytes(3_000_000);
    let cast = cast(&object, 1024);
    let mut catch = catch(&cast);
    for n in 0..200_000u32 {
        feed(&mut catch, &Packet::Symbol(cast.tag(), n % 5_000, vec![n as u8; 1024]));
    }
    assert!(catch.tally.kept == 0 && catch.tally.dropped > 100_000, "{:?}", catch.tally);
    assert!(catch.waiting() <= 2 * 2048);
}

#[test]
fn what_is_missing_can_come_over_another_carrier() {
    let object = bytes(100_500);
    let cast = cast(&object, 256);
    let mut catch = catch(&cast);
    for group in 0..cast.groups() {
        for packet in cast.group(group) {
            if !matches!(packet, Packet::Symbol(_, index, _) if index > 300) {
                assert!(!feed(&mut catch, &packet));
            }
        }
    }
    assert_eq!(catch.needs(), 393 - 301);
    assert_eq!((catch.lacks(&(0..4096)), catch.lacks(&(96_000..100_500))), (0, 393 - 375));
    // What comes before the end is not needed any more; a wrong part is no part.
    catch.repair(90_112, &vec![7; 4096]);
    assert_eq!(catch.needs(), 393 - 301);
    for start in (77_056..100_500).step_by(4096) {
        catch.repair(start, &object[start as usize..object.len().min(start as usize + 4096)]);
    }
    assert!(catch.needs() == 0 && decoded(catch) == object);
}

struct Disk;

impl Room for Disk {
    type Place = Memory;
    fn place(&mut self, _: u64) -> Result<Memory, String> {
        Ok(Memory::default())
    }
}

fn root() -> Root {
    let role = |n: u8| Role::new(1, vec![public(&SigningKey::from_bytes(&[n; 32]))]).unwrap();
    let (root, release) = (role(10), role(11));
    Root { version: 1, signed_s: 0, root, release, catalogue: public(&key()), ignored: Default::default() }
}

fn announcement(sequence: u32, signer: u8) -> (Name, Vec<u8>) {
    let said = Announcement {
        target: target_tag("edge", "vm", Arch::X86_64),
        channel: 0,
        scope: Scope::All,
        root_version: 1,
        sequence,
        min_agent_format: 1,
        signed_s: 1,
        validity_h: 9,
        rescue: false,
        ignored_flags: 0,
        manifest_bytes: 9,
        manifest: OBJECT,
        extensions: Vec::new(),
    };
    let name = Name::from_path(&crate::repository::announcement_of(&said)).unwrap();
    let mut frame = Frame::unsigned(said).unwrap();
    let bytes = frame.unverified().signed_bytes().unwrap();
    frame.sign(0, SigningKey::from_bytes(&[signer; 32]).sign(&bytes).to_bytes()).unwrap();
    (name, frame.encode().unwrap())
}

/// A cast of an object beside the index that lists it.
fn on_air(object: &[u8], made_s: u64) -> (Name, Vec<Packet>) {
    let name = Name::Object(OBJECT);
    let cast = cast(object, symbol_for(object.len()));
    let entry = Entry { name, tag: cast.tag(), length: object.len() as u32 };
    let index = Index { made_s, entries: vec![entry] }.encode();
    let index = Cast::new(index_id(), &index, symbol_for(index.len()), &ReedSolomon, &sign).unwrap();
    let groups = (0..cast.groups()).flat_map(|group| cast.group(group));
    (name, index.group(0).into_iter().chain(groups).collect())
}

fn tune(tuner: &mut Tuner<Disk>, packets: &[Packet]) -> bool {
    let news: Vec<News> = packets.iter().map(|packet| tuner.take(&packet.encode(), 0)).collect();
    news.contains(&News::Complete(Name::Object(OBJECT)))
}

#[test]
fn a_tuner_takes_in_what_the_index_lists_and_nothing_else() {
    let (object, old) = (bytes(90_000), bytes(50_000));
    let (name, packets) = on_air(&object, 20);
    let mut tuner = Tuner::new(root(), vec![], Disk, 1 << 20);
    assert_eq!(tuner.on_air(&name), None);
    // Without the index nothing gets a place.
    assert!(!tune(&mut tuner, &packets[packets.len() / 2..]) && tuner.catch(&name).is_none());
    assert!(tune(&mut tuner, &packets));
    assert_eq!((tuner.on_air(&name), tuner.casts()), (Some(true), 1));
    assert!(tuner.read(&name, &(0..90_000)).unwrap().unwrap() == object);
    // Yesterday's, said again: neither its index nor its symbols.
    assert!(!tune(&mut tuner, &on_air(&old, 10).1));
    assert!(tuner.read(&name, &(0..90_000)).unwrap().unwrap() == object);
    // Tomorrow's takes its place.
    assert!(tune(&mut tuner, &on_air(&old, 30).1));
    assert!(tuner.read(&name, &(0..50_000)).unwrap().unwrap() == old);
    let mut small = Tuner::new(root(), vec![], Disk, 10_000);
    assert!(!tune(&mut small, &packets) && small.full.is_some() && small.catch(&name).is_none());
}

#[test]
fn a_tuner_keeps_the_newest_announcement_that_is_signed() {
    let (name, old) = announcement(1, 11);
    let (_, new) = announcement(2, 11);
    let (_, forged) = announcement(3, 12);
    let mut tuner = Tuner::new(root(), vec![name], Disk, 1 << 20);
    let mut hears = |frame: &[u8], now_ms| tuner.take(&pieces(name, frame).remove(0).encode(), now_ms);
    assert_eq!(hears(&new, 0), News::Announced);
    assert_eq!(
        (hears(&new, 0), hears(&old, 0), hears(&forged, 0)),
        (News::Little, News::Little, News::Little)
    );
    // Who is flooded looks at some each second, and is right again when the flood ends.
    let (_, newest) = announcement(9, 11);
    for n in 0..100 {
        hears(&announcement(10 + n, 12).1, 5000);
    }
    assert_eq!((hears(&newest, 5999), hears(&newest, 6000)), (News::Little, News::Announced));
    assert_eq!(tuner.announcement(&name), Some(newest.as_slice()));
    assert_eq!(id_of(&Name::Object(OBJECT)), OBJECT);
}

#[test]
fn forged_heads_and_symbols_cost_a_tuner_nothing() {
    let (object, thief) = (bytes(90_000), SigningKey::from_bytes(&[9; 32]));
    let (name, packets) = on_air(&object, 20);
    let forged = |made_s: u64| {
        let index = Index { made_s, entries: Vec::new() }.encode();
        let sign = |message: &[u8]| thief.sign(message).to_bytes();
        Cast::new(index_id(), &index, 64, &ReedSolomon, &sign).unwrap().group(0)
    };
    let mut tuner = Tuner::new(root(), vec![], Disk, 1 << 20);
    let mut done = false;
    for (now_ms, packet) in (0u64..).step_by(100).zip(packets.iter().cycle().take(2 * packets.len())) {
        for wrong in forged(1000 + now_ms) {
            tuner.take(&wrong.encode(), now_ms);
        }
        if let Packet::Symbol(tag, index, bytes) = packet {
            tuner.take(&Packet::Symbol(*tag, *index, vec![0; bytes.len()]).encode(), now_ms);
        }
        done |= tuner.take(&packet.encode(), now_ms) != News::Little;
    }
    assert!(done && tuner.read(&name, &(0..90_000)).unwrap().unwrap() == object);
    assert!(tuner.catch(&name).unwrap().tally.wrong > 50);
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
