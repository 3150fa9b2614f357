//! Any bytes: whatever parses as a manifest writes back the same bytes and keeps the rules that a device relies on.
#![no_main]

use formats::manifest::{Entry, Manifest};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        assert_eq!(manifest.encode().as_deref(), Ok(bytes));
        if let Some((slot, _, verity)) = manifest.slot() {
            assert!(manifest.needs.slot_bytes >= slot.object.geometry.length());
            assert!(manifest.needs.verity_bytes >= verity.hash_area_bytes());
        }
        for payload in manifest.payloads.iter().filter_map(Entry::known) {
            assert!(manifest.targets[usize::from(payload.target)].known().is_some());
        }
    }
});
