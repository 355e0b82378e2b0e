//! How often keys were asked for of late, about: a count-min sketch of four-bit counters that are halved now and then
//! (TinyLFU; Einziger, Friedman, Manes 2017).
//!
//! A key has one counter in each of four rows, all in one block of the size of a cache line, and the least of them says how
//! often it was counted: too much where all four are shared with busy keys, never too little.

/// Counts keys by good hashes of them. Counts nothing until it is told for how many keys ([`Sketch::fit`]).
#[derive(Debug, Default)]
pub struct Sketch {
    blocks: Vec<Block>,
    /// Keys that there are.
    keys: usize,
    /// Since the counters were halved.
    counted: u64,
}

/// Two words of sixteen counters for each row.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Block([u64; 2 * ROWS]);

const ROWS: usize = 4;
/// Eight bytes for each key.
const KEYS_PER_BLOCK: usize = 8;
/// The counters are halved when so many were counted for each key: what was popular once is forgotten (decision 0012).
const COUNTED_PER_KEY: u64 = 5;
/// As high as a counter goes.
pub const MOST: u32 = 15;
const LOW_BITS: u64 = 0x1111_1111_1111_1111;

impl Sketch {
    /// For so many keys from now on. It keeps what was counted, and its memory.
    pub fn fit(&mut self, keys: usize) {
        self.keys = keys;
        let blocks = keys.div_ceil(KEYS_PER_BLOCK).next_power_of_two();
        if self.blocks.is_empty() {
            self.blocks = vec![Block([0; 2 * ROWS]); blocks];
        }
        while self.blocks.len() < blocks {
            // A key moves to the block of the same number in the copy, or not at all.
            self.blocks.extend_from_within(..);
        }
    }

    pub fn count(&mut self, key: u128) {
        let Some(block) = block_of(self.blocks.len(), key) else { return };
        let words = &mut self.blocks[block].0;
        let mut grew = false;
        for (word, shift) in counters(key) {
            let is_less = words[word] >> shift & u64::from(MOST) < u64::from(MOST);
            words[word] += u64::from(is_less) << shift;
            grew |= is_less;
        }
        self.counted += u64::from(grew);
        if self.counted >= COUNTED_PER_KEY * self.keys as u64 {
            self.halve();
        }
    }

    /// How often the key was counted of late, at most [`MOST`].
    pub fn frequency(&self, key: u128) -> u32 {
        let Some(block) = block_of(self.blocks.len(), key) else { return 0 };
        let words = &self.blocks[block].0;
        counters(key).map(|(word, shift)| (words[word] >> shift) as u32 & MOST).min().unwrap_or(0)
    }

    fn halve(&mut self) {
        for word in self.blocks.iter_mut().flat_map(|block| &mut block.0) {
            *word = *word >> 1 & !(LOW_BITS << 3);
        }
        self.counted /= 2;
    }
}

fn block_of(blocks: usize, key: u128) -> Option<usize> {
    (key as u64 as usize).checked_rem(blocks)
}

/// Word and place in it of each row's counter; by other bits than the block.
fn counters(key: u128) -> impl Iterator<Item = (usize, u32)> {
    let bits = (key >> 64) as u64;
    (0..ROWS).map(move |row| {
        let bits = bits >> (8 * row);
        (2 * row + (bits >> 4 & 1) as usize, (bits & 15) as u32 * 4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::key::hash128;

    fn key(number: u64) -> u128 {
        hash128(&number.to_ne_bytes())
    }

    fn counted(times: impl Fn(u64) -> u32, keys: u64, room: usize) -> Sketch {
        let mut sketch = Sketch::default();
        sketch.fit(room);
        for number in 0..keys {
            (0..times(number)).for_each(|_| sketch.count(key(number)));
        }
        sketch
    }

    #[test]
    fn nothing_is_counted_without_room() {
        let mut sketch = Sketch::default();
        sketch.count(key(1));
        assert_eq!((sketch.frequency(key(1)), sketch.counted), (0, 0));
    }

    #[test]
    fn counts_are_never_too_low_and_seldom_too_high() {
        let times = |number| number as u32 % 8;
        let sketch = counted(times, 1000, 1024);
        let over: Vec<u32> = (0..1000).map(|number| sketch.frequency(key(number)) - times(number)).collect();
        assert!(over.iter().filter(|over| **over > 0).count() < 300, "{over:?}");
        assert!(over.iter().sum::<u32>() < 700, "{over:?}");
    }

    #[test]
    fn a_counter_stays_at_its_most() {
        let sketch = counted(|_| 40, 1, 1024);
        assert_eq!((sketch.frequency(key(0)), sketch.counted), (MOST, 15));
    }

    #[test]
    fn counts_are_halved_in_time() {
        let mut sketch = counted(|_| 12, 1, 16);
        let before = sketch.counted;
        assert_eq!(sketch.frequency(key(0)), 12);
        sketch.halve();
        assert_eq!((sketch.frequency(key(0)), sketch.counted), (6, before / 2));
        let mut number = 0;
        while sketch.frequency(key(0)) >= 6 {
            number += 1;
            assert!(number < 10_000, "never halved");
            sketch.count(key(number));
        }
    }

    #[test]
    fn more_room_keeps_what_was_counted() {
        let mut sketch = counted(|number| number as u32 % 16, 500, 500);
        let before: Vec<u32> = (0..500).map(|number| sketch.frequency(key(number))).collect();
        sketch.fit(5000);
        sketch.fit(10);
        assert!(sketch.blocks.len() * KEYS_PER_BLOCK >= 5000);
        assert_eq!((0..500).map(|number| sketch.frequency(key(number))).collect::<Vec<_>>(), before);
    }
}
