//! Rate limits: how many requests somebody may make in a time (`rate_limit`), and how many selectors purge (`purge.rate`).
//!
//! A [`Limiter`] is one limit of the configuration, counted by crate governor (GCRA: a bucket that refills evenly). What
//! it remembers of each client is a bucket in a store that is bounded and shared by all limits: [`Buckets`].
//!
//! A shared limit is counted in Redis ([`SharedCounts`]); here only while Redis does not count.
//!
//! Invariant: a bucket that leaves the store is a full one again. So a bound that is reached lets through too much and
//! never too little.

mod buckets;
pub mod fields;
mod shared;

pub use buckets::Buckets;
pub use shared::SharedCounts;

use crate::clock;
use crate::config::settings::{OnFault, RateLimit};
use crate::observe::metrics::LimitCounters;
use crate::semantics::key::hash128;
use buckets::Counting;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::{NotUntil, Quota, RateLimiter};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// One limit of the configuration.
pub struct Limiter {
    pub settings: RateLimit,
    counting: RateLimiter<u128, Counting, BootClock, NoOpMiddleware<Nanos>>,
    /// Its buckets are its own: the state of a bucket counts from when its limiter was made.
    seed: u128,
    counters: LimitCounters,
    /// Where the fleet counts, for a shared limit.
    shared: Option<Arc<SharedCounts>>,
}

/// When to try again where Redis cannot say.
const FAULT_WAIT: Duration = Duration::from_secs(1);

/// A request that came too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejected {
    /// Until it would be let through; more than zero.
    pub wait: Duration,
}

impl Rejected {
    /// Whole seconds, for Retry-After: not too early, at least one.
    pub fn retry_after_seconds(self) -> u64 {
        (self.wait.as_secs() + u64::from(self.wait.subsec_nanos() > 0)).max(1)
    }
}

/// Who is counted.
#[derive(Debug, Clone, Copy)]
pub enum Caller<'a> {
    /// All together.
    Everybody,
    /// Of an IPv6 address its /64: who has one has them all.
    Client(IpAddr),
    /// The value of a field.
    Field(&'a [u8]),
}

impl Limiter {
    /// With `shared` the fleet counts together.
    pub fn new(settings: RateLimit, buckets: &Buckets, counters: LimitCounters, shared: Option<Arc<SharedCounts>>) -> Self {
        let between = settings.rate.per / settings.rate.count.max(1);
        let burst = NonZeroU32::new(settings.burst).unwrap_or(NonZeroU32::MIN);
        // A rate of more than one in a nanosecond is none.
        let quota = Quota::with_period(between).unwrap_or_else(|| Quota::per_second(NonZeroU32::MAX)).allow_burst(burst);
        let full_after = between.saturating_mul(settings.burst);
        let counting = RateLimiter::new(quota, buckets.counting(full_after), BootClock);
        Self { counting, seed: rand::random(), settings, counters, shared }
    }

    /// Whether the fleet counts together: then [`Limiter::check_shared`] counts.
    pub const fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Whether this is where the fleet counts; `None`: each node counts for itself.
    pub fn counts_at(&self, shared: Option<&Arc<SharedCounts>>) -> bool {
        self.shared.as_ref().map(Arc::as_ptr) == shared.map(Arc::as_ptr)
    }

    /// Counts one request of this caller in the fleet's bucket, or refuses it.
    pub async fn check_shared(&self, caller: u128) -> Result<(), Rejected> {
        let Some(counts) = &self.shared else { return self.check_bucket(caller) };
        match counts.take(&self.settings, caller).await {
            Ok(None) => Ok(()),
            Ok(Some(wait)) => self.reject(wait),
            Err(shared::Fault) => {
                self.counters.uncounted.inc();
                match self.settings.on_fault {
                    OnFault::Allow => self.check_bucket(caller),
                    OnFault::Deny => self.reject(FAULT_WAIT),
                }
            }
        }
    }

    fn reject(&self, wait: Duration) -> Result<(), Rejected> {
        self.counters.rejections.inc();
        Err(Rejected { wait })
    }

    /// Counts one request of this caller on this node, or refuses it.
    pub fn check(&self, caller: Caller<'_>) -> Result<(), Rejected> {
        self.check_bucket(caller.hash())
    }

    fn check_bucket(&self, caller: u128) -> Result<(), Rejected> {
        self.told(self.counting.check_key(&(self.seed ^ caller)))
    }

    /// Counts several at once, or refuses them all. More than the bucket holds are let through when it is full.
    pub fn check_several(&self, caller: Caller<'_>, count: usize) -> Result<(), Rejected> {
        let count = u32::try_from(count).unwrap_or(u32::MAX).clamp(1, self.settings.burst.max(1));
        let Some(count) = NonZeroU32::new(count) else { return Ok(()) };
        match self.counting.check_key_n(&(self.seed ^ caller.hash()), count) {
            Ok(checked) => self.told(checked),
            Err(_) => Ok(()), // never: it is at most the burst
        }
    }

    fn told(&self, checked: Result<(), NotUntil<Nanos>>) -> Result<(), Rejected> {
        checked.or_else(|not_until| self.reject(not_until.wait_time_from(BootClock.now()).max(Duration::from_nanos(1))))
    }
}

