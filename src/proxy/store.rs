//! The store decision at the head of a response, and putting a whole response into the tiers.

use super::exchange::Exchange;
use super::flight::Candidate;
use super::{Proxy, dictionaries, remote};
use crate::cache::{Blocks, Insertion, StoredHead, StoredResponse, Tags, subject};
use crate::clock;
use crate::coalesce::fill::{CompleteBody, Fill};
use crate::coalesce::pinned::Kept;
use crate::invalidation::Stamp;
use crate::observe::log::RateLimit;
use crate::observe::metrics::Bound;
use crate::route;
use crate::semantics::freshness::{Facts, Governing};
use crate::semantics::reuse::Validity;
use crate::semantics::storage::{self, NotStored, Storage};
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{Fields, Method, Now, Response, StatusCode, forwarding, name};
use crate::tier::memory::{Change, Held};
use crate::upstream::Inbound;
use std::sync::Arc;

/// A fetch as it began: taken before the request is sent.
#[derive(Debug, Clone, Copy)]
pub struct Began {
    pub stamp: Stamp,
    pub fetch: u64,
    pub sent: Now,
}

/// May this response be stored? If so, the head that is kept; the response keeps its own fields either way. `old`: what
/// is stored and was not good enough for the request.
pub fn judge(
    proxy: &Proxy,
    exchange: &Exchange,
    inbound: &Inbound,
    began: &Began,
    received: Now,
    old: &Candidate,
) -> Result<Arc<StoredHead>, NotStored> {
    let response = Response { status: inbound.status, fields: &inbound.fields };
    let judged = decide(proxy, exchange, response, inbound.length, began, received).map(Arc::new);
    note(proxy, exchange, inbound, began, old, judged.as_ref().err().copied());
    if let Ok(head) = &judged {
        proxy.learn_search_rule(exchange, &head.fields, old.as_ref().map(|(old, _)| &*old.head));
    }
    judged
}

/// May the response of which this is the head, or the head of a part, be kept in blocks? If so, its record: it says how
/// long the whole is, and no limit on what is stored whole counts.
pub fn judge_blocks(
    proxy: &Proxy,
    exchange: &Exchange,
    inbound: &Inbound,
    blocks: Blocks,
    began: &Began,
    old: &Candidate,
) -> Result<Arc<StoredResponse>, NotStored> {
    let received = clock::now();
    let mut fields = inbound.fields.clone();
    // Of a part, not of the representation.
    for field in ["content-length", "content-range", "content-digest"] {
        fields.remove(field);
    }
    let response = Response { status: StatusCode::OK, fields: &fields };
    let judged = decide(proxy, exchange, response, None, began, received).map(|mut head| {
        super::deliver::line(&mut head.fields, name::CONTENT_LENGTH, itoa::Buffer::new().format(blocks.version.length()).as_bytes());
        Arc::new(StoredResponse::in_blocks(Arc::new(head), blocks, exchange.policy(), received))
    });
    let judged = judged.and_then(|record| if record.drop_at_mono_ms > received.mono_ms { Ok(record) } else { Err(NotStored::NoFreshness) });
    note(proxy, exchange, inbound, began, old, judged.as_ref().err().copied());
    if let Ok(record) = &judged {
        proxy.learn_search_rule(exchange, &record.head.fields, old.as_ref().map(|(old, _)| &*old.head));
        insert(proxy, exchange, record, 1, received);
    }
    judged
}

/// Remembers why a key is not stored, for `explain`, and takes out what its origin withdrew.
fn note(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound, began: &Began, old: &Candidate, not_stored: Option<NotStored>) {
    match not_stored {
        None => proxy.refusals.forget(exchange.key.hash()),
        Some(why) => {
            proxy.refusals.note(exchange.key.hash(), why);
            if let Some((old, _)) = old
                && withdraws(exchange, inbound, why)
            {
                remove(proxy, &old.head, began.fetch);
            }
        }
    }
}

/// Whether the answer to an unsafe method is what a GET on this route would get from now on, and so may be stored.
pub fn represents_target(proxy: &Proxy, exchange: &Exchange, inbound: &Inbound, sent: Now, received: Now) -> bool {
    let may = exchange.policy().enabled && matches!(exchange.method, Method::POST | Method::PATCH);
    if !may || was_shaped_by_unkeyed(exchange) || goes_past_as_get(exchange) {
        return false;
    }
    let response = Response { status: inbound.status, fields: &inbound.fields };
    let facts = Facts::new(exchange.request(), response, &exchange.policy().targeted, sent, received);
    // Where another route answers a GET of the URL, what counts in its key is not known here.
    let is_of_get = || {
        let live = proxy.live.load();
        let routed = live.route(&exchange.target, &Method::GET, &exchange.fields);
        routed.is_some_and(|routed| Arc::ptr_eq(routed, &exchange.routed))
    };
    storage::represents_target(exchange.request(), response, &facts) && is_of_get()
}

