//! HTTP/1.1 to upstreams by a codec of our own: the task of the request does everything.
//!
//! There is no task per connection and no channel: the request is written straight from its `Fields`, the head is parsed
//! from the connection's buffer straight into `Fields`, and pieces of the body are slices of what was read. [`exchange`]
//! is the way in, up to the head of the answer; `download` goes on from there. `request` writes heads, `upload` sends,
//! and what comes back is read by `crate::http1::response`, which is pure.
//!
//! Invariant: a connection is used again only if the request was sent and the answer read to the very end, and nothing
//! came after it. An idle one is looked at when it is taken, and now and then.

mod download;
pub(super) mod request;
mod upload;

use super::codec::{self, Answer, Broken, Idle, Order, Reach};
use super::pool::Hold;
use super::wire::Wire;
use super::{Arriving, FetchError, Outbound};
use crate::body::BodyError;
use crate::clock::Alarm;
use crate::http1::response::{BodyEnd, Event, Fault, Head, Reader};
use crate::listener::RequestBody;
use crate::observe::metrics::Dropped;
use bytes::{Buf, Bytes, BytesMut};
use download::Download;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use upload::Upload;

/// Room for the first read of an answer, and what an idle connection may keep.
const READ_BYTES: usize = 8 * 1024;
/// Room for one read of a body: what back-pressure leaves in memory.
const BODY_READ_BYTES: usize = 64 * 1024;
/// Room behind an announced body, so that a byte too many is seen, and that the read says there is no more.
const SURPLUS_BYTES: usize = 64;
/// Less room than this is not worth a read.
const ROOM_MIN: usize = 1024;

/// An open connection to an endpoint. Dropping it closes it.
pub(super) struct Link {
    stream: Wire,
    /// Bytes read and not used yet; empty while it is idle.
    buffer: BytesMut,
    alarm: Alarm,
    /// Worker on whose runtime the socket lives.
    pub(super) home: usize,
    /// In use by another worker, whose runtime the alarm then belongs to.
    abroad: bool,
}

impl Link {
    pub(super) fn new(stream: Wire, home: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), alarm: Alarm::default(), home, abroad: false }
    }

    /// See [`Wire::idle`]: this is what keeps a request off a connection that died a moment ago, and bytes that nobody asked
    /// for from being taken for its answer.
    pub(super) fn idle(&mut self, closely: bool) -> Idle {
        self.stream.idle(closely)
    }

    /// Goes to work for a request of this worker.
    fn rise(&mut self, worker: usize) {
        self.abroad = worker != self.home;
        if self.abroad {
            self.alarm = Alarm::default();
        }
    }

    /// Lets go of what an idle connection has no need for.
    fn rest(&mut self) {
        if self.buffer.capacity() > READ_BYTES {
            self.buffer = BytesMut::new();
        }
        match self.abroad {
            true => self.alarm = Alarm::default(),
            false => self.alarm.release(),
        }
    }
}

/// A request and its answer on a connection.
struct Conversation {
    link: Box<Link>,
    hold: Hold,
    upload: Upload,
    reader: Reader,
    /// Room for the next read of a body whose length is not known; grows while reads fill it.
    room: usize,
    /// Bytes came back.
    answered: bool,
    /// The peer sends no more.
    eof: bool,
}

/// Why reading or sending ended.
enum Trouble {
    /// What came cannot be an answer, or was cut off.
    Fault(Fault),
    /// No end of the connection as it should be.
    Reset,
    /// The client's body failed.
    Client(BodyError),
}

