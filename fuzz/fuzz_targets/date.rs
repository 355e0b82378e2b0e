//! HTTP dates in all three forms. What is read can be written, and what was written is read as the same second.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::date;

const NOW_MS: i64 = 1_795_000_000_000;

fuzz_target!(|data: &[u8]| {
    if let Some(ms) = date::parse(data, NOW_MS) {
        assert_eq!(ms % 1000, 0);
        assert_eq!(date::parse(&date::format(ms), NOW_MS), Some(ms));
    }
});
