//! A reader that was detached from a flight because it held others up goes on by itself (DESIGN section 5).
//!
//! What it has sent cannot be taken back, so what follows must be of the very same response: the rest is asked for
//! under the strong validator (RFC 9110 §13.1.5), and used only if the origin says that it is that. Otherwise the
//! client learns from an aborted connection that it has not got everything.

use super::Proxy;
use super::exchange::Exchange;
use super::forward;
use crate::body::{BodyError, BodyStream, Chunk};
use crate::cache::StoredHead;
use crate::coalesce::fill::FillReader;
use crate::observe::metrics::Bound;
use crate::semantics::{StatusCode, content, name, precondition, range};
use crate::upstream::Arriving;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// The bytes of a flight for one client: as a reader of the fill, and by a request of its own after it was detached.
pub struct Resuming {
    source: Source,
    /// What the client gets next.
    position: u64,
    /// Where its part ends, if not with the body.
    end: Option<u64>,
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    head: Arc<StoredHead>,
}

/// The rest of a body, from the origin.
type Rest = Arriving;

enum Source {
    Flight(FillReader),
    Asking(Pin<Box<dyn Future<Output = Option<Rest>> + Send>>),
    Own(Rest),
}

impl Resuming {
    /// `reader` begins at `start` of the response and ends at `end`; without one its bytes went already.
    pub fn new(
        reader: Option<FillReader>,
        start: u64,
        end: Option<u64>,
        proxy: &Arc<Proxy>,
        exchange: &Arc<Exchange>,
        head: &Arc<StoredHead>,
    ) -> Self {
        let (proxy, exchange, head) = (Arc::clone(proxy), Arc::clone(exchange), Arc::clone(head));
        let source = reader.map_or_else(|| asking(&exchange, &head, start, end), Source::Flight);
        Self { source, position: start, end, proxy, exchange, head }
    }
}

/// What was to be read here is asked for.
fn asking(exchange: &Arc<Exchange>, head: &Arc<StoredHead>, position: u64, end: Option<u64>) -> Source {
    let (exchange, head) = (Arc::clone(exchange), Arc::clone(head));
    Source::Asking(Box::pin(rest(exchange, head, position, end)))
}

impl BodyStream for Resuming {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        loop {
            this.source = match &mut this.source {
                Source::Flight(reader) => match ready!(Pin::new(reader).poll_chunk(context)) {
                    Some(Ok(Chunk::Data(bytes))) => {
                        this.position += bytes.len() as u64;
                        return Poll::Ready(Some(Ok(Chunk::Data(bytes))));
                    }
                    Some(Err(BodyError::Detached)) => {
                        this.proxy.metrics.bound(Bound::ReaderDetached);
                        asking(&this.exchange, &this.head, this.position, this.end)
                    }
                    other => return Poll::Ready(other),
                },
                Source::Asking(asking) => match ready!(asking.as_mut().poll(context)) {
                    Some(body) => Source::Own(body),
                    None => return Poll::Ready(Some(Err(BodyError::Detached))),
                },
                Source::Own(body) => return body.poll_chunk(context),
            };
        }
    }

    fn is_revoked(&self) -> bool {
        matches!(&self.source, Source::Flight(reader) if reader.is_revoked())
    }
}

/// The rest of the response from `position` on; `None` where the origin does not give it.
async fn rest(exchange: Arc<Exchange>, head: Arc<StoredHead>, position: u64, end: Option<u64>) -> Option<Rest> {
    let validator = head.fields.get(name::ETAG).filter(|tag| precondition::strong_match(tag, tag))?;
    // A write is never sent again, whatever is missing of its answer.
    if head.status() != StatusCode::OK || !content::is_safe(&exchange.method, exchange.policy()) {
        return None;
    }
    let range = match end {
        Some(end) => format!("bytes={position}-{}", end.saturating_sub(1)),
        None => format!("bytes={position}-"),
    };
    let request = forward::request(&exchange, forward::Kind::Rest { range, validator }, None).ok()?;
    let inbound = exchange.routed.upstream.as_ref()?.send(request).await.ok()?;
    let same = inbound.fields.get(name::ETAG).is_some_and(|tag| precondition::strong_match(tag, validator));
    let fits = inbound.fields.get(name::CONTENT_RANGE).is_some_and(|value| range::is_rest(value, position, end));
    (inbound.status == StatusCode::PARTIAL_CONTENT && same && fits).then_some(inbound.body?)
}
