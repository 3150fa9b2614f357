//! Manifests that are announced and signed as they are, but break the rules of the format.

use crate::Files;
use crate::fixed::{full, manifest, release, slot, uki};
use minicbor::Encoder;

/// Writes a manifest field by field, so that it can be wrong.
pub type Fields = Vec<(i64, Vec<u8>)>;

fn item(write: impl FnOnce(&mut Encoder<Vec<u8>>)) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new());
    write(&mut encoder);
    encoder.into_writer()
}

pub fn uint(number: u64) -> Vec<u8> {
    item(|e| {
        e.u64(number).unwrap();
    })
}

fn text(text: &str) -> Vec<u8> {
    item(|e| {
        e.str(text).unwrap();
    })
}

pub fn bytes(bytes: &[u8]) -> Vec<u8> {
    item(|e| {
        e.bytes(bytes).unwrap();
    })
}

pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    [
        item(|e| {
            e.array(items.len() as u64).unwrap();
        }),
        items.concat(),
    ]
    .concat()
}

pub fn map(fields: &Fields) -> Vec<u8> {
    let mut out = item(|e| {
        e.map(fields.len() as u64).unwrap();
    });
    for (key, value) in fields {
        out.extend(item(|e| {
            e.i64(*key).unwrap();
        }));
        out.extend(value);
    }
    out
}

fn needs(slot: u64, verity: u64, esp: u64) -> Vec<u8> {
    map(&vec![(0, uint(slot)), (1, uint(verity)), (2, uint(esp))])
}

fn slot_fields() -> Fields {
    let object = slot().object;
    vec![
        (0, uint(1)),
        (1, bytes(&object.id.0)),
        (2, uint(object.geometry.length())),
        (3, uint(16)),
        (4, bytes(&[0x11; 32])),
        (5, bytes(&[0x22; 32])),
        (6, bytes(&[0x33; 16])),
    ]
}

fn uki_fields(kind: u64) -> Fields {
    let object = uki().object;
    vec![(0, uint(kind)), (1, bytes(&object.id.0)), (2, uint(object.geometry.length())), (3, uint(16))]
}

fn payload_fields() -> Fields {
    let object = full().object;
    let length = uint(object.geometry.length());
    vec![(0, uint(1)), (1, bytes(&object.id.0)), (2, length), (3, uint(16)), (4, uint(0)), (5, uint(21))]
}

fn fields() -> Fields {
    vec![
        (0, uint(1)),
        (1, text("edge")),
        (2, text("vm")),
        (3, uint(1)),
        (4, text("1.0.0")),
        (5, uint(1)),
        (6, uint(crate::fixed::SIGNED_S as u64 - 3600)),
        (7, needs(512 << 20, 8 << 20, 32 << 20)),
        (8, list(&[map(&slot_fields()), map(&uki_fields(2))])),
        (9, list(&[map(&payload_fields())])),
        (-1, text("edge-minimal")),
    ]
}

fn set(mut fields: Fields, key: i64, value: Vec<u8>) -> Fields {
    fields.iter_mut().find(|(at, _)| *at == key).unwrap().1 = value;
    fields
}

fn without(mut fields: Fields, key: i64) -> Fields {
    fields.retain(|(at, _)| *at != key);
    fields
}

fn and(mut fields: Fields, key: i64, value: Vec<u8>) -> Fields {
    fields.push((key, value));
    fields
}

pub fn cases() -> Vec<(&'static str, Files)> {
    assert_eq!(map(&fields()), manifest().encode().unwrap(), "the writer here must write as the real one");
    let whole: Vec<(&str, Vec<u8>)> = [encodings(), values()].concat();
    let targets = targets().into_iter().map(|(name, list)| (name, map(&set(fields(), 8, list))));
    let payloads = payloads().into_iter().map(|(name, list)| (name, map(&set(fields(), 9, list))));
    whole
        .into_iter()
        .chain(targets)
        .chain(payloads)
        .map(|(name, bytes)| (name, release(&bytes, |_| ())))
        .collect()
}

