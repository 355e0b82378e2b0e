//! The tier that the fleet shares, as the request path sees it: what is found there is judged like any other stored
//! response before it is promoted, and what is stored here is offered to it.
//!
//! Asked by the leader of a flight only, so that look-ups collapse as fetches do. It is used only while the journal is
//! trusted, before and after the round trip: what a shared tier holds may have been purged by an entry that this node
//! has not seen. Keys are of the journal's epoch, so that nothing is found of before a loss.

use super::Proxy;
use super::exchange::Exchange;
use super::flight::{Candidate, secondary_known};
use crate::body::{BodyError, BodyStream, Chunk, StoredBody};
use crate::cache::codec::{self, BodyPlan, HeadRecord, Primary, Reading, Seal, Times, Unreadable};
use crate::cache::{StoredHead, StoredResponse};
use crate::clock;
use crate::coalesce::lease::{self, Claim, Ended, Lease, Leases, Outcome};
use crate::coalesce::pinned::Kept;
use crate::config::settings;
use crate::faults::{self, Fault};
use crate::invalidation::Journal;
use crate::observe::metrics::{TierLookup, TierWrite};
use crate::pages;
use crate::proxy::outcome::Contact;
use crate::redis::RedisError;
use crate::semantics::freshness::Facts;
use crate::semantics::key::hash128;
use crate::semantics::reuse::{Reuse, Validity, reuse};
use crate::semantics::vary::{SecondaryKey, Vary};
use crate::semantics::{CacheKey, Now, name};
use crate::tier::redis::{Found, Peeked, Place, Records, RedisTier, SEGMENT, Segments, Wanted, Write};
use crate::upstream::Giver;
use bytes::Bytes;
use moka::sync::Cache;
use serde_json::{Value, json};
use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::oneshot;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// The tier with what makes its bytes responses.
#[derive(Clone)]
pub struct Remote {
    pub tier: Arc<RedisTier>,
    /// One fetch for the fleet, where that is wanted.
    pub leases: Option<Arc<Leases>>,
    seal: Seal,
    /// Long bodies that were written from here, so that confirming one does not write it again.
    plans: Cache<u128, Written>,
}

#[derive(Clone)]
struct Written {
    body: Weak<StoredBody>,
    plan: BodyPlan,
    epoch: u64,
}

/// Long bodies whose place in Redis is remembered; about 200 bytes each.
const PLANS_MAX: u64 = 16_384;
/// Segments that wait for the client: each has been asked for before it is wanted.
const READ_AHEAD: usize = 2;
/// Less than this between two responses may be the difference of two clocks.
const CLOCKS_MS: i64 = 1000;

/// What the tier has for a request.
pub enum Answer {
    Nothing,
    /// To be confirmed by the origin, or to stand in if that fails.
    Candidate(Arc<StoredResponse>, Validity),
    /// It answers.
    Whole(Arc<StoredResponse>),
    /// It answers; of its body only the beginning is here.
    Long(Long),
}

/// What looking came to.
pub struct Looked {
    pub answer: Answer,
    /// The lease, where one was wanted.
    pub claim: Claim,
    pub contact: Contact,
}

impl Looked {
    const NOTHING: Self = Self { answer: Answer::Nothing, claim: Claim::Unknown, contact: Contact::Whole };

    /// It was asked.
    const fn of(answer: Answer, claim: Claim) -> Self {
        Self { answer, claim, contact: Contact::Whole }
    }

    /// It could not be known whether there is anything.
    const fn without(why: TierLookup) -> Self {
        let contact = match why {
            TierLookup::Skipped => Contact::LookupSkipped,
            TierLookup::Timeout => Contact::LookupTimeout,
            TierLookup::Failed => Contact::LookupFailed,
            _ => Contact::Whole,
        };
        Self { contact, ..Self::NOTHING }
    }
}

/// A response whose body is in segments.
pub struct Long {
    pub head: Arc<StoredHead>,
    pub length: u64,
    pub body: Pin<Box<dyn BodyStream>>,
}

