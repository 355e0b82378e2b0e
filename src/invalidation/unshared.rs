//! When unsafe methods invalidated something that the fleet is not told (`purge.unsafe_methods = "local"`).
//!
//! Such an invalidation never gets a place in the order, by which a response of a shared tier could be compared with it. So
//! it is compared by time: what was fetched after the invalidation, with a margin for the clocks, is newer.

use std::collections::VecDeque;

/// Clocks of nodes, by way of Redis', differ by less.
const MARGIN_MS: u64 = 2000;
/// Times within so many ms are one.
const GRAIN_MS: u64 = 1000;
/// Times that are remembered; older ones the less exactly.
const TIMES_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Unshared {
    /// The local sequence before the first of them.
    before: Option<u64>,
    /// Oldest first.
    times: VecDeque<Time>,
}

/// All up to this local sequence were made by this time.
#[derive(Debug)]
struct Time {
    began_ms: u64,
    ended_ms: u64,
    local: u64,
}

impl Unshared {
    pub(super) fn note(&mut self, local: u64, mono_ms: u64) {
        self.before.get_or_insert(local - 1);
        match self.times.back_mut().filter(|last| mono_ms < last.began_ms + GRAIN_MS) {
            Some(last) => (last.ended_ms, last.local) = (mono_ms, local),
            None => self.times.push_back(Time { began_ms: mono_ms, ended_ms: mono_ms, local }),
        }
        if self.times.len() > TIMES_MAX {
            self.forget_one(mono_ms);
        }
    }

    /// The one that matters least: the next one covers it, so that what it names is invalid for a little longer than it has
    /// to be. A little is measured by how long ago that was.
    fn forget_one(&mut self, mono_ms: u64) {
        let gap = |at: usize| self.times[at + 1].ended_ms - self.times[at - 1].ended_ms;
        let ago = |at: usize| mono_ms.saturating_sub(self.times[at].ended_ms) + 1;
        // As gap / ago, in whole numbers.
        let least = (1..self.times.len() - 1).min_by_key(|&at| u128::from(gap(at)) * u128::from(u32::MAX) / u128::from(ago(at)));
        if let Some(at) = least {
            self.times.remove(at);
        }
    }

    /// The last local sequence of which nothing is newer than what was fetched at this time; `None` where all are older,
    /// or there was none.
    pub(super) fn older_than(&self, fetched_mono_ms: Option<u64>) -> Option<u64> {
        let before = self.before?;
        let is_older = |time: &&Time| fetched_mono_ms.is_some_and(|fetched| time.ended_ms + MARGIN_MS < fetched);
        match self.times.iter().rev().find(is_older) {
            Some(time) if self.times.back().is_some_and(|last| last.local == time.local) => None,
            Some(time) => Some(time.local),
            None => Some(before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_fetched_later_is_newer() {
        let mut unshared = Unshared::default();
        assert_eq!(unshared.older_than(Some(5)), None, "there was none");
        unshared.note(8, 10_000);
        unshared.note(9, 10_999);
        unshared.note(10, 20_000);
        assert_eq!(unshared.older_than(None), Some(7), "nobody knows");
        assert_eq!(unshared.older_than(Some(12_999)), Some(7));
        assert_eq!(unshared.older_than(Some(13_000)), Some(9));
        assert_eq!(unshared.older_than(Some(22_000)), Some(9));
        assert_eq!(unshared.older_than(Some(22_001)), None, "all are older");
    }

    #[test]
    fn however_many_there_are_they_are_never_taken_for_older_and_take_little_room() {
        let mut unshared = Unshared::default();
        for local in 1..100_000 {
            unshared.note(local, local * 400);
            let ago = local % 50_000;
            let fetched = (local - ago) * 400;
            let older = unshared.older_than(Some(fetched)).expect("one was made just now");
            assert!(older == 0 || older * 400 + MARGIN_MS < fetched, "{local}: {older}");
        }
        assert!(unshared.times.len() <= TIMES_MAX);
        let hour_ago = (99_999 - 9000) * 400;
        assert!(unshared.older_than(Some(hour_ago)).is_some_and(|local| local > 80_000), "old ones do not count for ever");
    }
}
