//! Miss and revalidation: join or lead the flight for the key (DESIGN section 5).
//!
//! A flight's own task reads from the upstream ([`super::lead`]); clients' connections only follow, the leader's too. What
//! a flight comes to is told to its client by [`Led`] and to followers by [`Published`].

use super::deliver::{self, Reused};
use super::exchange::{Arrival, Exchange, PanicNote};
use super::flight::{
    Candidate, Departure, Failure, FlightHead, Follow, Led, follow, follow_only, join, large_key, marker_key, secondary_known,
};
use super::lookup::{self, Found};
use super::{Proxy, alone, answer, blocks, lead};
use crate::body::BodyError;
use crate::cache::StoredResponse;
use crate::clock;
use crate::coalesce::flight::{Follower, Join, Leader, Published};
use crate::listener::{Handled, InterimSender, Response};
use crate::observe::metrics::{Bound, FollowOutcome};
use crate::semantics::cache_status::Forward;
use crate::semantics::reuse::{Reuse, Validity, only_if_cached};
use crate::semantics::vary::SecondaryKey;
use crate::semantics::{Method, Now, forwarding, name};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Sends a request on its way to the upstream, or to another's flight.
pub fn start(
    proxy: &Arc<Proxy>,
    arrival: Arrival<'_>,
    interim: Option<InterimSender>,
    why: Forward,
    candidate: Candidate,
    now: Now,
) -> Handled {
    proxy.count_request(arrival.key.hash(), arrival.policy());
    let mut errand = Errand::new(proxy, arrival, interim, why, candidate);
    match goes_alone(proxy, &errand.exchange, errand.candidate.as_ref(), now) {
        Some(reason) => Handled::Later(Box::pin(go_alone(errand, reason, now))),
        None => {
            errand.lines_up = true;
            Handled::Later(Box::pin(answer(errand, None)))
        }
    }
}

/// [`answer()`] to a request that lines up nowhere, as all do whose answers nobody may share: its future is small for it.
async fn go_alone(mut errand: Errand, reason: alone::Reason, now: Now) -> Box<Response> {
    let note = PanicNote::on(Arc::clone(&errand.exchange));
    let response = errand.alone(reason, Some(now)).await;
    drop(note);
    if response.outcome.in_blocks { Box::pin(answer(errand, Some(response))).await } else { response }
}

/// Answers from a stored response whose bytes are in blocks: the origin may have to be asked for some of them.
pub fn in_blocks(
    proxy: &Arc<Proxy>,
    arrival: Arrival<'_>,
    interim: Option<InterimSender>,
    stored: &Arc<StoredResponse>,
    reused: Reused,
    now: Now,
) -> Handled {
    let errand = Errand::new(proxy, arrival, interim, Forward::Miss, None);
    let exchange = &errand.exchange;
    let response = deliver::reused(proxy, exchange, stored, reused, now);
    if response.outcome.forward.is_some() && only_if_cached(exchange.request()) {
        return Handled::Ready(answer::not_cached(&exchange.routed, exchange.outcome()));
    }
    Handled::Later(Box::pin(answer(errand, Some(Box::new(response)))))
}

/// Rounds around the flight table: regrouping by Vary or by No-Vary-Search, a leader that died, leading anew. More would be a loop of ours.
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
    /// It was found just now that it does not go alone: not to be asked again in the first round.
    lines_up: bool,
}

/// What a round came to: the answer, or another round.
type Round = std::ops::ControlFlow<Box<Response>>;

/// Versions of a response in blocks that are tried before the client is told that it changes all the time.
const VERSIONS: usize = 3;

/// `first`: the answer, unless the origin has another version of its blocks by now. While nothing was sent the request
/// starts over then.
async fn answer(mut errand: Errand, mut first: Option<Box<Response>>) -> Box<Response> {
    let _note = PanicNote::on(Arc::clone(&errand.exchange));
    let mut over = BodyError::OtherVersion;
    for _ in 0..VERSIONS {
        let response = match first.take() {
            Some(response) => response,
            None => errand.ask().await,
        };
        match blocks::settle(response).await {
            Ok(response) => return response,
            Err(error) => over = error,
        }
        if over != BodyError::OtherVersion {
            break;
        }
        (errand.candidate, errand.regrouped) = (None, None);
    }
    errand.failed(&blocks::failure(over))
}

impl Errand {
    fn new(proxy: &Arc<Proxy>, arrival: Arrival<'_>, interim: Option<InterimSender>, why: Forward, candidate: Candidate) -> Self {
        let (proxy, exchange) = (Arc::clone(proxy), Arc::new(arrival.own()));
        Self { proxy, exchange, interim, why, candidate, regrouped: None, anew: false, lines_up: false }
    }

