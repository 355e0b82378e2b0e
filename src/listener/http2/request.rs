//! A request of HTTP/2 in our terms, or why it is refused.

use crate::body::BodyStream;
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::{Refusal, RequestBody, RequestHead};
use crate::semantics::name;
use http::request::Parts;
use http_body::Body;
use hyper::body::Incoming;
use std::pin::Pin;

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: 400, reason }
}

/// The head. What is malformed by RFC 9113 §8 hyper refuses by itself.
pub(super) fn head(parts: &Parts, limits: &Limits) -> Result<RequestHead, Refusal> {
    if parts.method == http::Method::CONNECT {
        return Err(Refusal { status: 501, reason: "method" });
    }
    // Crumbs of a cookie are counted before they are put together.
    if parts.headers.len() > limits.header_count {
        return Err(Refusal { status: 431, reason: "header-count" });
    }
    let mut fields = http2::fields(&parts.headers).map_err(|_| bad("header"))?;
    if fields.wire().len() > limits.header_bytes {
        return Err(Refusal { status: 431, reason: "header-bytes" });
    }
    // :authority is what HTTP/1.1 has Host for; where both are there they say the same (RFC 9113 §8.3.1).
    if let Some(authority) = parts.uri.authority() {
        if !fields.values(name::HOST).all(|host| host.eq_ignore_ascii_case(authority.as_str().as_bytes())) {
            return Err(bad("host-disagrees"));
        }
        fields.remove(name::HOST);
        fields.append(name::HOST, authority.as_str()).map_err(|_| bad("authority"))?;
    }
    let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).as_bytes().to_vec();
    if target.len() > limits.url_bytes {
        return Err(Refusal { status: 414, reason: "url-bytes" });
    }
    if fields.has(name::EXPECT) && !fields.values(name::EXPECT).all(|value| value.eq_ignore_ascii_case(b"100-continue")) {
        return Err(Refusal { status: 417, reason: "expectation" });
    }
    fields.remove(name::TE);
    Ok(RequestHead { method: parts.method.clone(), target, minor_version: 1, fields })
}

/// The body. Its length was compared with what was announced, by hyper.
pub(super) fn body(head: &RequestHead, incoming: Incoming, limits: &Limits) -> Result<RequestBody, Refusal> {
    if incoming.is_end_stream() {
        return Ok(RequestBody::Empty);
    }
    let length = head.fields.text(name::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length: u64| length > limits.body_bytes) {
        return Err(Refusal { status: 413, reason: "body-bytes" });
    }
    let stream = http2::Incoming::new(incoming, limits.body_timeout, Some(limits.body_bytes));
    Ok(RequestBody::Stream { length, stream: Box::pin(stream) as Pin<Box<dyn BodyStream>> })
}
