//! Nodes that ask each other (DESIGN section 8): the owner of a key is asked before the upstream, and what it answers
//! passes the same check as anything that is stored. The other side of it is [`PeerDoor`].
//!
//! One hop: a request of another node goes to the upstream, never on to a third. An answer without a stamp, from a node
//! with another journal or with none, counts as older than everything that the journal of this node knows.
//!
//! A node that began lately asks who stood in for it ([`Shield::deputy`]) what that holds of its own keys. Whoever is asked so
//! asks nobody ([`held`]): it answers at once.
//!
//! Straight to the upstream goes what no other node could answer from store: requests past the cache, parts and blocks
//! (`cache.blocks`), what is answered by its content (QUERY), and keys whose responses cannot be shared.

use super::ask::Way;
use super::deliver::Reused;
use super::exchange::Exchange;
use super::lookup::Found;
use super::{Proxy, admit, answer, deliver, forward, lookup};
use crate::body::ResponseBody;
use crate::cache::{StoredHead, Tags, subject};
use crate::clock;
use crate::config::settings::{Http2, Limits};
use crate::invalidation::{Journal, Mark, Position, Stamp};
use crate::listener::{Handled, Handler, InterimSlot, Peer, Refusal, RequestBody, RequestHead, Response, ResponseFields, Sent};
use crate::observe::metrics::{Bound, ShieldOutcome, WarmOutcome};
use crate::proxy::outcome::{CacheResult, Outcome, Source};
use crate::semantics::reuse::{Reuse, Validity};
use crate::semantics::{CacheKey, Fields, Method, Now, StatusCode, name};
use crate::shield::hop::{Asked, Standing, Wanted};
use crate::shield::{Admitted, Shield, is_probe};
use crate::upstream::{FetchError, Giver, Inbound, Unanswered};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Nodes that are asked for one request before the upstream is: the owner, and who stands in for it.
const ASKED_MAX: usize = 2;

/// What was fetched.
pub struct Fetched {
    pub inbound: Inbound,
    /// When it was fetched from the origin, where another node did; `None`: with this very request.
    pub stamp: Option<Stamp>,
}

impl From<Inbound> for Fetched {
    fn from(inbound: Inbound) -> Self {
        Self { inbound, stamp: None }
    }
}

/// What asking other nodes came to; `None`: the upstream is to be asked.
type Answered = Option<Result<Fetched, Unanswered>>;

/// Asks the nodes that own the key before this one; where none of them answers this one owns it, and asks who stood in for it
/// while it was not there.
pub async fn fetch(proxy: &Proxy, exchange: &Exchange, way: &Way<'_>) -> Answered {
    let shield = exchange.routed.shield.as_ref().filter(|_| may_be_held(exchange))?;
    let (now, standing) = (clock::now(), standing(&proxy.journal));
    if !proxy.journal.is_trusted(now) {
        return None;
    }
    if exchange.from_peer.is_none()
        && let ControlFlow::Break(answered) = from_owner(proxy, exchange, shield, way, &standing, now).await
    {
        return answered;
    }
    // Who holds something to be confirmed is not empty; what much was purged of is not there at others either.
    if way.confirming.is_some() || way.after_purge || !is_comparable(&standing) {
        return None;
    }
    let warms_for = shield.warms_for(proxy.journal.followed_since(), now);
    if warms_for.is_zero() { None } else { from_holder(proxy, exchange, shield, &standing, now).await.map(Ok) }
}

