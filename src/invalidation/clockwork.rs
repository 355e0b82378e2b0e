//! How a change becomes visible to checks: the part that loom explores (`tests/loom/src/journal.rs`).
//!
//! Changes of one class are counted. A change is made under the lock, then told by the counters of the kinds that it
//! moved, then by the count. A check reads the count *first*; whatever it finds afterwards holds at least up to there.
//!
//! Invariants: whoever sees count `n` finds the first `n` changes; counts that a [`CheckedUpTo`] holds were looked up
//! completely, and what was found has been remembered before them.

use super::kind::{Kind, Kinds};
use crate::sync::RwLock;
use crate::sync::atomic::{AtomicU64, Ordering};

/// State with a count of its changes, and for each kind the count at which it last moved.
#[derive(Debug)]
pub struct Clockwork<T> {
    state: RwLock<State<T>>,
    /// As in the state, for those who hold no lock.
    count: AtomicU64,
    moved: [AtomicU64; Kind::ALL.len()],
}

#[derive(Debug)]
struct State<T> {
    /// Counted here, not by reading the atomic back: loom then sees every order of the loads and stores that matter.
    changes: u64,
    value: T,
}

impl<T> Clockwork<T> {
    pub fn new(value: T) -> Self {
        Self { state: RwLock::new(State { changes: 0, value }), count: AtomicU64::default(), moved: Default::default() }
    }

    /// Changes the state; the closure names the kinds that moved. When this returns every later check sees it.
    pub fn change<R>(&self, make: impl FnOnce(&mut T, &mut Kinds) -> R) -> R {
        let mut state = self.state.write();
        let mut moved = Kinds::default();
        let made = make(&mut state.value, &mut moved);
        state.changes += 1;
        for kind in Kind::ALL.into_iter().filter(|&kind| moved.contains(kind)) {
            self.moved[kind as usize].store(state.changes, Ordering::Release);
        }
        self.count.store(state.changes, Ordering::Release);
        made
    }

    /// Changes something of the state that no check looks at: nothing is told.
    pub fn arrange<R>(&self, make: impl FnOnce(&mut T) -> R) -> R {
        make(&mut self.state.write().value)
    }

    /// Changes told so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Looks up only kinds that moved after change `since`; nothing is found, without a lock, if none did.
    pub fn look<R: Default>(&self, since: u64, find: impl FnOnce(&T, Kinds) -> R) -> R {
        let moved = self.moved_since(since);
        if moved.is_empty() { R::default() } else { find(&self.state.read().value, moved) }
    }

    /// Reads the state as a whole.
    pub fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.state.read().value)
    }

    fn moved_since(&self, since: u64) -> Kinds {
        let mut moved = Kinds::default();
        for kind in Kind::ALL {
            if self.moved[kind as usize].load(Ordering::Acquire) > since {
                moved.insert(kind);
            }
        }
        moved
    }
}

/// What one stored response has been checked against, and what was found: the worst, as a number that only grows.
///
/// Belongs to one stamp and one set of keys: a refreshed or promoted response starts with a new one.
#[derive(Debug, Default)]
pub struct CheckedUpTo {
    /// Per class, the count of changes that were looked up.
    counts: [AtomicU64; 2],
    severity: AtomicU64,
}

impl CheckedUpTo {
    /// What is remembered, if nothing is newer than these counts.
    pub fn covers(&self, counts: [u64; 2]) -> Option<u64> {
        let checked = self.counts();
        (checked[0] >= counts[0] && checked[1] >= counts[1]).then(|| self.severity.load(Ordering::Acquire))
    }

    pub fn counts(&self) -> [u64; 2] {
        [self.counts[0].load(Ordering::Acquire), self.counts[1].load(Ordering::Acquire)]
    }

    /// Remembers a finding, and then that it holds up to `counts`, which were read before the look-up. Returns the
    /// worst that was ever found. Both move by max only: a slower check takes nothing back.
    pub fn remember(&self, counts: [u64; 2], severity: u64) -> u64 {
        let before = self.severity.fetch_max(severity, Ordering::AcqRel);
        self.counts[0].fetch_max(counts[0], Ordering::AcqRel);
        self.counts[1].fetch_max(counts[1], Ordering::AcqRel);
        before.max(severity)
    }
}
