//! Stale: ask the origin, update; in the background for stale-while-revalidate (RFC 9111 §4.3, RFC 5861 §3).

use super::Proxy;
use super::exchange::{Arrival, Exchange};
use super::fill::{self, Departure};
use super::store::{self, Began};
use crate::cache::{StoredResponse, Tags, subject};
use crate::coalesce::flight::{FlightKey, Join};
use crate::observe::metrics::RefreshOutcome;
use crate::semantics::freshness::Facts;
use crate::semantics::reuse::Validity;
use crate::semantics::{Method, Now, Response, name, validation};
use crate::upstream::Inbound;
use std::borrow::Cow;
use std::sync::Arc;

/// The response that a 304 would confirm is not usable any more.
pub struct Gone;

/// A 304 for this stored response: the updated response, stored; its stamp is the conditional request's.
///
/// It is usable only if no entry since that stamp matches it under its old keys or its new ones (DESIGN section 6).
pub fn confirm(
    proxy: &Proxy,
    exchange: &Exchange,
    stored: &Arc<StoredResponse>,
    inbound: &Inbound,
    began: &Began,
    received: Now,
) -> Result<Arc<StoredResponse>, Gone> {
    let old = &stored.head;
    if !validation::selects(&inbound.fields, &old.facts) {
        return Err(Gone);
    }
    // What it was stamped with before says whether it was purged before the conditional request was sent.
    if proxy.journal.validity(&old.subject(), &old.stamp) == Validity::Purged {
        return Err(Gone);
    }
    let tags = if super::deliver::has_tags(&inbound.fields) {
        Tags::parse(&inbound.fields, exchange.target.origin(), &exchange.routed.settings.purge).map_err(|_| Gone)?
    } else {
        old.tags.clone()
    };
    let union = old.tags.union(&tags);
    if proxy.journal.validity(&subject(&old.key, &old.site, &union), &began.stamp) == Validity::Purged {
        return Err(Gone);
    }
    let mut fields = validation::update(&old.fields, &inbound.fields);
    let facts = facts_after(exchange, stored, &fields, inbound, began, received);
    super::deliver::strip_tags(&mut fields, &exchange.routed.route.forward_tags);
    fields.shrink();
    let secondary = facts.vary.secondary_key(&exchange.fields, exchange.policy());
    let head = Arc::new(store::head(exchange, old.status, fields, facts, tags, secondary, began));
    let updated = StoredResponse::new(head, Arc::clone(&stored.segments), stored.length, exchange.policy(), received);
    let updated = Arc::new(updated);
    store::insert(proxy, exchange, &updated, 1, received);
    Ok(updated)
}

/// The 304's Age counts for the age of what it confirms, but is not kept as a field.
fn facts_after(
    exchange: &Exchange,
    stored: &StoredResponse,
    fields: &crate::semantics::Fields,
    inbound: &Inbound,
    began: &Began,
    received: Now,
) -> Facts {
    let mut fields = Cow::Borrowed(fields);
    if let Some(age) = inbound.fields.get(name::AGE) {
        let _ = fields.to_mut().set(name::AGE, age); // a value that was a field is a field value
    }
    let response = Response { status: stored.head.status, fields: &fields };
    Facts::new(exchange.request(), response, began.sent, received)
}

/// Refreshes a stored response that is being served stale, unless somebody does already.
pub fn in_background(proxy: &Arc<Proxy>, arrival: &Arrival<'_>, stored: &Arc<StoredResponse>) {
    let secondary = Some(stored.head.secondary.clone()).filter(|secondary| !secondary.0.is_empty());
    let key = FlightKey { key: Arc::clone(arrival.key.text()), secondary };
    let Join::Lead(leader) = proxy.flights.join(key, |_| true, || Departure::new(proxy.journal.stamp())) else { return };
    let exchange = Exchange {
        method: Method::GET,
        minor_version: 1,
        fields: arrival.fields.clone().into_owned(),
        target: arrival.target.clone(),
        peer: arrival.peer.clone(),
        routed: Arc::clone(&arrival.routed),
        key: arrival.key.clone(),
        client: arrival.client,
        trusted: arrival.trusted,
        request_id: super::exchange::new_request_id(),
    };
    let (proxy, stored) = (Arc::clone(proxy), Arc::clone(stored));
    tokio::spawn(async move {
        let metrics = Arc::clone(&proxy.metrics);
        let status = fill::lead(proxy, Arc::new(exchange), leader, None, Some((stored, Validity::Valid)), true).await;
        metrics.refreshed(match status {
            Some(304) => RefreshOutcome::NotModified,
            Some(status) if status < 500 => RefreshOutcome::Replaced,
            _ => RefreshOutcome::Failed,
        });
    });
}