impl Remote {
    pub fn new(tier: Arc<RedisTier>, leases: Option<Arc<Leases>>) -> Self {
        let seal = match &tier.settings().key {
            Some(key) => Seal::Key(key.expose().as_bytes().into()),
            None => Seal::Checksum,
        };
        Self { tier, leases, seal, plans: Cache::new(PLANS_MAX) }
    }

    /// Where a key's records are, while the journal is trusted.
    fn place(journal: &Journal, key: &CacheKey, now: Now) -> Option<Place> {
        journal.is_trusted(now).then(|| Place { epoch: journal.epoch(), url: key.url_hash(), key: key.hash() })
    }

    /// The name of a head record.
    fn head_name(&self, place: Place, variant: u128) -> String {
        self.tier.redis().keys().url(place.epoch, place.url).head(variant)
    }

    /// Reads what was found, or says why it is nothing. `variant` is where it stood.
    fn read(&self, exchange: &Exchange, place: Place, variant: u128, record: &Bytes, fetch: u64, now: Now) -> Option<HeadRecord> {
        let read = self.decode(exchange, place, variant, record, fetch, now);
        read.map_err(|why| self.unreadable(place, variant, why)).ok()
    }

    fn decode(
        &self,
        exchange: &Exchange,
        place: Place,
        variant: u128,
        record: &Bytes,
        fetch: u64,
        now: Now,
    ) -> Result<HeadRecord, Unreadable> {
        let reading = Reading {
            key: &exchange.key,
            target: &exchange.target,
            site: &exchange.routed.site,
            policy: exchange.policy(),
            fetch,
            now,
            redis_now_ms: self.tier.redis().time_ms(now.wall_ms),
        };
        HeadRecord::decode(&self.seal, self.head_name(place, variant).as_bytes(), record, &reading)
    }

    /// What a primary record says that the responses of its key vary by.
    fn vary(&self, place: Place, record: &Bytes) -> Option<Vary> {
        let name = self.tier.redis().keys().url(place.epoch, place.url).primary(place.key);
        Primary::decode(&self.seal, name.as_bytes(), record).ok().map(|primary| primary.vary)
    }

    /// Counts it; what is ours and broken goes.
    fn unreadable(&self, place: Place, variant: u128, why: Unreadable) {
        self.tier.metrics().tiers.lookup(TierLookup::Unreadable);
        self.tier.metrics().tiers.unreadable(why.as_str());
        if matches!(why, Unreadable::Damaged | Unreadable::Malformed) {
            self.tier.remove(place, variant);
        }
    }
}

/// Which of the responses of a key: all of its secondary key counts.
fn variant(key: &CacheKey, secondary: &SecondaryKey) -> u128 {
    if secondary.0.is_empty() { key.hash() } else { key.hash() ^ hash128(&secondary.0) }
}

/// Asks the tier. `candidate`: what is here and not good enough; a background refresh wants something newer than that.
/// `fetch` numbers what is found among the fetches of this process. `leases`, with an outcome that was of no use: where
/// nothing is found, this node wants to fetch for the fleet.
pub async fn look(
    proxy: &Proxy,
    exchange: &Exchange,
    candidate: &Candidate,
    is_refresh: bool,
    fetch: u64,
    leases: Option<(&Leases, Option<&Outcome>)>,
) -> Looked {
    let Some(remote) = proxy.remote.get().filter(|_| exchange.routed.route.redis.enabled) else { return Looked::NOTHING };
    let now = clock::now();
    let Some(place) = Remote::place(&proxy.journal, &exchange.key, now).filter(|_| !exchange.standing.is_cut_off()) else {
        proxy.metrics.tiers.lookup(TierLookup::Skipped);
        return Looked::without(TierLookup::Skipped);
    };
    let deadline = remote.tier.deadline();
    let (at, found) = match find(proxy, remote, exchange, place, candidate.as_ref(), leases, deadline).await {
        Ok(found) => found,
        Err(why) => return Looked::without(why),
    };
    let Found { head, floor, claim, .. } = found;
    let now = clock::now();
    // Between asking and now the node may have lost its trust, or the fleet its journal.
    if Remote::place(&proxy.journal, &exchange.key, now) != Some(place) {
        proxy.metrics.tiers.lookup(TierLookup::Skipped);
        return Looked::without(TierLookup::Skipped);
    }
    let Some(head) = head else {
        proxy.metrics.tiers.lookup(TierLookup::Miss);
        return Looked::of(Answer::Nothing, claim);
    };
    let Some(record) = remote.read(exchange, place, at, &head, fetch, now) else { return Looked::of(Answer::Nothing, claim) };
    let answer = judge(proxy, remote, exchange, place, (record, floor.as_ref().map(floor_ms)), now, deadline).await;
    let answer = match answer {
        Answer::Whole(_) | Answer::Long(_) if is_refresh && !is_newer(&answer, candidate) => Answer::Nothing,
        Answer::Candidate(..) if candidate.is_some() => Answer::Nothing,
        answer => answer,
    };
    proxy.metrics.tiers.lookup(match answer {
        Answer::Nothing => TierLookup::Unusable,
        Answer::Candidate(..) => TierLookup::Stale,
        Answer::Whole(_) | Answer::Long(_) => TierLookup::Hit,
    });
    Looked::of(answer, claim)
}

