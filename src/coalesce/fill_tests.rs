use super::*;
use crate::coalesce::pinned::{Kept, Pins};
use futures::*;
use proptest::prelude::*;
use std::time::Duration;

/// A body whose every byte tells where it is from.
fn pattern(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn settings(lag: u64) -> FillSettings {
    FillSettings {
        lag,
        stall: Duration::from_secs(2),
        finish_rest: 100,
        finish_share: 0.5,
        range_ahead: 0,
        marker_first: Duration::ZERO,
        marker_max: Duration::ZERO,
        marker_count: 0,
    }
}

fn fill(budget: u64, declared: Option<u64>, keep_at_most: u64) -> (Arc<FillBudget>, FillWriter, Fill) {
    let budget = FillBudget::new(budget);
    let (writer, fill) = Fill::new(Arc::clone(&budget), &settings(1000), declared, keep_at_most);
    (budget, writer, fill)
}

fn trailers() -> Fields {
    let mut fields = Fields::new();
    fields.push("x-sum", "1").unwrap();
    fields
}

/// Polling by hand.
mod futures {
    use super::*;
    use std::task::Waker;

    pub fn poll<F: Future + ?Sized>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    pub fn push(writer: &mut FillWriter, bytes: Bytes) -> Poll<Result<(), Abandoned>> {
        poll(std::pin::pin!(writer.push(bytes)))
    }

    pub fn chunk(reader: &mut FillReader) -> Poll<Option<Result<Chunk, BodyError>>> {
        Pin::new(reader).poll_chunk(&mut Context::from_waker(Waker::noop()))
    }

    /// What is there to read now: bytes, whether trailers came, and how it ended (`None`: not yet).
    pub fn drain(reader: &mut FillReader) -> (Vec<u8>, bool, Option<Result<(), BodyError>>) {
        let (mut bytes, mut trailers) = (Vec::new(), false);
        loop {
            match chunk(reader) {
                Poll::Pending => return (bytes, trailers, None),
                Poll::Ready(None) => return (bytes, trailers, Some(Ok(()))),
                Poll::Ready(Some(Err(error))) => return (bytes, trailers, Some(Err(error))),
                Poll::Ready(Some(Ok(Chunk::Data(data)))) => bytes.extend_from_slice(&data),
                Poll::Ready(Some(Ok(Chunk::Trailers(_)))) => trailers = true,
            }
        }
    }
}

const TAKEN: Poll<Result<(), Abandoned>> = Poll::Ready(Ok(()));
const ABANDONED: Poll<Result<(), Abandoned>> = Poll::Ready(Err(Abandoned));

#[test]
fn what_is_stored_is_charged_no_more_however_slow_its_readers_are() {
    let (budget, mut writer, fill) = fill(1000, Some(300), 1000);
    let mut reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(300)), TAKEN);
    writer.finish(None).unwrap();
    assert_eq!(budget.used(), 300);
    let body = Arc::new(StoredBody::new(&fill.complete().unwrap().segments));
    fill.stored(&body);
    drop(fill);
    assert_eq!((budget.used(), Arc::strong_count(&body)), (0, 2), "its reader reads what is stored");
    assert!(!reader.is_revoked());
    body.revoke();
    assert!(reader.is_revoked());
    assert_eq!(drain(&mut reader), (pattern(300).to_vec(), false, Some(Ok(()))), "whether it waits is for others to see");
    drop(reader);
    assert_eq!(Arc::strong_count(&body), 1);
}

#[test]
fn what_was_copied_to_be_stored_is_charged_while_it_is_read() {
    let (budget, mut writer, fill) = fill(1000, Some(300), 1000);
    let reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(300)), TAKEN);
    writer.finish(None).unwrap();
    let kept = Kept::new(&fill.complete().unwrap().segments, &Pins::new(&budget));
    fill.stored(kept.body());
    drop(fill);
    assert_eq!((budget.used(), kept.body().segments().concat()), (300, pattern(300).to_vec()));
    drop(reader);
    assert_eq!(budget.used(), 0);
}

