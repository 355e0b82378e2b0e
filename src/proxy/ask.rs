//! Asking for what is not here: the node that owns the key, else the upstream.

use super::Proxy;
use super::exchange::Exchange;
use super::shield::{self, Fetched};
use crate::cache::StoredResponse;
use crate::clock;
use crate::semantics::Now;
use crate::upstream::{FetchError, Outbound, Unanswered, Upstream};
use std::sync::Arc;

/// Who is asked, and when.
pub struct Way<'a> {
    /// Whether another node may be asked first.
    pub by_peer: bool,
    /// What is stored here, to be confirmed by the other node.
    pub confirming: Option<&'a Arc<StoredResponse>>,
    /// A purge of much is likely to be the reason: it waits for a place in that line of the upstream.
    pub after_purge: bool,
    /// The time, where nothing has been waited for since it was read.
    pub now: Option<Now>,
}

/// `request` is made once the upstream is to have it; `sent` becomes the time at which whoever answers was asked.
pub async fn ask(
    proxy: &Proxy,
    exchange: &Exchange,
    upstream: &Arc<Upstream>,
    mut way: Way<'_>,
    request: impl FnOnce() -> Result<Outbound, FetchError>,
    sent: &mut Now,
) -> Result<Fetched, Unanswered> {
    // What is rare is boxed: the future of a request that goes straight up stays small.
    if way.by_peer && exchange.routed.shield.is_some() {
        *sent = clock::now();
        if let Some(answered) = Box::pin(shield::fetch(proxy, exchange, &way)).await {
            return answered;
        }
        way.now = None;
    }
    let mut _place = None;
    if way.after_purge {
        _place = Some(Box::pin(upstream.place_after_purge()).await?);
        way.now = None;
    }
    *sent = way.now.unwrap_or_else(clock::now);
    upstream.send(request()?).await.map(Fetched::from)
}