/// The records of the response that the request selects, as far as is known here or there, and where its head stands.
async fn find(
    proxy: &Proxy,
    remote: &Remote,
    exchange: &Exchange,
    place: Place,
    candidate: Option<&(Arc<StoredResponse>, Validity)>,
    leases: Option<(&Leases, Option<&Outcome>)>,
    deadline: Instant,
) -> Result<(u128, Found), TierLookup> {
    let worker = exchange.peer.worker;
    let known = secondary_known(proxy, exchange, candidate);
    let wanted = |is_vary_known| leases.map(|(leases, useless)| Wanted { leases, is_vary_known, useless });
    let at = variant(&exchange.key, known.as_ref().unwrap_or(&SecondaryKey::default()));
    let found = remote.tier.look(worker, place, at, wanted(known.is_some()), deadline).await?;
    let Some(vary) = found.primary.as_ref().and_then(|record| remote.vary(place, record)) else { return Ok((at, found)) };
    proxy.vary_memory.remember(exchange.key.hash(), &vary);
    let there = variant(&exchange.key, &vary.secondary_key(&exchange.fields, exchange.policy()));
    if there == at {
        return Ok((at, found));
    }
    // The lease of another variant, if it was taken, is given back.
    drop(found);
    Ok((there, remote.tier.look(worker, place, there, wanted(true), deadline).await?))
}

/// A floor that cannot be read is above everything: whoever wrote it meant some time.
fn floor_ms(text: &Bytes) -> i64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MAX)
}

