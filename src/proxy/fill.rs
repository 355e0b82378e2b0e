//! Miss and revalidation: join or lead the flight for the key, fetch once, stream to everybody and store (DESIGN section 5).
//!
//! A flight's own task reads from the upstream; clients' connections only follow, the leader's too. What a flight comes
//! to is told to its client by [`Led`] and to followers by [`Published`].

use super::exchange::{Arrival, Exchange, PanicNote};
use super::lookup::{self, Found};
use super::store::{self, Began};
use super::{Proxy, alone, answer, deliver, forward, revalidate};
use crate::body::Chunk;
use crate::cache::{StoredHead, StoredResponse, Tags, subject};
use crate::clock;
use crate::coalesce::fill::{Fill, FillReader, FillWriter, Unstored};
pub use crate::coalesce::flight::Failure;
use crate::coalesce::flight::{FlightKey, Follower, Join, Leader, Published};
use crate::invalidation::Stamp;
use crate::listener::{Handled, InterimSender, InterimSlot, NotTaken, RequestBody, Response};
use crate::observe::metrics::{Bound, FollowOutcome};
use crate::proxy::outcome::Timing;
use crate::semantics::cache_status::Forward;
use crate::semantics::reuse::{Reuse, Validity, may_serve_on_error_to, reuse};
use crate::semantics::storage::NotStored;
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{Fields, Method, StatusCode, name, range};
use crate::upstream::{Arriving, Inbound, Unanswered};
use parking_lot::Mutex;
use std::future::poll_fn;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// A stored response that cannot be used as it is: to be confirmed, or to stand in if the origin fails.
pub type Candidate = Option<(Arc<StoredResponse>, Validity)>;

/// What those who join a flight are told, and leave there: the stamp of its fetch, who wants interim responses, and
/// who could lead anew.
pub struct Departure {
    pub stamp: Stamp,
    /// Once it is published: by its keys and groups a purge may have come between.
    head: OnceLock<Arc<StoredHead>>,
    interims: Interims,
    successors: Mutex<Vec<Weak<Exchange>>>,
}

impl Departure {
    pub fn new(stamp: Stamp) -> Self {
        Self { stamp, head: OnceLock::new(), interims: Interims::default(), successors: Mutex::default() }
    }

    /// Notes a request that waits for the head: it could lead anew. HEAD cannot.
    fn note(&self, exchange: &Arc<Exchange>) {
        if self.head.get().is_none() && exchange.method == Method::GET {
            self.successors.lock().push(Arc::downgrade(exchange));
        }
    }

    /// The first of those who wait and whose client is still there.
    fn successor(&self) -> Option<Arc<Exchange>> {
        self.successors.lock().iter().find_map(Weak::upgrade)
    }
}

/// Interim responses go to all who are there.
#[derive(Default)]
struct Interims(Mutex<Vec<InterimSender>>);

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
    fn end(&self) {
        *self.0.lock() = Vec::new();
    }

    fn tell(&self, proxy: &Proxy, interim: &crate::listener::Interim) {
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
    /// The upstream's answer carried Age.
    pub had_age: bool,
    pub forward_status: u16,
    /// Storing is intended and certain enough to be said.
    pub sure: bool,
    /// Why a confirmed response could not be kept.
    pub not_stored: Option<NotStored>,
    pub endpoint: Arc<str>,
    /// Of the fetch: for the client that led.
    pub timing: Timing,
}

impl FlightHead {
    /// A head whose body is on its way.
    pub fn filling(proxy: &Proxy, head: &Arc<StoredHead>, fill: &Fill, inbound: &Inbound) -> Self {
        Self {
            sure: fill.unstored().is_none() && inbound.length.is_some_and(|length| proxy.memory.is_sure_to_admit(length + SURE_MARGIN)),
            not_stored: None,
            head: Arc::clone(head),
            body: FlightBody::Filling(fill.clone()),
            had_age: inbound.fields.has(name::AGE),
            forward_status: inbound.status.as_u16(),
            endpoint: Arc::clone(&inbound.endpoint),
            timing: Timing::of_fetch(inbound.connect, inbound.first_byte),
        }
    }

