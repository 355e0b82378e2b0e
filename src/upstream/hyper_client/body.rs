//! Bodies on this edge: a request's on its way up, a response's on its way down.

use super::convert;
use crate::body::{Again, BodyError, BodyStream, Chunk};
use crate::clock::Alarm;
use crate::http1::response::of_trailer_section;
use crate::listener::RequestBody;
use crate::upstream::codec::Pace;
use crate::upstream::pool::Connection;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use parking_lot::Mutex;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Instant;

/// A request body as hyper pulls it: a chunk is taken from the client only when there is room for it, so the origin's
/// pace is the client's. Trailers of requests end here (RFC 9110 §6.5.1 allows it).
#[derive(Default)]
pub(super) struct Upload {
    /// `None` once there is no more to come.
    source: Option<Source>,
    /// Bytes to come, where that is known.
    length: Option<u64>,
}

struct Source {
    stream: Pin<Box<dyn BodyStream>>,
    progress: Arc<Progress>,
}

/// How far a request body has got, for those who wait for the answer.
#[derive(Debug)]
pub(super) struct Progress(Mutex<Stage>);

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The client's turn.
    Client,
    /// The origin's turn, since then.
    Origin(Instant),
    Done(Instant),
    Failed(BodyError),
}

impl Progress {
    fn set(&self, stage: Stage) {
        *self.0.lock() = stage;
    }

    /// Since when the origin has let us wait; `None` while it is the client's turn.
    pub(super) fn origin_silent_since(&self) -> Option<Instant> {
        match *self.0.lock() {
            Stage::Origin(since) | Stage::Done(since) => Some(since),
            Stage::Client | Stage::Failed(_) => None,
        }
    }

    fn is_done(&self) -> bool {
        matches!(*self.0.lock(), Stage::Done(_))
    }

    fn failure(&self) -> Option<BodyError> {
        match *self.0.lock() {
            Stage::Failed(error) => Some(error),
            _ => None,
        }
    }
}

impl Upload {
    /// Takes a request's body; `Progress` where there is anything to wait for.
    pub(super) fn new(body: RequestBody) -> (Self, Option<Arc<Progress>>) {
        let (length, stream) = match body {
            RequestBody::Empty | RequestBody::Stream { length: Some(0), .. } => return (Self::default(), None),
            RequestBody::Full(bytes) if bytes.is_empty() => return (Self::default(), None),
            RequestBody::Full(bytes) => (Some(bytes.len() as u64), Box::pin(Again { first: Some(bytes), rest: None }) as _),
            RequestBody::Stream { length, stream } => (length, stream),
        };
        let progress = Arc::new(Progress(Mutex::new(Stage::Origin(Instant::now()))));
        (Self { source: Some(Source { stream, progress: progress.clone() }), length }, Some(progress))
    }

    /// The body again, of a request of which nothing was sent.
    pub(super) fn into_request_body(self) -> RequestBody {
        match self.source {
            None => RequestBody::Empty,
            Some(Source { stream, .. }) => RequestBody::Stream { length: self.length, stream },
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { source, length } = self.get_mut();
        let Some(Source { stream, progress }) = source else { return Poll::Ready(None) };
        let chunk = match stream.as_mut().poll_chunk(context) {
            Poll::Ready(chunk) => chunk,
            Poll::Pending => {
                progress.set(Stage::Client);
                return Poll::Pending;
            }
        };
        let now = Instant::now();
        let (stage, left, frame) = match (chunk, *length) {
            (Some(Ok(Chunk::Data(data))), length) => {
                let left = length.map(|length| length.saturating_sub(data.len() as u64));
                // hyper does not ask again after the last byte that was announced.
                let stage = if left == Some(0) { Stage::Done(now) } else { Stage::Origin(now) };
                (stage, left, Some(Ok(Frame::data(data))))
            }
            (Some(Ok(Chunk::Trailers(_))) | None, Some(1..)) => {
                (Stage::Failed(BodyError::Truncated), None, Some(Err(BodyError::Truncated)))
            }
            (Some(Ok(Chunk::Trailers(_))) | None, _) => (Stage::Done(now), None, None),
            (Some(Err(error)), _) => (Stage::Failed(error), None, Some(Err(error))),
        };
        progress.set(stage);
        *length = left;
        if !matches!(stage, Stage::Origin(_)) {
            *source = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.source, self.length) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Some(length)) => SizeHint::with_exact(length),
            (Some(_), None) => SizeHint::new(),
        }
    }
}

