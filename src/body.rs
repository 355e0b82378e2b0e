//! The body of a response on its way to a client.

use crate::semantics::Fields;
use bytes::Bytes;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// What goes after a response head.
#[derive(Default)]
pub enum ResponseBody {
    #[default]
    Empty,
    /// All of it, at hand.
    Full(Bytes),
    /// A part of a stored body, at hand: `segments` from byte `start` to byte `end`.
    Segments { segments: Arc<[Bytes]>, start: u64, end: u64 },
    /// Bytes as they come. `length` where it is known.
    Stream { length: Option<u64>, stream: Pin<Box<dyn BodyStream>> },
    /// The connection becomes a tunnel after the head (101).
    Tunnel(Box<dyn Tunnel>),
}

/// A two-way byte stream to an upstream after 101.
pub trait Tunnel: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Tunnel for T {}

impl ResponseBody {
    /// Bytes of the body where they are known before it is sent.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Segments { start, end, .. } => Some(end - start),
            Self::Stream { length, .. } => *length,
            Self::Tunnel(_) => None,
        }
    }
}

impl std::fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ResponseBody({:?})", self.length())
    }
}

/// A piece of a body.
#[derive(Debug)]
pub enum Chunk {
    Data(Bytes),
    /// Ends the body; kept apart from the header fields (RFC 9110 §6.5.1).
    Trailers(Fields),
}

/// A body that ended wrongly. The connection is then aborted, never ended cleanly (P4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the origin closed before the body was whole")]
    Truncated,
    #[error("the origin sent nothing for too long")]
    Timeout,
    #[error("the connection to the origin was reset")]
    Reset,
    #[error("the body was malformed")]
    Malformed,
    #[error("this reader was too slow")]
    Detached,
    #[error("the client left")]
    ClientLeft,
    #[error("the body is larger than allowed")]
    TooLarge,
}

/// A source of body bytes. After `None` or an error it is not polled again. Dropping it says that nobody wants the rest.
pub trait BodyStream: Send {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>>;
}
