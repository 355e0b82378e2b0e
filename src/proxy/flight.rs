//! A flight as the request path sees it: what those who join it leave there, what its leader publishes, and who may join
//! and use it (DESIGN section 5). Who waits is [`super::fill`], who fetches [`super::lead`].

use super::Proxy;
use super::exchange::Exchange;
use super::revalidate;
use crate::cache::{StoredHead, StoredResponse, Tags, subject};
use crate::clock;
use crate::coalesce::fill::{Fill, FillReader};
pub use crate::coalesce::flight::Failure;
use crate::coalesce::flight::{FlightKey, Follower, Join};
use crate::invalidation::Stamp;
use crate::listener::{InterimSender, NotTaken};
use crate::observe::metrics::Bound;
use crate::proxy::outcome::{Contact, Source, Timing};
use crate::semantics::reuse::{Reuse, Validity, reuse};
use crate::semantics::storage::NotStored;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{CacheKey, Fields, Method, name, range};
use crate::upstream::{Giver, Inbound, Unanswered};
use parking_lot::Mutex;
use std::sync::{Arc, OnceLock, Weak};

/// A stored response that cannot be used as it is: to be confirmed, or to stand in if the origin fails.
pub type Candidate = Option<(Arc<StoredResponse>, Validity)>;

/// What those who join a flight are told, and leave there: the stamp of its fetch, who wants interim responses, and
/// who could lead anew.
pub struct Departure {
    pub stamp: Stamp,
    /// The request is sent after this, boot-time milliseconds.
    since_mono_ms: u64,
    /// Once it is published: by its keys and groups a purge may have come between.
    pub head: OnceLock<Arc<StoredHead>>,
    pub interims: Interims,
    successors: Mutex<Vec<Weak<Exchange>>>,
}

impl Departure {
    pub fn new(stamp: Stamp) -> Self {
        Self {
            stamp,
            since_mono_ms: clock::now().mono_ms,
            head: OnceLock::new(),
            interims: Interims::default(),
            successors: Mutex::default(),
        }
    }

    /// Notes a request that waits for the head: it could lead anew. HEAD cannot.
    fn note(&self, exchange: &Arc<Exchange>) {
        if self.head.get().is_none() && exchange.method != Method::HEAD {
            self.successors.lock().push(Arc::downgrade(exchange));
        }
    }

    /// The first of those who wait and whose client is still there.
    pub fn successor(&self) -> Option<Arc<Exchange>> {
        self.successors.lock().iter().find_map(Weak::upgrade)
    }
}

/// Interim responses go to all who are there.
#[derive(Default)]
pub struct Interims(Mutex<Vec<InterimSender>>);

/// Clients of one flight that are told of interim responses; more are not.
const INTERIM_CLIENTS: usize = 16_384;

impl Interims {
    fn add(&self, sender: Option<InterimSender>) {
        let mut senders = self.0.lock();
        if senders.len() < INTERIM_CLIENTS {
            senders.extend(sender);
        }
    }

    /// The head is there: no more will come.
    pub fn end(&self) {
        *self.0.lock() = Vec::new();
    }

    pub fn tell(&self, proxy: &Proxy, interim: &crate::listener::Interim) {
        self.0.lock().retain(|sender| match sender.try_send(interim.clone()) {
            Ok(()) => true,
            Err(NotTaken::Full) => {
                proxy.metrics.bound(Bound::InterimDropped);
                true
            }
            Err(NotTaken::Closed) => false,
        });
    }
}

/// What a leader publishes.
pub struct FlightHead {
    pub head: Arc<StoredHead>,
    pub body: FlightBody,
    /// Found in this tier, and nobody here fetched it.
    pub found: Option<Source>,
    /// Another node fetched it while this one waited (`lease`).
    pub is_given: bool,
    /// The upstream's answer carried Age.
    pub had_age: bool,
    pub forward_status: u16,
    /// Storing is intended and certain enough to be said.
    pub sure: bool,
    /// Why a confirmed response could not be kept, or one is not to be kept yet.
    pub not_stored: Option<NotStored>,
    pub endpoint: Arc<str>,
    pub giver: Giver,
    /// Of the fetch: for the client that led.
    pub timing: Timing,
}

impl FlightHead {
    /// A head whose body is on its way.
    pub fn filling(proxy: &Proxy, head: &Arc<StoredHead>, fill: &Fill, inbound: &Inbound, too_early: Option<NotStored>) -> Self {
        let fits = inbound.length.is_some_and(|length| proxy.memory.is_sure_to_admit(length + SURE_MARGIN));
        Self {
            sure: fits && fill.unstored().is_none() && too_early.is_none(),
            not_stored: too_early,
            head: Arc::clone(head),
            body: FlightBody::Filling(fill.clone()),
            found: None,
            is_given: false,
            had_age: inbound.fields.has(name::AGE),
            forward_status: inbound.status.as_u16(),
            endpoint: Arc::clone(&inbound.endpoint),
            giver: inbound.giver,
            timing: Timing::of_fetch(inbound.connect, inbound.first_byte),
        }
    }

