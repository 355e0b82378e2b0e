//! Byte ranges (RFC 9110 §14) from complete representations.

use super::{Request, Response};
use std::ops::Range;

/// What a Range field asks of a representation of known length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// No Range, another unit, malformed, If-Range does not match, or not a GET: the whole.
    Whole,
    /// One range, half open.
    One(Range<u64>),
    /// Several ranges, coalesced and in order of asking; at most [`MAX_RANGES`].
    Many(Vec<Range<u64>>),
    /// 416.
    Unsatisfiable,
}

/// More ranges than this are answered with the whole (RFC 9110 §14.2 allows to ignore them; §17.15 why).
pub const MAX_RANGES: usize = 16;

/// Evaluates Range and If-Range for a 200 response with `length` bytes.
pub fn select(request: Request<'_>, response: Response<'_>, length: u64, now_wall_ms: i64) -> Selection {
    let _ = (request, response, length, now_wall_ms);
    todo!()
}

/// The first byte that a Range field asks for where that is known without the length: to decide whether waiting pays.
pub fn first_byte(request: Request<'_>) -> Option<u64> {
    let _ = request;
    todo!()
}

/// `bytes 0-4/10`.
pub fn content_range(range: &Range<u64>, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1))
}

/// `bytes */10`, for a 416.
pub fn unsatisfied_range(length: u64) -> String {
    format!("bytes */{length}")
}
