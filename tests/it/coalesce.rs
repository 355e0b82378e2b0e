//! End-to-end and model tests of `coalesce`: many tasks over several runtimes, and bodies read under every order of
//! events that chance finds.

use bytes::Bytes;
use proptest::prelude::*;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use tiercel::body::{BodyError, BodyStream, Chunk};
use tiercel::coalesce::fill::{Fill, FillBudget, FillReader, FillWriter};
use tiercel::coalesce::flight::{Failure, FlightKey, FlightTable, Join, Leader, Published};
use tiercel::config::settings;

type Table = Arc<FlightTable<Fill, u64>>;

const FOLLOWERS: usize = 10_000;
const RUNTIMES: usize = 2;

fn join(table: &Table) -> Join<Fill, u64> {
    table.join(FlightKey { key: "https://shop.example/cold".into(), secondary: None }, |_| true, || 1)
}

fn refused() -> Failure {
    Failure { status: 502, token: "connection_refused", text: "refused".into(), stale_may_be_served: true, endpoint: None }
}

fn lead(table: &Table) -> Leader<Fill, u64> {
    match join(table) {
        Join::Lead(leader) => leader,
        _ => panic!("somebody leads already"),
    }
}

fn settings(lag: u64) -> settings::Fill {
    settings::Fill {
        lag,
        stall: Duration::from_secs(2),
        finish_rest: 0,
        finish_share: 1.0,
        range_ahead: 0,
        marker_first: Duration::ZERO,
        marker_max: Duration::ZERO,
        marker_count: 0,
    }
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

async fn next(reader: &mut FillReader) -> Option<Result<Chunk, BodyError>> {
    poll_fn(|context| Pin::new(&mut *reader).poll_chunk(context)).await
}

/// All that a reader gets.
async fn read(mut reader: FillReader) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = next(&mut reader).await {
        if let Chunk::Data(data) = chunk? {
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes)
}

/// Runs `task` [`FOLLOWERS`] times, spread over current_thread runtimes on threads of their own, and hands back what
/// they yield.
fn on_all_runtimes<F, T>(task: impl Fn() -> F + Clone + Send + 'static) -> mpsc::Receiver<T>
where
    F: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let (results, received) = mpsc::channel();
    for _ in 0..RUNTIMES {
        let (task, results) = (task.clone(), results.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let tasks: Vec<_> = (0..FOLLOWERS / RUNTIMES).map(|_| tokio::spawn(task())).collect();
                for task in tasks {
                    results.send(task.await.unwrap()).unwrap();
                }
            });
        });
    }
    received
}

/// Waits until `count` has come to `want`, giving way to the threads that count.
fn until(want: usize, count: impl Fn() -> usize) {
    while count() != want {
        std::thread::yield_now();
    }
}

#[test]
fn ten_thousand_followers_on_two_runtimes_read_one_fetch() {
    let table: Table = Arc::new(FlightTable::new(65_536));
    let leader = lead(&table);
    let polls = Arc::new(AtomicUsize::new(0));
    let received = on_all_runtimes({
        let (table, polls) = (Arc::clone(&table), Arc::clone(&polls));
        move || {
            let (table, polls) = (Arc::clone(&table), Arc::clone(&polls));
            async move {
                let Join::Follow(mut follower) = join(&table) else { panic!("one leads, and there is room") };
                let published = {
                    let mut wait = std::pin::pin!(follower.wait());
                    poll_fn(|context| {
                        polls.fetch_add(1, Ordering::Relaxed);
                        wait.as_mut().poll(context)
                    })
                    .await
                };
                let Published::Head(fill) = published else { panic!("a head was published") };
                read(fill.reader(0, None).expect("the body is kept")).await.map(|bytes| bytes.len())
            }
        }
    });
    until(FOLLOWERS, || polls.load(Ordering::Relaxed));
    assert_eq!(table.usage(), (1, FOLLOWERS));
    let budget = FillBudget::new(1 << 20);
    let (mut writer, fill) = Fill::new(Arc::clone(&budget), &settings(1 << 20), Some(100_000), 1 << 20);
    let ticket = fill.ticket();
    leader.publish(Published::Head(Arc::new(fill.clone())));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        for _ in 0..10 {
            writer.push(pattern(10_000)).await.unwrap();
        }
        writer.finish(None).unwrap();
        leader.deserted().await;
    });
    assert!(received.iter().all(|length| length == Ok(100_000)));
    assert_eq!(polls.load(Ordering::Relaxed), 2 * FOLLOWERS, "each was woken once");
    drop((leader, ticket, fill));
    assert_eq!((table.usage(), budget.used()), ((0, 0), 0));
}

