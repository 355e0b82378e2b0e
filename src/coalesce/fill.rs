//! A body under way: one writer appends segments, any number of readers follow (DESIGN sections 3 and 5).
//!
//! Three ends: filling, complete, failed. While it is being stored every segment is kept and the writer is paced by
//! the upstream alone. Once it is not (it outgrew the limit, or memory for fills ran out), segments that all
//! readers have passed are freed, the furthest reader may lead the slowest by `lag`, and a reader that holds the
//! others up for `stall` in sum is detached. To hold up means: the writer waits for this reader while another has
//! read everything and waits. One reader alone is never detached; its pace is the writer's.
//!
//! Whether anybody wants the bytes: readers do, and [`JoinTicket`]s, by which a flight says that somebody may still
//! come; a new fill waits for its first of either. What is being stored is worth finishing unread by `finish_rest` and
//! `finish_share`. The states are in the private module `buffer`; here are the handles.

pub use super::budget::{Charge, FillBudget};
pub use super::buffer::{CompleteBody, Unstored};

use super::buffer::{Buffer, Cursor, Push, Read, Rules, concat};
use super::sync::Instant;
use crate::body::{BodyError, BodyStream, Chunk, StoredBody};
use crate::config::settings::Fill as FillSettings;
use crate::pages;
use crate::semantics::Fields;
use bytes::Bytes;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::time::{Sleep, sleep_until};

/// Bytes of a body that is being stored are copied into segments of this size as they come, so that what is stored costs
/// what it weighs, and is made of whole pages; also the size up to which a body is one segment. A copy stays below 200 us.
const SEGMENT: u64 = 256 * 1024;
/// A tail shorter than this joins the segment before it.
const SEGMENT_MIN: u64 = 16 * 1024;

/// A body being filled. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fill {
    buffer: Arc<Buffer>,
}

/// The only writer. Dropping it without [`FillWriter::finish`] fails the body with [`BodyError::Reset`].
#[derive(Debug)]
pub struct FillWriter {
    buffer: Arc<Buffer>,
    arrived: u64,
    /// Up to here bytes are in segments as they will be stored; the last of these begins at `last_start`.
    compact: u64,
    last_start: u64,
}

/// Follows a fill from `start` to `end`. Ends after `end` without trailers, or with the body, whose trailers it gives.
/// An `end` beyond the end of the body is [`BodyError::Truncated`].
#[derive(Debug)]
pub struct FillReader {
    buffer: Arc<Buffer>,
    cursor: Cursor,
}

/// While it lives somebody may still come to read: the fill is not abandoned for want of readers, and nothing of it is
/// freed. The writer waits, once it is `lag` ahead of where the bytes begin.
#[derive(Debug)]
pub struct JoinTicket {
    buffer: Arc<Buffer>,
}

/// Nobody wants the rest, or the body has failed ([`Fill::failure`] tells which).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned;

impl Fill {
    /// `declared`: Content-Length; `keep_at_most`: bytes beyond which it is no longer kept for storing.
    ///
    /// A body that is declared larger than that, or than the memory left for fills, is not kept from the start.
    pub fn new(budget: Arc<FillBudget>, settings: &FillSettings, declared: Option<u64>, keep_at_most: u64) -> (FillWriter, Self) {
        let rules = Rules {
            declared,
            keep_at_most,
            lag: settings.lag,
            stall: settings.stall,
            finish_rest: settings.finish_rest,
            finish_share: settings.finish_share,
        };
        let buffer = Buffer::new(&budget, rules);
        (FillWriter { buffer: Arc::clone(&buffer), arrived: 0, compact: 0, last_start: 0 }, Self { buffer })
    }

    /// A reader from byte `start` up to `end` or the end of the body. `None` where that cannot be any more: `start` was
    /// freed or lies beyond the end, the body failed or was abandoned, or it is not stored and has begun to free.
    pub fn reader(&self, start: u64, end: Option<u64>) -> Option<FillReader> {
        let cursor = self.buffer.open(start, end, Instant::now())?;
        Some(FillReader { buffer: Arc::clone(&self.buffer), cursor })
    }

    /// Says that somebody may still come to read, until the ticket is dropped.
    pub fn ticket(&self) -> JoinTicket {
        self.buffer.hold();
        JoinTicket { buffer: Arc::clone(&self.buffer) }
    }

    /// Bytes that have arrived.
    pub fn arrived(&self) -> u64 {
        self.buffer.arrived()
    }

    pub fn declared(&self) -> Option<u64> {
        self.buffer.rules().declared
    }

    /// The whole body, once finished and if it was kept.
    pub fn complete(&self) -> Option<CompleteBody> {
        self.buffer.complete()
    }

