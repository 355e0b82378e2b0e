//! A bounded map from keys to slots that knows which was raised longest ago.
//!
//! There may be hundreds of thousands of them, for good: they stand in one list, linked by their places in it, and the index
//! has little beside those places. A slot takes some 140 bytes (`ledger::Slot`, its key and its links 96, the index 21 to 42).

use super::ledger::Slot;
use foldhash::fast::RandomState;
use std::collections::HashMap;

#[derive(Debug)]
pub(super) struct Slots {
    /// By the bytes of the key, which need no alignment.
    places: HashMap<[u8; 16], u32, RandomState>,
    entries: Vec<Entry>,
    /// An entry that holds nothing.
    free: Option<u32>,
    oldest: u32,
    youngest: u32,
}

#[derive(Debug)]
struct Entry {
    key: u128,
    slot: Slot,
    older: u32,
    younger: u32,
}

/// No place.
const NONE: u32 = u32::MAX;

impl Slots {
    pub(super) fn new() -> Self {
        Self { places: HashMap::default(), entries: Vec::new(), free: None, oldest: NONE, youngest: NONE }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn get(&self, key: u128) -> Option<&Slot> {
        let at = *self.places.get(&key.to_ne_bytes())?;
        self.entries.get(at as usize).map(|entry| &entry.slot)
    }

    /// Takes the oldest one out where the slot of `key` would be one more than `most`.
    pub(super) fn make_room(&mut self, key: u128, most: usize) -> Option<(u128, Slot)> {
        if self.len() < most || self.places.contains_key(&key.to_ne_bytes()) {
            return None;
        }
        let oldest = self.oldest;
        let entry = self.entries.get_mut(oldest as usize)?;
        let taken = (entry.key, std::mem::take(&mut entry.slot));
        self.places.remove(&taken.0.to_ne_bytes());
        self.unlink(oldest);
        self.free = Some(oldest);
        Some(taken)
    }

    /// The slot of a key, now the youngest.
    pub(super) fn youngest(&mut self, key: u128) -> &mut Slot {
        let at = match self.places.get(&key.to_ne_bytes()) {
            Some(&at) => {
                self.unlink(at);
                at
            }
            None => self.add(key),
        };
        let before = std::mem::replace(&mut self.youngest, at);
        match self.entries.get_mut(before as usize) {
            Some(before) => before.younger = at,
            None => self.oldest = at,
        }
        let entry = &mut self.entries[at as usize];
        (entry.older, entry.younger) = (before, NONE);
        &mut entry.slot
    }

    fn add(&mut self, key: u128) -> u32 {
        let at = self.free.take().unwrap_or(self.entries.len() as u32);
        match self.entries.get_mut(at as usize) {
            Some(entry) => entry.key = key,
            None => self.entries.push(Entry { key, slot: Slot::default(), older: NONE, younger: NONE }),
        }
        self.places.insert(key.to_ne_bytes(), at);
        at
    }

    fn unlink(&mut self, at: u32) {
        let Entry { older, younger, .. } = self.entries[at as usize];
        match self.entries.get_mut(older as usize) {
            Some(older) => older.younger = younger,
            None => self.oldest = younger,
        }
        match self.entries.get_mut(younger as usize) {
            Some(younger) => younger.older = older,
            None => self.youngest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_entry_takes_no_more_than_is_said() {
        assert_eq!((size_of::<Entry>(), size_of::<([u8; 16], u32)>()), (96, 20));
    }

    proptest! {
        /// Against a list that is searched.
        #[test]
        fn the_one_that_was_raised_longest_ago_makes_room(keys in prop::collection::vec(0..12_u128, 0..200), most in 1..9_usize) {
            let (mut slots, mut expected) = (Slots::new(), Vec::new());
            for key in keys {
                let is_there = expected.contains(&key);
                let oldest = (!is_there && expected.len() == most).then(|| expected.remove(0));
                prop_assert_eq!(slots.make_room(key, most).map(|(key, _)| key), oldest);
                expected.retain(|other| *other != key);
                expected.push(key);
                slots.youngest(key).hard.local += 1;
                prop_assert_eq!(slots.len(), expected.len());
                prop_assert!(slots.entries.len() <= most);
                for key in 0..12 {
                    prop_assert_eq!(slots.get(key).is_some(), expected.contains(&key));
                }
            }
        }

        #[test]
        fn a_slot_stays_what_it_was_until_it_is_taken_out(keys in prop::collection::vec(0..6_u128, 0..100)) {
            let (mut slots, mut raised) = (Slots::new(), [0; 6]);
            for key in keys {
                if let Some((taken, slot)) = slots.make_room(key, 3) {
                    prop_assert_eq!(slot.hard.local, std::mem::take(&mut raised[taken as usize]));
                }
                slots.youngest(key).hard.local += 1;
                raised[key as usize] += 1;
                prop_assert_eq!(slots.get(key).map(|slot| slot.hard.local), Some(raised[key as usize]));
            }
        }
    }
}