async fn from_owner(
    proxy: &Proxy,
    exchange: &Exchange,
    shield: &Arc<Shield>,
    way: &Way<'_>,
    standing: &Standing,
    now: Now,
) -> ControlFlow<Answered> {
    let owners = shield.owners(exchange.exact_key().hash(), now);
    if owners.is_empty() || (!is_comparable(standing) && was_purged(proxy, exchange)) {
        return ControlFlow::Continue(());
    }
    for owner in owners.iter().take(ASKED_MAX) {
        let question = match forward::to_peer(exchange, way.confirming) {
            Ok(question) => question,
            Err(error) => return ControlFlow::Break(Some(Err(error.into()))),
        };
        match shield.ask(owner, &question, *standing).await {
            None => proxy.metrics.shield(ShieldOutcome::Bypassed),
            Some(Err(error)) => {
                tracing::debug!(peer = &*owner.name, %error, "an owner did not answer");
                proxy.metrics.shield(ShieldOutcome::Failed);
            }
            Some(Ok(inbound)) => match accept(proxy, exchange, inbound, standing) {
                Verdict::Taken(fetched) => {
                    proxy.metrics.shield(ShieldOutcome::Answered);
                    return ControlFlow::Break(Some(Ok(*fetched)));
                }
                Verdict::UpstreamFailed(unanswered) => {
                    proxy.metrics.shield(ShieldOutcome::Answered);
                    return ControlFlow::Break(Some(Err(unanswered)));
                }
                Verdict::Failed => proxy.metrics.shield(ShieldOutcome::Failed),
                Verdict::Rejected => {
                    proxy.metrics.shield(ShieldOutcome::Rejected);
                    return ControlFlow::Break(None);
                }
            },
        }
    }
    ControlFlow::Continue(())
}

/// One question, to one node.
async fn from_holder(proxy: &Proxy, exchange: &Exchange, shield: &Arc<Shield>, standing: &Standing, now: Now) -> Option<Fetched> {
    let deputy = shield.deputy(exchange.exact_key().hash(), now)?;
    let mut question = forward::to_peer(exchange, None).ok()?; // the upstream is not asked either then, and that is said
    // It goes no further. It may have passed another node before, and nodes may all have one name.
    question.fields.remove(name::CDN_LOOP);
    let (outcome, fetched) = match shield.ask_held(&deputy, &question, *standing).await {
        None => (WarmOutcome::Bypassed, None),
        Some(Err(FetchError::ResponseTimeout)) => (WarmOutcome::Late, None),
        Some(Err(error)) => {
            tracing::debug!(peer = &*deputy.name, %error, "who may hold a response did not answer");
            (WarmOutcome::Failed, None)
        }
        Some(Ok(inbound)) if inbound.fields.text(name::TIERCEL_ERROR) == Some(NOT_HELD) => (WarmOutcome::Nothing, None),
        // Without a stamp of ours nobody could say whether it was purged before this node began.
        Some(Ok(inbound)) if stamp_of(&inbound.fields, standing).is_none() => (WarmOutcome::Rejected, None),
        Some(Ok(inbound)) => match accept(proxy, exchange, Inbound { giver: Giver::Holder, ..inbound }, standing) {
            Verdict::Taken(fetched) => (WarmOutcome::Found, Some(*fetched)),
            Verdict::Rejected => (WarmOutcome::Rejected, None),
            Verdict::UpstreamFailed(_) | Verdict::Failed => (WarmOutcome::Failed, None),
        },
    };
    proxy.metrics.warm(outcome);
    fetched
}

/// Whether another node owns the key, and is fit to be asked for it before the upstream.
pub fn is_anothers(exchange: &Exchange) -> bool {
    let shield = exchange.routed.shield.as_ref().filter(|_| exchange.from_peer.is_none() && may_be_held(exchange));
    let owners = shield.map(|shield| shield.owners(exchange.exact_key().hash(), clock::now()));
    owners.is_some_and(|owners| owners.iter().take(ASKED_MAX).any(|owner| owner.is_fit()))
}

/// Whether another node could answer it from store.
fn may_be_held(exchange: &Exchange) -> bool {
    exchange.content.is_none() && exchange.policy().blocks.is_none() && matches!(exchange.method, Method::GET | Method::HEAD)
}

/// Whether anything that this node's journal holds names the URL: then an answer without a stamp would be refused.
fn was_purged(proxy: &Proxy, exchange: &Exchange) -> bool {
    let tags = Tags::default();
    let subject = subject(&exchange.key, &exchange.routed.site, &tags);
    !proxy.journal.joinable(subject.url, subject.url_text, subject.authority, subject.site, &Stamp::default())
}

