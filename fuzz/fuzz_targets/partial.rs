//! A 206 of the origin: the first sixteen bytes are the range that was asked for, then Content-Range up to a line feed, then ETag.
//!
//! Whatever came, a part begins where it was asked for, is not empty, does not go beyond what was asked for or beyond the
//! whole; what its own Content-Range would say is read as the same part; and it follows a version only if it is of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::partial::{self, Following, Version};
use tiercel::semantics::{Fields, Response, StatusCode, name, range};

fuzz_target!(|data: &[u8]| {
    let Some((edges, rest)) = data.split_first_chunk::<16>() else { return };
    let edge = |at: usize| u64::from_le_bytes(edges[at..at + 8].try_into().expect("eight bytes"));
    let asked = edge(0).min(edge(8))..edge(0).max(edge(8)).saturating_add(1);
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (content_range, tag) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut fields = Fields::new();
    if fields.append(name::CONTENT_RANGE, content_range).and(fields.append(name::ETAG, tag)).is_err() {
        return;
    }
    let response = Response { status: StatusCode::PARTIAL_CONTENT, fields: &fields };
    let Some(part) = partial::part(response, &asked) else { return };
    assert!(part.range.start == asked.start && part.range.end <= asked.end, "{part:?} for {asked:?}");
    assert!(part.range.start < part.range.end && part.range.end <= part.length, "{part:?}");
    let told = range::content_range(&part.range, part.length);
    assert_eq!(range::told(told.as_bytes()), Some((part.range.clone(), Some(part.length))));
    if let Some(version) = Version::of(&fields, part.length) {
        assert_eq!(Some(version.tag().as_bytes()), fields.get(name::ETAG), "as it came, but for white space around it");
        assert_eq!(partial::follows(&version, response, &asked), Following::Same);
    }
});