#[test]
fn a_stored_body_is_read_from_anywhere_while_it_comes_and_after() {
    let body = pattern(10_000);
    let (budget, mut writer, fill) = fill(1 << 20, None, 1 << 20);
    let (mut all, mut middle) = (fill.reader(0, None).unwrap(), fill.reader(7000, Some(9000)).unwrap());
    assert_eq!(push(&mut writer, body.slice(..6000)), TAKEN);
    assert_eq!(drain(&mut all), (body[..6000].to_vec(), false, None));
    assert_eq!(drain(&mut middle), (Vec::new(), false, None));
    assert_eq!(push(&mut writer, body.slice(6000..)), TAKEN);
    assert_eq!(drain(&mut middle), (body[7000..9000].to_vec(), false, Some(Ok(()))));
    writer.finish(Some(trailers())).unwrap();
    assert_eq!(drain(&mut all), (body[6000..].to_vec(), true, Some(Ok(()))));
    assert_eq!(drain(&mut fill.reader(0, None).unwrap()), (body.to_vec(), true, Some(Ok(()))));
    assert!(fill.reader(10_001, None).is_none());
    let complete = fill.complete().unwrap();
    assert_eq!((complete.segments.concat(), complete.length), (body.to_vec(), 10_000));
    assert_eq!(budget.used(), 10_000);
    drop((all, middle, fill));
    assert_eq!(budget.used(), 0);
    assert_eq!(complete.trailers, Some(trailers()));
}

#[test]
fn a_body_shorter_than_declared_fails_every_reader() {
    let (_, mut writer, fill) = fill(1 << 20, Some(100), 1 << 20);
    let mut reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(99)), TAKEN);
    assert_eq!(writer.finish(None), Err(BodyError::Truncated));
    assert_eq!(drain(&mut reader), (pattern(99).to_vec(), false, Some(Err(BodyError::Truncated))));
    assert!(fill.complete().is_none());
    assert!(fill.reader(0, None).is_none());
}

#[test]
fn a_body_longer_than_declared_is_malformed() {
    let (_, mut writer, fill) = fill(1 << 20, Some(100), 1 << 20);
    let mut reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(60)), TAKEN);
    assert_eq!(push(&mut writer, pattern(41)), ABANDONED);
    assert_eq!(fill.failure(), Some(BodyError::Malformed));
    assert_eq!(writer.finish(None), Err(BodyError::Malformed));
    assert_eq!(drain(&mut reader), (pattern(60).to_vec(), false, Some(Err(BodyError::Malformed))));
}

#[test]
fn a_writer_that_fails_or_dies_fails_the_readers_after_what_arrived() {
    for (end, error) in [(Some(BodyError::Timeout), BodyError::Timeout), (None, BodyError::Reset)] {
        let (_, mut writer, fill) = fill(1 << 20, None, 1 << 20);
        let mut reader = fill.reader(0, None).unwrap();
        assert_eq!(push(&mut writer, pattern(10)), TAKEN);
        match end {
            Some(error) => writer.fail(error),
            None => drop(writer),
        }
        assert_eq!(drain(&mut reader), (pattern(10).to_vec(), false, Some(Err(error))));
        assert!(fill.complete().is_none());
    }
}

#[test]
fn a_range_beyond_the_end_is_truncated() {
    let (_, mut writer, fill) = fill(1 << 20, None, 1 << 20);
    let mut reader = fill.reader(5, Some(20)).unwrap();
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
    writer.finish(None).unwrap();
    assert_eq!(drain(&mut reader), (pattern(10)[5..].to_vec(), false, Some(Err(BodyError::Truncated))));
}

#[test]
fn one_reader_paces_a_body_that_is_not_stored() {
    let (budget, mut writer, fill) = fill(1 << 20, None, 0);
    assert_eq!(fill.unstored(), Some(Unstored::TooLarge));
    let mut reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(900)), TAKEN);
    assert!(push(&mut writer, pattern(200)).is_pending());
    assert_eq!(fill.arrived(), 900);
    assert_eq!(drain(&mut reader).0.len(), 900);
    assert_eq!(budget.used(), 0, "what everybody has read is freed");
    assert!(fill.reader(0, None).is_none(), "nobody new joins");
    assert_eq!(push(&mut writer, pattern(5000)), TAKEN, "one segment always passes");
    writer.finish(None).unwrap();
    assert!(fill.complete().is_none());
    assert_eq!(drain(&mut reader).2, Some(Ok(())));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_outgrows_the_limit_is_not_stored_but_streams_on() {
    let (budget, mut writer, fill) = fill(1 << 20, None, 10_000);
    let (mut fast, mut slow) = (fill.reader(0, None).unwrap(), fill.reader(0, None).unwrap());
    assert_eq!(push(&mut writer, pattern(10_000)), TAKEN);
    assert_eq!((drain(&mut fast).0.len(), fill.unstored()), (10_000, None));
    assert!(push(&mut writer, pattern(1)).is_pending(), "the slow one lags more than allowed");
    assert_eq!(fill.unstored(), Some(Unstored::TooLarge));
    assert_eq!(budget.used(), 10_000);
    assert_eq!(drain(&mut slow).0, pattern(10_000));
    assert_eq!(budget.used(), 0);
    assert_eq!(push(&mut writer, pattern(1)), TAKEN);
}

