//! Bodies of messages, as they come in and as they go out over HTTP/2.

use crate::body::{BodyError, BodyStream, Chunk};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// What comes next on a stream; `None` at its orderly end. `in_words` says what an error of the stream means here.
pub fn poll_next(
    incoming: &mut RecvStream,
    context: &mut Context<'_>,
    in_words: impl Fn(&h2::Error) -> BodyError,
) -> Poll<Result<Option<Chunk>, BodyError>> {
    while let Some(data) = ready!(incoming.poll_data(context)) {
        let data = data.map_err(|error| in_words(&error))?;
        // The peer may send as much again: whoever reads asks for the next piece only when this one has gone on.
        _ = incoming.flow_control().release_capacity(data.len());
        if !data.is_empty() {
            return Poll::Ready(Ok(Some(Chunk::Data(data))));
        }
    }
    let trailers = ready!(incoming.poll_trailers(context)).map_err(|error| in_words(&error))?;
    Poll::Ready(trailers.map_or(Ok(None), |trailers| super::trailers(&trailers)))
}

/// Bytes that may be sent now, of `wanted`; `None`: the stream takes no more.
pub fn poll_room(outgoing: &mut SendStream<Bytes>, wanted: usize, context: &mut Context<'_>) -> Poll<Option<usize>> {
    outgoing.reserve_capacity(wanted);
    loop {
        match outgoing.capacity() {
            0 => match ready!(outgoing.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(None),
            },
            room => return Poll::Ready(Some(room)),
        }
    }
}

/// A body of a request as it comes: its end is that of its stream, and its length was compared with what was announced, by h2.
/// The other side may send no faster than this is read (flow control). Dropping it says that nobody wants the rest.
pub struct Incoming {
    incoming: RecvStream,
    /// Between two reads that bring something.
    read_timeout: Duration,
    /// Bytes that may still come.
    left: u64,
    /// Made when the first read has to wait.
    timer: Option<Pin<Box<Sleep>>>,
    waits: bool,
}

impl Incoming {
    pub const fn new(incoming: RecvStream, read_timeout: Duration, most: u64) -> Self {
        Self { incoming, read_timeout, left: most, timer: None, waits: false }
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
        if !self.waits {
            self.waits = true;
            timer.as_mut().reset(Instant::now() + self.read_timeout);
        }
        timer.as_mut().poll(context)
    }
}

impl BodyStream for Incoming {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let Poll::Ready(next) = poll_next(&mut self.incoming, context, |_| BodyError::Reset) else {
            return self.poll_timer(context).map(|()| Some(Err(BodyError::Timeout)));
        };
        self.waits = false;
        if let Ok(Some(Chunk::Data(data))) = &next {
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(BodyError::TooLarge)));
            };
            self.left = left;
        }
        Poll::Ready(next.transpose())
    }
}
