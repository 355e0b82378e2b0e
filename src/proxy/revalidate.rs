//! Stale: ask the origin, update; in the background for stale-while-revalidate (RFC 9111 §4.3, RFC 5861 §3).

use super::exchange::{Arrival, Exchange};
use super::flight::Departure;
use super::store::{self, Began};
use super::{Proxy, lead, remote};
use crate::cache::{StoredHead, StoredResponse, Tags, subject};
use crate::clock;
use crate::coalesce::flight::{FlightKey, Join};
use crate::coalesce::lease::Lease;
use crate::observe::metrics::RefreshOutcome;
use crate::semantics::freshness::Facts;
use crate::semantics::key::hash128;
use crate::semantics::reuse::Validity;
use crate::semantics::storage::{self, NotStored, Storage};
use crate::semantics::{Fields, Method, Now, Response, StatusCode, date, name, validation};
use crate::upstream::Inbound;
use std::borrow::Cow;
use std::sync::Arc;

/// The response that the answer would confirm is not usable any more.
pub struct Gone;

/// What a 304, or a 200 to HEAD, made of a stored response.
pub struct Confirmed {
    /// The updated response, in the tiers unless it may not be stored.
    pub response: Arc<StoredResponse>,
    /// The answer forbade to keep it (no-store, private, Set-Cookie...): it is for whoever asked.
    pub not_stored: Option<NotStored>,
    /// Fields for whoever asked alone.
    pub own: Option<Box<Fields>>,
}

impl Confirmed {
    /// Offers it to the tier that the fleet shares, if it was kept.
    pub fn offer(&self, proxy: &Proxy, exchange: &Exchange, inbound: &Inbound, sent: Now, lease: Option<Lease>) {
        if self.not_stored.is_none() {
            remote::offer(proxy, exchange, &self.response, sent, inbound.giver, lease);
        }
    }
}

/// Whether an answer confirms a stored response: a 304, or a 200 to HEAD that fits it (RFC 9111 §4.3.5).
pub fn is_confirmed(exchange: &Exchange, inbound: &Inbound, stored: &StoredResponse) -> bool {
    inbound.status == StatusCode::NOT_MODIFIED || (exchange.method == Method::HEAD && fits(inbound, stored))
}

fn fits(inbound: &Inbound, stored: &StoredResponse) -> bool {
    let head = Response { status: inbound.status, fields: &inbound.fields };
    validation::head_fits(head, stored.head.as_response(), stored.length)
}

/// The confirmed response, updated, and stored if the rules allow it still; its stamp is the conditional request's. So
/// are others that the request could have chosen and that the answer means too (RFC 9111 §4.3.4, §4.3.5).
///
/// It is usable only if no entry since that stamp matches it under its old keys or its new ones (DESIGN section 6).
pub fn confirm(
    proxy: &Proxy,
    exchange: &Exchange,
    stored: &Arc<StoredResponse>,
    inbound: &Inbound,
    began: &Began,
    received: Now,
) -> Result<Confirmed, Gone> {
    let tags = still_usable(proxy, exchange, &stored.head, inbound, began)?;
    for other in selected(proxy, exchange).iter().filter(|other| !Arc::ptr_eq(&other.head, &stored.head)) {
        let meant = if inbound.status == StatusCode::NOT_MODIFIED {
            validation::also_selects(&inbound.fields, &other.head.fields, &other.head.facts)
        } else {
            fits(inbound, other)
        };
        if meant && let Ok(tags) = still_usable(proxy, exchange, &other.head, inbound, began) {
            // It stays as it is where it cannot be updated.
            if let Ok(confirmed) = update(proxy, exchange, other, tags, inbound, began, received) {
                confirmed.offer(proxy, exchange, inbound, began.sent, None);
            }
        }
    }
    update(proxy, exchange, stored, tags, inbound, began, received)
}

