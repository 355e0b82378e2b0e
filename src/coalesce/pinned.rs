//! Stored bodies that answers still read after the store let go of them (DESIGN section 3): evicted, replaced, purged.
//!
//! The store weighs a body while a response keeps it ([`Kept`]). When the last one goes and answers are under way, the
//! bytes become a charge on the memory for fills, held by the body itself: whoever reads last gives it back. So bytes
//! only move from one part of the memory to the other, and what both hold together stays bounded: past the limit of the
//! memory for fills nothing new is stored, and nothing can be pinned that was not stored before.
//!
//! Slow clients alone shall not keep the store shut: above [`PINNED_PART`] of that memory those bodies that were let go of
//! first are revoked, and answers that wait for their clients with them are aborted. An answer looks when its client
//! takes something, at the latest when the write timeout ends it; a plain hit meets nothing of all this.

use super::budget::{Charge, FillBudget};
use super::sync::{AtomicU64, Mutex, Ordering};
use crate::body::StoredBody;
use crate::clock;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// One in so many bytes of the memory for fills may be pinned for longer than `fill.stall`.
pub const PINNED_PART: u64 = 2;

/// The pinned bodies of the process.
#[derive(Debug)]
pub struct Pins {
    budget: Arc<FillBudget>,
    bytes: AtomicU64,
    /// In the order in which the store let go of them; those that are gone stay until the next [`Pins::relieve`].
    bodies: Mutex<VecDeque<Pinned>>,
}

#[derive(Debug)]
struct Pinned {
    body: Weak<StoredBody>,
    bytes: u64,
    since_mono_ms: u64,
}

impl Pins {
    pub fn new(budget: &Arc<FillBudget>) -> Arc<Self> {
        Arc::new(Self { budget: Arc::clone(budget), bytes: AtomicU64::new(0), bodies: Mutex::default() })
    }

    /// Bytes pinned now; they are part of [`FillBudget::used`].
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Revokes what is pinned beyond its part, oldest first, but nothing that has been pinned for less than `stall`; how
    /// many bodies that were.
    pub fn relieve(&self, now_mono_ms: u64, stall: Duration) -> usize {
        let mut bodies = self.bodies.lock();
        bodies.retain(|pinned| pinned.body.strong_count() > 0);
        let held = bodies.iter().filter_map(|pinned| Some((pinned, pinned.body.upgrade()?))).filter(|(_, body)| !body.is_revoked());
        let held: Vec<_> = held.collect();
        let mut excess = held.iter().map(|(pinned, _)| pinned.bytes).sum::<u64>().saturating_sub(self.budget.limit() / PINNED_PART);
        let mut revoked = 0;
        for (pinned, body) in held {
            let is_new = Duration::from_millis(now_mono_ms.saturating_sub(pinned.since_mono_ms)) < stall;
            if excess == 0 || is_new {
                break;
            }
            body.revoke();
            excess = excess.saturating_sub(pinned.bytes);
            revoked += 1;
        }
        revoked
    }

    fn pin(self: &Arc<Self>, body: &Arc<StoredBody>) {
        let bytes = body.length();
        let mut charge = self.budget.empty();
        charge.force(bytes);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        body.attach(Box::new(Hold { charge, pins: Arc::clone(self) }));
        let since_mono_ms = clock::now().mono_ms;
        self.bodies.lock().push_back(Pinned { body: Arc::downgrade(body), bytes, since_mono_ms });
    }
}

/// What a pinned body gives back when it is freed.
struct Hold {
    charge: Charge,
    pins: Arc<Pins>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.pins.bytes.fetch_sub(self.charge.bytes(), Ordering::Relaxed);
    }
}

/// A body up to this length is copied when it is kept.
const COPIED_BYTES: usize = 4096;

/// A stored response's hold on its body. Responses that differ in their heads alone share one body.
#[derive(Debug)]
pub struct Kept {
    body: Arc<StoredBody>,
    pins: Arc<Pins>,
}

impl Kept {
    /// Of a short body it keeps a copy: bytes that were shared once have a counter on the heap for ever.
    pub fn new(segments: &[Bytes], pins: &Arc<Pins>) -> Self {
        let body = Arc::new(match segments {
            [short] if short.len() <= COPIED_BYTES => StoredBody::of_one(Bytes::copy_from_slice(short)),
            _ => StoredBody::new(segments),
        });
        body.keep();
        Self { body, pins: Arc::clone(pins) }
    }

