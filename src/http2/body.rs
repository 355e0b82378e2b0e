//! Bodies of messages, as they come in and as they go out over HTTP/2.

use crate::body::{BodyError, Chunk};
use bytes::Bytes;
use h2::{RecvStream, SendStream};
use std::task::{Context, Poll, ready};

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