/// What is made of an owner's answer.
enum Verdict {
    Taken(Box<Fetched>),
    /// The owner asked the upstream, and it failed: for us as well.
    UpstreamFailed(Unanswered),
    /// The owner could not answer.
    Failed,
    /// It was purged since, as far as can be told.
    Rejected,
}

/// What it said for us alone is taken out. It passes the check that anything stored passes before it is used.
fn accept(proxy: &Proxy, exchange: &Exchange, mut inbound: Inbound, asked: &Standing) -> Verdict {
    if let Some(token) = inbound.fields.text(name::TIERCEL_ERROR) {
        let endpoint = Some(Arc::clone(&inbound.endpoint));
        return FetchError::of_token(token).map_or(Verdict::Failed, |error| Verdict::UpstreamFailed(Unanswered { error, endpoint }));
    }
    // Whatever refused it (the connection, or something between), it was not the owner that answered.
    if !inbound.fields.has(name::TIERCEL_STAMP) {
        return Verdict::Failed;
    }
    let stamp = stamp_of(&inbound.fields, asked).map_or_else(Stamp::default, |stamp| proxy.journal.of_shared(&stamp, None));
    inbound.fields.remove(name::TIERCEL_STAMP);
    let Ok(tags) = Tags::parse(&inbound.fields, exchange.target.origin(), &exchange.routed.settings.purge.keys) else {
        return Verdict::Rejected; // a purge could miss it
    };
    let key = exchange.key_of(&inbound.fields);
    // Read now: what was trusted when it was asked for may not be by the time the answer is there.
    if !proxy.journal.is_trusted(clock::now()) {
        return Verdict::Rejected;
    }
    match proxy.journal.validity(&subject(&key, &exchange.routed.site, &tags), &stamp) {
        Validity::Valid => Verdict::Taken(Box::new(Fetched { inbound, stamp: Some(stamp) })),
        Validity::Soft { .. } | Validity::Unconfirmed | Validity::Purged => Verdict::Rejected,
    }
}

/// How far this node has come in the journal of its fleet; where it is its own journal nothing compares with it. An epoch is
/// the time at which it was made, so that no two journals are in the same one.
fn standing(journal: &Journal) -> Standing {
    let Stamp { purge, unsafe_method } = journal.stamp();
    match purge.position.epoch {
        0 => Standing::default(),
        epoch => Standing { journal: u128::from(epoch), purge: purge.position, unsafe_method: unsafe_method.position },
    }
}

/// Whether a node in the same journal has come as far as another one.
fn has_reached(own: &Standing, asked: &Standing) -> bool {
    own.journal != asked.journal || (own.purge >= asked.purge && own.unsafe_method >= asked.unsafe_method)
}

