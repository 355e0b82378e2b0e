//! What an unsafe method makes invalid (RFC 9111 §4.4).

use super::{Request, Response, Target};

/// The targets that a response to an unsafe request invalidates: its own and those of Location and Content-Location
/// with the same origin. Empty for safe methods and for statuses other than 2xx and 3xx.
pub fn invalidated(request: Request<'_>, response: Response<'_>) -> Vec<Target> {
    let _ = (request, response);
    todo!()
}

/// Whether the method is safe (RFC 9110 §9.2.1); unknown methods are not.
pub fn is_safe(method: &http::Method) -> bool {
    method.is_safe()
}