/// A response body. Its end gives the connection back to the pool; dropping it before closes the connection.
pub(super) struct Download {
    incoming: Incoming,
    /// `None` once the body has ended.
    connection: Option<Connection>,
    upload: Option<Arc<Progress>>,
    /// How long the connection may be kept idle afterwards; `None`: it is closed.
    keep: Option<Duration>,
    read_timeout: Duration,
    deadline: Option<Instant>,
    alarm: Alarm,
    /// Set when a read has to wait.
    silent_since: Option<Instant>,
}

impl Download {
    /// The body of a response; `None` where it has none, with the connection given back already.
    pub(super) fn new(
        incoming: Incoming,
        connection: Connection,
        upload: Option<Arc<Progress>>,
        keep: Option<Duration>,
        pace: Pace,
    ) -> Option<Self> {
        let Pace { read_timeout, deadline } = pace;
        let connection = Some(connection);
        let mut body = Self { incoming, connection, upload, keep, read_timeout, deadline, alarm: Alarm::default(), silent_since: None };
        if body.incoming.is_end_stream() {
            body.finish();
            return None;
        }
        Some(body)
    }

    /// The body is whole. A connection on which the request is not sent to its end is of no further use, and closing it
    /// tells the client to stop.
    fn finish(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if let Some(keep) = self.keep
            && self.upload.as_ref().is_none_or(|upload| upload.is_done())
        {
            connection.park(keep);
        }
    }

    fn fail(&mut self, error: BodyError) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.connection = None;
        Poll::Ready(Some(Err(error)))
    }

    /// The cause in our terms: what the client did to its own upload comes first.
    fn cause(&self, error: &hyper::Error) -> BodyError {
        if let Some(error) = self.upload.as_ref().and_then(|upload| upload.failure()) {
            return error;
        }
        match find::<io::Error>(error).map(io::Error::kind) {
            Some(io::ErrorKind::UnexpectedEof) => BodyError::Truncated,
            Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput) => BodyError::Malformed,
            Some(io::ErrorKind::TimedOut) => BodyError::Timeout,
            None if error.is_incomplete_message() => BodyError::Truncated,
            _ => BodyError::Reset,
        }
    }

    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let since = *self.silent_since.get_or_insert_with(Instant::now);
            let until = self.silent_until(since, Instant::now());
            ready!(self.alarm.poll_deadline(context, until));
            // It was set for what was known then: the origin's turn may have begun later.
            let now = Instant::now();
            if self.silent_until(since, now) <= now {
                return Poll::Ready(());
            }
        }
    }

    /// When a wait that began then is over. An upload takes as long as the client needs for it: while it is the client's
    /// turn this moves on with the time. The end of the exchange does not.
    fn silent_until(&self, since: Instant, now: Instant) -> Instant {
        let turn = self.upload.as_ref().map_or(Some(since), |upload| upload.origin_silent_since());
        let until = turn.unwrap_or(now).max(since) + self.read_timeout;
        self.deadline.map_or(until, |deadline| deadline.min(until))
    }

    fn overdue(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }
}

impl BodyStream for Download {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        loop {
            let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
                ready!(self.poll_silence(context));
                return self.fail(BodyError::Timeout);
            };
            self.silent_since = None;
            let frame = match frame {
                None if self.incoming.size_hint().lower() > 0 => return self.fail(BodyError::Truncated),
                None => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Some(Err(error)) => {
                    let cause = self.cause(&error);
                    return self.fail(cause);
                }
                Some(Ok(_)) if self.overdue() => return self.fail(BodyError::Timeout),
                Some(Ok(frame)) => frame,
            };
            let trailers = match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => {
                    if self.incoming.is_end_stream() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(Chunk::Data(data))));
                }
                Err(frame) => frame.into_trailers().ok(),
            };
            let Some(trailers) = trailers else { continue };
            match convert::fields(&trailers).map(of_trailer_section) {
                Err(_) => return self.fail(BodyError::Malformed),
                Ok(fields) if fields.is_empty() => {}
                Ok(fields) => {
                    self.finish();
                    return Poll::Ready(Some(Ok(Chunk::Trailers(fields))));
                }
            }
        }
    }
}

/// The first error of this type in a chain of causes.
pub(super) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
