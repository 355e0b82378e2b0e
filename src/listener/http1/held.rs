//! How many connections of a worker hold buffers while they wait for a request.
//!
//! A connection that is asked often keeps its buffers between requests, which costs nothing. With thousands of them most
//! are idle, and their buffers would be the larger part of what they cost: past [`HELD_MAX`] each gives its buffers back
//! as soon as it waits, to the allocator, which keeps them for the next one on the same thread.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Connections of one worker that keep their buffers while they wait.
const HELD_MAX: usize = 256;
/// Workers that are told apart.
const SLOTS: usize = 64;

/// On a cache line of its own: workers do not share it.
#[repr(align(128))]
struct Slot(AtomicUsize);

static HELD: [Slot; SLOTS] = [const { Slot(AtomicUsize::new(0)) }; SLOTS];

/// A connection that holds buffers, counted until it drops.
pub(super) struct Held(&'static AtomicUsize);

impl Held {
    pub fn by(worker: usize) -> Self {
        let count = &HELD[worker % SLOTS].0;
        count.fetch_add(1, Relaxed);
        Self(count)
    }

    /// Whether so many connections of this worker hold buffers that those that wait give theirs back.
    pub fn by_many(&self) -> bool {
        self.0.load(Relaxed) > HELD_MAX
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_more_than_may_keep_their_buffers() {
        const WORKER: usize = SLOTS - 1; // no other test has so many
        let mut held: Vec<_> = (0..HELD_MAX).map(|_| Held::by(WORKER)).collect();
        assert!(!held[0].by_many());
        held.push(Held::by(WORKER));
        assert!(held[0].by_many());
        held.pop();
        assert!(!held[0].by_many());
    }
}
