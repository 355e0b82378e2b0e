//! Fetches that nobody else waits for: past the cache, and cacheable ones that do not line up.

use super::admit::Past;
use super::ask::{Way, ask};
use super::exchange::{Arrival, Exchange, PanicNote};
use super::flight::{Candidate, Failure, FlightHead, Own, is_shareable, marker_key};
use super::forms::Settling;
use super::lead::{is_origin_error, pump};
use super::shield::Fetched;
use super::store::{self, Began};
use super::{Proxy, answer, deliver, forward, purge, remote, revalidate};
use crate::cache::StoredHead;
use crate::clock;
use crate::coalesce::fill::Fill;
use crate::invalidation::Stamp;
use crate::listener::{Handled, InterimSender, InterimSlot, RequestBody, Response};
use crate::semantics::cache_status::Forward;
use crate::semantics::reuse::{Validity, may_serve_on_error_to};
use crate::semantics::storage::NotStored;
use crate::semantics::{Method, Now, StatusCode, content, name};
use crate::upstream::Inbound;
use std::sync::Arc;

/// Why a cacheable request goes on alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// `cache.collapse = false`.
    NotCollapsed,
    Authorization,
    /// Lately the key's responses could not be shared: this marker says so.
    Marked(u128),
    /// The flight that it followed came to a response that it may not have.
    NotShared,
    Head,
    /// Its range begins far beyond what has arrived.
    RangeAhead,
    /// It asks for a range of a response too large to be fetched whole for it.
    RangeOfLarge,
}

/// Sends a request past the cache.
pub fn past_the_cache(proxy: &Arc<Proxy>, arrival: Arrival<'_>, body: RequestBody, interim: &mut InterimSlot, why: Past) -> Handled {
    let interim = (arrival.minor_version > 0).then(|| interim.sender());
    let (proxy, exchange) = (Arc::clone(proxy), Arc::new(arrival.own()));
    Handled::Later(Box::pin(async move {
        let _note = PanicNote::on(Arc::clone(&exchange));
        pass(&proxy, &exchange, body, interim, why).await
    }))
}

/// The answer to a request that goes past the cache, or may have to for its content.
pub async fn pass(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    body: RequestBody,
    interim: Option<InterimSender>,
    why: Past,
) -> Box<Response> {
    let Some(upstream) = exchange.routed.upstream.clone() else { return Box::new(answer::no_upstream(exchange)) };
    let upgrade = matches!(why, Past::Upgrade);
    let forward = if matches!(why, Past::Method) { Forward::Method } else { Forward::Bypass };
    let (stamp, sent) = (proxy.journal.stamp(), clock::now());
    let answer = match forward::request(exchange, forward::Kind::AsItCame { body, upgrade }, interim) {
        Ok(request) => upstream.send(request).await,
        Err(error) => Err(error.into()),
    };
    Box::new(match answer {
        Err(unanswered) => answer::failed(proxy, exchange, &Failure::from(&unanswered), forward, None),
        Ok(inbound) if content::is_safe(&exchange.method, exchange.policy()) => deliver::past(proxy, exchange, inbound, &why),
        Ok(inbound) => written(proxy, exchange, inbound, stamp, sent, &why),
    })
}

/// The answer to an unsafe method. Who wrote reads its write: what is invalid is invalid before the head goes out (RFC
/// 9111 §4.4). What then represents the target is stored for those who GET it (RFC 9110 §9.3.3).
fn written(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, inbound: Inbound, stamp: Stamp, sent: Now, why: &Past) -> Response {
    let stamp = purge::by_unsafe_method(proxy, exchange, &inbound, &stamp);
    let received = clock::now();
    if let Some(stamp) = stamp
        && store::represents_target(proxy, exchange, &inbound, sent, received)
    {
        // Numbered by its answer: whatever GET began before has been invalidated by now.
        let began = Began { stamp, fetch: proxy.next_fetch(), sent };
        if let Ok(head) = store::judge(proxy, exchange, &inbound, &began, received, &None) {
            let too_early = store::too_early(proxy, exchange, &None);
            return keep(proxy, exchange, inbound, head, sent, Forward::Method, too_early);
        }
    }
    deliver::past(proxy, exchange, inbound, why)
}