#[test]
fn when_the_leader_dies_ten_thousand_followers_make_one_fetch_anew() {
    let table: Table = Arc::new(FlightTable::new(65_536));
    let leader = lead(&table);
    let leaders = Arc::new(AtomicUsize::new(0));
    let received = on_all_runtimes({
        let (table, leaders) = (Arc::clone(&table), Arc::clone(&leaders));
        move || {
            let (table, leaders) = (Arc::clone(&table), Arc::clone(&leaders));
            async move {
                let Join::Follow(mut follower) = join(&table) else { panic!("one leads, and there is room") };
                assert!(matches!(follower.wait().await, Published::Died));
                match join(&table) {
                    Join::Lead(leader) => {
                        leaders.fetch_add(1, Ordering::Relaxed);
                        while leader.followers() < FOLLOWERS - 1 {
                            tokio::task::yield_now().await;
                        }
                        leader.publish(Published::Failed(Arc::new(refused())));
                    }
                    Join::Follow(mut follower) => assert!(matches!(follower.wait().await, Published::Failed(_))),
                    Join::Full => panic!("there is room"),
                }
            }
        }
    });
    until(FOLLOWERS, || leader.followers());
    drop(leader);
    assert_eq!(received.iter().count(), FOLLOWERS);
    assert_eq!((leaders.load(Ordering::Relaxed), table.usage()), (1, (0, 0)));
}

#[test]
fn followers_beyond_the_bound_are_refused_whatever_the_thread() {
    const BOUND: usize = 100;
    let table: Table = Arc::new(FlightTable::new(BOUND));
    let leader = lead(&table);
    let ready = Arc::new(Barrier::new(4));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (table, ready) = (Arc::clone(&table), Arc::clone(&ready));
            std::thread::spawn(move || {
                ready.wait();
                (0..BOUND).map(|_| join(&table)).collect::<Vec<_>>()
            })
        })
        .collect();
    let joined: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
    assert_eq!(joined.iter().filter(|join| matches!(join, Join::Follow(_))).count(), BOUND);
    assert_eq!(joined.iter().filter(|join| matches!(join, Join::Full)).count(), 3 * BOUND);
    leader.publish(Published::Alone);
    drop(joined);
    assert_eq!(table.usage(), (0, 0));
}

/// Polls tasks in an order given from outside, and only those that were woken: a lost wake-up shows as a deadlock.
struct Executor<'a> {
    tasks: Vec<(Arc<Flag>, Option<Task<'a>>)>,
}

type Task<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Executor<'a> {
    fn spawn(&mut self, task: impl Future<Output = ()> + 'a) {
        self.tasks.push((Arc::new(Flag(AtomicBool::new(true))), Some(Box::pin(task))));
    }

    /// Runs all tasks to their ends; `false` where none is woken before that.
    fn run(&mut self, order: &[usize]) -> bool {
        let mut order = order.iter().cycle();
        loop {
            let unfinished = || self.tasks.iter().enumerate().filter(|(_, (_, task))| task.is_some());
            if unfinished().next().is_none() {
                return true;
            }
            let woken: Vec<usize> = unfinished().filter(|(_, (flag, _))| flag.0.load(Ordering::Relaxed)).map(|(at, _)| at).collect();
            if woken.is_empty() {
                return false;
            }
            let (flag, task) = &mut self.tasks[woken[order.next().expect("it is not empty") % woken.len()]];
            flag.0.store(false, Ordering::Relaxed);
            let waker = Waker::from(Arc::clone(flag));
            let ended = task.as_mut().is_some_and(|task| task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
            if ended {
                *task = None;
            }
        }
    }
}

