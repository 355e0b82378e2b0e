//! The memory tier: an index of our own finds values, moka decides which may stay (byte weights, TinyLFU or LRU).
//!
//! Start reading at [`MemoryTier::update`]. Invariants: values are immutable and shared; every change of a key is made
//! under its turn, first in the index, then in moka, and its closure does no I/O; whatever moka lets go of leaves the
//! index unless a newer value has taken its place. So a value in the index is in moka or about to be, and nothing
//! stays that is not weighed. moka holds references that keep nothing alive: it frees what it let go of when it comes to
//! it, an idle process perhaps never, and the bytes of a value must be gone when their weight is. moka is told of reads by choice: see [`MemoryTier::get`] and decision 0006.

mod index;

use crate::clock;
pub use crate::observe::metrics::Eviction;
use index::{Folded, Index, SHARDS};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use std::cell::Cell;
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

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
    index: Arc<Index<V>>,
    policy: Policy<V>,
    /// Changes of one key stand in line here.
    turns: Box<[Mutex<()>]>,
    reads: Reads,
    /// The shard of the index that is to be swept next.
    next_swept: AtomicUsize,
    capacity: u64,
    lru: bool,
}

type Policy<V> = Cache<u128, Weak<V>, BuildHasherDefault<Folded>>;

/// Locks that changes share by key.
const TURNS: usize = 256;
/// Values that one [`MemoryTier::tend`] looks at for their deadline: well under a millisecond.
const SWEPT_AT_ONCE: usize = 100_000;

impl<V: Held> MemoryTier<V> {
    pub fn new(setup: Setup<V>) -> Self {
        let index = Arc::new(Index::new());
        let policy = Cache::builder()
            .name("memory")
            .max_capacity(setup.capacity)
            .eviction_policy(if setup.lru { EvictionPolicy::lru() } else { EvictionPolicy::tiny_lfu() })
            .weigher(|_, value: &Weak<V>| value.upgrade().map_or(0, |value| value.weight())) // its putter holds it
            .eviction_listener(listener(Arc::clone(&index), setup.on_eviction))
            .build_with_hasher(BuildHasherDefault::default());
        Self {
            index,
            policy,
            turns: (0..TURNS).map(|_| Mutex::new(())).collect(),
            reads: Reads::default(),
            next_swept: AtomicUsize::new(0),
            capacity: setup.capacity,
            lru: setup.lru,
        }
    }

    /// The value of a key; recorded as a use.
    pub fn get(&self, key: u128) -> Option<Arc<V>> {
        self.get_at(key, clock::now().mono_ms)
    }

    /// [`MemoryTier::get`] by a clock that was read already.
    ///
    /// Where something may have to go before long, the policy learns of every miss, of the first read of a value in each
    /// period, and of a sample of the rest: to tell it of a read costs several times the read, and what is read often has
    /// long made its place sure.
    pub fn get_at(&self, key: u128, now_mono_ms: u64) -> Option<Arc<V>> {
        let found = self.index.read(key, now_mono_ms, self.reads.period());
        let sampled = self.reads.count(&self.policy);
        match found {
            Some((value, first)) => {
                if (first || sampled) && self.is_filling() {
                    self.policy.get(&key);
                }
                Some(value)
            }
            None => {
                if self.is_filling() {
                    self.policy.get(&key);
                }
                None
            }
        }
    }

    /// Whether the policy's order will be asked for before long. moka counts how often keys are asked for from here on, too.
    fn is_filling(&self) -> bool {
        self.policy.weighted_size() >= self.capacity / 2
    }

    /// Changes the value of a key as one step; changes of one key stand in line.
    pub fn update(&self, key: u128, change: impl FnOnce(Option<&Arc<V>>) -> Change<V>) {
        let _turn = self.turn(key);
        let now_ms = clock::now().mono_ms;
        let there = self.index.peek(key, now_ms);
        match change(there.as_ref()) {
            // The same value again would, as it leaves moka, be taken for what the index holds.
            Change::Put(value) if there.as_ref().is_some_and(|there| Arc::ptr_eq(there, &value)) => {}
            Change::Put(value) => {
                self.index.put(key, Arc::clone(&value), now_ms.saturating_add(clock::ms(value.keep())), self.reads.period());
                // Not replaced in place: where an entry whose weight changed is removed before moka has applied the change,
                // moka 0.12.16 takes off the new weight for the old one, and its sum drifts for good.
                self.policy.invalidate(&key);
                self.policy.insert(key, Arc::downgrade(&value));
            }
            Change::Remove => {
                self.policy.invalidate(&key); // whose listener counts it
                self.index.remove(key);
            }
            Change::Keep => {}
        }
    }