/// Fetches for this request alone; stores what may be stored. `now` is the time, where nothing has been waited for since the
/// request came.
pub async fn fetch(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    interim: Option<InterimSender>,
    why: Forward,
    mut candidate: Candidate,
    reason: Reason,
    mut now: Option<Now>,
) -> Box<Response> {
    let Some(upstream) = exchange.routed.upstream.clone() else { return Box::new(answer::no_upstream(exchange)) };
    for _ in 0..2 {
        let mut began = Began { stamp: proxy.journal.stamp(), fetch: proxy.next_fetch(), sent: Now::default() };
        // A range is for GET alone (RFC 9110 §14.2): HEAD asks for the whole head.
        let whole = exchange.method == Method::HEAD || !exchange.fields.has(name::RANGE);
        let confirming = candidate.as_ref().filter(|(_, validity)| *validity != Validity::Purged && whole);
        let kind = match confirming {
            Some((stored, _)) => forward::Kind::Whole(Some(stored)),
            None => forward::Kind::OnItsTerms,
        };
        // What others may have stored for it is asked for; what is for this request alone goes straight up.
        let by_peer = whole && matches!(reason, Reason::Head | Reason::Authorization);
        // What nobody could share was fetched as often before the purge as after it.
        let after_purge = reason == Reason::NotCollapsed && proxy.is_recovering(exchange, candidate.as_ref());
        let way = Way { by_peer, confirming: confirming.map(|(stored, _)| stored), after_purge, now: now.take() };
        let request = || forward::request(exchange, kind, interim.clone());
        let inbound = match ask(proxy, exchange, &upstream, way, request, &mut began.sent).await {
            Ok(Fetched { inbound, stamp }) => {
                began.stamp = stamp.unwrap_or(began.stamp);
                inbound
            }
            Err(unanswered) => return Box::new(answer::failed(proxy, exchange, &Failure::from(&unanswered), why, candidate.as_ref())),
        };
        let received = clock::now();
        if let Some((stored, _)) = confirming.filter(|(stored, _)| revalidate::is_confirmed(exchange, &inbound, stored)) {
            match revalidate::confirm(proxy, exchange, stored, &inbound, &began, received) {
                Ok(confirmed) => {
                    if confirmed.not_stored.is_none() {
                        line_up_again(proxy, exchange, &confirmed.response.head, reason, received);
                    }
                    confirmed.offer(proxy, exchange, &inbound, began.sent, None);
                    let (flight, own) = FlightHead::confirmed(confirmed, &inbound);
                    return Box::new(deliver::led(proxy, exchange, &Arc::new(flight), own, why));
                }
                Err(revalidate::Gone) => {
                    candidate = None;
                    continue;
                }
            }
        }
        if let Some((stored, validity)) = &candidate
            && is_origin_error(&inbound)
            && may_serve_on_error_to(exchange.request(), &stored.head.facts, exchange.policy(), *validity, received)
        {
            return Box::new(deliver::instead(proxy, exchange, stored, Some(inbound.status.as_u16()), received));
        }
        if exchange.method == Method::HEAD && inbound.status == StatusCode::OK {
            revalidate::doubt(proxy, exchange, &inbound, &began, received);
        }
        return Box::new(judge(proxy, exchange, inbound, (&began, received), &candidate, why, reason));
    }
    let failure = Failure {
        status: 502,
        token: "http_protocol_error",
        text: "the origin confirmed what nobody asked about".into(),
        stale_may_be_served: false,
        endpoint: None,
    };
    Box::new(answer::failed(proxy, exchange, &failure, why, None))
}

fn judge(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    inbound: Inbound,
    (began, received): (&Began, Now),
    candidate: &Candidate,
    why: Forward,
    reason: Reason,
) -> Response {
    let head = match store::judge(proxy, exchange, &inbound, began, received, candidate) {
        Ok(head) => head,
        Err(not_stored) => {
            proxy.metrics.not_stored(not_stored);
            // A 304 or 206 answers the client's own condition or range: it says nothing of what others would get.
            let to_its_own = matches!(inbound.status.as_u16(), 206 | 304 | 412 | 416);
            if let Reason::Marked(marker) = reason
                && not_stored.is_of_response()
                && !to_its_own
            {
                proxy.set_marker(marker, received.mono_ms);
            }
            return deliver::direct(proxy, exchange, inbound, why, Some(not_stored));
        }
    };
    line_up_again(proxy, exchange, &head, reason, received);
    keep(proxy, exchange, inbound, head, began.sent, why, store::too_early(proxy, exchange, candidate))
}

/// Clears the marker that sent a request alone, and those that the response would be looked for by, where others may have the
/// response after all: by its Vary they may be others.
fn line_up_again(proxy: &Proxy, exchange: &Exchange, head: &StoredHead, reason: Reason, received: Now) {
    if let Reason::Marked(marker) = reason
        && is_shareable(exchange, head, received)
    {
        for marker in [marker, marker_key(exchange, Some(&head.secondary)), exchange.key.hash()] {
            proxy.markers.clear(marker);
        }
    }
}

/// Delivers an answer while it is stored, unless it is too early for that.
fn keep(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    mut inbound: Inbound,
    head: Arc<StoredHead>,
    sent: Now,
    why: Forward,
    too_early: Option<NotStored>,
) -> Response {
    let (writer, fill) =
        Fill::new(Arc::clone(&proxy.budget), &exchange.routed.settings.fill, inbound.length, exchange.policy().max_object_bytes);
    let own = Own { reader: fill.reader(0, None), fields: store::own_fields(&inbound.fields, &head.facts), ..Own::default() };
    let flight = Arc::new(FlightHead::filling(proxy, &head, &fill, &inbound, too_early));
    let (body, giver) = (inbound.body.take(), inbound.giver);
    let (task_proxy, task_exchange) = (Arc::clone(proxy), Arc::clone(exchange));
    let settling = Settling::of(proxy, &head);
    tokio::spawn(async move {
        let _settling = settling;
        if pump(body, writer, &fill, || {}).await
            && let Some(complete) = fill.complete()
        {
            // Counted there if not.
            if let Ok(stored) = store::whole(&task_proxy, &task_exchange, head, complete, &fill, 1, too_early) {
                remote::offer(&task_proxy, &task_exchange, &stored, sent, giver, None);
            }
        } else {
            task_proxy.metrics.not_stored(NotStored::Incomplete);
        }
    });
    deliver::led(proxy, exchange, &flight, own, why)
}
