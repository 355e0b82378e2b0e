//! What both ends of HTTP/1 need of the protocol, as pure state machines: bytes in, events out; no socket, no clock.
//!
//! [`chunked`] undoes the chunked transfer coding, of requests and of responses. [`response`] reads a response: interim
//! heads, the head, what delimits the body, its bytes, its trailers. What a request head says is decided beside the
//! connection that serves it (`listener::http1`).

pub mod chunked;
pub mod response;
