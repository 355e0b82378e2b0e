//! The body of a response on its way to a client.

use crate::semantics::Fields;
use bytes::Bytes;
use once_cell::race::OnceBox;
use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

/// What goes after a response head.
#[derive(Default)]
pub enum ResponseBody {
    #[default]
    Empty,
    /// All of it, at hand.
    Full(Bytes),
    /// A part of a stored body, at hand: from byte `start` to byte `end`.
    Stored { body: Arc<StoredBody>, start: u64, end: u64 },
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
            Self::Stored { start, end, .. } => Some(end - start),
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

/// A whole body in memory, shared by the store and by the answers that are made of it; freed with the last of them.
///
/// Immutable but for what the store notes on it: how many of its responses keep it, what is to be freed with it, and
/// whether answers that are under way are to let go of it.
pub struct StoredBody {
    segments: Segments,
    keepers: AtomicU32,
    revoked: AtomicBool,
    /// The last field: given back when the bytes are. Most have none, so it is a thin pointer.
    attached: OnceBox<Box<dyn Any + Send + Sync>>,
}

// With the two counts of an `Arc` this is a size of the allocator; the next one is 16 bytes more.
const _: () = assert!(size_of::<StoredBody>() <= 48);

/// Most bodies are one segment, which then needs no allocation of its own.
enum Segments {
    One(Bytes),
    Many(Box<Many>),
}

struct Many {
    segments: Box<[Bytes]>,
    /// The body that these are parts of, if so: it is not freed before them, and what is asked of it counts for them.
    parent: Option<Arc<StoredBody>>,
}

impl StoredBody {
    pub fn new(segments: &[Bytes]) -> Self {
        Self::around(match segments {
            [one] => Segments::One(one.clone()),
            many => Segments::Many(Box::new(Many { segments: many.into(), parent: None })),
        })
    }

    /// Of bytes that nobody else has.
    pub fn of_one(segment: Bytes) -> Self {
        Self::around(Segments::One(segment))
    }

    const fn around(segments: Segments) -> Self {
        Self { segments, keepers: AtomicU32::new(0), revoked: AtomicBool::new(false), attached: OnceBox::new() }
    }

    /// Bytes of which some are slices of `parent`.
    pub fn of_parts(segments: &[Bytes], parent: &Arc<Self>) -> Self {
        Self::around(Segments::Many(Box::new(Many { segments: segments.into(), parent: Some(Arc::clone(parent)) })))
    }

    pub fn segments(&self) -> &[Bytes] {
        match &self.segments {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(many) => &many.segments,
        }
    }

    /// Bytes in all.
    pub fn length(&self) -> u64 {
        self.segments().iter().map(|segment| segment.len() as u64).sum()
    }

    /// One stored response more keeps it.
    pub fn keep(&self) {
        self.keepers.fetch_add(1, Ordering::Relaxed);
    }

    /// One keeps it no more; true for the last. None comes after that: it would have to come from one that keeps it.
    pub fn let_go(&self) -> bool {
        self.keepers.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Has `what` dropped right after the bytes were freed. Only the first is taken.
    pub fn attach(&self, what: Box<dyn Any + Send + Sync>) {
        let _ = self.attached.set(Box::new(what));
    }

    /// Asks answers under way to let go of it: its memory is wanted back.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked back. Answers that wait for their client look here; it says nothing of the bytes, which stay.
    pub fn is_revoked(&self) -> bool {
        let parent = match &self.segments {
            Segments::One(_) => None,
            Segments::Many(many) => many.parent.as_ref(),
        };
        self.revoked.load(Ordering::Relaxed) || parent.is_some_and(|parent| parent.is_revoked())
    }
}

impl std::fmt::Debug for StoredBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StoredBody({} bytes)", self.length())
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
    #[error("the origin has another version by now")]
    OtherVersion,
    #[error("a coding of it could not be made")]
    NotCoded,
}

/// A source of body bytes. After `None` or an error it is not polled again. Dropping it says that nobody wants the rest.
pub trait BodyStream: Send {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>>;

    /// Whether the memory behind what it gave last is wanted back: whoever still waits for its client then gives up.
    fn is_revoked(&self) -> bool {
        false
    }
}

/// A body of which a first piece had been taken already.
pub struct Again {
    pub first: Option<Bytes>,
    pub rest: Option<Pin<Box<dyn BodyStream>>>,
}

impl BodyStream for Again {
    fn poll_chunk(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        match (self.first.take(), &mut self.rest) {
            (Some(first), _) if !first.is_empty() => Poll::Ready(Some(Ok(Chunk::Data(first)))),
            (_, Some(rest)) => rest.as_mut().poll_chunk(context),
            (_, None) => Poll::Ready(None),
        }
    }
}