#[test]
fn without_memory_a_new_fill_is_not_stored() {
    let (budget, _writer, small) = fill(100, Some(101), 1 << 20);
    assert_eq!(small.unstored(), Some(Unstored::Memory));
    let all = budget.reserve(100).unwrap();
    assert!(budget.reserve(1).is_none());
    let (mut writer, fill) = Fill::new(Arc::clone(&budget), &settings(1000), None, 1 << 20);
    assert_eq!(fill.unstored(), Some(Unstored::Memory));
    let mut reader = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
    assert!(push(&mut writer, pattern(10)).is_pending(), "one segment without memory, not two");
    assert_eq!(drain(&mut reader).0.len(), 10);
    drop(all);
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
}

#[test]
fn slow_readers_cannot_make_it_hold_more_than_the_budget() {
    let (budget, mut writer, fill) = fill(50_000, None, u64::MAX);
    let mut reader = fill.reader(0, None).unwrap();
    let mut read = 0;
    for _ in 0..100 {
        while push(&mut writer, pattern(7000)).is_pending() {
            let Poll::Ready(Some(Ok(Chunk::Data(data)))) = chunk(&mut reader) else { panic!("the writer waits, so there is data") };
            read += data.len() as u64;
        }
        assert!(budget.used() <= budget.limit() + 7000, "{}", budget.used());
    }
    assert_eq!(fill.unstored(), Some(Unstored::Memory));
    assert!(read + 50_000 + 7000 >= fill.arrived());
}

#[test]
fn a_fill_that_nobody_reads_is_finished_only_where_little_is_left() {
    // Declared 1000; finished unread from 500 (the share) or with 100 left.
    for (arrived, want) in [(499, ABANDONED), (500, TAKEN), (900, TAKEN)] {
        let (_, mut writer, fill) = fill(1 << 20, Some(1000), 1 << 20);
        let reader = fill.reader(0, None).unwrap();
        assert_eq!(push(&mut writer, pattern(arrived)), TAKEN);
        drop(reader);
        assert_eq!(poll(std::pin::pin!(writer.abandoned())).is_ready(), want == ABANDONED, "{arrived}");
        assert_eq!(push(&mut writer, pattern(1)), want, "{arrived}");
        assert_eq!(fill.reader(0, None).is_none(), want == ABANDONED, "{arrived}");
    }
}

#[test]
fn a_fill_that_nobody_reads_is_abandoned_without_length_or_when_not_stored() {
    for (declared, keep_at_most) in [(None, 1 << 20), (Some(1000), 0)] {
        let (_, mut writer, fill) = fill(1 << 20, declared, keep_at_most);
        let reader = fill.reader(0, None).unwrap();
        assert_eq!(push(&mut writer, pattern(950)), TAKEN);
        drop(reader);
        assert_eq!(push(&mut writer, pattern(1)), ABANDONED);
    }
}

#[test]
fn a_fill_waits_for_its_first_reader_and_for_those_announced() {
    let (_, mut writer, fill) = fill(1 << 20, None, 1 << 20);
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
    assert!(poll(std::pin::pin!(writer.abandoned())).is_pending());
    let ticket = fill.ticket();
    drop(fill.reader(0, None).unwrap());
    assert_eq!(push(&mut writer, pattern(10)), TAKEN);
    assert_eq!(fill.readers(), 0);
    let reader = fill.reader(0, None).unwrap();
    drop(ticket);
    assert_eq!((push(&mut writer, pattern(10)), fill.readers()), (TAKEN, 1));
    drop(reader);
    assert_eq!(push(&mut writer, pattern(10)), ABANDONED);
}

#[test]
fn nothing_is_freed_before_those_who_were_announced_have_come() {
    let (_, mut writer, fill) = fill(1 << 20, None, 10);
    let ticket = fill.ticket();
    let mut first = fill.reader(0, None).unwrap();
    assert_eq!(push(&mut writer, pattern(50)), TAKEN);
    assert_eq!(drain(&mut first).0.len(), 50);
    assert!(fill.unstored().is_some());
    let second = fill.reader(0, None).expect("it was announced");
    drop((ticket, second));
    assert!(fill.reader(0, None).is_none());
}

