//! Memory for fills in flight and pinned bodies, as one count for the process (DESIGN section 3).

use super::sync::{AtomicU64, Ordering};
use std::sync::Arc;

/// Memory that fills in flight and pinned bodies may hold in the process.
#[derive(Debug)]
pub struct FillBudget {
    limit: u64,
    used: AtomicU64,
    detached: AtomicU64,
}

/// Bytes taken from a [`FillBudget`]; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    budget: Arc<FillBudget>,
    bytes: u64,
}

impl FillBudget {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { limit: bytes, used: AtomicU64::new(0), detached: AtomicU64::new(0) })
    }

    /// Bytes held now. May pass [`FillBudget::limit`] by one segment per fill that is not stored, because each of them
    /// needs one to get on, and by pinned bodies, which were there before.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that are left.
    pub fn left(&self) -> u64 {
        self.limit.saturating_sub(self.used())
    }

    /// Takes `bytes`; `None` where they are not left.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let mut charge = self.empty();
        charge.grow(bytes).then_some(charge)
    }

    /// A charge of nothing, to be grown.
    pub fn empty(self: &Arc<Self>) -> Charge {
        Charge { budget: Arc::clone(self), bytes: 0 }
    }

    /// Readers that were detached because they held others up, since the start.
    pub fn detached(&self) -> u64 {
        self.detached.load(Ordering::Relaxed)
    }

    pub(super) fn count_detached(&self) {
        self.detached.fetch_add(1, Ordering::Relaxed);
    }

    /// A count that guards no other memory: relaxed everywhere.
    fn take(&self, bytes: u64) -> bool {
        let mut used = self.used();
        loop {
            if bytes > self.limit.saturating_sub(used) {
                return false;
            }
            match self.used.compare_exchange_weak(used, used + bytes, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => used = now,
            }
        }
    }
}

impl Charge {
    /// Takes `bytes` more; says whether they were left.
    pub fn grow(&mut self, bytes: u64) -> bool {
        let taken = self.budget.take(bytes);
        if taken {
            self.bytes += bytes;
        }
        taken
    }

    /// Takes `bytes` more, left or not.
    pub fn force(&mut self, bytes: u64) {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    /// Gives `bytes` back, at most what is held.
    pub fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.budget.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }

    /// Bytes held.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn budget(&self) -> &FillBudget {
        &self.budget
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}
