//! From a socket to a parsed request head and body, and from a response back to bytes.
//!
//! The seam: `http1` (ours) parses and frames, `http2` has h2 do so, `http3` quinn and h3; [`Handler`] answers. The proxy never knows which
//! protocol it serves.

mod alt_svc;
mod extra;
pub mod http1;
pub mod http2;
#[cfg(feature = "http3")]
pub mod http3;
mod interim;
mod pace;
mod paced;
pub mod proxy_protocol;
mod secure;
mod socket;
mod turn;

pub use alt_svc::AltSvc;
pub use extra::ExtraLines;
pub use interim::{Interim, InterimReceiver, InterimSender, InterimSlot, NotTaken};
pub use proxy_protocol::Announced;
pub use secure::{SecureSocket, Shaken, shake_hands};
pub use socket::{ClientSocket, Socket, Unread};

use crate::body::{BodyError, BodyStream, ResponseBody};
use crate::config::settings::ClientCertificates;
use crate::observe::metrics::Bound;
use crate::proxy::outcome::Outcome;
use crate::semantics::Fields;
use http::{Method, StatusCode};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

/// A request head as it was parsed; memory is reused from request to request.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub method: Method,
    /// The request target as it came: origin, absolute or asterisk form.
    pub target: Vec<u8>,
    /// 0 or 1; 1 for requests of other protocols.
    pub minor_version: u8,
    pub fields: Fields,
}

/// What is known of the connection.
#[derive(Debug, Clone)]
pub struct Peer {
    pub client: SocketAddr,
    pub local: SocketAddr,
    /// Index of the worker that serves it: picks per-core counters and idle upstream connections.
    pub worker: usize,
    pub scheme: crate::semantics::target::Scheme,
    /// Name of the listener.
    pub listener: Arc<str>,
    pub protocol: Protocol,
    /// Port of https where clients of this listener are sent that come without it.
    pub redirect_to_https: Option<u16>,
    /// Where the listener, or the site that the client named, has a say about client certificates.
    pub identity: Option<Arc<Identity>>,
}

impl Peer {
    /// One without TLS that nothing is known of but the addresses.
    pub fn plain(client: SocketAddr, local: SocketAddr, worker: usize, listener: impl Into<Arc<str>>) -> Self {
        let (scheme, protocol) = (crate::semantics::target::Scheme::Http, Protocol::Http1);
        Self { client, local, worker, scheme, listener: listener.into(), protocol, redirect_to_https: None, identity: None }
    }
}

/// Who a client is by the handshake of its connection.
#[derive(Debug)]
pub struct Identity {
    /// What was asked of it.
    pub policy: Arc<ClientCertificates>,
    /// As the listener has it, not a site.
    pub is_of_listener: bool,
    /// The name that it wanted (SNI).
    pub name: Option<Box<str>>,
    /// Client-Cert; `None`: it showed none, or the upstream is told nothing.
    pub certificate: Option<String>,
    /// Client-Cert-Chain.
    pub chain: Option<String>,
}

/// What is spoken on a connection; versions of HTTP/1 go by request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    Http3,
}

/// The request's body, framing already undone.
pub enum RequestBody {
    Empty,
    /// All of it, at hand: it can be sent again.
    Full(bytes::Bytes),
    /// `length` where Content-Length said it.
    Stream {
        length: Option<u64>,
        stream: Pin<Box<dyn BodyStream>>,
    },
}

/// An answer, ready for framing. `fields` never holds Connection, Transfer-Encoding, Keep-Alive or Trailer.
#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub fields: ResponseFields,
    pub body: ResponseBody,
    /// Close the connection afterwards.
    pub close: bool,
    /// What happened, for log and metrics, completed by the connection.
    pub outcome: Outcome,
}

/// Fields of an answer: a stored block as it is and what this answer adds, or a section of its own.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "the large one is the common one, and a box would be an allocation per hit")]
pub enum ResponseFields {
    Stored { stored: Arc<crate::cache::StoredHead>, extra: ExtraLines },
    Own(Fields),
}

/// The answer to a request: at once, or later.
#[expect(clippy::large_enum_variant, reason = "the large one is the hit, and a box would be an allocation per hit")]
pub enum Handled {
    Ready(Response),
    Later(Later),
}

/// An answer on its way. It goes through many hands, and to copy it each time would cost more than its box.
pub type Later = Pin<Box<dyn Future<Output = Box<Response>> + Send>>;

impl Handled {
    pub fn later(response: impl Future<Output = Response> + Send + 'static) -> Self {
        Self::Later(Box::pin(async move { Box::new(response.await) }))
    }

    /// The answer, when it is there.
    pub async fn response(self) -> Box<Response> {
        match self {
            Self::Ready(response) => Box::new(response),
            Self::Later(response) => response.await,
        }
    }
}

/// What answers requests: the proxy; in tests of a connection, a scripted stand-in.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request. Whatever the future borrows it must copy from `head`.
    fn handle(self: &Arc<Self>, peer: &Peer, head: &RequestHead, body: RequestBody, interim: &mut InterimSlot) -> Handled;

    /// The last byte of an answer went out, or the client left: log and count.
    fn finished(&self, peer: &Peer, head: &RequestHead, outcome: &Outcome, sent: &Sent);

    /// A request was refused by the connection itself, or its client left before there was an answer. `head` where it
    /// was understood; `duration_ns` from its first byte.
    fn refused(&self, peer: &Peer, head: Option<&RequestHead>, refusal: Refusal, duration_ns: u64);

    /// Our name in Proxy-Status (RFC 9209), for answers of the connection itself.
    fn name(&self) -> String {
        env!("CARGO_PKG_NAME").into()
    }

    /// A bound on connections was reached of which no refusal tells.
    fn bound(&self, _: Bound) {}
}

/// What went out.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    pub status: StatusCode,
    /// Bytes of the body that were written.
    pub body_bytes: u64,
    /// From the request's first byte... to the last byte of the answer, nanoseconds.
    pub duration_ns: u64,
    /// Why the answer did not end as it should.
    pub aborted: Option<BodyError>,
}

/// Why a connection refused a request by itself: the status that the client gets and a token for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub reason: &'static str,
}

impl Refusal {
    /// RFC 9209 §2.3 token for Proxy-Status: `http_request_error` is for 4xx.
    pub const fn error(self) -> &'static str {
        match self.status {
            400..=499 => "http_request_error",
            501 | 505 => "proxy_internal_response",
            _ => "proxy_internal_error",
        }
    }
}
