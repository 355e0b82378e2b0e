//! Collapsed forwarding (RFC 9111 §4; DESIGN section 5): one fetch, many readers.
//!
//! [`flight`] is the table of fetches under way and knows nothing of HTTP; [`fill`] the body that one
//! writer fills and any number of readers follow; [`pinned`] accounts for bodies that outlived their place in the store;
//! [`marker`] remembers keys for which lining up is pointless.
//!
//! Everything waits for events, nothing polls: [`wake`] holds the wakers, and no waker is invoked while a lock is
//! held. [`flight`], [`buffer`], [`budget`] and [`wake`] take locks and atomics from [`sync`] alone, so that
//! `tests/loom-flight` can run them under every interleaving.

pub mod budget;
mod buffer;
pub mod fill;
pub mod flight;
pub mod lease;
pub mod marker;
pub mod pinned;
mod sync;
mod wake;
