//! QUIC as h3 wants it, on quinn.
//!
//! What it adds: streams of a client are followed frame by frame, because h3 keeps a frame until it has all of it however long
//! it says it is, and takes the end of a stream in the middle of a DATA frame for the end of a body. A stream of ours that is
//! dropped before its end is reset: quinn would end it in order. Streams that wait for room in their connection get it in the
//! order in which they came (`Queue`). And whoever answers a request can hear that its client has stopped listening.

use bytes::{Buf, Bytes, BytesMut};
use h3::error::Code;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId, WriteBuf};
use parking_lot::Mutex;
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use std::collections::BTreeMap;
use std::io;
use std::mem::take;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use tokio::io::AsyncReadExt;

/// Room for one read.
const READ_BYTES: usize = 16 << 10;
/// Frames of a request that bring nothing: those of no known type, empty ones, heads.
const BARREN_MAX: u32 = 64;
/// Types of frames, and of streams, that are told apart (RFC 9114 §7.2, §6.2).
const DATA: u64 = 0;
const CONTROL: u64 = 0;

type Pending<T> = Option<Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>>;

/// Ready when the client wants nothing more of an answer, or is gone, or has all of it: then true.
pub type Stopped = Pin<Box<dyn Future<Output = bool> + Send>>;

/// The newest request's [`Stopped`], by the id of its stream.
#[derive(Clone, Default)]
pub struct Stops(Arc<Mutex<Option<(u64, Stopped)>>>);

impl Stops {
    /// That of the request that was accepted last.
    pub fn of(&mut self, stream: u64) -> Stopped {
        let newest = self.0.lock().take().filter(|(id, _)| *id == stream);
        newest.map_or_else(|| Box::pin(std::future::pending()) as Stopped, |(_, stopped)| stopped)
    }
}

/// A connection of quinn's.
pub struct Connection {
    quinn: quinn::Connection,
    bidi: Pending<(quinn::SendStream, quinn::RecvStream)>,
    uni: Pending<quinn::RecvStream>,
    opening: Pending<quinn::SendStream>,
    opening_bidi: Pending<(quinn::SendStream, quinn::RecvStream)>,
    /// Bytes of a frame other than DATA; `None`: the other side is trusted.
    frame_max: Option<u64>,
    stops: Stops,
    queue: Arc<Queue>,
}

impl Connection {
    /// The client's side of a connection.
    pub fn new(quinn: quinn::Connection) -> Self {
        let (stops, queue) = (Stops::default(), Arc::default());
        Self { quinn, bidi: None, uni: None, opening: None, opening_bidi: None, frame_max: None, stops, queue }
    }

    /// The server's side: frames other than DATA have at most `frame_max` bytes.
    pub fn guarded(quinn: quinn::Connection, frame_max: u64) -> (Self, Stops, Arc<Queue>) {
        let connection = Self { frame_max: Some(frame_max), ..Self::new(quinn) };
        let (stops, queue) = (connection.stops.clone(), Arc::clone(&connection.queue));
        (connection, stops, queue)
    }
}

fn poll_pending<T>(
    slot: &mut Pending<T>,
    begin: impl FnOnce() -> Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>,
    context: &mut Context<'_>,
) -> Poll<Result<T, ConnectionError>> {
    let result = ready!(slot.get_or_insert_with(begin).as_mut().poll(context));
    *slot = None;
    Poll::Ready(result)
}

