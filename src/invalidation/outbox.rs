//! Invalidations by unsafe methods that are in force here and wait to be told to the fleet: in order, each once.

use super::Kind;
use foldhash::fast::RandomState;
use std::collections::{HashSet, VecDeque};

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// With the local sequence at which each was first put.
    waiting: VecDeque<(u64, (Kind, u128))>,
    known: HashSet<(Kind, u128), RandomState>,
    /// Not told each by itself, because too many waited.
    lost: u64,
}

impl Outbox {
    /// Beyond these the fleet is told to drop everything: Redis has been away for long under many writes.
    pub(super) const MAX: usize = 65_536;

    /// False where it finds no place.
    pub(super) fn put(&mut self, local: u64, hash: (Kind, u128)) -> bool {
        if self.known.contains(&hash) {
            return true;
        }
        if self.waiting.len() >= Self::MAX {
            self.lost += 1;
            return false;
        }
        self.known.insert(hash);
        self.waiting.push_back((local, hash));
        true
    }

    /// The first of them, and the local sequence of the oldest.
    pub(super) fn take(&mut self, most: usize) -> Option<(u64, Vec<(Kind, u128)>)> {
        let first = self.first()?;
        let taken: Vec<_> = self.waiting.drain(..most.min(self.waiting.len())).map(|(_, hash)| hash).collect();
        for hash in &taken {
            self.known.remove(hash);
        }
        Some((first, taken))
    }

    /// Something else tells the fleet of all of them.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
        self.known.clear();
    }

    /// Local sequence of the oldest that waits.
    pub(super) fn first(&self) -> Option<u64> {
        self.waiting.front().map(|&(local, _)| local)
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) const fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hash_waits_once_and_in_order() {
        let mut outbox = Outbox::default();
        for (local, hash) in [(1, 7), (2, 8), (3, 7), (4, 9)] {
            assert!(outbox.put(local, (Kind::Url, hash)));
        }
        assert_eq!(outbox.take(2), Some((1, vec![(Kind::Url, 7), (Kind::Url, 8)])));
        assert!(outbox.put(5, (Kind::Url, 7)), "written again after it was taken");
        assert_eq!(outbox.take(9), Some((4, vec![(Kind::Url, 9), (Kind::Url, 7)])));
        assert_eq!((outbox.take(9), outbox.len()), (None, 0));
    }

    #[test]
    fn beyond_the_bound_the_fleet_is_not_told() {
        let mut outbox = Outbox::default();
        for hash in 0..Outbox::MAX as u128 {
            assert!(outbox.put(1, (Kind::Url, hash)));
        }
        assert!(!outbox.put(2, (Kind::Url, u128::MAX)));
        assert!(outbox.put(2, (Kind::Url, 0)), "it waits already");
        assert_eq!(outbox.lost(), 1);
    }
}
