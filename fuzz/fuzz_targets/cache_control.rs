//! Cache-Control of requests and responses, one field line per line of the input.
//!
//! A further line can only forbid more: what no-store and private forbid stays forbidden.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::cache_control::{RequestDirectives, ResponseDirectives};
use tiercel::semantics::{Fields, name};

fuzz_target!(|data: &[u8]| {
    let mut fields = Fields::new();
    for line in data.split(|byte| *byte == b'\n') {
        let _ = fields.append(name::CACHE_CONTROL, line); // what is no field value never gets this far
    }
    let before = ResponseDirectives::parse(&fields);
    let _ = RequestDirectives::parse(&fields);
    fields.append(name::CACHE_CONTROL, "no-store").expect("a field value");
    let after = ResponseDirectives::parse(&fields);
    assert!(after.no_store && RequestDirectives::parse(&fields).no_store);
    assert_eq!(before.must_revalidate, after.must_revalidate);
});
