//! Miss and revalidation: join or lead the flight for the key, fetch once, stream to everybody and store (DESIGN section 5).
//!
//! A flight's own task reads from the upstream; clients' connections only follow, the leader's too. What a flight comes
//! to is told to its client by [`Led`] and to followers by [`Published`].

use super::exchange::{Arrival, Exchange};
use super::store::{self, Began};
use super::{Proxy, alone, answer, deliver, forward, revalidate};
use crate::body::{BodyStream, Chunk};
use crate::cache::{StoredHead, StoredResponse, subject};
use crate::clock;
use crate::coalesce::fill::{Fill, FillReader, FillWriter, Unstored};
use crate::coalesce::flight::{FlightKey, Join, Leader, Published};
use crate::invalidation::Stamp;
use crate::listener::{Handled, InterimSender, InterimSlot, RequestBody, Response};
use crate::observe::metrics::{Bound, FollowOutcome};
use crate::semantics::cache_status::Forward;
use crate::semantics::reuse::{Reuse, Validity, may_serve_on_error, reuse};
use crate::semantics::storage::NotStored;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{Method, name, range};
use crate::upstream::{FetchError, Inbound};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// A stored response that cannot be used as it is: to be confirmed, or to stand in if the origin fails.
pub type Candidate = Option<(Arc<StoredResponse>, Validity)>;

/// What a flight knows from its start: the stamp of its fetch, and who wants interim responses.
pub struct Departure {
    pub stamp: Stamp,
    interims: Arc<Interims>,
}

impl Departure {
    pub fn new(stamp: Stamp) -> Self {
        Self { stamp, interims: Arc::default() }
    }
}

/// Interim responses go to all who are there.
#[derive(Default)]
struct Interims(Mutex<Vec<InterimSender>>);

impl Interims {
    fn add(&self, sender: Option<InterimSender>) {
        self.0.lock().extend(sender);
    }

