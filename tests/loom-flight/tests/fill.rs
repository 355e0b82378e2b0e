//! The core of a fill: no lost wake-up between the writer and its readers, whoever leaves.

use bytes::Bytes;
use loom::future::block_on;
use loom::thread;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};
use tiercel_loom_flight::body::BodyError;
use tiercel_loom_flight::coalesce::budget::FillBudget;
use tiercel_loom_flight::coalesce::buffer::{Buffer, Cursor, Push, Read, Rules};

const SEGMENT: Bytes = Bytes::from_static(&[7; 5000]);

fn buffer(keep_at_most: u64) -> (Arc<FillBudget>, Arc<Buffer>) {
    let budget = FillBudget::new(100_000);
    let rules = Rules { declared: None, keep_at_most, lag: 5000, stall: Duration::MAX, finish_rest: 0, finish_share: 1.0 };
    let buffer = Buffer::new(&budget, rules);
    (budget, buffer)
}

/// Pushes one segment; whether it was taken. No deadline ever passes here, so it needs no timer.
fn push(buffer: &Buffer) -> bool {
    block_on(poll_fn(|context| {
        loop {
            match buffer.poll_push(&SEGMENT, Instant::now(), context.waker()) {
                Push::Done => return Poll::Ready(true),
                Push::Unstored => {}
                Push::Abandoned => return Poll::Ready(false),
                Push::Wait(_) => return Poll::Pending,
            }
        }
    }))
}

fn open(buffer: &Buffer) -> Option<Cursor> {
    buffer.open(0, None, Instant::now())
}

/// Bytes read, and the error if it ended with one.
fn read(buffer: &Buffer, mut cursor: Cursor) -> (usize, Option<BodyError>) {
    let mut bytes = 0;
    loop {
        match block_on(poll_fn(|context| buffer.poll_read(&mut cursor, Instant::now(), context.waker()))) {
            Read::Data(data) => bytes += data.len(),
            Read::Failed(error) => return (bytes, Some(error)),
            Read::Trailers(_) | Read::End => return (bytes, None),
        }
    }
}

/// Every interleaving of two threads; of three, those with at most this many preemptions.
const PREEMPTIONS: usize = 3;

fn model_of_three(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(model);
}

#[test]
fn every_reader_of_a_stored_body_gets_all_of_it() {
    model_of_three(|| {
        let (_, buffer) = buffer(u64::MAX);
        let threads = [(); 2].map(|()| {
            let (cursor, buffer) = (open(&buffer).unwrap(), Arc::clone(&buffer));
            thread::spawn(move || read(&buffer, cursor))
        });
        assert!(push(&buffer));
        buffer.finish(None).unwrap();
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [(5000, None); 2]);
    });
}

#[test]
fn writer_and_reader_wake_each_other_under_back_pressure() {
    loom::model(|| {
        let (budget, buffer) = buffer(0);
        let cursor = open(&buffer).unwrap();
        let reader = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || read(&buffer, cursor)
        });
        for _ in 0..2 {
            assert!(push(&buffer));
        }
        buffer.finish(None).unwrap();
        assert_eq!(reader.join().unwrap(), (10_000, None));
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn the_writer_goes_on_when_a_reader_has_made_room_and_does_not_come_back() {
    loom::model(|| {
        let (_, buffer) = buffer(0);
        let mut cursor = open(&buffer).unwrap();
        assert!(push(&buffer));
        let reader = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || {
                let read = block_on(poll_fn(|context| buffer.poll_read(&mut cursor, Instant::now(), context.waker())));
                assert!(matches!(read, Read::Data(_)));
                cursor
            }
        });
        assert!(push(&buffer));
        reader.join().unwrap();
    });
}

#[test]
fn the_writer_learns_that_its_last_reader_left_while_it_waits() {
    loom::model(|| {
        let (_, buffer) = buffer(0);
        let mut cursor = open(&buffer).unwrap();
        assert!(push(&buffer));
        let reader = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || buffer.close(&mut cursor, Instant::now())
        });
        assert!(!push(&buffer));
        reader.join().unwrap();
    });
}

#[test]
fn abandonment_is_learnt_and_final() {
    loom::model(|| {
        let (_, buffer) = buffer(u64::MAX);
        let mut cursor = open(&buffer).unwrap();
        let leaving = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || buffer.close(&mut cursor, Instant::now())
        });
        block_on(poll_fn(|context| buffer.poll_abandoned(context.waker())));
        assert!(open(&buffer).is_none());
        leaving.join().unwrap();
    });
}

#[test]
fn a_late_joiner_is_turned_away_or_served() {
    loom::model(|| {
        let (_, buffer) = buffer(u64::MAX);
        let mut cursor = open(&buffer).unwrap();
        let late = thread::spawn({
            let buffer = Arc::clone(&buffer);
            move || open(&buffer).map(|cursor| read(&buffer, cursor))
        });
        buffer.close(&mut cursor, Instant::now());
        let taken = push(&buffer);
        let ended = buffer.finish(None);
        match late.join().unwrap() {
            // It came in time, or to a body that was whole by then; or the writer had given up before it came.
            Some(read) => assert_eq!((read, taken, ended), ((5000, None), true, Ok(()))),
            None => assert_eq!((taken, ended), (false, Err(BodyError::ClientLeft))),
        }
    });
}

#[test]
fn readers_learn_that_the_writer_died() {
    model_of_three(|| {
        let (_, buffer) = buffer(u64::MAX);
        let threads = [(); 2].map(|()| {
            let (cursor, buffer) = (open(&buffer).unwrap(), Arc::clone(&buffer));
            thread::spawn(move || read(&buffer, cursor))
        });
        buffer.fail(BodyError::Reset);
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [(0, Some(BodyError::Reset)); 2]);
    });
}