impl<B: Buf> quic::Connection<B> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Self;

    fn poll_accept_recv(&mut self, context: &mut Context<'_>) -> Poll<Result<RecvStream, ConnectionErrorIncoming>> {
        let quinn = self.quinn.clone();
        let stream = ready!(poll_pending(&mut self.uni, || Box::pin(async move { quinn.accept_uni().await }), context));
        let guard = self.frame_max.map(Frames::of_stream);
        Poll::Ready(stream.map(|stream| RecvStream::new(stream, guard)).map_err(lost))
    }

    fn poll_accept_bidi(&mut self, context: &mut Context<'_>) -> Poll<Result<BidiStream<B>, ConnectionErrorIncoming>> {
        let quinn = self.quinn.clone();
        let accepted = ready!(poll_pending(&mut self.bidi, || Box::pin(async move { quinn.accept_bi().await }), context));
        let (send, receive) = accepted.map_err(lost)?;
        let stopped = send.stopped();
        *self.stops.0.lock() = Some((u64::from(VarInt::from(send.id())), Box::pin(async move { matches!(stopped.await, Ok(None)) })));
        let receive = RecvStream::new(receive, self.frame_max.map(Frames::of_request));
        Poll::Ready(Ok(BidiStream { send: SendStream::new(send, &self.queue), receive }))
    }

    fn opener(&self) -> Self {
        Self { queue: Arc::clone(&self.queue), ..Self::new(self.quinn.clone()) }
    }
}

impl<B: Buf> quic::OpenStreams<B> for Connection {
    type BidiStream = BidiStream<B>;
    type SendStream = SendStream<B>;

    fn poll_open_bidi(&mut self, context: &mut Context<'_>) -> Poll<Result<BidiStream<B>, StreamErrorIncoming>> {
        let quinn = self.quinn.clone();
        let opened = ready!(poll_pending(&mut self.opening_bidi, || Box::pin(async move { quinn.open_bi().await }), context));
        let (send, receive) = opened.map_err(of_connection)?;
        Poll::Ready(Ok(BidiStream { send: SendStream::new(send, &self.queue), receive: RecvStream::new(receive, None) }))
    }

    fn poll_open_send(&mut self, context: &mut Context<'_>) -> Poll<Result<SendStream<B>, StreamErrorIncoming>> {
        let quinn = self.quinn.clone();
        let opened = ready!(poll_pending(&mut self.opening, || Box::pin(async move { quinn.open_uni().await }), context));
        Poll::Ready(opened.map(|send| SendStream::new(send, &self.queue)).map_err(of_connection))
    }

    fn close(&mut self, code: Code, reason: &[u8]) {
        self.quinn.close(VarInt::from_u64(code.value()).unwrap_or(VarInt::MAX), reason);
    }
}

/// Both directions of a request's stream.
pub struct BidiStream<B: Buf> {
    send: SendStream<B>,
    receive: RecvStream,
}

impl<B: Buf> quic::BidiStream<B> for BidiStream<B> {
    type SendStream = SendStream<B>;
    type RecvStream = RecvStream;

    fn split(self) -> (SendStream<B>, RecvStream) {
        (self.send, self.receive)
    }
}

impl<B: Buf> quic::RecvStream for BidiStream<B> {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.receive.poll_data(context)
    }

    fn stop_sending(&mut self, code: u64) {
        self.receive.stop_sending(code);
    }

    fn recv_id(&self) -> StreamId {
        self.receive.recv_id()
    }
}