    async fn ask(&mut self) -> Box<Response> {
        for round in 0..ROUNDS {
            // A flight may have come and gone since the last look: what it stored answers.
            if round > 0
                && let Some(response) = self.look_again()
            {
                return response;
            }
            if !std::mem::take(&mut self.lines_up)
                && let Some(reason) = goes_alone(&self.proxy, &self.exchange, self.candidate.as_ref(), clock::now())
            {
                return self.alone(reason, None).await;
            }
            if let Round::Break(response) = self.round().await {
                return response;
            }
        }
        self.alone(alone::Reason::NotShared, None).await
    }

    async fn round(&mut self) -> Round {
        let secondary = self.regrouped.clone().or_else(|| secondary_known(&self.proxy, &self.exchange, self.candidate.as_ref()));
        if self.exchange.method == Method::HEAD {
            // HEAD may follow but never leads.
            return match follow_only(&self.proxy, &self.exchange, secondary, self.interim.as_ref()) {
                Some(follower) => self.follow(follower).await,
                None => Round::Break(self.alone(alone::Reason::Head, None).await),
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
        tokio::spawn(lead::lead(
            Arc::clone(&self.proxy),
            Arc::clone(&self.exchange),
            leader,
            Some(tell),
            self.candidate.clone(),
            self.anew,
        ));
        Round::Break(match told.await {
            Ok(Led::Shared(head, own)) => Box::new(deliver::led(&self.proxy, &self.exchange, &head, own, self.why)),
            Ok(Led::Direct(inbound, reason)) => Box::new(deliver::direct(&self.proxy, &self.exchange, *inbound, self.why, Some(reason))),
            Ok(Led::Failed(failure)) => self.failed(&failure),
            Ok(Led::StartOver) => {
                self.candidate = None;
                return Round::Continue(());
            }
            Ok(Led::AsItCame) => self.alone(alone::Reason::RangeOfLarge, None).await,
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
            Err(reason) => Round::Break(self.alone(reason, None).await),
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
                        return Ok(Round::Break(Box::new(response)));
                    }
                    None => {
                        followed(FollowOutcome::Alone);
                        return Err(alone::Reason::RangeAhead);
                    }
                },
                Follow::Elsewhere(key) => {
                    followed(FollowOutcome::Regrouped);
                    self.exchange = Arc::new(self.exchange.under(key));
                }
                Follow::Regroup(secondary) => {
                    followed(FollowOutcome::Regrouped);
                    self.regrouped = Some(secondary);
                }
                Follow::TooOld => followed(FollowOutcome::TooOld),
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
    fn look_again(&mut self) -> Option<Box<Response>> {
        let (now, exchange) = (clock::now(), &self.exchange);
        let found = lookup::find_again(&self.proxy, exchange, now);
        let Found::Stored { response, reuse, validity } = found else { return None };
        match reuse {
            Reuse::Fresh { .. } => Some(Box::new(deliver::filled(&self.proxy, exchange, &response, now))),
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

    fn alone(&mut self, reason: alone::Reason, now: Option<Now>) -> impl Future<Output = Box<Response>> + Send {
        let (interim, candidate) = (self.interim.take(), self.candidate.take());
        alone::fetch(&self.proxy, &self.exchange, interim, self.why, candidate, reason, now)
    }

    /// What the leader found in the tier that the fleet shares stands in for all who waited: it is in memory by now.
    fn failed(&mut self, failure: &Failure) -> Box<Response> {
        if self.candidate.is_none()
            && failure.stale_may_be_served
            && let Some(response) = self.look_again()
        {
            return response;
        }
        Box::new(answer::failed(&self.proxy, &self.exchange, failure, self.why, self.candidate.as_ref()))
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
fn goes_alone(proxy: &Proxy, exchange: &Exchange, candidate: Option<&(Arc<StoredResponse>, Validity)>, now: Now) -> Option<alone::Reason> {
    if !exchange.policy().collapse {
        return Some(alone::Reason::NotCollapsed);
    }
    // A stored response that this request selected despite Authorization shows that the key is shareable for it.
    if forwarding::has_credentials(&exchange.fields) && candidate.is_none() {
        return Some(alone::Reason::Authorization);
    }
    let is_of_large = exchange.fields.has(name::RANGE) && proxy.markers.is_set(large_key(exchange), now.mono_ms);
    if is_of_large && blocks::size(proxy, exchange).is_none() {
        return Some(alone::Reason::RangeOfLarge);
    }
    let secondary = secondary_known(proxy, exchange, candidate);
    let marker = marker_key(exchange, secondary.as_ref());
    proxy.markers.is_set(marker, now.mono_ms).then_some(alone::Reason::Marked(marker))
}
