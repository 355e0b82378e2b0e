//! The socket of a connection to an endpoint, with what hyper does not tell: whether anything came back, whether the
//! peer is still there, and how the bytes ended.

use parking_lot::Mutex;
use rustix::net::RecvFlags;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What the holder of a connection shares with its driver.
#[derive(Debug)]
pub(super) struct Wire {
    /// `None` once the driver is gone: the descriptor is closed then and not when the last holder notices.
    stream: Mutex<Option<TcpStream>>,
    /// Bytes came since [`Wire::begin`].
    answered: AtomicBool,
    write_failed: AtomicBool,
    flooded: AtomicBool,
    tunnel: AtomicBool,
}

impl Wire {
    /// The shared part, and the driver's end of it.
    pub(super) fn new(stream: TcpStream) -> (Arc<Self>, Socket) {
        let wire = Arc::new(Self {
            stream: Mutex::new(Some(stream)),
            answered: AtomicBool::new(false),
            write_failed: AtomicBool::new(false),
            flooded: AtomicBool::new(false),
            tunnel: AtomicBool::new(false),
        });
        (wire.clone(), Socket(wire))
    }

    /// An exchange begins.
    pub(super) fn begin(&self) {
        self.answered.store(false, Ordering::Release);
    }

    /// Whether any byte came back since the exchange began.
    pub(super) fn answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }

    /// More interim responses came than are taken.
    pub(super) fn set_flooded(&self) {
        self.flooded.store(true, Ordering::Release);
    }

    pub(super) fn flooded(&self) -> bool {
        self.flooded.load(Ordering::Acquire)
    }

    /// HTTP has ended here: a failed write is now the error that it is.
    pub(super) fn becomes_tunnel(&self) {
        self.tunnel.store(true, Ordering::Release);
    }

    /// Whether the peer neither closed nor sent anything. Asks the kernel, because the runtime may not have read yet
    /// what arrived already: this is what keeps a request off a connection that died a moment ago.
    pub(super) fn is_quiet(&self) -> bool {
        let stream = self.stream.lock();
        let Some(stream) = stream.as_ref() else { return false };
        let peeked = rustix::net::recv(stream, &mut [0u8; 1][..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

/// The driver's end.
///
/// A write that fails does not end the connection: an origin that refuses an upload early answers, closes, and resets
/// what still comes in, and its answer is there to be read. So after a failed write nothing more is written, and reading
/// goes on; but an end of file is then reported as a reset, because the failed write took the socket's error with it
/// and an orderly end can no longer be told from it.
#[derive(Debug)]
pub(super) struct Socket(Arc<Wire>);

impl Socket {
    fn write_with(&self, write: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if self.0.write_failed.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        match self.with(write) {
            Poll::Ready(Err(_)) if !self.0.tunnel.load(Ordering::Acquire) => {
                self.0.write_failed.store(true, Ordering::Release);
                Poll::Pending
            }
            written => written,
        }
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match self.0.stream.lock().as_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (room, before) = (buffer.remaining(), buffer.filled().len());
        let read = self.with(|stream| stream.poll_read(context, buffer));
        if let Poll::Ready(Ok(())) = read {
            if buffer.filled().len() > before {
                self.0.answered.store(true, Ordering::Release);
            } else if room > 0 && self.0.write_failed.load(Ordering::Acquire) {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write_with(|stream| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.write_with(|stream| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(context))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let stream = self.0.stream.lock().take();
        drop(stream);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::SockRef;
    use std::future::poll_fn;
    use std::io::Write;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;

    /// Our end, and the peer's.
    async fn pair() -> (Arc<Wire>, Socket, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (wire, socket) = Wire::new(stream);
        (wire, socket, listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn what_came_before_a_failed_write_is_read_and_then_no_end_is_orderly() {
        let (wire, mut socket, mut peer) = pair().await;
        peer.write_all(b"early answer").unwrap();
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        poll_fn(|context| {
            let written = Pin::new(&mut socket).poll_write(context, b"request body");
            assert!(!matches!(written, Poll::Ready(Err(_))));
            if written.is_ready() {
                context.waker().wake_by_ref(); // the reset is not here yet
            }
            if wire.write_failed.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"early answer");
        let end = socket.read(&mut answer).await.map_err(|error| error.kind());
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
        assert!(wire.answered());
    }

    #[tokio::test]
    async fn a_peer_that_closed_or_spoke_is_not_quiet() {
        let (wire, socket, mut peer) = pair().await;
        assert!(wire.is_quiet());
        peer.write_all(b"x").unwrap();
        assert!(!wire.is_quiet());
        let (other, _socket, peer) = pair().await;
        drop(peer);
        assert!(!other.is_quiet());
        drop(socket);
        assert!(!wire.is_quiet());
    }
}