/// Waits until this node has come as far as who asks, for a moment: entries travel in milliseconds.
async fn catch_up(proxy: &Proxy, asked: &Standing, limit: Duration) {
    let until = Instant::now() + limit;
    while !has_reached(&standing(&proxy.journal), asked) && Instant::now() < until {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Between two looks at the journal while an entry is on its way.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Whether positions of this node say anything to others.
const fn is_comparable(standing: &Standing) -> bool {
    standing.journal != 0
}

/// Whether a stamp is of the journal and the epoch that we are in.
fn is_of(stamp: &Stamp, standing: &Standing) -> bool {
    is_comparable(standing) && stamp.purge.position.epoch == standing.purge.epoch
}

/// The stamp of an answer, where it says something to who asked.
fn stamp_of(fields: &Fields, asked: &Standing) -> Option<Stamp> {
    read_stamp(fields.text(name::TIERCEL_STAMP)?).filter(|stamp| is_of(stamp, asked))
}

/// `PURGE UNSAFE`: the positions that all nodes of a fleet share.
fn write_stamp(stamp: &Stamp) -> String {
    format!("{} {}", stamp.purge.position, stamp.unsafe_method.position)
}

/// In place of a stamp: the node answers, and its positions say nothing to who asks.
const NO_STAMP: &str = "none";

fn read_stamp(text: &str) -> Option<Stamp> {
    let (purge, unsafe_method) = text.split_once(' ')?;
    let mark = |text: &str| text.parse::<Position>().ok().map(|position| Mark { position, local: 0 });
    Some(Stamp { purge: mark(purge)?, unsafe_method: mark(unsafe_method)? })
}

/// Who owns a key, for people.
pub fn explain(journal: &Journal, shield: &Arc<Shield>, key: &CacheKey, now: Now) -> Value {
    let order = shield.order(key.hash());
    let own = shield.own();
    let peers: Vec<_> = shield.states().into_iter().map(|(name, is_fit)| json!({"name": &*name, "asked": is_fit})).collect();
    let warms_for = if is_comparable(&standing(journal)) { shield.warms_for(journal.followed_since(), now) } else { Duration::ZERO };
    let deputy = shield.deputy(key.hash(), now).filter(|_| !warms_for.is_zero());
    json!({
        "owner": order.first().map(|name| &**name),
        "is_owner": order.first().is_some_and(|name| Some(name) == own),
        "order": order.iter().map(|name| &**name).collect::<Vec<_>>(),
        "peers": peers,
        "warming": deputy.map(|deputy| json!({"asks": &*deputy.name, "for_seconds": warms_for.as_secs()})),
    })
}

/// Room for what a node adds to the fields of a client: who it is, the hop, the conditions of what is stored.
const DESCRIBED_LINES: usize = 16;
const DESCRIBED_BYTES: usize = 16 << 10;

/// Another node of the fleet asks.
#[derive(Debug)]
pub struct FromPeer {
    /// How far this node had come when the request came; `None`: it says nothing to who asks.
    stamp: Option<Stamp>,
}

impl FromPeer {
    /// Says in an answer what who asks has to know to judge it: when it was fetched, and its surrogate keys, whatever
    /// clients are told of them. `head`: as it is stored; without one it is being fetched for this request.
    pub fn tell(&self, fields: &mut Fields, head: Option<&StoredHead>) {
        fields.remove(name::TIERCEL_ERROR);
        fields.remove(name::TIERCEL_STAMP);
        let keys = head.map_or("", |head| head.tags.text());
        let told = match keys {
            "" => Ok(()),
            keys => fields.set(name::SURROGATE_KEY, keys),
        };
        // Without its keys nobody could say whether it was purged.
        if let (Some(own), Ok(())) = (&self.stamp, told) {
            let _ = fields.append(name::TIERCEL_STAMP, write_stamp(head.map_or(own, |head| &head.stamp))); // digits
        }
    }
}

/// What answers other nodes: the proxy, behind a check that it is one of the fleet that asks.
pub struct PeerDoor(Arc<Proxy>);

impl PeerDoor {
    pub fn new(proxy: Arc<Proxy>) -> Arc<Self> {
        Arc::new(Self(proxy))
    }

    /// What another node may send: more than a client may, because it says who the client is, and asks by HTTP/2, which
    /// counts 32 bytes more for each field (RFC 9113 §6.5.2).
    pub fn limits(limits: &Limits) -> Limits {
        let header_count = limits.header_count.saturating_add(DESCRIBED_LINES);
        let url_bytes = limits.url_bytes.saturating_mul(3); // a byte may have been percent-encoded
        let header_bytes = limits.header_bytes.saturating_add(DESCRIBED_BYTES + 32 * header_count).saturating_add(url_bytes);
        Limits { header_bytes, header_count, url_bytes, http2: Http2::of_peers(), ..limits.clone() }
    }

    fn admit(&self, head: &RequestHead) -> Result<Admitted, Refusal> {
        let live = self.0.live.load();
        let none = Refusal { status: 403, reason: "hop-missing" };
        let shield = live.shield.as_ref().ok_or(none)?;
        let text = |bytes: Option<&[u8]>| bytes.and_then(|bytes| std::str::from_utf8(bytes).ok().map(str::to_owned)).unwrap_or_default();
        let scheme = head.fields.text(name::X_FORWARDED_PROTO).unwrap_or("http");
        let asked = Asked {
            method: head.method.as_str(),
            scheme,
            authority: &text(head.fields.get(name::HOST)),
            target: &text(Some(&head.target)),
        };
        let admitted = shield.admit(&head.fields, &asked, clock::now());
        admitted.map_err(|invalid| Refusal { status: 403, reason: invalid.as_str() })
    }
}

impl Handler for PeerDoor {
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled {
        let admitted = match self.admit(head) {
            Ok(admitted) => admitted,
            Err(refusal) => return Handled::Ready(answered(403, Some(refusal.reason))),
        };
        if is_probe(&head.method) {
            return Handled::Ready(answered(204, None));
        }
        if !matches!(head.method, Method::GET | Method::HEAD) || !matches!(body, RequestBody::Empty) {
            return Handled::Ready(answered(403, Some("hop-method")));
        }
        let (proxy, own) = (&self.0, standing(&self.0.journal));
        let is_one = admitted.same_policy && own.journal == admitted.standing.journal && own.purge.epoch == admitted.standing.purge.epoch;
        if admitted.wanted == Wanted::Held {
            let held = if is_one && is_comparable(&own) { held(proxy, peer, head) } else { None };
            proxy.metrics.warm(if held.is_some() { WarmOutcome::Given } else { WarmOutcome::NotHeld });
            return Handled::Ready(held.unwrap_or_else(not_held));
        }
        proxy.metrics.shield(if is_one { ShieldOutcome::Served } else { ShieldOutcome::Plain });
        let from_peer = move |proxy: &Proxy| {
            let stamp = (is_one && is_comparable(&own)).then(|| proxy.journal.stamp());
            Some(Arc::new(FromPeer { stamp }))
        };
        if is_one && !has_reached(&own, &admitted.standing) {
            let (proxy, peer, head) = (Arc::clone(proxy), peer.clone(), head.clone());
            return Handled::Later(Box::pin(async move {
                let live = proxy.live.load_full();
                catch_up(&proxy, &admitted.standing, live.settings.shield.position_wait).await;
                let from_peer = from_peer(&proxy);
                let handled = proxy.journey(&live, &peer, &head, RequestBody::Empty, &mut InterimSlot::default(), from_peer);
                marked(handled).await
            }));
        }
        match proxy.journey(&proxy.live.load(), peer, head, body, interim, from_peer(proxy)) {
            Handled::Ready(mut response) => {
                mark(&mut response);
                Handled::Ready(response)
            }
            later @ Handled::Later(_) => Handled::Later(Box::pin(marked(later))),
        }
    }

    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent) {
        self.0.finished(peer, head, outcome, sent);
    }

    fn refused(&self, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64) {
        self.0.refused(peer, head, refusal, duration_ns);
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn bound(&self, bound: Bound) {
        self.0.bound(bound);
    }
}

/// What this node holds for a request and what is fresh, its own judgement of its journal included. Nobody is asked and nothing
/// is waited for, so that no two nodes can come to wait for each other.
fn held(proxy: &Arc<Proxy>, peer: &Peer, head: &RequestHead) -> Option<Response> {
    let (live, now) = (proxy.live.load(), clock::now());
    let from_peer = Arc::new(FromPeer { stamp: Some(proxy.journal.stamp()) });
    let mut arrival = admit::admit(&live, peer, head, Some(from_peer)).ok()?;
    if !proxy.journal.is_trusted(now) || !matches!(admit::way(&arrival, &RequestBody::Empty), admit::Way::Cache) {
        return None;
    }
    let mut found = lookup::find(proxy, arrival.request(), &arrival.key, arrival.policy(), arrival.standing, now);
    if proxy.search_rules.any() {
        found = lookup::find_equivalent(proxy, &mut arrival, found, now);
    }
    let Found::Stored { response, reuse: Reuse::Fresh { age_ms, ttl_ms }, .. } = found else { return None };
    let reused = Reused { result: CacheResult::Hit, age_ms, ttl_ms };
    let mut response = deliver::stored(proxy, &arrival, &response, response.body()?, reused, now);
    mark(&mut response);
    Some(response)
}

/// In place of what is not held here.
const NOT_HELD: &str = "not-held";

fn not_held() -> Response {
    let mut fields = Fields::new();
    let _ = fields.append(name::TIERCEL_ERROR, NOT_HELD); // a token
    let outcome = Outcome { result: CacheResult::Local, source: Source::Tiercel, detail: Some(NOT_HELD.into()), ..Outcome::default() };
    let status = StatusCode::GATEWAY_TIMEOUT;
    answer::dated(Response { status, fields: ResponseFields::Own(fields), body: ResponseBody::Empty, close: false, outcome })
}

async fn marked(handled: Handled) -> Box<Response> {
    let mut response = handled.response().await;
    mark(&mut response);
    response
}

/// Tells who asks that the node behind the door answers, and where the answer was made up, why.
fn mark(response: &mut Response) {
    if let ResponseFields::Own(fields) = &mut response.fields {
        // Both are tokens.
        let _ = match response.outcome.error {
            Some(token) => fields.set(name::TIERCEL_ERROR, token),
            None if fields.has(name::TIERCEL_STAMP) => Ok(()),
            None => fields.append(name::TIERCEL_STAMP, NO_STAMP),
        };
    }
}

/// An answer of the door itself.
fn answered(status: u16, error: Option<&'static str>) -> Response {
    let mut fields = Fields::new();
    if let Some(error) = error {
        let _ = fields.append(name::TIERCEL_ERROR, error); // a token
    }
    let result = if error.is_some() { CacheResult::Error } else { CacheResult::Local };
    let outcome = Outcome { result, source: Source::Tiercel, detail: error.map(Into::into), ..Outcome::default() };
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
    let text = error.map_or(String::new(), |error| format!("{error}\n"));
    let body = if text.is_empty() { ResponseBody::Empty } else { ResponseBody::Full(text.into()) };
    answer::dated(Response { status, fields: ResponseFields::Own(fields), body, close: false, outcome })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_text_but_for_what_is_local() {
        let mark = |ms, local| Mark { position: Position { epoch: 2, ms, sequence: 1 }, local };
        let stamp = Stamp { purge: mark(10, 7), unsafe_method: mark(20, 8) };
        let read = read_stamp(&write_stamp(&stamp)).unwrap();
        assert_eq!(read, Stamp { purge: mark(10, 0), unsafe_method: mark(20, 0) });
        for text in ["", "1-2-3", "1-2-3 ", "1-2-3 4-5", "1-2-3 4-5-6 7-8-9"] {
            assert_eq!(read_stamp(text), None, "{text}");
        }
    }

    #[test]
    fn a_node_that_is_behind_in_the_same_journal_waits() {
        let at = |journal, ms, unsafe_ms| {
            let position = |ms| Position { epoch: 9, ms, sequence: 0 };
            Standing { journal, purge: position(ms), unsafe_method: position(unsafe_ms) }
        };
        assert!(has_reached(&at(1, 5, 5), &at(1, 5, 5)) && has_reached(&at(1, 6, 6), &at(1, 5, 5)));
        assert!(!has_reached(&at(1, 5, 5), &at(1, 6, 5)) && !has_reached(&at(1, 5, 5), &at(1, 5, 6)));
        assert!(has_reached(&at(2, 5, 5), &at(1, 6, 6)), "in another one there is nothing to wait for");
    }

    #[test]
    fn stamps_of_another_journal_or_epoch_do_not_compare() {
        let at = |epoch| Position { epoch, ms: 1, sequence: 0 };
        let stamp = |epoch| Stamp { purge: Mark { position: at(epoch), local: 0 }, unsafe_method: Mark::default() };
        let standing = Standing { journal: 1, purge: at(2), unsafe_method: at(2) };
        assert!(is_of(&stamp(2), &standing) && !is_of(&stamp(1), &standing) && !is_of(&stamp(3), &standing));
        assert!(!is_of(&stamp(0), &Standing::default()), "where each is its own journal nothing compares");
    }
}