    /// Tells the admission policy that a key was wanted `times` times, so that what many waited for is not refused.
    pub fn mark_wanted(&self, key: u128, times: usize) {
        for _ in 0..times.min(15) {
            self.policy.get(&key); // the frequency sketch counts to fifteen
        }
    }

    /// Whether a newcomer of this weight is certain to be admitted: there is room, or the policy always admits.
    pub fn is_sure_to_admit(&self, weight: u64) -> bool {
        self.lru || self.policy.weighted_size() + weight <= self.capacity
    }

    pub fn remove(&self, key: u128) {
        self.update(key, |_| Change::Remove);
    }

    /// Does the housekeeping that is due; a background task calls it so that requests find little to do.
    pub fn tend(&self) {
        self.sweep(clock::now().mono_ms);
        self.policy.run_pending_tasks();
    }

    /// Gives back about `share` of what is held, whatever moka walks past first; for memory pressure.
    pub fn shed(&self, share: f64) -> u64 {
        let goal = (self.policy.weighted_size() as f64 * share) as u64;
        let mut shed = 0;
        for (key, value) in &self.policy {
            if shed >= goal {
                break;
            }
            shed += value.upgrade().map_or(0, |value| u64::from(value.weight()));
            self.remove(*key);
        }
        self.policy.run_pending_tasks();
        shed
    }

    /// Every value, in no order, for bounded scans.
    pub fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.index.values()
    }

    /// Bytes and values held, as of the last housekeeping.
    pub fn usage(&self) -> (u64, u64) {
        (self.policy.weighted_size(), self.policy.entry_count())
    }

    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Drops what is past its deadline in the next shards. moka could do it, for an allocation and a list more per value.
    fn sweep(&self, now_ms: u64) {
        let mut looked_at = 0;
        for _ in 0..SHARDS {
            if looked_at >= SWEPT_AT_ONCE {
                return;
            }
            let (overdue, held) = self.index.overdue(self.next_swept.fetch_add(1, Ordering::Relaxed), now_ms);
            looked_at += held;
            for (key, value) in overdue {
                let _turn = self.turn(key);
                if self.index.holds(key, &value) {
                    self.policy.invalidate(&key); // whose listener counts and forgets it
                    self.index.remove(key);
                }
            }
        }
    }

    fn turn(&self, key: u128) -> impl Drop + '_ {
        self.turns[(key >> 64) as usize % TURNS].lock()
    }
}

/// Told by moka of each value that it lets go of. Takes no turn: it may run inside a change of any key.
fn listener<V: Held>(
    index: Arc<Index<V>>,
    on_eviction: OnEviction<V>,
) -> impl Fn(Arc<u128>, Weak<V>, RemovalCause) + Send + Sync + 'static {
    move |key, value, cause| {
        let Some(value) = index.forget(*key, &value) else { return }; // a newer value replaced it
        let eviction = match cause {
            RemovalCause::Size => Eviction::Size,
            RemovalCause::Expired => Eviction::Dropped,
            RemovalCause::Explicit if value.keep().is_zero() => Eviction::Dropped,
            RemovalCause::Explicit | RemovalCause::Replaced => Eviction::Removed,
        };
        on_eviction(&value, eviction);
    }
}

/// Reads in periods of about as many as there are values.
#[derive(Default)]
struct Reads {
    /// In the present period, by the sample.
    count: OwnLine,
    period: AtomicU64,
}

/// On a cache line of its own: what every read looks at is not on one that some of them write.
#[derive(Default)]
#[repr(align(128))]
struct OwnLine(AtomicU64);

thread_local! {
    static CHANCE: Cell<u32> = const { Cell::new(0x9e37_79b9) };
}

impl Reads {
    /// Of the reads that are not a value's first in a period, one in so many is told. By chance: in steps, a page of
    /// eight requests would always tell of the same one.
    const TOLD_OF_REST: u32 = 8;
    /// One in so many is counted, as so many: all workers count in one place.
    const COUNTED: u32 = 64;
    /// Shortest period: that of few values would be over at once.
    const PERIOD_MIN: u64 = 256;

    fn period(&self) -> u64 {
        self.period.load(Ordering::Relaxed)
    }

