//! Purges of late that may have hit much: of a prefix, a host, a site or everything.
//!
//! What such a purge took has to be fetched again, and the origin should not feel it all at once. What a purge took is not
//! known (there is no index), so a miss counts as caused by it if the purge matches its URL and is younger than a window.
//! After that, what is wanted is stored again, or is wanted so rarely that it does no harm.

use super::Mark;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::collections::VecDeque;

/// Purges that follow each other within such a part of the window count as one, from the first on.
const PARTS: u64 = 32;

#[derive(Debug)]
pub struct WidePurges {
    window_ms: u64,
    /// When the window of the last one ends, boot-time milliseconds; 0: there was none. Read on each miss.
    until_mono_ms: AtomicU64,
    /// When each was applied, and what had been applied before it; oldest first, not more than [`PARTS`] and two.
    recent: Mutex<VecDeque<(u64, Mark)>>,
}

impl WidePurges {
    /// A window of zero: no purge causes a miss.
    pub fn new(window_ms: u64) -> Self {
        Self { window_ms, until_mono_ms: AtomicU64::new(0), recent: Mutex::default() }
    }

    /// A wide purge was applied; `before` is what had been applied until then.
    pub fn note(&self, before: Mark, now_mono_ms: u64) {
        if self.window_ms == 0 {
            return;
        }
        let mut recent = self.recent.lock();
        while recent.front().is_some_and(|(applied, _)| applied.saturating_add(self.window_ms) <= now_mono_ms) {
            recent.pop_front();
        }
        if recent.back().is_none_or(|(applied, _)| applied.saturating_add(self.window_ms / PARTS) <= now_mono_ms) {
            recent.push_back((now_mono_ms, before));
        }
        // Purges that count as one with an earlier one end with it.
        let last = recent.back().map_or(now_mono_ms, |(applied, _)| *applied);
        self.until_mono_ms.store(last.saturating_add(self.window_ms), Ordering::Release);
    }

    /// What had been applied before the first one whose window is open; one load where there is none.
    pub fn before_first(&self, now_mono_ms: u64) -> Option<Mark> {
        if now_mono_ms >= self.until_mono_ms.load(Ordering::Acquire) {
            return None;
        }
        let recent = self.recent.lock();
        recent.iter().find(|(applied, _)| applied.saturating_add(self.window_ms) > now_mono_ms).map(|(_, before)| *before)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Position;
    use super::*;

    fn mark(ms: u64) -> Mark {
        Mark { position: Position { epoch: 0, ms, sequence: 0 }, local: 0 }
    }

    #[test]
    fn a_purge_counts_for_its_window() {
        let wide = WidePurges::new(1000);
        assert_eq!(wide.before_first(0), None);
        wide.note(mark(1), 100);
        assert_eq!([wide.before_first(100), wide.before_first(1099), wide.before_first(1100)], [Some(mark(1)), Some(mark(1)), None]);
        wide.note(mark(2), 600);
        assert_eq!([wide.before_first(1099), wide.before_first(1100), wide.before_first(1600)], [Some(mark(1)), Some(mark(2)), None]);
        let off = WidePurges::new(0);
        off.note(mark(1), 5);
        assert_eq!(off.before_first(5), None);
    }

    #[test]
    fn a_flood_of_purges_takes_no_room_and_always_counts() {
        let wide = WidePurges::new(6400);
        for now in 1..50_000 {
            wide.note(mark(now), now);
            let first = wide.before_first(now).expect("one was noted just now");
            assert!(first <= mark(now) && first >= mark(now.saturating_sub(6400)), "{now}: {first:?}");
        }
        assert!(wide.recent.lock().len() as u64 <= PARTS + 2);
    }
}
