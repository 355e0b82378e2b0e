//! From a stored response or a flight to an answer: preconditions, range, Age, Cache-Status, Via, body.

mod lines;
mod ranges;

pub use lines::{add_hsts, add_lines, add_own_lines, edit, has_tags, line, mend, strip_consumed, strip_tags};
pub use ranges::slices;

use super::Proxy;
use super::admit::Past;
use super::blocks::{self, BlockStream};
use super::dictionaries;
use super::exchange::{Arrival, Exchange};
use super::flight::{self, FlightBody, FlightHead, Own};
use super::forms::{self, Choice, Unmade};
use super::live::Routed;
use super::resume::Resuming;
use super::shield::FromPeer;
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody, Tunnel};
use crate::cache::{StoredHead, StoredResponse};
use crate::clock;
use crate::coalesce::fill::{Fill, FillReader};
use crate::listener::{ExtraLines, Response, ResponseFields};
use crate::observe::metrics::{Bound, CodedFrom, StaleReason};
use crate::proxy::outcome::{CacheResult, Contact, Negotiated, Outcome, Source, Timing};
use crate::semantics::cache_status::Forward;
use crate::semantics::coding;
use crate::semantics::policy::Compression;
use crate::semantics::precondition::{self, Precondition};
use crate::semantics::range::{self, Selection};
use crate::semantics::storage::NotStored;
use crate::semantics::widening::widening;
use crate::semantics::{CacheKey, Fields, Method, Now, Request, StatusCode, date, name, reuse};
use crate::upstream::{Arriving, Giver, Inbound};
use std::borrow::Cow;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// A stored response that answers without anybody being asked.
#[derive(Debug, Clone, Copy)]
pub struct Reused {
    /// A hit, or stale where policy lets that out at once.
    pub result: CacheResult,
    pub age_ms: u64,
    pub ttl_ms: i64,
}

impl Reused {
    fn outcome(self, outcome: Outcome) -> Outcome {
        let Self { result, age_ms, ttl_ms } = self;
        Outcome { result, source: Source::Memory, age_ms: Some(age_ms), ttl_ms: Some(ttl_ms), ..outcome }
    }
}

/// A stored response whose bytes are here: the hot path.
pub fn stored(
    proxy: &Arc<Proxy>,
    arrival: &Arrival<'_>,
    stored: &Arc<StoredResponse>,
    body: &Arc<StoredBody>,
    reused: Reused,
    now: Now,
) -> Response {
    let asked = Asked {
        proxy,
        request: arrival.request(),
        routed: arrival.routed,
        key: &arrival.key,
        own: None,
        from_peer: arrival.from_peer.as_deref(),
    };
    let body = Body::Stored { body, length: stored.length, response: stored };
    compose(&asked, &stored.head, body, Some(reused.age_ms), reused.outcome(arrival.outcome()), now)
}

/// The same for a request that goes on beyond the connection's call; the bytes may be in blocks.
pub fn reused(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, stored: &Arc<StoredResponse>, reused: Reused, now: Now) -> Response {
    let body = Body::of(stored, proxy, exchange);
    compose(&asked(proxy, exchange), &stored.head, body, Some(reused.age_ms), reused.outcome(exchange.outcome()), now)
}

/// What another request's fetch stored while this one was on its way.
pub fn filled(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, stored: &Arc<StoredResponse>, now: Now) -> Response {
    let age_ms = stored.head.facts.age_ms(now);
    let ttl_ms = ttl_ms(exchange, &stored.head, age_ms);
    reused(proxy, exchange, stored, Reused { result: CacheResult::Hit, age_ms, ttl_ms }, now)
}

/// A stale stored response instead of the origin's failure (RFC 5861 §4).
pub fn instead(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, stored: &Arc<StoredResponse>, status: Option<u16>, now: Now) -> Response {
    proxy.metrics.stale_served(StaleReason::Error);
    let mut outcome = exchange.outcome();
    outcome.result = CacheResult::Stale;
    outcome.source = Source::Memory;
    outcome.forward = Some(Forward::Stale);
    outcome.forward_status = status;
    outcome.detail = Some("STALE-IF-ERROR".into());
    let age_ms = stored.head.facts.age_ms(now);
    outcome.age_ms = Some(age_ms);
    outcome.ttl_ms = Some(ttl_ms(exchange, &stored.head, age_ms));
    compose(&asked(proxy, exchange), &stored.head, Body::of(stored, proxy, exchange), Some(age_ms), outcome, now)
}