    /// Counts a read; says whether it is in the sample.
    fn count<V: Held>(&self, policy: &Policy<V>) -> bool {
        let chance = CHANCE.with(|chance| {
            let mut x = chance.get(); // xorshift
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            chance.set(x);
            x
        });
        if chance.is_multiple_of(Self::COUNTED) {
            let count = self.count.0.fetch_add(u64::from(Self::COUNTED), Ordering::Relaxed);
            if count >= policy.entry_count().max(Self::PERIOD_MIN) {
                self.count.0.store(0, Ordering::Relaxed);
                self.period.fetch_add(1, Ordering::Relaxed);
            }
        }
        chance.is_multiple_of(Self::TOLD_OF_REST)
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
    fn reads_make_a_place_sure_from_half_of_the_capacity_on() {
        for (before, expected) in [(4, [true, false]), (5, [false, true])] {
            let (tier, _) = tier(10, true);
            (0..before).for_each(|key| tier.update(key, |_| Change::Put(value(1))));
            tier.tend();
            // So often that some are in the sample: it was put in this period.
            assert!((0..100).all(|_| tier.get(0).is_some()));
            tier.tend();
            (before..11).for_each(|key| tier.update(key, |_| Change::Put(value(1))));
            tier.tend();
            let oldest_goes = [tier.get(0).is_none(), tier.get(1).is_none()];
            assert_eq!(oldest_goes, expected, "{before} of 10");
        }
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

    #[test]
    fn what_is_past_its_deadline_is_swept_and_counted_as_dropped() {
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let on_eviction = Box::new(move |_: &Arc<Value>, why| {
            assert_eq!(why, Eviction::Dropped);
            count.fetch_add(1, Ordering::Relaxed);
        });
        let tier = MemoryTier::new(Setup { capacity: 10_000, lru: false, on_eviction });
        for key in 0..10 {
            tier.update(key, |_| Change::Put(Arc::new(Value(1, Duration::from_secs(60 * (key as u64 % 2))))));
        }
        tier.update(0, |there| {
            assert!(there.is_none());
            Change::Keep
        });
        tier.tend();
        assert_eq!((tier.usage(), dropped.load(Ordering::Relaxed)), ((5, 5), 5));
        assert_eq!(tier.values().count(), 5);
    }

    #[test]
    fn weights_do_not_drift_when_a_changed_value_goes_at_once() {
        let (tier, evicted) = tier(10_000, true);
        tier.update(1, |_| Change::Put(value(100)));
        tier.tend();
        tier.update(1, |_| Change::Put(value(30)));
        tier.remove(1);
        tier.tend();
        assert_eq!((tier.usage(), evicted.load(Ordering::Relaxed)), ((0, 0), 1));
    }

    #[test]
    fn what_leaves_is_freed_at_once() {
        let (tier, _) = tier(10_000, true);
        let values: Vec<_> = (0..3).map(|_| value(10)).collect();
        let left: Vec<_> = values.iter().map(Arc::downgrade).collect();
        for (key, value) in values.into_iter().enumerate() {
            tier.update(key as u128, |_| Change::Put(value));
        }
        tier.tend();
        tier.remove(0);
        tier.update(1, |_| Change::Put(value(10)));
        assert_eq!(left.iter().map(Weak::strong_count).collect::<Vec<_>>(), [0, 0, 1]);
    }

    #[test]
    fn putting_what_is_there_changes_nothing() {
        let (tier, evicted) = tier(10_000, true);
        tier.update(1, |_| Change::Put(value(10)));
        tier.update(1, |there| there.map_or(Change::Remove, |there| Change::Put(Arc::clone(there))));
        tier.tend();
        assert!(tier.get(1).is_some());
        assert_eq!((tier.usage(), evicted.load(Ordering::Relaxed)), ((10, 1), 0));
    }

    /// Changes, evictions, deadlines and shedding of a few keys from four threads at once. A listener that took a newer
    /// value's place for an older one's, or a change that missed moka, would leave the two apart in the end.
    #[test]
    fn index_and_policy_hold_the_same_after_races() {
        for (lru, seed) in [(true, 1), (false, 2)] {
            let (tier, _) = tier(1200, lru);
            std::thread::scope(|scope| {
                for thread in 0..4u64 {
                    let tier = &tier;
                    scope.spawn(move || jostle(tier, seed * 4 + thread));
                }
            });
            tier.tend();
            tier.tend();
            let held: u64 = tier.values().map(|value| u64::from(value.weight())).sum();
            assert_eq!(tier.usage(), (held, tier.values().count() as u64));
            for key in KEYS {
                let indexed = tier.get(key).map(|value| Arc::as_ptr(&value));
                assert_eq!(indexed, tier.policy.get(&key).map(|value| value.as_ptr()), "key {key}");
            }
        }
    }

    const KEYS: std::ops::Range<u128> = 0..24;

    fn jostle(tier: &MemoryTier<Value>, seed: u64) {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..4000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let key = u128::from(random >> 8) % KEYS.end;
            match random % 32 {
                0..12 => tier.update(key, |_| Change::Put(value(50 + (random >> 40) as u32 % 100))),
                12 => tier.update(key, |_| Change::Put(Arc::new(Value(50, Duration::ZERO)))),
                13 => tier.remove(key),
                14 => tier.tend(),
                15 if random >> 60 == 0 => {
                    tier.shed(0.2);
                }
                // Not even a value that is past its deadline when it is put is sure to be missed: a reader's clock was read earlier.
                _ => drop(tier.get(key)),
            }
        }
    }

    /// The key of a request, and whether the request counts.
    type Asked = (u128, bool);

    const TRACE_KEYS: usize = 20_000;
    /// A tenth of the keys, all of one weight.
    const TRACE_CAPACITY: u64 = TRACE_KEYS as u64 / 10;
    const TRACE_REQUESTS: usize = 200_000;

    /// Requests by Zipf's law, the same for the same seed.
    fn zipf(seed: u64) -> Vec<Asked> {
        let weights: Vec<f64> = (1..=TRACE_KEYS)
            .scan(0.0, |sum, rank| {
                *sum += 1.0 / rank as f64;
                Some(*sum)
            })
            .collect();
        let mut random = seed;
        let mut key = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let point = (random >> 11) as f64 / (1u64 << 53) as f64 * weights[TRACE_KEYS - 1];
            hashed(weights.partition_point(|sum| *sum < point))
        };
        (0..TRACE_REQUESTS).map(|_| (key(), true)).collect()
    }

