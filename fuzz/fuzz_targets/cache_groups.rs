//! Cache-Groups and Cache-Group-Invalidation (RFC 9875), one field line per line of the input.
//!
//! The members of a line are found whatever lines stand before and after it, unless a quote is left open: whoever names a group
//! reaches what is in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::cache::named_groups;
use tiercel::semantics::{Fields, name};

const ORIGIN: &str = "http://a.example";

fuzz_target!(|data: &[u8]| {
    let mut together = Fields::new();
    let mut apart = Vec::new();
    for line in data.split(|byte| *byte == b'\n') {
        if together.append(name::CACHE_GROUPS, line).is_ok() {
            apart.extend(groups(line));
        }
    }
    let found = named_groups(&together, name::CACHE_GROUPS, ORIGIN);
    assert!(found.len() <= data.len());
    if !data.contains(&b'\\') && data.split(|byte| *byte == b'\n').all(|line| line.iter().filter(|byte| **byte == b'"').count() % 2 == 0) {
        assert_eq!(found, apart);
    }
    // A plain member is found behind anything that is closed.
    together.append(name::CACHE_GROUPS, "\"plain\"").expect("a field value");
    let more = named_groups(&together, name::CACHE_GROUPS, ORIGIN);
    assert!(more.len() >= found.len());
});

fn groups(line: &[u8]) -> Vec<u128> {
    let mut fields = Fields::new();
    fields.append(name::CACHE_GROUPS, line).expect("it was one before");
    named_groups(&fields, name::CACHE_GROUPS, ORIGIN)
}