/// The answer of a flight to the client that led it: what came, or what the origin just confirmed.
pub fn led(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, flight: &Arc<FlightHead>, own: Own, why: Forward) -> Response {
    let now = clock::now();
    if let Some(tier) = flight.found {
        return found(proxy, exchange, flight, tier, own.reader, now);
    }
    let mut outcome = exchange.outcome();
    outcome.result = CacheResult::Miss;
    outcome.source = source_of(flight.giver);
    outcome.detail = (flight.giver == Giver::Holder && flight.not_stored.is_none()).then(|| "WARM".into());
    if outcome.source == Source::Upstream && outcome.contact == Contact::Whole {
        outcome.contact = own.contact;
    }
    outcome.forward = Some(why);
    outcome.forward_status = Some(flight.forward_status);
    outcome.endpoint = Some(Arc::clone(&flight.endpoint));
    outcome.timing = flight.timing;
    outcome.stored = flight.sure;
    outcome.not_stored = flight.not_stored;
    // A response that comes from the origin has no Age unless another cache gave it one (RFC 9111 §5.1).
    let age_ms = flight.had_age.then(|| flight.head.facts.age_ms(now));
    let body = match &flight.body {
        FlightBody::Filling(fill) => {
            outcome.ttl_ms = Some(ttl_ms(exchange, &flight.head, flight.head.facts.initial_age_ms)); // as it was received
            Body::Flight { fill, reader: own.reader, proxy, exchange }
        }
        FlightBody::Confirmed(stored) => {
            outcome.result = CacheResult::Revalidated;
            outcome.source = Source::Memory;
            outcome.age_ms = age_ms;
            outcome.ttl_ms = age_ms.map(|age_ms| ttl_ms(exchange, &stored.head, age_ms));
            Body::of(stored, proxy, exchange)
        }
        FlightBody::Blocks(record) => Body::of(record, proxy, exchange),
    };
    compose(&Asked { own: own.fields.as_deref(), ..asked(proxy, exchange) }, &flight.head, body, age_ms, outcome, now)
}

/// The answer of a flight to a follower; `None` if its range begins too far beyond what has arrived, or its bytes went.
pub fn followed(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    flight: &Arc<FlightHead>,
    waited: Duration,
    why: Forward,
) -> Option<Response> {
    let now = clock::now();
    if let Some(tier) = flight.found {
        let reader = match &flight.body {
            FlightBody::Filling(fill) if flight::is_far_ahead(exchange, fill) => return None,
            FlightBody::Filling(fill) => Some(fill.reader(0, None)?),
            FlightBody::Confirmed(_) | FlightBody::Blocks(_) => None,
        };
        return Some(found(proxy, exchange, flight, tier, reader, now));
    }
    let mut outcome = exchange.outcome();
    outcome.result = CacheResult::Miss;
    outcome.source = Source::Flight;
    outcome.forward = Some(why);
    outcome.forward_status = Some(flight.forward_status);
    outcome.collapsed = true;
    outcome.timing.waited = Some(waited);
    let age_ms = flight.head.facts.age_ms(now);
    outcome.age_ms = Some(age_ms);
    outcome.ttl_ms = Some(ttl_ms(exchange, &flight.head, age_ms));
    let body = match &flight.body {
        FlightBody::Confirmed(stored) => {
            outcome.result = CacheResult::Revalidated;
            Body::of(stored, proxy, exchange)
        }
        FlightBody::Blocks(record) => Body::of(record, proxy, exchange),
        FlightBody::Filling(fill) => {
            if flight::is_far_ahead(exchange, fill) {
                return None;
            }
            Body::Flight { fill, reader: Some(fill.reader(0, None)?), proxy, exchange }
        }
    };
    Some(compose(&asked(proxy, exchange), &flight.head, body, Some(age_ms), outcome, now))
}