    pub const fn body(&self) -> &Arc<StoredBody> {
        &self.body
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        self.body.keep();
        Self { body: Arc::clone(&self.body), pins: Arc::clone(&self.pins) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A reader that leaves between the count and the charge is none: the charge goes with this reference.
        if self.body.let_go() && Arc::strong_count(&self.body) > 1 {
            self.pins.pin(&self.body);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pins(limit: u64) -> (Arc<FillBudget>, Arc<Pins>) {
        let budget = FillBudget::new(limit);
        let pins = Pins::new(&budget);
        (budget, pins)
    }

    fn kept(bytes: usize, pins: &Arc<Pins>) -> Kept {
        Kept::new(&[Bytes::from(vec![0; bytes])], pins)
    }

    /// A body that one answer reads and no response keeps any more.
    fn pinned(bytes: usize, pins: &Arc<Pins>) -> Arc<StoredBody> {
        Arc::clone(kept(bytes, pins).body())
    }

    #[test]
    fn a_body_is_charged_from_its_last_response_to_its_last_reader() {
        let (budget, pins) = pins(1000);
        let first = kept(100, &pins);
        let (second, reader) = (first.clone(), Arc::clone(first.body()));
        drop(first);
        assert_eq!((budget.used(), pins.bytes()), (0, 0), "another response keeps it");
        let other = Arc::clone(&reader);
        drop(second);
        assert_eq!((budget.used(), pins.bytes()), (100, 100));
        drop(reader);
        assert_eq!((budget.used(), pins.bytes()), (100, 100));
        drop(other);
        assert_eq!((budget.used(), pins.bytes()), (0, 0));
    }

    #[test]
    fn a_body_that_nobody_reads_is_not_charged() {
        let (budget, pins) = pins(1000);
        drop(kept(100, &pins));
        assert_eq!((budget.used(), pins.bodies.lock().len()), (0, 0));
    }

    #[test]
    fn parts_of_a_body_pin_the_whole() {
        let (budget, pins) = pins(10);
        let kept = kept(100, &pins);
        let parts = StoredBody::of_parts(&[kept.body().segments()[0].slice(1..2)], kept.body());
        drop(kept);
        assert_eq!(budget.used(), 100);
        assert_eq!((pins.relieve(u64::MAX, Duration::ZERO), parts.is_revoked()), (1, true));
        drop(parts);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_was_let_go_of_first_is_revoked_first_and_no_more_than_needed() {
        let (_, pins) = pins(1000);
        let bodies: Vec<_> = (0..8).map(|_| pinned(100, &pins)).collect();
        assert_eq!(pins.relieve(u64::MAX, Duration::ZERO), 3);
        let revoked: Vec<bool> = bodies.iter().map(|body| body.is_revoked()).collect();
        assert_eq!(revoked, [true, true, true, false, false, false, false, false]);
        assert_eq!(pins.relieve(u64::MAX, Duration::ZERO), 0, "they are on their way out");
        drop(bodies);
        assert_eq!((pins.relieve(u64::MAX, Duration::ZERO), pins.bodies.lock().len()), (0, 0));
    }

    #[test]
    fn nothing_is_revoked_before_it_was_pinned_for_a_while() {
        let (_, pins) = pins(100);
        let body = pinned(100, &pins);
        assert_eq!(pins.relieve(clock::now().mono_ms, Duration::from_secs(3600)), 0);
        assert_eq!(pins.relieve(clock::now().mono_ms + 3_600_000, Duration::from_secs(3600)), 1);
        assert!(body.is_revoked());
    }

    proptest! {
        /// Whatever order bodies, readers and relief come and go in: what is charged is what is read and not kept, and
        /// relief leaves at most the part.
        #[test]
        fn charges_are_exact(steps in proptest::collection::vec((0u8..6, 0usize..8, 1usize..400), 1..80)) {
            let (budget, pins) = pins(1000);
            let mut stored: Vec<Kept> = Vec::new();
            let mut readers: Vec<Arc<StoredBody>> = Vec::new();
            for (step, at, bytes) in steps {
                match step {
                    0 => stored.push(kept(bytes, &pins)),
                    1 if !stored.is_empty() => drop(stored.swap_remove(at % stored.len())),
                    2 | 3 if !stored.is_empty() => readers.push(Arc::clone(stored[at % stored.len()].body())),
                    4 if !readers.is_empty() => drop(readers.swap_remove(at % readers.len())),
                    5 if !stored.is_empty() => stored.push(stored[at % stored.len()].clone()),
                    _ => {
                        pins.relieve(u64::MAX, Duration::ZERO);
                        let left = pinned_bytes(&stored, &readers, |body| !body.is_revoked());
                        prop_assert!(left <= budget.limit() / PINNED_PART, "{left}");
                    }
                }
                prop_assert_eq!(budget.used(), pinned_bytes(&stored, &readers, |_| true));
                prop_assert_eq!(pins.bytes(), budget.used());
            }
            drop((stored, readers));
            prop_assert_eq!((budget.used(), pins.bytes()), (0, 0));
        }
    }

    /// Bytes of distinct bodies that are read and not kept.
    fn pinned_bytes(stored: &[Kept], readers: &[Arc<StoredBody>], counts: impl Fn(&StoredBody) -> bool) -> u64 {
        let is_kept = |body: &Arc<StoredBody>| stored.iter().any(|kept| Arc::ptr_eq(kept.body(), body));
        let mut distinct: Vec<&Arc<StoredBody>> = readers.iter().filter(|body| !is_kept(body) && counts(body)).collect();
        distinct.sort_by_key(|body| Arc::as_ptr(body));
        distinct.dedup_by(|a, b| Arc::ptr_eq(a, b));
        distinct.iter().map(|body| body.length()).sum()
    }
}
