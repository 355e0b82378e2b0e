//! What a hit allocates, and what passes: a counter around the allocator, and the counts that are known.

use crate::support::hit::{CASES, HitPath};
use parking_lot::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

/// The system's allocator; counts what each thread asks of it.
pub struct Counting;

thread_local! {
    /// Allocations of this thread, grown ones included.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends may allocate after its counter is gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

#[expect(unsafe_code, reason = "the trait is unsafe; each call is passed on as it came")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(pointer, layout, new_size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allocations of a request on a connection that served some, for the cases in their order.
///
/// Each: the normalised URL, which target and cache key share.
/// A 304 also: the block and the line table of its fields, which are fewer than those stored.
/// The access log adds none.
/// What passes also: its copy of the request and the id that it gets (4), what the connection keeps while it waits (2), two
/// futures, the queue for interim responses, the request to the origin (6), the exchange with it, the fields of its answer (2),
/// the answer.
const KNOWN: [u64; 5] = [1, 1, 3, 1, 20];

const HITS: u64 = 500;
/// Of a hundred hits, at most so many may allocate more, for the cache's own housekeeping.
const HOUSEKEEPING: usize = 5;

#[test]
fn a_hit_allocates_what_is_known_and_no_more() {
    for (case, known) in CASES.into_iter().zip(KNOWN) {
        let path = HitPath::start(case.logged);
        path.hits(case, 10, || {}); // whatever is made once per thread
        let seen = Arc::new(Mutex::new(Vec::with_capacity(HITS as usize)));
        let told = Arc::clone(&seen);
        path.hits(case, HITS, move || told.lock().push(COUNT.get()));
        let per_hit: Vec<u64> = seen.lock().windows(2).map(|pair| pair[1] - pair[0]).collect();
        let others = per_hit.iter().filter(|count| **count != known).count();
        assert!(others * 100 <= per_hit.len() * HOUSEKEEPING, "{}: {known} are known, not {per_hit:?}", case.name);
    }
}
