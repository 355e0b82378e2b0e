//! Where values are found: a sharded hash table, read under a shared lock that is held for one probe.
//!
//! Knows nothing of capacity. Invariant: no call leaves this module while a lock of a shard is held, and no value is freed
//! under one.

use super::policy::Place;
use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Enough that threads seldom meet and that one shard is walked quickly; each costs an empty table.
pub const SHARDS: usize = 128;

/// Values by key.
pub struct Index<V> {
    shards: Box<[Shard<V>]>,
}

/// Aligned so that readers of one shard do not slow those of its neighbour.
#[repr(align(128))]
struct Shard<V>(RwLock<HashMap<Key, Slot<V>, BuildHasherDefault<Folded>>>);

/// In halves: alone it would have to stand at a multiple of sixteen.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Key([u64; 2]);

struct Slot<V> {
    value: Arc<V>,
    mark: Mark,
    place: Place,
}

/// What a read finds.
pub struct Found<V> {
    pub value: Arc<V>,
    /// Of its key in the policy's list.
    pub place: Place,
    /// Whether it is the first in its period.
    pub is_first: bool,
}

impl<V> Index<V> {
    pub fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| Shard(RwLock::new(HashMap::default()))).collect() }
    }

    /// The value of a key unless its deadline has come, as read in `period`.
    pub fn read(&self, key: u128, now_ms: u64, period: u64) -> Option<Found<V>> {
        let slots = self.shard(key).0.read();
        let slot = slots.get(&Key::of(key)).filter(|slot| slot.mark.deadline_ms() > now_ms)?;
        Some(Found { value: Arc::clone(&slot.value), place: slot.place, is_first: slot.mark.is_first_of(period) })
    }

    /// The value of a key unless its deadline has come; counts as no read.
    pub fn peek(&self, key: u128, now_ms: u64) -> Option<Arc<V>> {
        let slots = self.shard(key).0.read();
        slots.get(&Key::of(key)).filter(|slot| slot.mark.deadline_ms() > now_ms).map(|slot| Arc::clone(&slot.value))
    }

    /// The place of a key, whatever its deadline.
    pub fn place(&self, key: u128) -> Option<Place> {
        self.shard(key).0.read().get(&Key::of(key)).map(|slot| slot.place)
    }

    /// Puts a value in the place of whatever is there, which it gives back; counts as read in `period`.
    pub fn put(&self, key: u128, value: Arc<V>, place: Place, deadline_ms: u64, period: u64) -> Option<Arc<V>> {
        let slot = Slot { value, mark: Mark::new(deadline_ms, period), place };
        self.shard(key).0.write().insert(Key::of(key), slot).map(|slot| slot.value)
    }

    /// Removes whatever is there and gives it back.
    pub fn remove(&self, key: u128) -> Option<(Arc<V>, Place)> {
        self.shard(key).0.write().remove(&Key::of(key)).map(|slot| (slot.value, slot.place))
    }

    /// Whether this very value is there.
    pub fn holds(&self, key: u128, value: &Arc<V>) -> bool {
        self.shard(key).0.read().get(&Key::of(key)).is_some_and(|slot| Arc::ptr_eq(&slot.value, value))
    }

    /// The values of a shard whose deadline has come, and how many values it holds.
    pub fn overdue(&self, shard: usize, now_ms: u64) -> (Vec<(u128, Arc<V>)>, usize) {
        let slots = self.shards[shard % SHARDS].0.read();
        let overdue = slots.iter().filter(|(_, slot)| slot.mark.deadline_ms() <= now_ms);
        (overdue.map(|(key, slot)| (key.whole(), Arc::clone(&slot.value))).collect(), slots.len())
    }

    /// Every value, a shard at a time.
    pub fn values(&self) -> impl Iterator<Item = Arc<V>> {
        self.shards.iter().flat_map(|shard| shard.0.read().values().map(|slot| Arc::clone(&slot.value)).collect::<Vec<_>>())
    }

    fn shard(&self, key: u128) -> &Shard<V> {
        // Bits that the tables use neither to place nor to tell entries apart: those take both ends of the folded key.
        &self.shards[(Key::of(key).folded() >> 40) as usize % SHARDS]
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

impl Key {
    const fn of(key: u128) -> Self {
        Self([(key >> 64) as u64, key as u64])
    }

    fn whole(self) -> u128 {
        u128::from(self.0[0]) << 64 | u128::from(self.0[1])
    }

    /// Keys are good hashes already: half of one is the hash.
    const fn folded(self) -> u64 {
        self.0[0] ^ self.0[1]
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.folded());
    }
}

/// Takes the hash that a [`Key`] is.
#[derive(Default)]
struct Folded(u64);

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, folded: u64) {
        self.0 = folded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_takes_one_slot_of_forty_bytes() {
        assert_eq!(size_of::<(Key, Slot<u8>)>(), 40);
    }

    #[test]
    fn what_is_replaced_or_removed_comes_back() {
        let index = Index::new();
        let (old, new) = (Arc::new(1), Arc::new(1));
        assert!(index.put(7, Arc::clone(&old), 3, 100, 0).is_none());
        assert!(index.put(7, Arc::clone(&new), 4, 100, 0).is_some_and(|there| Arc::ptr_eq(&there, &old)));
        assert!(index.holds(7, &new) && !index.holds(7, &old) && index.place(7) == Some(4));
        assert!(index.remove(7).is_some_and(|(there, place)| Arc::ptr_eq(&there, &new) && place == 4));
        assert!(index.remove(7).is_none() && index.place(7).is_none() && index.values().next().is_none());
    }

    #[test]
    fn a_value_is_there_until_its_deadline_and_not_at_it() {
        let index = Index::new();
        index.put(7, Arc::new(1), 1, 100, 0);
        index.put(8, Arc::new(2), 2, u64::MAX, 0);
        assert!(index.peek(7, 99).is_some() && index.read(7, 99, 0).is_some());
        assert!(index.peek(7, 100).is_none() && index.read(7, 100, 0).is_none());
        let overdue: Vec<u128> = (0..SHARDS).flat_map(|shard| index.overdue(shard, 100).0).map(|(key, _)| key).collect();
        assert_eq!(overdue, [7]);
        assert!(index.peek(8, 1 << 41).is_some());
    }

    #[test]
    fn the_first_read_of_a_period_is_known_and_the_deadline_stays() {
        let index = Index::new();
        index.put(7, Arc::new(1), 1, 100, 0);
        let first = |period| index.read(7, 99, period).expect("it is there").is_first;
        assert_eq!([first(0), first(1), first(1), first(2), first(u64::MAX)], [false, true, false, true, true]);
        assert!(index.peek(7, 99).is_some() && index.peek(7, 100).is_none());
    }

    #[test]
    fn keys_spread_over_shards() {
        let index = Index::new();
        for key in 0..12_800u64 {
            index.put(crate::semantics::key::hash128(&key.to_ne_bytes()), Arc::new(()), 1, 1, 0);
        }
        let largest = (0..SHARDS).map(|shard| index.overdue(shard, 1).1).max();
        assert!(largest < Some(160), "{largest:?}");
    }
}