/// What a tier outside the process holds: a hit, though it had to be asked for.
fn found(
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    flight: &Arc<FlightHead>,
    tier: Source,
    reader: Option<FillReader>,
    now: Now,
) -> Response {
    let age_ms = flight.head.facts.age_ms(now);
    let ttl_ms = ttl_ms(exchange, &flight.head, age_ms);
    let mut outcome = exchange.outcome();
    outcome.result = if ttl_ms > 0 { CacheResult::Hit } else { CacheResult::Stale };
    outcome.source = tier;
    outcome.detail = flight.is_given.then(|| "LEASE".into());
    outcome.upstream = None;
    outcome.age_ms = Some(age_ms);
    outcome.ttl_ms = Some(ttl_ms);
    if ttl_ms <= 0 {
        proxy.metrics.stale_served(StaleReason::WhileRevalidate);
    }
    let body = match &flight.body {
        FlightBody::Filling(fill) => Body::Flight { fill, reader, proxy, exchange },
        FlightBody::Confirmed(stored) | FlightBody::Blocks(stored) => Body::of(stored, proxy, exchange),
    };
    compose(&asked(proxy, exchange), &flight.head, body, Some(age_ms), outcome, now)
}

/// A response that is for this client alone, streamed as it comes.
pub fn direct(proxy: &Proxy, exchange: &Exchange, inbound: Inbound, why: Forward, not_stored: Option<NotStored>) -> Response {
    let mut outcome = exchange.outcome();
    outcome.result = CacheResult::Miss;
    outcome.forward = Some(why);
    outcome.not_stored = not_stored;
    through(proxy, exchange, inbound, outcome)
}

/// A response to a request that went past the cache.
pub fn past(proxy: &Proxy, exchange: &Exchange, inbound: Inbound, why: &Past) -> Response {
    let mut outcome = exchange.outcome();
    outcome.result = CacheResult::Bypass;
    outcome.forward = Some(if matches!(why, Past::Method) { Forward::Method } else { Forward::Bypass });
    match why {
        Past::Method => outcome.not_stored = Some(NotStored::Method),
        Past::Disabled => outcome.not_stored = Some(NotStored::Disabled),
        Past::RequestNoStore => outcome.not_stored = Some(NotStored::RequestNoStore),
        Past::Rule(reason) => outcome.detail = Some(Arc::clone(reason)),
        Past::Upgrade => outcome.detail = Some("UPGRADE".into()),
        Past::Body => outcome.detail = Some("REQUEST-BODY".into()),
        Past::Content(why) => outcome.detail = Some(why.as_str().into()),
        Past::CutOff => {} // the record knows
    }
    through(proxy, exchange, inbound, outcome)
}

fn through(proxy: &Proxy, exchange: &Exchange, mut inbound: Inbound, mut outcome: Outcome) -> Response {
    forms::code_through(proxy, exchange, &mut inbound, &mut outcome);
    outcome.forward_status = Some(inbound.status.as_u16());
    outcome.source = source_of(inbound.giver);
    outcome.endpoint = Some(Arc::clone(&inbound.endpoint));
    outcome.timing = Timing::of_fetch(inbound.connect, inbound.first_byte);
    let route = &exchange.routed.route;
    let mut fields: Cow<'_, Fields> = Cow::Owned(inbound.fields);
    match &exchange.from_peer {
        None => {
            strip_consumed(fields.to_mut(), &route.cache);
            strip_tags(fields.to_mut(), &route.forward_tags);
            mend(&mut fields, &exchange.fields, route);
        }
        Some(from_peer) => from_peer.tell(fields.to_mut(), None),
    }
    let mut fields = fields.into_owned();
    if !fields.has(name::DATE) && inbound.status != 101 {
        line(&mut fields, name::DATE, &date::format(clock::now().wall_ms));
    }
    if exchange.from_peer.is_none() {
        edit(&mut fields, &route.response_edits);
    }
    add_lines(&mut fields, &exchange.routed, exchange.key.shown(), None, &outcome);
    let body = match (inbound.tunnel, inbound.body) {
        (Some(tunnel), _) => ResponseBody::Tunnel(tunnel as Box<dyn Tunnel>),
        (None, Some(Arriving::Whole(bytes))) => ResponseBody::Full(bytes),
        (None, Some(Arriving::Stream(stream))) => ResponseBody::Stream { length: inbound.length, stream },
        (None, None) => ResponseBody::Empty,
    };
    Response { status: inbound.status, fields: ResponseFields::Own(fields), body, close: false, outcome }
}