#[test]
fn what_comes_before_the_only_reader_is_not_kept() {
    let (budget, mut writer, fill) = fill(100, None, 0);
    let mut ahead = fill.reader(500, None).unwrap();
    for _ in 0..6 {
        assert_eq!(push(&mut writer, pattern(100)), TAKEN);
        assert!(budget.used() <= 100, "{}", budget.used());
    }
    assert_eq!(drain(&mut ahead).0, pattern(100));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_holds_others_up_for_too_long_is_detached() {
    let (budget, mut writer, fill) = fill(1 << 20, None, 0);
    let mut fast = fill.reader(0, None).unwrap();
    let mut slow = fill.reader(0, None).unwrap();
    let started = tokio::time::Instant::now();
    let reads = tokio::spawn(async move {
        let mut bytes = 0;
        while let Some(read) = poll_fn(|context| Pin::new(&mut fast).poll_chunk(context)).await {
            let Chunk::Data(data) = read.unwrap() else { panic!("no trailers were sent") };
            bytes += data.len();
        }
        bytes
    });
    for _ in 0..20 {
        writer.push(pattern(500)).await.unwrap();
    }
    writer.finish(None).unwrap();
    assert_eq!(reads.await.unwrap(), 10_000);
    assert_eq!(started.elapsed().as_secs(), 2, "it may do so for `stall`, once");
    assert_eq!((drain(&mut slow).2, budget.detached(), fill.readers()), (Some(Err(BodyError::Detached)), 1, 0));
}

#[tokio::test(start_paused = true)]
async fn holding_up_counts_in_sum_and_only_while_another_waits() {
    let (budget, mut writer, fill) = fill(1 << 20, None, 0);
    let (mut fast, mut slow) = (fill.reader(0, None).unwrap(), fill.reader(0, None).unwrap());
    assert_eq!(push(&mut writer, pattern(1000)), TAKEN);
    // The writer waits for both: nobody holds up anybody.
    assert!(push(&mut writer, pattern(1000)).is_pending());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(push(&mut writer, pattern(1000)).is_pending());
    // Twice 900 ms the fast one waits for the slow one; 200 ms are left.
    for _ in 0..2 {
        assert!(push(&mut writer, pattern(1000)).is_pending());
        drain(&mut fast);
        tokio::time::advance(Duration::from_millis(900)).await;
        drain(&mut slow);
        assert_eq!(push(&mut writer, pattern(1000)), TAKEN);
    }
    assert_eq!(budget.detached(), 0);
    drain(&mut fast);
    assert!(push(&mut writer, pattern(1000)).is_pending());
    tokio::time::advance(Duration::from_millis(199)).await;
    assert!(push(&mut writer, pattern(1000)).is_pending());
    tokio::time::advance(Duration::from_millis(2)).await;
    assert_eq!(push(&mut writer, pattern(1000)), TAKEN);
    assert_eq!((budget.detached(), drain(&mut slow).2), (1, Some(Err(BodyError::Detached))));
}

#[tokio::test(start_paused = true)]
async fn a_single_slow_reader_is_never_detached() {
    let (budget, mut writer, fill) = fill(1 << 20, None, 0);
    let mut reader = fill.reader(0, None).unwrap();
    for _ in 0..10 {
        assert_eq!(push(&mut writer, pattern(1000)), TAKEN);
        assert!(push(&mut writer, pattern(1000)).is_pending());
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(push(&mut writer, pattern(1000)).is_pending());
        assert_eq!(drain(&mut reader).0.len(), 1000);
    }
    assert_eq!(budget.detached(), 0);
}

fn stored(pieces: &[usize]) -> CompleteBody {
    let body = pattern(pieces.iter().sum());
    let (budget, mut writer, fill) = fill(1 << 30, None, 1 << 30);
    let mut at = 0;
    for piece in pieces {
        assert_eq!(push(&mut writer, body.slice(at..at + piece)), TAKEN);
        at += piece;
    }
    writer.finish(None).unwrap();
    let complete = fill.complete().unwrap();
    assert_eq!(complete.segments.concat(), body);
    assert_eq!((complete.length, budget.used()), (body.len() as u64, body.len() as u64));
    complete
}

#[test]
fn many_small_pieces_become_few_segments() {
    assert_eq!(stored(&[]).segments.len(), 0);
    assert_eq!(stored(&[1000]).segments.len(), 1);
    assert_eq!(stored(&[1; 5000]).segments.len(), 1);
    assert_eq!(stored(&[1000; 65]).segments.len(), 1);
    assert_eq!(stored(&[70_000, 5]).segments.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn stored_segments_have_the_sizes_promised(pieces in proptest::collection::vec(prop_oneof![1_usize..100, 1_usize..20_000, 1_usize..700_000], 0..30)) {
        let complete = stored(&pieces);
        if complete.length <= SEGMENT {
            prop_assert!(complete.segments.len() <= 1);
        } else {
            let (last, others) = complete.segments.split_last().unwrap();
            prop_assert!(others.iter().all(|segment| segment.len() as u64 == SEGMENT));
            prop_assert!((SEGMENT_MIN..SEGMENT + SEGMENT_MIN).contains(&(last.len() as u64)));
        }
    }
}
