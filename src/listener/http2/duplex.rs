//! A stream that became a tunnel, both ways.

use crate::http2;
use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use parking_lot::Mutex;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(super) struct Duplex {
    incoming: RecvStream,
    /// Whoever waits for a reset has it, too.
    outgoing: Arc<Mutex<SendStream<Bytes>>>,
    /// Came, and was not read yet.
    unread: Bytes,
}

impl Duplex {
    pub const fn new(incoming: RecvStream, outgoing: Arc<Mutex<SendStream<Bytes>>>) -> Self {
        Self { incoming, outgoing, unread: Bytes::new() }
    }
}

impl AsyncRead for Duplex {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.unread.is_empty() {
            match ready!(this.incoming.poll_data(context)) {
                None => return Poll::Ready(Ok(())),
                Some(data) => this.unread = data.map_err(io::Error::other)?,
            }
        }
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        _ = this.incoming.flow_control().release_capacity(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut outgoing = self.outgoing.lock();
        let Some(room) = ready!(http2::poll_room(&mut outgoing, bytes.len(), context)) else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let length = room.min(bytes.len());
        outgoing.send_data(Bytes::copy_from_slice(&bytes[..length]), false).map_err(io::Error::other)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // the connection sends as the client takes it
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.outgoing.lock().send_data(Bytes::new(), true).map_err(io::Error::other))
    }
}
