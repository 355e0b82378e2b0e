//! Requests that are answered by what they carry: their content is read, becomes part of the cache key, and goes with
//! whatever fetches for them (RFC 10008 §2.7; POST where the route takes it so).
//!
//! What is longer than is read for that goes on past the cache as it comes, nothing of it lost.

use super::admit::Past;
use super::exchange::{Arrival, Exchange, PanicNote};
use super::flight::Failure;
use super::{Proxy, alone, answer};
use crate::body::{Again, BodyError, Chunk};
use crate::clock;
use crate::coalesce::budget::Charge;
use crate::listener::{Handled, InterimSender, InterimSlot, RequestBody, Response};
use crate::observe::metrics::Bound;
use crate::semantics::cache_status::Forward;
use crate::semantics::content::{self, Unkeyed};
use crate::semantics::reuse;
use crate::upstream::{FetchError, Unanswered};
use bytes::{Bytes, BytesMut};
use std::future::poll_fn;
use std::sync::Arc;

/// Content of a request, whole.
pub struct Content {
    bytes: Bytes,
    /// Of the memory for fills.
    _charge: Charge,
}

impl Content {
    /// To be sent, as often as needed.
    pub fn body(&self) -> RequestBody {
        RequestBody::Full(self.bytes.clone())
    }
}

/// Reads the content, then goes the way of any other request.
pub fn start(proxy: &Arc<Proxy>, arrival: Arrival<'_>, body: RequestBody, interim: &mut InterimSlot) -> Handled {
    let interim = (arrival.minor_version > 0).then(|| interim.sender());
    let (proxy, exchange) = (Arc::clone(proxy), arrival.own());
    Handled::Later(Box::pin(answered(proxy, exchange, body, interim)))
}

async fn answered(proxy: Arc<Proxy>, mut exchange: Exchange, body: RequestBody, interim: Option<InterimSender>) -> Box<Response> {
    let content = match gather(&proxy, body, exchange.policy().body_key.max_bytes).await {
        Ok(Gathered::Whole(content)) => content,
        Ok(Gathered::TooLarge(_)) if reuse::only_if_cached(exchange.request()) => {
            return Box::new(answer::not_cached(&exchange.routed, exchange.outcome()));
        }
        Ok(Gathered::TooLarge(body)) => {
            let exchange = Arc::new(exchange);
            let _note = PanicNote::on(Arc::clone(&exchange));
            return alone::pass(&proxy, &exchange, body, interim, Past::Content(Unkeyed::TooLarge)).await;
        }
        Err(error) => {
            let unanswered = Unanswered::from(FetchError::RequestBody(error));
            return Box::new(answer::failed(&proxy, &Arc::new(exchange), &Failure::from(&unanswered), Forward::Bypass, None));
        }
    };
    exchange.key = content::key(&exchange.key, &exchange.method, &exchange.fields, &content.bytes);
    exchange.content = Some(Arc::new(content));
    proxy.from_cache(exchange.arrival(), || interim, clock::now()).response().await
}

enum Gathered {
    Whole(Content),
    /// All of it, of which a part was read.
    TooLarge(RequestBody),
}

/// Reads a body of at most this many bytes, as far as there is memory for it.
async fn gather(proxy: &Proxy, body: RequestBody, bytes_max: u64) -> Result<Gathered, BodyError> {
    let (length, mut stream) = match body {
        RequestBody::Stream { length, stream } => (length, stream),
        RequestBody::Empty => return Ok(Gathered::Whole(Content { bytes: Bytes::new(), _charge: proxy.budget.empty() })),
        RequestBody::Full(bytes) => (Some(bytes.len() as u64), Box::pin(Again { first: Some(bytes), rest: None }) as _),
    };
    let (mut read, mut charge) = (BytesMut::new(), proxy.budget.empty());
    loop {
        match poll_fn(|context| stream.as_mut().poll_chunk(context)).await {
            None | Some(Ok(Chunk::Trailers(_))) => return Ok(Gathered::Whole(Content { bytes: read.freeze(), _charge: charge })),
            Some(Err(error)) => return Err(error),
            Some(Ok(Chunk::Data(bytes))) => {
                read.extend_from_slice(&bytes);
                let fits = read.len() as u64 <= bytes_max;
                if !fits || !charge.grow(bytes.len() as u64) {
                    proxy.metrics.bound(if fits { Bound::FillMemory } else { Bound::BodyKeyBytes });
                    let stream = Box::pin(Again { first: Some(read.freeze()), rest: Some(stream) });
                    return Ok(Gathered::TooLarge(RequestBody::Stream { length, stream }));
                }
            }
        }
    }
}
