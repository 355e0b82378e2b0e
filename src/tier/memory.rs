//! The memory tier, on moka: byte weights, TinyLFU or LRU, a deadline per value.
//!
//! Invariants: values are immutable and shared; every change goes through [`MemoryTier::update`], which moka runs
//! under a lock of the key and weighs anew; its closure does no I/O. One `get` per request: moka logs every read.

use moka::Expiry;
use moka::notification::RemovalCause;
use moka::ops::compute::Op;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a value must tell about itself.
pub trait Held: Send + Sync + 'static {
    /// Bytes that the value costs the process, all in.
    fn weight(&self) -> u32;
    /// How long from now until it is worth nothing.
    fn keep(&self) -> Duration;
}

/// What to do with the value of a key.
pub enum Change<V> {
    /// Leave it as it is.
    Keep,
    Put(Arc<V>),
    Remove,
}

/// Why a value left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// For capacity, or refused by the admission policy.
    Size,
    /// Past its deadline.
    Dropped,
    Removed,
}

impl Eviction {
    /// Label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Dropped => "dropped",
            Self::Removed => "removed",
        }
    }
}

/// Told of a value that left, and why.
pub type OnEviction<V> = Box<dyn Fn(&Arc<V>, Eviction) + Send + Sync>;

/// What the tier is made of.
pub struct Setup<V> {
    /// Bytes.
    pub capacity: u64,
    pub lru: bool,
    /// Told of each value that leaves for good (not of replaced ones). Runs on whichever thread does the housekeeping: keep it short.
    pub on_eviction: OnEviction<V>,
}

/// Values by the 128-bit hash of their key; whoever stores compares the whole key.
pub struct MemoryTier<V: Held> {
    cache: Cache<u128, Arc<V>, BuildHasherDefault<Folded>>,
    capacity: u64,
    lru: bool,
}

impl<V: Held> MemoryTier<V> {
    pub fn new(setup: Setup<V>) -> Self {
        let on_eviction = setup.on_eviction;
        let cache = Cache::builder()
            .name("memory")
            .max_capacity(setup.capacity)
            .eviction_policy(if setup.lru { EvictionPolicy::lru() } else { EvictionPolicy::tiny_lfu() })
            .weigher(|_, value: &Arc<V>| value.weight())
            .expire_after(Deadline)
            .eviction_listener(move |_, value, cause| match cause {
                RemovalCause::Size => on_eviction(&value, Eviction::Size),
                RemovalCause::Expired => on_eviction(&value, Eviction::Dropped),
                RemovalCause::Explicit => on_eviction(&value, Eviction::Removed),
                RemovalCause::Replaced => {}
            })
            .build_with_hasher(BuildHasherDefault::default());
        Self { cache, capacity: setup.capacity, lru: setup.lru }
    }

    /// The value of a key; recorded as a use.
    pub fn get(&self, key: u128) -> Option<Arc<V>> {
        self.cache.get(&key)
    }

    /// Changes the value of a key as one step; changes of one key stand in line.
    pub fn update(&self, key: u128, change: impl FnOnce(Option<&Arc<V>>) -> Change<V>) {
        self.cache.entry(key).and_compute_with(|entry| match change(entry.as_ref().map(moka::Entry::value)) {
            Change::Keep => Op::Nop,
            Change::Put(value) => Op::Put(value),
            Change::Remove => Op::Remove,
        });
    }

    /// Tells the admission policy that a key was wanted `times` times, so that what many waited for is not refused.
    pub fn mark_wanted(&self, key: u128, times: usize) {
        for _ in 0..times.min(15) {
            self.cache.get(&key); // the frequency sketch counts to fifteen
        }
    }

    /// Whether a newcomer of this weight is certain to be admitted: there is room, or the policy always admits.
    pub fn is_sure_to_admit(&self, weight: u64) -> bool {
        self.lru || self.cache.weighted_size() + weight <= self.capacity
    }

    pub fn remove(&self, key: u128) {
        self.cache.invalidate(&key);
    }

    /// Does the housekeeping that is due; a background task calls it so that requests find little to do.
    pub fn tend(&self) {
        self.cache.run_pending_tasks();
    }

