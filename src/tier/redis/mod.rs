//! The tier that the fleet shares: records of stored responses in Redis, found in one round trip, written behind.
//!
//! It keeps bytes under keys until a deadline and knows nothing of HTTP: what the bytes mean is `cache::codec`, and what may
//! be used is decided by the request path. A fault here is a miss: look-ups have a budget, and a [`Breaker`] keeps them out
//! while Redis does not answer; writes wait in a bounded queue, floors in another, from which they are dropped when it is full
//! or Redis fails.
//!
//! Per cache key there is a primary record, per stored response a head record with the first bytes of its body, and for
//! long bodies segments under a name of their own. The head is written last and makes the response visible; it replaces
//! another only if its fetch began later.

mod floors;
mod queue;
mod usage;

pub use queue::{Records, Segments, Write};
pub use usage::{Usage, usage};

use crate::clock;
use crate::coalesce::lease::{Asking, Claim, Leases, Outcome};
use crate::config::settings;
use crate::observe::metrics::{Metrics, TierLookup};
use crate::redis::{Breaker, Cmd, FromRedisValue, Link, Redis, RedisError, Use, cmd, pipe};
use bytes::Bytes;
use moka::sync::Cache;
use queue::Queue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of a body in one record.
pub const SEGMENT: u64 = 256 * 1024;
/// For one segment of a body that is being delivered.
const SEGMENT_WITHIN: Duration = Duration::from_secs(2);
/// For what people ask.
const PEEK_WITHIN: Duration = Duration::from_secs(1);
/// Look-ups in vain that are remembered; about 100 bytes each.
const MISSES_MAX: u64 = 65_536;
/// Failures in a row after which the tier is left alone.
const BREAKER_AFTER: u32 = 5;
/// While Redis takes no writes: so many look-ups in a row that find nothing, and then one in so many is made, until one finds
/// something. What it holds gets less and less, and each miss would pay a round trip for nothing.
const VAIN_MAX: u32 = 256;
const SPARED_ONE_IN: u32 = 16;

/// Where the records of one cache key are: all in one slot of a Cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Of the fleet's journal: what was stored in another epoch is never found.
    pub epoch: u64,
    pub url: u128,
    pub key: u128,
}

/// The lease that a look-up asks for, in case the response is not there.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub leases: &'a Leases,
    /// The fields that the key's responses vary by are known, so that another variant is no reason against it.
    pub is_vary_known: bool,
    /// An outcome that was of no use.
    pub useless: Option<&'a Outcome>,
}

/// What one look-up found.
pub struct Found {
    /// What was fetched before this time is unusable: milliseconds of Redis' clock, as text.
    pub floor: Option<Bytes>,
    pub primary: Option<Bytes>,
    pub head: Option<Bytes>,
    pub claim: Claim,
}

/// What a look-up would find, for people.
pub struct Peeked {
    pub floor: Option<Bytes>,
    pub primary: Option<Bytes>,
    pub head: Option<Bytes>,
    /// How long the head record is there yet; negative where it is not.
    pub left_ms: i64,
    pub lease: Option<Bytes>,
}

pub struct RedisTier {
    redis: Redis,
    settings: settings::RedisTier,
    /// One of each per worker, on its runtime.
    links: Box<[Links]>,
    reading: Arc<Reading>,
    /// Whether segments are given: look-ups may be answered all the same.
    bodies: Breaker,
    /// Look-ups in a row that found nothing, and those that were not made for that.
    vain: AtomicU32,
    spared: AtomicU32,
    /// Variants that were not there a moment ago.
    misses: Cache<u128, ()>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
}

/// Whether reading is answered.
struct Reading {
    breaker: Breaker,
    metrics: Arc<Metrics>,
    address: String,
}

impl Reading {
    fn ended<T>(&self, result: &Result<T, RedisError>) {
        match result {
            Ok(_) if self.breaker.succeeded() => {
                self.metrics.tiers.breaker(true);
                tracing::info!(redis = self.address, "Redis answers again: the tier is used");
            }
            Err(error) if self.breaker.failed(clock::now().mono_ms) => {
                self.metrics.tiers.breaker(false);
                tracing::warn!(%error, redis = self.address, "Redis does not answer: the tier is left alone until it does");
            }
            Ok(_) | Err(_) => {}
        }
    }
}

struct Links {
    lookup: Arc<Link>,
    bodies: Arc<Link>,
}

