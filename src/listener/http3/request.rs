//! A request of HTTP/3 in our terms.

use super::quic;
use crate::body::{BodyError, Chunk};
use crate::clock;
use crate::config::settings::Limits;
use crate::http2;
use crate::listener::interim::Continue;
use crate::listener::paced::{Paced, Source};
use crate::listener::{Refusal, RequestBody};
use bytes::{Buf, Bytes};
use h3::error::StreamError;
use h3::server::RequestStream;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderName, Method};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// What RFC 9114 §4.2 forbids and h3 lets through: fields of a connection, and a TE that asks for more than trailers.
pub(super) fn is_malformed(parts: &Parts) -> bool {
    const OF_CONNECTION: [HeaderName; 5] =
        [CONNECTION, TRANSFER_ENCODING, UPGRADE, HeaderName::from_static("keep-alive"), HeaderName::from_static("proxy-connection")];
    let te_is_odd = || parts.headers.get_all(TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let mut lengths = parts.headers.get_all(CONTENT_LENGTH).iter();
    let (length, another) = (lengths.next(), lengths.next());
    OF_CONNECTION.iter().any(|name| parts.headers.contains_key(name))
        || te_is_odd()
        || another.is_some()
        || length.is_some_and(|length| number(length.as_bytes()).is_none())
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

type Receive = RequestStream<quic::RecvStream, Bytes>;

/// A request body as it comes. The client may send no faster than this is read (flow control); dropping it says so to the
/// client.
pub(super) struct Incoming {
    receive: Receive,
    /// Taken already.
    first: Option<Bytes>,
    /// Bytes that are to come, where that was announced.
    announced: Option<u64>,
    is_empty: bool,
}

impl Incoming {
    /// Where nothing says whether a request that has no body as a rule has one, what comes first does. `None` where nothing
    /// comes in time.
    pub(super) async fn begin(receive: Receive, parts: &Parts, limits: &Limits) -> Option<Self> {
        let announced = parts.headers.get(CONTENT_LENGTH).and_then(|length| number(length.as_bytes()));
        let mut body = Self { receive, first: None, announced, is_empty: announced == Some(0) };
        // Who says what it expects before its body has one, and does not send it before.
        let is_bodiless = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) && !parts.headers.contains_key(EXPECT);
        if announced.is_none() && is_bodiless {
            let first = clock::timeout(limits.header_timeout, poll_fn(|context| body.poll_data(context))).await.ok()?.ok()?;
            (body.is_empty, body.first) = (first.is_none(), first);
        }
        Some(body)
    }

    pub(super) fn into_body(self, limits: &Arc<Limits>, expected: Option<Continue>) -> Result<RequestBody, Refusal> {
        if self.is_empty {
            return Ok(RequestBody::Empty);
        }
        if self.announced.is_some_and(|length| length > limits.body_bytes) {
            return Err(Refusal { status: 413, reason: "body-bytes" });
        }
        Ok(RequestBody::Stream { length: self.announced, stream: Box::pin(Paced::new(self, limits, expected)) })
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>> {
        let data = ready!(self.receive.poll_recv_data(context))?;
        Poll::Ready(Ok(data.map(|mut data| data.copy_to_bytes(data.remaining()))))
    }
}

impl Source for Incoming {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Chunk>, BodyError>> {
        let data = match self.first.take() {
            Some(first) => Some(first),
            None => loop {
                match ready!(self.poll_data(context)).map_err(|_| BodyError::Reset)? {
                    Some(data) if data.is_empty() => {}
                    data => break data,
                }
            },
        };
        if let Some(data) = data {
            if let Some(announced) = &mut self.announced {
                *announced = announced.checked_sub(data.len() as u64).ok_or(BodyError::Malformed)?;
            }
            return Poll::Ready(Ok(Some(Chunk::Data(data))));
        }
        if self.announced.is_some_and(|left| left > 0) {
            return Poll::Ready(Err(BodyError::Truncated));
        }
        let trailers = ready!(self.receive.poll_recv_trailers(context)).map_err(|_| BodyError::Reset)?;
        Poll::Ready(trailers.map_or(Ok(None), |trailers| http2::trailers(&trailers)))
    }
}
