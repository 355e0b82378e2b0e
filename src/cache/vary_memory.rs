//! The Vary of keys, remembered beyond eviction, so that a stampede on a known key forms one flight per variant at once.

use crate::semantics::vary::Vary;
use foldhash::fast::RandomState;
use moka::sync::Cache;

/// A bounded map from key hash to the Vary last seen. A wrong answer costs a regrouping, never correctness.
#[derive(Debug)]
pub struct VaryMemory {
    known: Cache<u128, Vary, RandomState>,
}

/// A Vary that takes more than this is not remembered: origins choose its names.
const VARY_BYTES_MAX: usize = 1024;

impl VaryMemory {
    pub fn new(keys: u64) -> Self {
        Self { known: Cache::builder().max_capacity(keys).build_with_hasher(RandomState::default()) }
    }

    pub fn get(&self, key: u128) -> Option<Vary> {
        self.known.get(&key)
    }

    /// Remembers; a key without Vary needs no place.
    pub fn remember(&self, key: u128, vary: &Vary) {
        match vary {
            Vary::Nothing => self.known.invalidate(&key),
            Vary::Star => {}
            Vary::Fields(_) if vary.memory() > VARY_BYTES_MAX => {}
            Vary::Fields(_) => self.known.insert(key, vary.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::semantics::Fields;

    #[test]
    fn a_long_vary_is_not_remembered() {
        let memory = VaryMemory::new(10);
        let vary = |name: &str| {
            let mut fields = Fields::new();
            fields.push("vary", name).unwrap();
            Vary::parse(&fields)
        };
        memory.remember(1, &vary("x-a"));
        memory.remember(2, &vary(&"x".repeat(VARY_BYTES_MAX)));
        assert_eq!((memory.get(1), memory.get(2)), (Some(vary("x-a")), None));
    }
}