impl RedisTier {
    /// Starts the thread that writes; it ends with the tier.
    pub fn start(redis: Redis, settings: settings::RedisTier, workers: usize, metrics: &Arc<Metrics>) -> std::io::Result<Arc<Self>> {
        let queue = Queue::start(redis.clone(), &settings, Arc::clone(metrics))?;
        let links = || Links { lookup: Arc::new(redis.link(Use::Lookup)), bodies: Arc::new(redis.link(Use::Bodies)) };
        Ok(Arc::new(Self {
            links: (0..workers.max(1)).map(|_| links()).collect(),
            reading: Arc::new(Reading { breaker: Breaker::new(BREAKER_AFTER), metrics: Arc::clone(metrics), address: redis.address() }),
            bodies: Breaker::new(BREAKER_AFTER),
            vain: AtomicU32::new(0),
            spared: AtomicU32::new(0),
            misses: Cache::builder().max_capacity(MISSES_MAX).time_to_live(settings.remember_misses).build(),
            queue,
            metrics: Arc::clone(metrics),
            redis,
            settings,
        }))
    }

    pub const fn settings(&self) -> &settings::RedisTier {
        &self.settings
    }

    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    pub const fn redis(&self) -> &Redis {
        &self.redis
    }

    /// Until when a look-up that begins now may take.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.settings.lookup_budget
    }

    /// Floor, primary record and the head record of one variant, in one round trip; and where a lease is wanted, that too.
    /// Where none is, what was not there a moment ago is not looked for.
    ///
    /// `Err`: it cannot be known now, and why.
    pub async fn look(
        &self,
        worker: usize,
        place: Place,
        variant: u128,
        wanted: Option<Wanted<'_>>,
        deadline: Instant,
    ) -> Result<Found, TierLookup> {
        let keys = self.redis.keys().url(place.epoch, place.url);
        let names = [keys.head(variant), keys.primary(place.key), keys.floor()];
        // A Redis that takes no writes gives no leases.
        let wanted = wanted.filter(|_| self.queue.takes_writes());
        let known = if wanted.is_none() && self.misses.contains_key(&variant) {
            Some(TierLookup::Remembered)
        } else {
            self.is_spared().then_some(TierLookup::Spared)
        };
        if let Some(known) = known {
            self.metrics.tiers.lookup(known);
            return Err(known);
        }
        let mut read = cmd("MGET");
        read.arg(&names);
        let asked = async |link: &Link, within: Duration| match wanted {
            Some(Wanted { leases, is_vary_known, useless }) => {
                let absent = if is_vary_known { 1 } else { 2 };
                let asking = Asking { key: keys.lease(variant), records: &names, absent, useless };
                match leases.ask_along(link, within, asking).await {
                    // It cannot be taken, and the records can be read all the same.
                    Err(error) if error.is_out_of_memory() || error.is_read_only() => {
                        Ok((Claim::Unknown, link.query(&read, within).await?))
                    }
                    asked => asked,
                }
            }
            None => Ok((Claim::Unknown, link.query(&read, within).await?)),
        };
        let asked: Result<(Claim, Vec<Record>), _> = self.ask(worker, deadline, &names, asked).await;
        let (claim, records) = asked.inspect_err(|why| self.metrics.tiers.lookup(*why))?;
        let mut records = records.into_iter().map(|Record(record)| record);
        let mut next = || records.next().flatten();
        let found = Found { head: next(), primary: next(), floor: next(), claim };
        if found.head.is_some() || found.primary.is_some() {
            self.vain.store(0, Ordering::Relaxed);
        } else {
            self.vain.fetch_add(1, Ordering::Relaxed);
            if wanted.is_none() {
                self.misses.insert(variant, ());
            }
        }
        Ok(found)
    }

    /// Looks without taking or counting anything, on a connection of its own.
    pub async fn peek(&self, place: Place, variant: u128) -> Result<Peeked, RedisError> {
        let (link, keys) = (self.redis.link(Use::Admin), self.redis.keys().url(place.epoch, place.url));
        link.ready(PEEK_WITHIN).await?;
        let head = keys.head(variant);
        let mut asked = pipe();
        asked.cmd("MGET").arg(&[head.as_str(), &keys.primary(place.key), &keys.floor(), &keys.lease(variant)]).cmd("PTTL").arg(&head);
        let (records, left_ms): ((Record, Record, Record, Record), i64) = link.pipeline(&asked, PEEK_WITHIN).await?;
        let (Record(head), Record(primary), Record(floor), Record(lease)) = records;
        Ok(Peeked { floor, primary, head, left_ms, lease })
    }

    /// Whether look-ups leave Redis alone because it does not answer.
    pub fn is_left_alone(&self) -> bool {
        !self.reading.breaker.is_closed()
    }

    /// Whether this look-up is not worth its round trip.
    fn is_spared(&self) -> bool {
        !self.queue.takes_writes()
            && self.vain.load(Ordering::Relaxed) >= VAIN_MAX
            && !self.spared.fetch_add(1, Ordering::Relaxed).is_multiple_of(SPARED_ONE_IN)
    }

    /// One segment of a body, if it is there. `deadline`: that of the look-up; without one the body is being delivered, which is
    /// worth waiting for.
    pub async fn segment(
        &self,
        worker: usize,
        place: Place,
        body: u128,
        number: u32,
        deadline: Option<Instant>,
    ) -> Result<Option<Bytes>, RedisError> {
        if deadline.is_some() && !self.bodies.admits(clock::now().mono_ms) {
            return Err(RedisError::Away);
        }
        let link = &self.links[worker % self.links.len()].bodies;
        let deadline = deadline.unwrap_or_else(|| Instant::now() + SEGMENT_WITHIN);
        let mut command = cmd("GET");
        command.arg(self.redis.keys().url(place.epoch, place.url).segment(body, number));
        let result = match link.ready(left(deadline)).await {
            Ok(_) => link.query::<Record>(&command, left(deadline)).await,
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) if self.bodies.succeeded() => tracing::info!(redis = self.redis.address(), "Redis gives long bodies again"),
            Err(error) if self.bodies.failed(clock::now().mono_ms) => {
                tracing::warn!(%error, redis = self.redis.address(), "Redis gives no long bodies: they are misses until it does");
            }
            Ok(_) | Err(_) => {}
        }
        Ok(result?.0)
    }

    /// Has something written, when its turn comes; where the queue is full it is dropped and counted.
    pub fn write(&self, variant: u128, write: Write) {
        self.misses.invalidate(&variant);
        self.queue.push(write);
    }

    /// The same, next: somebody waits for it.
    pub fn write_next(&self, variant: u128, write: Write) {
        self.misses.invalidate(&variant);
        self.queue.push_first(write);
    }

    /// Makes everything of these URLs unusable that was fetched before this time of Redis' clock.
    pub fn raise_floors(&self, epoch: u64, urls: &[u128], began_ms: i64) {
        self.queue.floors.raise(urls.iter().map(|url| (floors::Url { epoch, url: *url }, began_ms)));
    }

    /// Takes a head record out that led to nothing.
    pub fn remove(&self, place: Place, variant: u128) {
        self.queue.push(Write::Remove { name: self.redis.keys().url(place.epoch, place.url).head(variant) });
    }

    /// What a command of a look-up comes to, unless the tier is left alone. `names`: what it reads, for a probe.
    async fn ask<T>(
        &self,
        worker: usize,
        deadline: Instant,
        names: &[String],
        command: impl AsyncFnOnce(&Link, Duration) -> Result<T, RedisError>,
    ) -> Result<T, TierLookup> {
        let link = &self.links[worker % self.links.len()].lookup;
        if !self.reading.breaker.is_closed() {
            if self.reading.breaker.admits(clock::now().mono_ms) {
                let mut command = cmd("MGET");
                command.arg(names);
                tokio::spawn(probe(Arc::clone(link), Arc::clone(&self.reading), command, self.settings.lookup_budget));
            }
            return Err(TierLookup::Skipped);
        }
        // A connection that was never made is not away: the first look-up of a worker waits for it.
        if link.is_new() {
            let _ = link.ready(left(deadline)).await; // the command tells
        }
        let within = left(deadline);
        // What was asked before took all the time: this says nothing of Redis that is not known.
        if within.is_zero() && !link.is_new() {
            return Err(TierLookup::Timeout);
        }
        let result = command(link, within).await;
        self.reading.ended(&result);
        result.map_err(|error| if error == RedisError::Timeout { TierLookup::Timeout } else { TierLookup::Failed })
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// Half open: a task of its own asks what a look-up would, so that no request pays for it.
async fn probe(link: Arc<Link>, reading: Arc<Reading>, command: Cmd, within: Duration) {
    let result = match link.ready(within).await {
        Ok(_) => link.query::<Vec<Record>>(&command, within).await,
        Err(error) => Err(error),
    };
    reading.ended(&result);
}

/// A record, taken over without a copy.
struct Record(Option<Bytes>);

impl FromRedisValue for Record {
    fn from_redis_value(value: crate::redis::Value) -> Result<Self, ::redis::ParsingError> {
        use crate::redis::Value;
        match value {
            Value::Nil => Ok(Self(None)),
            Value::BulkString(bytes) => Ok(Self(Some(bytes.into()))),
            other => Ok(Self(Some(Vec::<u8>::from_redis_value(other)?.into()))),
        }
    }
}