impl Caller<'_> {
    /// Equal on all nodes; of what is secret in a field nothing else is kept.
    pub fn hash(self) -> u128 {
        match self {
            Self::Everybody => hash128(b"*"),
            Self::Client(address) => match address.to_canonical() {
                IpAddr::V4(address) => hash128(&[b"4".as_slice(), &address.octets()].concat()),
                IpAddr::V6(address) => hash128(&[b"6".as_slice(), &address.octets()[..8]].concat()),
            },
            Self::Field(value) => hash128(&[b"=".as_slice(), value].concat()),
        }
    }
}

/// The boot-time clock.
struct BootClock;

impl Clock for BootClock {
    type Instant = Nanos;
    fn now(&self) -> Nanos {
        clock::nanos().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::settings::{LimitBy, Rate};
    use crate::observe::metrics::Metrics;

    fn limiter(count: u32, per: Duration, burst: u32, buckets: &Buckets) -> Limiter {
        let (shared, on_fault) = (false, OnFault::Allow);
        let settings = RateLimit { name: "shop".into(), rate: Rate { count, per }, burst, by: LimitBy::Client, shared, on_fault };
        Limiter::new(settings, buckets, Metrics::new(1).rate_limit_counters("shop"), None)
    }

    fn buckets(capacity: u64) -> Buckets {
        Buckets::new(capacity, || {})
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_burst_is_let_through_and_then_one_at_a_time() {
        let limiter = limiter(10, Duration::from_secs(1), 3, &buckets(100));
        let client = Caller::Client("192.0.2.1".parse().unwrap());
        assert!((0..3).all(|_| limiter.check(client).is_ok()));
        let rejected = limiter.check(client).unwrap_err();
        assert!(rejected.wait <= Duration::from_millis(100) && rejected.retry_after_seconds() == 1, "{rejected:?}");
        assert!(limiter.check(Caller::Client("192.0.2.2".parse().unwrap())).is_ok(), "another client");
        while limiter.check(client).is_err() {
            std::thread::yield_now();
        }
        assert!(limiter.check(client).is_err(), "only one came");
    }

    #[test]
    fn clients_are_counted_by_address_and_ipv6_by_network() {
        let limiter = limiter(1, HOUR, 1, &buckets(100));
        let check = |address: &str| limiter.check(Caller::Client(address.parse().unwrap())).is_ok();
        for (address, let_through) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", false),
            ("192.0.2.2", true),
            ("2001:db8::1", true),
            ("2001:db8::ffff:1", false),
            ("2001:db8:0:1::1", true),
        ] {
            assert_eq!(check(address), let_through, "{address}");
        }
        let field = |value: &str| limiter.check(Caller::Field(value.as_bytes())).is_ok();
        assert_eq!([field("a"), field("b"), field("a")], [true, true, false]);
        assert!(limiter.check(Caller::Everybody).is_ok() && limiter.check(Caller::Everybody).is_err());
    }

    #[test]
    fn several_are_let_through_whole_or_not_at_all() {
        let limiter = limiter(10, HOUR, 10, &buckets(100));
        assert!(limiter.check_several(Caller::Everybody, 7).is_ok());
        assert!(limiter.check_several(Caller::Everybody, 4).is_err());
        assert!(limiter.check_several(Caller::Everybody, 3).is_ok(), "the refused ones were not counted");
        let client = Caller::Client("192.0.2.1".parse().unwrap());
        assert!(limiter.check_several(client, 1000).is_ok(), "a full bucket lets any number through");
        assert!(limiter.check_several(client, 1).is_err());
    }

    #[test]
    fn the_store_is_bounded_and_tells_when_it_is_full() {
        let full = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let told = Arc::clone(&full);
        let buckets = Buckets::new(100, move || {
            told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        let limiter = limiter(1, HOUR, 1, &buckets);
        for number in 0..10_000_u32 {
            let _ = limiter.check(Caller::Client(std::net::Ipv4Addr::from(number).into()));
        }
        assert!(buckets.count() <= 100, "{}", buckets.count());
        assert!(full.load(std::sync::atomic::Ordering::Relaxed) >= 9_000);
    }

    #[test]
    fn limiters_do_not_read_the_buckets_of_others() {
        let buckets = buckets(100);
        let (first, second) = (limiter(1, HOUR, 1, &buckets), limiter(1, HOUR, 1, &buckets));
        assert!(first.check(Caller::Everybody).is_ok() && first.check(Caller::Everybody).is_err());
        assert!(second.check(Caller::Everybody).is_ok());
    }

    #[test]
    fn many_threads_get_no_more_than_one() {
        let limiter = limiter(1, HOUR, 500, &buckets(100));
        let let_through = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let passed = limiter.check(Caller::Everybody).is_ok();
                        let_through.fetch_add(usize::from(passed), std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(let_through.into_inner(), 500);
    }

    #[test]
    fn retry_after_is_never_too_early() {
        for (millis, seconds) in [(1, 1), (999, 1), (1000, 1), (1001, 2), (3_600_000, 3600)] {
            assert_eq!(Rejected { wait: Duration::from_millis(millis) }.retry_after_seconds(), seconds, "{millis}");
        }
    }
}
