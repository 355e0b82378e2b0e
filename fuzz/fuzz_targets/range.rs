//! Range and If-Range against a representation: the first eight bytes are its length, then If-Range up to a line feed, then Range.
//!
//! Whatever is asked for, what is selected lies within the representation, no range is empty, there are no more than
//! allowed, and none comes near another.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiercel::semantics::range::{self, Selection};
use tiercel::semantics::target::Scheme;
use tiercel::semantics::{Fields, Method, Request, Response, StatusCode, Target, name};

const NOW_MS: i64 = 1_795_000_000_000;
const PARTS_MAX: usize = 16;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk::<8>() else { return };
    let length = u64::from_le_bytes(*length);
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (if_range, asked) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut fields = Fields::new();
    if fields.append(name::HOST, "a").and(fields.append(name::RANGE, asked)).is_err() {
        return;
    }
    if !if_range.is_empty() && fields.append(name::IF_RANGE, if_range).is_err() {
        return;
    }
    let mut stored = Fields::new();
    stored.append(name::ETAG, "\"a\"").and(stored.append(name::DATE, "Sat, 21 Nov 2026 22:00:00 GMT")).expect("field values");
    let target = Target::parse(Scheme::Http, b"/", &fields, false).expect("a plain target");
    let request = Request { method: &Method::GET, target: &target, fields: &fields };
    let _ = range::first_byte(request);
    let mut selected = match range::select(request, Response { status: StatusCode::OK, fields: &stored }, length, PARTS_MAX, NOW_MS) {
        Selection::Whole | Selection::TooMany | Selection::Unsatisfiable => Vec::new(),
        Selection::One(range) => vec![range],
        Selection::Many(ranges) => ranges.to_vec(),
    };
    for range in &selected {
        assert!(range.start < range.end && range.end <= length, "{range:?} of {length}");
    }
    assert!(selected.len() <= PARTS_MAX);
    selected.sort_by_key(|range| range.start);
    assert!(selected.windows(2).all(|pair| pair[1].start - pair[0].end >= range::GAP_BYTES), "{selected:?}");
});
