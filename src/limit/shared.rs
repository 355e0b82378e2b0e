//! Rate limits that a fleet shares: the same bucket as a number in Redis, counted by its clock.
//!
//! One round trip for each request, within a budget, but for those of a caller that is known to be refused. Redis slow,
//! gone or full is no failure of the request: `on_fault` says what happens then, and after a few faults in a row a
//! [`Breaker`] leaves Redis alone for a moment, so that not every request pays the budget.

use crate::clock;
use crate::config::settings::{self, RateLimit};
use crate::observe::metrics::Metrics;
use crate::redis::{Breaker, Keys, Link, Redis, RedisError, Script, Use};
use moka::sync::Cache;
use std::sync::Arc;
use std::time::Duration;

/// Faults in a row after which Redis is left alone.
const BREAKER_AFTER: u32 = 5;
/// Empty buckets that are known here, about 200 bytes each, and for how long at most.
const EMPTY_MAX: u64 = 16_384;
const EMPTY_KNOWN: Duration = Duration::from_secs(10);

/// Microseconds until it would be let through; 0: it is, and was counted. The key goes when its bucket is full.
const TAKE: &str = "\
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local between, burst, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full = tonumber(redis.call('GET', KEYS[1]) or now)
if full < now then full = now end
full = full + between * count
local early = full - between * burst - now
if early > 0 then return math.ceil(early) end
redis.call('SET', KEYS[1], string.format('%.17g', full), 'PX', math.ceil((full - now) / 1000) + 1)
return 0";

/// The counts of a fleet.
pub struct SharedCounts {
    keys: Keys,
    link: Link,
    take: Script,
    /// What Redis may take for one answer, connecting aside, which may take as long again.
    budget: Duration,
    breaker: Breaker,
    /// Buckets that are empty until then, boot-time nanoseconds: whoever goes on asking costs no round trips.
    empty_until: Cache<String, u64>,
}

/// Redis did not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

impl SharedCounts {
    /// Connects when it is first asked.
    pub fn new(settings: &settings::Redis, budget: Duration, metrics: &Arc<Metrics>) -> Result<Self, RedisError> {
        let redis = Redis::new(settings, metrics)?;
        Ok(Self {
            keys: redis.keys().clone(),
            link: redis.link(Use::Limit),
            take: Script::new(TAKE),
            budget,
            breaker: Breaker::new(BREAKER_AFTER),
            empty_until: Cache::builder().max_capacity(EMPTY_MAX).time_to_live(EMPTY_KNOWN).build(),
        })
    }

    /// Takes one from the bucket of a caller, if there is one: `Some` is how long until there is.
    pub async fn take(&self, limit: &RateLimit, caller: u128) -> Result<Option<Duration>, Fault> {
        let (now, key) = (clock::nanos(), self.keys.limit(format_args!("{}:{caller:032x}", limit.name)));
        if let Some(until) = self.empty_until.get(&key).filter(|until| *until > now) {
            return Ok(Some(Duration::from_nanos(until - now)));
        }
        let now_ms = clock::now().mono_ms;
        if !self.breaker.admits(now_ms) {
            return Err(Fault);
        }
        match self.ask(limit, &key).await {
            Ok(wait_us) => {
                if self.breaker.succeeded() {
                    tracing::info!(limit = limit.name, "Redis answers again: shared rate limits hold");
                }
                let wait = Duration::from_micros(wait_us);
                if !wait.is_zero() {
                    self.empty_until.insert(key, clock::nanos() + wait.as_nanos() as u64);
                }
                Ok((!wait.is_zero()).then_some(wait))
            }
            Err(error) => {
                if self.breaker.failed(clock::now().mono_ms) {
                    tracing::warn!(limit = limit.name, %error, "shared rate limits do not hold: Redis does not answer");
                }
                Err(Fault)
            }
        }
    }

    async fn ask(&self, limit: &RateLimit, key: &str) -> Result<u64, RedisError> {
        if self.link.connected().is_none() {
            self.link.ready(self.budget).await?;
        }
        let between_us = limit.rate.per.as_secs_f64() * 1e6 / f64::from(limit.rate.count);
        let arguments = [format!("{between_us}"), limit.burst.to_string(), "1".to_owned()];
        self.link.script(&self.take, &[key], &arguments, self.budget).await
    }
}