    /// The same, and behind each 12,000 of them 4,000 keys that come once and do not count.
    fn scanned(seed: u64) -> Vec<Asked> {
        let scan = |at: usize| (0..4000).map(move |number| (hashed(TRACE_KEYS + at * 4000 + number), false));
        zipf(seed).chunks(12_000).enumerate().flat_map(|(at, part)| part.iter().copied().chain(scan(at))).collect()
    }

    fn hashed(number: usize) -> u128 {
        crate::semantics::key::hash128(&number.to_ne_bytes())
    }

    /// Per cent of the requests that count. `get_or_put` puts what is not there; `tend` does the housekeeping.
    fn hit_ratio(trace: &[Asked], get_or_put: impl Fn(u128) -> bool, tend: impl Fn()) -> f64 {
        let (mut asked, mut hits) = (0, 0);
        for (at, (key, counts)) in trace.iter().enumerate() {
            let hit = get_or_put(*key);
            asked += u32::from(*counts);
            hits += u32::from(*counts && hit);
            if at % 64 == 0 {
                tend(); // so often that moka's log of reads never overflows
            }
        }
        f64::from(hits) * 100.0 / f64::from(asked)
    }

    /// The long traces and the figures are in decision 0006.
    #[test]
    fn hits_are_no_fewer_than_with_moka_alone_which_is_told_of_every_read() {
        for (name, trace) in [("Zipf", zipf(7)), ("scan", scanned(7))] {
            let (tier, _) = tier(TRACE_CAPACITY, false);
            let get_or_put = |key| {
                let there = tier.get(key).is_some();
                if !there {
                    tier.update(key, |_| Change::Put(value(1)));
                }
                there
            };
            let ours = hit_ratio(&trace, get_or_put, || tier.tend());
            let moka = Cache::builder().max_capacity(TRACE_CAPACITY).weigher(|_, value: &Arc<Value>| value.0);
            let moka: Cache<_, _, BuildHasherDefault<Folded>> = moka.build_with_hasher(BuildHasherDefault::default());
            let get_or_put = |key| {
                let there = moka.get(&key).is_some();
                if !there {
                    moka.insert(key, value(1));
                }
                there
            };
            let plain = hit_ratio(&trace, get_or_put, || moka.run_pending_tasks());
            println!("{name}: {ours:.2} per cent, {plain:.2} with moka alone");
            assert!(plain > 50.0 && ours > plain - 0.5, "{name}: {ours:.2} per cent, {plain:.2} with moka alone");
        }
    }
}