/// What the rules make of a record.
enum Assessed {
    Not(&'static str),
    By(Reuse, Validity),
}

/// May it be used? By the journal, by what selects it, and by the same rules as any other stored response.
fn assess(proxy: &Proxy, remote: &Remote, exchange: &Exchange, record: &mut HeadRecord, floor: Option<i64>, now: Now) -> Assessed {
    let (head, policy) = (&mut record.head, exchange.policy());
    let selected = head.facts.vary.matches(&exchange.fields, &head.secondary, policy) && exchange.key_of(&head.fields) == exchange.key;
    let is_below = floor.is_some_and(|floor| record.began_ms < floor);
    // What was trimmed before this node could see it is an entry of its own in the journal: it invalidates everything older.
    let age_ms = remote.tier.redis().time_ms(now.wall_ms).saturating_sub(record.began_ms).max(0).unsigned_abs();
    head.stamp = proxy.journal.of_shared(&head.stamp, Some(now.mono_ms.saturating_sub(age_ms))).into();
    let validity = proxy.journal.validity(&head.subject(), &head.stamp);
    let (is_below, validity) = if faults::planted(Fault::PromotedUnchecked) { (false, Validity::Valid) } else { (is_below, validity) };
    match (selected, is_below) {
        (false, _) => Assessed::Not("it is not for this request"),
        (true, true) => Assessed::Not("an unsafe method has invalidated the URL since"),
        (true, false) => Assessed::By(reuse(exchange.request(), &head.facts, policy, validity, now), validity),
    }
}

async fn judge(
    proxy: &Proxy,
    remote: &Remote,
    exchange: &Exchange,
    place: Place,
    (mut record, floor): (HeadRecord, Option<i64>),
    now: Now,
    deadline: Instant,
) -> Answer {
    let Assessed::By(decision, validity) = assess(proxy, remote, exchange, &mut record, floor, now) else { return Answer::Nothing };
    let HeadRecord { head, plan, first, .. } = record;
    let head = Arc::new(head);
    let is_whole = plan.segments == 0;
    match decision {
        Reuse::Fresh { .. } if is_whole => {
            let response = whole(proxy, head, &first, exchange, now);
            if response.drop_at_mono_ms > now.mono_ms { Answer::Whole(response) } else { Answer::Nothing }
        }
        Reuse::Fresh { .. } => {
            let at = variant(&exchange.key, &head.secondary);
            let body = Assembly { remote: remote.clone(), worker: exchange.peer.worker, place, variant: at, plan };
            let body = body.begin(first, deadline).await;
            body.map_or(Answer::Nothing, |body| Answer::Long(Long { head, length: plan.length, body }))
        }
        // What may be used stale as well: who waits for a look-up waits for the origin's word too, and nobody is told that it is fresh.
        Reuse::StaleNow { .. } | Reuse::Revalidate { .. } if is_whole => {
            Answer::Candidate(whole(proxy, head, &first, exchange, now), validity)
        }
        Reuse::StaleNow { .. } | Reuse::Revalidate { .. } | Reuse::Unusable(_) => Answer::Nothing,
    }
}

fn is_newer(answer: &Answer, candidate: &Candidate) -> bool {
    let head = match answer {
        Answer::Whole(response) => &response.head,
        Answer::Long(long) => &long.head,
        Answer::Nothing | Answer::Candidate(..) => return false,
    };
    let Some((there, _)) = candidate else { return true };
    head.facts.response_time.wall_ms > there.head.facts.response_time.wall_ms + CLOCKS_MS
}

/// A stored response of this process, with bytes that are as large as they say.
fn whole(proxy: &Proxy, head: Arc<StoredHead>, bytes: &Bytes, exchange: &Exchange, now: Now) -> Arc<StoredResponse> {
    let segment = [pages::gather(std::slice::from_ref(bytes)).unwrap_or_else(|| Bytes::copy_from_slice(bytes))];
    let segments = if bytes.is_empty() { &[][..] } else { &segment[..] };
    Arc::new(StoredResponse::new(head, Kept::new(segments, &proxy.pins), bytes.len() as u64, exchange.policy(), now))
}

/// Puts a body together from its segments.
struct Assembly {
    remote: Remote,
    worker: usize,
    place: Place,
    variant: u128,
    plan: BodyPlan,
}

/// Why a body cannot be put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// Redis does not give it now.
    Away,
    /// It is not there any more, or not what it was: the entry goes.
    Wrong,
}

impl Assembly {
    /// The body, once its second part is here too: where Redis fails already, the origin can still be asked.
    async fn begin(self, first: Bytes, deadline: Instant) -> Option<Pin<Box<dyn BodyStream>>> {
        let second = match self.segment(0, Some(deadline)).await {
            Ok(second) => second,
            Err(broken) => {
                self.gave_up(broken);
                return None;
            }
        };
        let (sender, segments) = mpsc::channel(READ_AHEAD);
        let left = self.plan.length;
        tokio::spawn(async move {
            if let Err(broken) = self.read([first, second], &sender).await {
                self.remote.tier.metrics().tiers.broken_body();
                self.gave_up(broken);
                tracing::warn!(?broken, "a body in Redis is not whole: its connections are aborted");
                let _ = sender.send(Err(BodyError::Reset)).await; // who read may have left
            }
        });
        Some(Box::pin(Assembled { segments, left }))
    }

    /// Each segment is proved before it is passed on, and the last one only once the whole is.
    async fn read(&self, [first, second]: [Bytes; 2], sender: &Sender<Result<Bytes, BodyError>>) -> Result<(), Broken> {
        let (mut hash, mut length, mut held) = (Xxh3::new(), 0, first);
        let mut next = Some(second);
        for number in 0..self.plan.segments {
            let segment = match next.take() {
                Some(second) => second,
                None => self.segment(number, None).await?,
            };
            hash.update(&held);
            length += held.len() as u64;
            if sender.send(Ok(std::mem::replace(&mut held, segment))).await.is_err() {
                return Ok(()); // nobody reads any more
            }
        }
        hash.update(&held);
        length += held.len() as u64;
        if length != self.plan.length || hash.digest() != self.plan.checksum {
            return Err(Broken::Wrong);
        }
        let _ = sender.send(Ok(held)).await; // who read may have left
        Ok(())
    }

