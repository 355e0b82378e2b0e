//! Floors on their way: the latest of each URL, bounded, and raised many at a time, so that a flood of unsafe requests holds
//! up nothing else that is written.
//!
//! A floor bridges the time until the journal has told the other nodes of an unsafe method. One that is dropped costs no
//! more than that: until then another node may take from the tier what was fetched before. So where there are too many, the
//! oldest goes: its entry of the journal is the farthest on its way.

use super::queue::WITHIN;
use crate::observe::metrics::{Metrics, TierWrite};
use crate::redis::{Link, Redis, RedisError, Script, Use};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// How long a floor is there: by then every node that is trusted has the entry of the journal that it stands for.
const FLOOR_MS: u64 = 60_000;
/// Floors that wait; about 100 bytes each.
const WAITING_MAX: usize = 65_536;
/// Floors that are raised in one round trip.
const AT_ONCE: usize = 256;

/// What a floor is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Url {
    /// Of the fleet's journal.
    pub epoch: u64,
    pub url: u128,
}

/// A floor, in milliseconds of Redis' clock.
pub type Floor = (Url, i64);

pub struct Floors {
    waiting: Mutex<Waiting>,
    wake: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Waiting {
    latest: HashMap<Url, i64>,
    /// The same in the order in which they came.
    order: VecDeque<Url>,
}

impl Floors {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { waiting: Mutex::default(), wake: Notify::new(), metrics }
    }

    pub fn raise(&self, floors: impl IntoIterator<Item = Floor>) {
        let mut waiting = self.waiting.lock();
        let dropped: usize = floors.into_iter().map(|floor| usize::from(waiting.add(floor, WAITING_MAX))).sum();
        self.metrics.tiers.floors_waiting(waiting.order.len());
        drop(waiting);
        self.metrics.tiers.floors(TierWrite::FloorDropped, dropped);
        self.wake.notify_one();
    }

    /// Those that came first; cancel-safe.
    pub async fn next(&self) -> Vec<Floor> {
        loop {
            let floors = self.take();
            if !floors.is_empty() {
                return floors;
            }
            self.wake.notified().await;
        }
    }

    fn take(&self) -> Vec<Floor> {
        let mut waiting = self.waiting.lock();
        let floors = waiting.take(AT_ONCE);
        self.metrics.tiers.floors_waiting(waiting.order.len());
        floors
    }
}

impl Waiting {
    /// True where the oldest had to go for it.
    fn add(&mut self, (url, began_ms): Floor, most: usize) -> bool {
        if let Some(there) = self.latest.get_mut(&url) {
            *there = began_ms.max(*there);
            return false;
        }
        let oldest = if self.order.len() >= most { self.order.pop_front() } else { None };
        if let Some(oldest) = &oldest {
            self.latest.remove(oldest);
        }
        self.latest.insert(url, began_ms);
        self.order.push_back(url);
        oldest.is_some()
    }

    fn take(&mut self, most: usize) -> Vec<Floor> {
        let most = most.min(self.order.len());
        let Self { latest, order } = self;
        order.drain(..most).filter_map(|url| latest.remove_entry(&url)).collect()
    }
}

/// A connection that raises them.
pub struct Raiser {
    pub link: Link,
    redis: Redis,
    script: Script,
}

impl Raiser {
    pub fn new(redis: &Redis) -> Self {
        Self { link: redis.link(Use::Floors), redis: redis.clone(), script: Script::new(include_str!("floor.lua")) }
    }

    /// In one round trip. After a failure some of them may be there.
    pub async fn raise(&self, floors: &[Floor]) -> Result<(), RedisError> {
        let keys = self.redis.keys();
        let floor = |(Url { epoch, url }, began_ms): &Floor| (keys.url(*epoch, *url).floor(), [began_ms.to_string(), FLOOR_MS.to_string()]);
        self.link.script_each(&self.script, &floors.iter().map(floor).collect::<Vec<_>>(), WITHIN).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn url(url: u128) -> Url {
        Url { epoch: 1, url }
    }

    #[test]
    fn of_each_url_the_latest_waits_once() {
        let mut waiting = Waiting::default();
        for floor in [(url(1), 10), (url(2), 20), (url(1), 30), (url(2), 15)] {
            assert!(!waiting.add(floor, 8));
        }
        assert_eq!(waiting.take(8), [(url(1), 30), (url(2), 20)]);
        assert!(waiting.take(8).is_empty() && waiting.latest.is_empty());
    }

    #[test]
    fn where_there_are_too_many_the_oldest_goes() {
        let mut waiting = Waiting::default();
        let dropped: Vec<_> = (1..=5).map(|number| waiting.add((url(number), 10), 3)).collect();
        assert_eq!(dropped, [false, false, false, true, true]);
        assert_eq!(waiting.take(2), [(url(3), 10), (url(4), 10)], "so many at a time");
        assert_eq!(waiting.take(2), [(url(5), 10)]);
    }
}