/// It was sent as it came: what the key does not hold, fields or parameters, may have shaped the answer.
fn was_shaped_by_unkeyed(exchange: &Exchange) -> bool {
    let target = &exchange.target;
    forwarding::has_unkeyed(&exchange.fields) || exchange.routed.route.key.query_of(target).as_deref() != target.query()
}

/// A GET from this client would neither be answered from the cache nor fill it.
fn goes_past_as_get(exchange: &Exchange) -> bool {
    route::bypass(&exchange.routed.route, &exchange.target, &Method::GET, &exchange.fields).is_some()
}

/// Whether too few have asked for the key as yet (`cache.store_after`). What was stored before was asked for often enough.
/// It is shared with all who wait for it all the same, and only not kept.
pub fn too_early(proxy: &Proxy, exchange: &Exchange, candidate: &Candidate) -> Option<NotStored> {
    is_too_early(proxy, exchange, candidate).then(|| {
        proxy.refusals.note(exchange.key.hash(), NotStored::StoreAfter);
        NotStored::StoreAfter
    })
}

/// [`too_early`], when nothing has been fetched yet.
pub fn is_too_early(proxy: &Proxy, exchange: &Exchange, candidate: &Candidate) -> bool {
    let needed = exchange.policy().store_after;
    needed > 1 && candidate.is_none() && proxy.request_counts.requests(exchange.key.hash()) < needed
}

/// Whether the origin says with a new response that caches are to keep none: then the one of before goes, too, and is
/// no fallback for errors. RFC 9111 §4.3.3 leaves that open. What was answered to credentials says nothing of what
/// others would get, and an error nothing of what is stored.
fn withdraws(exchange: &Exchange, inbound: &Inbound, why: NotStored) -> bool {
    let is_personal = exchange.fields.has(name::COOKIE) || forwarding::has_credentials(&exchange.fields);
    inbound.status == StatusCode::OK && matches!(why, NotStored::NoStore | NotStored::Private) && !is_personal
}

fn decide(
    proxy: &Proxy,
    exchange: &Exchange,
    response: Response<'_>,
    length: Option<u64>,
    began: &Began,
    received: Now,
) -> Result<StoredHead, NotStored> {
    let policy = exchange.policy();
    let governing = Governing::read(response.fields, &policy.targeted, received);
    if let Some(why) = storage::forbidden(exchange.request(), response.status, &governing.directives, policy) {
        return Err(why);
    }
    let facts = Facts::governed(governing, exchange.request(), response, &policy.targeted, began.sent, received);
    let facts = facts.jittered(exchange.key.hash(), began.fetch);
    if let Storage::Not(why) = storage::may_store(exchange.request(), response, &facts, policy) {
        return Err(why);
    }
    if length.is_some_and(|length| length > policy.max_object_bytes) {
        proxy.metrics.bound(Bound::ObjectSize);
        return Err(NotStored::TooLarge);
    }
    if let Some(why) = proxy.no_room_for(length) {
        return Err(why);
    }
    let tags = Tags::parse(response.fields, exchange.target.origin(), &exchange.routed.settings.purge.keys).map_err(|_| {
        proxy.metrics.bound(Bound::SurrogateKeys);
        NotStored::TooManyKeys
    })?;
    let mut fields = storage::stored_fields(response, &facts, policy);
    super::deliver::strip_tags(&mut fields, &exchange.routed.route.forward_tags);
    fields.shrink();
    let secondary = facts.vary.secondary_key(&exchange.fields, policy);
    Ok(head(exchange, fields, facts, tags, secondary, began))
}

/// The fields that the client that asked may have and nobody else may be given from a store: those named by
/// `private="..."` or `no-cache="..."` (RFC 9111 §5.2.2.4, §5.2.2.7). `None` where there are none.
pub fn own_fields(received: &Fields, facts: &Facts) -> Option<Box<Fields>> {
    let directives = &facts.directives;
    let named = [&directives.rare().private_fields, &directives.rare().no_cache_fields];
    if named.iter().all(|names| names.is_empty()) {
        return None;
    }
    let is_named = |name: &[u8]| named.iter().any(|names| names.iter().any(|field| field.as_bytes() == name));
    let own = received.copy_if(|_, name, _| is_named(name));
    (!own.is_empty()).then(|| Box::new(own))
}

