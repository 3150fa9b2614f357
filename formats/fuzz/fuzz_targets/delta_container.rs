//! Any bytes as a delta: header, index and bundles of maps are refused or within their limits.
#![no_main]

use formats::delta::container::{map_in, open, read_bundle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok((header, index)) = open(&data) else { return };
    let space = index.space(&header);
    assert_eq!(index.groups.len() as u64, space.div_ceil(header.group_len()));
    for bundle in &index.bundles {
        let Ok(bytes) = read_bundle(&data, bundle) else { continue };
        for number in bundle.first..bundle.first + bundle.objects {
            if let Ok(map) = map_in(&bytes, bundle, number, (header.old_len, space)) {
                assert!(map.copies.iter().all(|copy| copy.new + copy.len <= map.new.len));
            }
        }
    }
});
