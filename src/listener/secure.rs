//! TLS on a client's socket: the handshake, and a [`Socket`] like any other behind it.

use super::{ClientSocket, Identity, Socket};
use crate::clock;
use crate::config::settings::{Challenge, ClientCertificates, Told};
use crate::observe::metrics::{Handshake, Metrics};
use crate::semantics::structured::byte_sequences;
use crate::tls::{self, Chosen, Server};
use rustls::server::{Acceptor, ServerConnection};
use rustls::{HandshakeKind, ProtocolVersion};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// A client's socket behind its handshake.
///
/// A close without close_notify is an error to whoever reads. Closing sends ours; [`Socket::reset_on_close`] does not.
pub struct SecureSocket(TlsStream<ClientSocket>);

/// A connection behind its handshake.
pub struct Shaken {
    pub socket: SecureSocket,
    pub identity: Option<Arc<Identity>>,
}

impl SecureSocket {
    /// Whether the client chose HTTP/2 (ALPN).
    pub fn is_http2(&self) -> bool {
        self.0.get_ref().1.alpn_protocol() == Some(tls::ALPN_HTTP2)
    }
}

/// Shakes hands, within the time that the listener allows for it; `None` where nothing came of it, which is counted.
pub async fn shake_hands(socket: ClientSocket, server: &Server, metrics: &Metrics) -> Option<Shaken> {
    let shaken = clock::timeout(server.handshake_timeout, pin!(shake(socket, server))).await;
    let (version, outcome, shaken) = match shaken {
        Err(_) => (None, Handshake::Timeout, None),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            tracing::debug!(%error, "TLS handshake refused");
            (None, Handshake::Refused, None)
        }
        Ok(Err(_)) => (None, Handshake::ClientLeft, None),
        Ok(Ok(Ended::Challenge)) => {
            metrics.acme.answered(Challenge::TlsAlpn01);
            (None, Handshake::Challenge, None)
        }
        Ok(Ok(Ended::Agreed(stream, identity))) => {
            let session = stream.get_ref().1;
            let is_resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
            let outcome = if is_resumed { Handshake::Resumed } else { Handshake::Full };
            (session.protocol_version().map(name), outcome, Some(Shaken { socket: SecureSocket(stream), identity }))
        }
    };
    metrics.tls.handshake(version, outcome);
    shaken
}

fn name(version: ProtocolVersion) -> &'static str {
    if version == ProtocolVersion::TLSv1_3 { "1.3" } else { "1.2" }
}

/// How a handshake ended that did not fail.
#[expect(clippy::large_enum_variant, reason = "the large one is the common one")]
enum Ended {
    Agreed(TlsStream<ClientSocket>, Option<Arc<Identity>>),
    /// An authority has seen that a host is ours, and nothing follows.
    Challenge,
}

async fn shake(socket: ClientSocket, server: &Server) -> io::Result<Ended> {
    let turn = server.handshakes.acquire().await.map_err(io::Error::other)?;
    let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    if let Some(config) = server.answer_challenge(&start.client_hello()).await {
        start.into_stream(config).await?.shutdown().await?;
        return Ok(Ended::Challenge);
    }
    let Chosen { config, policy, is_of_listener } = server.choose(&start.client_hello());
    let accept = if server.is_slow(&start.client_hello()) {
        // Our whole flight, the signature in it, is made in this one call. Only where a client must be asked for another
        // key share it comes later, and here.
        let accept = tls::run_elsewhere(move || start.into_stream(config)).await;
        accept.ok_or_else(|| io::Error::other("a thread for signatures ended"))?
    } else {
        start.into_stream(config)
    };
    let accepted = accept.into_fallible().await;
    drop(turn);
    let stream = match accepted {
        Ok(stream) => stream,
        Err((error, socket)) => {
            let _ = tokio::time::timeout(GOODBYE, let_alert_arrive(socket)).await;
            return Err(error);
        }
    };
    let identity = policy.map(|policy| Arc::new(identity(stream.get_ref().1, policy, is_of_listener)));
    Ok(Ended::Agreed(stream, identity))
}

/// How long a client that was refused may take to read why.
const GOODBYE: Duration = Duration::from_secs(1);

/// With TLS 1.3 the first request is there before we refuse its client: unread at close it would become a reset, which can
/// destroy the alert.
async fn let_alert_arrive(mut socket: ClientSocket) -> io::Result<()> {
    socket.shutdown().await?;
    let mut dropped = [0; 4096];
    while socket.read(&mut dropped).await? > 0 {}
    Ok(())
}

fn identity(session: &ServerConnection, policy: Arc<ClientCertificates>, is_of_listener: bool) -> Identity {
    let shown = session.peer_certificates().unwrap_or_default();
    let certificate = shown.first().filter(|_| policy.told != Told::Nothing).map(|certificate| byte_sequences([&certificate[..]]));
    let chain = shown.get(1..).filter(|chain| policy.told == Told::Chain && !chain.is_empty());
    let chain = chain.map(|chain| byte_sequences(chain.iter().map(|certificate| &certificate[..])));
    Identity { policy, is_of_listener, name: session.server_name().map(Box::from), certificate, chain }
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