/// Takes a stored response out of the tiers that may not be kept, unless what is in memory by now came of a fetch after number
/// `before`.
pub fn remove(proxy: &Proxy, stored: &StoredHead, before: u64) {
    remote::withdraw(proxy, stored);
    proxy.memory.update(stored.key.hash(), |there| there.map_or(Change::Keep, |set| set.without(stored, before)));
}

/// A head around what was decided.
pub fn head(exchange: &Exchange, fields: Fields, facts: Facts, tags: Tags, secondary: SecondaryKey, began: &Began) -> StoredHead {
    StoredHead {
        key: exchange.key_of(&fields),
        fields,
        facts,
        secondary,
        stamp: began.stamp.into(),
        checked: Default::default(),
        tags,
        site: Arc::clone(&exchange.routed.site),
        fetch: began.fetch,
        sent_mono_ms: began.sent.mono_ms,
    }
}

/// Puts the whole body of a fill with its head into the tiers, unless a purge came while it was under way, or it was too early; its readers are
/// readers of that from then on.
pub fn whole(
    proxy: &Proxy,
    exchange: &Exchange,
    head: Arc<StoredHead>,
    body: CompleteBody,
    fill: &Fill,
    wanted: usize,
    too_early: Option<NotStored>,
) -> Result<Arc<StoredResponse>, NotStored> {
    let now = clock::now();
    if let Some(why) = too_early {
        proxy.metrics.not_stored(why);
        return Err(why);
    }
    if proxy.journal.validity(&subject(&head.key, &head.site, &head.tags), &head.stamp) == Validity::Purged {
        proxy.metrics.not_stored(NotStored::Purged);
        return Err(NotStored::Purged);
    }
    let kept = Kept::new(&body.segments, &proxy.pins);
    let bytes = Arc::clone(kept.body());
    let response = Arc::new(StoredResponse::new(head, kept, body.length, exchange.policy(), now));
    if response.drop_at_mono_ms <= now.mono_ms {
        proxy.metrics.not_stored(NotStored::NoFreshness);
        return Err(NotStored::NoFreshness);
    }
    insert(proxy, exchange, &response, wanted, now);
    fill.stored(&bytes);
    Ok(response)
}

/// Says that a key has more variants than are kept; where many have, now and then.
fn crowd(proxy: &Proxy, exchange: &Exchange, now: Now) {
    static LIMIT: RateLimit = RateLimit::new(WARN_INTERVAL_MS);
    proxy.metrics.bound(Bound::Variants);
    if let Some(held_back) = LIMIT.pass(now.mono_ms) {
        let (target, route) = (&exchange.target, &exchange.routed.route);
        let url = if route.log_query { target.as_str() } else { target.without_query() };
        let most = exchange.policy().max_variants;
        tracing::warn!(site = &*exchange.routed.site, route = route.name, url, most, held_back, "too many variants: the oldest go");
    }
}

/// Between two warnings of the same kind.
const WARN_INTERVAL_MS: u64 = 10_000;

/// Inserts; a response whose fetch began earlier than what is there loses.
pub fn insert(proxy: &Proxy, exchange: &Exchange, response: &Arc<StoredResponse>, wanted: usize, now: Now) {
    let hash = response.head.key.hash();
    let mut weight = None;
    if wanted > 1 {
        proxy.memory.mark_wanted(hash, wanted);
    }
    let selected = |other: &StoredHead| other.facts.vary.matches(&exchange.fields, &other.secondary, exchange.policy());
    proxy.memory.update(hash, |there| match response.joining(there, selected, exchange.policy().max_variants, &proxy.journal, now) {
        Insertion::Put { set, crowded } => {
            if crowded {
                crowd(proxy, exchange, now);
            }
            weight = Some(u64::from(set.weight()));
            Change::Put(Arc::new(set))
        }
        Insertion::Older => Change::Keep,
    });
    // What is stored under the URL alone would go on being found before what is for all equivalent ones.
    if response.head.key != *exchange.exact_key() {
        let there = proxy.memory.get(exchange.exact_key().hash());
        let older = there.iter().flat_map(StoredResponse::responses).filter(|other| selected(&other.head));
        for other in older.filter(|other| other.head.key == *exchange.exact_key()) {
            remove(proxy, &other.head, response.head.fetch);
        }
    }
    if let Some(weight) = weight {
        dictionaries::keep(proxy, exchange, response);
        proxy.metrics.stored(weight);
    }
}
