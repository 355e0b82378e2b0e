//! The face of `src/coalesce/sync.rs` on loom.

pub use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub use std::time::Instant;

use std::task::Waker;

/// One: which shard a key is in is random, and loom replays its choices.
pub const SHARDS: usize = 1;

#[derive(Debug)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }
    pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0.lock().expect("no test panics under a lock")
    }
}

/// All sleepers are one group, woken one by one.
#[derive(Debug)]
pub struct Home;

impl Home {
    pub fn here() -> Self {
        Self
    }
    pub fn is_here(&self) -> bool {
        true
    }
    pub fn wake(&self, wakers: impl ExactSizeIterator<Item = Waker>) {
        wakers.for_each(Waker::wake);
    }
}