/// A 200 to HEAD that does not fit what is stored: that is taken as stale from now on (RFC 9111 §4.3.5). What is stale
/// already stays as it is, to stand in for errors.
pub fn doubt(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound, began: &Began, now: Now) {
    let is_fresh = |stored: &StoredResponse| stored.head.facts.lifetime(exchange.policy()).ms > stored.head.facts.age_ms(now);
    for stored in selected(proxy, exchange).iter().filter(|stored| is_fresh(stored) && !fits(inbound, stored)) {
        store::remove(proxy, &stored.head, began.fetch);
    }
}

/// The stored responses that the request could choose, but for freshness (RFC 9111 §4.3.4).
fn selected(proxy: &Proxy, exchange: &Exchange) -> Vec<Arc<StoredResponse>> {
    let set = proxy.memory.get(exchange.key.hash()).filter(|set| set.head.key == exchange.key);
    let selects =
        |stored: &&Arc<StoredResponse>| stored.head.facts.vary.matches(&exchange.fields, &stored.head.secondary, exchange.policy());
    set.map(|set| set.responses().iter().filter(selects).cloned().collect()).unwrap_or_default()
}

/// A stored response with the fields of what confirmed it, in the tiers if it may be kept. One that is kept in blocks is
/// gone if it has no strong entity tag any more.
fn update(
    proxy: &Proxy,
    exchange: &Exchange,
    stored: &Arc<StoredResponse>,
    tags: Tags,
    inbound: &Inbound,
    began: &Began,
    received: Now,
) -> Result<Confirmed, Gone> {
    let (old, policy) = (&stored.head, exchange.policy());
    let merged = validation::update(&old.facts.received_fields(&old.fields), &inbound.fields);
    let facts = facts_after(exchange, stored, &merged, inbound, began, received);
    let response = Response { status: old.status(), fields: &merged };
    // No limit on what is stored whole is for what is kept in blocks.
    let mut judged = Cow::Borrowed(&merged);
    if stored.blocks().is_some() {
        judged.to_mut().remove(name::CONTENT_LENGTH);
    }
    let judged = Response { status: old.status(), fields: &judged };
    let not_stored = match storage::may_store(exchange.as_stored(), judged, &facts, policy) {
        Storage::Stored => None,
        Storage::Not(why) => Some(why),
    };
    let own = store::own_fields(&inbound.fields, &facts);
    let mut fields = match not_stored {
        None => storage::stored_fields(response, &facts, policy),
        Some(_) => dated(merged, &facts),
    };
    super::deliver::strip_consumed(&mut fields, policy);
    super::deliver::strip_tags(&mut fields, &exchange.routed.route.forward_tags);
    fields.shrink();
    let secondary = facts.vary.secondary_key(&exchange.fields, policy);
    let head = Arc::new(store::head(exchange, fields, facts, tags, secondary, began));
    let response = Arc::new(stored.with_head(head, policy, received).ok_or(Gone)?);
    proxy.learn_search_rule(exchange, &response.head.fields, Some(old));
    match not_stored {
        None => {
            if is_elsewhere(old, &response.head) {
                store::remove(proxy, old, began.fetch);
            }
            store::insert(proxy, exchange, &response, 1, received);
        }
        Some(why) => {
            proxy.metrics.not_stored(why);
            // What is wrong with this request alone says nothing about what is stored.
            if why.is_of_response() {
                store::remove(proxy, old, began.fetch);
            }
        }
    }
    Ok(Confirmed { response, not_stored, own })
}

/// Whether an update changed what selects the response (Vary, No-Vary-Search): then it is not replaced where it stands.
fn is_elsewhere(old: &StoredHead, new: &StoredHead) -> bool {
    old.key != new.key || old.facts.vary != new.facts.vary || old.secondary != new.secondary
}

/// Whether the answer means this response, and neither it nor what it becomes was purged; its tags from now on.
fn still_usable(proxy: &Proxy, exchange: &Exchange, old: &StoredHead, inbound: &Inbound, began: &Began) -> Result<Tags, Gone> {
    if !validation::selects(&inbound.fields, &old.fields, &old.facts) {
        return Err(Gone);
    }
    // What it was stamped with before says whether it was purged before the conditional request was sent.
    if proxy.journal.validity(&old.subject(), &old.stamp) == Validity::Purged {
        return Err(Gone);
    }
    let tags = if super::deliver::has_tags(&inbound.fields) {
        Tags::parse(&inbound.fields, exchange.target.origin(), &exchange.routed.settings.purge.keys).map_err(|_| Gone)?
    } else {
        old.tags.clone()
    };
    let union = old.tags.union(&tags);
    if proxy.journal.validity(&subject(&old.key, &old.site, &union), &began.stamp) == Validity::Purged {
        return Err(Gone);
    }
    Ok(tags)
}

