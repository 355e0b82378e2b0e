//! Bytes of a response that is kept in blocks, block after block as the client takes them.

use super::Block;
use super::fetch::{self, Opened};
use crate::body::{BodyError, BodyStream, Chunk, ResponseBody, StoredBody};
use crate::cache::StoredResponse;
use crate::listener::Response;
use crate::proxy::Proxy;
use crate::proxy::deliver::slices;
use crate::proxy::exchange::Exchange;
use crate::proxy::resume::Resuming;
use bytes::Bytes;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// A range of a record. Nothing is asked of the origin before the client has taken all but the last block before it.
pub struct BlockStream {
    proxy: Arc<Proxy>,
    exchange: Arc<Exchange>,
    record: Arc<StoredResponse>,
    /// What the client gets next, and where it ends.
    left: Range<u64>,
    state: State,
}

enum State {
    /// At the start of what is left.
    Next,
    Opening(Pin<Box<dyn Future<Output = Result<Opened, BodyError>> + Send>>),
    /// A stored block; its body is held so that it counts as read.
    Stored {
        body: Arc<StoredBody>,
        slices: VecDeque<Bytes>,
    },
    /// A block that comes.
    Filling(Resuming),
}

impl BlockStream {
    pub fn new(proxy: &Arc<Proxy>, exchange: &Arc<Exchange>, record: &Arc<StoredResponse>, range: Range<u64>) -> Self {
        let (proxy, exchange, record) = (Arc::clone(proxy), Arc::clone(exchange), Arc::clone(record));
        Self { proxy, exchange, record, left: range, state: State::Next }
    }

    /// The bytes that are left of the block that is next; `None` at the end.
    fn wanted(&self) -> Option<(Block, Range<u64>)> {
        let block = Block::at(&self.record, self.left.start).filter(|_| !self.left.is_empty())?;
        let end = block.range().end.min(self.left.end);
        Some((block, self.left.start..end))
    }

    /// The block that is next was opened: the one behind it may come meanwhile. `None`: it is none.
    fn opened(&self, opened: Opened) -> Option<State> {
        let (block, wanted) = self.wanted()?;
        if wanted.end < self.left.end
            && let Some(next) = block.next()
        {
            fetch::ahead(&self.proxy, &self.exchange, next);
        }
        Some(match opened {
            Opened::Stored(stored) => {
                let body = stored.body()?;
                let start = block.range().start;
                let mut pieces = Vec::new();
                slices(body.segments(), &(wanted.start - start..wanted.end - start), &mut pieces);
                State::Stored { body: Arc::clone(body), slices: pieces.into() }
            }
            Opened::Filling(reader) => {
                State::Filling(Resuming::new(reader, wanted.start, Some(wanted.end), &self.proxy, &self.exchange, &self.record.head))
            }
        })
    }

    fn data(&mut self, bytes: Bytes) -> Poll<Option<Result<Chunk, BodyError>>> {
        self.left.start += bytes.len() as u64;
        Poll::Ready(Some(Ok(Chunk::Data(bytes))))
    }
}

impl BodyStream for BlockStream {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        loop {
            this.state = match &mut this.state {
                State::Next => match this.wanted() {
                    None => return Poll::Ready(None),
                    Some((block, wanted)) => {
                        State::Opening(Box::pin(fetch::open(Arc::clone(&this.proxy), Arc::clone(&this.exchange), block, wanted)))
                    }
                },
                State::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(opened) => match this.opened(opened) {
                        Some(state) => state,
                        None => return Poll::Ready(Some(Err(BodyError::Truncated))),
                    },
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                State::Stored { slices, .. } => match slices.pop_front() {
                    Some(bytes) => return this.data(bytes),
                    None => State::Next,
                },
                State::Filling(block) => match ready!(Pin::new(block).poll_chunk(context)) {
                    Some(Ok(Chunk::Data(bytes))) => return this.data(bytes),
                    Some(Ok(Chunk::Trailers(_))) => continue,
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => State::Next,
                },
            };
        }
    }

    fn is_revoked(&self) -> bool {
        match &self.state {
            State::Stored { body, .. } => body.is_revoked(),
            State::Filling(block) => block.is_revoked(),
            State::Next | State::Opening(_) => false,
        }
    }
}

/// Has the first bytes of an answer made of blocks ready before its head goes out: until then it can still become another
/// answer. Any other answer is left as it is.
pub async fn settle(mut response: Box<Response>) -> Result<Box<Response>, BodyError> {
    if !response.outcome.in_blocks {
        return Ok(response);
    }
    response.body = match std::mem::take(&mut response.body) {
        ResponseBody::Stream { length, mut stream } => {
            let first = match poll_fn(|context| stream.as_mut().poll_chunk(context)).await {
                Some(Err(error)) => return Err(error),
                first => first,
            };
            ResponseBody::Stream { length, stream: Box::pin(Begun { first, rest: stream }) }
        }
        other => other,
    };
    Ok(response)
}

/// A stream whose first chunk was taken already.
struct Begun {
    first: Option<Result<Chunk, BodyError>>,
    rest: Pin<Box<dyn BodyStream>>,
}

impl BodyStream for Begun {
    fn poll_chunk(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, BodyError>>> {
        let this = self.get_mut();
        match this.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => this.rest.as_mut().poll_chunk(context),
        }
    }

    fn is_revoked(&self) -> bool {
        self.rest.is_revoked()
    }
}
