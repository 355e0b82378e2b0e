//! HTTP/1 to clients: a connection of our own on httparse.
//!
//! Pure parts, without socket or clock: [`parse`] (bytes to a request head), [`framing`] (where a request ends, what it
//! asks of the connection), [`write`](mod@write) (an answer to bytes). The driver that moves bytes between them and a
//! socket: `connection` (the loop and the fast path: read, parse, handle, one write), `exchange` (everything that
//! waits: handlers that answer later, request bodies, streamed answers, tunnels), `intake` (a request body on its way
//! to its reader; [`pace`](super::pace): how long it may take), `alarms` (one timer and the drain signal per connection), `held` (who keeps
//! buffers while it waits).
//!
//! `docs/http1.md` lists what is refused and what is normalised, row by row.
//!
//! Invariants: a connection is used again only if the request before was read to its very end; an answer never ends
//! cleanly unless its body did; answers leave in the order of their requests.

mod alarms;
mod connection;
mod exchange;
pub mod framing;
mod held;
mod intake;
pub mod parse;
pub mod write;

use super::{Handler, Peer, Refusal, Socket, Unread};
use crate::config::settings::Limits;
use connection::Next;
#[cfg(test)]
pub(super) use framing::tests::limits;
use std::sync::Arc;
use std::time::Duration;

/// Room that a read finds at least, and what a connection holds between its requests.
const READ_BYTES: usize = 4096;
/// Room for reading a request body.
const BODY_READ_BYTES: usize = 32 * 1024;
/// Bytes of later requests that are taken from the socket while one is answered.
const PIPELINE_BYTES: usize = 16 * 1024;
/// Bytes of a request body that nobody reads, taken in so that the connection may be used again.
const UNREAD_BODY_BYTES: u64 = 256 * 1024;
/// How long that may take.
const UNREAD_BODY_TIME: Duration = Duration::from_secs(1);
/// How long, and for how many bytes, a closing connection listens so that its last answer is not lost to a reset
/// (RFC 9112 §9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 * 1024;
/// How long a connection without a request so far may take to send its first one once the process drains.
const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(1);
/// A connection that waits this long for its next request gives its buffers back.
const TRIM_AFTER: Duration = Duration::from_secs(1);
/// Answers in a row, without waiting for the socket, after which others get their turn.
const ANSWERS_IN_A_ROW: u32 = 32;

/// Serves one connection until it ends. Returns when the client left, a limit was reached, or `drain` turned true and
/// the request under way is answered. A tunnel (101) goes on until one side ends it or the future is dropped.
pub async fn serve<S, H>(stream: S, peer: Peer, limits: Arc<Limits>, handler: Arc<H>, drain: tokio::sync::watch::Receiver<bool>)
where
    S: Socket,
    H: Handler,
{
    connection::Connection::new(stream, peer, limits, handler, drain, Preface::Refused).run().await;
}

/// As [`serve`], unless the client begins with the preface of HTTP/2 (RFC 9113 §3.4): then its socket comes back as if
/// nothing had been read of it.
pub async fn serve_unless_http2<S, H>(
    stream: S,
    peer: Peer,
    limits: Arc<Limits>,
    handler: Arc<H>,
    drain: tokio::sync::watch::Receiver<bool>,
) -> Option<Unread<S>>
where
    S: Socket,
    H: Handler,
{
    let mut connection = connection::Connection::new(stream, peer, limits, handler, drain, Preface::HandedOver);
    match connection.run().await {
        Next::HandOver => Some(Unread::new(connection.buffer.freeze(), connection.io)),
        _ => None,
    }
}

/// What becomes of a connection that begins with the preface of HTTP/2. To us it reads as a whole request head of a
/// version that is not spoken here, so that looking for it costs requests nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Preface {
    Refused,
    HandedOver,
}

/// A request that cannot be understood in one way only.
const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: 400, reason }
}