/// Whence the answer to a fetch came.
const fn source_of(giver: Giver) -> Source {
    if giver.is_peer() { Source::Shield } else { Source::Upstream }
}

fn ttl_ms(exchange: &Exchange, head: &StoredHead, age_ms: u64) -> i64 {
    let lifetime = head.facts.lifetime(exchange.policy()).ms;
    i64::try_from(lifetime).unwrap_or(i64::MAX).saturating_sub_unsigned(age_ms)
}

fn asked<'a>(proxy: &'a Arc<Proxy>, exchange: &'a Exchange) -> Asked<'a> {
    let from_peer = exchange.from_peer.as_deref();
    Asked { proxy, request: exchange.request(), routed: &exchange.routed, key: &exchange.key, own: None, from_peer }
}

/// Who asks, and on which route.
struct Asked<'a> {
    proxy: &'a Arc<Proxy>,
    request: Request<'a>,
    routed: &'a Arc<Routed>,
    key: &'a CacheKey,
    /// Fields that are for this client alone.
    own: Option<&'a Fields>,
    /// Another node of the fleet asks.
    from_peer: Option<&'a FromPeer>,
}

/// Where the bytes are.
pub enum Body<'a> {
    Stored {
        body: &'a Arc<StoredBody>,
        length: u64,
        response: &'a Arc<StoredResponse>,
    },
    /// In blocks: here, or fetched as they are wanted.
    Blocks {
        record: &'a Arc<StoredResponse>,
        proxy: &'a Arc<Proxy>,
        exchange: &'a Arc<Exchange>,
    },
    /// A reader that was there early, or `None` where the client that it was for needs no body.
    Flight {
        fill: &'a Fill,
        reader: Option<FillReader>,
        proxy: &'a Arc<Proxy>,
        exchange: &'a Arc<Exchange>,
    },
    /// In a coding in which it is not there yet.
    Unmade(Unmade<'a>),
}