/// Sends a request on this connection and waits for the head of its answer.
///
/// Dropping the future closes the connection.
pub(super) async fn exchange(
    order: &Order<'_>,
    head: Vec<u8>,
    request: &mut Outbound,
    mut link: Box<Link>,
    hold: Hold,
) -> Result<Answer, Broken> {
    link.rise(request.worker);
    let body = std::mem::replace(&mut request.body, RequestBody::Empty);
    let mut talk = Box::new(Conversation {
        link,
        hold,
        upload: Upload::new(head, body, order.began),
        reader: Reader::new(order.asked.clone(), order.limits()),
        room: READ_BYTES,
        answered: false,
        eof: false,
    });
    match poll_fn(|context| talk.poll_head(context, order)).await {
        Ok(head) => Ok(talk.answer(head, order)),
        Err(error) => {
            let reach = talk.reach();
            if reach == Reach::Unwritten {
                request.body = talk.upload.into_request_body();
            }
            Err(Broken { error, reach })
        }
    }
}

impl Conversation {
    fn poll_head(&mut self, context: &mut Context<'_>, order: &Order<'_>) -> Poll<Result<Head, FetchError>> {
        if let Poll::Ready(Err(error)) = self.poll_send(context) {
            return Poll::Ready(Err(FetchError::RequestBody(error)));
        }
        loop {
            match self.poll_event(context) {
                Poll::Ready(Ok((Event::Interim(status, fields), _))) => order.relay(status, fields),
                Poll::Ready(Ok((Event::Final(head), _))) => return Poll::Ready(Ok(head)),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(FetchError::Closed)),
                Poll::Ready(Err(trouble)) => return Poll::Ready(Err(trouble.in_head(order))),
                Poll::Pending => break,
            }
        }
        // An upload takes as long as the client needs for it.
        let Some(since) = self.upload.origin_silent_since() else { return Poll::Pending };
        ready!(self.link.alarm.poll_deadline(context, since + order.terms.first_byte_timeout));
        Poll::Ready(Err(FetchError::ResponseTimeout))
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let sent = self.upload.poll(context, &mut self.link.stream);
        // TLS may hold what the socket did not take; an error shows when the answer is read.
        match Pin::new(&mut self.link.stream).poll_flush(context) {
            Poll::Pending if matches!(sent, Poll::Ready(Ok(()))) => Poll::Pending,
            _ => sent,
        }
    }

    /// What comes next, with the bytes where it is data.
    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<(Event, Bytes), Trouble>> {
        loop {
            if !self.link.buffer.is_empty() || self.reader.is_done() {
                let (taken, event) = self.reader.next(&self.link.buffer).map_err(Trouble::Fault)?;
                match event {
                    Event::More => self.link.buffer.advance(taken),
                    Event::Data(length) => {
                        self.link.buffer.advance(taken - length);
                        let data = self.link.buffer.split_to(length).freeze();
                        return Poll::Ready(Ok((Event::Data(length), data)));
                    }
                    event => {
                        self.link.buffer.advance(taken);
                        return Poll::Ready(Ok((event, Bytes::new())));
                    }
                }
            }
            if self.eof {
                self.reader.close().map_err(Trouble::Fault)?;
                return Poll::Ready(Ok((Event::End, Bytes::new())));
            }
            match ready!(self.poll_read(context)) {
                Ok(0) if self.upload.has_failed() => return Poll::Ready(Err(Trouble::Reset)),
                Ok(0) => self.eof = true,
                Ok(_) => self.answered = true,
                Err(_) => return Poll::Ready(Err(Trouble::Reset)),
            }
        }
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Link { stream, buffer, .. } = &mut *self.link;
        let wanted = match self.reader.left() {
            Some(left) => usize::try_from(left).unwrap_or(usize::MAX).min(BODY_READ_BYTES) + SURPLUS_BYTES,
            None => self.room,
        };
        let spare = buffer.capacity() - buffer.len();
        if spare < wanted.min(ROOM_MIN) || buffer.is_empty() && spare < wanted && wanted > READ_BYTES {
            buffer.reserve(wanted.max(ROOM_MIN));
        }
        let spare = buffer.capacity() - buffer.len();
        let read = ready!(pin!(stream.read_buf(buffer)).poll(context))?;
        if read == spare {
            self.room = (2 * self.room).min(BODY_READ_BYTES);
        }
        Poll::Ready(Ok(read))
    }

    fn reach(&self) -> Reach {
        match (self.answered, self.upload.has_begun()) {
            (true, _) => Reach::Answered,
            (false, true) => Reach::Unanswered,
            (false, false) => Reach::Unwritten,
        }
    }

    /// The head is there: what follows it is a tunnel, a body at hand, a body on its way, or nothing.
    fn answer(mut self: Box<Self>, head: Head, order: &Order<'_>) -> Answer {
        let at = Instant::now();
        if head.status == http::StatusCode::SWITCHING_PROTOCOLS {
            let Self { link, hold, .. } = *self;
            let link = *link;
            let tunnel = Tunnel { early: link.buffer, stream: link.stream, _hold: hold };
            return Answer { head, at, body: None, tunnel: Some(Box::new(tunnel)) };
        }
        if head.status.as_u16() >= 400 && !self.upload.is_done() {
            self.upload.stop(); // RFC 9112 §9.5: cease transmitting the body
        }
        let body = match head.body {
            BodyEnd::None | BodyEnd::Length(0) => {
                self.finish(head.keep, at);
                None
            }
            BodyEnd::Length(length) if length <= self.link.buffer.len() as u64 => {
                let data = self.link.buffer.split_to(length as usize).freeze();
                self.finish(head.keep, at);
                Some(Arriving::Whole(data))
            }
            _ => Some(Arriving::Stream(Box::pin(Download::new(self, head.keep, order.pace())))),
        };
        Answer { head, at, body, tunnel: None }
    }

    /// The answer is whole `now`: keeps the connection at most this long, if it is good for another.
    fn finish(self: Box<Self>, keep: Option<Duration>, now: Instant) {
        let Self { mut link, hold, upload, eof, .. } = *self;
        let Some(keep) = keep else { return };
        if !link.buffer.is_empty() {
            hold.dropped(Dropped::Surplus); // RFC 9112 §6.3: the answer is complete, and what follows is not one
        } else if !upload.is_done() {
            hold.dropped(Dropped::Early);
        } else if !eof {
            link.rest();
            hold.park(codec::Link::Own(link), keep, now);
        }
    }
}

