//! Connections to Redis: one deployment as configured (a server, a master that Sentinel names, a Cluster), and links to it.
//!
//! A [`Link`] is one connection with a purpose of its own, so that no command waits behind another purpose's answers. It
//! is made on the runtime that first uses it, carries many commands at a time, and is renewed when it breaks; meanwhile
//! commands fail at once. Nothing here retries a command (but the client of a Cluster, which follows redirections), and nothing here knows what the keys mean.

mod breaker;
mod connect;
mod error;
mod keys;
mod link;
mod script;
mod subscription;

pub use self::breaker::Breaker;
pub use self::connect::{Holder, Role, Server, unsuited};
pub use self::error::RedisError;
pub use self::keys::{Kept, Keys, UrlKeys};
pub use self::link::{Connected, Link};
pub use self::script::Script;
pub use self::subscription::{Message, Subscription};
pub use crate::observe::metrics::RedisUse as Use;
pub use ::redis::streams::StreamReadReply;
pub use ::redis::{Cmd, FromRedisValue, Pipeline, ToRedisArgs, Value, cmd, from_redis_value, pipe};

use crate::config::settings;
use crate::observe::metrics::Metrics;
use connect::Target;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

/// A deployment of Redis. Cheap to clone; makes links, and knows the keys and the time there.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    keys: Keys,
    metrics: Arc<Metrics>,
    /// Milliseconds by which Redis' clock is ahead of ours.
    clock_offset: AtomicI64,
    /// A bit per use: what was warned of holds.
    unsuited: AtomicU32,
}

/// More than this between the two clocks is warned about.
const CLOCK_OFFSET_WARNED_MS: u64 = 1000;

impl Redis {
    /// Connects to nothing yet; fails where certificates or addresses cannot be used.
    pub fn new(settings: &settings::Redis, metrics: &Arc<Metrics>) -> Result<Self, RedisError> {
        Ok(Self {
            shared: Arc::new(Shared {
                target: Target::new(settings)?,
                keys: Keys::new(&settings.prefix),
                metrics: Arc::clone(metrics),
                clock_offset: AtomicI64::new(0),
                unsuited: AtomicU32::new(0),
            }),
        })
    }

    /// A connection of its own, made when it is first used, by the runtime that does.
    pub fn link(&self, purpose: Use) -> Link {
        Link::new(Arc::clone(&self.shared), purpose)
    }

    /// Listens on channels; messages beyond `capacity` that are not taken are dropped. To be called on a runtime.
    pub fn subscribe(&self, channels: Vec<String>, capacity: usize) -> Subscription {
        Subscription::new(Arc::clone(&self.shared), channels, capacity)
    }

    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// What Redis' clock says at this time of ours, in milliseconds of Unix time.
    pub fn time_ms(&self, wall_ms: i64) -> i64 {
        wall_ms.saturating_add(self.shared.clock_offset.load(Ordering::Relaxed))
    }

    /// Where it is, for people: without secrets.
    pub fn address(&self) -> String {
        self.shared.target.to_string()
    }
}

impl Shared {
    /// Says once that a server that is full would do the wrong thing with what this use keeps there. `policies`: of all that keep it.
    fn check_policy(&self, purpose: Use, policies: &[String]) {
        let wrong = policies.iter().find_map(|policy| Some((policy, unsuited(policy, purpose)?)));
        let bit = 1 << purpose as u32;
        self.metrics.redis.unsuited(purpose, wrong.is_some());
        let before =
            if wrong.is_some() { self.unsuited.fetch_or(bit, Ordering::Relaxed) } else { self.unsuited.fetch_and(!bit, Ordering::Relaxed) };
        if let Some((policy, effect)) = wrong
            && before & bit == 0
        {
            tracing::warn!(redis = %self.target, policy, effect, "Redis does the wrong thing when it is full: set maxmemory-policy to volatile-lru or another volatile-*");
        }
    }

    /// `offset_ms`: by how much Redis' clock is ahead, as measured now.
    fn set_clock_offset(&self, offset_ms: i64) {
        let before = self.clock_offset.swap(offset_ms, Ordering::Relaxed);
        self.metrics.redis.clock_offset(offset_ms);
        let is_far = |ms: i64| ms.unsigned_abs() > CLOCK_OFFSET_WARNED_MS;
        if is_far(offset_ms) && !is_far(before) {
            tracing::warn!(redis = %self.target, offset_ms, "the clock of Redis differs from this host's: keep both synchronised");
        }
    }
}