    fn tell(&self, proxy: &Proxy, interim: &crate::listener::Interim) {
        self.0.lock().retain(|sender| match sender.try_send(interim.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                proxy.metrics.bound(Bound::InterimDropped);
                true
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
    }
}

/// What a leader publishes.
pub struct FlightHead {
    pub head: Arc<StoredHead>,
    pub body: FlightBody,
    /// The upstream's answer carried Age.
    pub had_age: bool,
    pub forward_status: u16,
    /// Storing is intended and certain enough to be said.
    pub sure: bool,
    pub endpoint: Arc<str>,
}

/// Bytes of a flight.
pub enum FlightBody {
    Filling(Fill),
    /// The origin confirmed what was stored.
    Confirmed(Arc<StoredResponse>),
}

/// What a flight came to, for the client that led it.
pub enum Led {
    /// Deliver this; the reader was there before the first byte.
    Shared(Arc<FlightHead>, Option<FillReader>),
    /// Nobody else may have it.
    Direct(Box<Inbound>, NotStored),
    Failed(Failure),
    /// What was to be confirmed is gone: ask again, without it.
    StartOver,
}

/// A failure that can be told to many.
#[derive(Debug, Clone)]
pub struct Failure {
    pub status: u16,
    /// RFC 9209 token.
    pub token: &'static str,
    pub text: Arc<str>,
    pub stale_may_be_served: bool,
}

impl From<&FetchError> for Failure {
    fn from(error: &FetchError) -> Self {
        Self { status: error.status(), token: error.token(), text: error.to_string().into(), stale_may_be_served: error.stale_may_be_served() }
    }
}

/// Sends a request on its way to the upstream, or to another's flight.
pub fn start(
    proxy: &Arc<Proxy>,
    arrival: Arrival<'_>,
    body: RequestBody,
    interim: &mut InterimSlot,
    why: Forward,
    candidate: Candidate,
) -> Handled {
    debug_assert!(matches!(body, RequestBody::Empty), "requests with a body go past the cache");
    let interim = (arrival.head.minor_version > 0).then(|| interim.sender());
    let exchange = Arc::new(arrival.own());
    Handled::Later(Box::pin(from_upstream(Arc::clone(proxy), exchange, interim, why, candidate)))
}

/// Rounds around the flight table: regrouping by Vary, a leader that died, leading anew. More would be a loop of ours.
const ROUNDS: usize = 6;

async fn from_upstream(proxy: Arc<Proxy>, exchange: Arc<Exchange>, interim: Option<InterimSender>, why: Forward, mut candidate: Candidate) -> Response {
    let (mut regrouped, mut anew) = (None, false);
    for _ in 0..ROUNDS {
        if let Some(reason) = goes_alone(&proxy, &exchange, candidate.as_ref()) {
            return alone::fetch(&proxy, &exchange, interim, why, candidate, reason).await;
        }
        let secondary = regrouped.clone().or_else(|| secondary_known(&proxy, &exchange, candidate.as_ref()));
        let mut follower = match join(&proxy, &exchange, secondary, interim.as_ref()) {
            Join::Full => {
                proxy.metrics.bound(Bound::Waiting);
                proxy.metrics.followed(FollowOutcome::Full, Duration::ZERO);
                return answer::failed(&proxy, &exchange, &too_many_waiting(), why, candidate.as_ref());
            }
            Join::Lead(leader) if exchange.method == Method::HEAD => {
                drop(leader); // HEAD may follow but never leads
                return alone::fetch(&proxy, &exchange, interim, why, candidate, alone::Reason::Head).await;
            }
            Join::Lead(leader) => {
                let (tell, told) = oneshot::channel();
                tokio::spawn(lead(Arc::clone(&proxy), Arc::clone(&exchange), leader, Some(tell), candidate.clone(), anew));
                match told.await {
                    Ok(Led::Shared(head, reader)) => return deliver::led(&exchange, &head, reader, why),
                    Ok(Led::Direct(inbound, reason)) => return deliver::direct(&exchange, *inbound, why, Some(reason)),
                    Ok(Led::Failed(failure)) => return answer::failed(&proxy, &exchange, &failure, why, candidate.as_ref()),
                    Ok(Led::StartOver) => candidate = None,
                    Err(_) => return answer::failed(&proxy, &exchange, &died(), why, candidate.as_ref()),
                }
                continue;
            }
            Join::Follow(follower) => follower,
        };
        let published = follower.wait().await;
        let waited = follower.waited();
        match published {
            Published::Head(head) => match follow(&proxy, &exchange, &head) {
                Follow::Use => {
                    if let Some(response) = deliver::followed(&exchange, &head, waited, why) {
                        proxy.metrics.followed(FollowOutcome::Served, waited);
                        return response;
                    }
                    return alone::fetch(&proxy, &exchange, interim, why, candidate, alone::Reason::RangeAhead).await;
                }
                Follow::Regroup(secondary) => {
                    proxy.metrics.followed(FollowOutcome::Regrouped, waited);
                    regrouped = Some(secondary);
                }
                Follow::Invalid => {} // purged since: whoever asks now leads anew
                Follow::Alone => {
                    proxy.metrics.followed(FollowOutcome::Alone, waited);
                    return alone::fetch(&proxy, &exchange, interim, why, candidate, alone::Reason::NotShared).await;
                }
            },
            Published::Alone => {
                proxy.metrics.followed(FollowOutcome::Alone, waited);
                return alone::fetch(&proxy, &exchange, interim, why, candidate, alone::Reason::NotShared).await;
            }
            Published::Failed(failure) => {
                proxy.metrics.followed(FollowOutcome::Failed, waited);
                return answer::failed(&proxy, &exchange, &failure, why, candidate.as_ref());
            }
            Published::LeadAnew | Published::Died => {
                proxy.metrics.followed(FollowOutcome::LedAnew, waited);
                anew = true;
            }
        }
    }
    alone::fetch(&proxy, &exchange, interim, why, candidate, alone::Reason::NotShared).await
}

fn too_many_waiting() -> Failure {
    Failure { status: 503, token: "connection_limit_reached", text: "too many requests wait for this response".into(), stale_may_be_served: true }
}

fn died() -> Failure {
    Failure { status: 500, token: "proxy_internal_error", text: "the fetch ended without a result".into(), stale_may_be_served: true }
}

/// Why a request does not wait for another's fetch, if so.
fn goes_alone(proxy: &Proxy, exchange: &Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>) -> Option<alone::Reason> {
    if !exchange.policy().collapse {
        return Some(alone::Reason::NotCollapsed);
    }
    // A stored response that this request selected despite Authorization shows that the key is shareable for it.
    if exchange.fields.has(name::AUTHORIZATION) && candidate.is_none() {
        return Some(alone::Reason::Authorization);
    }
    let secondary = secondary_known(proxy, exchange, candidate);
    proxy.markers.is_set(marker_key(exchange, secondary.as_ref()), clock::now().mono_ms).then_some(alone::Reason::Marked)
}

/// Markers are set on the secondary key where it is known.
pub fn marker_key(exchange: &Exchange, secondary: Option<&SecondaryKey>) -> u128 {
    match secondary {
        Some(secondary) if !secondary.0.is_empty() => exchange.key.hash() ^ crate::semantics::key::hash128(&secondary.0),
        _ => exchange.key.hash(),
    }
}

/// The secondary key as far as the key's Vary is known.
fn secondary_known(proxy: &Proxy, exchange: &Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>) -> Option<SecondaryKey> {
    if let Some((stored, _)) = candidate {
        return Some(stored.head.secondary.clone());
    }
    Some(proxy.vary_memory.get(exchange.key.hash())?.secondary_key(&exchange.fields, exchange.policy()))
}

fn join(proxy: &Proxy, exchange: &Exchange, secondary: Option<SecondaryKey>, interim: Option<&InterimSender>) -> Join<FlightHead, Departure> {
    // No Vary and an empty secondary key are the same flight.
    let key = FlightKey { key: Arc::clone(exchange.key.text()), secondary: secondary.filter(|secondary| !secondary.0.is_empty()) };
    let may_join = |departure: &Departure| {
        let tags = Default::default();
        let subject = subject(&exchange.key, &exchange.routed.site, &tags);
        let joins = proxy.journal.joinable(&subject, &departure.stamp);
        if joins {
            departure.interims.add(interim.cloned());
        }
        joins
    };
    let depart = || {
        let departure = Departure::new(proxy.journal.stamp());
        departure.interims.add(interim.cloned());
        departure
    };
    proxy.flights.join(key, may_join, depart)
}

enum Follow {
    Use,
    Regroup(SecondaryKey),
    Invalid,
    Alone,
}

/// The reuse decision of a follower, the same as for a stored response.
fn follow(proxy: &Proxy, exchange: &Exchange, flight: &FlightHead) -> Follow {
    let head = &flight.head;
    let policy = exchange.policy();
    if !head.facts.vary.matches(&exchange.fields, &head.secondary, policy) {
        return Follow::Regroup(head.facts.vary.secondary_key(&exchange.fields, policy));
    }
    if proxy.journal.validity(&head.subject(), &head.stamp) != Validity::Valid {
        return Follow::Invalid;
    }
    match reuse(exchange.request(), &head.facts, policy, Validity::Valid, clock::now()) {
        Reuse::Fresh { .. } | Reuse::StaleNow { .. } => Follow::Use,
        Reuse::Revalidate { .. } | Reuse::Unusable(_) => Follow::Alone,
    }
}

/// The task of a flight: fetches, tells, streams, stores. `client` is `None` for a background refresh.
pub async fn lead(
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    leader: Leader<FlightHead, Departure>,
    client: Option<oneshot::Sender<Led>>,
    candidate: Candidate,
    anew: bool,
) -> Option<u16> {
    proxy.metrics.flight_led();
    let began = Began { stamp: leader.stamp().stamp, fetch: proxy.next_fetch(), sent: clock::now() };
    // A hard-purged response is never a source of validators; one that is valid at the stamp may be confirmed.
    let confirming = candidate.as_ref().filter(|(_, validity)| *validity != Validity::Purged).map(|(stored, _)| Arc::clone(stored));
    let mut duty = Duty { proxy, exchange, leader, client, anew };
    let Some(result) = duty.fetch(confirming.as_ref()).await else { return None };
    match result {
        Err(error) => {
            duty.fail(&Failure::from(&error), error.is_shared());
            None
        }
        Ok(inbound) => {
            let status = inbound.status.as_u16();
            duty.head(inbound, began, candidate, confirming).await;
            Some(status)
        }
    }
}

/// The duty to tell everybody.
struct Duty {
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    leader: Leader<FlightHead, Departure>,
    client: Option<oneshot::Sender<Led>>,
    /// This flight leads anew after another failed: its failures are shared.
    anew: bool,
}

impl Duty {
    /// Asks the upstream; `None` if everybody left before there was a head.
    async fn fetch(&mut self, confirming: Option<&Arc<StoredResponse>>) -> Option<Result<Inbound, FetchError>> {
        let upstream = self.exchange.routed.upstream.clone()?;
        let (sender, mut interims) = mpsc::channel(16);
        let request = forward::request(&self.exchange, forward::Kind::Whole(confirming), Some(sender));
        let mut sending = Box::pin(upstream.send(request));
        loop {
            tokio::select! {
                biased;
                Some(interim) = interims.recv() => self.leader.stamp().interims.tell(&self.proxy, &interim),
                result = &mut sending => return Some(result),
                () = deserted(&mut self.client, &self.leader) => return None,
            }
        }
    }

    fn tell(&mut self, led: Led) {
        if let Some(client) = self.client.take() {
            let _ = client.send(led); // it may have left
        }
    }

    fn fail(&mut self, failure: &Failure, shared: bool) {
        let published = if shared || self.anew { Published::Failed(Arc::new(failure.clone())) } else { Published::LeadAnew };
        self.leader.publish(published);
        self.tell(Led::Failed(failure.clone()));
    }

    /// The head is there: decide, tell, stream, store.
    async fn head(&mut self, inbound: Inbound, began: Began, candidate: Candidate, confirming: Option<Arc<StoredResponse>>) {
        let received = clock::now();
        if let Some(stored) = confirming.filter(|_| inbound.status == 304) {
            return self.confirmed(&inbound, &stored, &began, received);
        }
        if let Some(failure) = self.stands_in(&inbound, candidate.as_ref(), received) {
            return self.fail(&failure, true);
        }
        match store::judge(&self.proxy, &self.exchange, &inbound, &began, received) {
            Err(why) => {
                self.proxy.metrics.not_stored(why);
                if why.is_of_response() {
                    self.mark(None, received.mono_ms);
                }
                self.leader.publish(Published::Alone);
                self.tell(Led::Direct(Box::new(inbound), why));
            }
            Ok(head) => self.stream(inbound, head, received.mono_ms).await,
        }
    }

    /// An error of the origin for which a stored response may stand in (RFC 5861 §4).
    fn stands_in(&self, inbound: &Inbound, candidate: Option<&(Arc<StoredResponse>, Validity)>, now: crate::semantics::Now) -> Option<Failure> {
        let (stored, validity) = candidate?;
        let allowed = is_origin_error(inbound) && may_serve_on_error(&stored.head.facts, self.exchange.policy(), *validity, now);
        allowed.then(|| Failure {
            status: inbound.status.as_u16(),
            token: "http_response_incomplete",
            text: format!("the origin answered {}", inbound.status.as_u16()).into(),
            stale_may_be_served: true,
        })
    }

    fn mark(&self, secondary: Option<&SecondaryKey>, now_mono_ms: u64) {
        let known = secondary.cloned().or_else(|| secondary_known(&self.proxy, &self.exchange, None));
        self.proxy.markers.set(marker_key(&self.exchange, known.as_ref()), now_mono_ms);
    }

    fn confirmed(&mut self, inbound: &Inbound, stored: &Arc<StoredResponse>, began: &Began, received: crate::semantics::Now) {
        match revalidate::confirm(&self.proxy, &self.exchange, stored, inbound, began, received) {
            Ok(updated) => {
                let shareable = is_shareable(&self.exchange, &updated.head, received);
                let head = Arc::new(FlightHead {
                    head: Arc::clone(&updated.head),
                    body: FlightBody::Confirmed(updated),
                    had_age: true,
                    forward_status: 304,
                    sure: true,
                    endpoint: Arc::clone(&inbound.endpoint),
                });
                self.publish(Arc::clone(&head), shareable, received.mono_ms);
                self.tell(Led::Shared(head, None));
            }
            Err(revalidate::Gone) => {
                self.leader.publish(Published::LeadAnew);
                self.tell(Led::StartOver);
            }
        }
    }

    fn publish(&self, head: Arc<FlightHead>, shareable: bool, now_mono_ms: u64) {
        self.proxy.vary_memory.remember(self.exchange.key.hash(), &head.head.facts.vary);
        if shareable {
            self.proxy.markers.clear(marker_key(&self.exchange, Some(&head.head.secondary)));
            self.proxy.markers.clear(self.exchange.key.hash());
            self.leader.publish(Published::Head(head));
        } else {
            self.mark(Some(&head.head.secondary), now_mono_ms);
            self.leader.publish(Published::Alone);
        }
    }

    async fn stream(&mut self, mut inbound: Inbound, head: Arc<StoredHead>, now_mono_ms: u64) {
        let settings = &self.exchange.routed.settings.fill;
        let (writer, fill) = Fill::new(Arc::clone(&self.proxy.budget), settings, inbound.length, self.exchange.policy().max_object_bytes);
        let reader = self.client.is_some().then(|| fill.reader(0, None)).flatten();
        let body = inbound.body.take();
        let flight = Arc::new(FlightHead {
            sure: self.proxy.memory.is_sure_to_admit(inbound.length.unwrap_or(0)),
            head: Arc::clone(&head),
            body: FlightBody::Filling(fill.clone()),
            had_age: inbound.fields.has(name::AGE),
            forward_status: inbound.status.as_u16(),
            endpoint: Arc::clone(&inbound.endpoint),
        });
        let shareable = is_shareable(&self.exchange, &head, clock::now());
        self.publish(Arc::clone(&flight), shareable, now_mono_ms);
        self.tell(Led::Shared(flight, reader));
        let retire = || self.leader.retire();
        if pump(body, writer, &fill, retire).await
            && let Some(complete) = fill.complete()
        {
            let wanted = self.leader.followers();
            if let Err(why) = store::whole(&self.proxy, &self.exchange, head, complete, wanted) {
                tracing::debug!(reason = why.as_str(), "not stored after all");
            }
        } else {
            self.proxy.metrics.not_stored(match fill.unstored() {
                Some(Unstored::TooLarge) => NotStored::TooLarge,
                Some(Unstored::Memory) => NotStored::Memory,
                None => NotStored::Incomplete,
            });
        }
    }
}

/// Whether others may have it as it is: those who may not because it needs validation go on alone.
fn is_shareable(exchange: &Exchange, head: &StoredHead, now: crate::semantics::Now) -> bool {
    matches!(reuse(exchange.request(), &head.facts, exchange.policy(), Validity::Valid, now), Reuse::Fresh { .. } | Reuse::StaleNow { .. })
}

/// 500, 502, 503 and 504: what stale-if-error stands in for (RFC 5861 §4).
pub fn is_origin_error(inbound: &Inbound) -> bool {
    matches!(inbound.status.as_u16(), 500 | 502 | 503 | 504)
}

/// Resolves when neither the client that led nor any follower is there.
async fn deserted(client: &mut Option<oneshot::Sender<Led>>, leader: &Leader<FlightHead, Departure>) {
    match client {
        Some(client) => client.closed().await,
        None => return std::future::pending().await, // a refresh has nobody and goes on all the same
    }
    leader.deserted().await;
}

/// Moves the body from the upstream to whoever reads; true if it is whole. `on_unstored` is called once when it stops
/// being kept for storing, so that nobody new joins.
pub async fn pump(body: Option<std::pin::Pin<Box<dyn BodyStream>>>, mut writer: FillWriter, fill: &Fill, on_unstored: impl Fn()) -> bool {
    let Some(mut body) = body else { return writer.finish(None).is_ok() };
    let (mut trailers, mut told) = (None, false);
    loop {
        let next = tokio::select! {
            biased;
            next = poll_fn(|context| body.as_mut().poll_chunk(context)) => next,
            () = writer.abandoned() => return false,
        };
        match next {
            Some(Ok(Chunk::Data(bytes))) => {
                if writer.push(bytes).await.is_err() {
                    return false;
                }
                if !told && fill.unstored().is_some() {
                    told = true;
                    on_unstored();
                }
            }
            Some(Ok(Chunk::Trailers(fields))) => trailers = Some(fields),
            Some(Err(error)) => {
                writer.fail(error);
                return false;
            }
            None => return writer.finish(trailers).is_ok(),
        }
    }
}

/// The first byte that a range asks for is too far beyond what has arrived for waiting to pay.
pub fn is_far_ahead(exchange: &Exchange, fill: &Fill) -> bool {
    exchange.fields.has(name::RANGE)
        && range::first_byte(exchange.request()).is_some_and(|first| first > fill.arrived() + exchange.routed.settings.fill.range_ahead)
}
