//! A request body on its way up a stream.

use crate::body::{BodyError, BodyStream, Chunk};
use crate::http2;
use crate::listener::RequestBody;
use crate::semantics::Fields;
use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Instant;

/// What is left of a request. A piece is taken from the client only when the one before is on its way, so the origin's
/// windows are the client's pace. Trailers go on.
pub(super) struct Upload {
    /// `None` once all is sent, or nothing more will be.
    sink: Option<SendStream<Bytes>>,
    piece: Bytes,
    /// `None` once there is no more to come.
    source: Option<Pin<Box<dyn BodyStream>>>,
    /// Bytes that the source has still to give, where that is known.
    left: Option<u64>,
    /// Something was taken from the source: it cannot be given back whole.
    taken: bool,
    /// Since when it has been the origin's turn; `None` while it is the client's.
    since: Option<Instant>,
}

impl Upload {
    pub(super) fn new(sink: SendStream<Bytes>, body: RequestBody, now: Instant) -> Self {
        let (sink, piece, source, left) = match body {
            RequestBody::Empty => (None, Bytes::new(), None, None),
            RequestBody::Full(bytes) => (Some(sink), bytes, None, None),
            RequestBody::Stream { length, stream } => (Some(sink), Bytes::new(), Some(stream), length),
        };
        Self { sink, piece, source, left, taken: false, since: Some(now) }
    }

    /// Moves it on as far as client and origin allow. Ready when all of it is sent, or with what went wrong on the client's
    /// side. Where the stream has ended that shows when the answer is read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        loop {
            let Some(sink) = &mut self.sink else { return Poll::Ready(Ok(())) };
            if !self.piece.is_empty() {
                match http2::poll_room(sink, self.piece.len(), context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(None) => self.stop(),
                    Poll::Ready(Some(room)) => {
                        let data = self.piece.split_to(room.min(self.piece.len()));
                        let is_last = self.piece.is_empty() && self.source.is_none();
                        if sink.send_data(data, is_last).is_err() || is_last {
                            self.stop();
                        }
                        self.since = Some(Instant::now());
                    }
                }
                continue;
            }
            let Some(source) = &mut self.source else {
                _ = sink.send_data(Bytes::new(), true); // an error shows when the answer is read
                self.stop();
                continue;
            };
            match source.as_mut().poll_chunk(context) {
                Poll::Ready(chunk) => self.take(chunk)?,
                Poll::Pending => {
                    self.since = None;
                    return Poll::Pending;
                }
            }
        }
    }

    fn take(&mut self, chunk: Option<Result<Chunk, BodyError>>) -> Result<(), BodyError> {
        self.since = Some(Instant::now());
        self.taken = true;
        match chunk {
            Some(Ok(Chunk::Data(data))) => {
                if let Some(left) = &mut self.left {
                    *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Malformed)?;
                }
                self.piece = data;
            }
            _ if self.left.is_some_and(|left| left > 0) => return Err(BodyError::Truncated),
            Some(Ok(Chunk::Trailers(fields))) => {
                let trailers = trailers(&fields).ok_or(BodyError::Malformed)?;
                if let Some(sink) = &mut self.sink {
                    _ = sink.send_trailers(trailers); // as above
                }
                self.stop();
            }
            None => self.source = None,
            Some(Err(error)) => return Err(error),
        }
        Ok(())
    }

    /// Sends nothing more. A stream that is not ended by then is reset when its answer has been read.
    pub(super) fn stop(&mut self) {
        (self.sink, self.source, self.piece) = (None, None, Bytes::new());
        self.since.get_or_insert_with(Instant::now);
    }

    /// Since when the origin has let us wait; `None` while it is the client's turn.
    pub(super) fn origin_silent_since(&self) -> Option<Instant> {
        self.since
    }

    /// The body again, of a request that was not acted upon; `None` where some of it is gone.
    pub(super) fn into_request_body(self) -> Option<RequestBody> {
        match (self.source, self.taken) {
            (_, true) => None,
            (Some(stream), false) => Some(RequestBody::Stream { length: self.left, stream }),
            (None, false) => Some(RequestBody::Empty), // or one at hand, which the sender has kept
        }
    }
}

fn trailers(fields: &Fields) -> Option<HeaderMap> {
    let mut trailers = HeaderMap::with_capacity(fields.len());
    fields.iter().all(|(name, value)| http2::append(&mut trailers, name.as_bytes(), value)).then_some(trailers)
}