impl<'a> Body<'a> {
    fn of(stored: &'a Arc<StoredResponse>, proxy: &'a Arc<Proxy>, exchange: &'a Arc<Exchange>) -> Self {
        match stored.body() {
            Some(body) => Self::Stored { body, length: stored.length, response: stored },
            None => Self::Blocks { record: stored, proxy, exchange },
        }
    }

    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Unmade(_) => None,
            Self::Stored { length, .. } => Some(*length),
            Self::Blocks { record, .. } => Some(record.length),
            Self::Flight { fill, .. } => fill.declared().or_else(|| fill.complete().map(|complete| complete.length)),
        }
    }

    /// Bytes `start..end` of it, the whole where there is no end.
    fn part(self, head: &Arc<StoredHead>, start: u64, end: Option<u64>) -> ResponseBody {
        let length = self.length();
        match self {
            Self::Unmade(unmade) => unmade.begin(), // whole: there are no ranges of it
            Self::Stored { length: 0, .. } => ResponseBody::Empty,
            Self::Stored { body, length, .. } => ResponseBody::Stored { body: Arc::clone(body), start, end: end.unwrap_or(length) },
            Self::Blocks { record, proxy, exchange } => {
                let range = start..end.unwrap_or(record.length);
                let length = Some(range.end - range.start);
                ResponseBody::Stream { length, stream: Box::pin(BlockStream::new(proxy, exchange, record, range)) }
            }
            Self::Flight { .. } if end.or(length) == Some(start) => ResponseBody::Empty,
            Self::Flight { fill, reader, proxy, exchange } => {
                let wanted = if start == 0 && end.is_none() { reader } else { fill.reader(start, end) };
                // Trailers need chunks (RFC 9112 §7.1.2), also where the length is known by now.
                let has_trailers = end.is_none() && fill.complete().is_some_and(|complete| complete.trailers.is_some());
                let length = end.or(length).filter(|_| !has_trailers).map(|end| end - start);
                ResponseBody::Stream { length, stream: following(wanted, start, end, proxy, exchange, head) }
            }
        }
    }

    /// Bytes `range` of it as a stream, one of several; `None` of a body that is at hand.
    fn stream(&self, head: &Arc<StoredHead>, range: std::ops::Range<u64>) -> Option<Pin<Box<dyn BodyStream>>> {
        match self {
            Self::Stored { .. } | Self::Unmade(_) => None,
            Self::Blocks { record, proxy, exchange } => Some(Box::pin(BlockStream::new(proxy, exchange, record, range))),
            Self::Flight { fill, proxy, exchange, .. } => {
                Some(following(fill.reader(range.start, Some(range.end)), range.start, Some(range.end), proxy, exchange, head))
            }
        }
    }

    /// All of what is on its way.
    pub fn stream_whole(self, head: &Arc<StoredHead>) -> Pin<Box<dyn BodyStream>> {
        match self.part(head, 0, None) {
            ResponseBody::Stream { stream, .. } => stream,
            _ => Box::pin(Failed),
        }
    }

    /// Notes what of these ranges is not here, where that can be.
    fn note(&self, ranges: &[std::ops::Range<u64>], outcome: &mut Outcome) {
        if let Self::Blocks { record, proxy, .. } = self {
            outcome.in_blocks = true;
            blocks::note(proxy, record, ranges, outcome);
        }
    }
}

/// What a reader of a flight gets; without one the fill failed, or its bytes went, before this client came: then never a
/// short body as a whole one.
fn following(
    reader: Option<FillReader>,
    start: u64,
    end: Option<u64>,
    proxy: &Arc<Proxy>,
    exchange: &Arc<Exchange>,
    head: &Arc<StoredHead>,
) -> Pin<Box<dyn BodyStream>> {
    match reader {
        Some(reader) => Box::pin(Resuming::new(Some(reader), start, end, proxy, exchange, head)),
        None => Box::pin(Failed),
    }
}

/// A body that ends before its first byte.
struct Failed;

pub fn failed() -> ResponseBody {
    ResponseBody::Stream { length: None, stream: Box::pin(Failed) }
}

impl BodyStream for Failed {
    fn poll_chunk(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        Poll::Ready(Some(Err(BodyError::Reset)))
    }
}

/// The answer made of a stored head and its body, in the coding that the client likes best where the route has that.
fn compose(asked: &Asked<'_>, head: &Arc<StoredHead>, body: Body<'_>, age_ms: Option<u64>, outcome: Outcome, now: Now) -> Response {
    match &asked.routed.route.cache.compression {
        // Another node codes for its own clients.
        Some(policy) if asked.from_peer.is_none() => in_coding(asked, policy, head, body, age_ms, outcome, now),
        _ => answer(asked, head, body, age_ms, outcome, now),
    }
}

