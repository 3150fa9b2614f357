//! Packets of a broadcast, forged ones among right ones: nothing but the object ever comes out, and a tuner stays within
//! its bounds.
#![no_main]

use ed25519_dalek::{Signer, SigningKey};
use formats::hex::Digest;
use formats::keys::{PublicKey, Role};
use formats::link::cast::code::ReedSolomon;
use formats::link::cast::index::{Entry, Index, index_id};
use formats::link::cast::packet::Packet;
use formats::link::cast::send::Cast;
use formats::link::cast::store::Memory;
use formats::link::cast::tune::{News, Room, Tuner};
use formats::link::name::Name;
use formats::roles::Root;
use std::sync::LazyLock;

const OBJECT: Digest = Digest([5; 32]);
static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&[3; 32]));
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| (0..5000u32).map(|n| (n * 7) as u8).collect());
static CAST: LazyLock<Cast> = LazyLock::new(|| cast(OBJECT, &BYTES));
static INDEX: LazyLock<Cast> = LazyLock::new(|| {
    let entry = Entry { name: Name::Object(OBJECT), tag: CAST.tag(), length: BYTES.len() as u32 };
    cast(index_id(), &Index { made_s: 1, entries: vec![entry] }.encode())
});

fn cast(object: Digest, bytes: &[u8]) -> Cast {
    Cast::new(object, bytes, 64, &ReedSolomon, &|message| KEY.sign(message).to_bytes()).unwrap()
}

struct Disk;

impl Room for Disk {
    type Place = Memory;
    fn place(&mut self, _: u64) -> Result<Memory, String> {
        Ok(Memory::default())
    }
}

fn root() -> Root {
    let public = |n: u8| PublicKey::from_bytes(&SigningKey::from_bytes(&[n; 32]).verifying_key().to_bytes()).unwrap();
    let role = |n: u8| Role::new(1, vec![public(n)]).unwrap();
    Root { version: 1, signed_s: 0, root: role(1), release: role(2), catalogue: public(3), ignored: Default::default() }
}

fn changed(packet: &mut Packet, kind: u8, with: u8) {
    match packet {
        Packet::Symbol(_, index, part) if kind == 1 => {
            *index = index.wrapping_add(u32::from(with));
            part.truncate(usize::from(with));
        }
        Packet::Symbol(_, _, part) if kind == 2 => part[0] ^= with,
        Packet::Page(_, level, index, page) if kind == 3 => {
            page[0] ^= with;
            (*level, *index) = (level.wrapping_add(with & 3), index.wrapping_add(u32::from(with >> 6)));
        }
        Packet::Head(head) if kind == 4 => {
            let at = usize::from(with) % head.len();
            head[at] ^= 1;
        }
        _ => {}
    }
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(packet) = Packet::parse(bytes) {
        assert_eq!(packet.encode(), bytes);
    }
    if let Some(index) = Index::parse(bytes) {
        assert_eq!(index.encode(), bytes);
    }
    let name = Name::Object(OBJECT);
    let mut tuner = Tuner::new(root(), vec![Name::Announce], Disk, 1 << 16);
    tuner.take(bytes, 0);
    let begin = INDEX.group(0).into_iter().chain([Packet::Head(CAST.head().to_vec())]);
    begin.for_each(|packet| drop(tuner.take(&packet.encode(), 0)));
    assert_eq!(tuner.on_air(&name), Some(true));
    for step in bytes.chunks(4) {
        let [group, which, kind, with] = step else { break };
        let source: &Cast = if kind & 0x80 == 0 { &CAST } else { &INDEX };
        let packets = source.group(u32::from(*group) % source.groups());
        let mut packet = packets[usize::from(*which) % packets.len()].clone();
        changed(&mut packet, kind & 7, *with);
        let complete = tuner.take(&packet.encode(), u64::from(*with)) == News::Complete(name);
        if complete {
            assert!(tuner.read(&name, &(0..BYTES.len() as u64)).unwrap().unwrap() == *BYTES);
        }
        if let Some(Ok(part)) = tuner.read(&name, &(64..200)) {
            assert!(part == BYTES[64..200]);
        }
    }
});