impl Trouble {
    fn in_head(self, order: &Order<'_>) -> FetchError {
        match self {
            Self::Fault(fault) => order.fault(fault),
            Self::Reset => FetchError::Reset,
            Self::Client(error) => FetchError::RequestBody(error),
        }
    }

    const fn in_body(self) -> BodyError {
        match self {
            Self::Fault(Fault::Truncated) => BodyError::Truncated,
            Self::Fault(_) => BodyError::Malformed,
            Self::Reset => BodyError::Reset,
            Self::Client(error) => error,
        }
    }
}

/// The connection after a 101, as bytes; those that came behind the head first. It counts against the cap until it is
/// dropped.
struct Tunnel {
    early: BytesMut,
    stream: Wire,
    _hold: Hold,
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.early.len().min(buffer.remaining());
        buffer.put_slice(&self.early.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tokio::net::TcpStream;

    /// Our end, and the peer's.
    async fn pair() -> (Link, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Link::new(Wire::Plain(stream), 0), listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_closed_or_spoke_is_noticed_at_once_and_by_and_by() {
        let (mut link, mut peer) = pair().await;
        assert_eq!((link.idle(true), link.idle(false)), (Idle::Quiet, Idle::Quiet));
        peer.write_all(b"x").unwrap();
        assert_eq!(link.idle(true), Idle::Spoke);
        link.stream.socket().readable().await.unwrap();
        assert_eq!(link.idle(false), Idle::Spoke);
        let (mut link, peer) = pair().await;
        drop(peer);
        assert_eq!(link.idle(true), Idle::Closed);
        link.stream.socket().readable().await.unwrap();
        assert_eq!(link.idle(false), Idle::Closed);
    }
}
