//! A request on its way up: its head, and its body as the client sends it.

use crate::body::{Again, BodyError, BodyStream, Chunk};
use crate::http1::chunked::begin_chunk;
use crate::listener::RequestBody;
use bytes::{Buf, Bytes};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

/// What is left of a request. A piece is taken from the client only when the one before is written, so the origin's
/// pace is the client's. Trailers of requests end here (RFC 9110 §6.5.1 allows it).
pub(super) struct Upload {
    /// The head; later the line that begins a chunk, or the end of the last.
    lead: Vec<u8>,
    lead_written: usize,
    piece: Bytes,
    tail: &'static [u8],
    /// `None` once there is no more to come.
    source: Option<Pin<Box<dyn BodyStream>>>,
    /// Bytes that the source has still to give, where that is known; else they go out in chunks.
    left: Option<u64>,
    /// The client was asked for the first piece, which goes out together with the head if it is there.
    asked: bool,
    /// At least a byte went out.
    begun: bool,
    /// A write failed. That does not end the exchange: an origin that refuses an upload early answers, closes, and
    /// resets what still comes in, and its answer is there to be read. Nothing more is written.
    failed: bool,
    /// Since when it has been the origin's turn; `None` while it is the client's.
    since: Option<Instant>,
}

impl Upload {
    pub(super) fn new(head: Vec<u8>, body: RequestBody, now: Instant) -> Self {
        let (left, source, piece) = match body {
            RequestBody::Empty | RequestBody::Stream { length: Some(0), .. } => (Some(0), None, Bytes::new()),
            RequestBody::Full(bytes) => (Some(0), None, bytes),
            RequestBody::Stream { length, stream } => (length, Some(stream), Bytes::new()),
        };
        Self { lead: head, lead_written: 0, piece, tail: b"", source, left, asked: false, begun: false, failed: false, since: Some(now) }
    }

    /// Moves it on as far as client and origin allow. Ready when all of it is written, or with what went wrong on the
    /// client's side.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, stream: &mut (impl AsyncWrite + Unpin)) -> Poll<Result<(), BodyError>> {
        if self.failed {
            return Poll::Pending;
        }
        if !std::mem::replace(&mut self.asked, true)
            && let Some(source) = &mut self.source
            && let Poll::Ready(chunk) = source.as_mut().poll_chunk(context)
        {
            self.take(chunk)?;
        }
        loop {
            while !self.is_flushed() {
                if ready!(self.poll_write(context, stream)).is_err() {
                    self.stop();
                    return Poll::Pending;
                }
            }
            let Some(source) = &mut self.source else { return Poll::Ready(Ok(())) };
            match source.as_mut().poll_chunk(context) {
                Poll::Ready(chunk) => self.take(chunk)?,
                Poll::Pending => {
                    self.since = None;
                    return Poll::Pending;
                }
            }
        }
    }

    /// Sends nothing more.
    pub(super) fn stop(&mut self) {
        self.failed = true;
        self.since.get_or_insert_with(Instant::now);
        if self.begun {
            self.source = None;
        }
    }

    /// Every byte is written.
    pub(super) fn is_done(&self) -> bool {
        !self.failed && self.source.is_none() && self.is_flushed()
    }

    pub(super) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether writing was given up, so that an end of the connection is not known to be an orderly one: the failed
    /// write took the socket's error with it.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Since when the origin has let us wait; `None` while it is the client's turn.
    pub(super) fn origin_silent_since(&self) -> Option<Instant> {
        self.since
    }

    /// The body again, of a request of which nothing was sent.
    pub(super) fn into_request_body(self) -> RequestBody {
        let length = self.left.map(|left| left + self.piece.len() as u64);
        match (self.source, self.piece) {
            (None, piece) if piece.is_empty() => RequestBody::Empty,
            (rest, piece) => RequestBody::Stream { length, stream: Box::pin(Again { first: Some(piece), rest }) },
        }
    }

    fn is_flushed(&self) -> bool {
        self.lead_written == self.lead.len() && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Frames what the client sent.
    fn take(&mut self, chunk: Option<Result<Chunk, BodyError>>) -> Result<(), BodyError> {
        self.since = Some(Instant::now());
        if self.lead_written == self.lead.len() {
            self.lead.clear();
            self.lead_written = 0;
        }
        match (chunk, &mut self.left) {
            (Some(Ok(Chunk::Data(data))), _) if data.is_empty() => {}
            (Some(Ok(Chunk::Data(data))), Some(left)) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyError::Malformed)?;
                if *left == 0 {
                    self.source = None;
                }
                self.piece = data;
            }
            (Some(Ok(Chunk::Data(data))), None) => {
                begin_chunk(&mut self.lead, data.len());
                (self.piece, self.tail) = (data, b"\r\n");
            }
            (Some(Ok(Chunk::Trailers(_))) | None, Some(1..)) => return Err(BodyError::Truncated),
            (Some(Ok(Chunk::Trailers(_))) | None, left) => {
                if left.is_none() {
                    self.lead.extend_from_slice(b"0\r\n\r\n");
                }
                self.source = None;
            }
            (Some(Err(error)), _) => return Err(error),
        }
        Ok(())
    }

    fn poll_write(&mut self, context: &mut Context<'_>, stream: &mut (impl AsyncWrite + Unpin)) -> Poll<io::Result<()>> {
        let lead = &self.lead[self.lead_written..];
        let stream = Pin::new(stream);
        let written = if self.piece.is_empty() && self.tail.is_empty() {
            ready!(stream.poll_write(context, lead))?
        } else {
            let slices = [IoSlice::new(lead), IoSlice::new(&self.piece), IoSlice::new(self.tail)];
            ready!(stream.poll_write_vectored(context, &slices))?
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.begun = true;
        let of_lead = written.min(lead.len());
        self.lead_written += of_lead;
        let of_piece = (written - of_lead).min(self.piece.len());
        self.piece.advance(of_piece);
        self.tail = &self.tail[written - of_lead - of_piece..];
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::future::poll_fn;
    use std::time::Duration;
    use tokio::net::TcpStream;

    struct Pieces(Vec<Bytes>);

    impl BodyStream for Pieces {
        fn poll_chunk(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
            let next = (!self.0.is_empty()).then(|| Ok(Chunk::Data(self.0.remove(0))));
            Poll::Ready(next)
        }
    }

    #[tokio::test]
    async fn a_request_of_which_nothing_was_written_has_its_body_back() {
        for length in [Some(4), None] {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let peer = listener.accept().unwrap().0;
            SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            drop(peer);
            stream.readable().await.unwrap(); // the reset is here
            let body = RequestBody::Stream { length, stream: Box::pin(Pieces(vec![Bytes::from_static(b"bo"), Bytes::from_static(b"dy")])) };
            let mut upload = Upload::new(b"POST / HTTP/1.1\r\n\r\n".to_vec(), body, Instant::now());
            poll_fn(|context| {
                assert!(upload.poll(context, &mut stream).is_pending());
                Poll::Ready(())
            })
            .await;
            assert!(upload.has_failed() && !upload.has_begun() && !upload.is_done());
            let RequestBody::Stream { length: again, mut stream } = upload.into_request_body() else { panic!("no body") };
            let mut body = Vec::new();
            while let Some(Ok(Chunk::Data(data))) = poll_fn(|context| stream.as_mut().poll_chunk(context)).await {
                body.extend_from_slice(&data);
            }
            assert_eq!((again, &body[..]), (length, &b"body"[..]));
        }
    }
}