impl<B: Buf> quic::SendStream<B> for BidiStream<B> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(context)
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(context)
    }

    fn reset(&mut self, code: u64) {
        self.send.reset(code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

pub struct RecvStream {
    stream: quinn::RecvStream,
    buffer: BytesMut,
    guard: Option<Frames>,
}

impl RecvStream {
    fn new(stream: quinn::RecvStream, guard: Option<Frames>) -> Self {
        Self { stream, buffer: BytesMut::new(), guard }
    }
}

impl quic::RecvStream for RecvStream {
    type Buf = Bytes;

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamErrorIncoming>> {
        self.buffer.reserve(READ_BYTES);
        let read = ready!(pin!(self.stream.read_buf(&mut self.buffer)).poll(context));
        let length = read.map_err(unread)?;
        let data = self.buffer.split_to(length).freeze();
        if let Some(guard) = &mut self.guard {
            let fits = if data.is_empty() { guard.is_between_frames() } else { guard.scan(&data) };
            if !fits {
                let code = if data.is_empty() { Code::H3_REQUEST_INCOMPLETE } else { Code::H3_EXCESSIVE_LOAD };
                self.stop_sending(code.value());
                return Poll::Ready(Err(StreamErrorIncoming::StreamTerminated { error_code: code.value() }));
            }
        }
        Poll::Ready(Ok((!data.is_empty()).then_some(data)))
    }

    fn stop_sending(&mut self, code: u64) {
        _ = self.stream.stop(VarInt::from_u64(code).unwrap_or(VarInt::MAX)); // an error: it has ended
    }

    fn recv_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

/// Streams of a connection that wait for room, in the order in which they came.
///
/// quinn wakes all of them at once, the last one first, and what is woken first takes what room there is: of many, those in the
/// middle would never get any. Here whoever has waited longest is woken first. Who needs no room but what its own window gives is
/// woken with the others, and waits on.
#[derive(Default)]
pub struct Queue {
    places: Mutex<Places>,
    /// Bytes that there was room for.
    taken: AtomicU64,
}

#[derive(Default)]
struct Places {
    given_out: u64,
    waiting: BTreeMap<u64, Waker>,
}

impl Queue {
    /// Bytes of all streams for which there was room so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Waits, at a place that it may have already.
    fn wait(&self, place: &mut Option<u64>, context: &Context<'_>) {
        let mut places = self.places.lock();
        let place = *place.get_or_insert_with(|| {
            places.given_out += 1;
            places.given_out
        });
        places.waiting.insert(place, context.waker().clone());
    }

    /// Waits no more, and has no place any more.
    fn leave(&self, place: &mut Option<u64>) {
        if let Some(place) = place.take() {
            self.places.lock().waiting.remove(&place);
        }
    }
}

impl Wake for Queue {
    fn wake(self: Arc<Self>) {
        let waiting = take(&mut self.places.lock().waiting);
        waiting.into_values().for_each(Waker::wake);
    }
}

pub struct SendStream<B: Buf> {
    stream: quinn::SendStream,
    writing: Option<WriteBuf<B>>,
    is_finished: bool,
    queue: Arc<Queue>,
    /// Wakes the queue.
    room: Waker,
    /// In the queue, until all of what is being written is.
    place: Option<u64>,
}

impl<B: Buf> SendStream<B> {
    fn new(stream: quinn::SendStream, queue: &Arc<Queue>) -> Self {
        let room = Waker::from(Arc::clone(queue));
        Self { stream, writing: None, is_finished: false, queue: Arc::clone(queue), room, place: None }
    }

    fn poll_write(&mut self, context: &Context<'_>) -> Poll<Result<usize, WriteError>> {
        let Some(data) = &self.writing else { return Poll::Ready(Ok(0)) };
        let (stream, mut room) = (&mut self.stream, Context::from_waker(&self.room));
        let written = Pin::new(&mut *stream).poll_write(&mut room, data.chunk());
        if written.is_ready() {
            return written;
        }
        self.queue.wait(&mut self.place, context);
        // There may have been room before it stood in the queue.
        Pin::new(stream).poll_write(&mut room, data.chunk())
    }
}

impl<B: Buf> quic::SendStream<B> for SendStream<B> {
    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        while self.writing.as_ref().is_some_and(Buf::has_remaining) {
            let written = ready!(self.poll_write(context)).map_err(unwritten)?;
            if let Some(data) = &mut self.writing {
                data.advance(written);
                self.queue.taken.fetch_add(written as u64, Ordering::Relaxed);
            }
        }
        self.writing = None;
        self.queue.leave(&mut self.place);
        Poll::Ready(Ok(()))
    }

    fn send_data<T: Into<WriteBuf<B>>>(&mut self, data: T) -> Result<(), StreamErrorIncoming> {
        if self.writing.is_some() {
            let connection_error = ConnectionErrorIncoming::InternalError("a piece is still being written".to_owned());
            return Err(StreamErrorIncoming::ConnectionErrorIncoming { connection_error });
        }
        self.writing = Some(data.into());
        Ok(())
    }

    fn poll_finish(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.is_finished = true;
        Poll::Ready(self.stream.finish().map_err(|error| StreamErrorIncoming::Unknown(Box::new(error))))
    }

    fn reset(&mut self, code: u64) {
        self.is_finished = true;
        _ = self.stream.reset(VarInt::from_u64(code).unwrap_or(VarInt::MAX)); // an error: it has ended
    }

    fn send_id(&self) -> StreamId {
        id(self.stream.id())
    }
}

impl<B: Buf> Drop for SendStream<B> {
    fn drop(&mut self) {
        self.queue.leave(&mut self.place);
        if !self.is_finished {
            quic::SendStream::<B>::reset(self, Code::H3_REQUEST_CANCELLED.value());
        }
    }
}

fn id(id: quinn::StreamId) -> StreamId {
    u64::from(VarInt::from(id)).try_into().expect("both are of 62 bits")
}

fn lost(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose { error_code: close.error_code.into() },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        error => ConnectionErrorIncoming::Undefined(Arc::new(error)),
    }
}

fn of_connection(error: ConnectionError) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error: lost(error) }
}