    /// What a 304 confirmed.
    pub fn confirmed(confirmed: revalidate::Confirmed, inbound: &Inbound) -> (Self, Own) {
        let revalidate::Confirmed { response, not_stored, own } = confirmed;
        let flight = Self {
            head: Arc::clone(&response.head),
            body: FlightBody::Confirmed(response),
            had_age: true,
            forward_status: 304,
            sure: not_stored.is_none(),
            not_stored,
            endpoint: Arc::clone(&inbound.endpoint),
            timing: Timing::of_fetch(inbound.connect, inbound.first_byte),
        };
        (flight, Own { reader: None, fields: own })
    }
}

/// What only the client that led gets.
#[derive(Default)]
pub struct Own {
    /// A reader that was there before the first byte.
    pub reader: Option<FillReader>,
    /// Fields that others may not be given.
    pub fields: Option<Box<Fields>>,
}

/// Bytes of a flight.
pub enum FlightBody {
    Filling(Fill),
    /// The origin confirmed what was stored.
    Confirmed(Arc<StoredResponse>),
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
    let errand = Errand { proxy: Arc::clone(proxy), exchange, interim, why, candidate, regrouped: None, anew: false };
    Handled::Later(Box::pin(from_upstream(errand)))
}

/// Rounds around the flight table: regrouping by Vary, a leader that died, leading anew. More would be a loop of ours.
const ROUNDS: usize = 6;

/// A request on its way around the flight table.
struct Errand {
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    interim: Option<InterimSender>,
    why: Forward,
    candidate: Candidate,
    /// The secondary key of the response that it could not use because of Vary.
    regrouped: Option<SecondaryKey>,
    /// A flight that it followed failed: if it leads now, failures are shared.
    anew: bool,
}

/// What a round came to: the answer, or another round.
type Round = std::ops::ControlFlow<Response>;

async fn from_upstream(mut errand: Errand) -> Response {
    let _note = PanicNote::on(Arc::clone(&errand.exchange));
    for round in 0..ROUNDS {
        // A flight may have come and gone since the last look: what it stored answers.
        if round > 0
            && let Some(response) = errand.look_again()
        {
            return response;
        }
        if let Some(reason) = goes_alone(&errand.proxy, &errand.exchange, errand.candidate.as_ref()) {
            return errand.alone(reason).await;
        }
        if let Round::Break(response) = errand.round().await {
            return response;
        }
    }
    errand.alone(alone::Reason::NotShared).await
}

impl Errand {
    async fn round(&mut self) -> Round {
        let secondary = self.regrouped.clone().or_else(|| secondary_known(&self.proxy, &self.exchange, self.candidate.as_ref()));
        if self.exchange.method == Method::HEAD {
            // HEAD may follow but never leads.
            return match follow_only(&self.proxy, &self.exchange, secondary, self.interim.as_ref()) {
                Some(follower) => self.follow(follower).await,
                None => Round::Break(self.alone(alone::Reason::Head).await),
            };
        }
        match join(&self.proxy, &self.exchange, secondary, self.interim.as_ref()) {
            Join::Full => {
                self.proxy.metrics.bound(Bound::Waiting);
                self.proxy.metrics.followed(FollowOutcome::Full, Duration::ZERO);
                Round::Break(self.failed(&too_many_waiting()))
            }
            Join::Follow(follower) => self.follow(follower).await,
            // Another flight may have stored between our look and our joining.
            Join::Lead(leader) => match self.look_again() {
                Some(response) => {
                    drop(leader);
                    Round::Break(response)
                }
                None => self.lead(leader).await,
            },
        }
    }

    async fn lead(&mut self, leader: Leader<FlightHead, Departure>) -> Round {
        let (tell, told) = oneshot::channel();
        tokio::spawn(lead(Arc::clone(&self.proxy), Arc::clone(&self.exchange), leader, Some(tell), self.candidate.clone(), self.anew));
        Round::Break(match told.await {
            Ok(Led::Shared(head, own)) => deliver::led(&self.proxy, &self.exchange, &head, own, self.why),
            Ok(Led::Direct(inbound, reason)) => deliver::direct(&self.exchange, *inbound, self.why, Some(reason)),
            Ok(Led::Failed(failure)) => self.failed(&failure),
            Ok(Led::StartOver) => {
                self.candidate = None;
                return Round::Continue(());
            }
            Ok(Led::AsItCame) => self.alone(alone::Reason::RangeOfLarge).await,
            Err(_) => self.failed(&died()),
        })
    }

