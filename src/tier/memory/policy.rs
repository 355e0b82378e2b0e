//! Which values may stay: what was used least lately goes first, and under TinyLFU a newcomer to a full tier stays only if
//! it is asked for more often than those that would have to go.
//!
//! Knows keys and weights: no values, no time, no locks. Invariant: the places of the list are those that were given out
//! and not given back, and the bytes are the sum of their weights.

use super::sketch::Sketch;

#[derive(Debug)]
pub struct Policy {
    /// The first one is no value but both ends of the list: its `older` is the newest of all. In pieces, so that growing
    /// moves none.
    pieces: Vec<Box<[Node]>>,
    /// Those that were given back, by `older`.
    free: Place,
    bytes: u64,
    values: usize,
    capacity: u64,
    /// `None`: every newcomer stays.
    sketch: Option<Sketch>,
}

/// Where a value stands in the list; another one may stand there once it was given back.
pub type Place = u32;

#[derive(Debug, Clone, Copy)]
struct Node {
    /// Its halves: alone it would have to stand at a multiple of sixteen.
    key: [u64; 2],
    weight: u32,
    older: Place,
    newer: Place,
    is_used: bool,
}

const _: () = assert!(size_of::<Node>() == 32);

const ENDS: Place = 0;
const PIECE: usize = 1024;

impl Policy {
    /// For so many bytes; `lru` admits every newcomer.
    pub fn new(capacity: u64, lru: bool) -> Self {
        let sketch = (!lru).then(Sketch::default);
        let mut policy = Self { pieces: Vec::new(), free: ENDS, bytes: 0, values: 0, capacity, sketch };
        policy.add_piece();
        policy
    }

    /// Bytes of all values.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub const fn values(&self) -> usize {
        self.values
    }

    /// The place of a value that is put: of its key's last one, if that is `there`. `None` where it may not stay, nor what
    /// was there. What has to go for it goes by [`Policy::evict`].
    pub fn put(&mut self, key: u128, there: Option<Place>, weight: u32) -> Option<Place> {
        let place = match there {
            Some(place) if u64::from(weight) > self.capacity => {
                self.remove(place);
                return None;
            }
            Some(place) => {
                self.bytes = self.bytes - u64::from(self.node(place).weight) + u64::from(weight);
                self.node_mut(place).weight = weight;
                self.unlink(place);
                place
            }
            None if self.admits(key, weight) => self.take(key, weight),
            None => return None,
        };
        self.link_newest(place);
        // How often a key is asked for does not matter while there is plenty of room.
        if let Some(sketch) = self.sketch.as_mut().filter(|_| self.bytes >= self.capacity / 2) {
            sketch.fit(self.values);
        }
        Some(place)
    }

    /// The value of a key was used. Another one may have its place by now: then only the key counts.
    pub fn used(&mut self, place: Place, key: u128) {
        self.wanted(key);
        if self.node(place).is_used && self.node(place).key == halves(key) && self.node(ENDS).older != place {
            self.unlink(place);
            self.link_newest(place);
        }
    }

    /// A key was asked for.
    pub fn wanted(&mut self, key: u128) {
        if let Some(sketch) = &mut self.sketch {
            sketch.count(key);
        }
    }

    /// Forgets the value at this place.
    pub fn remove(&mut self, place: Place) {
        self.unlink(place);
        self.bytes -= u64::from(self.node(place).weight);
        self.values -= 1;
        let free = self.free;
        *self.node_mut(place) = Node { older: free, is_used: false, ..*self.node(place) };
        self.free = place;
    }

    /// Forgets the value that was used least lately, if there are more bytes than `most`, and gives its key.
    pub fn evict(&mut self, most: u64) -> Option<u128> {
        let oldest = self.node(ENDS).newer;
        (self.bytes > most && oldest != ENDS).then(|| {
            let [high, low] = self.node(oldest).key;
            self.remove(oldest);
            u128::from(high) << 64 | u128::from(low)
        })
    }

    /// Whether a newcomer may stay: there is room, or it is asked for more often than all that would have to go together.
    fn admits(&self, key: u128, weight: u32) -> bool {
        if u64::from(weight) > self.capacity {
            return false;
        }
        let mut missing = (self.bytes + u64::from(weight)).saturating_sub(self.capacity);
        let Some(sketch) = &self.sketch else { return true };
        let frequency = sketch.frequency(key);
        let (mut place, mut frequencies) = (ENDS, 0);
        while missing > 0 {
            place = self.node(place).newer;
            let Node { key: [high, low], weight, .. } = *self.node(place);
            frequencies += sketch.frequency(u128::from(high) << 64 | u128::from(low));
            if place == ENDS || frequencies >= frequency {
                return false;
            }
            missing = missing.saturating_sub(u64::from(weight));
        }
        true
    }

    fn take(&mut self, key: u128, weight: u32) -> Place {
        if self.free == ENDS {
            self.add_piece();
        }
        let place = self.free;
        self.free = self.node(place).older;
        *self.node_mut(place) = Node { key: halves(key), weight, older: place, newer: place, is_used: true };
        self.bytes += u64::from(weight);
        self.values += 1;
        place
    }

    fn add_piece(&mut self) {
        let first = (self.pieces.len() * PIECE) as Place;
        let free = |place| Node { key: [0; 2], weight: 0, older: place + 1, newer: ENDS, is_used: false };
        self.pieces.push((first..first + PIECE as Place).map(free).collect());
        let last = first + PIECE as Place - 1;
        self.node_mut(last).older = self.free;
        self.free = first;
        if first == ENDS {
            self.free = 1;
            *self.node_mut(ENDS) = Node { older: ENDS, ..free(ENDS) };
        }
    }

    fn link_newest(&mut self, place: Place) {
        let older = self.node(ENDS).older;
        *self.node_mut(place) = Node { older, newer: ENDS, ..*self.node(place) };
        self.node_mut(older).newer = place;
        self.node_mut(ENDS).older = place;
    }

    fn unlink(&mut self, place: Place) {
        let Node { older, newer, .. } = *self.node(place);
        self.node_mut(older).newer = newer;
        self.node_mut(newer).older = older;
    }

    fn node(&self, place: Place) -> &Node {
        &self.pieces[place as usize / PIECE][place as usize % PIECE]
    }

    fn node_mut(&mut self, place: Place) -> &mut Node {
        &mut self.pieces[place as usize / PIECE][place as usize % PIECE]
    }
}