fn unread(error: io::Error) -> StreamErrorIncoming {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<ReadError>()) {
        Some(ReadError::Reset(code)) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        Some(ReadError::ConnectionLost(error)) => of_connection(error.clone()),
        _ => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

fn unwritten(error: WriteError) -> StreamErrorIncoming {
    match error {
        WriteError::Stopped(code) => StreamErrorIncoming::StreamTerminated { error_code: code.into_inner() },
        WriteError::ConnectionLost(error) => of_connection(error),
        error => StreamErrorIncoming::Unknown(Box::new(error)),
    }
}

/// Follows the frames of a stream (RFC 9114 §7.1): a type, a length, as many bytes.
#[derive(Debug)]
struct Frames {
    /// Bytes of a frame other than DATA.
    max: u64,
    head: [u8; 16],
    have: usize,
    /// Bytes of the present frame that are to come.
    left: u64,
    /// Frames that may still bring nothing; `None`: any number.
    barren: Option<u32>,
    kind: Kind,
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Its type comes first.
    Unknown,
    Frames,
    /// It has no frames: those of QPACK, and of no known type. h3 does not read on there.
    Other,
}

impl Frames {
    fn of_request(max: u64) -> Self {
        Self { max, head: [0; 16], have: 0, left: 0, barren: Some(BARREN_MAX), kind: Kind::Frames }
    }

    fn of_stream(max: u64) -> Self {
        Self { barren: None, kind: Kind::Unknown, ..Self::of_request(max) }
    }

    fn is_between_frames(&self) -> bool {
        self.kind != Kind::Frames || self.have == 0 && self.left == 0
    }

    /// False where a frame is too long, or too many bring nothing.
    fn scan(&mut self, mut bytes: &[u8]) -> bool {
        while self.kind != Kind::Other && !bytes.is_empty() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.head[self.have] = bytes[0];
            self.have += 1;
            bytes = &bytes[1..];
            let Some((kind, used)) = varint(&self.head[..self.have]) else { continue };
            if self.kind == Kind::Unknown {
                self.kind = if kind == CONTROL { Kind::Frames } else { Kind::Other };
                self.have = 0;
                continue;
            }
            let Some((length, _)) = varint(&self.head[used..self.have]) else { continue };
            (self.have, self.left) = (0, length);
            if kind != DATA && length > self.max || !self.may_begin(kind == DATA && length > 0) {
                return false;
            }
        }
        true
    }

    fn may_begin(&mut self, brings_something: bool) -> bool {
        match &mut self.barren {
            Some(barren) if !brings_something => barren.checked_sub(1).map(|left| *barren = left).is_some(),
            _ => true,
        }
    }
}

