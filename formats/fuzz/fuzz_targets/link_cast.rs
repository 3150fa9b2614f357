//! Packets of a broadcast, forged ones among right ones: nothing but the object is ever decoded.
#![no_main]

use ed25519_dalek::SigningKey;
use formats::hex::Digest;
use formats::link::cast::catch::Catch;
use formats::link::cast::code::ReedSolomon;
use formats::link::cast::packet::{Packet, tag};
use formats::link::cast::send::Cast;
use std::sync::LazyLock;

const OBJECT: Digest = Digest([5; 32]);
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[3; 32]));
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| (0..5000u32).map(|n| (n * 7) as u8).collect());
static CAST: LazyLock<Cast> = LazyLock::new(|| Cast::new(OBJECT, &BYTES, 64, &ReedSolomon, &KEY).unwrap());

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(packet) = Packet::parse(bytes) {
        assert_eq!(packet.encode(), bytes);
    }
    let Packet::Head(head) = CAST.group(0).remove(0) else { panic!("no head first") };
    let mut catch = Catch::new(OBJECT, KEY.verifying_key());
    catch.take(&Packet::Head(head.clone()));
    for step in bytes.chunks(4) {
        let [group, which, kind, with] = step else { break };
        let packets = CAST.group(u32::from(*group) % CAST.groups());
        let mut packet = packets[usize::from(*which) % packets.len()].clone();
        match &mut packet {
            Packet::Symbol(of, index, part) if kind % 4 == 1 => {
                (*of, *index) = (tag(&head), index.wrapping_add(u32::from(*with)));
                part.truncate(usize::from(*with));
            }
            Packet::Symbol(_, _, part) if kind % 4 == 2 => part[0] ^= with,
            Packet::Page(_, level, index, page) if kind % 4 == 3 => {
                page[0] ^= with;
                (*level, *index) = (level.wrapping_add(with & 3), index.wrapping_add(u32::from(with >> 6)));
            }
            _ => {}
        }
        if catch.take(&packet) {
            assert!(catch.decode(&ReedSolomon).unwrap() == *BYTES);
            return;
        }
    }
});
