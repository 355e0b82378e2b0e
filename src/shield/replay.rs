//! Whether a hop was seen before.
//!
//! Each sender numbers its hops. Of each sender the highest number is kept and a window of those below it: what is in the
//! window and was not seen is new, what lies below it is refused. That bounds memory by senders, not by requests.

use super::hop::Invalid;
use std::collections::HashMap;

/// Numbers below the highest that may still come: requests overtake each other on their connections.
pub const WINDOW: u64 = 65_536;
const WORDS: usize = (WINDOW / 64) as usize;

/// Processes that are told apart at a time; 8 KiB each. Only who has the key can be one.
pub const SENDERS_MAX: usize = 1024;

/// What was seen.
#[derive(Debug, Default)]
pub struct Replays {
    senders: HashMap<u128, Window>,
}

#[derive(Debug)]
struct Window {
    highest: u64,
    /// Ring of bits: number modulo [`WINDOW`].
    seen: Box<[u64; WORDS]>,
    last_mono_ms: u64,
}

impl Replays {
    /// Takes a number of a sender once. A sender that was silent for `keep_ms` may be forgotten: by then its hops are too
    /// old to be taken again.
    pub fn take(&mut self, sender: u128, number: u64, now_mono_ms: u64, keep_ms: u64) -> Result<(), Invalid> {
        if !self.senders.contains_key(&sender) && self.senders.len() >= SENDERS_MAX {
            self.senders.retain(|_, window| window.last_mono_ms + keep_ms >= now_mono_ms);
            if self.senders.len() >= SENDERS_MAX {
                return Err(Invalid::TooManySenders);
            }
        }
        let window = self.senders.entry(sender).or_insert_with(|| Window::new(number));
        window.last_mono_ms = now_mono_ms;
        if window.take(number) { Ok(()) } else { Err(Invalid::Replayed) }
    }
}

impl Window {
    fn new(first: u64) -> Self {
        Self { highest: first, seen: Box::new([0; WORDS]), last_mono_ms: 0 }
    }

    fn take(&mut self, number: u64) -> bool {
        if number > self.highest {
            if number - self.highest >= WINDOW {
                self.seen.fill(0);
            } else {
                (self.highest + 1..=number).for_each(|skipped| self.set(skipped, false));
            }
            self.highest = number;
        } else if self.highest - number >= WINDOW || self.has(number) {
            return false;
        }
        self.set(number, true);
        true
    }

    fn has(&self, number: u64) -> bool {
        let at = number % WINDOW;
        self.seen[(at / 64) as usize] & (1 << (at % 64)) != 0
    }

    fn set(&mut self, number: u64, seen: bool) {
        let at = number % WINDOW;
        let word = &mut self.seen[(at / 64) as usize];
        if seen { *word |= 1 << (at % 64) } else { *word &= !(1 << (at % 64)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn a_number_is_taken_once_and_far_behind_never() {
        let mut replays = Replays::default();
        let mut take = |sender, number| replays.take(sender, number, 0, 60_000).is_ok();
        assert!(take(1, 5) && !take(1, 5));
        assert!(take(1, 3) && !take(1, 3), "they may overtake each other");
        assert!(take(2, 5), "each sender has numbers of its own");
        assert!(take(1, 5 + WINDOW) && !take(1, 5));
        assert!(take(1, 6) && !take(1, 6), "the last one in the window");
        assert!(take(1, u64::MAX) && !take(1, u64::MAX) && !take(1, 0));
    }

    #[test]
    fn silent_senders_make_room_and_active_ones_do_not() {
        let mut replays = Replays::default();
        for sender in 0..SENDERS_MAX as u128 {
            replays.take(sender, 1, 0, 1000).unwrap();
        }
        assert_eq!(replays.take(9_999, 1, 1000, 1000), Err(Invalid::TooManySenders));
        assert_eq!(replays.take(0, 2, 1001, 1000), Ok(()));
        assert_eq!(replays.take(9_999, 1, 1001, 1000), Ok(()));
        assert_eq!(replays.take(0, 2, 1001, 1000), Err(Invalid::Replayed));
    }

    proptest! {
        #[test]
        fn nothing_is_taken_twice(numbers in proptest::collection::vec(0_u64..3 * WINDOW, 0..400)) {
            let (mut replays, mut taken) = (Replays::default(), HashSet::new());
            for number in numbers {
                let is_new = !taken.contains(&number);
                let behind = taken.iter().max().is_some_and(|highest: &u64| highest.saturating_sub(number) >= WINDOW);
                let was_taken = replays.take(7, number, 0, 0).is_ok();
                prop_assert_eq!(was_taken, is_new && !behind);
                if was_taken {
                    taken.insert(number);
                }
            }
        }
    }
}
