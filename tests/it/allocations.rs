//! What a hit allocates, and what passes; what stored responses and bodies that are decoded hold: a counter around the
//! allocator, and the counts that are known.

use crate::support::hit::{CASES, HitPath};
use bytes::Bytes;
use parking_lot::Mutex;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;
use tiercel::cache::{StoredHead, StoredResponse, Tags};
use tiercel::coalesce::fill::FillBudget;
use tiercel::coalesce::pinned::{Kept, Pins};
use tiercel::invalidation::{Mark, Position, Stamp};
use tiercel::semantics::coding::{Coding, Wanted};
use tiercel::semantics::freshness::Facts;
use tiercel::semantics::key::KeyPolicy;
use tiercel::semantics::policy::{CachePolicy, Compression, DecodeLimits};
use tiercel::semantics::{CacheKey, Fields, Method, Now, Request, Response, StatusCode, Target};
use tiercel::tier::memory::{Change, MemoryTier, Setup};
use tiercel::transform::decoder::{Decoder, OUT_MAX};
use tiercel::transform::encoder::encode;

/// The system's allocator; counts what each thread asks of it.
pub struct Counting;

thread_local! {
    /// Allocations of this thread, grown ones included.
    static COUNT: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread allocated and has not freed, and the most that were. What another frees stays here.
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn count() {
    // A thread that ends may allocate after its counter is gone.
    let _ = COUNT.try_with(|count| count.set(count.get() + 1));
}

fn hold(bytes: i64) {
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

#[expect(unsafe_code, reason = "the trait is unsafe; each call is passed on as it came")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size() as i64);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        hold(layout.size() as i64);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        hold(new_size as i64 - layout.size() as i64);
        unsafe { System.realloc(pointer, layout, new_size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
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

/// Responses in a tier: so many that what grows in steps counts for little.
const RESPONSES: u64 = 20_000;
/// What is asked of the allocator, in hundredths of the weight: the rest is what the allocator adds, and what is shared, which is
/// weighed with each.
const WEIGHT_IS_TRUE: std::ops::RangeInclusive<u64> = 80..=98;

/// What each response has for itself that others may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Nothing,
    /// What it says of its reuse: its age, its Vary.
    Terms,
    /// And the position of the journal at which its fetch began.
    TermsAndStamp,
}

fn stored(number: u64, own: Own, site: &Arc<Box<str>>, pins: &Arc<Pins>) -> StoredResponse {
    let (policy, now) = (CachePolicy::default(), Now { wall_ms: 1_700_000_000_000, mono_ms: tiercel::clock::now().mono_ms });
    let target = Target::from_url(&format!("http://shop.example/articles/{number}")).unwrap();
    let (asked, mut fields) = (Fields::new(), Fields::new());
    let seconds = if own == Own::Nothing { 600 } else { 600 + number };
    for (name, value) in [
        ("date", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("content-type", "text/html; charset=utf-8"),
        ("content-length", "1000"),
        ("cache-control", &format!("public, max-age={seconds}")),
        ("etag", &format!("\"{number:032x}\"")),
        ("last-modified", "Mon, 13 Nov 2023 22:13:20 GMT"),
        ("vary", "Accept-Encoding"),
    ] {
        fields.push(name, value).unwrap();
    }
    fields.shrink();
    let (request, response) =
        (Request { method: &Method::GET, target: &target, fields: &asked }, Response { status: StatusCode::OK, fields: &fields });
    let facts = Facts::new(request, response, &policy.targeted, now, now);
    let ms = if own == Own::TermsAndStamp { number } else { 1 };
    let mark = Mark { position: Position { epoch: 1, ms, sequence: 0 }, local: 0 };
    let head = StoredHead {
        secondary: facts.vary.secondary_key(&asked, &policy),
        key: CacheKey::new(&target, &asked, &KeyPolicy::default()),
        facts,
        fields,
        stamp: Stamp { purge: mark, unsafe_method: mark }.into(),
        checked: Default::default(),
        tags: Tags::default(),
        site: Arc::clone(site),
        fetch: number,
        sent_mono_ms: now.mono_ms,
    };
    StoredResponse::new(Arc::new(head), Kept::new(&[Bytes::from(vec![b'x'; 1000])], pins), 1000, &policy, now)
}

#[test]
fn what_a_tier_weighs_is_what_it_holds() {
    for own in [Own::Nothing, Own::Terms, Own::TermsAndStamp] {
        let (site, pins) = (Arc::new("shop".into()), Pins::new(&FillBudget::new(1 << 20)));
        let before = HELD.get().0;
        let tier = MemoryTier::new(Setup { capacity: 1 << 30, lru: false, on_eviction: Box::new(|_, _| {}) });
        for number in 0..RESPONSES {
            let response = Arc::new(stored(number, own, &site, &pins));
            tier.update(response.head.key.hash(), |_| Change::Put(Arc::clone(&response)));
            if number % 64 == 0 {
                tier.tend();
            }
        }
        tier.tend();
        let (held, (weight, count)) = ((HELD.get().0 - before) as u64, tier.usage());
        assert_eq!(count, RESPONSES);
        let share = held * 100 / weight;
        println!("{own:?}: {} bytes held, {} weighed for each", held / RESPONSES, weight / RESPONSES);
        assert!(WEIGHT_IS_TRUE.contains(&share), "{own:?}: {held} bytes are held, {weight} weighed: {share} %");
    }
}

/// What a decoder has to keep of what it gave: the window of the coding as our encoders choose it, and tables.
fn window(coding: Coding) -> usize {
    match coding {
        Coding::Brotli => (4 << 20) + (64 << 10),
        // That of zstd is in memory of its own.
        _ => 128 << 10,
    }
}

#[test]
fn a_bomb_is_decoded_as_it_is_taken() {
    const LENGTH: usize = 10 << 20;
    for coding in Coding::PLAIN {
        let bomb = encode(&Wanted::plain(coding), &Compression::default().level, &[vec![0; LENGTH].into()]).unwrap();
        let mut input = VecDeque::from([bomb]);
        let before = HELD.get().0;
        HELD.set((before, before));
        let mut decoder = Decoder::new(coding, DecodeLimits { ratio: u64::MAX, bytes: u64::MAX }).unwrap();
        let (mut length, mut has_more) = (0, true);
        while has_more {
            let bytes;
            (bytes, has_more) = decoder.decode(&mut input).unwrap();
            length += bytes.len();
        }
        assert_eq!(length + decoder.finish().unwrap().len(), LENGTH);
        let most = (HELD.get().1 - before) as usize;
        println!("{coding:?}: {most}");
        // Twice while the bytes move to a longer block.
        assert!(most <= 2 * OUT_MAX + window(coding), "{coding:?}: {most} bytes were held at a time");
    }
}
