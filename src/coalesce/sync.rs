//! Locks, atomics, time and the place where a task runs: all that the concurrent core takes from outside.
//!
//! `tests/loom-flight` has a module of the same face on loom.

use std::task::Waker;
use std::thread::ThreadId;
use tokio::runtime::Handle;

pub use parking_lot::Mutex;
pub use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
pub use tokio::time::Instant;

/// Parts of a sharded table.
pub const SHARDS: usize = 64;

/// Wakers of another thread up to which each is woken by itself; beyond, one task there wakes them all.
const DIRECT: usize = 4;

/// The thread, and the runtime on it, that polls a task.
#[derive(Debug)]
pub struct Home {
    thread: ThreadId,
    runtime: Option<Handle>,
}

impl Home {
    /// Where the caller runs.
    pub fn here() -> Self {
        Self { thread: std::thread::current().id(), runtime: Handle::try_current().ok() }
    }

    /// Whether the caller runs on this thread.
    pub fn is_here(&self) -> bool {
        self.thread == std::thread::current().id()
    }

    /// Wakes tasks that are polled here. From another thread each wake-up is a lock and a system call for the
    /// runtime, so many are handed over as one task that wakes its neighbours locally.
    pub fn wake(&self, wakers: impl ExactSizeIterator<Item = Waker>) {
        match &self.runtime {
            Some(runtime) if wakers.len() > DIRECT && !self.is_here() => {
                let wakers: Vec<Waker> = wakers.collect();
                // A runtime that has shut down drops this, and with it has dropped the tasks that waited.
                drop(runtime.spawn(async move { wakers.into_iter().for_each(Waker::wake) }));
            }
            _ => wakers.for_each(Waker::wake),
        }
    }
}