    /// Says that `body`, made of its [`Fill::complete`] bytes, was stored: the store weighs it, so it is not charged to the
    /// budget for fills any more. Its readers are readers of that from now on.
    pub fn stored(&self, body: &Arc<StoredBody>) {
        self.buffer.stored(body);
    }

    /// Whether it is still kept for storing, else why not. Its flight is then retired: nobody new may join.
    pub fn unstored(&self) -> Option<Unstored> {
        self.buffer.unstored()
    }

    /// Why it failed, if it did.
    pub fn failure(&self) -> Option<BodyError> {
        self.buffer.failure()
    }

    /// Readers there, detached ones not counted.
    pub fn readers(&self) -> usize {
        self.buffer.readers()
    }
}

impl FillWriter {
    /// Appends. Waits (event-driven) where back-pressure applies. `Err`: it is pointless to go on, because nobody reads
    /// and it is not kept, or what remains is more than `finish_rest`/`finish_share` allow to finish unread; or because
    /// more came than was declared, which fails the body with [`BodyError::Malformed`].
    ///
    /// Not cancel-safe: how much was appended is lost with the future.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Abandoned> {
        self.push_telling(bytes, || {}).await
    }

    /// [`FillWriter::push`] that tells when the body stops being kept for storing, before it waits for anybody.
    pub async fn push_telling(&mut self, mut bytes: Bytes, on_unstored: impl Fn()) -> Result<(), Abandoned> {
        while !bytes.is_empty() {
            let room = SEGMENT - (self.arrived - self.compact); // never none: what is full has been put together
            let step = bytes.split_to(bytes.len().min(room as usize));
            self.append(&step, &on_unstored).await?;
            self.arrived += step.len() as u64;
            if self.arrived - self.compact >= SEGMENT {
                self.compact_from(self.compact);
            }
        }
        Ok(())
    }

    /// The body is whole. `Err` with [`BodyError::Truncated`] if a declared length was not met (then it failed), or with
    /// the error by which it had failed before.
    pub fn finish(mut self, trailers: Option<Fields>) -> Result<(), BodyError> {
        let tail = self.arrived - self.compact;
        if tail >= SEGMENT_MIN || (tail > 0 && self.compact == 0) {
            self.compact_from(self.compact);
        } else if tail > 0 {
            self.compact_from(self.last_start);
        }
        self.buffer.finish(trailers)
    }

    /// The body failed: every reader gets what arrived, then this error.
    pub fn fail(self, error: BodyError) {
        self.buffer.fail(error);
    }

    /// Resolves when nobody reads and going on is not worth it. From then on nobody can join. Cancel-safe.
    pub async fn abandoned(&self) {
        poll_fn(|context| self.buffer.poll_abandoned(context.waker())).await;
    }

    async fn append(&self, bytes: &Bytes, on_unstored: impl Fn()) -> Result<(), Abandoned> {
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| {
            loop {
                match self.buffer.poll_push(bytes, Instant::now(), context.waker()) {
                    Push::Done => return Poll::Ready(Ok(())),
                    Push::Unstored => on_unstored(),
                    Push::Abandoned => return Poll::Ready(Err(Abandoned)),
                    Push::Wait(None) => return Poll::Pending,
                    Push::Wait(Some(deadline)) => {
                        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                        timer.as_mut().reset(deadline);
                        if timer.as_mut().poll(context).is_pending() {
                            return Poll::Pending;
                        }
                    }
                }
            }
        })
        .await
    }

    /// Copies the segments from `start` into one, outside the lock: readers hold positions and do not notice.
    fn compact_from(&mut self, start: u64) {
        // Only this writer ends storing, so until then nothing is freed between the two steps.
        if self.buffer.unstored().is_none() {
            let pieces = self.buffer.since(start);
            self.buffer.replace_since(start, pages::gather(&pieces).unwrap_or_else(|| concat(&pieces)));
        }
        self.last_start = start;
        self.compact = self.arrived;
    }
}

impl Drop for FillWriter {
    fn drop(&mut self) {
        self.buffer.fail(BodyError::Reset);
    }
}

impl BodyStream for FillReader {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        this.buffer.poll_read(&mut this.cursor, Instant::now(), context.waker()).map(|read| match read {
            Read::Data(bytes) => Some(Ok(Chunk::Data(bytes))),
            Read::Trailers(trailers) => Some(Ok(Chunk::Trailers(trailers))),
            Read::End => None,
            Read::Failed(error) => Some(Err(error)),
        })
    }

    fn is_revoked(&self) -> bool {
        self.buffer.is_revoked()
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        self.buffer.close(&mut self.cursor, Instant::now());
    }
}

impl Drop for JoinTicket {
    fn drop(&mut self) {
        self.buffer.release(Instant::now());
    }
}

#[cfg(test)]
#[path = "fill_tests.rs"]
mod tests;