/// Gives way once.
async fn step() {
    let mut given = false;
    poll_fn(|context| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What one reader wants and what may happen to it.
#[derive(Debug, Clone)]
struct Wish {
    start: usize,
    length: Option<usize>,
    /// Turns before it comes.
    late: usize,
    /// It leaves after so many chunks.
    leaves: Option<usize>,
}

fn wish(longest: usize) -> impl Strategy<Value = Wish> {
    let at = 0..longest;
    (at.clone(), proptest::option::of(at), 0_usize..40, proptest::option::weighted(0.2, 0_usize..5))
        .prop_map(|(start, length, late, leaves)| Wish { start, length, late, leaves })
}

async fn write(mut writer: FillWriter, body: Bytes, pieces: Vec<usize>) -> Result<(), BodyError> {
    let mut rest = body;
    for piece in pieces {
        if writer.push(rest.split_to(piece)).await.is_err() {
            return Err(BodyError::ClientLeft);
        }
        step().await;
    }
    writer.finish(None)
}

/// Reads as wished; what it got must be what the body has there, and all of it unless it left or came too late.
async fn follow(fill: Fill, wish: Wish, body: Bytes) {
    for _ in 0..wish.late {
        step().await;
    }
    let start = wish.start.min(body.len());
    let end = wish.length.map(|length| (start + length).min(body.len()));
    let Some(mut reader) = fill.reader(start as u64, end.map(|end| end as u64)) else {
        assert!(fill.unstored().is_some() || fill.failure().is_some(), "a stored body takes everybody");
        return;
    };
    let (mut bytes, mut chunks) = (Vec::new(), 0);
    while wish.leaves != Some(chunks) {
        match next(&mut reader).await {
            Some(Ok(Chunk::Data(data))) => bytes.extend_from_slice(&data),
            Some(Ok(Chunk::Trailers(_))) => panic!("none were sent"),
            Some(Err(error)) => panic!("{error}"),
            None => {
                assert!(bytes == body[start..end.unwrap_or(body.len())]);
                return;
            }
        }
        chunks += 1;
        step().await;
    }
    assert!(bytes == body[start..start + bytes.len()]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn readers_anywhere_read_exactly_the_bytes_there(
        pieces in proptest::collection::vec(prop_oneof![1_usize..50, 1_usize..9000], 1..40),
        wishes in proptest::collection::vec(wish(60_000), 1..12),
        order in proptest::collection::vec(any::<usize>(), 1..200),
        keep_at_most in prop_oneof![Just(u64::MAX), Just(0), 1_u64..100_000],
        memory in prop_oneof![Just(u64::MAX), 1_u64..100_000],
        declared: bool,
    ) {
        // Timers are made in a runtime's context; none has to fire, for every slow reader is about to be polled.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _context = runtime.enter();
        let body = pattern(pieces.iter().sum());
        let budget = FillBudget::new(memory);
        let length = declared.then_some(body.len() as u64);
        let (writer, fill) = Fill::new(Arc::clone(&budget), &settings(10_000), length, keep_at_most);
        let written = std::cell::Cell::new(None);
        let largest = *pieces.iter().max().unwrap() as u64;
        let mut executor = Executor { tasks: Vec::new() };
        executor.spawn({
            let (body, written) = (body.clone(), &written);
            async move { written.set(Some(write(writer, body, pieces).await)) }
        });
        for wish in &wishes {
            executor.spawn(follow(fill.clone(), wish.clone(), body.clone()));
        }
        // Whoever comes late must not find that the writer gave up or waits for nobody.
        executor.spawn({
            let (fill, body) = (fill.clone(), body.clone());
            async move { follow(fill, Wish { start: 0, length: None, late: 0, leaves: None }, body).await }
        });
        prop_assert!(executor.run(&order), "somebody waits and is not woken");
        prop_assert!(budget.used() <= memory.saturating_add(largest));
        prop_assert_eq!(fill.readers(), 0);
        match written.get() {
            Some(Ok(())) if fill.unstored().is_none() => {
                let complete = fill.complete().expect("it ended well and was kept");
                prop_assert!(complete.segments.concat() == body);
            }
            Some(ended) => prop_assert!(fill.complete().is_none(), "{ended:?}"),
            None => prop_assert!(false, "the writer did not end"),
        }
        drop((executor, fill));
        prop_assert_eq!(budget.used(), 0);
    }
}
