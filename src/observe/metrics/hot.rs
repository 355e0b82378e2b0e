//! What is counted for every request: per worker and route, without locks, look-ups or allocation.
//!
//! Invariants: a route's counters never move and never go away, so that counting is index arithmetic and relaxed
//! additions on memory that no other worker writes. Routes are only ever added ([`Hot::route`]): their counters sit in
//! chunks that double in size, each made once.

use super::series::BUCKETS_NS;
use crate::proxy::outcome::{CacheResult, RouteId, Source};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::sync::{Arc, OnceLock};

pub(super) const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const RESULTS: usize = CacheResult::ALL.len();
const SOURCES: usize = Source::ALL.len();
/// One bucket more than bounds: the last has none.
const BUCKETS: usize = BUCKETS_NS.len() + 1;

const FIRST_CHUNK: usize = 8;
const CHUNKS: usize = 12;
/// Most routes that are told apart in the life of the process; later ones share the names of [`OTHER`].
pub(super) const ROUTES_MAX: u32 = (FIRST_CHUNK * ((1 << CHUNKS) - 1)) as u32;

/// Requests that matched no site have the default id.
const NONE: &str = "none";
const OTHER: &str = "other";

/// Index of a status in [`CLASSES`]; anything odd is a server error.
pub(super) const fn class(status: u16) -> usize {
    match status / 100 {
        hundreds @ 1..=5 => hundreds as usize - 1,
        _ => 4,
    }
}

/// Values by index that are made in chunks and never move.
struct Chunked<T>([OnceLock<Box<[T]>>; CHUNKS]);

impl<T> Chunked<T> {
    const fn new() -> Self {
        Self([const { OnceLock::new() }; CHUNKS])
    }

    /// Chunk and place within it: chunk `n` holds `FIRST_CHUNK << n` values.
    const fn place(index: u32) -> (usize, usize) {
        let shifted = index as usize + FIRST_CHUNK;
        let chunk = (shifted.ilog2() - FIRST_CHUNK.ilog2()) as usize;
        (chunk, shifted - (FIRST_CHUNK << chunk))
    }

    fn get(&self, index: u32) -> Option<&T> {
        let (chunk, at) = Self::place(index);
        self.0.get(chunk)?.get()?.get(at)
    }

    /// Makes the chunk that holds `index`, which is below [`ROUTES_MAX`].
    fn reserve(&self, index: u32, make: impl Fn() -> T) {
        let (chunk, _) = Self::place(index);
        self.0[chunk].get_or_init(|| (0..FIRST_CHUNK << chunk).map(|_| make()).collect());
    }
}

/// One route's counters on one worker, on cache lines of their own.
#[repr(align(128))]
struct RouteCounters {
    requests: [AtomicU64; RESULTS * SOURCES * CLASSES.len()],
    bytes: [AtomicU64; RESULTS * SOURCES],
    buckets: [AtomicU64; RESULTS * BUCKETS],
    nanos: [AtomicU64; RESULTS],
}

impl RouteCounters {
    const fn new() -> Self {
        Self {
            requests: [const { AtomicU64::new(0) }; RESULTS * SOURCES * CLASSES.len()],
            bytes: [const { AtomicU64::new(0) }; RESULTS * SOURCES],
            buckets: [const { AtomicU64::new(0) }; RESULTS * BUCKETS],
            nanos: [const { AtomicU64::new(0) }; RESULTS],
        }
    }
}

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) result: CacheResult,
    pub(super) source: Source,
    pub(super) status: u16,
    pub(super) body_bytes: u64,
    pub(super) duration_ns: u64,
}

/// Names of a site and one of its routes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct RouteNames {
    pub(super) site: Arc<str>,
    pub(super) route: Arc<str>,
}

/// All hot counters.
pub(super) struct Hot {
    workers: Box<[Chunked<RouteCounters>]>,
    names: Chunked<OnceLock<RouteNames>>,
    /// Routes that are complete and may be read.
    count: AtomicU32,
    ids: Mutex<HashMap<RouteNames, u32>>,
}

impl Hot {
    pub(super) fn new(workers: usize) -> Self {
        let hot = Self {
            workers: (0..workers.max(1)).map(|_| Chunked::new()).collect(),
            names: Chunked::new(),
            count: AtomicU32::new(0),
            ids: Mutex::default(),
        };
        hot.route(NONE, NONE); // id 0, the default of `RouteId`
        hot
    }