    /// Gives back about `share` of what is held, whatever moka walks past first; for memory pressure.
    pub fn shed(&self, share: f64) -> u64 {
        let goal = (self.cache.weighted_size() as f64 * share) as u64;
        let mut shed = 0;
        for (key, value) in &self.cache {
            if shed >= goal {
                break;
            }
            shed += u64::from(value.weight());
            self.cache.invalidate(&*key);
        }
        self.cache.run_pending_tasks();
        shed
    }

    /// Every value, in no order, for bounded scans.
    pub fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.cache.iter().map(|(_, value)| value)
    }

    /// Bytes and values held, as of the last housekeeping.
    pub fn usage(&self) -> (u64, u64) {
        (self.cache.weighted_size(), self.cache.entry_count())
    }

    pub const fn capacity(&self) -> u64 {
        self.capacity
    }
}

struct Deadline;

impl<V: Held> Expiry<u128, Arc<V>> for Deadline {
    fn expire_after_create(&self, _: &u128, value: &Arc<V>, _: Instant) -> Option<Duration> {
        Some(value.keep())
    }

    fn expire_after_update(&self, _: &u128, value: &Arc<V>, _: Instant, _: Option<Duration>) -> Option<Duration> {
        Some(value.keep())
    }
}

/// Keys are good hashes already: half of one is the hash.
#[derive(Default)]
pub struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64 ^ (key >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Value(u32, Duration);

    impl Held for Value {
        fn weight(&self) -> u32 {
            self.0
        }
        fn keep(&self) -> Duration {
            self.1
        }
    }

    fn tier(capacity: u64, lru: bool) -> (MemoryTier<Value>, Arc<AtomicU64>) {
        let evicted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&evicted);
        let on_eviction = Box::new(move |_: &Arc<Value>, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (MemoryTier::new(Setup { capacity, lru, on_eviction }), evicted)
    }

    fn value(weight: u32) -> Arc<Value> {
        Arc::new(Value(weight, Duration::from_secs(60)))
    }

    #[test]
    fn weights_never_pass_the_capacity_for_long() {
        for lru in [true, false] {
            let (tier, evicted) = tier(10_000, lru);
            for key in 0..1000u128 {
                tier.update(key * 0x9e37_79b9_7f4a_7c15, |_| Change::Put(value(100)));
            }
            tier.tend();
            assert!(tier.usage().0 <= 10_000, "{:?}", tier.usage());
            assert!(evicted.load(Ordering::Relaxed) >= 900);
        }
    }

    #[test]
    fn a_change_sees_what_is_there_and_weighs_anew() {
        let (tier, _) = tier(10_000, true);
        tier.update(1, |there| {
            assert!(there.is_none());
            Change::Put(value(10))
        });
        tier.update(1, |there| {
            assert_eq!(there.map(|v| v.0), Some(10));
            Change::Put(value(30))
        });
        tier.tend();
        assert_eq!(tier.usage(), (30, 1));
        tier.update(1, |_| Change::Remove);
        assert!(tier.get(1).is_none());
    }

    #[test]
    fn what_many_wanted_is_admitted_into_a_full_tier() {
        let (tier, _) = tier(10_000, false);
        for key in 1..=100u128 {
            tier.update(key, |_| Change::Put(value(100)));
            tier.get(key);
        }
        tier.tend();
        assert!(!tier.is_sure_to_admit(100));
        tier.mark_wanted(7_777, 15);
        tier.update(7_777, |_| Change::Put(value(100)));
        tier.tend();
        assert!(tier.get(7_777).is_some());
    }

    #[test]
    fn shedding_gives_back_a_share() {
        let (tier, _) = tier(100_000, true);
        for key in 0..100u128 {
            tier.update(key, |_| Change::Put(value(100)));
        }
        tier.tend();
        assert!(tier.shed(0.5) >= 5000);
        assert!(tier.usage().0 <= 5000);
    }

    #[test]
    fn a_value_past_its_deadline_is_gone() {
        let (tier, _) = tier(1000, true);
        tier.update(5, |_| Change::Put(Arc::new(Value(1, Duration::ZERO))));
        assert!(tier.get(5).is_none());
    }
}
