//! A request body on its way from the connection to whoever reads it, with back-pressure.
//!
//! The reader may live on another task (an upstream's); both sides wake each other. The connection stops reading from
//! its socket while [`CHANNEL_BYTES`] wait.

use super::framing::BodyLength;
use super::{PIPELINE_BYTES, UNREAD_BODY_BYTES, bad};
use crate::body::{BodyError, BodyStream, Chunk};
use crate::http1::chunked::{ChunkError, Chunked};
use crate::listener::pace::Pace;
use crate::listener::{Refusal, RequestBody};
use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Bytes that may wait between connection and reader.
const CHANNEL_BYTES: usize = 64 * 1024;

#[derive(Default)]
struct State {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    end: Option<Result<(), BodyError>>,
    /// The reader asked for a byte at least once.
    wanted: bool,
    /// The reader is gone.
    gone: bool,
    reader: Option<Waker>,
    feeder: Option<Waker>,
}

/// The reader's end.
struct Reader(Arc<Mutex<State>>);

impl BodyStream for Reader {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let mut state = self.0.lock();
        let first = !std::mem::replace(&mut state.wanted, true);
        let chunk = state.chunks.pop_front();
        if let Some(Chunk::Data(bytes)) = &chunk {
            state.bytes -= bytes.len();
        }
        // Only where this makes a difference to it: where both are one task, waking it in vain would keep it busy for ever.
        let feeder = if first || chunk.is_some() { state.feeder.take() } else { None };
        let polled = match (chunk, state.end) {
            (Some(chunk), _) => Poll::Ready(Some(Ok(chunk))),
            (None, Some(end)) => Poll::Ready(end.err().map(Err)),
            (None, None) => {
                state.reader = Some(context.waker().clone());
                Poll::Pending
            }
        };
        drop(state);
        wake(feeder);
        polled
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.gone = true;
        state.chunks.clear();
        let feeder = state.feeder.take();
        drop(state);
        wake(feeder);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[derive(Debug)]
enum Decoder {
    Exact(u64),
    Chunked(Box<Chunked>),
}

/// What the reader is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    Open,
    /// Nobody reads any more.
    Gone,
}

/// What the client is told of a chunked body that is refused, and what its reader.
const fn refused(error: ChunkError) -> (Refusal, BodyError) {
    match error {
        ChunkError::Malformed(reason) => (bad(reason), BodyError::Malformed),
        ChunkError::TooLarge => (Refusal { status: 413, reason: "body-bytes" }, BodyError::TooLarge),
    }
}

/// The connection's end: undoes the framing and hands on what comes.
pub(super) struct Intake {
    shared: Arc<Mutex<State>>,
    decoder: Decoder,
    /// The client waits for 100, which was not sent.
    pub expects: bool,
    /// What nobody reads is thrown away instead of left in the socket; bytes thrown away.
    pub discarding: bool,
    discarded: u64,
    done: bool,
    failed: bool,
    pub pace: Pace,
}

impl Intake {
    /// The body for the handler, and the end that fills it; none where there is no body.
    pub fn open(length: BodyLength, body_bytes: u64, trailer_lines: usize, expects: bool) -> (RequestBody, Option<Self>) {
        let (length, decoder) = match length {
            BodyLength::None => return (RequestBody::Empty, None),
            BodyLength::Exact(length) => (Some(length), Decoder::Exact(length)),
            BodyLength::Chunked => (None, Decoder::Chunked(Box::new(Chunked::new(body_bytes, trailer_lines)))),
        };
        let shared = Arc::new(Mutex::new(State::default()));
        let stream = Box::pin(Reader(Arc::clone(&shared)));
        let pace = Pace::default();
        let intake = Self { shared, decoder, expects, discarding: false, discarded: 0, done: false, failed: false, pace };
        (RequestBody::Stream { length, stream }, Some(intake))
    }

    /// Every byte of the body was taken from the connection.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The rest of it cannot be found, or will not come.
    pub fn is_failed(&self) -> bool {
        self.failed
    }

    /// Nobody reads it any more.
    pub fn is_gone(&self) -> bool {
        self.shared.lock().gone
    }

    /// Whether the client is to be told to send the body: it waits for that, and somebody asked for the first byte.
    pub fn wants_continue(&self) -> bool {
        self.expects && self.shared.lock().wanted
    }

    /// Whether too much is left to be thrown away.
    pub fn is_too_long_to_discard(&self) -> bool {
        self.discarded > UNREAD_BODY_BYTES || matches!(self.decoder, Decoder::Exact(left) if left > UNREAD_BODY_BYTES)
    }

    /// Ready when the reader takes more, or is gone.
    pub fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<Room> {
        let mut state = self.shared.lock();
        state.feeder = Some(context.waker().clone());
        if state.gone {
            Poll::Ready(Room::Gone)
        } else if state.bytes >= CHANNEL_BYTES || self.expects && !state.wanted {
            Poll::Pending
        } else {
            Poll::Ready(Room::Open)
        }
    }