    async fn follow(&mut self, mut follower: Follower<FlightHead>) -> Round {
        let published = follower.wait().await;
        let next = self.after(published, follower.waited());
        // While it follows, the flight keeps its bytes for it: whoever goes on alone must not hold that up.
        drop(follower);
        match next {
            Ok(round) => round,
            Err(reason) => Round::Break(self.alone(reason).await),
        }
    }

    /// What to do with what the flight came to; `Err`: go on alone.
    fn after(&mut self, published: Published<FlightHead>, waited: Duration) -> Result<Round, alone::Reason> {
        let followed = |outcome| self.proxy.metrics.followed(outcome, waited);
        match published {
            Published::Head(head) => match follow(&self.proxy, &self.exchange, &head) {
                Follow::Use => match deliver::followed(&self.proxy, &self.exchange, &head, waited, self.why) {
                    Some(response) => {
                        followed(FollowOutcome::Served);
                        return Ok(Round::Break(response));
                    }
                    None => {
                        followed(FollowOutcome::Alone);
                        return Err(alone::Reason::RangeAhead);
                    }
                },
                Follow::Regroup(secondary) => {
                    followed(FollowOutcome::Regrouped);
                    self.regrouped = Some(secondary);
                }
                Follow::Invalid => self.candidate = None, // purged since: whoever asks now leads anew
                Follow::Alone => {
                    followed(FollowOutcome::Alone);
                    return Err(alone::Reason::NotShared);
                }
            },
            Published::Alone => {
                followed(FollowOutcome::Alone);
                return Err(alone::Reason::NotShared);
            }
            Published::Failed(failure) => {
                followed(FollowOutcome::Failed);
                return Ok(Round::Break(self.failed(&failure)));
            }
            Published::LeadAnew | Published::Died => {
                followed(FollowOutcome::LedAnew);
                self.anew = true;
            }
        }
        Ok(Round::Continue(()))
    }

    /// What the tiers hold by now, if it answers at once.
    fn look_again(&mut self) -> Option<Response> {
        let (now, exchange) = (clock::now(), &self.exchange);
        let found = lookup::find(&self.proxy, exchange.request(), &exchange.key, exchange.policy(), now);
        let Found::Stored { response, reuse, validity } = found else { return None };
        match reuse {
            Reuse::Fresh { .. } => Some(deliver::filled(&self.proxy, exchange, &response, now)),
            Reuse::Unusable(_) => {
                self.candidate = None;
                None
            }
            _ => {
                self.candidate = Some((response, validity));
                None
            }
        }
    }

    async fn alone(&mut self, reason: alone::Reason) -> Response {
        let (interim, candidate) = (self.interim.take(), self.candidate.take());
        alone::fetch(&self.proxy, &self.exchange, interim, self.why, candidate, reason).await
    }

    fn failed(&self, failure: &Failure) -> Response {
        answer::failed(&self.proxy, &self.exchange, failure, self.why, self.candidate.as_ref())
    }
}

fn too_many_waiting() -> Failure {
    Failure {
        status: 503,
        token: "connection_limit_reached",
        text: "too many requests wait for this response".into(),
        stale_may_be_served: true,
        endpoint: None,
    }
}

fn died() -> Failure {
    Failure {
        status: 500,
        token: "proxy_internal_error",
        text: "the fetch ended without a result".into(),
        stale_may_be_served: true,
        endpoint: None,
    }
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
    let now_mono_ms = clock::now().mono_ms;
    if exchange.fields.has(name::RANGE) && proxy.markers.is_set(large_key(exchange), now_mono_ms) {
        return Some(alone::Reason::RangeOfLarge);
    }
    let secondary = secondary_known(proxy, exchange, candidate);
    proxy.markers.is_set(marker_key(exchange, secondary.as_ref()), now_mono_ms).then_some(alone::Reason::Marked)
}