const fn halves(key: u128) -> [u64; 2] {
    [(key >> 64) as u64, key as u64]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::key::hash128;
    use proptest::prelude::*;

    fn full(lru: bool, values: u64) -> (Policy, Vec<Place>) {
        let mut policy = Policy::new(values * 10, lru);
        let places = (0..values).filter_map(|key| policy.put(u128::from(key), None, 10)).collect();
        (policy, places)
    }

    #[test]
    fn what_was_used_least_lately_goes_first() {
        let (mut policy, places) = full(true, 5);
        policy.used(places[0], 0);
        assert_eq!(policy.put(1, Some(places[1]), 20), Some(places[1]));
        assert!(policy.put(9, None, 10).is_some());
        assert_eq!((policy.bytes(), policy.values()), (70, 6));
        let order: Vec<u128> = std::iter::from_fn(|| policy.evict(0)).collect();
        assert_eq!(order, [2, 3, 4, 0, 1, 9]);
        assert_eq!((policy.bytes(), policy.values()), (0, 0));
    }

    #[test]
    fn no_more_goes_than_has_to() {
        let (mut policy, _) = full(true, 5);
        assert!(policy.put(9, None, 15).is_some());
        let gone: Vec<u128> = std::iter::from_fn(|| policy.evict(50)).collect();
        assert_eq!((gone, policy.bytes()), (vec![0, 1], 45));
    }

    #[test]
    fn a_use_of_a_value_that_left_its_place_moves_no_other() {
        let (mut policy, places) = full(true, 3);
        policy.remove(places[0]);
        policy.used(places[0], 0);
        assert_eq!(policy.put(7, None, 10), Some(places[0]), "places are used again");
        assert!(policy.put(8, None, 10).is_some());
        policy.used(places[0], 0);
        assert_eq!(std::iter::from_fn(|| policy.evict(0)).collect::<Vec<_>>(), [1, 2, 7, 8]);
    }

    #[test]
    fn a_newcomer_to_a_full_tier_must_be_wanted_more_than_what_would_go() {
        let mut policy = Policy::new(640, false);
        let ask = |policy: &mut Policy, key, times| (0..times).for_each(|_| policy.wanted(key));
        let keys: Vec<u128> = (0..65u32).map(|number| hash128(&number.to_ne_bytes())).collect();
        let newcomer = keys[64];
        assert!(keys[..64].iter().all(|key| policy.put(*key, None, 10).is_some()));
        keys[..2].iter().for_each(|key| ask(&mut policy, *key, 2));
        assert_eq!(policy.put(newcomer, None, 10), None);
        ask(&mut policy, newcomer, 3);
        assert_eq!(policy.put(newcomer, None, 20), None, "two that are asked for four times would go");
        assert!(policy.put(newcomer, None, 10).is_some());
        assert_eq!((policy.evict(640), policy.evict(640)), (Some(keys[0]), None));
    }

    #[test]
    fn what_can_never_fit_is_refused_and_what_it_replaces_goes() {
        for lru in [true, false] {
            let (mut policy, places) = full(lru, 3);
            assert_eq!(policy.put(9, None, 31), None);
            assert_eq!(policy.put(1, Some(places[1]), 31), None);
            assert_eq!((policy.bytes(), policy.values()), (20, 2));
        }
    }

    proptest! {
        /// As a plain list has it, whatever comes; in more places than a piece has, too.
        #[test]
        fn the_order_is_that_of_a_plain_list(steps in proptest::collection::vec((0u8..8, 0u128..40, 1u32..9), 1..200), extra in 0u128..3000) {
            let mut policy = Policy::new(u64::MAX, true);
            // Oldest first.
            let mut model: Vec<(u128, u32, Place)> = Vec::new();
            for key in 0..extra {
                model.push((1000 + key, 1, policy.put(1000 + key, None, 1).expect("there is room")));
            }
            for (step, key, weight) in steps {
                let at = model.iter().position(|(other, ..)| *other == key);
                match step {
                    0..4 => {
                        let place = policy.put(key, at.map(|at| model.remove(at).2), weight).expect("there is room");
                        model.push((key, weight, place));
                    }
                    4 | 5 => if let Some(at) = at {
                        let entry = model.remove(at);
                        policy.used(entry.2, key);
                        model.push(entry);
                    },
                    6 => if let Some(at) = at {
                        policy.remove(model.remove(at).2);
                    },
                    _ => prop_assert_eq!(policy.evict(0), (!model.is_empty()).then(|| model.remove(0).0)),
                }
                prop_assert_eq!(policy.values(), model.len());
                prop_assert_eq!(policy.bytes(), model.iter().map(|(_, weight, _)| u64::from(*weight)).sum::<u64>());
            }
            let order: Vec<u128> = std::iter::from_fn(|| policy.evict(0)).collect();
            prop_assert_eq!(order, model.iter().map(|(key, ..)| *key).collect::<Vec<_>>());
        }
    }
}
