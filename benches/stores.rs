//! What a store and a purge cost with ten thousand stored responses and with ten million: `stores [COUNT...]`.
//!
//! The memory tier holds small values in place of responses, so that ten million of them fit; keys, policy, deadlines and
//! weights are those of the product. For each count: CPU time of this thread for a store of something new and for a purge
//! by surrogate key (medians of rounds), allocations of a purge, and memory for each value.
//!
//! `stores --instructions store|purge COUNT` runs one round for valgrind to count the instructions of (`counts.py --stores`).

use rustix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tiercel::allocator::Allocator;
use tiercel::clock;
use tiercel::config::settings::PurgeBounds;
use tiercel::invalidation::{Journal, Mode, Selector};
use tiercel::tier::memory::{Change, Held, MemoryTier, Setup};

/// As in the product, counted.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static BYTES: AtomicU64 = AtomicU64::new(0);

#[expect(unsafe_code, reason = "an allocator that counts")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        BYTES.fetch_add(layout.size() as u64, Ordering::Relaxed);
        unsafe { Allocator.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        unsafe { Allocator.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// In place of a stored response.
struct Small;

impl Held for Small {
    fn weight(&self) -> u32 {
        1
    }
    fn keep(&self) -> Duration {
        Duration::from_secs(3600)
    }
}

const COUNTS: [u64; 4] = [10_000, 100_000, 1_000_000, 10_000_000];
/// Stores, or purges, of one round.
const BATCH: u64 = 1000;
const ROUNDS: u64 = 101;

struct Bench {
    tier: MemoryTier<Small>,
    journal: Journal,
    /// Grows by one per key, so that each is new.
    next: u64,
}

impl Bench {
    fn with(count: u64) -> Self {
        let setup = Setup { capacity: 2 * count + 10 * BATCH, lru: false, on_eviction: Box::new(|_, _| {}) };
        let purge = PurgeBounds { receipts: 4096, map_capacity: 65_536, fold_slots: 16_384, recovery: Duration::ZERO };
        let mut bench = Self { tier: MemoryTier::new(setup), journal: Journal::new(&purge), next: 0 };
        bench.store(count);
        bench.tier.tend();
        bench
    }

    /// Stores so many new values, each with the stamp that a fetch takes.
    #[inline(never)]
    fn store(&mut self, count: u64) {
        for _ in 0..count {
            black_box(self.journal.stamp());
            self.tier.update(key(self.next), |_| Change::Put(Arc::new(Small)));
            self.next += 1;
        }
    }

    /// Purges by so many surrogate keys.
    #[inline(never)]
    fn purge(&mut self, count: u64) {
        for _ in 0..count {
            let selector = Selector::Key(format!("product-{}", self.next));
            black_box(self.journal.purge(vec![selector], Mode::Hard, "bench", clock::now()));
            self.next += 1;
        }
    }

    /// As a busy journal is: from here on each purge folds another.
    fn fill_journal(&mut self) {
        self.purge(66_000);
    }

    /// Takes out what the last round stored.
    fn forget(&mut self) {
        for number in self.next - BATCH..self.next {
            self.tier.remove(key(number));
        }
        self.tier.tend();
    }
}

/// Spread as hashes are.
fn key(number: u64) -> u128 {
    tiercel::semantics::key::hash128(&number.to_le_bytes())
}

fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// The median over all rounds of what one action costs, in nanoseconds.
fn median(mut round: impl FnMut() -> u64) -> u64 {
    let mut costs: Vec<u64> = (0..ROUNDS).map(|_| round() / BATCH).collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

fn measure(count: u64) {
    let before = BYTES.load(Ordering::Relaxed);
    let mut bench = Bench::with(count);
    let bytes = (BYTES.load(Ordering::Relaxed) - before) / count;
    let (_, stored) = bench.tier.usage();
    assert_eq!(stored, count, "all of them are stored");
    let store = median(|| {
        let began = cpu_ns();
        bench.store(BATCH);
        let took = cpu_ns() - began;
        bench.forget();
        took
    });
    bench.fill_journal();
    let purge = median(|| {
        let began = cpu_ns();
        bench.purge(BATCH);
        cpu_ns() - began
    });
    let allocations = ALLOCATIONS.load(Ordering::Relaxed);
    bench.purge(BATCH);
    let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - allocations) as f64 / BATCH as f64;
    assert_eq!(bench.tier.usage().1, stored, "a purge touches nothing that is stored");
    println!("{count:>10} stored: store {store:>5} ns, purge by key {purge:>5} ns and {allocations:.1} allocations, {bytes} B each");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |text: &String| text.parse().expect("a number of stored responses");
    if let [first, action, count] = &arguments[..]
        && first == "--instructions"
    {
        let act = match &**action {
            "store" => Bench::store,
            "purge" => Bench::purge,
            _ => panic!("--instructions store|purge COUNT"),
        };
        let mut bench = Bench::with(number(count));
        bench.fill_journal();
        counted(&mut bench, act);
        return;
    }
    let counts: Vec<u64> = arguments.iter().map(number).collect();
    for count in if counts.is_empty() { COUNTS.to_vec() } else { counts } {
        measure(count);
    }
}

/// What valgrind counts: from entering this function to leaving it.
#[inline(never)]
fn counted(bench: &mut Bench, act: fn(&mut Bench, u64)) {
    act(bench, BATCH);
}
