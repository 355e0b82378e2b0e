//! A request body of HTTP/2 or 3 within its bounds, of bytes and of time. It comes no faster than it is read (flow control).

use super::interim::Continue;
use super::pace::Pace;
use crate::body::{BodyError, BodyStream, Chunk};
use crate::clock::Alarm;
use crate::config::settings::Limits;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::time::Instant;

/// A body as its connection has it.
pub(super) trait Source: Send + Unpin {
    /// What comes next; `None` at its orderly end.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Chunk>, BodyError>>;
}

/// Dropping it says that nobody wants the rest.
pub(super) struct Paced<S> {
    source: S,
    limits: Arc<Limits>,
    /// Bytes that may still come.
    room: u64,
    pace: Pace,
    alarm: Alarm,
    /// Until the client was told, or sends without.
    expected: Option<Continue>,
}

impl<S: Source> Paced<S> {
    pub fn new(source: S, limits: &Arc<Limits>, expected: Option<Continue>) -> Self {
        let (pace, alarm) = (Pace::default(), Alarm::default());
        Self { source, limits: Arc::clone(limits), room: limits.body_bytes, pace, alarm, expected }
    }
}

impl<S: Source> BodyStream for Paced<S> {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = &mut *self;
        let polled = this.source.poll_next(context);
        if let (Some(expected), true) = (this.expected.take(), polled.is_pending()) {
            expected.tell();
        }
        let Poll::Ready(next) = polled else {
            let (until, _) = this.pace.wait(Instant::now, &this.limits);
            ready!(this.alarm.poll_deadline(context, until));
            return Poll::Ready(Some(Err(BodyError::Timeout)));
        };
        let length = if let Ok(Some(Chunk::Data(data))) = &next { data.len() } else { 0 };
        this.pace.stop(Instant::now, length);
        let Some(room) = this.room.checked_sub(length as u64) else { return Poll::Ready(Some(Err(BodyError::TooLarge))) };
        this.room = room;
        Poll::Ready(next.transpose())
    }
}
