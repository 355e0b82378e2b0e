//! A body under way: one writer appends segments, any number of readers follow (DESIGN sections 3 and 5).
//!
//! Three ends: filling, complete, failed. While it is being stored every segment is kept and the writer is paced by
//! the upstream alone. Once it is not (it outgrew the limit, or memory for fills ran out), segments that all
//! readers have passed are freed, the furthest reader may lead the slowest by `lag`, and a reader that holds the
//! others up for `stall` in sum is detached.

use crate::body::{BodyError, BodyStream, Chunk};
use crate::config::settings::Fill as FillSettings;
use crate::semantics::Fields;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Memory that fills in flight and pinned bodies may hold in the process.
#[derive(Debug)]
pub struct FillBudget {}

impl FillBudget {
    pub fn new(bytes: u64) -> Arc<Self> {
        let _ = bytes;
        todo!()
    }
    /// Bytes held now.
    pub fn used(&self) -> u64 {
        todo!()
    }
    pub fn limit(&self) -> u64 {
        todo!()
    }
}

/// A body being filled. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fill {}

/// The only writer. Dropping it without [`FillWriter::finish`] fails the body with [`BodyError::Reset`].
#[derive(Debug)]
pub struct FillWriter {}

/// Follows a fill from `start` to `end`.
#[derive(Debug)]
pub struct FillReader {}

/// A whole body.
#[derive(Debug, Clone)]
pub struct CompleteBody {
    pub segments: Arc<[Bytes]>,
    pub length: u64,
    pub trailers: Option<Fields>,
}

/// Why storing ended while the body still streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unstored {
    TooLarge,
    Memory,
}

impl Fill {
    /// `declared`: Content-Length; `keep_at_most`: bytes beyond which it is no longer kept for storing.
    pub fn new(budget: Arc<FillBudget>, settings: &FillSettings, declared: Option<u64>, keep_at_most: u64) -> (FillWriter, Self) {
        let _ = (budget, settings, declared, keep_at_most);
        todo!()
    }
    /// A reader from byte `start` (which must still be there: `None` otherwise) up to `end` or the end of the body.
    pub fn reader(&self, start: u64, end: Option<u64>) -> Option<FillReader> {
        let _ = (start, end);
        todo!()
    }
    /// Bytes that have arrived.
    pub fn arrived(&self) -> u64 {
        todo!()
    }
    pub fn declared(&self) -> Option<u64> {
        todo!()
    }
    /// The whole body, once finished and if it was kept.
    pub fn complete(&self) -> Option<CompleteBody> {
        todo!()
    }
    /// Whether it is still kept for storing, else why not.
    pub fn unstored(&self) -> Option<Unstored> {
        todo!()
    }
    /// Readers there.
    pub fn readers(&self) -> usize {
        todo!()
    }
}

impl FillWriter {
    /// Appends. Waits (event-driven) where back-pressure applies. `Err`: it is pointless to go on, because nobody reads
    /// and it is not kept, or what remains is more than `finish_rest`/`finish_share` allow to finish unread.
    pub async fn push(&mut self, bytes: Bytes) -> Result<(), Abandoned> {
        let _ = bytes;
        todo!()
    }
    /// The body is whole. `Err` with [`BodyError::Truncated`] if a declared length was not met (then it failed).
    pub fn finish(self, trailers: Option<Fields>) -> Result<(), BodyError> {
        let _ = trailers;
        todo!()
    }
    /// The body failed: every reader gets what arrived, then this error.
    pub fn fail(self, error: BodyError) {
        let _ = error;
        todo!()
    }
    /// Resolves when nobody reads and going on is not worth it.
    pub async fn abandoned(&self) {
        todo!()
    }
}

/// Nobody wants the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned;

impl BodyStream for FillReader {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let _ = context;
        todo!()
    }
}
