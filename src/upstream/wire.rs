//! The bytes of a connection to an endpoint: as they are, or through TLS.
//!
//! An end without close_notify is an error to whoever reads through TLS: a body that only the end delimits is not whole then.

use super::FetchError;
use super::codec::Idle;
use crate::clock;
use crate::tls::ALPN_HTTP2;
use crate::tls::client::{Client, Failure};
use rustix::net::RecvFlags;
use std::io::{self, IoSlice, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) enum Wire {
    Plain(TcpStream),
    Secure(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Shakes hands; `host`: that of the endpoint.
    pub(crate) async fn secure(stream: TcpStream, client: &Client, host: &str, deadline: Instant) -> Result<Self, FetchError> {
        let name = client.name(host).ok_or_else(|| FetchError::TlsCertificate(format!("{host} is no name that a certificate may have")))?;
        let shown = name.to_str().into_owned();
        let connect = TlsConnector::from(std::sync::Arc::clone(&client.config)).connect(name, stream);
        match clock::timeout_at(deadline, connect).await {
            Err(_) => Err(FetchError::ConnectTimeout),
            Ok(Ok(stream)) => Ok(Self::Secure(Box::new(stream))),
            Ok(Err(error)) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(error) => Failure::of(error, &shown).into(),
                None => FetchError::TlsProtocol(format!("{shown} ended the connection during the handshake: {error}")),
            }),
        }
    }

    /// Whether HTTP/2 was chosen (ALPN); in plain text nothing is.
    pub(crate) fn chose_http2(&self) -> bool {
        matches!(self, Self::Secure(stream) if stream.get_ref().1.alpn_protocol() == Some(ALPN_HTTP2))
    }

    /// Whether the peer neither closed nor sent anything. `closely` asks the kernel, because the runtime may not have
    /// noticed yet what arrived already.
    pub(super) fn idle(&mut self, closely: bool) -> Idle {
        let mut byte = [0];
        match self {
            Self::Plain(stream) if closely => idle(peek(stream, &mut byte)),
            Self::Plain(stream) => idle(stream.try_read(&mut byte)),
            Self::Secure(stream) => {
                let (socket, session) = stream.get_mut();
                // Tickets for sessions to come arrive when the peer likes: they are no answer.
                while let Ok(1..) = peek(socket, &mut byte) {
                    let read = session.read_tls(&mut Kernel(socket));
                    match session.process_new_packets() {
                        Ok(state) if read.is_ok() && state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed() => {}
                        Ok(state) if state.plaintext_bytes_to_read() > 0 => return Idle::Spoke,
                        _ => return Idle::Closed,
                    }
                }
                idle(peek(socket, &mut byte))
            }
        }
    }

    #[cfg(test)]
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Secure(stream) => stream.get_ref().0,
        }
    }
}

fn peek(socket: &TcpStream, byte: &mut [u8; 1]) -> io::Result<usize> {
    Ok(rustix::net::recv(socket, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?.1)
}

fn idle(heard: io::Result<usize>) -> Idle {
    match heard {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Idle::Quiet,
        Ok(1..) => Idle::Spoke,
        Ok(0) | Err(_) => Idle::Closed,
    }
}

/// Reads from a socket without asking the runtime.
struct Kernel<'a>(&'a TcpStream);

impl Read for Kernel<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(self.0, buffer, RecvFlags::DONTWAIT)?.1)
    }
}

impl From<Failure> for FetchError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Certificate(text) => Self::TlsCertificate(text),
            Failure::Alert(text) => Self::TlsAlert(text),
            Failure::Protocol(text) => Self::TlsProtocol(text),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Secure(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Secure(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
