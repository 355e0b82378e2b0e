//! Where work is done that would hold up a core: on other threads, a bounded number at a time.

use crate::observe::metrics::{Bound, Metrics};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Places for work. Whoever finds none free waits for its turn, in order of arrival.
#[derive(Clone)]
pub struct Pool {
    places: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

/// The work did not come to its end: it panicked, or the process is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("work on another thread did not come to its end")]
pub struct Unfinished;

impl Pool {
    /// `threads`: how much is done at a time.
    pub fn new(threads: usize, metrics: Arc<Metrics>) -> Self {
        Self { places: Arc::new(Semaphore::new(threads)), metrics }
    }

    /// Where it says what bounds it met.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Does it elsewhere. Whoever does not wait for it any more does not end what has begun.
    pub async fn run<T: Send + 'static>(self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
        let place = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                self.metrics.bound(Bound::CompressionThreads);
                self.places.acquire_owned().await.map_err(|_| Unfinished)?
            }
        };
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(place);
            result
        });
        done.await.map_err(|_| Unfinished)
    }
}
