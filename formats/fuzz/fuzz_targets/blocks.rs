//! Any index of an adaptive payload: what is accepted covers the image exactly, and what is missing lies in the payload.
#![no_main]

use formats::blocks::Index;

libfuzzer_sys::fuzz_target!(|input: (u64, u64, &[u8])| {
    let (payload, image, bytes) = input;
    // Lengths that fit are rare among all; the header says which would.
    let stated = bytes.get(24..32).and_then(|length| length.first_chunk()).map(|length| u64::from_le_bytes(*length));
    for (payload, image) in [(payload, image), (payload, stated.unwrap_or(image))] {
        let Ok(index) = Index::parse(bytes, payload, image) else { continue };
        let mut end = 0;
        for number in 0..index.cut().units() {
            let unit = index.unit(number).expect("every unit is there");
            assert_eq!(unit.image.start, end);
            assert!(unit.packed.start >= bytes.len() as u64 && unit.packed.end <= payload);
            assert_eq!(index.marks(number).len() as u64, (unit.image.end - unit.image.start) / 4096);
            end = unit.image.end;
        }
        assert_eq!((end, index.unit(index.cut().units())), (image, None));
        let missing = index.missing(&|mark| mark % 3 == 0);
        assert!(missing.is_sorted_by(|a, b| a.end < b.start));
        assert!(missing.iter().all(|part| part.start < part.end && part.end <= payload));
    }
});