    async fn segment(&self, number: u32, deadline: Option<Instant>) -> Result<Bytes, Broken> {
        let Self { remote, worker, place, plan, .. } = self;
        let record = remote.tier.segment(*worker, *place, plan.id, number, deadline).await.map_err(|_| Broken::Away)?;
        let name = remote.tier.redis().keys().url(place.epoch, place.url).segment(plan.id, number);
        codec::decode_segment(&remote.seal, name.as_bytes(), &record.ok_or(Broken::Wrong)?).map_err(|_| Broken::Wrong)
    }

    fn gave_up(&self, broken: Broken) {
        if broken == Broken::Wrong {
            self.remote.tier.remove(self.place, self.variant);
            self.remote.plans.invalidate(&self.variant);
        }
    }
}

/// A body as its segments come. Ends well only when all bytes were there.
struct Assembled {
    segments: Receiver<Result<Bytes, BodyError>>,
    left: u64,
}

impl BodyStream for Assembled {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.segments.poll_recv(context).map(|segment| match segment {
            Some(Ok(bytes)) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Some(Ok(Chunk::Data(bytes)))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.left > 0 => Some(Err(BodyError::Reset)),
            None => None,
        })
    }
}

/// What Redis holds for a request, and what a look-up there would give; nothing is taken, promoted or counted. `decision` puts
/// what the rules say into words.
pub async fn explain(proxy: &Proxy, exchange: &Exchange, decision: fn(Reuse) -> String) -> Value {
    let Some(remote) = proxy.remote.get() else { return Value::Null };
    let not_asked = |why: &str| json!({"lookup": format!("none: {why}")});
    if !exchange.routed.route.redis.enabled {
        return not_asked("cache.redis.enabled is false here");
    }
    let now = clock::now();
    let Some(place) = Remote::place(&proxy.journal, &exchange.key, now) else {
        return not_asked("this node is cut off from the fleet's journal");
    };
    match peek(proxy, remote, exchange, place).await {
        Err(error) => json!({"lookup": format!("none: Redis does not answer: {error}")}),
        Ok((at, peeked)) => {
            let lease = peeked.lease.as_ref().map(|lease| lease::describe(lease));
            let (lookup, stored) = explain_peeked(proxy, remote, exchange, (place, at), &peeked, decision, now);
            let lookup = if remote.tier.is_left_alone() { "none at present: Redis did not answer of late".into() } else { lookup };
            json!({"lookup": lookup, "stored": stored, "lease": lease})
        }
    }
}

/// As [`find`].
async fn peek(proxy: &Proxy, remote: &Remote, exchange: &Exchange, place: Place) -> Result<(u128, Peeked), RedisError> {
    let at = variant(&exchange.key, &secondary_known(proxy, exchange, None).unwrap_or_default());
    let peeked = remote.tier.peek(place, at).await?;
    let vary = peeked.primary.as_ref().and_then(|record| remote.vary(place, record));
    let there = vary.map_or(at, |vary| variant(&exchange.key, &vary.secondary_key(&exchange.fields, exchange.policy())));
    Ok(if there == at { (at, peeked) } else { (there, remote.tier.peek(place, there).await?) })
}