/// A number of RFC 9000 §16 at the beginning of these bytes, and how many it takes.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let length = 1 << (bytes.first()? >> 6);
    let digits = bytes.get(..length)?;
    let first = u64::from(digits[0] & 0x3f);
    Some((digits[1..].iter().fold(first, |number, digit| number << 8 | u64::from(*digit)), length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_has_waited_longest_is_woken_first_and_keeps_its_place_until_it_leaves() {
        struct Named(&'static str, Arc<Mutex<Vec<&'static str>>>);
        impl Wake for Named {
            fn wake(self: Arc<Self>) {
                self.1.lock().push(self.0);
            }
        }
        let (queue, woken) = (Arc::new(Queue::default()), Arc::new(Mutex::new(Vec::new())));
        let wait = |place: &mut Option<u64>, name| {
            queue.wait(place, &Context::from_waker(&Arc::new(Named(name, Arc::clone(&woken))).into()));
        };
        let (mut a, mut b, mut c) = (None, None, None);
        for (place, name) in [(&mut a, "a"), (&mut b, "b"), (&mut c, "c")] {
            wait(place, name);
        }
        Arc::clone(&queue).wake();
        Arc::clone(&queue).wake();
        assert_eq!(take(&mut *woken.lock()), ["a", "b", "c"], "once each");
        // One gets what it wants, and wants more; the others wait on.
        queue.leave(&mut a);
        for (place, name) in [(&mut c, "c"), (&mut a, "a"), (&mut b, "b")] {
            wait(place, name);
        }
        queue.leave(&mut c);
        Arc::clone(&queue).wake();
        assert_eq!(*woken.lock(), ["b", "a"]);
    }

    #[test]
    fn numbers_are_read_as_in_the_rfc() {
        for (bytes, number) in [
            (&[0x25][..], 37),
            (&[0x40, 0x25], 37),
            (&[0x7b, 0xbd], 15_293),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
        ] {
            assert_eq!(varint(bytes), Some((number, bytes.len())));
            assert_eq!(varint(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn frames_that_are_too_long_or_bring_nothing_are_too_much() {
        let head = |kind: u8, length: [u8; 2]| [kind, length[0], length[1]];
        assert!(Frames::of_request(100).scan(&head(1, [0x40, 100])));
        assert!(!Frames::of_request(100).scan(&head(1, [0x40, 101])), "HEADERS");
        assert!(!Frames::of_request(100).scan(&head(0x21, [0x40, 101])), "of no known type");
        assert!(Frames::of_request(100).scan(&head(0, [0x7f, 255])), "DATA may be as long as it likes");
        assert!(Frames::of_request(100).scan(&[0x21, 0].repeat(64)) && !Frames::of_request(100).scan(&[0x21, 0].repeat(65)));
        assert!(!Frames::of_request(100).scan(&[0, 0].repeat(65)));
        assert!(Frames::of_stream(100).scan(&[&[0][..], &[0x21, 0].repeat(1000)].concat()), "the control stream");
        assert!(!Frames::of_stream(100).scan(&[&[0][..], &head(4, [0x40, 101])].concat()));
        assert!(Frames::of_stream(100).scan(&[&[2][..], &head(4, [0x40, 101])].concat()), "one of QPACK has no frames");
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(lengths in prop::collection::vec(0u8..64, 1..20), cut in 1usize..9) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| [&[0, *length][..], &vec![7; usize::from(*length)]].concat()).collect();
            let mut frames = Frames::of_request(10);
            for piece in bytes.chunks(cut) {
                prop_assert!(frames.scan(piece));
            }
            prop_assert!(frames.is_between_frames());
            frames.scan(&[0, 5, 1]);
            prop_assert!(!frames.is_between_frames());
        }
    }
}
