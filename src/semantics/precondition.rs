//! The client's own conditions, evaluated against a stored response (RFC 9110 §13.2).

use super::{Fields, Request, Response};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Deliver.
    Holds,
    /// 304.
    NotModified,
    /// 412.
    Failed,
}

/// Evaluates If-Match, If-Unmodified-Since, If-None-Match, If-Modified-Since in the order of §13.2.2 for GET and HEAD
/// on a response with status 200; anything else holds. `received_ms` stands in for a missing Last-Modified per
/// RFC 9111 §4.3.2 (Date). `now_wall_ms` is for two-digit years.
pub fn evaluate(request: Request<'_>, response: Response<'_>, now_wall_ms: i64) -> Precondition {
    let _ = (request, response, now_wall_ms);
    todo!()
}

/// The fields of a 304 made from a stored response: all but representation metadata other than those of §15.4.5.
pub fn not_modified_fields(stored: &Fields) -> Fields {
    let _ = stored;
    todo!()
}

/// Whether two entity tags match weakly (§8.8.3.2).
pub fn weak_match(a: &[u8], b: &[u8]) -> bool {
    let _ = (a, b);
    todo!()
}

/// Whether two entity tags match strongly.
pub fn strong_match(a: &[u8], b: &[u8]) -> bool {
    let _ = (a, b);
    todo!()
}
