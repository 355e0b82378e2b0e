//! Surrogate keys, cache groups and strings of structured fields; and what we write in their syntax. The first byte picks the
//! field, the rest are its lines.
//!
//! What is written is read back, and whatever a key holds, it is one string: nothing in it can end the member.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::cache::Tags;
use tiercel::config::settings::KeyBounds;
use tiercel::semantics::cache_status::CacheStatus;
use tiercel::semantics::{Fields, Name, name, proxy_status, structured};

const FIELDS: [Name; 6] =
    [name::SURROGATE_KEY, name::CACHE_TAG, name::EDGE_CACHE_TAG, name::XKEY, name::CACHE_GROUPS, name::CACHE_GROUP_INVALIDATION];

const LIMITS: KeyBounds = KeyBounds { keys_per_response: 256, key_bytes: 1024 };

fuzz_target!(|data: &[u8]| {
    let Some((field, lines)) = data.split_first() else { return };
    let mut fields = Fields::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let _ = fields.append(FIELDS[usize::from(*field) % FIELDS.len()], line);
    }
    if let Ok(tags) = Tags::parse(&fields, "http://shop.example", &LIMITS) {
        assert!(tags.keys().len() <= LIMITS.keys_per_response);
        assert_eq!(tags.union(&tags).keys().len(), tags.keys().len());
    }
    if let Some((text, rest)) = structured::string(lines) {
        let mut written = Vec::new();
        structured::write_string(&text, &mut written);
        assert_eq!(structured::string(&written), Some((text, &b""[..])));
        assert!(rest.len() < lines.len());
    }
    let Ok(text) = std::str::from_utf8(lines) else { return };
    let mut member = Vec::new();
    CacheStatus { hit: true, key: Some(text), detail: Some(text), ..CacheStatus::default() }.write("tiercel", &mut member);
    let rest = member.strip_prefix(b"tiercel; hit; key=").and_then(structured::string).expect("a string").1;
    assert!(rest.starts_with(b"; detail="));
    let details = proxy_status::member("tiercel", "http_protocol_error", Some(text));
    for written in [member, details] {
        assert!(written.iter().all(|byte| matches!(byte, b' '..=b'~')));
    }
});