fn explain_peeked(
    proxy: &Proxy,
    remote: &Remote,
    exchange: &Exchange,
    (place, at): (Place, u128),
    peeked: &Peeked,
    decision: fn(Reuse) -> String,
    now: Now,
) -> (String, Value) {
    let Some(head) = &peeked.head else {
        let why = if peeked.primary.is_some() { "other variants are there, none that this request selects" } else { "nothing is there" };
        return (format!("miss: {why}"), Value::Null);
    };
    let mut record = match remote.decode(exchange, place, at, head, 0, now) {
        Ok(record) => record,
        Err(why) => return (format!("miss: the record is {}", why.as_str()), Value::Null),
    };
    let assessed = assess(proxy, remote, exchange, &mut record, peeked.floor.as_ref().map(floor_ms), now);
    let (head, lifetime) = (&record.head, record.head.facts.lifetime(exchange.policy()));
    let stored = json!({
        "status": head.status().as_u16(),
        "bytes": record.plan.length,
        "segments": record.plan.segments,
        "age_seconds": head.facts.age_ms(now) as f64 / 1000.0,
        "freshness_lifetime_seconds": lifetime.ms as f64 / 1000.0,
        "stamp": head.stamp.purge.position,
        "matching_purge": proxy.journal.deciding_match(&head.subject(), &head.stamp),
        "dropped_in_seconds": peeked.left_ms / 1000,
    });
    let lookup = match assessed {
        Assessed::Not(why) => format!("unusable: {why}"),
        Assessed::By(reuse, _) => decision(reuse),
    };
    (lookup, stored)
}

/// Offers what was stored here to the tier, which writes it behind, unless the node that owns the key gave it: that one offers
/// it itself, or did. Who held it was asked because it was not there. `sent`: when its fetch, or what confirmed it, was asked
/// for. `lease`: others wait for it, so that it goes first, and they are told when it is there.
pub fn offer(proxy: &Proxy, exchange: &Exchange, response: &Arc<StoredResponse>, sent: Now, giver: Giver, lease: Option<Lease>) {
    if giver == Giver::Peer && lease.is_none() {
        return;
    }
    let (told, outcome) = oneshot::channel();
    let began_before_ms = began_before_ms(&response.head.facts, sent, giver);
    let offered = write(proxy, exchange, response, began_before_ms, lease.is_some().then_some(told));
    let Some(lease) = lease else { return };
    match offered {
        Err(ended) => lease.tell(ended),
        Ok(()) => {
            tokio::spawn(async move {
                let ended = match outcome.await {
                    Ok(TierWrite::Stored | TierWrite::Older) => Ended::Stored,
                    Ok(TierWrite::Outdated) => Ended::Failed,
                    _ => Ended::NotTaken,
                };
                lease.end(ended).await;
            });
        }
    }
}

/// How long before it was received here the fetch of a response began, at the latest: a floor that is raised behind that
/// time takes it. Where another node fetched it, its Age tells, which counts from then, in whole seconds.
fn began_before_ms(facts: &Facts, sent: Now, giver: Giver) -> u64 {
    match giver {
        Giver::Origin => facts.response_time.mono_ms.saturating_sub(sent.mono_ms),
        Giver::Peer | Giver::Holder => facts.initial_age_ms.saturating_add(1000),
    }
}

/// `told`: who waits for it, and is told then, unless it says at once why it is not written.
fn write(
    proxy: &Proxy,
    exchange: &Exchange,
    response: &Arc<StoredResponse>,
    began_before_ms: u64,
    told: Option<oneshot::Sender<TierWrite>>,
) -> Result<(), Ended> {
    let remote = proxy.remote.get().ok_or(Ended::NotTaken)?;
    let now = clock::now();
    is_admitted(&exchange.routed.route.redis, &response.head, Some(response.length))?;
    let body = response.body().ok_or(Ended::NotTaken)?;
    let place = Remote::place(&proxy.journal, &response.head.key, now).ok_or(Ended::NotTaken)?;
    // Stamped in another epoch, or before the journal was heard of: positions would not compare.
    if response.head.stamp.purge.position.epoch != place.epoch {
        return Err(Ended::NotTaken);
    }
    let at = variant(&response.head.key, &response.head.secondary);
    let (remote, journal, response, body) = (remote.clone(), Arc::clone(&proxy.journal), Arc::clone(response), Arc::clone(body));
    let (max_ttl, tier) = (exchange.routed.route.redis.max_ttl, Arc::clone(&remote.tier));
    let bytes = response.length + response.head.fields.wire().len() as u64;
    let records = move || {
        let now = clock::now();
        let keep = response.keep(now).min(max_ttl);
        let is_wanted = Remote::place(&journal, &response.head.key, now) == Some(place)
            && journal.validity(&response.head.subject(), &response.head.stamp) != Validity::Purged
            && keep > Duration::ZERO;
        is_wanted.then(|| remote.records(&response, &body, place, at, began_before_ms, keep, now))
    };
    let put = if told.is_some() { RedisTier::write_next } else { RedisTier::write };
    put(&tier, at, Write::Store { bytes, records: Box::new(records), told });
    Ok(())
}