/// The updated fields as they go out once, dated by their receipt where the 304 was not (RFC 9110 §6.6.1).
fn dated(mut fields: Fields, facts: &Facts) -> Fields {
    if !fields.has(name::DATE) {
        super::deliver::line(&mut fields, name::DATE, &date::format(facts.date_ms));
    }
    fields
}

/// The 304's Age counts for the age of what it confirms, but is not kept as a field.
fn facts_after(exchange: &Exchange, stored: &StoredResponse, fields: &Fields, inbound: &Inbound, began: &Began, received: Now) -> Facts {
    let mut fields = Cow::Borrowed(fields);
    if let Some(age) = inbound.fields.get(name::AGE) {
        let _ = fields.to_mut().set(name::AGE, age); // a value that was a field is a field value
    }
    let response = Response { status: stored.head.status(), fields: &fields };
    Facts::new(exchange.request(), response, &exchange.policy().targeted, began.sent, received).jittered(exchange.key.hash(), began.fetch)
}

/// Refreshes a stored response that is being served, unless somebody does already or did in vain lately: then false.
pub fn in_background(proxy: &Arc<Proxy>, arrival: &Arrival<'_>, stored: &Arc<StoredResponse>) -> bool {
    let secondary = Some(stored.head.secondary.clone()).filter(|secondary| !secondary.0.is_empty());
    let failing = arrival.key.hash() ^ hash128(&stored.head.secondary.0);
    if proxy.failed_refreshes.is_set(failing, clock::now().mono_ms) {
        return false;
    }
    let key = FlightKey { key: Arc::clone(arrival.key.text()), secondary };
    let Join::Lead(leader) = proxy.flights.join(key, |_| true, || Departure::new(proxy.journal.stamp())) else { return false };
    let exchange = Exchange {
        method: if *arrival.method == Method::HEAD { Method::GET } else { arrival.method.clone() },
        minor_version: 1,
        fields: arrival.fields.clone().into_owned(),
        target: arrival.target.clone(),
        peer: arrival.peer.clone(),
        routed: Arc::clone(arrival.routed),
        key: arrival.key.clone(),
        exact: arrival.exact.clone(),
        client: arrival.client,
        trusted: arrival.trusted,
        request_id: super::exchange::new_request_id(),
        content: arrival.content.clone(),
        from_peer: arrival.from_peer.clone(),
        standing: arrival.standing,
    };
    let (proxy, stored) = (Arc::clone(proxy), Arc::clone(stored));
    tokio::spawn(async move {
        let status =
            lead::lead(Arc::clone(&proxy), Arc::new(exchange), leader, None, Some((Arc::clone(&stored), Validity::Valid)), true).await;
        // Where what came may not be kept, every further hit would ask again, and in vain.
        let outcome = match status.filter(|_| !is_held(&proxy, &stored)) {
            Some(304) => RefreshOutcome::NotModified,
            Some(status) if status < 500 => RefreshOutcome::Replaced,
            _ => RefreshOutcome::Failed,
        };
        match outcome {
            RefreshOutcome::Failed => proxy.count_marker(proxy.failed_refreshes.set(failing, clock::now().mono_ms)),
            _ => proxy.failed_refreshes.clear(failing),
        }
        proxy.metrics.refreshed(outcome);
    });
    true
}

/// Whether this very response is still what is stored, whatever was made of it meanwhile.
fn is_held(proxy: &Proxy, stored: &Arc<StoredResponse>) -> bool {
    let set = proxy.memory.get(stored.head.key.hash());
    set.is_some_and(|set| set.responses().iter().any(|response| Arc::ptr_eq(&response.head, &stored.head)))
}
