//! "Do not line up": keys whose responses could not be shared lately (DESIGN section 5).
//!
//! Asked only on the way to a fetch. A marker that is lost costs one needless wait, so the oldest goes when the set is
//! full, and nothing is swept.

use crate::clock;
use crate::config::settings::Fill;
use foldhash::fast::RandomState;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};

/// Parts of the set, each with its own lock.
const SHARDS: usize = 16;

/// A bounded set of markers with expiry.
#[derive(Debug)]
pub struct Markers {
    shards: Box<[Mutex<Shard>]>,
    /// Markers per shard.
    capacity: usize,
    first_ms: u64,
    max_ms: u64,
}

/// What setting a marker came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    Kept,
    /// The bound was reached: an older one had to go, or there is room for none.
    Full,
}

#[derive(Debug, Default)]
struct Shard {
    markers: HashMap<u128, Marker, RandomState>,
    /// When each was set or confirmed, oldest first.
    ages: BTreeSet<(u64, u128)>,
}

#[derive(Debug, Clone, Copy)]
struct Marker {
    set_ms: u64,
    span_ms: u64,
}

impl Marker {
    const fn until(self) -> u64 {
        self.set_ms.saturating_add(self.span_ms)
    }

    /// What is left of it when its response turns out unshareable again at `now`; `None`: it stays as it is.
    ///
    /// Everybody who went alone under a marker comes back with the same answer within moments: these confirm nothing
    /// new, so the first half of the span does not count. One that ran out less than a span ago is confirmed by the
    /// flight that lined up after it in vain.
    fn confirmed(self, now: u64, first_ms: u64, max_ms: u64) -> Option<Self> {
        let renewed = |span_ms| Some(Self { set_ms: now, span_ms });
        if now < self.set_ms.saturating_add(self.span_ms / 2) {
            None
        } else if now <= self.until().saturating_add(self.span_ms) {
            renewed(self.span_ms.saturating_mul(2).min(max_ms))
        } else {
            renewed(first_ms)
        }
    }
}

impl Markers {
    /// At most `marker_count` markers, each for `marker_first` and, confirmed, up to `marker_max`.
    pub fn new(settings: &Fill) -> Self {
        let shards = settings.marker_count.clamp(1, SHARDS);
        let first_ms = clock::ms(settings.marker_first);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            capacity: settings.marker_count / shards,
            first_ms,
            max_ms: clock::ms(settings.marker_max).max(first_ms),
        }
    }

    /// Sets or confirms: 2 s, doubled each time it is confirmed, up to 2 min.
    ///
    /// A confirmation counts from the second half of the span on, until as long again after it has run out. Where the
    /// set is full the oldest marker goes, and [`Set::Full`] says so.
    pub fn set(&self, key: u128, now_mono_ms: u64) -> Set {
        let mut shard = self.shard(key).lock();
        let marker = match shard.markers.get(&key) {
            Some(marker) => marker.confirmed(now_mono_ms, self.first_ms, self.max_ms),
            None => Some(Marker { set_ms: now_mono_ms, span_ms: self.first_ms }),
        };
        let Some(marker) = marker else { return Set::Kept };
        shard.remove(key);
        let mut set = Set::Kept;
        while shard.markers.len() >= self.capacity {
            set = Set::Full;
            let Some((_, oldest)) = shard.ages.first().copied() else { return set };
            shard.remove(oldest);
        }
        shard.ages.insert((marker.set_ms, key));
        shard.markers.insert(key, marker);
        set
    }

    /// The key's response could be shared after all.
    pub fn clear(&self, key: u128) {
        self.shard(key).lock().remove(key);
    }

    /// Whether requests for this key do not line up now.
    pub fn is_set(&self, key: u128, now_mono_ms: u64) -> bool {
        self.shard(key).lock().markers.get(&key).is_some_and(|marker| now_mono_ms < marker.until())
    }

    /// Markers held, those that ran out and were not evicted yet included.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().markers.len()).sum()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, key: u128) -> &Mutex<Shard> {
        &self.shards[key as usize % self.shards.len()] // its low bits are as good as all
    }
}

impl Shard {
    fn remove(&mut self, key: u128) {
        if let Some(marker) = self.markers.remove(&key) {
            self.ages.remove(&(marker.set_ms, key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn markers(count: usize) -> Markers {
        Markers::new(&Fill {
            lag: 0,
            stall: Duration::ZERO,
            finish_rest: 0,
            finish_share: 1.0,
            range_ahead: 0,
            marker_first: Duration::from_secs(2),
            marker_max: Duration::from_secs(120),
            marker_count: count,
        })
    }

    #[test]
    fn a_marker_lasts_two_seconds() {
        let markers = markers(100);
        assert!(!markers.is_set(7, 0));
        markers.set(7, 1000);
        assert!(markers.is_set(7, 1000) && markers.is_set(7, 2999));
        assert!(!markers.is_set(7, 3000));
        assert!(!markers.is_set(8, 1000));
    }

    #[test]
    fn each_confirmation_doubles_it_up_to_two_minutes() {
        let markers = markers(100);
        let mut now = 0;
        for span in [2, 4, 8, 16, 32, 64, 120, 120] {
            markers.set(7, now);
            assert!(markers.is_set(7, now + span * 1000 - 1), "{span}");
            assert!(!markers.is_set(7, now + span * 1000), "{span}");
            now += span * 1000;
        }
    }

    #[test]
    fn answers_of_one_wave_confirm_nothing() {
        let markers = markers(100);
        for now in 0..1000 {
            markers.set(7, now);
        }
        assert!(!markers.is_set(7, 2000));
    }

    #[test]
    fn a_marker_long_run_out_starts_anew() {
        let markers = markers(100);
        markers.set(7, 0);
        markers.set(7, 2000);
        markers.set(7, 2000 + 4000 + 4001);
        assert!(!markers.is_set(7, 2000 + 4000 + 4001 + 2000));
    }

    #[test]
    fn a_storable_answer_clears_it() {
        let markers = markers(100);
        markers.set(7, 0);
        markers.clear(7);
        assert!(!markers.is_set(7, 1) && markers.is_empty());
    }

    #[test]
    fn the_oldest_goes_when_full() {
        let markers = markers(SHARDS * 2);
        let same_shard = |n: u128| n * SHARDS as u128;
        assert_eq!(markers.set(same_shard(1), 0), Set::Kept);
        assert_eq!(markers.set(same_shard(2), 1), Set::Kept);
        assert_eq!(markers.set(same_shard(1), 1500), Set::Kept);
        assert_eq!(markers.set(same_shard(3), 1600), Set::Full);
        assert!(markers.is_set(same_shard(1), 1700));
        assert!(!markers.is_set(same_shard(2), 1700));
        assert!(markers.is_set(same_shard(3), 1700));
    }

    proptest! {
        #[test]
        fn never_more_than_the_bound(count in 0_usize..70, sets in proptest::collection::vec((0_u128..200, 0_u64..5000), 0..300)) {
            let markers = markers(count);
            for (key, now) in sets {
                markers.set(key, now);
                prop_assert_eq!(markers.is_set(key, now), count > 0);
                prop_assert!(markers.len() <= count);
                for shard in &markers.shards {
                    let shard = shard.lock();
                    prop_assert_eq!(shard.markers.len(), shard.ages.len());
                }
            }
        }
    }
}
