//! How bytes come, for the fuzz targets and for the test of the same property.

/// How bytes are split on arrival. What is said of them must not depend on it: a byte more or less per read is all that an
/// attacker needs to make two parsers disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    AtOnce,
    Bytewise,
    /// Pieces of any size; the state of the generator of their sizes.
    Uneven(u64),
    /// In two, so many bytes first.
    Split(usize),
}

impl Arrival {
    /// The ways in which an input is tried. The uneven one follows from the input, so that a finding needs nothing else to come
    /// back, and each mutation of an input is split elsewhere.
    pub fn ways(input: &[u8]) -> [Self; 3] {
        let seed = input.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
        [Self::AtOnce, Self::Bytewise, Self::Uneven(seed | 1)]
    }

    /// Bytes of the next piece, at least one.
    pub fn piece(&mut self) -> usize {
        match self {
            Self::AtOnce => usize::MAX,
            Self::Bytewise => 1,
            Self::Uneven(state) => {
                *state ^= *state << 13; // xorshift: never zero where the seed is not
                *state ^= *state >> 7;
                *state ^= *state << 17;
                1 + (*state as usize >> 8) % [2, 16, 128, 1024][*state as usize % 4]
            }
            Self::Split(first) => std::mem::replace(first, usize::MAX),
        }
    }

    /// Up to where bytes are there after the next piece.
    pub fn next(&mut self, there: usize, length: usize) -> usize {
        length.min(there.saturating_add(self.piece()))
    }
}