    /// Hands on what `buffer` holds of the body; what comes after the body stays.
    pub fn feed(&mut self, buffer: &mut BytesMut) -> Result<(), Refusal> {
        let mut trailers = None;
        let data = match &mut self.decoder {
            Decoder::Exact(left) => {
                let length = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                *left -= length as u64;
                self.done = *left == 0;
                take(buffer, length)
            }
            Decoder::Chunked(chunked) => {
                let step = match chunked.decode(buffer) {
                    Ok(step) => step,
                    Err(error) => {
                        let (refusal, told) = refused(error);
                        self.fail(told);
                        return Err(refusal);
                    }
                };
                buffer.advance(step.consumed - step.data);
                self.done = chunked.is_done();
                trailers = chunked.take_trailers();
                take(buffer, step.data)
            }
        };
        self.hand_on(data, trailers);
        Ok(())
    }

    fn hand_on(&mut self, data: Bytes, trailers: Option<crate::semantics::Fields>) {
        let mut state = self.shared.lock();
        if state.gone {
            self.discarded += data.len() as u64;
            return;
        }
        if !data.is_empty() {
            state.bytes += data.len();
            state.chunks.push_back(Chunk::Data(data));
        }
        state.chunks.extend(trailers.map(Chunk::Trailers));
        if self.done {
            state.end = Some(Ok(()));
        }
        let reader = state.reader.take();
        drop(state);
        wake(reader);
    }

    /// The body will not come whole.
    pub fn fail(&mut self, error: BodyError) {
        self.failed = true;
        end(&self.shared, Err(error));
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        end(&self.shared, Err(BodyError::ClientLeft));
    }
}

/// The first end counts.
fn end(shared: &Mutex<State>, with: Result<(), BodyError>) {
    let mut state = shared.lock();
    state.end.get_or_insert(with);
    let reader = state.reader.take();
    drop(state);
    wake(reader);
}

/// Splits off long runs; copies short ones, so that a few bytes do not pin a whole read buffer.
fn take(buffer: &mut BytesMut, length: usize) -> Bytes {
    if length == 0 {
        Bytes::new()
    } else if length * 4 >= PIPELINE_BYTES {
        buffer.split_to(length).freeze()
    } else {
        let bytes = Bytes::copy_from_slice(&buffer[..length]);
        buffer.advance(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    fn opened(length: BodyLength, expects: bool) -> (Pin<Box<dyn BodyStream>>, Intake) {
        match Intake::open(length, 1 << 20, 10, expects) {
            (RequestBody::Stream { stream, .. }, Some(intake)) => (stream, intake),
            _ => panic!("no body"),
        }
    }

    async fn room(intake: &mut Intake) -> Option<Room> {
        poll_fn(|context| {
            Poll::Ready(match intake.poll_room(context) {
                Poll::Ready(room) => Some(room),
                Poll::Pending => None,
            })
        })
        .await
    }

    #[tokio::test]
    async fn a_full_channel_holds_the_connection_back_until_the_reader_takes() {
        let (mut stream, mut intake) = opened(BodyLength::Exact(100_000), false);
        assert_eq!(room(&mut intake).await, Some(Room::Open));
        intake.feed(&mut BytesMut::from(&[7; CHANNEL_BYTES][..])).unwrap();
        assert_eq!(room(&mut intake).await, None);
        let chunk = poll_fn(|context| stream.as_mut().poll_chunk(context)).await;
        assert!(matches!(chunk, Some(Ok(Chunk::Data(bytes))) if bytes.len() == CHANNEL_BYTES));
        assert_eq!(room(&mut intake).await, Some(Room::Open));
        drop(stream);
        assert_eq!(room(&mut intake).await, Some(Room::Gone));
    }

    #[tokio::test]
    async fn what_follows_the_body_stays_and_the_end_is_told_once() {
        let (mut stream, mut intake) = opened(BodyLength::Exact(3), false);
        let mut buffer = BytesMut::from(&b"abcGET"[..]);
        intake.feed(&mut buffer).unwrap();
        assert!(intake.is_done() && &buffer[..] == b"GET");
        drop(intake);
        assert!(
            matches!(poll_fn(|context| stream.as_mut().poll_chunk(context)).await, Some(Ok(Chunk::Data(bytes))) if &bytes[..] == b"abc")
        );
        assert!(poll_fn(|context| stream.as_mut().poll_chunk(context)).await.is_none());
    }

    #[tokio::test]
    async fn a_connection_that_ends_early_is_an_error_for_the_reader() {
        let (mut stream, mut intake) = opened(BodyLength::Chunked, false);
        intake.feed(&mut BytesMut::from(&b"5\r\nab"[..])).unwrap();
        drop(intake);
        // The framing went with one call, the data with the next; what was handed on comes first.
        let mut last = poll_fn(|context| stream.as_mut().poll_chunk(context)).await;
        while let Some(Ok(_)) = last {
            last = poll_fn(|context| stream.as_mut().poll_chunk(context)).await;
        }
        assert!(matches!(last, Some(Err(BodyError::ClientLeft))));
    }

    #[tokio::test]
    async fn a_client_that_waits_for_100_is_told_when_the_first_byte_is_asked_for() {
        let (mut stream, mut intake) = opened(BodyLength::Exact(3), true);
        assert!(!intake.wants_continue() && room(&mut intake).await.is_none());
        poll_fn(|context| {
            assert!(stream.as_mut().poll_chunk(context).is_pending());
            Poll::Ready(())
        })
        .await;
        assert!(intake.wants_continue() && room(&mut intake).await == Some(Room::Open));
    }
}