/// Takes what may not be kept here any more out of the tier, too: other nodes would go on finding it there.
pub fn withdraw(proxy: &Proxy, stored: &StoredHead) {
    let Some(remote) = proxy.remote.get() else { return };
    if let Some(place) = Remote::place(&proxy.journal, &stored.key, clock::now()) {
        remote.tier.remove(place, variant(&stored.key, &stored.secondary));
    }
}

/// Tells the tier that an unsafe method has invalidated these URLs: other nodes learn of it by the journal, which is behind
/// by the time that takes, and may be asked for them before.
pub fn raise_floors(proxy: &Proxy, urls: &[u128], now: Now) {
    let Some(remote) = proxy.remote.get() else { return };
    if !proxy.journal.is_trusted(now) {
        return;
    }
    let began_ms = remote.tier.redis().time_ms(now.wall_ms) + FLOOR_MARGIN_MS;
    remote.tier.raise_floors(proxy.journal.epoch(), urls, began_ms);
}

/// Segments of one response that are looked after when it is replaced: those of the longest that routes may admit (1 GiB).
const SEGMENTS_MAX: u32 = 4096;

/// What two nodes may take Redis' clock for at the same time.
const FLOOR_MARGIN_MS: i64 = 100;

impl Remote {
    fn records(
        &self,
        response: &StoredResponse,
        body: &Arc<StoredBody>,
        place: Place,
        variant: u128,
        began_before_ms: u64,
        keep: Duration,
        now: Now,
    ) -> Records {
        let keys = self.tier.redis().keys().url(place.epoch, place.url);
        let first = bytes_of(body, 0..response.length.min(SEGMENT));
        let there =
            self.plans.get(&variant).filter(|there| there.epoch == place.epoch && std::ptr::eq(there.body.as_ptr(), Arc::as_ptr(body)));
        let plan = there.as_ref().map_or_else(|| plan_of(body, response.length), |there| there.plan);
        let names = (0..plan.segments).map(|number| keys.segment(plan.id, number)).collect::<Vec<_>>();
        let segments = if there.is_some() {
            Segments::There(names)
        } else {
            let (seal, body, length) = (self.seal.clone(), Arc::clone(body), response.length);
            Segments::New(Box::new(names.into_iter().zip(1_u64..).map(move |(name, number)| {
                let segment = bytes_of(&body, number * SEGMENT..length.min((number + 1) * SEGMENT));
                let record = codec::encode_segment(&seal, name.as_bytes(), &segment);
                (name, record)
            })))
        };
        let head = &response.head;
        let received_ms = now.wall_ms.saturating_sub_unsigned(now.mono_ms.saturating_sub(head.facts.response_time.mono_ms));
        let redis = self.tier.redis();
        let received_ms = redis.time_ms(received_ms);
        let times = Times { began_ms: received_ms.saturating_sub_unsigned(began_before_ms), received_ms };
        let (name, primary_name) = (keys.head(variant), keys.primary(place.key));
        let primary = Primary { began_ms: times.began_ms, vary: head.facts.vary.clone() };
        let (plans, written) = (self.plans.clone(), Written { body: Arc::downgrade(body), plan, epoch: place.epoch });
        Records {
            head: (name.clone(), codec::encode_head(&self.seal, name.as_bytes(), head, times, &plan, &first)),
            primary: (primary_name.clone(), primary.encode(&self.seal, primary_name.as_bytes())),
            segments,
            began_at: codec::BEGAN_AT,
            body_at: codec::BODY_AT,
            replaced: {
                let redis = redis.clone();
                Box::new(move |id, segments| match codec::body_of(id) {
                    Some(body) if body != plan.id => {
                        let keys = redis.keys().url(place.epoch, place.url);
                        (0..segments.min(SEGMENTS_MAX)).map(|number| keys.segment(body, number)).collect()
                    }
                    _ => Vec::new(),
                })
            },
            keep,
            written: Box::new(move || {
                if written.plan.segments > 0 {
                    plans.insert(variant, written);
                }
            }),
        }
    }
}