    pub(super) fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The id of these names; a new one where there is room, else that of `other`.
    pub(super) fn route(&self, site: &str, route: &str) -> RouteId {
        let mut ids = self.ids.lock();
        let mut names = RouteNames { site: site.into(), route: route.into() };
        let next = self.count.load(Relaxed);
        if next + 1 >= ROUTES_MAX && !ids.contains_key(&names) {
            names = RouteNames { site: OTHER.into(), route: OTHER.into() };
        }
        if let Some(id) = ids.get(&names) {
            return RouteId(*id);
        }
        for worker in &self.workers {
            worker.reserve(next, RouteCounters::new);
        }
        self.names.reserve(next, OnceLock::new);
        if let Some(slot) = self.names.get(next) {
            slot.get_or_init(|| names.clone());
        }
        ids.insert(names, next);
        self.count.store(next + 1, Release);
        RouteId(next)
    }

    pub(super) fn names(&self, id: RouteId) -> Option<&RouteNames> {
        self.names.get(id.0)?.get()
    }

    /// Additions are atomic because a work-stealing runtime may run two requests of one worker index at once.
    pub(super) fn request(&self, worker: usize, route: RouteId, finished: Finished) {
        let Some(worker) = self.workers.get(worker).or_else(|| self.workers.first()) else { return };
        let Some(counters) = worker.get(route.0).or_else(|| worker.get(0)) else { return };
        let (result, pair) = (finished.result as usize, finished.result as usize * SOURCES + finished.source as usize);
        counters.requests[pair * CLASSES.len() + class(finished.status)].fetch_add(1, Relaxed);
        if finished.body_bytes > 0 {
            counters.bytes[pair].fetch_add(finished.body_bytes, Relaxed);
        }
        let bucket = BUCKETS_NS.iter().filter(|bound| finished.duration_ns > **bound).count();
        counters.buckets[result * BUCKETS + bucket].fetch_add(1, Relaxed);
        counters.nanos[result].fetch_add(finished.duration_ns, Relaxed);
    }

    /// Sums of all routes over all workers, for a scrape.
    pub(super) fn totals(&self) -> impl Iterator<Item = (&RouteNames, RouteTotals)> {
        (0..self.count.load(Acquire)).filter_map(|id| Some((self.names(RouteId(id))?, self.total(id))))
    }

    /// Requests of each worker, for a scrape.
    pub(super) fn requests_by_worker(&self) -> impl Iterator<Item = u64> {
        let routes = self.count.load(Acquire);
        self.workers.iter().map(move |worker| {
            let counters = (0..routes).filter_map(|id| worker.get(id)).flat_map(|counters| &counters.requests);
            counters.map(|counter| counter.load(Relaxed)).sum()
        })
    }

    fn total(&self, id: u32) -> RouteTotals {
        let mut totals = RouteTotals { matched: id != 0, ..RouteTotals::default() };
        for counters in self.workers.iter().filter_map(|worker| worker.get(id)) {
            add(&mut totals.requests, &counters.requests);
            add(&mut totals.bytes, &counters.bytes);
            add(&mut totals.buckets, &counters.buckets);
            add(&mut totals.nanos, &counters.nanos);
        }
        totals
    }
}

fn add(totals: &mut [u64], counters: &[AtomicU64]) {
    for (total, counter) in totals.iter_mut().zip(counters) {
        *total += counter.load(Relaxed);
    }
}

/// One route's sums.
pub(super) struct RouteTotals {
    /// Whether it is a configured route, not the stand-in for requests without one.
    matched: bool,
    requests: [u64; RESULTS * SOURCES * CLASSES.len()],
    bytes: [u64; RESULTS * SOURCES],
    buckets: [u64; RESULTS * BUCKETS],
    nanos: [u64; RESULTS],
}

impl Default for RouteTotals {
    fn default() -> Self {
        Self {
            matched: false,
            requests: [0; RESULTS * SOURCES * CLASSES.len()],
            bytes: [0; RESULTS * SOURCES],
            buckets: [0; RESULTS * BUCKETS],
            nanos: [0; RESULTS],
        }
    }
}

impl RouteTotals {
    /// Requests by result, source and class; zeros only where they are to be expected.
    pub(super) fn requests(&self) -> impl Iterator<Item = (CacheResult, Source, &'static str, u64)> {
        pairs().flat_map(move |(result, source)| {
            let first = (result as usize * SOURCES + source as usize) * CLASSES.len();
            let expected = self.expected(result, source);
            CLASSES.iter().enumerate().filter_map(move |(class, name)| {
                let count = self.requests[first + class];
                (count > 0 || expected && class > 0).then_some((result, source, *name, count))
            })
        })
    }