    /// The head of what is kept in blocks.
    pub fn in_blocks(proxy: &Proxy, record: &Arc<StoredResponse>, inbound: &Inbound) -> Self {
        let block = record.blocks().map_or(0, |blocks| blocks.size);
        Self {
            sure: proxy.memory.is_sure_to_admit(block + SURE_MARGIN),
            not_stored: None,
            head: Arc::clone(&record.head),
            body: FlightBody::Blocks(Arc::clone(record)),
            found: None,
            is_given: false,
            had_age: inbound.fields.has(name::AGE),
            forward_status: inbound.status.as_u16(),
            endpoint: Arc::clone(&inbound.endpoint),
            giver: inbound.giver,
            timing: Timing::of_fetch(inbound.connect, inbound.first_byte),
        }
    }

    /// What the tier that the fleet shares holds: nobody was asked for it.
    pub fn found(head: Arc<StoredHead>, body: FlightBody, is_given: bool) -> Self {
        Self {
            forward_status: head.status().as_u16(),
            head,
            body,
            found: Some(Source::Redis),
            is_given,
            had_age: true,
            sure: false,
            not_stored: None,
            endpoint: "".into(),
            giver: Giver::Origin,
            timing: Timing::default(),
        }
    }

    /// What the origin confirmed.
    pub fn confirmed(confirmed: revalidate::Confirmed, inbound: &Inbound) -> (Self, Own) {
        let revalidate::Confirmed { response, not_stored, own } = confirmed;
        let flight = Self {
            head: Arc::clone(&response.head),
            body: FlightBody::Confirmed(response),
            found: None,
            is_given: false,
            had_age: true,
            forward_status: inbound.status.as_u16(),
            sure: not_stored.is_none(),
            not_stored,
            endpoint: Arc::clone(&inbound.endpoint),
            giver: inbound.giver,
            timing: Timing::of_fetch(inbound.connect, inbound.first_byte),
        };
        (flight, Own { fields: own, ..Own::default() })
    }
}

/// What only the client that led gets.
#[derive(Default)]
pub struct Own {
    /// A reader that was there before the first byte.
    pub reader: Option<FillReader>,
    /// Fields that others may not be given.
    pub fields: Option<Box<Fields>>,
    /// What came of asking the tier that the fleet shares, before the origin was.
    pub contact: Contact,
}

/// Bytes of a flight.
pub enum FlightBody {
    Filling(Fill),
    /// The origin confirmed what was stored.
    Confirmed(Arc<StoredResponse>),
    /// It is kept in blocks, which are fetched as they are wanted.
    Blocks(Arc<StoredResponse>),
}

/// What a flight came to, for the client that led it.
pub enum Led {
    /// Deliver this.
    Shared(Arc<FlightHead>, Own),
    /// Nobody else may have it.
    Direct(Box<Inbound>, NotStored),
    Failed(Failure),
    /// What was to be confirmed is gone: ask again, without it.
    StartOver,
    /// It asked for a range of something large: to be forwarded as it came.
    AsItCame,
}

impl From<&Unanswered> for Failure {
    fn from(Unanswered { error, endpoint }: &Unanswered) -> Self {
        Self {
            status: error.status(),
            token: error.token(),
            text: error.to_string().into(),
            stale_may_be_served: error.stale_may_be_served(),
            endpoint: endpoint.clone(),
        }
    }
}

/// Weight of a stored response beside its body, at most, for the certainty of its admission.
const SURE_MARGIN: u64 = 8 * 1024;

/// Marks a key whose response is too large to be fetched whole for a range.
pub fn large_key(exchange: &Exchange) -> u128 {
    exchange.key.hash() ^ crate::semantics::key::hash128(b"large")
}

/// Markers are set on the secondary key where it is known.
pub fn marker_key(exchange: &Exchange, secondary: Option<&SecondaryKey>) -> u128 {
    match secondary {
        Some(secondary) if !secondary.0.is_empty() => exchange.key.hash() ^ crate::semantics::key::hash128(&secondary.0),
        _ => exchange.key.hash(),
    }
}

/// The secondary key as far as the key's Vary is known.
pub fn secondary_known(proxy: &Proxy, exchange: &Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>) -> Option<SecondaryKey> {
    if let Some((stored, _)) = candidate {
        return Some(stored.head.secondary.clone());
    }
    Some(proxy.vary_memory.get(exchange.key.hash())?.secondary_key(&exchange.fields, exchange.policy()))
}

