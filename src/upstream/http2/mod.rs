//! HTTP/2 to upstreams, and between nodes: h2 speaks the protocol.
//!
//! [`Connections`] are those to one endpoint; requests share them, as many at a time on each as both sides allow, and wait
//! in line where all are full. [`exchange()`] is one request and the head of its answer; its body goes on from there, and
//! the request's with it: who answers may do so before the request has ended, as gRPC does.
//!
//! Invariants: an answer is whole only where its stream ended in order; a request is unsent only where the peer says so
//! (GOAWAY before its stream, REFUSED_STREAM) or the connection did not take it.

mod connections;
mod exchange;
mod message;
mod upload;

/// Bytes that a field line takes beyond its own in the size of a list (RFC 9113 §6.5.2).
const LINE_OVERHEAD: usize = 32;

/// The size of a list of fields within these bounds.
pub(crate) fn header_list(header_bytes: usize, header_count: usize) -> u32 {
    u32::try_from(header_bytes.saturating_add(header_count.saturating_mul(LINE_OVERHEAD))).unwrap_or(u32::MAX)
}

pub(crate) use connections::{Bounds, Connections, Granted, Stream};
pub(crate) use exchange::exchange;
pub(crate) use message::message;