    /// Bytes by result and source.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (CacheResult, Source, u64)> {
        pairs().filter_map(move |(result, source)| {
            let bytes = self.bytes[result as usize * SOURCES + source as usize];
            (bytes > 0 || self.expected(result, source)).then_some((result, source, bytes))
        })
    }

    /// Counts per bucket, the last without a bound, and the sum in nanoseconds.
    pub(super) fn durations(&self) -> impl Iterator<Item = (CacheResult, &[u64], u64)> {
        CacheResult::ALL.into_iter().filter_map(move |result| {
            let buckets = &self.buckets[result as usize * BUCKETS..][..BUCKETS];
            let seen = buckets.iter().any(|count| *count > 0);
            (seen || Source::ALL.into_iter().any(|source| self.expected(result, source))).then_some((
                result,
                buckets,
                self.nanos[result as usize],
            ))
        })
    }

    /// Combinations that show from the first start, so that a rate has a zero to begin at. All others show when they occur.
    fn expected(&self, result: CacheResult, source: Source) -> bool {
        match (result, source) {
            (CacheResult::Error | CacheResult::Local, Source::Tiercel) => true,
            (CacheResult::Hit | CacheResult::Stale | CacheResult::Revalidated, Source::Memory)
            | (CacheResult::Miss, Source::Upstream | Source::Flight)
            | (CacheResult::Bypass, Source::Upstream) => self.matched,
            _ => false,
        }
    }
}

fn pairs() -> impl Iterator<Item = (CacheResult, Source)> {
    CacheResult::ALL.into_iter().flat_map(|result| Source::ALL.into_iter().map(move |source| (result, source)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_dense_and_within_their_chunk() {
        let (mut chunk, mut at) = (0, 0);
        for index in 0..ROUTES_MAX {
            assert_eq!(Chunked::<u8>::place(index), (chunk, at), "{index}");
            at += 1;
            if at == FIRST_CHUNK << chunk {
                (chunk, at) = (chunk + 1, 0);
            }
        }
        assert_eq!((chunk, at), (CHUNKS, 0));
        assert!(Chunked::<u8>::new().get(u32::MAX).is_none());
    }

    #[test]
    fn results_and_sources_are_their_own_index() {
        assert!(CacheResult::ALL.iter().enumerate().all(|(at, result)| *result as usize == at));
        assert!(Source::ALL.iter().enumerate().all(|(at, source)| *source as usize == at));
    }

    #[test]
    fn every_status_has_a_class() {
        assert_eq!([101, 200, 304, 404, 599].map(class), [0, 1, 2, 3, 4]);
        assert_eq!([0, 99, 600, u16::MAX].map(class), [4; 4]);
    }

    #[test]
    fn names_beyond_the_bound_share_one_id() {
        let hot = Hot::new(1);
        hot.count.store(ROUTES_MAX - 2, Relaxed);
        let last = hot.route("shop", "last");
        let over = hot.route("shop", "one too many");
        assert_eq!(hot.route("shop", "last"), last);
        assert_eq!(over, hot.route("shop", "and another"));
        assert_eq!(&*hot.names(over).unwrap().site, OTHER);
        assert_eq!(over.0, ROUTES_MAX - 1);
    }

    #[test]
    fn counts_of_all_workers_are_summed() {
        let hot = Hot::new(3);
        let route = hot.route("shop", "default");
        let finished = Finished { result: CacheResult::Hit, source: Source::Memory, status: 200, body_bytes: 10, duration_ns: 1_000_000 };
        for worker in [0, 1, 2, 99] {
            hot.request(worker, route, finished); // a worker that does not exist loses nothing
        }
        let total = hot.total(route.0);
        assert!(total.requests().any(|row| row == (CacheResult::Hit, Source::Memory, "2xx", 4)));
        assert!(total.bytes().any(|row| row == (CacheResult::Hit, Source::Memory, 40)));
        let (_, buckets, nanos) = total.durations().find(|(result, ..)| *result == CacheResult::Hit).unwrap();
        assert_eq!((buckets[4], buckets.iter().sum::<u64>(), nanos), (4, 4, 4_000_000), "a bound belongs to its bucket");
    }

    #[test]
    fn threads_that_count_while_routes_are_added_lose_nothing() {
        let hot = Hot::new(2);
        let first = hot.route("shop", "default");
        let finished = Finished { result: CacheResult::Miss, source: Source::Flight, status: 200, body_bytes: 1, duration_ns: 1 };
        std::thread::scope(|scope| {
            for worker in [0, 1, 1] {
                scope.spawn({
                    let hot = &hot;
                    move || (0..10_000).for_each(|_| hot.request(worker, first, finished))
                });
            }
            for number in 0..100 {
                hot.request(0, hot.route("shop", &number.to_string()), finished);
            }
        });
        let counted = |id| hot.total(id).requests().map(|(.., count)| count).sum::<u64>();
        assert_eq!(counted(first.0), 30_000);
        assert_eq!((2..102).map(counted).sum::<u64>(), 100);
    }
}