fn flight_key(exchange: &Exchange, secondary: Option<SecondaryKey>) -> FlightKey {
    // No Vary and an empty secondary key are the same flight.
    FlightKey { key: Arc::clone(exchange.key.text()), secondary: secondary.filter(|secondary| !secondary.0.is_empty()) }
}

/// Whether a request that comes now may join a flight that began then: not if something was purged in between. Nor where
/// this node is cut off and cannot know that, unless the head is still to come: then it waits for that, so that one fetch
/// follows the other.
fn may_join(proxy: &Proxy, exchange: &Arc<Exchange>, departure: &Departure, interim: Option<&InterimSender>) -> bool {
    let joins = match departure.head.get() {
        Some(_) if exchange.standing.is_too_old(departure.since_mono_ms) => false,
        Some(head) => proxy.journal.validity(&head.subject(), &departure.stamp) == Validity::Valid,
        None => {
            let tags = Tags::default();
            let subject = subject(&exchange.key, &exchange.routed.site, &tags);
            proxy.journal.joinable(subject.url, subject.url_text, subject.authority, subject.site, &departure.stamp)
        }
    };
    if joins {
        if departure.head.get().is_none() {
            departure.interims.add(interim.cloned());
        }
        departure.note(exchange);
    }
    joins
}

pub fn join(
    proxy: &Proxy,
    exchange: &Arc<Exchange>,
    secondary: Option<SecondaryKey>,
    interim: Option<&InterimSender>,
) -> Join<FlightHead, Departure> {
    let depart = || {
        let departure = Departure::new(proxy.journal.stamp());
        departure.interims.add(interim.cloned());
        departure
    };
    proxy.flights.join(flight_key(exchange, secondary), |departure| may_join(proxy, exchange, departure, interim), depart)
}

pub fn follow_only(
    proxy: &Proxy,
    exchange: &Arc<Exchange>,
    secondary: Option<SecondaryKey>,
    interim: Option<&InterimSender>,
) -> Option<Follower<FlightHead>> {
    proxy.flights.follow(&flight_key(exchange, secondary), |departure| may_join(proxy, exchange, departure, interim))
}

/// What a follower may do with what a leader published.
pub enum Follow {
    Use,
    /// It is for other URLs than this one: this is the key that would be the request's by what the response says.
    Elsewhere(CacheKey),
    Regroup(SecondaryKey),
    /// It was asked for before the request came, which a node that is cut off has to count as too old.
    TooOld,
    Invalid,
    Alone,
}

/// The reuse decision of a follower, the same as for a stored response.
pub fn follow(proxy: &Proxy, exchange: &Exchange, flight: &FlightHead) -> Follow {
    let head = &flight.head;
    let policy = exchange.policy();
    // The same key, as a rule: then nothing has to be made anew.
    if head.key != exchange.key {
        let key = exchange.key_of(&head.fields);
        if head.key != key {
            return Follow::Elsewhere(key);
        }
    }
    if !head.facts.vary.matches(&exchange.fields, &head.secondary, policy) {
        return Follow::Regroup(head.facts.vary.secondary_key(&exchange.fields, policy));
    }
    if exchange.standing.is_too_old(head.sent_mono_ms) {
        return Follow::TooOld;
    }
    if proxy.journal.validity(&head.subject(), &head.stamp) != Validity::Valid {
        return Follow::Invalid;
    }
    match reuse(exchange.request(), &head.facts, policy, Validity::Valid, clock::now()) {
        Reuse::Fresh { .. } | Reuse::StaleNow { .. } => Follow::Use,
        Reuse::Revalidate { .. } | Reuse::Unusable(_) => Follow::Alone,
    }
}

/// Whether others may have it as it is: those who may not because it needs validation go on alone.
pub fn is_shareable(exchange: &Exchange, head: &StoredHead, now: crate::semantics::Now) -> bool {
    matches!(reuse(exchange.request(), &head.facts, exchange.policy(), Validity::Valid, now), Reuse::Fresh { .. } | Reuse::StaleNow { .. })
}

/// The first byte that a range asks for is too far beyond what has arrived for waiting to pay. One beyond the end of a
/// body whose length is declared has nothing to wait for.
pub fn is_far_ahead(exchange: &Exchange, fill: &Fill) -> bool {
    let is_far =
        |first| first > fill.arrived() + exchange.routed.settings.fill.range_ahead && fill.declared().is_none_or(|length| first < length);
    exchange.fields.has(name::RANGE) && range::first_byte(exchange.request()).is_some_and(is_far)
}
