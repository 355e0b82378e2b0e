//! What is remembered of each caller of each limit: one number, bounded in how many there are.
//!
//! Governor's own keyed stores never forget, so that whoever has many addresses would fill the memory.

use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed, StateStore};
use moka::Expiry;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The store of all limits of the process; clones are the same one.
#[derive(Clone)]
pub struct Buckets(Cache<u128, Arc<Bucket>>);

struct Bucket {
    state: InMemoryState,
    /// Unused for so long it is full, and as good as none.
    full_after: Duration,
}

impl Buckets {
    /// `full` is called for each bucket that has to go for another: of those asked for rarely first, so that a client
    /// that hammers is not forgotten over many that come once.
    pub fn new(capacity: u64, full: impl Fn() + Send + Sync + 'static) -> Self {
        let told = move |_, _, cause| {
            if cause == RemovalCause::Size {
                full();
            }
        };
        Self(Cache::builder().max_capacity(capacity).expire_after(WhenFull).eviction_listener(told).build())
    }

    /// The store as one limit sees it, whose buckets fill within `full_after`.
    pub(super) fn counting(&self, full_after: Duration) -> Counting {
        Counting { buckets: self.clone(), full_after }
    }

    /// Buckets there are, after the upkeep that is due.
    pub fn count(&self) -> u64 {
        self.0.run_pending_tasks();
        self.0.entry_count()
    }
}

/// Buckets are dropped once they are full.
struct WhenFull;

impl Expiry<u128, Arc<Bucket>> for WhenFull {
    fn expire_after_create(&self, _: &u128, bucket: &Arc<Bucket>, _: Instant) -> Option<Duration> {
        Some(bucket.full_after)
    }
    fn expire_after_read(&self, _: &u128, bucket: &Arc<Bucket>, _: Instant, _: Option<Duration>, _: Instant) -> Option<Duration> {
        Some(bucket.full_after)
    }
}

/// The store as one limit sees it.
pub(super) struct Counting {
    buckets: Buckets,
    full_after: Duration,
}

impl StateStore for Counting {
    type Key = u128;

    fn measure_and_replace<T, F, E>(&self, key: &u128, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let empty = || Arc::new(Bucket { state: InMemoryState::default(), full_after: self.full_after });
        self.buckets.0.get_with(*key, empty).state.measure_and_replace(&NotKeyed::NonKey, measure)
    }
}