/// Whether the route lets the tier have it, as far as is known; what those who wait for it are told if not.
pub fn is_admitted(admission: &settings::RedisAdmission, head: &StoredHead, length: Option<u64>) -> Result<(), Ended> {
    let of_type = || {
        let value = head.fields.get(name::CONTENT_TYPE).unwrap_or_default();
        let essence = String::from_utf8_lossy(value.split(|byte| *byte == b';').next().unwrap_or_default()).trim().to_ascii_lowercase();
        admission.content_types.iter().any(|wanted| match wanted.strip_suffix('*') {
            Some(prefix) => essence.starts_with(prefix),
            None => essence == *wanted,
        })
    };
    let is_taken = admission.enabled && !head.facts.vary.is_star() && (admission.content_types.is_empty() || of_type());
    match length {
        _ if !is_taken => Err(Ended::NotTaken),
        Some(length) if length > admission.max_object_bytes => Err(Ended::TooLarge),
        _ => Ok(()),
    }
}

fn plan_of(body: &StoredBody, length: u64) -> BodyPlan {
    let mut hash = Xxh3::new();
    for segment in body.segments() {
        hash.update(segment);
    }
    let segments = length.div_ceil(SEGMENT).saturating_sub(1) as u32;
    BodyPlan { id: rand::random(), length, segments, checksum: hash.digest() }
}

/// A part of a body in one piece.
fn bytes_of(body: &StoredBody, range: Range<u64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
    let mut at = 0;
    for segment in body.segments() {
        let end = at + segment.len() as u64;
        let (from, to) = (range.start.clamp(at, end), range.end.clamp(at, end));
        bytes.extend_from_slice(&segment[(from - at) as usize..(to - at) as usize]);
        at = end;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::targeted::TargetList;
    use crate::semantics::{Fields, Method, Request, Response, StatusCode, Target};

    #[test]
    fn parts_of_a_body_are_what_they_say_wherever_it_is_cut() {
        let pieces = [Bytes::from_static(b"abc"), Bytes::from_static(b""), Bytes::from_static(b"defgh"), Bytes::from_static(b"i")];
        let body = StoredBody::new(&pieces);
        let all = b"abcdefghi";
        for start in 0..=all.len() {
            for end in start..=all.len() {
                assert_eq!(bytes_of(&body, start as u64..end as u64), all[start..end], "{start}..{end}");
            }
        }
    }

    #[test]
    fn what_another_node_fetched_began_before_its_age_says() {
        let at = |mono_ms| Now { wall_ms: 1_700_000_000_000 + mono_ms as i64, mono_ms };
        let (sent, received) = (at(5000), at(5200));
        let facts = |age: &str| {
            let mut fields = Fields::new();
            fields.append(name::AGE, age).unwrap();
            let (asked, target) = (Fields::new(), Target::from_url("http://a/").unwrap());
            let request = Request { method: &Method::GET, target: &target, fields: &asked };
            Facts::new(request, Response { status: StatusCode::OK, fields: &fields }, &TargetList::default(), sent, received)
        };
        assert_eq!(began_before_ms(&facts("0"), sent, Giver::Origin), 200);
        // Up to a second of its age is not told; longer than this node runs is not too long.
        assert_eq!(began_before_ms(&facts("0"), sent, Giver::Holder), 1200);
        assert_eq!(began_before_ms(&facts("86400"), sent, Giver::Holder), 86_401_200);
    }

    #[test]
    fn a_plan_covers_the_body() {
        for (length, segments) in [(0, 0), (1, 0), (SEGMENT, 0), (SEGMENT + 1, 1), (2 * SEGMENT, 1), (2 * SEGMENT + 1, 2)] {
            let body = StoredBody::new(&[Bytes::from(vec![7; length as usize])]);
            let plan = plan_of(&body, length);
            assert_eq!((plan.length, plan.segments), (length, segments), "{length}");
        }
    }
}
