//! A request of HTTP/2 in our terms, or why it is refused.

use crate::body::{BodyError, Chunk};
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::interim::Continue;
use crate::listener::paced::{Paced, Source};
use crate::listener::{Refusal, RequestBody, RequestHead};
use crate::semantics::{Fields, name};
use h2::RecvStream;
use h2::ext::Protocol;
use http::request::Parts;
use std::sync::Arc;
use std::task::{Context, Poll};

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: 400, reason }
}

/// The head. What is malformed by RFC 9113 §8 h2 refuses by itself.
pub(super) fn head(parts: &Parts, limits: &Limits) -> Result<RequestHead, Refusal> {
    let tunnel = parts.extensions.get::<Protocol>();
    if parts.method == http::Method::CONNECT && tunnel.is_none_or(|protocol| protocol.as_str() != WEBSOCKET) {
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
    if tunnel.is_some() && fields.get(name::CONTENT_LENGTH).is_some_and(|length| length != b"0") {
        return Err(bad("content-length")); // what follows is no content (RFC 9113 §8.5)
    }
    let method = if tunnel.is_some() { ask_to_upgrade(&mut fields)? } else { parts.method.clone() };
    Ok(RequestHead { method, target, minor_version: 1, fields })
}

/// The one protocol that extended CONNECT leads to here.
const WEBSOCKET: &str = "websocket";

/// Extended CONNECT in the words of HTTP/1.1 (RFC 8441 §5, RFC 6455 §4.1).
fn ask_to_upgrade(fields: &mut Fields) -> Result<http::Method, Refusal> {
    fields.remove("sec-websocket-key");
    let lines = [("connection", "upgrade"), ("upgrade", WEBSOCKET), ("sec-websocket-key", &nonce())];
    lines.iter().try_for_each(|(name, value)| fields.push(name, value)).map_err(|_| bad("header"))?;
    Ok(http::Method::GET)
}

/// Sixteen random bytes in base64: the last two bits of the 22nd digit are all that is left of the bytes.
fn nonce() -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits: u128 = rand::random();
    let mut digits = String::with_capacity(24);
    for _ in 0..21 {
        digits.push(char::from(DIGITS[(bits & 63) as usize]));
        bits >>= 6;
    }
    digits.push(char::from(DIGITS[((bits & 3) << 4) as usize]));
    digits + "=="
}

/// The body. Its length is compared with what was announced, by h2.
pub(super) fn body(
    head: &RequestHead,
    incoming: RecvStream,
    limits: &Arc<Limits>,
    expected: Option<Continue>,
) -> Result<RequestBody, Refusal> {
    if incoming.is_end_stream() {
        return Ok(RequestBody::Empty);
    }
    let length = head.fields.text(name::CONTENT_LENGTH).and_then(|length| length.parse().ok());
    if length.is_some_and(|length: u64| length > limits.body_bytes) {
        return Err(Refusal { status: 413, reason: "body-bytes" });
    }
    Ok(RequestBody::Stream { length, stream: Box::pin(Paced::new(incoming, limits, expected)) })
}

impl Source for RecvStream {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Chunk>, BodyError>> {
        http2::poll_next(self, context, |_| BodyError::Reset)
    }
}
