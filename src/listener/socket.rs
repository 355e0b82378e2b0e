//! The sockets of clients, as the connections on them need them.
//!
//! [`ClientSocket`] asks the kernel first and the runtime later: a client that connects, asks once and leaves has its
//! request there by the time it is accepted, and takes its answer at once; to register its socket with epoll and to
//! take it out again would be a good part of what it costs.

use crate::pages::Place;
use bytes::Bytes;
use rustix::net::SendFlags;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream as Plain};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, Interest, ReadBuf};
use tokio::net::TcpStream;

/// What a connection is served on.
pub trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Makes closing tell the client that the last answer did not end as it should. Nothing where there is no such way.
    fn reset_on_close(&self) {}

    /// Whether [`Socket::poll_send`] does anything.
    const TAKES_PAGES: bool = false;

    /// Sends `lead` and then what stands at `place`, as much as the socket takes; says how many bytes of both.
    fn poll_send(&mut self, _: &mut Context<'_>, _lead: &[u8], _place: Place<'_>) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

impl Socket for DuplexStream {}

/// A socket of which something was read that somebody else is to read: it comes first.
#[derive(Debug)]
pub struct Unread<S> {
    first: Bytes,
    socket: S,
}

impl<S> Unread<S> {
    pub const fn new(first: Bytes, socket: S) -> Self {
        Self { first, socket }
    }
}

impl<S: Socket> Socket for Unread<S> {
    fn reset_on_close(&self) {
        self.socket.reset_on_close();
    }
}

impl<S: Socket> AsyncRead for Unread<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        }
        let length = self.first.len().min(buffer.remaining());
        buffer.put_slice(&self.first.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<S: Socket> AsyncWrite for Unread<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// A TCP socket of a client.
#[derive(Debug)]
pub struct ClientSocket(State);

#[derive(Debug)]
enum State {
    /// Nothing had to be waited for yet.
    Plain(Plain),
    Registered(TcpStream),
    /// Registering failed.
    Broken,
}

impl ClientSocket {
    /// `socket` does not block.
    pub fn new(socket: Plain) -> Self {
        Self(State::Plain(socket))
    }

    /// What `attempt` comes to if it need not wait; else the socket is registered from then on.
    fn at_once<T>(&mut self, attempt: impl FnOnce(&mut Plain) -> io::Result<T>) -> Option<io::Result<T>> {
        let State::Plain(socket) = &mut self.0 else { return None };
        match attempt(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.register().err().map(Err),
            done => Some(done),
        }
    }

    fn register(&mut self) -> io::Result<()> {
        if let State::Plain(socket) = std::mem::replace(&mut self.0, State::Broken) {
            self.0 = State::Registered(TcpStream::from_std(socket)?);
        }
        Ok(())
    }

    fn registered(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match &mut self.0 {
            State::Registered(stream) => Ok(Pin::new(stream)),
            State::Plain(_) | State::Broken => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl From<TcpStream> for ClientSocket {
    fn from(stream: TcpStream) -> Self {
        Self(State::Registered(stream))
    }
}

impl Socket for ClientSocket {
    fn reset_on_close(&self) {
        let _ = match &self.0 {
            State::Plain(socket) => socket2::SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO)),
            State::Registered(stream) => stream.set_zero_linger(),
            State::Broken => Ok(()),
        };
    }

    const TAKES_PAGES: bool = true;

    fn poll_send(&mut self, context: &mut Context<'_>, lead: &[u8], place: Place<'_>) -> Poll<io::Result<usize>> {
        if let Some(done) = self.at_once(|socket| send(socket, lead, place)) {
            return Poll::Ready(done);
        }
        let stream = self.registered()?;
        loop {
            ready!(stream.poll_write_ready(context))?;
            match stream.try_io(Interest::WRITABLE, || send(&*stream, lead, place)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

/// The kernel is told that more follows `lead`, so that a head does not travel alone.
fn send(socket: impl AsFd, lead: &[u8], place: Place<'_>) -> io::Result<usize> {
    if lead.is_empty() {
        return place.send(socket);
    }
    let sent = rustix::net::send(&socket, lead, SendFlags::MORE | SendFlags::NOSIGNAL)?;
    if sent < lead.len() {
        return Ok(sent);
    }
    match place.send(socket) {
        Ok(more) => Ok(sent + more),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(sent),
        Err(error) => Err(error),
    }
}

impl AsyncRead for ClientSocket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = |socket: &mut Plain| {
            let read = socket.read(buffer.initialize_unfilled())?;
            buffer.advance(read);
            Ok(())
        };
        match self.at_once(room) {
            Some(done) => Poll::Ready(done),
            None => self.registered()?.poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ClientSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.at_once(|socket| socket.write(bytes)) {
            Some(done) => Poll::Ready(done),
            None => self.registered()?.poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.at_once(|socket| socket.write_vectored(slices)) {
            Some(done) => Poll::Ready(done),
            None => self.registered()?.poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // TCP has nothing to flush
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.at_once(|socket| socket.shutdown(Shutdown::Write)) {
            Some(done) => Poll::Ready(done),
            None => self.registered()?.poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn pair() -> (Plain, ClientSocket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = Plain::connect(listener.local_addr().unwrap()).unwrap();
        let (socket, _) = listener.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        (client, ClientSocket::new(socket))
    }

    #[tokio::test]
    async fn what_is_there_is_read_and_answered_without_the_runtime() {
        let (mut client, mut socket) = pair();
        client.write_all(b"ask").unwrap();
        let mut asked = [0; 3];
        socket.read_exact(&mut asked).await.unwrap();
        socket.write_all(b"answer").await.unwrap();
        assert!(matches!(socket.0, State::Plain(_)));
        socket.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!((&asked, &answer[..]), (b"ask", "answer"));
    }

    #[tokio::test]
    async fn what_comes_later_is_waited_for() {
        let (mut client, mut socket) = pair();
        let mut asked = [0; 3];
        let read = tokio::spawn(async move {
            socket.read_exact(&mut asked).await.unwrap();
            (asked, matches!(socket.0, State::Registered(_)))
        });
        tokio::task::yield_now().await;
        client.write_all(b"ask").unwrap();
        assert_eq!(read.await.unwrap(), (*b"ask", true));
    }

    #[tokio::test]
    async fn a_reset_is_no_orderly_end() {
        for registered in [false, true] {
            let (mut client, mut socket) = pair();
            if registered {
                socket.register().unwrap();
            }
            socket.reset_on_close();
            drop(socket);
            let error = client.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