/// Marks a key whose response is too large to be fetched whole for a range.
fn large_key(exchange: &Exchange) -> u128 {
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
fn secondary_known(proxy: &Proxy, exchange: &Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>) -> Option<SecondaryKey> {
    if let Some((stored, _)) = candidate {
        return Some(stored.head.secondary.clone());
    }
    Some(proxy.vary_memory.get(exchange.key.hash())?.secondary_key(&exchange.fields, exchange.policy()))
}

fn flight_key(exchange: &Exchange, secondary: Option<SecondaryKey>) -> FlightKey {
    // No Vary and an empty secondary key are the same flight.
    FlightKey { key: Arc::clone(exchange.key.text()), secondary: secondary.filter(|secondary| !secondary.0.is_empty()) }
}

/// Whether a request that comes now may join a flight that began then: not if something was purged in between.
fn may_join(proxy: &Proxy, exchange: &Arc<Exchange>, departure: &Departure, interim: Option<&InterimSender>) -> bool {
    let joins = match departure.head.get() {
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

fn join(
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

fn follow_only(
    proxy: &Proxy,
    exchange: &Arc<Exchange>,
    secondary: Option<SecondaryKey>,
    interim: Option<&InterimSender>,
) -> Option<Follower<FlightHead>> {
    proxy.flights.follow(&flight_key(exchange, secondary), |departure| may_join(proxy, exchange, departure, interim))
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
    let _note = PanicNote::on(Arc::clone(&exchange));
    proxy.metrics.flight_led();
    let mut began = Began { stamp: leader.stamp().stamp, fetch: proxy.next_fetch(), sent: clock::now() };
    // A hard-purged response is never a source of validators; one that is valid at the stamp may be confirmed.
    let confirming = candidate.as_ref().filter(|(_, validity)| *validity != Validity::Purged).map(|(stored, _)| Arc::clone(stored));
    let is_refresh = client.is_none();
    let mut duty = Duty { proxy, exchange, leader, client, is_refresh, anew };
    let mut result = duty.fetch(confirming.as_ref()).await?;
    if let Err(unanswered) = &result
        && duty.hand_on(unanswered)
    {
        began.sent = clock::now();
        result = duty.fetch(confirming.as_ref()).await?;
    }
    match result {
        Err(unanswered) => {
            duty.fail(&Failure::from(&unanswered), unanswered.error.is_shared());
            None
        }
        Ok(inbound) => {
            let status = inbound.status.as_u16();
            duty.head(inbound, began, candidate, confirming).await;
            Some(status)
        }
    }
}

/// Weight of a stored response beside its body, at most, for the certainty of its admission.
const SURE_MARGIN: u64 = 8 * 1024;

/// Whether others may have a response.
#[derive(Clone, Copy)]
struct Sharing {
    /// By the rules.
    shareable: bool,
    /// Its bytes are kept for those who come.
    kept: bool,
}

/// The duty to tell everybody.
struct Duty {
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    leader: Leader<FlightHead, Departure>,
    /// `None` once it was told.
    client: Option<oneshot::Sender<Led>>,
    /// In the background: nobody leads it, and it goes on though nobody is there.
    is_refresh: bool,
    /// Another request failed before: from now on failures are shared.
    anew: bool,
}

impl Duty {
    /// Asks the upstream; `None` if everybody left before there was a head.
    async fn fetch(&mut self, confirming: Option<&Arc<StoredResponse>>) -> Option<Result<Inbound, Unanswered>> {
        let upstream = self.exchange.routed.upstream.clone()?;
        let (sender, mut interims) = InterimSender::queue();
        let request = match forward::request(&self.exchange, forward::Kind::Whole(confirming), Some(sender)) {
            Ok(request) => request,
            Err(error) => return Some(Err(error.into())),
        };
        let mut sending = Box::pin(upstream.send(request));
        let result = loop {
            tokio::select! {
                biased;
                interim = interims.recv() => self.leader.stamp().interims.tell(&self.proxy, &interim),
                result = &mut sending => break result,
                () = deserted(&mut self.client, &self.leader), if !self.is_refresh => return None,
            }
        };
        // Interim responses that came together with the final one go first.
        while let Some(interim) = interims.try_recv() {
            self.leader.stamp().interims.tell(&self.proxy, &interim);
        }
        Some(result)
    }

    fn tell(&mut self, led: Led) {
        if let Some(client) = self.client.take() {
            let _ = client.send(led); // it may have left
        }
    }

    /// The connection was lost, or the answer malformed, after the request was sent. That may be this request's doing,
    /// so it is not sent again; but one of those who wait leads anew, once, and the others stay in line.
    fn hand_on(&mut self, unanswered: &Unanswered) -> bool {
        if unanswered.error.is_shared() || self.anew {
            return false;
        }
        let Some(successor) = self.leader.stamp().successor() else { return false };
        self.tell(Led::Failed(Failure::from(unanswered)));
        self.proxy.metrics.flight_led();
        (self.exchange, self.is_refresh, self.anew) = (successor, false, true);
        true
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
        if self.asks_part_of_large(&inbound) {
            self.proxy.set_marker(large_key(&self.exchange), received.mono_ms);
            self.tell(Led::AsItCame);
            // Whoever wants the whole goes on with it; for its own sake it is not fetched.
            if self.leader.retire_if_deserted() {
                return;
            }
        }
        match store::judge(&self.proxy, &self.exchange, &inbound, &began, received, &candidate) {
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
    fn stands_in(
        &self,
        inbound: &Inbound,
        candidate: Option<&(Arc<StoredResponse>, Validity)>,
        now: crate::semantics::Now,
    ) -> Option<Failure> {
        let (stored, validity) = candidate?;
        let allowed = is_origin_error(inbound)
            && may_serve_on_error_to(self.exchange.request(), &stored.head.facts, self.exchange.policy(), *validity, now);
        allowed.then(|| Failure {
            status: inbound.status.as_u16(),
            token: "http_response_incomplete",
            text: format!("the origin answered {}", inbound.status.as_u16()).into(),
            stale_may_be_served: true,
            endpoint: Some(Arc::clone(&inbound.endpoint)),
        })
    }

    /// Whether the client that leads wants a range of something larger than is fetched whole for that.
    fn asks_part_of_large(&self, inbound: &Inbound) -> bool {
        self.client.is_some()
            && inbound.status == StatusCode::OK
            && inbound.length.is_some_and(|length| length > self.exchange.policy().range_whole_max_bytes)
            && range::is_asked(self.exchange.request())
    }

    fn mark(&self, secondary: Option<&SecondaryKey>, now_mono_ms: u64) {
        let known = secondary.cloned().or_else(|| secondary_known(&self.proxy, &self.exchange, None));
        self.proxy.set_marker(marker_key(&self.exchange, known.as_ref()), now_mono_ms);
    }

    fn confirmed(&mut self, inbound: &Inbound, stored: &Arc<StoredResponse>, began: &Began, received: crate::semantics::Now) {
        match revalidate::confirm(&self.proxy, &self.exchange, stored, inbound, began, received) {
            Ok(confirmed) => {
                let (flight, own) = FlightHead::confirmed(confirmed, inbound);
                let shareable = flight.not_stored.is_none() && is_shareable(&self.exchange, &flight.head, received);
                self.publish(Arc::new(flight), Sharing { shareable, kept: true }, received.mono_ms, own);
            }
            Err(revalidate::Gone) => {
                self.leader.publish(Published::LeadAnew);
                self.tell(Led::StartOver);
            }
        }
    }

    fn publish(&mut self, head: Arc<FlightHead>, sharing: Sharing, now_mono_ms: u64, own: Own) {
        self.leader.stamp().interims.end();
        self.proxy.vary_memory.remember(self.exchange.key.hash(), &head.head.facts.vary);
        if sharing.shareable && sharing.kept {
            let _ = self.leader.stamp().head.set(Arc::clone(&head.head)); // published once
            self.proxy.markers.clear(marker_key(&self.exchange, Some(&head.head.secondary)));
            self.proxy.markers.clear(self.exchange.key.hash());
            self.leader.publish(Published::Head(Arc::clone(&head)));
        } else {
            if !sharing.shareable {
                self.mark(Some(&head.head.secondary), now_mono_ms);
            }
            self.leader.publish(Published::Alone);
        }
        self.tell(Led::Shared(head, own));
    }

    async fn stream(&mut self, mut inbound: Inbound, head: Arc<StoredHead>, now_mono_ms: u64) {
        let settings = &Arc::clone(&self.exchange.routed.settings).fill;
        let (writer, fill) = Fill::new(Arc::clone(&self.proxy.budget), settings, inbound.length, self.exchange.policy().max_object_bytes);
        let is_refresh = self.is_refresh;
        let reader = if self.client.is_some() { fill.reader(0, None) } else { None };
        let own = Own { reader, fields: store::own_fields(&inbound.fields, &head.facts) };
        let ticket = Mutex::new(Some(fill.ticket()));
        let body = inbound.body.take();
        let flight = Arc::new(FlightHead::filling(&self.proxy, &head, &fill, &inbound));
        let shareable = is_shareable(&self.exchange, &head, clock::now());
        // Memory that ran out meanwhile is no reason of the response: who waits goes alone, nobody is told not to wait.
        let kept = fill.unstored().is_none();
        if inbound.length.is_some_and(|length| length <= self.exchange.policy().range_whole_max_bytes) {
            self.proxy.markers.clear(large_key(&self.exchange));
        }
        self.publish(flight, Sharing { shareable, kept }, now_mono_ms, own);
        let leader = &self.leader;
        // While followers take their readers the fill is wanted; a refresh is wanted as long as it is going to be stored.
        let wanted = async {
            if !is_refresh {
                leader.deserted().await;
                drop(ticket.lock().take());
            }
            std::future::pending::<()>().await;
        };
        let on_unstored = || {
            leader.retire();
            if is_refresh {
                drop(ticket.lock().take());
            }
        };
        let whole = tokio::select! {
            biased;
            whole = pump(body, writer, &fill, on_unstored) => whole,
            () = wanted => unreachable!("it pends for ever"),
        };
        if whole && let Some(complete) = fill.complete() {
            let wanted = self.leader.followers();
            match store::whole(&self.proxy, &self.exchange, head, complete, wanted) {
                Ok(response) => fill.stored(response.kept.body()),
                Err(why) => tracing::debug!(reason = why.as_str(), "not stored after all"),
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
pub fn is_shareable(exchange: &Exchange, head: &StoredHead, now: crate::semantics::Now) -> bool {
    matches!(reuse(exchange.request(), &head.facts, exchange.policy(), Validity::Valid, now), Reuse::Fresh { .. } | Reuse::StaleNow { .. })
}

/// 500, 502, 503 and 504: what stale-if-error stands in for (RFC 5861 §4).
pub fn is_origin_error(inbound: &Inbound) -> bool {
    matches!(inbound.status.as_u16(), 500 | 502 | 503 | 504)
}

/// Resolves when neither the client that led nor any follower is there, and nobody can join any more.
async fn deserted(client: &mut Option<oneshot::Sender<Led>>, leader: &Leader<FlightHead, Departure>) {
    if let Some(client) = client {
        client.closed().await;
    }
    loop {
        leader.deserted().await;
        if leader.retire_if_deserted() {
            return;
        }
    }
}

/// Moves the body from the upstream to whoever reads; true if it is whole. `on_unstored` is called once when it is not
/// kept for storing any more, so that nobody new joins.
pub async fn pump(body: Option<Arriving>, mut writer: FillWriter, fill: &Fill, on_unstored: impl Fn()) -> bool {
    let Some(mut body) = body else { return writer.finish(None).is_ok() };
    let mut trailers = None;
    if fill.unstored().is_some() {
        on_unstored();
    }
    loop {
        let next = tokio::select! {
            biased;
            next = poll_fn(|context| body.poll_chunk(context)) => next,
            () = writer.abandoned() => return false,
        };
        match next {
            Some(Ok(Chunk::Data(bytes))) => {
                if writer.push_telling(bytes, &on_unstored).await.is_err() {
                    return false;
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

/// The first byte that a range asks for is too far beyond what has arrived for waiting to pay. One beyond the end of a
/// body whose length is declared has nothing to wait for.
pub fn is_far_ahead(exchange: &Exchange, fill: &Fill) -> bool {
    let is_far =
        |first| first > fill.arrived() + exchange.routed.settings.fill.range_ahead && fill.declared().is_none_or(|length| first < length);
    exchange.fields.has(name::RANGE) && range::first_byte(exchange.request()).is_some_and(is_far)
}
