//! Any bytes: whatever parses as a chain of root documents writes back the same bytes, and judging it does not panic.
#![no_main]

use formats::roles::Chain;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(chain) = Chain::parse(bytes) {
        assert_eq!(chain.encode(), bytes);
        let newest = chain.newest().clone();
        if chain.verify().is_ok() {
            assert_eq!(chain.follow(&chain.documents()[0].root).as_ref(), Ok(&newest));
        }
        // Trusting the newest, its own chain leads nowhere else.
        assert!(chain.follow(&newest).map_or(true, |root| root.version >= newest.version));
    }
});
