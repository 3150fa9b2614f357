//! Any bytes: requests, parts, reports, receipts and waves that parse write back the same bytes, within their limits.
#![no_main]

use formats::pull::{Get, MAX_MAP_BYTES, Part};
use formats::report::{self, MAX_REPORT_BYTES, Report};
use formats::wave::Wave;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(get) = Get::parse(bytes) {
        assert_eq!(get.encode(), bytes);
        assert!(get.pieces().count() <= MAX_MAP_BYTES * 8);
    }
    if let Ok(part) = Part::parse(bytes) {
        assert_eq!(part.encode(), bytes);
    }
    if let Ok(report) = Report::parse(bytes) {
        assert_eq!(report.encode(), bytes);
        assert!(bytes.len() <= MAX_REPORT_BYTES);
    }
    if let Ok(ids) = report::parse_receipt(bytes) {
        assert_eq!(report::encode_receipt(&ids), bytes);
    }
    if let Some(wave) = Wave::parse(bytes) {
        assert_eq!(wave.encode(), bytes);
    }
});