/// Kept out of the way of hits on routes that code nothing.
#[inline(never)]
fn in_coding(
    asked: &Asked<'_>,
    policy: &Arc<Compression>,
    head: &Arc<StoredHead>,
    body: Body<'_>,
    age_ms: Option<u64>,
    mut outcome: Outcome,
    now: Now,
) -> Response {
    let made = match &body {
        Body::Stored { response, .. } => forms::by_policy(response, policy),
        _ => None,
    };
    let negotiated = match made {
        // They are of what may be coded.
        Some(made) if made.not_worth_it => Some(None),
        Some(_) => Some(forms::plain(asked.request, policy)),
        None if matches!(body, Body::Blocks { .. }) => None,
        None => forms::negotiate(asked.request, head.as_response(), body.length(), policy),
    };
    let takes_dictionary = policy.dictionaries().is_some() && negotiated.is_some() && !head.fields.has(name::CONTENT_ENCODING);
    let says_not = |field| !coding::varies_on(&head.fields, field);
    outcome.negotiated =
        Negotiated::new(negotiated.is_some() && says_not(name::ACCEPT_ENCODING), takes_dictionary && says_not(name::AVAILABLE_DICTIONARY));
    let mut choice = None;
    if takes_dictionary && asked.request.fields.has(name::AVAILABLE_DICTIONARY) {
        choice = dictionaries::choose(asked.proxy, asked.request, policy, head, body.length(), made);
    }
    let choice = choice.or_else(|| Some(forms::choose(negotiated.flatten()?, made)));
    let remade;
    let (head, body) = match (choice, body) {
        (Some(Choice::Made(form)), Body::Stored { response, .. }) => {
            outcome.coding = Some(form.id.coding);
            asked.proxy.metrics.coded(form.id.coding, CodedFrom::Store);
            asked.proxy.hot_forms.hit(&asked.proxy.metrics, policy, head, form);
            (&form.head, Body::Stored { body: form.body(), length: form.length, response })
        }
        (Some(Choice::Make(make)), body) => {
            outcome.coding = make.coding();
            remade = Arc::new(head.with_fields(make.fields(&head.fields)));
            let unmade = Unmade { proxy: asked.proxy, routed: asked.routed, policy, make, source: head, body: Box::new(body) };
            (&remade, Body::Unmade(unmade))
        }
        (_, body) => (head, body),
    };
    answer(asked, head, body, age_ms, outcome, now)
}

/// Conditions, ranges, and what this answer adds. Every hit comes by here: as a call it would move the whole record once more.
#[inline(always)]
fn answer(asked: &Asked<'_>, head: &Arc<StoredHead>, body: Body<'_>, age_ms: Option<u64>, mut outcome: Outcome, now: Now) -> Response {
    let stale_ms = outcome.ttl_ms.filter(|_| outcome.result == CacheResult::Stale).map(i64::unsigned_abs);
    outcome.widening = outcome.widening.or_else(|| widening(&head.facts, &asked.routed.route.cache, stale_ms));
    let fields = asked.request.fields;
    if is_conditional(fields) {
        match precondition::evaluate(asked.request, head.as_response(), now.wall_ms) {
            Precondition::Holds => {}
            Precondition::NotModified => {
                let mut fields = precondition::not_modified_fields(&for_client(asked, head, &outcome));
                if let Some(from_peer) = asked.from_peer {
                    from_peer.tell(&mut fields, Some(head));
                }
                return own(asked, StatusCode::NOT_MODIFIED, fields, ResponseBody::Empty, age_ms, outcome);
            }
            Precondition::Failed => {
                return own(asked, StatusCode::PRECONDITION_FAILED, dated(now), ResponseBody::Empty, None, outcome);
            }
        }
    }
    let length = body.length();
    if fields.has(name::RANGE)
        && head.status() == StatusCode::OK
        && outcome.coding.is_none()
        && let Some(length) = length
    {
        let parts_max = asked.routed.route.cache.range_parts_max;
        match range::select(asked.request, head.as_response(), length, parts_max, now.wall_ms) {
            Selection::Whole => {}
            Selection::TooMany => asked.proxy.metrics.bound(Bound::RangeParts),
            Selection::One(range) => {
                body.note(std::slice::from_ref(&range), &mut outcome);
                return ranges::one(asked, head, body, &range, length, age_ms, outcome);
            }
            Selection::Many(several) => {
                body.note(&several, &mut outcome);
                return ranges::several(asked, head, body, &several, length, age_ms, outcome);
            }
            Selection::Unsatisfiable => return ranges::unsatisfiable(asked, length, outcome, now),
        }
    }
    if let Body::Blocks { record, .. } = &body
        && *asked.request.method != Method::HEAD
    {
        body.note(std::slice::from_ref(&(0..record.length)), &mut outcome);
    }
    whole(asked, head, body, length, age_ms, outcome)
}

