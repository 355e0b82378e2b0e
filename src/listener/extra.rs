//! Lines that an answer adds to a stored block.

use crate::semantics::structured::Text;
use std::ops::Deref;

/// Wire bytes (`age: 5\r\n`...), in place while they are few, so that a hit needs no memory for them.
///
/// What general containers do for every piece, make room before a tail and move it, adds up to a tenth of what a hit does.
#[derive(Debug)]
pub struct ExtraLines {
    place: [u8; PLACE],
    used: usize,
    /// All of them once they are more than `place` holds.
    spilled: Vec<u8>,
}

/// What the lines of nearly all answers need.
const PLACE: usize = 256;

impl ExtraLines {
    pub const fn new() -> Self {
        Self { place: [0; PLACE], used: 0, spilled: Vec::new() }
    }

    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        match self.place.get_mut(self.used..).and_then(|free| free.get_mut(..bytes.len())) {
            Some(free) if self.spilled.is_empty() => {
                free.copy_from_slice(bytes);
                self.used += bytes.len();
            }
            _ => self.spill(bytes),
        }
    }

    #[cold]
    fn spill(&mut self, bytes: &[u8]) {
        if self.spilled.is_empty() {
            self.spilled.extend_from_slice(&self.place[..self.used]);
        }
        self.spilled.extend_from_slice(bytes);
    }
}

impl Text for ExtraLines {
    fn put(&mut self, piece: &[u8]) {
        self.extend_from_slice(piece);
    }
}

impl Default for ExtraLines {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for ExtraLines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        if self.spilled.is_empty() { &self.place[..self.used] } else { &self.spilled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_kept_in_order(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..12)) {
            let mut lines = ExtraLines::new();
            for piece in &pieces {
                lines.extend_from_slice(piece);
            }
            prop_assert_eq!(&lines[..], &pieces.concat()[..]);
        }
    }
}
