//! The Vary of keys, remembered beyond eviction, so that a stampede on a known key forms one flight per variant at once.

use crate::semantics::vary::Vary;
use moka::sync::Cache;

/// A bounded map from key hash to the Vary last seen. A wrong answer costs a regrouping, never correctness.
#[derive(Debug)]
pub struct VaryMemory {
    known: Cache<u128, Vary>,
}

impl VaryMemory {
    pub fn new(keys: u64) -> Self {
        Self { known: Cache::new(keys) }
    }

    pub fn get(&self, key: u128) -> Option<Vary> {
        self.known.get(&key)
    }

    /// Remembers; a key without Vary needs no place.
    pub fn remember(&self, key: u128, vary: &Vary) {
        match vary {
            Vary::Nothing => self.known.invalidate(&key),
            Vary::Star => {}
            Vary::Fields(_) => self.known.insert(key, vary.clone()),
        }
    }
}