/// The beginning of an answer that we make ourselves (RFC 9110 §6.6.1).
fn dated(now: Now) -> Fields {
    let mut fields = Fields::new();
    line(&mut fields, name::DATE, &date::format(now.wall_ms));
    fields
}

fn whole(
    asked: &Asked<'_>,
    head: &Arc<StoredHead>,
    body: Body<'_>,
    length: Option<u64>,
    age_ms: Option<u64>,
    outcome: Outcome,
) -> Response {
    let is_head = *asked.request.method == Method::HEAD;
    let fields = for_client(asked, head, &outcome);
    let as_stored = asked.routed.route.response_edits.is_empty() && asked.from_peer.is_none();
    if as_stored && matches!(fields, Cow::Borrowed(_)) {
        let mut extra = ExtraLines::new();
        if is_head
            && !head.fields.has(name::CONTENT_LENGTH)
            && let Some(length) = length
        {
            line(&mut extra, name::CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
        }
        add_lines(&mut extra, asked.routed, asked.key.shown(), age_ms, &outcome);
        let body = if is_head { ResponseBody::Empty } else { body.part(head, 0, None) };
        let fields = ResponseFields::Stored { stored: Arc::clone(head), extra };
        return Response { status: head.status(), fields, body, close: false, outcome };
    }
    let mut fields = fields.into_owned();
    if let Some(from_peer) = asked.from_peer {
        fields = head.facts.received_fields(&fields).into_owned();
        from_peer.tell(&mut fields, Some(head));
    }
    if is_head
        && !fields.has(name::CONTENT_LENGTH)
        && let Some(length) = length
    {
        line(&mut fields, name::CONTENT_LENGTH, itoa::Buffer::new().format(length).as_bytes());
    }
    let body = if is_head { ResponseBody::Empty } else { body.part(head, 0, None) };
    own(asked, head.status(), fields, body, age_ms, outcome)
}

/// The stored fields as this client may have them: without those that may be reused only once the origin was asked
/// (RFC 9111 §5.2.2.4) and cookies that today's policy keeps back; with those that are for this client alone.
fn for_client<'h>(asked: &Asked<'_>, head: &'h StoredHead, outcome: &Outcome) -> Cow<'h, Fields> {
    let mut fields = Cow::Borrowed(&head.fields);
    let asked_for_it = outcome.forward != Some(Forward::Partial) && !outcome.collapsed;
    let origin_was_asked = matches!(outcome.result, CacheResult::Miss | CacheResult::Revalidated) && asked_for_it;
    if !origin_was_asked {
        for name in reuse::withheld_fields(&head.facts).iter().filter(|name| head.fields.contains(name.as_str())) {
            fields.to_mut().remove(name);
        }
        if head.fields.has(name::SET_COOKIE) && reuse::withholds_set_cookie(&head.facts, &asked.routed.route.cache) {
            fields.to_mut().remove(name::SET_COOKIE);
        }
    }
    if let Some(own) = asked.own {
        for (name, _) in own.iter() {
            fields.to_mut().remove(name);
        }
        for (name, value) in own.iter() {
            let added = fields.to_mut().push(name, value);
            debug_assert!(added.is_ok(), "they were fields before");
        }
    }
    if asked.from_peer.is_none() {
        mend(&mut fields, asked.request.fields, &asked.routed.route);
    }
    fields
}

fn own(asked: &Asked<'_>, status: StatusCode, mut fields: Fields, body: ResponseBody, age_ms: Option<u64>, outcome: Outcome) -> Response {
    if asked.from_peer.is_none() {
        edit(&mut fields, &asked.routed.route.response_edits);
    }
    add_lines(&mut fields, asked.routed, asked.key.shown(), age_ms, &outcome);
    Response { status, fields: ResponseFields::Own(fields), body, close: false, outcome }
}

fn is_conditional(fields: &Fields) -> bool {
    [name::IF_NONE_MATCH, name::IF_MODIFIED_SINCE, name::IF_MATCH, name::IF_UNMODIFIED_SINCE].iter().any(|name| fields.has(*name))
}
