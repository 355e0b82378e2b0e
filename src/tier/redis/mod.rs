//! The tier that the fleet shares: records of stored responses in Redis, found in one round trip, written behind.
//!
//! It keeps bytes under keys until a deadline and knows nothing of HTTP: what the bytes mean is `cache::codec`, and what may
//! be used is decided by the request path. A fault here is a miss: look-ups have a budget, and a [`Breaker`] keeps them out
//! while Redis does not answer; writes wait in a bounded queue, from which they are dropped when it is full or Redis fails.
//!
//! Per cache key there is a primary record, per stored response a head record with the first bytes of its body, and for
//! long bodies segments under a name of their own. The head is written last and makes the response visible; it replaces
//! another only if its fetch began later.

mod queue;
mod usage;

pub use queue::{Records, Segments, Write};
pub use usage::{Usage, usage};

use crate::clock;
use crate::coalesce::lease::{Asking, Claim, Leases, Outcome};
use crate::config::settings;
use crate::observe::metrics::{Metrics, TierLookup};
use crate::redis::{Breaker, FromRedisValue, Link, Redis, RedisError, Use, cmd};
use bytes::Bytes;
use moka::sync::Cache;
use queue::Queue;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes of a body in one record.
pub const SEGMENT: u64 = 256 * 1024;
/// For one segment of a body that is being delivered.
const SEGMENT_WITHIN: Duration = Duration::from_secs(2);
/// Look-ups in vain that are remembered; about 100 bytes each.
const MISSES_MAX: u64 = 65_536;
/// Failures in a row after which the tier is left alone.
const BREAKER_AFTER: u32 = 5;

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

pub struct RedisTier {
    redis: Redis,
    settings: settings::RedisTier,
    /// One of each per worker, on its runtime.
    links: Box<[Links]>,
    reading: Arc<Breaker>,
    probing: Arc<AtomicBool>,
    /// Variants that were not there a moment ago.
    misses: Cache<u128, ()>,
    queue: Arc<Queue>,
    metrics: Arc<Metrics>,
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
            reading: Arc::new(Breaker::new(BREAKER_AFTER)),
            probing: Arc::default(),
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

    /// Floor, primary record and the head record of one variant, in one round trip within the budget; and where a lease is
    /// wanted, that too. Where none is, what was not there a moment ago is not looked for.
    ///
    /// `None`: it cannot be known now.
    pub async fn look(&self, worker: usize, place: Place, variant: u128, wanted: Option<Wanted<'_>>) -> Option<Found> {
        let keys = self.redis.keys().url(place.epoch, place.url);
        let names = [keys.head(variant), keys.primary(place.key), keys.floor()];
        let found = match wanted {
            Some(Wanted { leases, is_vary_known, useless }) => {
                let absent = if is_vary_known { 1 } else { 2 };
                let asking = Asking { key: keys.lease(variant), records: &names, absent, useless };
                let (claim, records) = self.ask(worker, async |link, budget| leases.ask_along(link, budget, asking).await).await?;
                let mut records = records.into_iter().map(|Record(record)| record);
                let mut next = || records.next().flatten();
                Found { head: next(), primary: next(), floor: next(), claim }
            }
            None if self.misses.contains_key(&variant) => {
                self.metrics.tiers.lookup(TierLookup::Remembered);
                return None;
            }
            None => {
                let mut command = cmd("MGET");
                command.arg(&names);
                let (head, primary, floor): (Record, Record, Record) =
                    self.ask(worker, async |link, budget| link.query(&command, budget).await).await?;
                if head.0.is_none() && primary.0.is_none() {
                    self.misses.insert(variant, ());
                }
                Found { head: head.0, primary: primary.0, floor: floor.0, claim: Claim::Unknown }
            }
        };
        Some(found)
    }

    /// One segment of a body, if it is there. `is_begun`: the body is being delivered, which is worth waiting for; else the
    /// budget counts.
    pub async fn segment(&self, worker: usize, place: Place, body: u128, number: u32, is_begun: bool) -> Result<Option<Bytes>, RedisError> {
        let link = &self.links[worker % self.links.len()].bodies;
        let within = if is_begun { SEGMENT_WITHIN } else { self.settings.lookup_budget };
        let mut command = cmd("GET");
        command.arg(self.redis.keys().url(place.epoch, place.url).segment(body, number));
        link.ready(within).await?;
        Ok(link.query::<Record>(&command, within).await?.0)
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

    /// Makes everything of a URL unusable that was fetched before this time of Redis' clock.
    pub fn raise_floor(&self, epoch: u64, url: u128, began_ms: i64) {
        self.queue.push(Write::Floor { name: self.redis.keys().url(epoch, url).floor(), began_ms });
    }

    /// Takes a head record out that led to nothing.
    pub fn remove(&self, place: Place, variant: u128) {
        self.queue.push(Write::Remove { name: self.redis.keys().url(place.epoch, place.url).head(variant) });
    }

    /// What a command of a look-up comes to, unless the tier is left alone.
    async fn ask<T>(&self, worker: usize, command: impl AsyncFnOnce(&Link, Duration) -> Result<T, RedisError>) -> Option<T> {
        let now_ms = clock::now().mono_ms;
        if !self.reading.is_closed() {
            self.metrics.tiers.lookup(TierLookup::Skipped);
            self.probe(worker, now_ms);
            return None;
        }
        let (link, budget) = (&self.links[worker % self.links.len()].lookup, self.settings.lookup_budget);
        // A connection that was never made is not away: the first look-up of a worker waits for it.
        if link.is_new() {
            let _ = link.ready(budget).await; // the command tells
        }
        match command(link, budget).await {
            Ok(answer) => {
                self.reading.succeeded();
                Some(answer)
            }
            Err(error) => {
                self.metrics.tiers.lookup(if error == RedisError::Timeout { TierLookup::Timeout } else { TierLookup::Failed });
                if self.reading.failed(clock::now().mono_ms) {
                    self.metrics.tiers.breaker(false);
                    tracing::warn!(%error, redis = self.redis.address(), "Redis does not answer: the tier is left alone until it does");
                }
                None
            }
        }
    }

    /// Half open: a task of its own asks, so that no request pays for it.
    fn probe(&self, worker: usize, now_ms: u64) {
        if !self.reading.is_probe_due(now_ms) || self.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let link = Arc::clone(&self.links[worker % self.links.len()].lookup);
        let (breaker, probing) = (Arc::clone(&self.reading), Arc::clone(&self.probing));
        let (metrics, within, address) = (Arc::clone(&self.metrics), self.settings.lookup_budget, self.redis.address());
        tokio::spawn(async move {
            match link.query::<String>(&cmd("PING"), within).await {
                Ok(_) => {
                    breaker.succeeded();
                    metrics.tiers.breaker(true);
                    tracing::info!(redis = address, "Redis answers again: the tier is used");
                }
                Err(_) => {
                    breaker.failed(clock::now().mono_ms);
                }
            }
            probing.store(false, Ordering::Release);
        });
    }
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
