//! Why responses of keys were not stored lately, for `explain`.
//!
//! Everything that may not be stored passes here, so a look is one load, and what is known already is not written again.
//! One key in a slot, the last one: a refusal that is forgotten costs nothing but its mention.

use crate::semantics::storage::NotStored;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Refusals that are remembered, of 8 bytes each.
const SLOTS: usize = 1 << 15;
/// The bits of a slot that say why, counted from one; the others are of the key.
const WHY: u64 = 0xff;

pub struct Refusals(Box<[AtomicU64]>);

impl Default for Refusals {
    fn default() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Refusals {
    pub fn note(&self, key: u128, why: NotStored) {
        let (slot, tag) = self.place(key);
        let refusal = tag | (why as u64 + 1);
        if slot.load(Relaxed) != refusal {
            slot.store(refusal, Relaxed);
        }
    }

    pub fn forget(&self, key: u128) {
        if self.get(key).is_some() {
            self.place(key).0.store(0, Relaxed);
        }
    }

    pub fn get(&self, key: u128) -> Option<NotStored> {
        let (slot, tag) = self.place(key);
        let refusal = slot.load(Relaxed);
        let why = usize::try_from(refusal & WHY).ok()?.checked_sub(1)?;
        if refusal & !WHY == tag { NotStored::ALL.get(why).copied() } else { None }
    }

    fn place(&self, key: u128) -> (&AtomicU64, u64) {
        (&self.0[key as usize % SLOTS], (key >> 64) as u64 & !WHY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_their_own_index() {
        assert!(NotStored::ALL.iter().enumerate().all(|(at, why)| *why as usize == at));
    }

    #[test]
    fn a_refusal_is_known_until_its_key_is_forgotten_or_another_takes_its_place() {
        let refusals = Refusals::default();
        let (one, beside) = (7 << 100, 8 << 100);
        assert_eq!(refusals.get(0), None);
        for why in NotStored::ALL {
            refusals.note(one, why);
            assert_eq!((refusals.get(one), refusals.get(beside)), (Some(why), None));
        }
        refusals.forget(beside);
        assert!(refusals.get(one).is_some());
        refusals.forget(one);
        assert_eq!(refusals.get(one), None);
        refusals.note(one, NotStored::Private);
        refusals.note(beside, NotStored::NoStore);
        assert_eq!((refusals.get(one), refusals.get(beside)), (None, Some(NotStored::NoStore)));
    }
}