fn encodings() -> Vec<(&'static str, Vec<u8>)> {
    let good = map(&fields());
    let mut swapped = fields();
    swapped.swap(1, 2);
    let mut indefinite = good.clone();
    indefinite[0] = 0xbf;
    indefinite.push(0xff);
    let mut long_key = good.clone();
    long_key.splice(1..2, [0x18, 0x00]);
    let huge = |head: &[u8]| map(&set(fields(), 8, head.to_vec()));
    let mut deep = vec![0x81; 2_000];
    deep.push(0);
    vec![
        ("manifest-cut-inside", good[..good.len() / 2].to_vec()),
        ("manifest-with-bytes-after-it", [good.as_slice(), &[0]].concat()),
        ("manifest-fields-out-of-order", map(&swapped)),
        ("manifest-field-twice", map(&and(fields(), -1, text("edge-minimal")))),
        ("manifest-of-indefinite-length", indefinite),
        ("manifest-long-form", long_key),
        ("manifest-that-is-json", br#"{"product":"edge"}"#.to_vec()),
        ("manifest-list-of-2-to-the-64", huge(&[0x9b, 255, 255, 255, 255, 255, 255, 255, 255])),
        (
            "manifest-text-of-2-to-the-63",
            map(&set(fields(), 1, vec![0x7b, 127, 255, 255, 255, 255, 255, 255, 255])),
        ),
        ("manifest-nested-where-a-number-must-be", map(&set(fields(), 6, deep))),
        ("manifest-text-not-utf8", map(&set(fields(), 1, vec![0x62, 0xff, 0xfe]))),
    ]
}

fn values() -> Vec<(&'static str, Vec<u8>)> {
    let changed = |key, value| map(&set(fields(), key, value));
    vec![
        ("manifest-field-that-must-be-understood", {
            let mut fields = fields();
            fields.insert(10, (10, uint(0)));
            map(&fields)
        }),
        ("manifest-without-product", map(&without(fields(), 1))),
        ("manifest-without-targets", map(&without(fields(), 8))),
        ("manifest-format-2", changed(0, uint(2))),
        ("manifest-number-as-text", changed(6, text("yesterday"))),
        ("manifest-time-beyond-32-bits", changed(6, uint(1 << 32))),
        ("manifest-processor-unknown", changed(3, uint(3))),
        ("manifest-version-with-slash", changed(4, text("1/0"))),
        ("manifest-version-empty", changed(4, text(""))),
        ("manifest-profile-too-long", changed(-1, text(&"x".repeat(256)))),
        ("manifest-needs-too-small-a-slot", changed(7, needs(4096, 8 << 20, 32 << 20))),
        ("manifest-needs-too-small-a-verity-area", changed(7, needs(512 << 20, 4096, 32 << 20))),
        ("manifest-needs-too-small-an-esp", changed(7, needs(512 << 20, 8 << 20, 4096))),
        ("manifest-needs-of-an-unknown-kind", changed(7, map(&vec![(0, uint(1)), (3, uint(1))]))),
    ]
}

fn targets() -> Vec<(&'static str, Vec<u8>)> {
    let (slot, uki) = (|| map(&slot_fields()), || map(&uki_fields(2)));
    let boot = |path: &str| list(&[slot(), uki(), map(&and(uki_fields(3), 7, text(path)))]);
    let sized = |key, value| list(&[map(&set(slot_fields(), key, value)), uki()]);
    vec![
        ("target-of-unknown-kind", list(&[slot(), uki(), map(&uki_fields(77))])),
        ("target-without-kind", list(&[map(&vec![(1, bytes(&[0; 32]))]), uki()])),
        ("target-slot-without-roothash", list(&[map(&without(slot_fields(), 4)), uki()])),
        ("target-roothash-of-16-bytes", sized(4, bytes(&[0x11; 16]))),
        ("target-uki-with-a-roothash", list(&[slot(), map(&and(uki_fields(2), 4, bytes(&[0x11; 32])))])),
        ("target-slot-not-in-whole-blocks", sized(2, uint((256 << 20) + 1))),
        ("target-slot-empty", sized(2, uint(0))),
        ("target-blocks-of-8-mib", sized(3, uint(23))),
        ("target-blocks-of-128-bytes", sized(3, uint(7))),
        ("target-with-too-many-blocks", sized(2, uint(1 << 40))),
        ("two-slot-images", list(&[slot(), slot(), uki()])),
        ("slot-image-without-uki", list(&[slot()])),
        ("uki-without-slot-image", list(&[uki()])),
        ("boot-file-above-the-root", boot("../boot.efi")),
        ("boot-file-absolute", boot("/EFI/BOOT/BOOTX64.EFI")),
        ("boot-file-with-backslash", boot("EFI\\BOOT\\BOOTX64.EFI")),
        ("boot-file-among-entries", boot("efi/LINUX/x.efi")),
        ("boot-file-empty-name", boot("EFI//x.efi")),
        (
            "boot-file-twice-but-for-case",
            list(&[
                slot(),
                uki(),
                map(&and(uki_fields(3), 7, text("EFI/a.efi"))),
                map(&and(uki_fields(3), 7, text("EFI/A.EFI"))),
            ]),
        ),
        ("too-many-targets", list(&vec![map(&vec![(0, vec![0x20])]); 257])),
    ]
}

fn payloads() -> Vec<(&'static str, Vec<u8>)> {
    let changed = |key, value| list(&[map(&set(payload_fields(), key, value))]);
    vec![
        ("payload-for-no-target", changed(4, uint(2))),
        ("payload-window-too-large", changed(5, uint(31))),
        ("payload-field-that-must-be-understood", list(&[map(&and(payload_fields(), 6, uint(0)))])),
        ("payload-without-object", list(&[map(&without(payload_fields(), 1))])),
        ("too-many-payloads", list(&vec![map(&vec![(0, uint(9))]); 513])),
    ]
}
