//! A response body on its way down.

use super::{Conversation, Trouble};
use crate::body::{BodyError, BodyStream, Chunk};
use crate::http1::response::Event;
use crate::upstream::codec::Pace;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;

/// The body of an answer whose head was read. Its end gives the connection back to the pool; dropping it before closes
/// the connection.
pub(super) struct Download {
    /// `None` once the body has ended.
    talk: Option<Box<Conversation>>,
    /// How long the connection may be kept idle afterwards; `None`: it is closed.
    keep: Option<Duration>,
    pace: Pace,
    /// Set when a read has to wait.
    silent_since: Option<Instant>,
}

type Polled = Option<Result<Chunk, BodyError>>;

impl Download {
    pub(super) fn new(talk: Box<Conversation>, keep: Option<Duration>, pace: Pace) -> Self {
        Self { talk: Some(talk), keep, pace, silent_since: None }
    }

    fn finish(&mut self) {
        if let Some(talk) = self.talk.take() {
            talk.finish(self.keep, Instant::now());
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Polled> {
        self.talk = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl BodyStream for Download {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Polled> {
        let this = &mut *self;
        let Some(talk) = &mut this.talk else { return Poll::Ready(None) };
        // The client may still be sending to an origin that answers meanwhile.
        let event = match talk.poll_send(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(Trouble::Client(error))),
            _ => talk.poll_event(context),
        };
        let event = match event {
            Poll::Ready(event) => event,
            Poll::Pending => {
                let since = *this.silent_since.get_or_insert_with(Instant::now);
                let Some(at) = this.pace.silent_until(since, talk.upload.origin_silent_since()) else { return Poll::Pending };
                return match talk.link.alarm.poll_deadline(context, at) {
                    Poll::Ready(()) => this.fail(BodyError::Timeout),
                    Poll::Pending => Poll::Pending,
                };
            }
        };
        this.silent_since = None;
        let is_overdue = this.pace.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        match event {
            Err(trouble) => this.fail(trouble.in_body()),
            Ok(_) if is_overdue => this.fail(BodyError::Timeout),
            Ok((Event::Data(_), data)) => {
                if talk.reader.is_done() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(Chunk::Data(data))))
            }
            Ok((Event::Trailers(fields), _)) => {
                this.finish();
                Poll::Ready(Some(Ok(Chunk::Trailers(fields))))
            }
            Ok(_) => {
                this.finish();
                Poll::Ready(None)
            }
        }
    }
}
