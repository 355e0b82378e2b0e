//! How often keys were asked for lately, for `cache.store_after`.
//!
//! A fixed table in buckets, each with its own lock, in which the key that was not asked for longest goes first. A count
//! that is lost, or that two keys share, makes a response stored a little later or earlier; nothing else hangs on it.

use parking_lot::Mutex;
use std::sync::OnceLock;

/// Keys that are counted at once; together 0.6 MB, taken when the first is counted.
pub const COUNTED_KEYS: usize = 65_536;

/// Keys of a bucket.
const WAYS: usize = 4;

/// Requests by key, saturating.
#[derive(Debug, Default)]
pub struct RequestCounts {
    buckets: OnceLock<Box<[Mutex<Bucket>]>>,
}

/// The key asked for last stands first. A place without requests is free.
type Bucket = [Count; WAYS];

#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// Bits of the key that its bucket does not tell.
    tag: u32,
    requests: u8,
}

/// What counting came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Kept,
    /// There was no room: another key is forgotten.
    Full,
}

impl RequestCounts {
    /// Counts a request for a key.
    pub fn count(&self, key: u128) -> Counted {
        let buckets = self.buckets.get_or_init(|| (0..COUNTED_KEYS / WAYS).map(|_| Mutex::default()).collect());
        let mut bucket = buckets[place(key)].lock();
        let found = bucket.iter().position(|count| count.requests > 0 && count.tag == tag(key));
        let requests = found.map_or(0, |at| bucket[at].requests);
        let at = found.unwrap_or(WAYS - 1);
        let displaced = found.is_none() && bucket[at].requests > 0;
        bucket[..=at].rotate_right(1);
        bucket[0] = Count { tag: tag(key), requests: requests.saturating_add(1) };
        if displaced { Counted::Full } else { Counted::Kept }
    }

    /// Requests counted for a key, at most 255.
    pub fn requests(&self, key: u128) -> u8 {
        let Some(buckets) = self.buckets.get() else { return 0 };
        let bucket = buckets[place(key)].lock();
        bucket.iter().find(|count| count.tag == tag(key)).map_or(0, |count| count.requests)
    }
}

const fn place(key: u128) -> usize {
    (key % (COUNTED_KEYS / WAYS) as u128) as usize
}

const fn tag(key: u128) -> u32 {
    (key >> 96) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Keys of one bucket.
    fn neighbour(number: u32) -> u128 {
        u128::from(number) << 96
    }

    #[test]
    fn each_request_counts_up_to_the_most() {
        let counts = RequestCounts::default();
        assert_eq!(counts.requests(7), 0);
        for requests in 1..=300 {
            assert_eq!(counts.count(7), Counted::Kept);
            assert_eq!(counts.requests(7), u8::try_from(requests).unwrap_or(u8::MAX));
        }
        assert_eq!(counts.requests(8), 0);
    }

    #[test]
    fn the_key_not_asked_for_longest_goes_when_full() {
        let counts = RequestCounts::default();
        for key in [1, 2, 3, 4, 1] {
            assert_eq!(counts.count(neighbour(key)), Counted::Kept);
        }
        assert_eq!(counts.count(neighbour(5)), Counted::Full);
        let left = [1, 2, 3, 4, 5].map(|key| counts.requests(neighbour(key)));
        assert_eq!(left, [2, 0, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn nothing_is_counted_that_was_not_asked_for(keys in proptest::collection::vec(0u32..12, 0..200)) {
            let (counts, mut asked) = (RequestCounts::default(), HashMap::<u32, u8>::new());
            for key in keys {
                counts.count(neighbour(key));
                let times = asked.entry(key).or_default();
                *times = times.saturating_add(1);
                prop_assert!((1..=*times).contains(&counts.requests(neighbour(key))));
            }
        }
    }
}
