//! TLS on a client's socket: the handshake, and a [`Socket`] like any other behind it.

use super::{ClientSocket, Socket};
use crate::observe::metrics::{Handshake, TlsSeries};
use crate::tls::{self, Server};
use rustls::server::Acceptor;
use rustls::{HandshakeKind, ProtocolVersion};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A client's socket behind its handshake.
///
/// A close without close_notify is an error to whoever reads. Closing sends ours; [`Socket::reset_on_close`] does not.
pub struct SecureSocket(TlsStream<ClientSocket>);

impl SecureSocket {
    /// Whether the client chose HTTP/2 (ALPN).
    pub fn is_http2(&self) -> bool {
        self.0.get_ref().1.alpn_protocol() == Some(tls::ALPN_HTTP2)
    }
}

/// Shakes hands, within the time that the listener allows for it; `None` where nothing came of it, which is counted.
pub async fn shake_hands(socket: ClientSocket, server: &Server, series: &TlsSeries) -> Option<SecureSocket> {
    let shaken = tokio::time::timeout(server.handshake_timeout, shake(socket, server)).await;
    let (version, outcome, shaken) = match shaken {
        Err(_) => (None, Handshake::Timeout, None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::debug!(%error, "TLS handshake refused");
            (None, Handshake::Refused, None)
        }
        Ok(Err(_)) => (None, Handshake::ClientLeft, None),
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
            let outcome = if is_resumed { Handshake::Resumed } else { Handshake::Full };
            (session.protocol_version().map(name), outcome, Some(SecureSocket(stream)))
        }
    };
    series.handshake(version, outcome);
    shaken
}

fn name(version: ProtocolVersion) -> &'static str {
    if version == ProtocolVersion::TLSv1_3 { "1.3" } else { "1.2" }
}

async fn shake(socket: ClientSocket, server: &Server) -> io::Result<TlsStream<ClientSocket>> {
    let _turn = server.handshakes.acquire().await.map_err(io::Error::other)?;
    let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let config = Arc::clone(&server.config);
    if !server.is_slow(&start.client_hello()) {
        return start.into_stream(config).await;
    }
    // Our whole flight, the signature in it, is made in this one call. Only where a client must be asked for another key
    // share it comes later, and here.
    match tls::run_elsewhere(move || start.into_stream(config)).await {
        Some(accept) => accept.await,
        None => Err(io::Error::other("a thread for signatures ended")),
    }
}

impl Socket for SecureSocket {
    fn reset_on_close(&self) {
        self.0.get_ref().0.reset_on_close();
    }
}

impl AsyncRead for SecureSocket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.0).poll_read(context, buffer);
        // What the protocol itself has to say (no renegotiation, new keys) would else wait for our next answer.
        if read.is_pending() && self.0.get_ref().1.wants_write() {
            ready!(Pin::new(&mut self.0).poll_flush(context))?;
        }
        read
    }
}

impl AsyncWrite for SecureSocket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
