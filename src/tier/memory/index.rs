//! Where values are found: a sharded hash table, read under a shared lock that is held for one probe.
//!
//! Knows nothing of capacity. Invariants: no call leaves this module while a lock of a shard is held, and no value is
//! freed under one; [`Index::forget`] removes a value only while it is the very one that is there.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

/// Enough that threads seldom meet and that one shard is walked quickly; each costs an empty table.
pub const SHARDS: usize = 128;

/// Values by key.
pub struct Index<V> {
    shards: Box<[Shard<V>]>,
}

/// Aligned so that readers of one shard do not slow those of its neighbour.
#[repr(align(128))]
struct Shard<V>(RwLock<HashMap<u128, Slot<V>, BuildHasherDefault<Folded>>>);

struct Slot<V> {
    value: Arc<V>,
    mark: Mark,
}

impl<V> Index<V> {
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard(RwLock::new(HashMap::default()))).collect() }
    }

    /// The value of a key unless its deadline has come, and whether this is its first read in `period`.
    pub fn read(&self, key: u128, now_ms: u64, period: u64) -> Option<(Arc<V>, bool)> {
        let slots = self.shard(key).0.read();
        let slot = slots.get(&key)?;
        (slot.mark.deadline_ms() > now_ms).then(|| (Arc::clone(&slot.value), slot.mark.is_first_of(period)))
    }

    /// The value of a key unless its deadline has come; counts as no read.
    pub fn peek(&self, key: u128, now_ms: u64) -> Option<Arc<V>> {
        let slots = self.shard(key).0.read();
        slots.get(&key).filter(|slot| slot.mark.deadline_ms() > now_ms).map(|slot| Arc::clone(&slot.value))
    }

    /// Puts a value in the place of whatever is there; counts as read in `period`.
    pub fn put(&self, key: u128, value: Arc<V>, deadline_ms: u64, period: u64) {
        let slot = Slot { value, mark: Mark::new(deadline_ms, period) };
        let replaced = self.shard(key).0.write().insert(key, slot);
        drop(replaced);
    }

    /// Removes whatever is there.
    pub fn remove(&self, key: u128) {
        let removed = self.shard(key).0.write().remove(&key);
        drop(removed);
    }

    /// Whether this very value is there.
    pub fn holds(&self, key: u128, value: &Arc<V>) -> bool {
        self.shard(key).0.read().get(&key).is_some_and(|slot| Arc::ptr_eq(&slot.value, value))
    }

    /// Removes this value and gives it back, but not another one that has taken its place.
    pub fn forget(&self, key: u128, value: &Weak<V>) -> Option<Arc<V>> {
        match self.shard(key).0.write().entry(key) {
            Entry::Occupied(slot) if Arc::as_ptr(&slot.get().value) == value.as_ptr() => Some(slot.remove().value),
            _ => None,
        }
    }

    /// The values of a shard whose deadline has come, and how many values it holds.
    pub fn overdue(&self, shard: usize, now_ms: u64) -> (Vec<(u128, Arc<V>)>, usize) {
        let slots = self.shards[shard % SHARDS].0.read();
        let overdue = slots.iter().filter(|(_, slot)| slot.mark.deadline_ms() <= now_ms);
        (overdue.map(|(key, slot)| (*key, Arc::clone(&slot.value))).collect(), slots.len())
    }

    /// Every value, a shard at a time.
    pub fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.0.read().values().map(|slot| Arc::clone(&slot.value)).collect::<Vec<_>>())
    }

    fn shard(&self, key: u128) -> &Shard<V> {
        // Bits that the tables use neither to place nor to tell entries apart: those take both ends of the folded key.
        &self.shards[(Folded::fold(key) >> 40) as usize % SHARDS]
    }
}

/// The deadline of a value and the last period in which it was read, in eight bytes.
///
/// Of two readers that race both may be the first of a period.
struct Mark(AtomicU64);

/// 139 years from the start of the machine.
const DEADLINE_BITS: u32 = 42;
const PERIOD_BITS: u32 = 64 - DEADLINE_BITS;

impl Mark {
    fn new(deadline_ms: u64, period: u64) -> Self {
        let deadline_ms = deadline_ms.min((1 << DEADLINE_BITS) - 1);
        Self(AtomicU64::new((deadline_ms << PERIOD_BITS) | (period % (1 << PERIOD_BITS))))
    }

    fn deadline_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> PERIOD_BITS
    }

    /// Whether this is the first read in `period`. Writes only then: a line that is read often stays shared by the cores.
    fn is_first_of(&self, period: u64) -> bool {
        let mark = self.0.load(Ordering::Relaxed);
        let now = (mark >> PERIOD_BITS << PERIOD_BITS) | (period % (1 << PERIOD_BITS));
        if now != mark {
            self.0.store(now, Ordering::Relaxed);
        }
        now != mark
    }
}

/// Keys are good hashes already: half of one is the hash.
#[derive(Default, Clone)]
pub struct Folded(u64);

impl Folded {
    const fn fold(key: u128) -> u64 {
        key as u64 ^ (key >> 64) as u64
    }
}

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
        self.0 = Self::fold(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_takes_one_slot_of_thirty_two_bytes() {
        assert_eq!(size_of::<(u128, Slot<u8>)>(), 32);
    }

    #[test]
    fn only_the_very_value_is_forgotten() {
        let index = Index::new();
        let (old, new) = (Arc::new(1), Arc::new(1));
        index.put(7, Arc::clone(&old), 100, 0);
        index.put(7, Arc::clone(&new), 100, 0);
        assert!(index.forget(7, &Arc::downgrade(&old)).is_none());
        assert!(index.peek(7, 0).is_some_and(|there| Arc::ptr_eq(&there, &new)));
        assert!(index.forget(7, &Arc::downgrade(&new)).is_some_and(|value| Arc::ptr_eq(&value, &new)));
        assert!(index.peek(7, 0).is_none() && index.values().next().is_none());
    }

    #[test]
    fn a_value_is_there_until_its_deadline_and_not_at_it() {
        let index = Index::new();
        index.put(7, Arc::new(1), 100, 0);
        index.put(8, Arc::new(2), u64::MAX, 0);
        assert!(index.peek(7, 99).is_some() && index.read(7, 99, 0).is_some());
        assert!(index.peek(7, 100).is_none() && index.read(7, 100, 0).is_none());
        let overdue: Vec<u128> = (0..SHARDS).flat_map(|shard| index.overdue(shard, 100).0).map(|(key, _)| key).collect();
        assert_eq!(overdue, [7]);
        assert!(index.peek(8, 1 << 41).is_some());
    }

    #[test]
    fn the_first_read_of_a_period_is_known_and_the_deadline_stays() {
        let index = Index::new();
        index.put(7, Arc::new(1), 100, 0);
        let first = |period| index.read(7, 99, period).expect("it is there").1;
        assert_eq!([first(0), first(1), first(1), first(2), first(u64::MAX)], [false, true, false, true, true]);
        assert!(index.peek(7, 99).is_some() && index.peek(7, 100).is_none());
    }

    #[test]
    fn keys_spread_over_shards() {
        let index = Index::new();
        for key in 0..12_800u64 {
            index.put(crate::semantics::key::hash128(&key.to_ne_bytes()), Arc::new(()), 1, 0);
        }
        let largest = (0..SHARDS).map(|shard| index.overdue(shard, 1).1).max();
        assert!(largest < Some(160), "{largest:?}");
    }
}
